"""What the captioners that write sentences share: loading a transformers model, and from its tokens to one line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer
from transformers.utils import logging as transformers_logging

from lora_scripts.compute.device import DTYPES, choose_device, choose_precision
from lora_scripts.data.captions import tidy
from lora_scripts.errors import UserError
from lora_scripts.label.base import CaptionOptions

INSTRUCTION = (
    "Write a caption for this picture, to train an image generator: one or two short, factual sentences on what is to "
    "be seen, that is subject, looks, clothes, action, surroundings, light and style. Begin with the subject itself. "
    "Do not guess names and do not judge."
)
_SENTENCES = re.compile(r".*[.!?。！？][\"'”’)]*(?=\s|$)")
_LOADING_ERRORS = (  # what transformers lets through when the files of a folder do not fit each other
    OSError,
    ValueError,
    RuntimeError,
    ImportError,
    LookupError,
    TypeError,
    AttributeError,
    SafetensorError,
)


@contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Turns what transformers says of a folder that does not fit together into one line, and keeps it quiet."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    except _LOADING_ERRORS as error:
        reason = tidy(str(error))[:200] or type(error).__name__
        raise UserError(f"the model cannot be loaded: {reason}", file=folder, hint="download it again") from error


class Writer:
    """A transformers model with its tokenizer and image processor, all from one folder."""

    def __init__(self, model_class: Any, folder: Path, options: CaptionOptions) -> None:
        self.device = choose_device(options.device)
        self.dtype = DTYPES[choose_precision(options.precision, self.device)]
        self.options = options
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        with loading(folder):
            self.tokenizer = AutoTokenizer.from_pretrained(folder, **local)
            self.image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil", **local)
            model, loading_info = model_class.from_pretrained(
                folder, dtype=self.dtype, use_safetensors=True, output_loading_info=True, **local
            )
        if missing := sorted(loading_info["missing_keys"]):
            raise UserError(
                f"{len(missing)} tensors are missing, first {missing[0]}", file=folder, hint="download again"
            )
        self.model = model.to(self.device).eval()
        self.ends = set(self.tokenizer.all_special_ids)
        """Tokens that end an answer, or fill it up after its end."""
        for part in self.model.modules():
            if (generation := getattr(part, "generation_config", None)) is not None:
                for ids in (generation.eos_token_id, generation.pad_token_id):
                    self.ends.update(ids if isinstance(ids, list) else [] if ids is None else [ids])

    def pixels(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """What the model wants to see of RGB pictures; `pixel_values` and perhaps more."""
        return dict(self.image_processor(list(images), return_tensors="pt"))

    def write(self, inputs: Mapping[str, Tensor], *, prompt: int = 0, tidy_spaces: bool = False) -> list[str]:
        """One line of text per row of `inputs`, by beam search; the first `prompt` tokens of each answer are left out.

        `tidy_spaces`: the tokenizer is made of word pieces, which leaves spaces before commas.
        """
        moved = {
            key: value.to(self.device, self.dtype if value.is_floating_point() else None)
            for key, value in inputs.items()
        }
        with torch.inference_mode():
            # The most likely text, whatever the model's makers set for sampling.
            answers = self.model.generate(
                **moved, num_beams=self.options.beams, max_new_tokens=self.options.max_new_tokens, do_sample=False
            )
        return [self._text(row[prompt:], tidy_spaces) for row in answers.cpu()]

    def _text(self, tokens: Tensor, tidy_spaces: bool) -> str:
        ids = tokens.tolist()
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=tidy_spaces)
        ended = not ids or ids[-1] in self.ends
        return tidy(text) if ended else complete(tidy(text))


def complete(text: str) -> str:
    """A text that was cut somewhere, up to its last complete sentence; or, within its first, to its last whole word."""
    whole = _SENTENCES.match(text)
    if whole:
        return whole[0]
    words = text.rsplit(" ", 1)
    return words[0].rstrip(" ,;:-–(") if len(words) > 1 else text


def instruction(options: CaptionOptions, reserved: str) -> str:
    """The person's instruction, or the one for captions of training pictures. UserError for one with `reserved` in it,
    the token that stands for the picture.
    """
    wanted = options.instruction or INSTRUCTION
    if reserved in wanted:
        raise UserError(f"the instruction holds {reserved}, which stands for the picture", hint="leave it out")
    return tidy(wanted)
