"""One training of `time_to_loss.py` in a process of its own, timed from outside: it writes what each step had taken.

    python benchmarks/timed_training.py ours CONFIG.yaml TIMES.json
    python benchmarks/timed_training.py diffusers SCRIPT TIMES.json SITES -- the script's own arguments

`ours` runs this project as `lora-scripts train` does, up to the last step. `diffusers` runs the given script as it lies
there; SITES: `own`, or `same` for LoRA on the layers that this project trains, too. Its interpreter may be another one,
and needs nothing of this project.

All times are CPU seconds of the whole process, all threads, from its start; what saving takes is left out of them.
"""

from __future__ import annotations

import enum
import functools
import importlib.util
import json
import random
import runpy
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

SAME = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"]
"""The ends of the names of the layers that this project trains by default."""


class Watch:
    """CPU seconds at each step, without those of saving."""

    def __init__(self) -> None:
        self.loaded = 0.0
        """When the models are there and nothing is encoded yet."""
        self.steps: list[float] = []
        self.clock: list[float] = []
        """Of each step, what the clock on the wall said."""
        self.parts: dict[str, float] = {}
        """Seconds within the steps, by what took them."""
        self.saving = 0.0
        self.files: dict[int, str] = {}

    def now(self) -> float:
        return time.process_time() - self.saving

    def timed(self, what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def inner(*args: Any, **kwargs: Any) -> Any:
            begun = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.parts[what] = self.parts.get(what, 0.0) + time.process_time() - begun

        return inner

    def write(self, path: Path) -> None:
        told = {"loaded": self.loaded, "steps": self.steps, "clock": self.clock, "saving": self.saving}
        path.write_text(json.dumps({**told, "parts": self.parts, "files": self.files}) + "\n")


def ours(config: Path, watch: Watch) -> None:
    from lora_scripts import run
    from lora_scripts.events import Event, Progress, Saved, Stepped, Table
    from lora_scripts.run.configs import load_config

    last = 0.0

    def sink(event: Event) -> None:
        nonlocal last
        now = time.process_time()
        if not watch.loaded and isinstance(event, Table | Progress):
            watch.loaded = watch.now()
        if isinstance(event, Stepped):
            watch.steps.append(watch.now())
            last = now
        if isinstance(event, Saved) and watch.steps:  # saving comes right behind the step
            watch.saving += now - last
            last = now
            if event.what == "LoRA" and event.step is not None:
                watch.files[event.step] = str(event.path)
                if isinstance(event.step, int) and event.step == total[0]:
                    raise KeyboardInterrupt  # proof and report are no training
        if isinstance(event, Stepped):
            total[0] = event.total

    total = [0]
    try:
        run.train(load_config(config), sink=sink)
    except KeyboardInterrupt:
        if watch.files.get(total[0]) is None:
            raise


def diffusers(script: Path, sites: str, arguments: list[str], watch: Watch) -> None:
    import accelerate
    import datasets  # noqa: F401  (it looks for torchvision, and shall not see what stands in)
    import diffusers
    import peft
    import tqdm.auto
    import transformers

    if importlib.util.find_spec("torchvision") is None:
        sys.modules["torchvision"] = transforms()

    class Bar(tqdm.auto.tqdm):  # type: ignore[misc, type-arg]
        """The script makes its bar when everything is loaded, and moves it after each step, before it saves."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.counts = kwargs.get("desc") == "Steps"
            if self.counts:
                watch.loaded = watch.now()

        def update(self, n: float | None = 1) -> bool | None:
            if self.counts:
                watch.steps.append(watch.now())
                watch.clock.append(time.time())
            return super().update(n)

    def save(self: Any, folder: str, *args: Any, **kwargs: Any) -> Any:
        begun = time.process_time()
        try:
            return saves(self, folder, *args, **kwargs)
        finally:
            watch.saving += time.process_time() - begun
            watch.files[len(watch.steps)] = str(Path(folder) / "pytorch_lora_weights.safetensors")

    saves = accelerate.Accelerator.save_state
    accelerate.Accelerator.save_state = save
    tqdm.auto.tqdm = Bar
    diffusers.AutoencoderKL.encode = watch.timed("VAE", diffusers.AutoencoderKL.encode)
    transformers.CLIPTextModel.forward = watch.timed("text encoder", transformers.CLIPTextModel.forward)
    if sites == "same":
        peft.LoraConfig = functools.partial(_with_sites, peft.LoraConfig)
    sys.argv = [str(script), *arguments]
    runpy.run_path(str(script), run_name="__main__")


def _with_sites(config: Any, **kwargs: Any) -> Any:
    return config(**{**kwargs, "target_modules": SAME})


def transforms() -> types.ModuleType:
    """The eight of torchvision's transforms that the script names, by Pillow and torch, where there is no torchvision
    for the torch at hand."""
    import numpy as np
    import torch
    from PIL import Image

    class InterpolationMode(enum.Enum):
        NEAREST, BILINEAR, BICUBIC, LANCZOS = (
            Image.Resampling[n] for n in ("NEAREST", "BILINEAR", "BICUBIC", "LANCZOS")
        )

    def resized(image: Any, size: int, interpolation: Any) -> Any:
        share = size / min(image.size)
        return image.resize((round(image.width * share), round(image.height * share)), interpolation.value)

    def cropped(image: Any, size: int, left: int, top: int) -> Any:
        return image.crop((left, top, left + size, top + size))

    def to_tensor(image: Any) -> Any:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255

    def compose(steps: list[Callable[[Any], Any]]) -> Callable[[Any], Any]:
        return lambda image: functools.reduce(lambda value, step: step(value), steps, image)

    here: Any = types.ModuleType("torchvision.transforms")
    here.InterpolationMode = InterpolationMode
    here.Compose = compose
    here.Resize = lambda size, interpolation: lambda i: resized(i, size, interpolation)
    here.CenterCrop = lambda size: lambda i: cropped(i, size, (i.width - size) // 2, (i.height - size) // 2)
    here.RandomCrop = lambda size: (
        lambda i: cropped(i, size, random.randint(0, i.width - size), random.randint(0, i.height - size))
    )
    here.RandomHorizontalFlip = lambda: lambda i: i.transpose(0) if random.random() < 0.5 else i
    here.Lambda = lambda function: function
    here.ToTensor = lambda: to_tensor
    here.Normalize = lambda mean, std: lambda t: (t - mean[0]) / std[0]
    module: Any = types.ModuleType("torchvision")
    module.transforms = here
    return module


def main() -> None:
    import torch

    torch.set_num_threads(1)
    watch = Watch()
    trainer, what, times, *more = sys.argv[1:]
    if trainer == "ours":
        ours(Path(what), watch)
    else:
        diffusers(Path(what), more[0], more[2:], watch)
    watch.write(Path(times))


if __name__ == "__main__":
    main()
