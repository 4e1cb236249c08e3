"""Stable Diffusion 1.x: loading, what LoRA may wrap, encoding, the loss and previews."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextModel
from transformers.utils import logging as transformers_logging

from lora_scripts.compute import memory
from lora_scripts.errors import UserError
from lora_scripts.families import samplers
from lora_scripts.families.base import Batch, LoadOptions, Sampling
from lora_scripts.families.clip import prompts
from lora_scripts.families.clip.words import WordTable, numbered
from lora_scripts.families.sd1.facts import FACTS
from lora_scripts.families.sd1.load import from_file, from_folder, load_vae
from lora_scripts.losses import diffusion, noise

SCALING = 0.18215
"""Latents are multiplied by this, so that they have unit variance (Rombach et al. 2022; SD 1.x configs)."""
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


@dataclass(frozen=True)
class Settings:
    """The keys of a config that this family has a use for."""

    prediction: diffusion.Prediction = "epsilon"
    """What the base answers with."""
    zero_terminal_snr: bool = False
    """That the base was made for a noise schedule that ends in pure noise."""
    clip_skip: int = 1
    """1: the text encoder's last layer is read; 2: the one before it, and so on."""
    caption_tokens: int = prompts.ROOM
    """Where captions are cut off: 75, 150 or 225 tokens. Prompts of pictures are never cut."""

    @classmethod
    def of(cls, keys: Mapping[str, Any]) -> Settings:
        return cls(**{field.name: keys[field.name] for field in fields(cls) if field.name in keys})


