"""How often a run's instruments are right: healthy and planted runs on the miniature world.

python -m benchmarks.advice run FOLDER [--set tune|fresh|last|brief] [--part I/N] [--kinds KIND …]
                                              trains them, a file each; goes on where it stopped
python -m benchmarks.advice table FOLDER [--set tune|fresh|last|brief] [--few]
                                              what was advised, as a table; --few: by the few noise levels that a
                                              short run is measured at, of the set that has both

A run is made, fed, trained and measured by what `lora-scripts train` does it with: 64 px, 40 steps and ten epochs at
least (150 steps where it shall memorise). What it leaves is all that any rule of advice may ask for, so that rules are
tried without training again.
Limits are set on the sets `tune` and `fresh`; `last`, of other seeds and other styles, is for the figures alone, and so
is `brief`, whose runs are measured as seldom as short ones are, at the usual noise levels and at fewer.
"""

from __future__ import annotations

import argparse
import functools
import os
import random
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks import styles
from torch import Tensor

from lora_scripts.adapters.inject import remove
from lora_scripts.config.schema import TrainConfig
from lora_scripts.data.buckets import View
from lora_scripts.data.cache import Cache
from lora_scripts.data.image import apply_view
from lora_scripts.demo import world
from lora_scripts.errors import UserError
from lora_scripts.evaluate.scoring import wilson
from lora_scripts.events import ignore
from lora_scripts.families import table as families
from lora_scripts.families.base import LoadOptions, PictureFamily, Sampling
from lora_scripts.formats import io
from lora_scripts.run import build, story
from lora_scripts.run.build import objective_of
from lora_scripts.run.heldout import FEW_LEVELS, LEVELS, LONG, at_levels
from lora_scripts.run.parts import Parts
from lora_scripts.run.preflight import preflight
from lora_scripts.train import fit, memorised
from lora_scripts.train.advise import AHEAD, Advice, Facts, advise, too_short
from lora_scripts.train.evidence import Evaluation
from lora_scripts.train.feed import Feed
from lora_scripts.train.loop import Hooks, LoopSettings, run_loop
from lora_scripts.train.memorised import Asked
from lora_scripts.train.passes import there_and_back
from lora_scripts.units import listed

BASE = Path(world.__file__).parent / "assets" / "base.safetensors"
SIDE = 64
STEPS, LONG_STEPS = 40, 150
TIMES = {"brief": 3}
"""Measurements in a run, by set; (docs/training.md has of the other sets figures with one more in some runs)"""
USUAL = 4
"""in all others."""
KINDS = {"healthy": 4, "strays": 2, "captions": 2, "memorise": 1, "rate_high": 1, "rate_low": 1}
"""How many of each in eleven runs."""
SETS = {
    "tune": (5000, 3, styles.TUNING),
    "fresh": (9000, 10, styles.FRESH),
    "last": (21000, 10, styles.FINAL),
    "brief": (31000, 10, styles.FINAL),
}
"""First seed, how many times `KINDS`, and the styles."""


@dataclass(frozen=True)
class Spec:
    """One run."""

    name: str
    kind: str
    seed: int
    style: str
    others: tuple[str, ...]
    """Of which strays are."""


def specs(which: str) -> list[Spec]:
    """All runs of a set, mixed in every eleven, so that a part of them is a fair sample."""
    first, rounds, painters = SETS[which]
    found: list[Spec] = []
    for _ in range(rounds):
        kinds = [kind for kind, count in KINDS.items() for _ in range(count)]
        random.Random(first + len(found)).shuffle(kinds)
        for kind in kinds:
            seed = first + len(found)
            style = painters[seed % len(painters)]
            others = tuple(s for s in (*painters, "plain") if s != style)
            found.append(Spec(f"{which}-{len(found):03d}-{kind}", kind, seed, style, others))
    return found


