"""The whole life of a LoRA on models of the true size with random weights: a hundred steps by `lora-scripts train`.

    PYTHONPATH=tests python benchmarks/true_size.py --work FOLDER [--models sdxl,klein] [--key compile=true]

It writes each base as people have it (one file; of a flow model its text encoders and VAE in files of their own) and
ten pictures, and runs a training from the config's check to the proof of the exported file, in a process of its own.
That is watched from outside: what the card's driver says that is used (of the whole card: nothing else may run on it),
and when each line was printed. Written to --out, one line of JSON a model. `--keep` leaves the bases where they are.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from counts import KLEIN_4B
from PIL import Image

from lora_scripts.families.flow import clip_l, llm, t5
from lora_scripts.families.flux1 import layout as flux1
from lora_scripts.families.flux1.check import FILES as FLUX1
from lora_scripts.families.flux2.check import FILES as FLUX2
from lora_scripts.families.sd.rows import Row
from lora_scripts.families.sdxl import layout as sdxl
from lora_scripts.families.zimage import layout as zimage
from lora_scripts.families.zimage.check import FILES as ZIMAGE
from lora_scripts.formats.io import save_safetensors
from small_words import tokenizer

CARD = torch.cuda.is_available()
SIDE, EPOCHS = 1024, 10
VAE = (128, 256, 512, 512)
QWEN3_4B = llm.LanguageLayout(llm.QWEN3, 2560, 36, 9728, 32, 8, 128, 151936)
T5_XXL = t5.T5Layout(4096, 24, 64, 64, 10240, 32128, 32)
SIGNS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>")


def write(path: Path, rows: Iterable[Row]) -> None:
    """A file of these tensors in bf16: matrices and convolutions that keep what goes through as large, norms of 1."""
    place, tensors = "cuda" if CARD else "cpu", {}
    g = torch.Generator(place).manual_seed(0)
    for name, shape in {row.ldm: row.file_shape for row in rows}.items():
        value = torch.zeros(shape, device=place, dtype=torch.bfloat16)
        if len(shape) > 1:
            value.normal_(0, value[0].numel() ** -0.5, generator=g)
        elif not name.endswith((".bias", "running_mean")):
            value.fill_(1)
        tensors[name] = value.cpu()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_safetensors(path, tensors)


def write_qwen(path: Path) -> None:
    write(path, llm.rows(QWEN3_4B))
    words = tokenizer(SIGNS, eos="<|endoftext|>")
    words.backend_tokenizer.save(str(path.parent / "tokenizer.json"))


def write_t5(path: Path) -> None:
    from transformers import T5Tokenizer

    rows = {row.ldm: row for row in t5.rows(T5_XXL)}
    write(path, rows.values())
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", "\u2581a", "\u2581house", "\u2581by", "\u2581lake"]
    words = T5Tokenizer(vocab=[(piece, -float(n > 2)) for n, piece in enumerate(pieces)], extra_ids=0)
    words.backend_tokenizer.save(str(path.parent / "tokenizer.json"))


@dataclass(frozen=True)
class Model:
    words: str
    base: Callable[[], Iterable[Row]]
    beside: dict[str, tuple[str, Callable[[Path], None]]]
    """Name of a file -> the key that names it, and what writes it."""


def _sdxl() -> Iterator[Row]:
    for table in sdxl.parts(sdxl.STANDARD).values():
        yield from table


def _vae(files: Any) -> tuple[str, Callable[[Path], None]]:
    return "vae", lambda path: write(path, files.vae.rows(VAE))


CLIP = "text_encoder", lambda path: write(path, clip_l.ClipSource(path, (), clip_l.STANDARD).rows())
QWEN = "text_encoder", write_qwen
MODELS = {
    "sdxl": Model("SDXL", _sdxl, {}),
    "klein": Model(
        "FLUX.2 klein 4B",
        lambda: FLUX2.rows(KLEIN_4B),
        {"qwen/qwen_3_4b.safetensors": QWEN, "flux2-vae.safetensors": _vae(FLUX2)},
    ),
    "zimage": Model(
        "Z-Image",
        lambda: ZIMAGE.rows(zimage.STANDARD),
        {"qwen/qwen_3_4b.safetensors": QWEN, "ae.safetensors": _vae(ZIMAGE)},
    ),
    "flux1": Model(
        "FLUX.1 dev",
        lambda: FLUX1.rows(flux1.STANDARD),
        {
            "t5/t5xxl_fp16.safetensors": ("text_encoder", write_t5),
            "clip/clip_l.safetensors": CLIP,
            "ae.safetensors": _vae(FLUX1),
        },
    ),
}  # fmt: skip


def write_pictures(folder: Path, count: int, side: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        bands = [Image.effect_noise((side // 8, side // 8), 20 + 10 * n).resize((side, side)) for _ in range(3)]
        Image.merge("RGB", bands).save(folder / f"{n}.png")
    lines = ["filename,prompt", *(f"{n}.png,a house by a lake with {n} trees" for n in range(count))]
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", "utf-8")


def prepare(key: str, work: Path) -> Path:
    """Base, pictures and config, where they are not there yet. The config."""
    model, keys = MODELS[key], dict[str, Any]()
    base = work / key / "base.safetensors"
    if not base.exists():
        write(base, model.base())
    for name, (given, make) in model.beside.items():
        path = work / (name if "qwen" in name else f"{key}/{name}")  # two models read the same
        if not path.exists():
            make(path)
        keys.setdefault(given, []).append(str(path))
    if not (work / "data").exists():
        write_pictures(work / "data", 10, SIDE)
    keys = {k: v[0] if k == "vae" else v for k, v in keys.items()}
    keys |= {
        "train_data_dir": str(work / "data"), "base_model": str(base), "output_dir": str(work / key / "lora"),
        "resolution": SIDE, "batch_size": 1, "epochs": EPOCHS, "lora_rank": 16, "save_steps": 50, "val_split": 0,
        "sample_every": 0, "sample_steps": 10, "sample_prompts": ["a house by a lake"], "report": "short",
        "precision": "bf16",
    }  # fmt: skip
    config = work / key / "config.yaml"
    config.write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in keys.items()), "utf-8")
    return config


class Watch(threading.Thread):
    """The card's memory in use, in MiB, twice a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: list[tuple[float, int]] = []
        self.over = threading.Event()

    def run(self) -> None:
        ask = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        while CARD and not self.over.wait(0.4):
            told = subprocess.run(ask, capture_output=True, text=True, check=False).stdout
            if told.strip().isdecimal():
                self.seen.append((time.perf_counter(), int(told)))

    def most(self, start: float, stop: float) -> int:
        return max((used for at, used in self.seen if start <= at <= stop), default=0)


