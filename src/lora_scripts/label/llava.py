"""LLaVA: CLIP's or SigLIP's eyes before a language model (Liu et al. 2023, https://arxiv.org/abs/2304.08485).

JoyCaption is one, with SigLIP and Llama 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jinja2 import TemplateError
from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from lora_scripts.label.base import CaptionOptions
from lora_scripts.label.writer import Writer, instruction, loading

_SYSTEM = "You are a helpful image captioner."  # what JoyCaption was trained with


class Llava:
    """fancyfeast/llama-joycaption-…-hf-llava, llava-hf/llava-1.5-7b-hf and their kin."""

    name = "LLaVA"
    limits: str | None = None
    kind: Literal["sentence", "tags"] = "sentence"

    def __init__(self, folder: Path, options: CaptionOptions) -> None:
        self.writer = Writer(LlavaForConditionalGeneration, folder, options)
        tokenizer, config = self.writer.tokenizer, self.writer.model.config
        self.picture = tokenizer.convert_ids_to_tokens(config.image_token_index)
        with loading(folder):  # the template of a chat may lie in one of three files
            template = LlavaProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            ).chat_template
        self.text = prompt_of(tokenizer, template, self.picture, instruction(options, self.picture))
        # A template that writes the token of the beginning itself shall not give two of them.
        begins = tokenizer.bos_token is not None and self.text.startswith(tokenizer.bos_token)
        before, after = self.text.split(self.picture)
        self.before = tokenizer(before, add_special_tokens=not begins).input_ids
        self.after = tokenizer(after, add_special_tokens=False).input_ids

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        config = self.writer.model.config
        pixels = self.writer.pixels(images)
        height, width = (side // config.vision_config.patch_size for side in pixels["pixel_values"].shape[-2:])
        # CLIP has one token more than patches; the strategy "default" leaves out the first one.
        extra = (config.vision_config.model_type == "clip_vision_model") - (
            config.vision_feature_select_strategy == "default"
        )
        picture = [config.image_token_index] * (height * width + extra)
        ids = torch.tensor([*self.before, *picture, *self.after]).repeat(len(images), 1)  # [n, tokens]
        inputs = {**pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return self.writer.write(inputs, prompt=ids.shape[1])


def prompt_of(tokenizer: Any, template: str | None, picture: str, words: str) -> str:
    """The chat up to the point where the model answers, with the token `picture` in it once.

    Templates differ in what they take: JoyCaption's puts the picture before a plain text by itself, others want a list
    of parts. Without one it is the form of LLaVA 1.5.
    """
    parts = [{"type": "image"}, {"type": "text", "text": words}]
    chats: list[list[dict[str, Any]]] = [
        [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": words}],
        [{"role": "user", "content": parts}],
    ]
    for chat in chats if template else []:
        try:
            text: str = tokenizer.apply_chat_template(
                chat, chat_template=template, tokenize=False, add_generation_prompt=True
            )
        except (TemplateError, TypeError):
            continue  # this template takes the other form
        if text.count(picture) == 1 and words in text:
            return text
    return f"USER: {picture}\n{words} ASSISTANT:"


def load(folder: Path, options: CaptionOptions) -> Llava:
    """From a folder with config.json, safetensors weights, tokenizer and image preprocessor. Raises UserError."""
    return Llava(folder, options)