def settings(spec: Spec) -> tuple[dict[str, Any], int]:
    """The config's keys, and how many pictures."""
    rng = random.Random(f"advice/{spec.seed}")
    rank = rng.choice([4, 8, 16])
    keys: dict[str, Any] = {
        "lora_rank": rank,
        "lora_alpha": float(rng.choice([rank, rank, rank / 2])),
        "learning_rate": rng.choice([2e-3, 3e-3, 4e-3]),
        "lr_schedule": rng.choice(["cosine", "cosine", "constant", "linear"]),
        "warmup_steps": rng.choice([0, 5]),
        "batch_size": rng.choice([2, 3, 4]),
        "caption_dropout": rng.choice([0.0, 0.1]),
        "min_snr_gamma": rng.choice([None, 5.0]),
        "seed": spec.seed,
    }
    count = rng.choice([rng.randint(12, 19), rng.randint(20, 32), rng.randint(20, 32)])
    if spec.kind == "rate_high":
        keys["learning_rate"] *= rng.choice([30, 60])
    elif spec.kind == "rate_low":
        keys["learning_rate"] /= rng.choice([15, 30, 100])
    elif spec.kind == "memorise":
        keys |= {"lora_rank": 16, "lora_alpha": 16.0, "learning_rate": 5e-3, "batch_size": 3, "caption_dropout": 0.0}
        keys |= {"lr_schedule": "cosine", "min_snr_gamma": None}
        count = rng.randint(6, 10)
    elif spec.kind in ("captions", "strays"):
        count = rng.randint(20, 32)
    return keys, count


def is_character(spec: Spec) -> bool:
    """One healthy run in four is of one thing, whose pictures are all alike."""
    return spec.kind == "healthy" and random.Random(f"character/{spec.seed}").random() < 0.25


def write_data(spec: Spec, count: int, folder: Path) -> list[str]:
    """Pictures and captions, with the fault; the names of the pictures at fault."""
    rng = random.Random(f"data/{spec.seed}")
    scenes = world.style_set(spec.style, count, seed=spec.seed)
    captions = [world.caption(scene) for scene in scenes]
    if is_character(spec):
        thing = {"object": scenes[0].object, "colour": scenes[0].colour, "size": 0.55, "x": 0.5, "horizon": 0.68}
        scenes = [replace(scene, **thing) for scene in scenes]
        captions = [f"zibbo, {world.caption(scene)}" for scene in scenes]
    share = {"strays": rng.choice([0.1, 0.2]), "captions": 0.2}.get(spec.kind, 0)
    bad = sorted(rng.sample(range(count), max(2, round(count * share)))) if share else []
    if spec.kind == "captions":
        for i, j in zip(bad, bad[1:] + bad[:1], strict=True):
            captions[i] = world.caption(scenes[j])
    elif spec.kind == "strays":
        for i in bad:
            scenes[i] = replace(scenes[i], style=rng.choice(spec.others))
    styles.write(folder, scenes, captions, SIDE)
    return [f"img{i + 1:03d}.png" for i in bad]


@functools.cache
def base() -> PictureFamily:
    """Loaded once for all runs."""
    return families.load_pictures(BASE, LoadOptions(torch.device("cpu"), torch.float32))


