"""Time to the same held-out loss: this project, and diffusers' own script for the same thing, on the miniature world.

    python benchmarks/time_to_loss.py search  --peers DIR --python PYTHON --work FOLDER
    python benchmarks/time_to_loss.py measure --peers DIR --python PYTHON --work FOLDER [--seeds 1,2] [--out FOLDER]
    python benchmarks/time_to_loss.py table   --work FOLDER [--out FOLDER]

DIR/diffusers is a checkout; `examples/text_to_image/train_text_to_image_lora.py` is run as it lies there, by PYTHON,
an interpreter that has what it asks for (this one, if left out). Where that has no torchvision, its transforms are
stood in for (see timed_training.py, which runs both trainers, each training in a process of its own with one thread).
What a run gave is kept in the work folder, and the run not repeated; several commands with other seeds may run at a
time.

**Both** train the bundled base (128 px) with rank 16, batches of 4, AdamW, a plain squared error, 8 epochs of 50
pictures (104 steps), 10 steps of warm-up and a cosine; captions tell the content, not the style. This project has its
defaults besides, without held-out pictures, previews and report. The script trains attention only, as it comes; a
second arm, on the first seed, trains the layers that this project trains. Arms are run in turn for each set.

**Held-out loss** is neither trainer's own: diffusers' UNet in float32 with the LoRA file added to its weights by
plain products, the mean squared error of the predicted noise for 16 scenes of the style whose contents are not in the
training set, at 4 noise levels from 125 to 875, the noise fixed. It is taken of the files that both save at each
epoch's end.

**Time** is CPU seconds of all threads, saving left out, from the moment when all models are loaded: this project's
time includes the filling of its caches, and not imports and loading. From the start of the process it is told beside
that, and so are steps. Between two files loss and time are taken as straight lines.

**The level**, set before any of these sets was trained: 95 % of the way from the base's loss down to the lowest that
the script, as it comes, reaches in its run on this set; 90 % and 100 % are told beside it. A run that does not reach
the level counts as endless. The ratio of a set is this project's time over the script's; told are the median and its
interval by order statistics (at least 95 %, where there are six sets or more; else least to most).

**Learning rates** are chosen for each arm on other styles and seeds: the one with the shortest time (geometric mean
over the sets) to 95 % of the way to the lowest loss that any run of the script reached on that set. The script runs
in bf16; it is run once in float32 to see whether that is quicker.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import torch
import yaml
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from medians import interval, level_of, reached
from run import machine
from safetensors.torch import load_file
from styles import paint, write
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from lora_scripts.demo import world

BASE = Path(world.__file__).parent / "assets" / "base.safetensors"
SCRIPT = Path("diffusers/examples/text_to_image/train_text_to_image_lora.py")
PICTURES, HELD, SIDE = 50, 16, 128
EPOCHS, BATCH, WARMUP, RANK, EVERY = 8, 4, 10, 16, 13
STEPS = EPOCHS * math.ceil(PICTURES / BATCH)
LEVELS = [125 + 250 * n for n in range(4)]
"""Noise levels of the held-out loss."""
SEARCHED, SEARCH_SEED = ("neon", "duotone"), 100
REPORTED = ("blueprint", "thermal", "wash")
OURS, SCRIPT_OWN, SCRIPT_SAME = "this project", "diffusers' script", "diffusers' script, the same layers"
RATES = {OURS: (2.8e-3, 4e-3, 5.6e-3, 8e-3), SCRIPT_OWN: (5.6e-3, 8e-3, 1.1e-2, 1.6e-2)}
"""What is tried: one more on either side than the best, by half octaves."""
SHARES = (0.9, 0.95, 1.0)
SHARE = 0.95
"""Of the way down: the level that counts."""
SINCE = {
    "loaded": "models loaded → level",
    "start": "start of the process → level",
    "cached": "this project's caches filled before",
    "steps": "steps",
}


@dataclass(frozen=True)
class Training:
    arm: str
    style: str
    seed: int
    rate: float
    precision: str

    @property
    def key(self) -> str:
        return f"{self.arm} | {self.style} {self.seed} | {self.rate:g} | {self.precision}"


# --- what both train on, and the held-out loss ------------------------------------------------------------------------


def make_base(folder: Path, file: Path = BASE) -> None:
    """The base as a diffusers folder, which the script reads."""
    from lora_scripts.compute.resting import built
    from lora_scripts.families.clip.tokenizer import clip_tokenizer
    from lora_scripts.families.sd.unet import unet_config
    from lora_scripts.families.sd1.load import load_parts

    parts = load_parts(file, None)
    unet = UNet2DConditionModel(**unet_config(parts.unet.layout, 64))
    unet.load_state_dict(parts.unet.state_dict())
    for name, model in {"unet": unet, "vae": built(parts.vae), "text_encoder": built(parts.text)}.items():
        model.float().save_pretrained(folder / name)
    clip_tokenizer().save_pretrained(folder / "tokenizer")
    DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(
        folder / "scheduler"
    )


def scenes_of(style: str, seed: int) -> tuple[list[world.Scene], list[world.Scene]]:
    """Those to train, and those that are held out."""
    trained = world.style_set(style, PICTURES, seed)
    return trained, world.style_set(style, HELD, seed + 1000, skip=frozenset(s.key for s in trained))


def make_pictures(folder: Path, style: str, seed: int) -> None:
    """The pictures, captioned for this project (ours) and for the script (theirs)."""
    trained, _ = scenes_of(style, seed)
    captions = [world.caption(scene) for scene in trained]
    for place in ("ours", "theirs"):
        write(folder / place, trained, captions, SIDE)
    table = folder / "theirs" / "metadata.csv"
    table.write_text(table.read_text("utf-8").replace("filename,prompt", "file_name,text", 1), "utf-8")


class HeldOut:
    """The loss of LoRA files on the held-out scenes of a set."""

    def __init__(self, base: Path, style: str, seed: int) -> None:
        from numpy import asarray

        _, scenes = scenes_of(style, seed)
        self.unet = UNet2DConditionModel.from_pretrained(base / "unet").eval().requires_grad_(False)
        vae = AutoencoderKL.from_pretrained(base / "vae").eval()
        text = CLIPTextModel.from_pretrained(base / "text_encoder").eval()
        tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
        pixels = [torch.from_numpy(asarray(paint(scene, SIDE)).copy()).permute(2, 0, 1) / 127.5 - 1 for scene in scenes]
        captions = [world.caption(scene) for scene in scenes]
        with torch.no_grad():
            self.latents = vae.encode(torch.stack(pixels)).latent_dist.mean * vae.config.scaling_factor
            tokens = tokenizer(captions, padding="max_length", max_length=77, return_tensors="pt")
            self.states = text(tokens.input_ids)[0]
        self.alphas = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
        self.modules = dict(self.unet.named_modules())

    def loss(self, lora: Path | None = None) -> float:
        changed = self._add(load_file(lora)) if lora else {}
        total = 0.0
        with torch.no_grad():
            for number, level in enumerate(LEVELS):
                noise = torch.randn(self.latents.shape, generator=torch.Generator().manual_seed(number))
                alpha = self.alphas[level]
                noised = alpha.sqrt() * self.latents + (1 - alpha).sqrt() * noise
                answer = self.unet(noised, torch.tensor(level), self.states).sample
                total += F.mse_loss(answer, noise).item()
            for name, weight in changed.items():
                self.modules[name].weight.copy_(weight)
        return total / len(LEVELS)

    def _add(self, file: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Adds the LoRA; what the weights were."""
        flat = {"lora_unet_" + name.replace(".", "_"): name for name in self.modules}
        before = {}
        for key, down in file.items():
            if not (found := re.fullmatch(r"(.+)\.(lora_A|lora\.down|lora_down)\.weight", key)):
                continue
            stem, kind = found.groups()
            up = file[key.replace(kind, {"lora_A": "lora_B", "lora.down": "lora.up", "lora_down": "lora_up"}[kind])]
            name = flat[stem] if stem in flat else stem.removeprefix("unet.")
            scale = float(file[stem + ".alpha"]) / len(down) if stem + ".alpha" in file else 1.0
            weight = self.modules[name].weight
            before[name] = weight.detach().clone()
            weight += scale * (up.float().flatten(1) @ down.float().flatten(1)).view_as(weight)
        if not before or 2 * len(before) != sum(key.endswith(".weight") for key in file):
            raise RuntimeError(f"only {len(before)} layers are known of {len(file)} tensors")
        return before


