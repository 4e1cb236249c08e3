"""What a LoRA does where nothing calls it, without and with `preserve_weight`, on the miniature world.

    PYTHONPATH=. python benchmarks/preserve.py --work FOLDER [--count 100] [--out FILE.json] [--grid FILE.png]
    … --base FOLDER --template configs/flux2_klein_style.yaml epochs=24       on another base, by its template

LoRAs of 50 pictures each on the bundled base, 128 px, rank 16, batches of 4, 20 epochs, the demo's rate: of one style
that a made-up word in front of each caption calls, and of two styles with a word each. Then pictures of contents that
no training set has are drawn with each word and with none, and read by the demo's judge. What is finished is not done
again; with a template the two LoRAs of one style alone, plain and with preserve_every 4. Seconds are CPU seconds of the
whole command, one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from benchmarks.styles import write
from PIL import Image, ImageDraw, ImageFont

from lora_scripts.demo import world
from lora_scripts.demo.evaluate import prompts
from lora_scripts.demo.judge import Judge, Reading
from lora_scripts.evaluate.scoring import wilson
from lora_scripts.families.base import LoadOptions, PictureFamily, Sampling
from lora_scripts.families.table import load_pictures
from lora_scripts.formats.io import save_png
from lora_scripts.loras import file as loras
from lora_scripts.loras import on_model

BASE = Path(world.__file__).parent / "assets" / "base.safetensors"
SIDE, PICTURES, STEPS, CFG, SHOWN = 128, 50, 20, 5.0, 8
ONE, TWO = {"zqn": "neon"}, {"zqn": "neon", "vexo": "sketch"}
"""Word -> the style that it calls."""
KEYS = {
    **{"base_model": BASE, "resolution": SIDE, "lora_rank": 16, "batch_size": 4, "epochs": 20, "learning_rate": "4e-3"},
    **{"warmup_steps": 10, "min_snr_gamma": 5, "sample_every": 0, "report": "one", "val_split": 0},
}


@dataclass(frozen=True)
class Arm:
    """One LoRA."""

    name: str
    words: dict[str, str]
    keys: dict[str, object] = field(default_factory=dict)
    beside: bool = False
    """With as many plain pictures, with captions of their own, as the class."""


ARMS = (
    Arm("plain", ONE),
    Arm("class pictures", ONE, beside=True),
    Arm("preserve_every 1", ONE, {"preserve_weight": 1, "preserve_every": 1}),
    Arm("preserve_every 4", ONE, {"preserve_weight": 1, "preserve_every": 4}),
    Arm("two words", TWO),
    Arm("two words, preserve_every 4", TWO, {"preserve_weight": 1, "preserve_every": 4}),
)


def scenes_of(words: dict[str, str]) -> dict[str, list[world.Scene]]:
    """Word -> what is trained with it."""
    return {word: world.style_set(style, PICTURES // len(words), seed=100) for word, style in words.items()}


def write_sets(folder: Path, words: dict[str, str]) -> None:
    """The training pictures, and plain ones."""
    scenes = [(word, scene) for word, some in scenes_of(words).items() for scene in some]
    write(folder / "data", [s for _, s in scenes], [f"{word}, {world.caption(s)}" for word, s in scenes], SIDE)
    plain = world.style_set("plain", PICTURES, seed=200)
    write(folder / "class", plain, [world.caption(scene) for scene in plain], SIDE)


def keys_of(template: Path | None, base: Path, overrides: list[str]) -> dict[str, object]:
    """What all arms have: the keys above, or a template's but for its paths, its previews and what goes against
    `preserve_weight`; and `overrides` over them."""
    own: dict[str, object] = KEYS
    if template is not None:
        told: dict[str, object] = yaml.safe_load(template.read_text("utf-8"))
        gone = ("metadata_path", "text_encoder", "vae", "caption_dropout", "sample_prompts")
        own = {key: value for key, value in told.items() if key not in gone}
        own |= {"resolution": SIDE, "sample_every": 0, "report": "one", "val_split": 0}
    return {**own, "base_model": base, **dict(one.split("=", 1) for one in overrides)}


def train(work: Path, arm: Arm, own: Mapping[str, object]) -> tuple[Path, float]:
    """As `trained`; `own`: the keys of all arms."""
    folder = work / "-".join(arm.words)
    if not folder.exists():
        write_sets(folder, arm.words)
    keys = {**own, "train_data_dir": folder / "data", "cache_dir": folder / "cache"}
    keys |= {"trigger_word": json.dumps([*arm.words]), **arm.keys}
    keys |= {"class_data_dir": folder / "class"} if arm.beside else {}
    return trained(work, arm.name.replace(",", "").replace(" ", "-"), keys)


def trained(work: Path, name: str, keys: Mapping[str, object]) -> tuple[Path, float]:
    """The LoRA's file, and the CPU seconds that it took."""
    record = work / f"{name}.json"
    if not record.exists():
        lines = {**keys, "output_dir": work / name}
        config = work / f"{name}.yaml"
        config.write_text("".join(f"{key}: {value}\n" for key, value in lines.items()), encoding="utf-8")
        before = os.times()
        command = [sys.executable, "-m", "lora_scripts", "train", "--config", str(config), "--sure"]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
        after = os.times()
        took = after.children_user + after.children_system - before.children_user - before.children_system
        record.write_text(json.dumps({"seconds": round(took, 1)}), encoding="utf-8")
    return work / name / f"{name}.safetensors", json.loads(record.read_text("utf-8"))["seconds"]


