"""A thing with a name of its own: whether others of its kind stay, without and with `preserve_weight`.

    PYTHONPATH=. python benchmarks/preserve_character.py --work FOLDER [--count 60] [--out FILE.json] [--grid FILE.png]

LoRAs of 13 pictures of one purple rocket, which captions call zibbo and nothing else, on the bundled base at 128 px,
240 steps of 4: as they are, with 50 class pictures (other rockets, with their colours in the captions), and held to
the base with "a rocket" in place of the name. Then pictures of grounds and skies of which none was trained with it are
drawn: of zibbo, of rockets in other colours, and of other things, each read by the demo's judge.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from benchmarks import preserve
from benchmarks.styles import write
from PIL import Image

from lora_scripts.demo import world
from lora_scripts.demo.judge import Judge, Reading
from lora_scripts.families.base import LoadOptions, Sampling
from lora_scripts.families.table import load_pictures
from lora_scripts.formats.io import save_png
from lora_scripts.loras import file as loras
from lora_scripts.loras import on_model

WORD, OBJECT, COLOUR, PICTURES, STEPS = "zibbo", "rocket", "purple", 13, 240
PLACES = [(ground, sky) for ground in world.GROUNDS for sky in world.SKIES]
ARMS: dict[str, dict[str, object]] = {
    "plain": {},
    "class pictures": {"class_data_dir": "class"},
    "preserve_weight: 1": {"preserve_weight": 1},
}


def named(scene: world.Scene) -> str:
    """Its caption, with the name in place of what it is."""
    return f"{WORD} on {scene.ground} under {scene.sky}"


def write_sets(folder: Path) -> None:
    rng = random.Random("a purple rocket")
    places = rng.sample(PLACES, 8)
    own = [world.place((OBJECT, COLOUR, *places[i % 8]), rng, "plain") for i in range(PICTURES)]
    write(folder / "data", own, [named(scene) for scene in own], preserve.SIDE)
    keys = [key for key in world.all_keys() if key[0] == OBJECT and key[1] != COLOUR]
    others = [world.place(key, rng, "plain") for key in rng.sample(keys, 50)]
    write(folder / "class", others, [world.caption(scene) for scene in others], preserve.SIDE)


def train(work: Path, name: str, own: dict[str, object]) -> tuple[Path, float]:
    if not (work / "data").exists():
        write_sets(work)
    pictures = PICTURES + 50 * ("class_data_dir" in own)
    epochs = round(STEPS / -(-pictures // 4))
    keys = {**preserve.KEYS, "train_data_dir": work / "data", "cache_dir": work / "cache", "epochs": epochs}
    keys |= {"trigger_word": WORD, "preserve_word": "a rocket", "learning_rate": "2e-3", **own}
    keys |= {"class_data_dir": work / "class"} if "class_data_dir" in own else {}
    if "preserve_weight" not in own:
        del keys["preserve_word"]
    return preserve.trained(work, name.replace(" ", "-"), keys)


def asked(count: int) -> dict[str, list[tuple[str, world.Scene]]]:
    """What is drawn: (caption, what the picture should show), of three kinds."""
    rng = random.Random("what is drawn")

    def scenes(of: list[tuple[str, str, str, str]]) -> Iterator[world.Scene]:
        return (world.Scene(*rng.choice(of)) for _ in range(count))

    keys = world.all_keys()
    return {
        WORD: [(named(s), s) for s in scenes([k for k in keys if k[:2] == (OBJECT, COLOUR)])],
        "other rockets": [
            (world.caption(s), s) for s in scenes([k for k in keys if k[0] == OBJECT and k[1] != COLOUR])
        ],
        "other things": [(world.caption(s), s) for s in scenes([k for k in keys if k[0] != OBJECT])],
    }


def told(found: list[tuple[world.Scene, Reading]]) -> dict[str, list[float]]:
    n = len(found)
    return {
        "object and colour right": preserve.share(
            sum((seen.object, seen.colour) == (a.object, a.colour) for a, seen in found), n
        ),
        "object right": preserve.share(sum(seen.object == a.object for a, seen in found), n),
        "a purple rocket": preserve.share(sum((seen.object, seen.colour) == (OBJECT, COLOUR) for _, seen in found), n),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--grid", type=Path)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    judge, results, rows = Judge.load(), dict[str, object](), list[tuple[str, list[Image.Image]]]()
    sampling = Sampling(preserve.STEPS, preserve.CFG, "", (preserve.SIDE, preserve.SIDE))
    for name, own in ({"base": None} | ARMS).items():
        family, took = load_pictures(preserve.BASE, LoadOptions(torch.device("cpu"), torch.bfloat16)), 0.0
        if own is not None:
            file, took = train(options.work, name, own)
            on_model.apply(family, loras.read(file).weights, 1.0)
        results[name] = by_kind = {"seconds": took}
        for kind, some in asked(options.count).items():
            pictures = [family.generate(caption, 3000 + i, sampling) for i, (caption, _) in enumerate(some)]
            by_kind[kind] = told([(s, judge.read([image])[0]) for (_, s), image in zip(some, pictures, strict=True)])
            rows.append((f"{name}: {kind}", pictures[: preserve.SHOWN]))
        print(name, json.dumps(by_kind), flush=True)
    if options.out:
        about = {"count": options.count, "steps": STEPS, "torch": torch.__version__}
        options.out.write_text(json.dumps({**about, "arms": results}, indent=1) + "\n", encoding="utf-8")
    if options.grid:
        save_png(options.grid, preserve.sheet(rows))


if __name__ == "__main__":
    main()
