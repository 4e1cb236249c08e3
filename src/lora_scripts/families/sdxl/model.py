"""SDXL: loading, what LoRA may wrap, encoding, the loss and previews.

What the UNet is told of a picture (Podell et al. 2023, sections 2.2 and 2.3, and sgm's `sd_xl_base.yaml`): the states
of both text encoders before their last layer, side by side and without a final norm; the second one's pooled state; and
six numbers, the size that the picture had, where it was cut, and the size that it has.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from lora_scripts.compute.resting import Late
from lora_scripts.families import samplers
from lora_scripts.families.base import Batch, Conditions, LoadOptions, Place, Sampling
from lora_scripts.families.clip import prompts
from lora_scripts.families.sd import steps
from lora_scripts.families.sd.alike import Pictures
from lora_scripts.families.sd.denoiser import Denoiser
from lora_scripts.families.sd.encoder import TextEncoder
from lora_scripts.families.sd.latents import LatentCoder, Normal
from lora_scripts.families.sd.settings import Settings
from lora_scripts.families.sdxl.facts import FACTS
from lora_scripts.families.sdxl.layout import SCALING
from lora_scripts.families.sdxl.load import Parts, load_parts
from lora_scripts.losses import diffusion, noise

PAD_2 = 0
"""The second text encoder's chunks are filled up with this token, which is an exclamation mark (as published:
tokenizer_2/tokenizer_config.json)."""
LAYER = 2
"""Counted from the last: the layer whose states are read."""


class Sdxl(Pictures):
    """A UNet, a VAE and two CLIP text encoders, all frozen; LoRA layers come from outside."""

    facts = FACTS
    words: prompts.Words = MappingProxyType({})

    def __init__(self, parts: Parts, options: LoadOptions) -> None:
        self.device, self.dtype = options.device, options.dtype
        self.settings = Settings.of(options.settings)
        self.native_size = parts.native_size
        self.denoiser = Denoiser(parts.unet, options.memory, self.device, self.dtype)
        told, known = options.memory, options.remembered
        self.coder = LatentCoder(parts.vae, Normal(SCALING), self.device, told, known)
        self.encoder = TextEncoder(parts.text, self.device, told, remembered=known)
        self.encoder_2 = TextEncoder(parts.text_2, self.device, told, pad=PAD_2, remembered=known)
        self.encoders = {"text_encoder": self.encoder, "text_encoder_2": self.encoder_2}
        self.unet = self.denoiser.unet

    @property
    def vae(self) -> Any:
        return self.coder.vae

    @property
    def _layer(self) -> int:
        """`clip_skip` counts from the last layer, whose states SDXL never reads: 1, which is usual, is 2 here."""
        return max(LAYER, self.settings.clip_skip)

    @property
    def objective(self) -> diffusion.Objective:
        return self.settings.objective

    @property
    def roots(self) -> Mapping[str, nn.Module]:
        encoders = {part: partial(getattr, encoder, "inner") for part, encoder in self.encoders.items()}
        return Late({"unet": lambda: self.unet, **encoders})

    def trainable(self, parts: Collection[str] | None = None) -> dict[str, nn.Module]:
        layers = {f"unet.{path}": layer for path, layer in self.denoiser.trainable()}
        for part, encoder in self.encoders.items():
            if parts is None or part in parts:
                layers |= {f"{part}.{path}": layer for path, layer in encoder.trainable()}
        return layers

    def fingerprint(self, part: str) -> str:
        if part == "vae":
            return self.coder.fingerprint()
        read = f"layer {self._layer}, {self.settings.caption_tokens} tokens, {prompts.CUT}"
        return " ".join(encoder.digest(name, read) for name, encoder in self.encoders.items())

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str], shown: Sequence[Tensor] = ()) -> dict[str, Tensor]:
        """{"states": [n, 77 k, width], "pooled": [n, width of the second]}"""
        return {name: rows.cpu() for name, rows in self._captions(captions).items()}

    def _captions(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Captions as they stand, cut off at `caption_tokens`."""
        most = self.settings.chunks
        return self._texts([prompts.plain(caption) for caption in captions], most)

    def _texts(self, stretches: Sequence[list[tuple[str, float]]], most: int | None = None) -> dict[str, Tensor]:
        """What texts are to the UNet; `most`: chunks of each; None: as many as the longest needs."""
        encoded = []
        for encoder in self.encoders.values():
            rows = [prompts.chunks(s, most, self.words, pad=encoder.pad) for s in stretches]
            length = most or max(map(len, rows))
            encoded.append(encoder.encode(rows, length, self._layer, normed=False))
        pooled = encoded[1].pooled
        assert pooled is not None
        return {"states": torch.cat([one.states for one in encoded], -1), "pooled": pooled}

    @property
    def word_widths(self) -> tuple[int, ...]:
        return self.encoder.width, self.encoder_2.width

    def set_words(self, words: Mapping[str, Tensor]) -> None:
        width = self.encoder.width
        self.words = self.encoder.set_words(words, slice(0, width))
        self.encoder_2.set_words(words, slice(width, None))

    def vectors_of(self, text: str) -> Tensor:
        return torch.cat([encoder.vectors_of(text) for encoder in self.encoders.values()], -1)

    def _answered(self, batch: Batch, objective: diffusion.Objective, draws: noise.Draws) -> steps.Answered:
        texts = self._captions(batch.captions) if batch.texts is None else batch.texts
        assert batch.places is not None
        told = {**texts, "sizes": batch.places}
        return steps.answered(batch, objective, draws, told, self.predict, self.device)

    def levels(self, objective: diffusion.Objective) -> int | None:
        return len(steps.schedule_of(objective))

    def predict(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        """The UNet's answer [n, 4, h, w] to noised latents, timesteps [n], and states, pooled states and sizes."""
        added = {
            "text_embeds": conditions["pooled"].to(self.device, self.dtype),
            "time_ids": conditions["sizes"].to(self.device),
        }
        return self.denoiser(x_t, t, conditions["states"], added)

    def sampler(self, name: str | None, steps: int = 1) -> samplers.Sampler:
        return samplers.find_sampler(name, self.settings.prediction, steps)

    @torch.no_grad()
    def draw(self, prompt: str, seeds: Sequence[int], sampling: Sampling) -> list[Image.Image]:
        """As a picture of its own size, not cut. An empty negative prompt is read like any other, as captions that are
        dropped in training are."""
        sampler = self.sampler(sampling.scheduler, sampling.steps)
        texts = [sampling.negative, prompt] if sampling.cfg != 1 else [prompt]
        sizes = Place(sampling.size, (0, 0), sampling.size).numbers()
        told = self._texts([prompts.weighted(text) for text in texts])
        told["sizes"] = sizes.expand(len(texts), -1)
        width, height = (side // FACTS.vae_factor for side in sampling.size)
        start = None if sampling.start is None else self.encode_image(sampling.start[None])["mean"]
        shape = (FACTS.latent_channels, height, width)
        ask = steps.guided(self.predict, told, len(seeds), sampling.cfg)
        x = steps.draw(ask, seeds, sampling, sampler, self.objective, shape, start=start, on=self.device)
        return [self.coder.decode(latents) for latents in x]

    def rest(self, *, text_encoder: bool) -> None:
        self.coder.rest()
        if text_encoder:
            for encoder in self.encoders.values():
                encoder.rest()


def load(path: Path, options: LoadOptions) -> Sdxl:
    """From one published `.safetensors` (memory-mapped) or a diffusers folder, and perhaps a separate VAE; else
    UserError."""
    return Sdxl(load_parts(path, options.vae, options.dtype), options)