def drawn(
    family: PictureFamily, word: str, asked: list[world.Scene], seed: int, sampling: Sampling
) -> Iterator[tuple[world.Scene, Image.Image]]:
    for i, scene in enumerate(asked):
        caption = f"{word}, {world.caption(scene)}" if word else world.caption(scene)
        yield scene, family.generate(caption, seed + i, sampling)


def share(hits: int, count: int) -> list[float]:
    return [round(value, 3) for value in (hits / count, *wilson(hits, count))]


def told(found: list[tuple[world.Scene, Reading]]) -> dict[str, list[float]]:
    """Shares with their 95 % intervals."""
    n = len(found)
    styles = {style: share(sum(seen.style == style for _, seen in found), n) for style in world.STYLES}
    right = sum(seen.object == asked.object for asked, seen in found)
    return {
        **styles,
        "object right": share(right, n),
        "all four right": share(sum(s.key == a.key for a, s in found), n),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--grid", type=Path)
    parser.add_argument("--base", type=Path, default=BASE)
    parser.add_argument("--template", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args()
    own = keys_of(options.template, options.base, options.overrides)
    arms = [arm for arm in ARMS if options.template is None or arm.name in ("plain", "preserve_every 4")]
    steps, cfg = (int(str(own.get("sample_steps", STEPS))), float(str(own.get("sample_cfg", CFG))))
    sampling = Sampling(steps, cfg, "", (SIDE, SIDE))
    options.work.mkdir(parents=True, exist_ok=True)
    seen = frozenset(s.key for words in (ONE, TWO) for some in scenes_of(words).values() for s in some)
    asked, judge, results = prompts(options.seed, options.count, seen), Judge.load(), dict[str, object]()
    rows: list[tuple[str, list[Image.Image]]] = []
    for arm in (Arm("base", {}), *arms):
        family, took = load_pictures(options.base, LoadOptions(torch.device("cpu"), torch.bfloat16)), 0.0
        if arm.words:
            file, took = train(options.work, arm, own)
            on_model.apply(family, loras.read(file).weights, 1.0)
        results[arm.name] = by_word = {"seconds": took}
        for word in (*arm.words, ""):
            pictures = list(drawn(family, word, asked, options.seed, sampling))
            by_word[word or "no word"] = told([(scene, judge.read([image])[0]) for scene, image in pictures])
            rows.append((f"{arm.name}: {word or 'no word'}", [image for _, image in pictures[:SHOWN]]))
        print(arm.name, json.dumps(by_word), flush=True)
    if options.out:
        about = {"count": options.count, "seed": options.seed, "steps": steps, "cfg": cfg, "torch": torch.__version__}
        options.out.write_text(json.dumps({**about, "arms": results}, indent=1) + "\n", encoding="utf-8")
    if options.grid:
        save_png(options.grid, sheet(rows))


def sheet(rows: list[tuple[str, list[Image.Image]]]) -> Image.Image:
    """A row for each LoRA and word."""
    high, line = SIDE + 20, 16
    image = Image.new("RGB", (SHOWN * (SIDE + 4) + 4, len(rows) * high), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    for row, (name, pictures) in enumerate(rows):
        pen.text((4, row * high + 1), name, "black", font)
        for column, picture in enumerate(pictures):
            image.paste(picture, (4 + column * (SIDE + 4), row * high + line))
    return image


if __name__ == "__main__":
    main()
