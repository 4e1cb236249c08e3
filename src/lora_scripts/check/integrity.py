"""Damage inside an image file that decoders pass over: they show grey or garbage from there on, and say nothing.

JPEG, PNG, WebP, AVIF and HEIC are read as containers only (markers, checksums, lengths), which costs next to nothing.
A single wrong bit in the coded data of all but PNG is within their rules and stays unseen.
"""

from __future__ import annotations

import re
import struct
import zlib

_MARKER = re.compile(rb"\xff[^\x00\xff]")
_ZEROS = bytes(512)
"""So many zero bytes in a row do not come about in coded data: a sector that was lost on a disk or on the way."""
_EOI, _SOS, _DHT, _DRI = 0xD9, 0xDA, 0xC4, 0xDD
_BETWEEN_SCANS = frozenset({_DHT, 0xDB, 0xDC, _DRI, 0xFE, *range(0xE0, 0xF0)})
_END_OF_BLOCK = 0


def damage(data: bytes) -> str | None:
    """What is broken inside the bytes of an image that decodes, or None."""
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(data)
    if (data.startswith(b"RIFF") and data[8:12] == b"WEBP") or data[4:8] == b"ftyp":
        return _lost_sector(data, 12, len(data))
    return None


def _png(data: bytes) -> str | None:
    """Every critical chunk against its CRC-32 (PNG specification, 5.3), up to IEND."""
    at = 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind = data[at + 4 : at + 8]
        end = at + 12 + length
        if end > len(data):
            break
        critical = not kind[0] & 0x20
        if critical and zlib.crc32(data[at + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            return f"damaged in the middle: the checksum of its {kind.decode('latin-1')} block at byte {at} is wrong"
        if kind == b"IEND":
            return None
        at = end
    return "cut off: its end is missing"


def _jpeg(data: bytes) -> str | None:
    """Within a scan only restart markers may stand, in turn, and only where they were announced (ITU T.81, B.1.1)."""
    at, in_scan, scan_start, restarts, next_restart, zeros_mean_flat = 2, False, 0, False, 0, True
    while True:
        match = _MARKER.search(data, at)
        if match is None:
            return "cut off: the end marker is missing"
        marker, here = match[0][1], match.start()
        wrong = f"damaged in the middle, at byte {here}"
        if not in_scan and here != at and data[at:here].strip(b"\xff"):
            return wrong
        if in_scan and not zeros_mean_flat and (lost := _lost_sector(data, scan_start, here)):
            return lost
        at = here + 2
        if 0xD0 <= marker <= 0xD7:
            if not (in_scan and restarts and marker == 0xD0 + next_restart):
                return wrong
            next_restart, scan_start = (next_restart + 1) % 8, at
            continue
        if marker == _EOI:
            return None
        if in_scan and marker not in _BETWEEN_SCANS and marker != _SOS:
            return wrong
        (length,) = struct.unpack_from(">H", data, at) if at + 2 <= len(data) else (0,)
        if length < 2 or at + length > len(data):
            return wrong
        if marker == _DRI:
            restarts = length >= 4 and any(data[at + 2 : at + 4])
        elif marker == _DHT:
            zeros_mean_flat = zeros_mean_flat and _zeros_mean_flat(data[at + 2 : at + length])
        in_scan = marker == _SOS
        at += length
        scan_start, next_restart = at, 0


def _zeros_mean_flat(tables: bytes) -> bool:
    """Whether a row of 0 bits can stand for flat blocks: the shortest code of an AC table is "end of block" then.

    The usual tables (T.81, K.3) give that code to something else, and zeros would paint noise.
    """
    at, flat = 0, True
    while at + 17 <= len(tables):
        lengths = tables[at + 1 : at + 17]
        if tables[at] >> 4 == 1:  # an AC table
            flat = flat and tables[at + 17 : at + 18] == bytes([_END_OF_BLOCK])
        at += 17 + sum(lengths)
    return flat


def _lost_sector(data: bytes, start: int, end: int) -> str | None:
    at = data.find(_ZEROS, start, end)
    return None if at < 0 else f"damaged in the middle: nothing but zeros from byte {at} on"
