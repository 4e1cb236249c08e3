"""Draws the rooms of the house from the imports in the code: docs/images/house.svg.

    python benchmarks/draw_house.py            # writes the picture
    python benchmarks/draw_house.py --check    # exit code 1 if the picture is not the one that would be written

Rooms stand on the floors of the layers in pyproject.toml. An arrow says that a room imports another; thicker: by more
files. Only arrows that skip no floor's worth of meaning are left out: those to errors, events and text, which all use.
"""

from __future__ import annotations

import argparse
import ast
import sys
import tomllib
from collections import Counter
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "lora_scripts"
PICTURE = ROOT / "docs" / "images" / "house.svg"
WIDTH, FLOOR, HEIGHT, ROOM = 940, 74, 40, 150
EVERYWHERE = {"dtypes", "errors", "events", "seeds", "units", "utf8"}


def floors() -> list[list[str]]:
    """The layers, top first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [[name.strip() for name in layer.split("|")] for layer in layers if layer != "__main__"]


def files_of(room: str) -> list[Path]:
    folder = PACKAGE / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{room}.py"]


def imports() -> Counter[tuple[str, str]]:
    """(room, imported room) -> how many files do it."""
    counts: Counter[tuple[str, str]] = Counter()
    for room in (name for floor in floors() for name in floor):
        for path in files_of(room):
            used = set()
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lora_scripts"):
                    inner = (node.module or "").split(".")[1:]
                    used |= {inner[0]} if inner else {alias.name for alias in node.names}
            counts.update((room, other) for other in used if other != room)
    return counts


def draw() -> str:
    """The picture as SVG."""
    rows = floors()
    places: dict[str, tuple[float, float]] = {}
    for level, floor in enumerate(rows):
        step = WIDTH / len(floor)
        for number, room in enumerate(floor):
            places[room] = (step * (number + 0.5), FLOOR * (level + 0.6))
    height = FLOOR * len(rows) + 20
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
    ]
    for (room, other), count in sorted(imports().items()):
        if other in EVERYWHERE or other not in places or room not in places:
            continue
        (x1, y1), (x2, y2) = places[room], places[other]
        y1, y2, bend = y1 + HEIGHT / 2, y2 - HEIGHT / 2, (y2 - y1) / 2
        width = min(1 + count / 4, 6)
        out.append(
            f'<path d="M{x1:.0f} {y1:.0f} C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} {x2:.0f} {y2:.0f}" '
            f'fill="none" stroke="#4a6fa5" stroke-opacity="0.35" stroke-width="{width:.1f}"/>'
        )
    for room, (x, y) in places.items():
        paths = files_of(room)
        size = f"{len(paths)} files" if (PACKAGE / room).is_dir() else "1 file"
        out += [
            f'<rect x="{x - ROOM / 2:.0f}" y="{y - HEIGHT / 2:.0f}" width="{ROOM}" height="{HEIGHT}" rx="7" '
            'fill="#f3f6fb" stroke="#4a6fa5"/>',
            f'<text x="{x:.0f}" y="{y - 2:.0f}" text-anchor="middle" font-size="15" fill="#1d2b3f">'
            f"{escape(room)}</text>",
            f'<text x="{x:.0f}" y="{y + 14:.0f}" text-anchor="middle" font-size="10" fill="#5b6b80">{size}</text>',
        ]
    return "\n".join([*out, "</svg>"]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; say whether the picture is up to date")
    picture = draw()
    if parser.parse_args().check:
        if PICTURE.is_file() and PICTURE.read_text("utf-8") == picture:
            return 0
        print(f"{PICTURE.relative_to(ROOT)} is not what the imports draw: run python benchmarks/draw_house.py")
        return 1
    PICTURE.write_text(picture, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