# --- the trainings ----------------------------------------------------------------------------------------------------


class Bench:
    def __init__(self, options: argparse.Namespace) -> None:
        self.work, self.python = options.work.absolute(), options.python
        self.script = (options.peers / SCRIPT).absolute() if options.peers else None
        self.out = options.out
        self.kept = {"searched": self.work / "searched", "measured": self.work / "measured"}
        self.base = self.work / f"base-{sha256(BASE.read_bytes()).hexdigest()[:8]}"  # no other one of an earlier day
        self.held: tuple[tuple[str, int], HeldOut] | None = None

    def runs(self, of: str) -> list[dict[str, Any]]:
        return [json.loads(file.read_text("utf-8")) for file in sorted(self.kept[of].glob("*.json"))]

    def save(self) -> None:
        """What is told, from all that is kept."""
        self.out.mkdir(parents=True, exist_ok=True)
        told = {"machine": machine(), "searched": self.runs("searched"), "measured": self.runs("measured")}
        (self.out / "time-to-loss.json").write_text(json.dumps(told).replace('{"arm"', '\n{"arm"') + "\n", "utf-8")
        (self.out / "time-to-loss.md").write_text(page(self), "utf-8")

    def run(self, training: Training, of: str) -> None:
        """Trains, measures what was saved on the way, and keeps the result."""
        name = re.sub(r"[^\w.]+", "-", training.key)
        if (self.kept[of] / f"{name}.json").exists():
            return
        if not (self.base / "scheduler").exists():
            make_base(self.base)
        data = self.work / f"{training.style}-{training.seed}"
        if not (data / "theirs" / "metadata.csv").exists():
            make_pictures(data, training.style, training.seed)
        folder = self.work / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        times, command = folder / "times.json", self.command(training, data, folder)
        quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(self.work / "hub")}
        with (folder / "log.txt").open("w") as log:
            subprocess.run(command, env=os.environ | quiet, stdout=log, stderr=log, check=True)
        if self.held is None or self.held[0] != (training.style, training.seed):
            self.held = (training.style, training.seed), HeldOut(self.base, training.style, training.seed)
        told = json.loads(times.read_text())
        files = {int(step): Path(path) for step, path in told.pop("files").items()}
        losses = {step: round(self.held[1].loss(file), 6) for step, file in sorted(files.items())}
        losses = {0: round(self.held[1].loss(), 6), **losses}
        kept = {**vars(training), **told, "steps": [round(t, 3) for t in told["steps"]], "losses": losses}
        self.kept[of].mkdir(exist_ok=True)
        (self.kept[of] / f"{name}.json").write_text(json.dumps(kept), "utf-8")
        low, spent = min(losses.values()), (told["steps"][-1] - told["loaded"]) / STEPS
        print(f"{training.key}: loss {low:.4f} at the lowest, {spent:.3f} CPU s a step", flush=True)
        shutil.rmtree(folder)

    def command(self, t: Training, data: Path, folder: Path) -> list[str]:
        tool, times = Path(__file__).with_name("timed_training.py"), folder / "times.json"
        if t.arm == OURS:
            config = {
                "train_data_dir": str(data / "ours"), "base_model": str(BASE), "output_dir": str(folder / "lora"),
                "resolution": SIDE, "batch_size": BATCH, "epochs": EPOCHS, "lora_rank": RANK, "learning_rate": t.rate,
                "warmup_steps": WARMUP, "save_steps": EVERY, "save_precision": "fp32", "seed": t.seed,
                "precision": t.precision, "device": "cpu", "val_split": 0, "sample_every": 0, "report": "short",
            }  # fmt: skip
            (folder / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")
            return [sys.executable, str(tool), "ours", str(folder / "config.yaml"), str(times)]
        if self.script is None or not self.script.exists():
            raise SystemExit(f"the script is not there: {self.script or SCRIPT}; give its checkout's parent as --peers")
        told = {
            "pretrained_model_name_or_path": self.base, "train_data_dir": data / "theirs",
            "output_dir": folder / "lora", "cache_dir": self.work / "datasets", "resolution": SIDE, "rank": RANK,
            "train_batch_size": BATCH, "max_train_steps": STEPS, "learning_rate": t.rate, "lr_scheduler": "cosine",
            "lr_warmup_steps": WARMUP, "checkpointing_steps": EVERY, "seed": t.seed, "mixed_precision": t.precision,
            "report_to": "all", "dataloader_num_workers": 0,
        }  # fmt: skip
        words = [f"--{name}={value}" for name, value in told.items()]
        sites = "same" if t.arm == SCRIPT_SAME else "own"
        return [str(self.python), str(tool), "diffusers", str(self.script), str(times), sites, "--", *words]

    def search(self) -> None:
        """Each arm at each rate, and the script once in float32, to see how long that takes."""
        for style in SEARCHED:
            for arm, precision in ((OURS, "auto"), (SCRIPT_OWN, "bf16")):
                for rate in RATES[arm]:
                    self.run(Training(arm, style, SEARCH_SEED, rate, precision), "searched")
        self.run(Training(SCRIPT_OWN, SEARCHED[0], SEARCH_SEED, RATES[OURS][1], "no"), "searched")
        for arm in (OURS, SCRIPT_OWN):
            print(arm, *self.chosen(arm))

    def chosen(self, arm: str) -> tuple[float, str]:
        """The best learning rate and precision of an arm, by the search."""
        lowest: dict[str, float] = {}
        for r in self.runs("searched"):
            if r["arm"] != OURS:
                lowest[r["style"]] = min(lowest.get(r["style"], math.inf), *r["losses"].values())
        taken: dict[tuple[float, str], list[float]] = {}
        for r in self.runs("searched"):
            if r["arm"] == arm:
                seconds = reached(curve(r), level_of(r["losses"]["0"], lowest[r["style"]], SHARE))
                taken.setdefault((r["rate"], r["precision"]), []).append(seconds)
        whole = {setting: times for setting, times in taken.items() if len(times) == len(SEARCHED)}
        return min(whole, key=lambda setting: geometric_mean(whole[setting]))

    def measure(self, seeds: Sequence[int]) -> None:
        settings = {arm: self.chosen(arm) for arm in (OURS, SCRIPT_OWN)}
        for seed in seeds:
            for style in REPORTED:
                for arm, setting in settings.items():
                    self.run(Training(arm, style, seed, *setting), "measured")
        for style in REPORTED:
            self.run(Training(SCRIPT_SAME, style, seeds[0], *settings[SCRIPT_OWN]), "measured")


# --- what is told -----------------------------------------------------------------------------------------------------


def curve(run: dict[str, Any], since: str = "loaded") -> list[tuple[float, float]]:
    """(CPU seconds since a moment of `SINCE`, or steps; held-out loss) of a run."""
    if since == "steps":
        return [(int(step), loss) for step, loss in run["losses"].items()]
    caches = run["steps"][0] - a_step(run) if run["arm"] == OURS else run["loaded"]
    zero = {"start": 0.0, "loaded": run["loaded"], "cached": caches}[since]
    times = [caches if since == "cached" else run["loaded"], *run["steps"]]
    return [(times[int(step)] - zero, loss) for step, loss in run["losses"].items()]


def pairs(bench: Bench, arm: str) -> Iterator[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """Of each set this project's run, the arm's, and that of the script as it comes, which sets the level."""
    runs = {(r["arm"], r["style"], r["seed"]): r for r in bench.runs("measured")}
    for style in REPORTED:
        for seed in sorted({seed for _, of, seed in runs if of == style}):
            found = [runs.get((name, style, seed)) for name in (OURS, arm, SCRIPT_OWN)]
            if all(found):
                yield found[0], found[1], found[2]  # type: ignore[misc]


def ratios(bench: Bench, arm: str, share: float, since: str, style: str = "") -> list[float]:
    out = []
    for ours, theirs, own in pairs(bench, arm):
        if not style or ours["style"] == style:
            level = level_of(own["losses"]["0"], min(own["losses"].values()), share)
            a, b = reached(curve(ours, since), level), reached(curve(theirs, since), level)
            out.append(math.inf if math.isinf(a) else a / b)
    return out


def words(values: Sequence[float]) -> str:
    low, high = interval(values)
    return f"{median(values):.2f} ({low:.2f} to {high:.2f})"


def a_step(run: dict[str, Any]) -> float:
    """CPU s, of the steps behind the first."""
    return float(run["steps"][-1] - run["steps"][0]) / (len(run["steps"]) - 1)


def page(bench: Bench) -> str:
    found = list(pairs(bench, SCRIPT_OWN))
    lines = [", ".join(f"{key} {value}" for key, value in machine().items()), ""]
    for arm in (OURS, SCRIPT_OWN):
        rate, precision = bench.chosen(arm)
        lines.append(f"{arm}: learning rate {rate:g}, precision {precision}, by the search on other styles and seeds  ")
    lines += [
        "",
        f"{len(found)} sets; this project's time over the script's to the same held-out loss, median with interval",
    ]
    lines += ["", f"| | {' | '.join(SINCE.values())} |", "|---" * (1 + len(SINCE)) + "|"]
    for arm in (SCRIPT_OWN, SCRIPT_SAME):
        for share in SHARES:
            if count := len(list(pairs(bench, arm))):
                cells = [words(ratios(bench, arm, share, since)) for since in SINCE]
                lines.append(f"| {arm} ({count}), {share:.0%} of the way | {' | '.join(cells)} |".replace("%", " %"))
    for style in REPORTED:
        if ratios(bench, SCRIPT_OWN, SHARE, "loaded", style):
            cells = [words(ratios(bench, SCRIPT_OWN, SHARE, since, style)) for since in SINCE]
            lines.append(f"| of these {style}, {SHARE:.0%} | {' | '.join(cells)} |".replace("%", " %"))
    lines += ["", "| medians | " + " | ".join((OURS, SCRIPT_OWN, SCRIPT_SAME)) + " |", "|---|---|---|---|"]
    same = [theirs for _, theirs, _ in pairs(bench, SCRIPT_SAME)]
    arms = [[ours for ours, _, _ in found], [theirs for _, theirs, _ in found], same]
    rows = {
        "imports and loading, CPU s": lambda r: r["loaded"],
        "loaded → end of the first step": lambda r: r["steps"][0] - r["loaded"],
        "a step": a_step,
        "of it the VAE": lambda r: r["parts"].get("VAE", 0.0) / len(r["steps"]),
        "of it the text encoder": lambda r: r["parts"].get("text encoder", 0.0) / len(r["steps"]),
        "held-out loss, base": lambda r: r["losses"]["0"],
        "lowest": lambda r: min(r["losses"].values()),
        "last": lambda r: r["losses"][str(max(map(int, r["losses"])))],
    }
    for name, figure in rows.items():
        cells = [f"{median(map(figure, runs)):.4g}" if runs else "–" for runs in arms]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["search", "measure", "table"])
    parser.add_argument("--peers", type=Path, help="the folder in which diffusers' checkout lies as diffusers/")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that runs the script")
    parser.add_argument("--work", type=Path, default=Path("time-to-loss"), help="pictures, the base, and runs")
    parser.add_argument("--out", type=Path, default=Path("measured"))
    parser.add_argument("--seeds", default="1,2,3,4,5")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(options)
    if options.what == "search":
        bench.search()
    if options.what == "measure":
        bench.measure([int(seed) for seed in options.seeds.split(",")])
    if options.what != "search":
        bench.save()
        print(page(bench))


if __name__ == "__main__":
    main()
