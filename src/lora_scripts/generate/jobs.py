"""The prompts of `generate`, each with the files that it calls, and how it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.data.buckets import views
from lora_scripts.data.image import apply_view
from lora_scripts.data.references import as_shaped, seen_beside
from lora_scripts.errors import UserError, raise_all
from lora_scripts.families.facts import Drawing, Facts
from lora_scripts.families.table import drawing
from lora_scripts.generate.prompt import GenerateOptions, LoraCall, find_lora, parse_prompt
from lora_scripts.generate.prompts_file import PromptLine, read_prompts
from lora_scripts.loras.words import check_words

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from lora_scripts.families.base import Sampling
    from lora_scripts.families.samplers import Sampler


@dataclass(frozen=True)
class Job:
    """One prompt: `count` pictures of it, seed by seed."""

    line: PromptLine
    prompt: str
    """Without its tags."""
    how: Drawing
    calls: Sequence[LoraCall]
    files: Sequence[Path]
    references: Sequence[Path]
    """Pictures that it is drawn from."""


def jobs_of(options: GenerateOptions) -> list[Job]:
    """The prompts, with the files of the LoRAs that they call; UserErrors for all that is wrong with any."""
    lines = read_prompts(options.from_file) if options.from_file else [PromptLine(options.prompt or "")]
    usual, asked = drawing(options.base), (options.steps, options.cfg, options.negative_prompt)
    jobs: list[Job] = []
    faults: list[UserError] = []
    for line in lines:
        try:
            prompt, calls = parse_prompt(line.prompt)
            files, references = _find(calls, options.lora_dir), line.references or options.reference
            jobs.append(Job(line, prompt, usual.asked(line, *asked), calls, files, references))
            check_words(prompt, jobs[-1].files)
        except UserError as error:
            faults += error.errors
    # A name that several lines call is missed once.
    raise_all(list({str(fault): fault for fault in faults}.values()))
    return jobs


def sizes_asked(options: GenerateOptions, jobs: Sequence[Job]) -> list[tuple[int, int]]:
    """Those that are asked for; a side that is not is one that the base takes."""
    width, height = options.size or (0, 0)
    return [(job.line.width or width, job.line.height or height) for job in jobs]


def _find(calls: Sequence[LoraCall], folder: Path) -> list[Path]:
    files, faults = [], []
    for call in calls:
        try:
            files.append(find_lora(call.name, folder))
        except UserError as e:
            faults.append(e)
    raise_all(faults)
    return files


@dataclass(frozen=True)
class Start:
    """What the pictures begin with, and the share of the steps that are done."""

    image: Image | None
    denoise: float

    def at(self, size: tuple[int, int]) -> Tensor | None:
        """[3 or 4, height, width]: scaled to cover the size, and cut to it."""
        if self.image is None:
            return None
        (view, *_) = views(self.image.size, size, flip=False, random_crop=False, seed=0, index=0)
        return apply_view(self.image, view)


def _size(options: GenerateOptions, job: Job, facts: Facts, start: Image | None) -> tuple[int, int]:
    size, line, step = options.size, job.line, facts.size_step
    if size is None:
        size = as_shaped(job.references, facts.made_for(options.base), facts.bucket_steps)
        if start is not None:
            size = (_to_step(start.width, step), _to_step(start.height, step))
    return (line.width or size[0], line.height or size[1])


def texts_of(
    options: GenerateOptions, job: Job, facts: Facts, start: Image | None
) -> tuple[Sequence[str], Sequence[Tensor]]:
    """The texts of a job, and what a text encoder that sees is shown beside them."""
    size = _size(options, job, facts, start)
    shown = seen_beside(job.references, size, facts.bucket_steps) if facts.sees else ()
    return (job.prompt, job.how.negative), shown


def sampling_of(options: GenerateOptions, job: Job, facts: Facts, sampler: Sampler, start: Start) -> Sampling:
    """How it is drawn. UserError for a reference that is no picture."""
    from lora_scripts.families.base import Sampling

    size = _size(options, job, facts, start.image)
    return Sampling(
        steps=job.how.steps,
        cfg=job.how.cfg,
        negative=job.how.negative,
        size=size,
        scheduler=sampler.name,
        start=start.at(size),
        denoise=start.denoise,
        references=seen_beside(job.references, size, facts.bucket_steps),
    )


def _to_step(side: int, step: int) -> int:
    return max(64, round(side / step) * step)