class StableDiffusion1:
    """A UNet, a VAE and a CLIP text encoder, all frozen; LoRA layers come from outside."""

    facts = FACTS

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        options: LoadOptions,
        native_size: tuple[int, int] = (512, 512),
    ) -> None:
        self.device, self.dtype = options.device, options.dtype
        self.settings = settings = Settings.of(options.settings)
        self.objective = diffusion.Objective(settings.prediction, zero_terminal_snr=settings.zero_terminal_snr)
        self.unet = unet.requires_grad_(False).eval()
        memory.place(self.unet, options.memory, self.device, self.dtype)
        # float32: in half precision the VAE of some checkpoints gives NaN, seen as black pictures.
        self.vae = vae.float().requires_grad_(False).eval()
        self.text_encoder = text_encoder.float().requires_grad_(False).eval()
        if self.device.type == "cpu":
            self.unet.to(memory_format=torch.channels_last)
        if options.memory.checkpointing:
            for layer in getattr(self.text_encoder, "text_model", self.text_encoder).encoder.layers:
                memory.around(layer)
        self.tiles = options.memory.vae_tiling
        if self.tiles:
            self.vae.enable_tiling()
            self.vae.tile_sample_min_size, self.vae.tile_latent_min_size = memory.TILE, memory.TILE // FACTS.vae_factor
        self.native_size = native_size
        self._narrow = (
            self.device.type == "cpu" and unet.config.block_out_channels[0] // unet.config.attention_head_dim <= 16
        )
        self._plain_attention = False
        self._text_where = torch.device("cpu")

    @property
    def roots(self) -> Mapping[str, nn.Module]:
        return {"unet": self.unet, "text_encoder": self.text_encoder}

    def trainable(self) -> dict[str, nn.Module]:
        """Linear and convolution layers inside the blocks: all that the consumers of LoRA files know."""
        found: dict[str, nn.Module] = {}
        for name, module in self.unet.named_modules():
            inside = name.startswith(("down_blocks.", "mid_block.", "up_blocks."))
            if inside and isinstance(module, nn.Linear | nn.Conv2d):
                found[f"unet.{name}"] = module
        for name, module in self.text_encoder.named_modules():
            if isinstance(module, nn.Linear):
                found["text_encoder." + name.removeprefix("text_model.")] = module
        return found

    def fingerprint(self, part: str) -> str:
        model = {"vae": self.vae, "text": self.text_encoder}[part]
        digest = hashlib.sha256()
        if part == "text" and (self.settings.clip_skip, self.settings.caption_tokens) != (1, prompts.ROOM):
            digest.update(f"clip skip {self.settings.clip_skip}, {self.settings.caption_tokens} tokens".encode())
        if part == "vae" and self.tiles:
            digest.update(f"tiles of {memory.TILE} px".encode())
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> dict[str, Tensor]:
        self.vae.to(self.device)
        posterior = self.vae.encode(pixels.to(self.device)).latent_dist
        return {"mean": (posterior.mean * SCALING).cpu(), "std": (posterior.std * SCALING).cpu()}

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """{"states": [n, 77 k, width]}"""
        return {"states": self._captions(captions).cpu()}

    def _captions(self, captions: Sequence[str]) -> Tensor:
        """[n, 77 k, width]: captions as they stand, cut off at `caption_tokens`."""
        most = self.settings.caption_tokens // prompts.ROOM
        return self._states([prompts.chunks(prompts.plain(c), most, self.words) for c in captions], most)

    def _states(self, rows: Sequence[Sequence[prompts.Chunk]], length: int | None = None) -> Tensor:
        """[n, 77 k, width]: the hidden states after the final norm, chunk beside chunk, as SD 1.x and WebUIs read them.

        All rows get the length of the longest, or `length`, in chunks; what a row lacks is the empty prompt.
        """
        self._move_text(self.device)
        count = length or max(map(len, rows))
        empty = prompts.chunks(prompts.plain(""))
        flat = [chunk for row in rows for chunk in [*row, *empty * (count - len(row))]]
        ids = torch.tensor([c.ids for c in flat], device=self.device)
        if self.settings.clip_skip == 1:
            states = self.text_encoder(ids).last_hidden_state
        else:
            inner = getattr(self.text_encoder, "text_model", self.text_encoder)  # flat from transformers 5.6 on
            kept = self.text_encoder(ids, output_hidden_states=True).hidden_states
            if self.settings.clip_skip >= len(kept):
                raise UserError(f"clip_skip {self.settings.clip_skip}: this text encoder has {len(kept) - 1} layers")
            states = inner.final_layer_norm(kept[-self.settings.clip_skip])
        weights = torch.tensor([c.weights for c in flat], device=self.device)
        if (weights != 1).any():
            states = prompts.emphasise(states, weights)
        return states.reshape(len(rows), -1, states.shape[-1])

    def set_words(self, words: Mapping[str, Tensor]) -> None:
        embeddings = getattr(self.text_encoder, "text_model", self.text_encoder).embeddings
        table = embeddings.token_embedding
        if isinstance(table, WordTable):
            table = table.base
        self.words = numbered(words, table.num_embeddings)
        made = WordTable(table, list(words.values())).to(table.weight.device) if words else table
        embeddings.token_embedding = made

    @torch.no_grad()
    def vectors_of(self, text: str) -> Tensor:
        table = getattr(self.text_encoder, "text_model", self.text_encoder).embeddings.token_embedding.weight
        (chunk, *_) = prompts.chunks(prompts.plain(text))
        ids = [token for token in chunk.ids[1:-1] if token != chunk.ids[-1]]
        rows: Tensor = table[ids] if ids else table.mean(0, keepdim=True)
        return rows.detach().float().cpu()

    def _move_text(self, device: torch.device) -> None:
        if self._text_where != device:
            self.text_encoder.to(device)
            self._text_where = device

    def loss(self, batch: Batch, objective: diffusion.Objective) -> tuple[Tensor, int]:
        shape = tuple(batch.latents["mean"].shape)
        draws = noise.draw(shape, batch.generators, objective.timesteps, objective.noise, self.levels(objective))
        return self.losses(batch, objective, draws).sum(), shape[0]

    def losses(self, batch: Batch, objective: diffusion.Objective, draws: noise.Draws) -> Tensor:
        draws, mean, std = draws.to(self.device), batch.latents["mean"], batch.latents["std"]
        levels, times = self._schedule(objective).at(draws.u, self.device)
        x0 = mean.to(self.device) + std.to(self.device) * draws.posterior
        mixed = draws.noise if draws.perturbation is None else draws.noise + draws.perturbation
        states = self._captions(batch.captions) if batch.texts is None else batch.texts["states"]
        output = self.predict(diffusion.add_noise(x0, mixed, levels), times, states)
        masks = None if batch.masks is None else batch.masks.to(self.device)
        each = diffusion.loss_of(output, x0, draws, levels, objective, masks)
        return each if batch.weights is None else each * batch.weights.to(self.device)

    def levels(self, objective: diffusion.Objective) -> int | None:
        return len(self._schedule(objective))

    @staticmethod
    def _schedule(objective: diffusion.Objective) -> diffusion.Schedule:
        return diffusion.discrete(objective.prediction, zero_terminal_snr=objective.zero_terminal_snr)

    def predict(self, x_t: Tensor, t: Tensor, states: Tensor) -> Tensor:
        """The UNet's answer [n, 4, h, w] to noised latents, timesteps [n] and text states [n, 77, width]."""
        # A CPU's fused kernel is made for wide heads: at 8 wide, plain products took 0.6 of its time (256 tokens).
        plain = self._narrow and x_t.shape[-1] * x_t.shape[-2] <= 1024
        if plain != self._plain_attention:
            self._plain_attention = plain
            self.unet.set_attn_processor(AttnProcessor() if plain else AttnProcessor2_0())
        layout = torch.channels_last if self.device.type == "cpu" else torch.contiguous_format
        x_t = x_t.to(self.dtype).contiguous(memory_format=layout)
        answer: Tensor = self.unet(x_t, t, states.to(self.device, self.dtype), return_dict=False)[0]
        return answer

    words: prompts.Words = MappingProxyType({})

    def sampler(self, name: str | None, steps: int = 1) -> samplers.Sampler:
        return samplers.find_sampler(name, self.settings.prediction, steps)

    def generate(self, prompt: str, seed: int, sampling: Sampling) -> Image.Image:
        return self.draw(prompt, [seed], sampling)[0]

    @torch.no_grad()
    def draw(self, prompt: str, seeds: Sequence[int], sampling: Sampling) -> list[Image.Image]:
        """With classifier-free guidance (Ho & Salimans 2022); each picture's noise comes from its seed, on the CPU."""
        sampler = self.sampler(sampling.scheduler, sampling.steps)
        guided = sampling.cfg != 1.0
        texts = [sampling.negative, prompt] if guided else [prompt]
        states = self._states([prompts.chunks(prompts.weighted(text), words=self.words) for text in texts])
        states = states.repeat_interleave(len(seeds), 0)

        def answer(x: Tensor, t: Tensor) -> Tensor:
            x = x.repeat(2, 1, 1, 1) if guided else x
            out = self.predict(x, t.expand(len(x)), states).float()
            if not guided:
                return out
            without, with_prompt = out.chunk(2)
            return without + sampling.cfg * (with_prompt - without)

        width, height = (side // FACTS.vae_factor for side in sampling.size)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        drawn = torch.cat([torch.randn(1, FACTS.latent_channels, height, width, generator=g) for g in generators])
        start = None if sampling.start is None else self.encode_image(sampling.start[None])["mean"].to(self.device)
        zero = self.settings.zero_terminal_snr
        scheduler = samplers.build(sampler, self.settings.prediction, zero_terminal_snr=zero, schedule=SCHEDULE)
        x = samplers.sample(
            scheduler,
            sampler,
            sampling.steps,
            drawn.to(self.device),
            generators,
            answer,
            start=start,
            denoise=sampling.denoise,
        )
        return [self._picture(latents) for latents in x]

    def _picture(self, latents: Tensor) -> Image.Image:
        """[c, h, w], one at a time: at full size the VAE needs more memory than all else."""
        self.vae.to(self.device)
        pixels = self.vae.decode(latents[None] / SCALING, return_dict=False)[0][0]
        if not torch.isfinite(pixels).all():
            raise UserError("the picture came out as NaN", hint="use precision fp32 or bf16, or a lower LoRA strength")
        array = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        return Image.fromarray(array)

    @torch.no_grad()
    def image_features(self, pixels: Tensor) -> list[Tensor]:
        self.vae.to(self.device)
        maps: list[Tensor] = []
        hooks = [
            block.register_forward_hook(lambda _m, _i, out: maps.append(out.float().cpu()))
            for block in self.vae.encoder.down_blocks
        ]
        try:
            self.vae.encoder(pixels.to(self.device))
        finally:
            for hook in hooks:
                hook.remove()
        return maps

    def rest(self, *, text_encoder: bool) -> None:
        self.vae.to("cpu")
        if text_encoder:
            self._move_text(torch.device("cpu"))


def load(path: Path, options: LoadOptions) -> StableDiffusion1:
    """From one LDM `.safetensors` (memory-mapped) or a diffusers folder, and perhaps a separate VAE; else UserError."""
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    size = (512, 512)
    if path.is_dir():
        unet, vae, text = from_folder(path, with_vae=options.vae is None)
    else:
        unet, vae, text, size = from_file(path, with_vae=options.vae is None)
    if options.vae is not None:
        vae = load_vae(options.vae)
    assert vae is not None
    return StableDiffusion1(unet, vae, text, options, size)
