"""What a new word learns: a purple rocket that no caption names, on the miniature world, judged.

python benchmarks/pivotal.py --work /tmp/pivotal

8 pictures of one thing, captioned "a zibbo on sand under a night sky", and 8 of others with the captions that they have
in the miniature world. Trained twice: with `new_token: zibbo`, and with
the same captions alone, where CLIP spells the word out in pieces. Then the judge says what each prompt gave.
"""

from __future__ import annotations

import argparse
import itertools
import random
from pathlib import Path

import torch

from lora_scripts import run
from lora_scripts.config.schema import TrainConfig
from lora_scripts.demo import world
from lora_scripts.demo.judge import Judge
from lora_scripts.families.base import LoadOptions, Sampling
from lora_scripts.families.table import load_pictures
from lora_scripts.loras.stack import LoraStack, Worn

BASE = Path(world.__file__).parent / "assets" / "base.safetensors"
WORD, THING = "zibbo", ("purple", "rocket")
ARMS = {"new word": {"new_token": (WORD,), "token_vectors": 2}, "caption alone": {}}


def places(seed: int) -> list[tuple[str, str]]:
    """(ground, sky): the first eight are trained on, the other four are asked for."""
    pairs = list(itertools.product(world.GROUNDS, world.SKIES))
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed)).tolist()
    return [pairs[i] for i in order]


def write_data(folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["filename,prompt"]
    others = [(o, c) for o in world.OBJECTS for c in world.COLOURS if o != THING[1] and c != THING[0]]
    for i, (ground, sky) in enumerate(places(seed)[:8]):
        scene = world.place((THING[1], THING[0], ground, sky), rng)
        world.draw(scene).save(folder / f"{i:02}.png")
        rows.append(f'{i:02}.png,"a {WORD} on {ground} under {sky}"')
        other = world.place((*rng.choice(others), ground, sky), rng)
        world.draw(other).save(folder / f"{i:02}-other.png")
        rows.append(f'{i:02}-other.png,"{world.caption(other)}"')
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--token-lr", type=float, default=1e-3)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=6, help="pictures of each prompt")
    args = parser.parse_args()
    data = args.work / "data"
    write_data(data, args.seed)
    family = load_pictures(BASE, LoadOptions(torch.device("cpu"), torch.float32))
    stack, judge, sampling = LoraStack(family), Judge.load(), Sampling(steps=10, cfg=4.0, size=(128, 128))
    for name, keys in ARMS.items():
        out = args.work / f"{name.replace(' ', '-')}-{args.token_lr:g}-{args.epochs}"
        config = TrainConfig(
            train_data_dir=data, base_model=BASE, output_dir=out, resolution=128, lora_rank=args.rank,
            epochs=args.epochs, learning_rate=args.lr, save_steps=10**6, sample_every=0, sample_steps=4, sample_cfg=4.0,
            val_split=0.0, device="cpu", precision="fp32", min_snr_gamma=5.0, targets=("attention", "feed_forward"),
            **(keys | ({"token_lr": args.token_lr} if keys else {})),
        )  # fmt: skip
        if not (out / f"{out.name}.safetensors").exists():
            run.train(config)
        stack.wear([Worn(out / f"{out.name}.safetensors", 1.0, 1.0)])
        asked = {"with the word": f"a {WORD}", "without it": "", "another thing": "a red car"}
        for what, subject in asked.items():
            read = []
            for ground, sky in places(args.seed)[8:]:
                prompt = f"{subject} on {ground} under {sky}".strip()
                read += judge.read(family.draw(prompt, range(args.seeds), sampling))
            thing = sum((r.colour, r.object) == THING for r in read)
            rockets = sum(r.object == THING[1] for r in read)
            cars = sum((r.colour, r.object) == ("red", "car") for r in read)
            told = f"purple rocket {thing}, any rocket {rockets}, red car {cars} of {len(read)}"
            print(f"RESULT {name}, {what}: {told}", flush=True)


if __name__ == "__main__":
    main()
