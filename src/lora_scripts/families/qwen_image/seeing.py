"""The text encoder of a Qwen-Image that edits: it sees the pictures to draw from, beside the caption.

Facts: diffusers' `QwenImageEditPlusPipeline` and transformers' `Qwen2VLImageProcessor`. Each picture is made as large
as 384 x 384, of its own shape; its tokens stand before the caption, behind "Picture 1: " and so on, in a template of
their own, of which the transformer reads what stands behind the first 64 tokens, by number, whatever they are. A
picture's tokens have places along height and width, as the model was made with; diffusers does not tell a newer
transformers which tokens are a picture's, which then counts them as words.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lora_scripts.families.flow import llm, reader
from lora_scripts.families.flow.llm import Source
from lora_scripts.families.flow.reader import DESCRIBED, DESCRIBED_BY, LanguageEncoder, Reading
from lora_scripts.families.flow.standby import require_numbers
from lora_scripts.families.qwen_image import tower
from lora_scripts.families.qwen_image.tower import BEGIN, END, FRAMES, MERGED, PAD, PATCH

READING = Reading(
    before=DESCRIBED[0],
    after=DESCRIBED[1],
    taps=lambda layers: (layers,),
    most=DESCRIBED_BY + 512,
    filled=False,
    dropped=DESCRIBED_BY,
)
"""Of a caption alone."""
_BEFORE = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. Generate a new image "
    "that meets the user's requirements while maintaining consistency with the original input where appropriate."
    "<|im_end|>\n<|im_start|>user\n"
)
_DROPPED, _MOST = 64, 512
_SIDE, _STEP = 384, 32
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""CLIP's, of pictures in [0, 1]."""


class SeeingEncoder(LanguageEncoder):
    """As `LanguageEncoder`; the vision tower is loaded with it where there are pictures to be seen."""

    def __init__(self, source: Source, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(READING, source, device, dtype)
        self._with_tower = False
        self._pad = self.tokens.token_to_id(PAD)

    def _key(self, text: str, shown: Sequence[Tensor]) -> str:
        return " ".join([text, *(hashlib.sha256(one.numpy().tobytes()).hexdigest() for one in shown)])

    def _on_cpu(self, text: str, shown: Sequence[Tensor]) -> dict[str, Tensor]:
        if not shown:
            return super()._on_cpu(text, shown)
        if not self._with_tower:
            self.rest()  # it is built anew, whole
            self._with_tower = True
        states = self._states_beside(text, shown).cpu()
        return {"states": states, "lengths": torch.tensor(len(states))}

    @torch.no_grad()
    def _states_beside(self, text: str, shown: Sequence[Tensor]) -> Tensor:
        """[tokens, width]. UserError where they are no numbers."""
        model, seen = self._loaded(), [patches(picture) for picture in shown]
        ids = self._encoded(_BEFORE)
        for number, (_, (high, wide)) in enumerate(seen, 1):
            ids += self._encoded(f"Picture {number}: {BEGIN}{PAD * (high * wide // MERGED**2)}{END}")
        # A caption stands between signs, and is cut as one alone is; what would count as a picture in it is left out.
        ids += self._encoded(f"{text.replace(PAD, '')}{self.reading.after}")[:_MOST]
        out = model(
            input_ids=torch.tensor([ids], device=self.device),
            pixel_values=torch.cat([rows for rows, _ in seen]).to(self.device, self.dtype),
            image_grid_thw=torch.tensor([(1, *grid) for _, grid in seen], device=self.device),
            mm_token_type_ids=torch.tensor([[int(one == self._pad) for one in ids]], device=self.device),
            output_hidden_states=True,
            use_cache=False,
        )
        states: Tensor = out.hidden_states[-1][0]
        require_numbers(states, "the text encoder's", self.source.path)
        return states[_DROPPED:]

    def _build(self) -> Any:
        if not self._with_tower:
            return super()._build()
        return build(self.source, self._pad, self.dtype, mapped=self.device.type != "cpu")


def patches(picture: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """A picture [3, h, w] in [-1, 1] as the tower reads it: [patches, 3 x frames x pixels], those of a token together,
    and how many there are from top to bottom and from left to right."""
    high, wide = picture.shape[1:]
    pixels = ((picture + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    sides = [_SIDE * math.sqrt(ratio) for ratio in (wide / high, high / wide)]
    wide, high = (max(1, round(side / _STEP)) * _STEP for side in sides)
    image = Image.fromarray(pixels).resize((wide, high), Image.Resampling.LANCZOS)
    token = PATCH * MERGED
    wide, high = (max(1, round(side / token)) * token for side in (wide, high))
    image = image.resize((wide, high), Image.Resampling.BICUBIC)
    values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(high, wide, 3).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (_MEAN, _STD))
    values = (values - mean) / std
    down, along = high // PATCH, wide // PATCH
    parts = values.view(3, down // MERGED, MERGED, PATCH, along // MERGED, MERGED, PATCH)
    parts = parts.permute(1, 4, 2, 5, 0, 3, 6).unsqueeze(5)  # a still is as many frames alike
    return parts.expand(-1, -1, -1, -1, -1, FRAMES, -1, -1).reshape(down * along, -1), (down, along)


def build(source: Source, pad: int | None, dtype: torch.dtype, *, mapped: bool = False) -> Any:
    """transformers' `Qwen2_5_VLModel`, tower and all. `pad`: the number of the token that stands for a picture's,
    of a tokenizer that has one; `mapped`: as of `reader.build`. UserErrors where the tower is not whole."""
    import transformers

    found = tower.require(source)
    config = transformers.Qwen2_5_VLConfig(**tower.config_of(source, found), image_token_id=pad)
    with torch.device("meta"):
        model = transformers.Qwen2_5_VLModel(config)
    language, vision = model.language_model, model.visual
    language.rotary_emb = type(language.rotary_emb)(config.text_config)  # as of `reader.build`
    vision.rotary_pos_emb = type(vision.rotary_pos_emb)(config.vision_config)
    reader.fill(language, source, llm.rows(source.layout), dtype, mapped=mapped)
    reader.fill(vision, source, tower.rows(found), dtype, mapped=mapped)
    return model.requires_grad_(False).eval()
