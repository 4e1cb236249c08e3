"""Stable Diffusion 1.x and 2.x: loading, what LoRA may wrap, encoding, the loss and previews."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from lora_scripts.compute.resting import Late
from lora_scripts.families import samplers
from lora_scripts.families.base import Batch, Conditions, LoadOptions, Sampling
from lora_scripts.families.clip import prompts
from lora_scripts.families.sd import steps
from lora_scripts.families.sd.alike import Pictures
from lora_scripts.families.sd.denoiser import Denoiser
from lora_scripts.families.sd.encoder import Rows, TextEncoder
from lora_scripts.families.sd.latents import LatentCoder, Normal
from lora_scripts.families.sd.settings import Settings
from lora_scripts.families.sd1.facts import FACTS, FACTS_2
from lora_scripts.families.sd1.layout import SCALING
from lora_scripts.families.sd1.load import load_parts
from lora_scripts.losses import diffusion, noise

PAD_2 = 0
"""2.x fills its chunks up with this token, an exclamation mark (as published: tokenizer/tokenizer_config.json)."""


class StableDiffusion1(Pictures):
    """A UNet, a VAE and a CLIP text encoder, all frozen, of a 1.x or a 2.x; LoRA layers come from outside."""

    words: prompts.Words = MappingProxyType({})

    def __init__(
        self,
        unet: nn.Module,
        vae: Any,
        text_encoder: Any,
        options: LoadOptions,
        native_size: tuple[int, int] = (512, 512),
    ) -> None:
        """`vae` and `text_encoder`: models, or `Unbuilt` ones."""
        self.device, self.dtype = options.device, options.dtype
        self.settings = Settings.of(options.settings)
        second = isinstance(unet.get_submodule("mid_block.attentions.0.proj_in"), nn.Linear)
        self.facts = FACTS_2 if second else FACTS
        self.denoiser = Denoiser(unet, options.memory, self.device, self.dtype)
        self.coder = LatentCoder(vae, Normal(SCALING), self.device, options.memory, options.remembered)
        pad = PAD_2 if second else None
        self.encoder = TextEncoder(text_encoder, self.device, options.memory, pad=pad, remembered=options.remembered)
        self.unet, self.native_size = self.denoiser.unet, native_size

    @property
    def vae(self) -> Any:
        return self.coder.vae

    @property
    def text_encoder(self) -> Any:
        return self.encoder.model

    @property
    def objective(self) -> diffusion.Objective:
        return self.settings.objective

    @property
    def roots(self) -> Mapping[str, nn.Module]:
        return Late({"unet": lambda: self.unet, "text_encoder": lambda: self.encoder.inner})

    def trainable(self, parts: Collection[str] | None = None) -> dict[str, nn.Module]:
        layers = {f"unet.{path}": layer for path, layer in self.denoiser.trainable()}
        if parts is not None and "text_encoder" not in parts:
            return layers
        return layers | {f"text_encoder.{path}": layer for path, layer in self.encoder.trainable()}

    def fingerprint(self, part: str) -> str:
        if part == "vae":
            return self.coder.fingerprint()
        skip, tokens = self.settings.clip_skip, self.settings.caption_tokens
        return self.encoder.digest("text encoder", f"clip skip {skip}, {tokens} tokens, {prompts.CUT}")

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str], shown: Sequence[Tensor] = ()) -> dict[str, Tensor]:
        """{"states": [n, 77 k, width]}"""
        return {name: rows.cpu() for name, rows in self._captions(captions).items()}

    def _captions(self, captions: Sequence[str]) -> Conditions:
        """Captions as they stand, cut off at `caption_tokens`."""
        most = self.settings.chunks
        return self._states([self._chunks(prompts.plain(c), most) for c in captions], most)

    def _chunks(self, stretches: list[tuple[str, float]], most: int | None = None) -> list[prompts.Chunk]:
        return prompts.chunks(stretches, most, self.words, pad=self.encoder.pad)

    def _states(self, rows: Rows, length: int) -> Conditions:
        """The hidden states after the final norm, as SD 1.x, 2.x and WebUIs read them."""
        return {"states": self.encoder.encode(rows, length, self.settings.clip_skip, normed=True).states}

    @property
    def word_widths(self) -> tuple[int, ...]:
        return (self.encoder.width,)

    def set_words(self, words: Mapping[str, Tensor]) -> None:
        self.words = self.encoder.set_words(words)

    def vectors_of(self, text: str) -> Tensor:
        return self.encoder.vectors_of(text)

    def _answered(self, batch: Batch, objective: diffusion.Objective, draws: noise.Draws) -> steps.Answered:
        texts = self._captions(batch.captions) if batch.texts is None else batch.texts
        return steps.answered(batch, objective, draws, texts, self._answer, self.device)

    def levels(self, objective: diffusion.Objective) -> int | None:
        return len(steps.schedule_of(objective))

    def _answer(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        return self.predict(x_t, t, conditions["states"])

    def predict(self, x_t: Tensor, t: Tensor, states: Tensor) -> Tensor:
        """The UNet's answer [n, 4, h, w] to noised latents, timesteps [n] and text states [n, 77, width]."""
        return self.denoiser(x_t, t, states)

    def sampler(self, name: str | None, steps: int = 1) -> samplers.Sampler:
        return samplers.find_sampler(name, self.settings.prediction, steps)

    @torch.no_grad()
    def draw(self, prompt: str, seeds: Sequence[int], sampling: Sampling) -> list[Image.Image]:
        sampler = self.sampler(sampling.scheduler, sampling.steps)
        texts = [sampling.negative, prompt] if sampling.cfg != 1 else [prompt]
        rows = [self._chunks(prompts.weighted(text)) for text in texts]
        ask = steps.guided(self._answer, self._states(rows, max(map(len, rows))), len(seeds), sampling.cfg)
        width, height = (side // self.facts.vae_factor for side in sampling.size)
        start = None if sampling.start is None else self.encode_image(sampling.start[None])["mean"]
        shape = (self.facts.latent_channels, height, width)
        x = steps.draw(ask, seeds, sampling, sampler, self.objective, shape, start=start, on=self.device)
        return [self.coder.decode(latents) for latents in x]

    def rest(self, *, text_encoder: bool) -> None:
        self.coder.rest()
        if text_encoder:
            self.encoder.rest()


def load(path: Path, options: LoadOptions) -> StableDiffusion1:
    """From one LDM `.safetensors` (memory-mapped) or a diffusers folder, and perhaps a separate VAE; else UserError."""
    parts = load_parts(path, options.vae)
    family = StableDiffusion1(parts.unet, parts.vae, parts.text, options)
    family.native_size = family.facts.made_for(path)
    return family
