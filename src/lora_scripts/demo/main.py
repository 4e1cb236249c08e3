"""`lora-scripts demo`: a LoRA of the neon style on the bundled miniature world, from raw pictures to report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import yaml  # type: ignore[import-untyped]

from lora_scripts import run
from lora_scripts.demo import world
from lora_scripts.demo.place import AGAIN, PICTURES, config_text, is_begun
from lora_scripts.errors import raise_all
from lora_scripts.events import Note, Sink, ignore
from lora_scripts.formats import io
from lora_scripts.label.base import MINIATURE
from lora_scripts.label.command import LabelOptions, label
from lora_scripts.report.data import UNMEASURED
from lora_scripts.report.usage import measured, tag
from lora_scripts.run.configs import load_config
from lora_scripts.units import typed

if TYPE_CHECKING:
    from lora_scripts.run.story import TrainResult
    from lora_scripts.run.texts.story import TextTrainResult


@dataclass(frozen=True)
class DemoResult:
    """What the demo leaves."""

    report: Path
    trained: TrainResult | TextTrainResult | None
    """None: it had run already."""
    command: str
    """To draw a picture with the LoRA."""


def run_demo(output: Path, overrides: Sequence[str] = (), sink: Sink = ignore) -> DemoResult:
    """Draws pictures, labels them, copies the base and trains as configs/demo.yaml says, all in `output`."""
    data, base = output / "data", output / "base.safetensors"
    config_path, result = output / "demo.yaml", output / "neon"
    text = config_text("demo.yaml", PICTURES, output)
    assets = resources.files("lora_scripts.demo").joinpath("assets")
    trained: TrainResult | TextTrainResult | None = None
    if not (result / "report.html").exists():
        sink(Note(f"drawing 50 pictures of the neon style into {data}"))
        world.write_pictures(data, world.training_scenes())
        command = typed(["lora-scripts", "label", "--input", str(data), "--model", MINIATURE])
        sink(Note(f"labelling them, as {command} does"))
        labelled = label(LabelOptions(input=data, model=MINIATURE), sink)
        raise_all(labelled.faults)
        sink(Note(f"{labelled.written} captions written to {labelled.path}"))
        sink(Note("training a LoRA on the pictures and their captions"))
        io.write_atomic(base, assets.joinpath("base.safetensors").read_bytes())
        io.write_text(config_path, text)
        trained = run.train(load_config(config_path, overrides), resume=is_begun(result), sink=sink, again=AGAIN)
    strength, _ = measured(result) or (UNMEASURED, "")
    last = yaml.safe_load(text)["sample_prompts"][-1]
    words = ["lora-scripts", "generate", "--base", str(base), "--lora-dir", str(output), "--cfg", "4", "--seed", "43"]
    words += ["--prompt", f"{last} {tag(result.name, strength)}", "--output", str(output / "picture.png")]
    return DemoResult(result / "report.html", trained, typed(words))