def train(key: str, config: Path, more: list[str], limit: float) -> dict[str, Any]:
    """What one run did; one that takes longer than `limit` seconds is ended, and what it did until then is told."""
    shutil.rmtree(config.parent / "lora", ignore_errors=True)
    with config.open("a", encoding="utf-8") as file:
        file.writelines(entry.replace("=", ": ", 1) + "\n" for entry in more)
    watch, lines = Watch(), list[tuple[float, str]]()
    watch.start()
    begun = time.perf_counter()
    command = [sys.executable, "-u", "-m", "lora_scripts", "train", "--config", str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        end = threading.Timer(limit, process.kill)
        end.start()
        for line in process.stdout:
            lines.append((time.perf_counter(), line.rstrip()))
            print(f"    {lines[-1][0] - begun:6.1f} {lines[-1][1][:160]}", flush=True)
        end.cancel()
    ended = time.perf_counter()
    watch.over.set()
    steps = [(at, int(found[1])) for at, line in lines if (found := re.match(r"step (\d+)/", line))]
    late = [(at, n) for at, n in steps if n >= 20]
    found: dict[str, Any] = {"model": MODELS[key].words, "keys": more, "exit": process.returncode}
    found["seconds"] = round(ended - begun, 1)
    if len(late) > 1:
        found["ms a step"] = round(1000 * (late[-1][0] - late[0][0]) / (late[-1][1] - late[0][1]), 1)
        found["seconds to the first told step"] = round(steps[0][0] - begun, 1)
        found["MiB while training"] = watch.most(late[0][0], late[-1][0])
    found["MiB at most"] = watch.most(begun, ended)
    moments = {
        name: next((at for at, line in lines if line.startswith(start)), None)
        for name, start in (
            ("table", "base model"),
            ("proof", "verified"),
            ("pictures", "drawing"),
            ("end", "the LoRA"),
        )
    }
    found["seconds to"] = {name: round(at - begun, 1) for name, at in moments.items() if at is not None}
    found["verified"] = next((line for _, line in lines if line.startswith("verified")), "")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--key", action="append", default=[], help="NAME=VALUE, written into the config")
    parser.add_argument("--limit", type=float, default=600, help="seconds of a run")
    parser.add_argument("--only-write", action="store_true")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--out", type=Path, help="by default true-size.jsonl in the work folder")
    o = parser.parse_args()
    for key in o.models.split(","):
        begun = time.perf_counter()
        config = prepare(key, o.work)
        print(f"{key}: written in {time.perf_counter() - begun:.1f} s", flush=True)
        if o.only_write:
            continue
        found = train(key, config, o.key, o.limit)
        print(json.dumps(found), flush=True)
        with (o.out or o.work / "true-size.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
        if not o.keep:
            shutil.rmtree(config.parent)


if __name__ == "__main__":
    main()
