"""Pictures while training, drawn with what a file of the LoRA would hold at that step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor

from lora_scripts.adapters.inject import put_back
from lora_scripts.compute.meter import ran_out
from lora_scripts.config.prompt_line import PromptLine
from lora_scripts.config.schema import TrainConfig
from lora_scripts.data.references import as_shaped, seen_beside
from lora_scripts.data.scan import Sample
from lora_scripts.errors import UserError, UserErrors
from lora_scripts.events import Note, Sink
from lora_scripts.families.base import PictureFamily, Sampling
from lora_scripts.families.facts import Facts
from lora_scripts.families.table import bucket_steps, drawing
from lora_scripts.generate.command import parameters
from lora_scripts.generate.prompts_file import preview_lines
from lora_scripts.loras import reading
from lora_scripts.loras.embedding import split_bundle
from lora_scripts.loras.on_model import apply
from lora_scripts.run.export import LoraTensors, Snapshot
from lora_scripts.run.parts import Model

# RuntimeError: torch's lack of memory is one on every device.
FAILURES = (UserError, UserErrors, RuntimeError, MemoryError)


@dataclass(frozen=True)
class Preview:
    """One picture that is drawn again and again."""

    prompt: str
    seed: int
    sampling: Sampling
    references: tuple[Path, ...] = ()
    """Pictures that it is drawn from."""


def previews_of(config: TrainConfig, samples: Sequence[Sample]) -> list[Preview]:
    """Those of the config, or of the first two captions of the data set, with what their pictures are made from."""
    lines = preview_lines(config.sample_prompts)
    if not lines:
        lines = list(dict.fromkeys(line_of(s) for s in samples if s.caption))[:2] or [PromptLine("")]
    return [_preview(config, line, number) for number, line in enumerate(lines)]


def line_of(sample: Sample) -> PromptLine:
    """What would draw a training picture."""
    return PromptLine(sample.caption, references=tuple(one.path for one in sample.references))


def draw_preview(family: PictureFamily, preview: Preview) -> Image:
    """Draws it with the model as it stands."""
    sampling = replace(preview.sampling, references=shown_beside(preview, family.facts))
    return family.generate(preview.prompt, preview.seed, sampling)


def shown_beside(preview: Preview, facts: Facts) -> list[Tensor]:
    """What it is drawn from, as of `Sampling.references`. UserError for what is no picture."""
    return seen_beside(preview.references, preview.sampling.size, facts.bucket_steps)


def usual(config: TrainConfig) -> Preview:
    """An empty prompt, as the config would have it drawn."""
    return _preview(config, PromptLine(""), 0)


def _preview(config: TrainConfig, line: PromptLine, number: int) -> Preview:
    c, steps = config, bucket_steps(config.base_model)
    width, height = as_shaped(line.references, c.effective_sample_size, steps)
    how = drawing(c.base_model).asked(line, c.sample_steps, c.sample_cfg, c.sample_negative)
    sampling = Sampling(how.steps, how.cfg, how.negative, (line.width or width, line.height or height))
    seed = config.seed + number if line.seed is None else line.seed
    return Preview(line.prompt, seed, sampling, line.references)


@contextmanager
def exported(model: Model, file: LoraTensors, taken: Snapshot) -> Iterator[None]:
    """Within it the model wears what `file` holds, read as a file is.

    The layers in training are laid aside meanwhile, and put back as they were.
    """
    family = model.family
    changes = reading.read(split_bundle(file.tensors)[0], family.facts.names())
    try:
        put_back(family.roots, {path: layer.base for path, layer in model.layers.items()})
        apply(family, changes, 1.0)
        family.set_words(taken.words)
        yield
    finally:
        put_back(family.roots, model.layers)
        family.set_words(model.words)


def draw_previews(
    model: Model,
    previews: Sequence[Preview],
    file: LoraTensors,
    taken: Snapshot,
    done: Callable[[int, Preview, Image], None],
    sink: Sink,
    *,
    step: int,
    strict: bool = False,
) -> None:
    """Draws every preview; `done(number, preview, picture)`. Nothing that is trained, and no random state, is touched.

    One that fails is told in one line, for the training is worth more; with `strict` it raises.
    """
    try:
        with exported(model, file, taken):
            for number, preview in enumerate(previews, 1):
                try:
                    done(number, preview, draw_preview(model.family, preview))
                except FAILURES as error:
                    sink(_failure(error, f"preview {number} of step {step}", strict=strict))
    except FAILURES as error:
        sink(_failure(error, f"the previews of step {step}", strict=strict))


@contextmanager
def though_finished(lora: Path) -> Iterator[None]:
    """Within it a UserError, as of a picture to draw from that went, also says that the LoRA is there."""
    try:
        yield
    except UserError as error:
        first = error.errors[0]
        hint = f"{lora.as_posix()} is finished; once that is mended, --resume makes the report"
        raise UserError(first.message, file=first.file, line=first.line, hint=hint) from None


def infotext(config: TrainConfig, model: Model, preview: Preview, autov3: str) -> str:
    """The text for "PNG Info", with which the picture can be drawn again from the file with that AutoV3; "": from the
    base alone."""
    sampling, base = preview.sampling, model.base_digest[:10] or None  # known since the base was loaded
    sampler = model.family.sampler(sampling.scheduler, sampling.steps)
    prompt = f"{preview.prompt} <lora:{config.name}:1>" if autov3 else preview.prompt
    loras = {config.name: autov3} if autov3 else {}
    told = (config.base_model, base, prompt, preview.seed, sampling, sampler, loras)
    return parameters(*told, clip_skip=config.clip_skip, references=preview.references)


def _failure(error: Exception, what: str, *, strict: bool) -> Note:
    """One line; a RuntimeError that does not come from a lack of memory is a fault of ours, and goes on its way."""
    if strict:
        raise error
    if isinstance(error, UserError):
        first = error.errors[0]
        reason = f"{first.file}: {first.message}" if first.file else first.message
    elif ran_out(error):
        reason = "not enough memory; a smaller sample_size needs less"
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    else:
        raise error
    return Note(f"note: {what} failed ({reason}); the training goes on")