def assemble(spec: Spec, scratch: Path) -> tuple[Parts, list[str]]:
    """A run, ready to train."""
    keys, count = settings(spec)
    bad = write_data(spec, count, scratch / "data")
    cpu = torch.device("cpu")
    config = TrainConfig(
        train_data_dir=scratch / "data",
        base_model=BASE,
        output_dir=scratch / "out",
        resolution=SIDE,
        sample_every=0,
        save_steps=10**6,
        sample_cfg=4.0,
        device="cpu",
        precision="fp32",
        **keys,
    )
    samples = preflight(config, resume=None).samples
    steps = LONG_STEPS if spec.kind == "memorise" else STEPS
    epochs = max(LONG, -(-steps // -(-len(samples.trained) // config.batch_size)))
    config = config.model_copy(update={"epochs": epochs})
    ready = preflight(config, resume=None)
    model = build.build_model(config, cpu, "fp32", {})
    parts = story.assemble(config, ready.folder, ready.samples, [], model, device=cpu, precision="fp32")
    story.encode(parts, Cache(scratch / "cache", io.write_atomic), ignore)
    return parts, bad


class Watched:
    """What is measured of a run."""

    def __init__(self, parts: Parts) -> None:
        self.parts, self.whole = parts, {}
        self.taken: dict[str, list[dict[str, Any]]] = {"usual": [], "few": []}
        """Held-out and training losses at the noise levels of a usual run and of a short one; the last of them, of a
        run that came to its end, is at `AHEAD` times its strength."""
        self.probe = parts.held.whole

    def take(self, name: str) -> None:
        """Held-out and training losses, as a run measures them."""
        self.parts.model.train(False)
        for how, levels in (("usual", LEVELS), ("few", FEW_LEVELS)):
            held = at_levels(self.parts.held, levels)
            outside = held.outside.losses().mean(1).tolist() if held.samples else []
            found = Evaluation(self.parts.state.step, outside, held.inside.losses().mean(1).tolist(), name)
            self.taken[how].append(asdict(found))
        self.parts.model.train(True)

    def look(self, when: str, *, captions: bool) -> None:
        """All training pictures at the same noise: with their captions ("own") and without ("empty")."""
        self.parts.model.train(False)
        found = {"own": self.probe.losses()}
        if captions:
            found["empty"] = self.probe.losses(captions=False)
        self.whole[when] = found
        self.parts.model.train(True)


def train(parts: Parts, watched: Watched, deep: bool, times: int) -> str:
    """All steps; why it failed, or nothing."""
    c, state, model = parts.config, parts.state, parts.model
    objective = objective_of(c, model.family.objective)
    every = -(-parts.total // times)

    def measure() -> bool:
        watched.take("")
        return False

    with model.off():
        watched.take("base")
        if deep:
            watched.look("base", captions=False)
    model.train(True)
    loop = LoopSettings(parts.total, parts.rates, c.max_grad_norm, c.seed, 10**6, 0, every)
    hooks = Hooks(lambda facts: None, lambda: None, lambda: None, lambda: False, measure)
    try:
        run_loop(
            there_and_back(lambda b: model.family.loss(b, objective), parts.scaler, model.masters.gather),
            parts.feed.steps,
            model.optimizer,
            parts.scaler,
            loop,
            state,
            hooks,
        )
    except UserError as error:
        return str(error)
    with model.at(AHEAD):
        watched.take("")
    if deep:
        watched.look("end", captions=True)
    return ""


def encoded(family: PictureFamily, images: Sequence[Any]) -> Tensor:
    """Means of their latents, [n, c, h, w]."""
    rows = []
    for image in images:
        view = View(image.size, image.size, 0, 0, flip=False)
        rows.append(family.encode_image(apply_view(image, view)[None])["mean"][0])
    return torch.stack(rows)


def _means(feed: Feed) -> Tensor:
    return torch.stack([feed.encoded.latents(i)["mean"] for i in range(len(feed.pictures))])


def drawings(parts: Parts) -> dict[str, Any]:
    """Latents: of the pictures trained and held out, and drawn for captions of both, with the LoRA and without."""
    family, model = parts.model.family, parts.model
    model.train(False)
    trained = [p.sample for p in parts.feed.pictures]
    rng = random.Random(f"draw/{parts.config.seed}")
    some = rng.sample(range(len(trained)), min(4, len(trained)))
    others = rng.sample(range(len(parts.held.samples)), min(3, len(parts.held.samples)))
    how = Sampling(12, 4.0, "", (SIDE, SIDE))

    def draw(captions: Sequence[str]) -> Tensor:
        return encoded(family, [family.generate(c, 77 + i, how) for i, c in enumerate(captions)])

    texts = [trained[i].caption for i in some], [parts.held.samples[i].caption for i in others]
    found = {
        "train": _means(parts.feed),
        "held": _means(parts.held.feed) if parts.held.samples else None,
        "some": some,
        "others": others,
        "drawn": draw(texts[0]),
        "drawn_held": draw(texts[1]) if others else None,
    }
    return found


def run_one(spec: Spec, folder: Path) -> dict[str, Any]:
    """Trains; all that was measured."""
    scratch = folder / f"scratch-{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    parts, bad = assemble(spec, scratch)
    begun, watched = time.process_time(), Watched(parts)
    deep = spec.kind in ("healthy", "strays", "captions")
    try:
        failed = train(parts, watched, deep, TIMES.get(spec.name.partition("-")[0], USUAL))
        drawn = None
        if not failed and (spec.kind == "memorise" or is_character(spec)):
            drawn = drawings(parts)
    finally:
        remove(parts.model.family.roots, parts.model.layers)
    c, many = parts.config, slice(None) if failed else slice(-1)
    return {
        "spec": asdict(spec),
        "keys": settings(spec)[0],
        "epochs": c.epochs,
        "steps": parts.total,
        "per_epoch": parts.feed.steps_per_epoch,
        "character": is_character(spec),
        "names": [p.sample.name for p in parts.feed.pictures],
        "captions": [p.sample.caption for p in parts.feed.pictures],
        "bad": bad,
        "failed": failed,
        "taken": {how: {"points": taken[many], "ahead": taken[-1]} for how, taken in watched.taken.items()},
        "whole": watched.whole,
        "losses": parts.state.losses,
        "drawn": drawn,
        "seconds": time.process_time() - begun,
    }


# --- what is told -----------------------------------------------------------------------------------------------------


def given(found: dict[str, Any], how: str = "usual") -> list[Advice]:
    """The advice that a run gets, measured at the noise levels of a "usual" run or at "few"."""
    if found["failed"]:
        return [Advice("stopped", len(found["losses"]), found["failed"], "")]
    keys, steps = found["keys"], found["steps"]
    facts = Facts(
        keys["learning_rate"], steps, found["per_epoch"], keys["warmup_steps"], "lora", epochs=found["epochs"]
    )
    taken = [Evaluation(**row) for row in found["taken"][how]["points"]]
    told = advise(taken, facts)
    if not told:
        told += filter(None, [too_short(taken[0], taken[-1], Evaluation(**found["taken"][how]["ahead"]), facts)])
    if found["whole"]:
        whole = {when: {k: v.double().numpy() for k, v in taken.items()} for when, taken in found["whole"].items()}
        looked = (
            fit.strays(steps, found["names"], whole["base"]["own"], whole["end"]["own"]),
            wrong_captions(steps, found["names"], whole["end"]["own"], whole["end"]["empty"]),
        )
        told += [one for one in looked if one is not None]
    return told


WRONG = 3.0
"""Deviations by which a caption helps less than the others' do."""
HARM = 0.02
"""And by how much, in log of the loss, it makes its picture's loss higher than no caption at all."""
HELP = 0.01
"""Log of the loss: what half of the captions must help before single ones can be said to be wrong."""
CAPTION_SPREAD = 0.02
"""The least deviation of what captions help that counts as one."""


def wrong_captions(step: int, names: Sequence[str], own: fit.Losses, empty: fit.Losses) -> Advice | None:
    """Captions with which the loss of their picture is higher than with none, where the others' help; as `fit.strays`.

    No run tells it: on fresh sets it named none of 18 exchanged captions, and right ones besides (docs/training.md).
    """
    harm = np.log(own / empty).mean(1)
    bad = (fit.deviations(harm, CAPTION_SPREAD) > WRONG) & (harm > HARM)
    found = [name for name, out in zip(names, bad, strict=True) if out]
    if len(names) < fit.LEAST or float(np.median(harm)) > -HELP or not found or len(found) > fit.SHARE * len(names):
        return None
    message = (
        f"the captions of {listed(found, fit.NAMED)} do not fit: with them the model knows these pictures worse "
        "than without any, while the others' captions help, so look whether they were exchanged"
    )
    return Advice("wrong_captions", step, message, "captions that say what is there", tuple(found))


def copied(found: dict[str, Any]) -> memorised.Found | None:
    """What the copies test says."""
    drawn = found["drawn"]
    if drawn is None:
        return None
    features = {k: memorised.features(list(drawn[k])) for k in ("train", "held", "drawn", "drawn_held")}
    some, others = drawn["some"], drawn["others"]
    asked = [Asked(i, n, True) for i, n in enumerate(some)]
    asked += [Asked(len(some) + i, len(features["train"]) + n, False) for i, n in enumerate(others)]
    both = torch.cat([features["drawn"], features["drawn_held"]])
    return memorised.compare(both, features["train"], features["held"], asked)


RIGHT = {
    "rate_high": {"rises", "oscillates", "stopped"},
    "rate_low": {"does_not_fall", "too_short"},
    "memorise": {"memorises", "copies"},
    "captions": {"wrong_captions"},
    "strays": {"never_fit"},
}

UNTOLD = {"wrong_captions"}
"""By runs: tried here alone."""


def table(folder: Path, which: str, how: str = "usual") -> str:
    """Shares of runs that were advised, with 95 % intervals (Wilson), as Markdown; then of files named."""
    found = [torch.load(path, weights_only=True) for path in sorted(folder.glob(f"{which}-*.pt"))]
    told: dict[str, list[tuple[dict[str, Any], set[str]]]] = {}
    for one in found:
        kinds, copies = {advice.kind for advice in given(one, how)}, copied(one)
        kinds |= {"copies"} if copies is not None and copies.memorises else set()
        told.setdefault(one["spec"]["kind"], []).append((one, kinds))
    rows = ["| runs | told the fault | told something else |", "|---|---|---|"]
    for kind in KINDS:
        runs = told.get(kind, [])
        if not runs:
            continue
        right = RIGHT.get(kind, set())
        hits, others = (
            sum(bool(k & right) for _, k in runs),
            [(o["spec"]["name"], k - right - UNTOLD) for o, k in runs if k - right - UNTOLD],
        )
        cells = [_share(hits, len(runs)) if right else "", _share(len(others), len(runs))]
        rows.append(f"| {kind} ({len(runs)}) | {' | '.join(cells)} | {others or ''}")
    for kind, advice in (("strays", "never_fit"), ("captions", "wrong_captions")):
        bad = named = wrong = 0
        for one, _ in told.get(kind, []):
            names = {name for a in given(one, how) if a.kind == advice for name in a.names}
            faulty = set(one["bad"]) & set(one["names"])
            bad, named, wrong = bad + len(faulty), named + len(names & faulty), wrong + len(names - faulty)
        if bad:
            rows.append(f"\n{kind}: of {bad} files at fault {_share(named, bad)} were named, and {wrong} others.")
    return "\n".join(rows)


def _share(hits: int, count: int) -> str:
    low, high = wilson(hits, count)
    return f"{hits} = {hits / count:.0%} ({low:.0%} to {high:.0%})".replace("%", " %")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--set", choices=SETS, default="fresh")
    parser.add_argument("--part", default="1/1", help="which of how many parts, for several at a time")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="which runs, if not all")
    parser.add_argument("--few", action="store_true", help="the table by fewer noise levels")
    args = parser.parse_args()
    if args.what == "table":
        print(table(args.folder, args.set, "few" if args.few else "usual"))
        return 0
    args.folder.mkdir(parents=True, exist_ok=True)
    families.load_pictures, loader = (lambda *told: base()), families.load_pictures  # type: ignore[assignment]
    globals()["base"] = functools.cache(lambda: loader(BASE, LoadOptions(torch.device("cpu"), torch.float32)))
    part, of = map(int, args.part.split("/"))
    for number, spec in enumerate(specs(args.set)):
        path = args.folder / f"{spec.name}.pt"
        if number % of != part - 1 or spec.kind not in args.kinds or path.exists():
            continue
        begun = time.time()
        torch.save(run_one(spec, args.folder), path)
        print(path.name, f"{time.time() - begun:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
