"""`lora-scripts generate`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from PIL.PngImagePlugin import PngInfo

from lora_scripts.data.image import load_rgb, load_rgba
from lora_scripts.data.references import require_readable
from lora_scripts.errors import UserError, raise_all
from lora_scripts.events import Note, Progress, Saved, Sink, ignore
from lora_scripts.families.table import (
    require_drawn,
    require_negative,
    require_pictures,
    require_references,
    require_sight,
)
from lora_scripts.formats import io
from lora_scripts.formats.gguf import packed_types
from lora_scripts.generate import known_by
from lora_scripts.generate.jobs import Job, Start, jobs_of, sampling_of, sizes_asked, texts_of
from lora_scripts.generate.known_by import lora_hash, model_hash
from lora_scripts.generate.naming_pictures import USUAL, picture_path
from lora_scripts.generate.png import infotext
from lora_scripts.generate.prompt import GenerateOptions, by_name
from lora_scripts.generate.prompts_file import PromptLine
from lora_scripts.generate.unread import tell_unread

if TYPE_CHECKING:
    from PIL.Image import Image

    from lora_scripts.families.base import PictureFamily, Sampling
    from lora_scripts.families.samplers import Sampler

DENOISE = 0.75
"""The WebUI's denoising strength where nothing is said."""


@dataclass(frozen=True)
class Picture:
    """A PNG that was written."""

    path: Path
    prompt: str
    """With its tags."""
    seed: int
    parameters: str
    """What the file tells of itself, as the WebUI's "PNG Info" shows it."""


@dataclass(frozen=True)
class Generated:
    """The pictures, in the order of the prompts and their seeds."""

    pictures: tuple[Picture, ...]


def generate_pictures(options: GenerateOptions, sink: Sink = ignore) -> Generated:
    """Draws `options.count` pictures of each prompt as numbered PNGs. UserErrors for mistakes, before a model loads."""
    jobs = jobs_of(options)
    _check(options, jobs)
    facts = require_pictures(options.base)
    require_negative(facts, [job.how.negative for job in jobs])
    require_references(facts, [PromptLine("", references=tuple(options.reference)), *(job.line for job in jobs)])
    require_sight(facts, options.base, options.text_encoder, [len(job.references) for job in jobs])
    require_readable([path for job in jobs for path in job.references])
    require_drawn(facts, sizes_asked(options, jobs), options.clip_skip)
    tell_unread(facts, [(job.prompt, job.how) for job in jobs], sink)
    io.require_writable(options.output or USUAL)
    start = (load_rgba if facts.transparent else load_rgb)(options.image) if options.image is not None else None

    from lora_scripts.compute.device import DTYPES, choose_device, choose_precision
    from lora_scripts.families.base import LoadOptions
    from lora_scripts.families.samplers import find_sampler, steps_done
    from lora_scripts.families.table import load_pictures, settings_asked
    from lora_scripts.generate.cut import remember
    from lora_scripts.loras.stack import LoraStack, Worn

    denoise = 1.0 if start is None else DENOISE if options.denoise is None else options.denoise
    keys = ("prediction", "zero_terminal_snr", "clip_skip")
    made_with = settings_asked(options.base, {key: getattr(options, key) for key in keys})
    for job in jobs:
        steps = job.how.steps
        find_sampler(options.scheduler, made_with["prediction"], steps)
        if steps_done(steps, denoise) < 1:
            raise UserError(f"--denoise {denoise:g} of {steps} steps is none", hint="raise --denoise or --steps")
    sampler = find_sampler(options.scheduler, made_with["prediction"])
    device = choose_device(options.device)
    precision = choose_precision(options.precision, device)
    begun = Start(start, denoise)
    told_first = partial(remember, asked=(texts_of(options, job, facts, start) for job in jobs), sink=sink)
    known_by.begin(options.base)
    load = LoadOptions(device, DTYPES[precision], options.vae, options.text_encoder, told_first, settings=made_with)
    family = load_pictures(options.base, load)
    stack = LoraStack(family, merged=options.merged)
    for path in dict.fromkeys(path for job in jobs for path in job.files):
        stack.load(path)
    total, pictures = len(jobs) * options.count, list[Picture]()
    for job in jobs:
        stack.wear([Worn(f, c.unet, c.text) for c, f in zip(job.calls, job.files, strict=True)])
        sampling = sampling_of(options, job, facts, sampler, begun)
        first = options.seed if job.line.seed is None else job.line.seed
        seeds = range(first, first + options.count)
        for seed, image in draw(family, job.prompt, seeds, sampling, options.batch, sink):
            path = picture_path(options.output, len(pictures), total)
            text = _parameters(options, job, seed, sampling, sampler)
            save(path, image, text)
            pictures.append(Picture(path, job.line.prompt, seed, text))
            sink(Saved("picture", path))
            sink(Progress("pictures", len(pictures), total))
    return Generated(tuple(pictures))


