"""A contact sheet: pictures in rows and columns, as one picture with labelled axes."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from lora_scripts.report.grid_page import Block

MOST_SIDE = 512
"""Pixels of a picture's longer side; larger ones are reduced."""
MOST_PIXELS = 60_000_000
"""Of the sheet; beyond, all pictures are reduced further."""
GAP, MARGIN = 8, 24
_PAPER, _INK, _SOFT = (255, 255, 255), (24, 25, 27), (93, 97, 104)
# Pillow's own font has no Chinese, Japanese or Korean; the first of these that the system has is taken for those.
_WIDE_FONTS = ("NotoSansCJK-Regular.ttc", "msyh.ttc", "PingFang.ttc", "wqy-microhei.ttc", "DroidSansFallbackFull.ttf")

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def contact_sheet(axes: Sequence[str], blocks: Sequence[Block]) -> Image.Image:
    """All blocks, one below the other. `axes`: the names of the axes, the one across last."""
    width, height = _side(blocks)
    font, small = _font(blocks, max(15, width // 16)), _font(blocks, max(12, width // 22))
    line = round(1.3 * font.size) if isinstance(font, ImageFont.FreeTypeFont) else 16
    named = any(label is not None for block in blocks for label, _ in block.rows)
    left = MARGIN + (max(110, round(0.6 * width)) if named else 0)
    columns = len(blocks[0].columns)
    total = left + columns * (width + GAP) - GAP + MARGIN
    header = [_wrapped(_titled(axes[-1], label, i == 0), font, width) for i, label in enumerate(blocks[0].columns)]
    lines = max(len(rows) for rows in header)
    tops, y = [], MARGIN
    titles = [
        _wrapped(f"{axes[0]}: {block.label}", font, total - 2 * MARGIN) if block.label is not None else []
        for block in blocks
    ]
    for block, title in zip(blocks, titles, strict=True):
        tops.append(y)
        y += (len(title) + lines) * line + GAP + len(block.rows) * (height + GAP) + MARGIN
    sheet = Image.new("RGB", (total, y), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for block, title, top in zip(blocks, titles, tops, strict=True):
        _text(pen, (MARGIN, top), title, font, _INK, line)
        top += len(title) * line
        for i, rows in enumerate(header):
            _text(pen, (left + i * (width + GAP), top + (lines - len(rows)) * line), rows, font, _SOFT, line)
        top += lines * line + GAP
        for number, (label, cells) in enumerate(block.rows):
            if label is not None:
                text = _titled(axes[-2], label, number == 0)
                rows = _wrapped(text, small, left - MARGIN - 2 * GAP)[: max(1, height // line)]
                _text(pen, (MARGIN, top), rows, small, _SOFT, line)
            for i, cell in enumerate(cells):
                if cell is not None:
                    sheet.paste(_fitted(cell.image, (width, height)), (left + i * (width + GAP), top))
            top += height + GAP
    return sheet


def _titled(axis: str, label: str, first: bool) -> str:
    return f"{axis} {label}" if first or axis in ("seed", "cfg") else label


def _side(blocks: Sequence[Block]) -> tuple[int, int]:
    """Of each place on the sheet: the largest picture, reduced."""
    images = [cell.image for block in blocks for _, cells in block.rows for cell in cells if cell is not None]
    width, height = max(image.width for image in images), max(image.height for image in images)
    factor = min(1.0, MOST_SIDE / max(width, height), (MOST_PIXELS / (len(images) * width * height)) ** 0.5)
    return max(32, round(width * factor)), max(32, round(height * factor))


def _fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Whole, on paper where its shape is another."""
    factor = min(size[0] / image.width, size[1] / image.height, 1.0)
    if factor == 1.0 and image.size == size:
        return image
    small = image.resize(
        (max(1, round(image.width * factor)), max(1, round(image.height * factor))), Image.Resampling.LANCZOS
    )
    place = Image.new("RGB", size, _PAPER)
    place.paste(small, ((size[0] - small.width) // 2, (size[1] - small.height) // 2))
    return place


def _font(blocks: Sequence[Block], size: int) -> Font:
    labels = [
        label or "" for block in blocks for label in (block.label, *block.columns, *(row for row, _ in block.rows))
    ]
    if any(ord(letter) > 0x2E80 for label in labels for letter in label):
        for name in _WIDE_FONTS:
            try:
                return ImageFont.truetype(name, size)
            except OSError:
                continue
    return ImageFont.load_default(size)


def _wrapped(text: str, font: Font, width: int) -> list[str]:
    """Lines that fit, broken between words, and within a word where it must be: behind a sign, if there is one."""
    lines = [""]
    for word in text.split():
        while word:
            joined = f"{lines[-1]} {word}".strip()
            if font.getlength(joined) <= width:
                lines[-1], word = joined, ""
            elif lines[-1]:
                lines.append("")
            else:
                cut = next((n for n in range(len(word), 1, -1) if font.getlength(word[:n]) <= width), 1)
                cut = max((word.rfind(sign, 0, cut) for sign in "-_./"), default=0) + 1 or cut
                lines[-1], word = word[:cut], word[cut:]
                lines.append("")
    return [line for line in lines if line] or [""]


def _text(
    pen: ImageDraw.ImageDraw,
    at: tuple[int, int],
    lines: Sequence[str],
    font: Font,
    colour: tuple[int, int, int],
    height: int,
) -> None:
    for number, row in enumerate(lines):
        pen.text((at[0], at[1] + number * height), row, colour, font)
