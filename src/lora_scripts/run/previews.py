"""Pictures while training, drawn with what a file of the LoRA would hold at that step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lora_scripts.adapters.inject import put_back
from lora_scripts.config.prompt_line import PromptLine
from lora_scripts.config.schema import TrainConfig
from lora_scripts.data.scan import Sample
from lora_scripts.errors import UserError, UserErrors
from lora_scripts.families.base import Sampling
from lora_scripts.families.samplers import find_sampler
from lora_scripts.formats.hashes import with_hashes
from lora_scripts.generate.command import parameters, save
from lora_scripts.generate.prompts_file import preview_lines
from lora_scripts.loras.embedding import split_bundle
from lora_scripts.loras.on_model import apply, changes_of

if TYPE_CHECKING:
    from lora_scripts.run.story import Run


# RuntimeError: torch's lack of memory is one on every device.
FAILURES = (UserError, UserErrors, RuntimeError, MemoryError)


@dataclass(frozen=True)
class Preview:
    """One picture that is drawn again and again."""

    prompt: str
    seed: int
    sampling: Sampling


def previews_of(config: TrainConfig, samples: Sequence[Sample]) -> list[Preview]:
    """Those of the config, or of the first two captions of the data set."""
    lines = preview_lines(config.sample_prompts)
    if not lines:
        captions = list(dict.fromkeys(s.caption for s in samples if s.caption))
        lines = [PromptLine(caption) for caption in captions[:2] or [""]]
    return [_preview(config, line, number) for number, line in enumerate(lines)]


def usual(config: TrainConfig) -> Preview:
    """An empty prompt, as the config would have it drawn."""
    return _preview(config, PromptLine(""), 0)


def _preview(config: TrainConfig, line: PromptLine, number: int) -> Preview:
    width, height = config.effective_sample_size
    sampling = Sampling(
        line.steps or config.sample_steps,
        config.sample_cfg if line.cfg is None else line.cfg,
        config.sample_negative if line.negative is None else line.negative,
        (line.width or width, line.height or height),
    )
    return Preview(line.prompt, config.seed + number if line.seed is None else line.seed, sampling)


def draw_previews(run: Run, *, strict: bool = False) -> None:
    """Every preview into samples/ and TensorBoard. Nothing that is trained, and no random state, is touched.

    One that fails is told in one line, for the training is worth more; with `strict` it raises.
    """
    step = run.state.step
    try:
        with exported(run) as autov3:
            for number, preview in enumerate(run.previews, 1):
                try:
                    image = run.family.generate(preview.prompt, preview.seed, preview.sampling)
                    save(run.folder.sample(step, number), image, told_of(run, preview, autov3))
                    run.board.picture(step, f"preview/{number}", image)
                except FAILURES as error:
                    _tell(error, f"preview {number} of step {step}", strict=strict)
    except FAILURES as error:
        _tell(error, f"the previews of step {step}", strict=strict)
    finally:
        run.family.rest(text_encoder=run.feed.cache_text)


@contextmanager
def exported(run: Run) -> Iterator[str]:
    """Within it the model wears what a file would hold now, read as a file is; gives the file's AutoV3, or "" where
    the base model is still as it was.

    The layers in training are laid aside meanwhile, and put back as they were.
    """
    tensors, words = run.exporter.tensors(), run.exporter.words()
    changes = changes_of(split_bundle(tensors)[0], run.folder.final)
    try:
        put_back(run.family.roots, {path: layer.base for path, layer in run.layers.items()})
        apply(run.family, changes, 1.0)
        run.family.set_words(words)
        nothing = run.state.step == 0 and run.config.init_lora is None
        yield "" if nothing else with_hashes(tensors, {})["sshs_model_hash"][:12]
    finally:
        put_back(run.family.roots, run.layers)
        run.family.set_words(run.model.words)


def told_of(run: Run, preview: Preview, autov3: str) -> str:
    """The text for "PNG Info", with which the picture can be drawn again from the file of that step."""
    config, sampling = run.config, preview.sampling
    sampler = find_sampler(sampling.scheduler, config.prediction, sampling.steps)
    prompt = f"{preview.prompt} <lora:{run.folder.name}:1>" if autov3 else preview.prompt
    loras = {run.folder.name: autov3} if autov3 else {}
    return parameters(config.base_model, prompt, preview.seed, sampling, sampler, loras, clip_skip=config.clip_skip)


def _tell(error: Exception, what: str, *, strict: bool) -> None:
    """One line; a RuntimeError that does not come from a lack of memory is a fault of ours, and goes on its way."""
    if strict:
        raise error
    if isinstance(error, UserErrors):
        reason = error.errors[0].message
    elif isinstance(error, UserError):
        reason = error.message
    elif isinstance(error, MemoryError) or _is_memory(error):
        reason = "not enough memory; a smaller sample_size needs less"
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    else:
        raise error
    print(f"note: {what} failed ({reason}); the training goes on", flush=True)


def _is_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "memory" in str(error).lower()
