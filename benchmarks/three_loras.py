"""A style, another style and one fixed house, each a LoRA of its own, then all three in one picture.

    python benchmarks/three_loras.py WORK      # about three times the demo; interrupted, it goes on where it was

Draws and labels three small data sets of the miniature world, trains a LoRA on each, combines them into one file, and
writes WORK/three_loras.png: the base, each LoRA alone, all three as tags in one prompt, and the combined file.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path

from PIL import Image, ImageDraw

from lora_scripts.cli import main
from lora_scripts.demo import world
from lora_scripts.formats import io
from lora_scripts.label.base import MINIATURE
from lora_scripts.label.command import LabelOptions, label

PROMPTS = ("a white house on snow under a night sky", "a yellow house on grass under a clear sky")
STRENGTHS = {"neon": 0.8, "sketch": 0.25, "mill": 0.9}
LABELS = ("base", "neon", "sketch", "mill", "all three", "combined file")
CELL, SEED = 192, 5


def mill(scene: world.Scene, size: int = 128) -> Image.Image:
    """The house of a scene as one certain house: a purple roof, a round yellow window, a red flag."""
    scene = replace(scene, object="house", colour="white")
    image = world.draw(scene, size * 4)
    pen = ImageDraw.Draw(image)
    side, foot = size * 4, scene.horizon + 0.40 * (1.0 - scene.horizon)  # as the world places its objects

    def at(x: float, y: float) -> tuple[float, float]:
        return (scene.x + x * scene.size) * side, (foot + y * scene.size) * side

    pen.polygon([at(-0.52, -0.55), at(0.0, -1.02), at(0.52, -0.55)], fill=(136, 56, 190))
    x, y = at(0.0, -0.7)
    r = 0.12 * scene.size * side
    pen.ellipse((x - r, y - r, x + r, y + r), fill=(246, 214, 50), outline=(60, 40, 30), width=6)
    (px, py), high = at(0.0, -1.0), 0.22 * scene.size * side
    pen.line((px, py, px, py - high), fill=(60, 40, 30), width=8)
    pen.polygon([(px, py - high), (px + 1.3 * r, py - 0.75 * high), (px, py - 0.5 * high)], fill=(216, 40, 40))
    return image.resize((size, size), Image.Resampling.BOX)


def data_set(name: str, folder: Path) -> None:
    """Pictures and captions; what is there stays."""
    if (folder / "metadata.csv").exists():
        return
    if name == "mill":
        houses = [s for s in world.style_set("plain", 400, seed=3) if s.object == "house"][:50]
        folder.mkdir(parents=True, exist_ok=True)
        for i, scene in enumerate(houses, 1):
            mill(scene).save(folder / f"img{i:03d}.png")
        rows = [f"img{i:03d}.png,{world.caption(replace(s, colour='white'))}" for i, s in enumerate(houses, 1)]
        io.write_text(folder / "metadata.csv", "\n".join(["filename,prompt", *rows]) + "\n")
        return
    world.write_pictures(folder, world.style_set(name, 50, seed=1))
    label(LabelOptions(input=folder, model=MINIATURE))


def train(work: Path, name: str) -> Path:
    """The LoRA of one data set, trained as the demo's."""
    out = work / "loras" / name
    if not (out / "report.html").exists():
        base, data = work / "base.safetensors", work / "data" / name
        data_set(name, data)
        paths = {"base_model": base, "train_data_dir": data, "metadata_path": data / "metadata.csv", "output_dir": out}
        config = str(resources.files("lora_scripts.demo").joinpath("assets/demo.yaml"))
        resume = ["--resume"] if (out / "state").exists() else []
        words = [f"{key}={path}" for key, path in paths.items()]
        if main(["train", "--config", config, *resume, *words, "sample_every=0"]):
            raise SystemExit(2)
    return out / f"{name}.safetensors"


def draw(work: Path, tags: str, prompt: str, output: Path) -> Image.Image:
    command = ["generate", "--base", str(work / "base.safetensors"), "--lora-dir", str(work / "loras"), "--cfg", "4"]
    if main([*command, "--seed", str(SEED), "--prompt", f"{prompt} {tags}", "--output", str(output)]):
        raise SystemExit(2)
    return Image.open(output).convert("RGB")


def run(work: Path) -> None:
    io.make_folder(work)
    base = work / "base.safetensors"
    io.write_atomic(base, resources.files("lora_scripts.demo").joinpath("assets/base.safetensors").read_bytes())
    files = {name: train(work, name) for name in STRENGTHS}
    combined = work / "loras" / "combined.safetensors"
    if not combined.exists():
        inputs = [f"{file}:{STRENGTHS[name]}" for name, file in files.items()]
        if main(["combine", *inputs, "--output", str(combined)]):
            raise SystemExit(2)
    tags = ["", *(f"<lora:{name}:1>" for name in STRENGTHS)]
    tags += ["".join(f"<lora:{n}:{s}>" for n, s in STRENGTHS.items()), "<lora:combined:1>"]
    sheet = Image.new("RGB", (CELL * len(tags), 24 + CELL * len(PROMPTS)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, (tag, title) in enumerate(zip(tags, LABELS, strict=True)):
        pen.text((column * CELL + 6, 6), title, fill="black")
        for row, prompt in enumerate(PROMPTS):
            cell = draw(work, tag, prompt, work / "cells" / f"{row}-{column}.png")
            sheet.paste(cell.resize((CELL, CELL), Image.Resampling.LANCZOS), (column * CELL, 24 + row * CELL))
    io.save_png(work / "three_loras.png", sheet)
    print(work / "three_loras.png")


if __name__ == "__main__":
    run(Path(sys.argv[1]))