def _check(options: GenerateOptions, jobs: Sequence[Job]) -> None:
    """UserErrors for options that do not fit each other, or do nothing."""
    faults = []
    if options.size and any(side % 8 for side in options.size):
        faults.append(UserError(f"--size {options.size[0]}x{options.size[1]}: sides must be multiples of 8"))
    if options.denoise is not None and options.image is None:
        faults.append(UserError("--denoise does nothing without --image", hint="name a picture to begin with"))
    if options.batch > options.count:
        hint = "raise --count; prompts of a file are drawn one after the other"
        text = f"--batch {options.batch}: there is no more than --count {options.count} of a prompt"
        faults.append(UserError(text, hint=hint))
    if options.merged and not any(job.calls for job in jobs):
        faults.append(UserError("--merged does nothing without a LoRA", hint="call one as <lora:name:0.8>"))
    if options.merged and packed_types(options.base):
        text = "--merged: nothing can be added to the numbers of a GGUF file"
        faults.append(UserError(text, hint="leave it out: LoRAs are computed beside them"))
    raise_all(faults)


def draw(
    family: PictureFamily, prompt: str, seeds: Sequence[int], sampling: Sampling, batch: int = 1, sink: Sink = ignore
) -> Iterator[tuple[int, Image]]:
    """Seed and picture, `batch` at a time, or as many as the memory holds. UserError where that is none."""
    import torch

    from lora_scripts.compute.meter import ran_out

    at = 0
    while at < len(seeds):
        some = seeds[at : at + batch]
        try:
            drawn = family.draw(prompt, some, sampling)
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error):
                raise
            drawn = None
        if drawn is None:  # behind the error, whose frames hold what was computed
            if len(some) == 1:
                hint = "choose a smaller --size, or a lower --precision"
                raise UserError("the memory is too small for one picture", hint=hint)
            batch = len(some) // 2
            torch.cuda.empty_cache()
            sink(Note(f"not enough memory for {len(some)} pictures at once; drawing {batch}"))
            continue
        yield from zip(some, drawn, strict=True)
        at += len(some)


def save(path: Path, image: Image, parameters: str) -> None:
    """Writes a PNG that tells how it was made."""
    info = PngInfo()
    if parameters.isascii():
        info.add_text("parameters", parameters)
    else:
        info.add_itxt("parameters", parameters)
    io.save_png(path, image, info)


def _parameters(options: GenerateOptions, job: Job, seed: int, sampling: Sampling, sampler: Sampler) -> str:
    loras = {call.name: lora_hash(file) for call, file in zip(job.calls, job.files, strict=True)}
    clip = options.clip_skip
    base = options.base, model_hash(options.base)
    prompt, shown = job.line.prompt, job.references
    return parameters(*base, prompt, seed, sampling, sampler, loras, clip_skip=clip, references=shown)


def parameters(
    base: Path,
    base_hash: str | None,
    prompt: str,
    seed: int,
    sampling: Sampling,
    sampler: Sampler,
    loras: Mapping[str, str],
    *,
    clip_skip: int = 1,
    references: Sequence[Path] = (),
) -> str:
    """The text for "PNG Info"; `base_hash`: AutoV2; `prompt` with its tags; `loras`: name -> AutoV3."""
    name, schedule = sampler.webui
    rows = {
        "Steps": sampling.steps,
        "Sampler": name,
        "Schedule type": schedule,
        "CFG scale": f"{sampling.cfg:g}",
        "Seed": seed,
        "Size": f"{sampling.size[0]}x{sampling.size[1]}",
        "Model hash": base_hash,
        "Model": base.stem,
        "Denoising strength": None if sampling.start is None else f"{sampling.denoise:g}",
        "Clip skip": clip_skip if clip_skip > 1 else None,
        "References": ", ".join(path.name for path in references) or None,
        "Lora hashes": ", ".join(f"{lora}: {digest}" for lora, digest in loras.items()) or None,
    }
    return infotext(by_name(prompt), sampling.negative, rows)
