"""A flow-matching transformer with language models as text encoders and a VAE: everything that such families share.

What differs is handed in: how the transformer is asked, how latents are normalised, which noise levels the sampler
draws with.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from lora_scripts.compute import memory
from lora_scripts.compute.resting import Late
from lora_scripts.errors import UserError
from lora_scripts.families import samplers
from lora_scripts.families.base import REFERENCE, Batch, Conditions, LoadOptions, Sampling
from lora_scripts.families.facts import Facts
from lora_scripts.families.flow.standby import Standby
from lora_scripts.families.flow.transformer import Transformer
from lora_scripts.families.sd.alike import Pictures
from lora_scripts.families.sd.latents import LatentCoder
from lora_scripts.families.sd.load import quieten
from lora_scripts.families.sd.steps import Answered, Lead, guided, led_away
from lora_scripts.losses import diffusion, noise
from lora_scripts.losses.diffusion import Levels
from lora_scripts.losses.flow import Sigmas

Ask = Callable[[Any, Tensor, Tensor, Conditions], Tensor]
"""(transformer, noised latents [n, c, h, w], noise levels [n], conditions) -> the velocity e - x0, as the latents.

The conditions are what is told of texts, and the latents [n, c, h', w'] of references, as of `Batch`."""
_TRAIN_STEPS = 1000
"""What diffusers' scheduler multiplies a noise level with."""


@dataclass(frozen=True)
class Way:
    """How a family's transformer is used."""

    blocks: Sequence[nn.Module]
    """In the order in which they are run."""
    inside: tuple[str, ...]
    """What the paths of layers begin with that LoRA may wrap."""
    channels: int
    """Of the latents."""
    ask: Ask
    sigmas: Sigmas
    patch: int
    """Latents that a token stands for, along each side."""
    distilled: bool = False
    """Whether it was made to answer at once as others do with a negative prompt: how close to the prompt is told to it,
    as "guidance" among the texts, or it knows no such thing."""
    lead: Lead = led_away
    """How previews follow their prompt."""
    idle: Sequence[nn.Module] = ()
    """Modules that are never asked here."""


def load(
    facts: Facts,
    files: Transformer[Any],
    encoder_of: Callable[[Any, torch.device, torch.dtype], Standby],
    path: Path,
    options: LoadOptions,
    way_of: Callable[[Any], Way],
) -> FlowFamily:
    """From the transformer's file, with text encoder and VAE in files of their own, or from a diffusers folder; else
    UserError. The text encoder is asked first, and gone before the transformer comes."""
    quieten()
    encoder = encoder_of(files.find_text(path, options.text_encoder), options.device, options.dtype)
    encoder.digest_of = options.digest
    if options.first is not None:
        options.first(encoder)
        encoder.rest()
    files.check(path, options.vae is None)
    vae = files.vae.load(options.vae or path, files.words)
    coder = LatentCoder(vae, files.vae.normal(vae), options.device, options.memory)
    transformer = files.load(path, options.dtype, lent=True)
    return FlowFamily(facts, transformer, way_of(transformer), encoder, coder, files.made_for(path), options)


def by_length(alike: Ask) -> Ask:
    """For a transformer that takes texts of one length at a time: `alike` is given those of a batch together that are
    as long, without what stands behind them."""

    def ask(transformer: Any, x: Tensor, sigma: Tensor, texts: Conditions) -> Tensor:
        lengths: list[int] = texts["lengths"].tolist()
        groups = [[row for row, own in enumerate(lengths) if own == length] for length in dict.fromkeys(lengths)]
        answers = [alike(transformer, x[g], sigma[g], {"states": texts["states"][g, : lengths[g[0]]]}) for g in groups]
        order = torch.tensor([row for group in groups for row in group]).argsort()
        return torch.cat(answers)[order.to(x.device)]

    return ask


def there(texts: Conditions) -> Tensor | None:
    """[n, tokens], on the CPU: which states are a text's, and not behind it; None: all are."""
    own = torch.arange(texts["states"].shape[1]) < texts["lengths"][:, None].cpu()
    return None if own.all() else own


def guidance(transformer: Any, sigma: Tensor, texts: Conditions) -> Tensor | None:
    """[n]: how close to the prompt a transformer is told to keep, 1 where nobody asks; None: it knows no such thing."""
    if not transformer.config.guidance_embeds:
        return None
    return texts["guidance"].expand(len(sigma)) if "guidance" in texts else torch.ones_like(sigma)


def references(conditions: Conditions) -> list[Tensor]:
    """Their latents, each [n, c, h, w], in their order."""
    return [conditions[name] for name in sorted(conditions) if name.startswith(REFERENCE)]


def behind(own: Tensor, others: Sequence[Tensor], dim: int = 0) -> Tensor:
    """One behind the other; no copy where there are no others."""
    return torch.cat([own, *others], dim) if others else own


def places(*sizes: int, on: torch.device) -> Tensor:
    """[tokens, axes]: where each token stands, along axes of these sizes."""
    return torch.cartesian_prod(*(torch.arange(size, device=on) for size in sizes))


class FlowFamily(Pictures):
    """As `families.base.PictureFamily`; its text encoder takes no words."""

    def __init__(
        self,
        facts: Facts,
        transformer: Any,
        way: Way,
        encoder: Standby,
        coder: LatentCoder,
        native_size: tuple[int, int],
        options: LoadOptions,
    ) -> None:
        if (asked := options.settings.get("prediction", "flow")) != "flow":
            raise UserError(f"prediction {asked}: {facts.words} predicts flow", hint="leave it out")
        self.facts, self.way, self.device, self.dtype = facts, way, options.device, options.dtype
        self.native_size, self.coder, self.encoder = native_size, coder, encoder
        self.transformer = transformer.requires_grad_(False).eval()
        memory.place(self.transformer, options.memory, self.device, self.dtype, way.blocks, idle=way.idle)

    @property
    def objective(self) -> diffusion.Objective:
        return diffusion.Objective("flow", sigmas=self.way.sigmas)

    @property
    def roots(self) -> Mapping[str, nn.Module]:
        return Late({"transformer": lambda: self.transformer, **self.encoder.roots})

    def trainable(self, parts: Collection[str] | None = None) -> dict[str, nn.Module]:
        alone = parts is not None and set(parts) == {"transformer"}
        return dict(self._layers()) | ({} if alone else dict(self.encoder.trainable()))

    def _layers(self) -> Iterator[tuple[str, nn.Module]]:
        for name, module in self.transformer.named_modules():
            if name.startswith(self.way.inside) and isinstance(module, nn.Linear):
                yield f"transformer.{name}", module

    def fingerprint(self, part: str) -> str:
        return self.coder.fingerprint() if part == "vae" else self.encoder.fingerprint()

    def encode_text(self, captions: Sequence[str], shown: Sequence[Tensor] = ()) -> dict[str, Tensor]:
        """As `Standby.encode`: what is worth keeping, for no LoRA counts in it."""
        return self.encoder.encode(captions, shown)

    # --- the loss ----------------------------------------------------------------------------------------------------

    def _answered(self, batch: Batch, objective: diffusion.Objective, draws: noise.Draws) -> Answered:
        made_from = {name: t for name, t in batch.latents.items() if name.startswith(REFERENCE)}
        texts = {**self.encoder.told(batch.captions, batch.texts), **made_from}
        draws, mean, std = draws.to(self.device), batch.latents["mean"], batch.latents["std"]
        x0 = mean.to(self.device) + std.to(self.device) * draws.posterior
        sigma = objective.sigmas.at(draws.u, self.tokens(x0)).float().to(self.device)
        levels = Levels(1 - sigma, sigma)
        return Answered(self.predict(diffusion.add_noise(x0, draws.mixed, levels), sigma, texts), x0, draws, levels)

    def levels(self, objective: diffusion.Objective) -> int | None:
        return None

    def tokens(self, latents: Tensor) -> int:
        """Of each picture among latents [n, c, h, w]."""
        return latents.shape[-2] * latents.shape[-1] // self.way.patch**2

    def predict(self, x_t: Tensor, sigma: Tensor, conditions: Conditions) -> Tensor:
        """The velocity e - x0, as the latents, to noised latents [n, c, h, w] and noise levels [n]."""
        texts = {k: t.to(self.device, self.dtype) if t.is_floating_point() else t for k, t in conditions.items()}
        return self.way.ask(self.transformer, x_t.to(self.dtype), sigma, texts)

    # --- pictures ----------------------------------------------------------------------------------------------------

    def sampler(self, name: str | None, steps: int = 1) -> samplers.Sampler:
        return samplers.find_sampler(name, "flow", steps)

    @torch.no_grad()
    def draw(self, prompt: str, seeds: Sequence[int], sampling: Sampling) -> list[Image.Image]:
        """Texts are read without weights: the language model was never shown any."""
        step = self.facts.size_step
        if any(side % step for side in sampling.size):
            wide, high = sampling.size
            raise UserError(f"size {wide}x{high}: sides must be multiples of {step}", hint="choose another size")
        sampler = self.sampler(sampling.scheduler, sampling.steps)
        cfg = 1.0 if self.way.distilled else sampling.cfg
        texts = [sampling.negative, prompt] if cfg != 1 else [prompt]
        self.encoder.remember(texts, sampling.references)
        told = dict(self.encoder.told(texts, self.encoder.encode(texts, sampling.references)))
        if self.way.distilled:
            told["guidance"] = torch.tensor([sampling.cfg])
        for number, pixels in enumerate(sampling.references):
            told[f"{REFERENCE}{number}"] = self.encode_image(pixels[None])["mean"].expand(len(texts), -1, -1, -1)
        width, height = (side // self.facts.vae_factor for side in sampling.size)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        shape = (1, self.way.channels, height, width)
        e = torch.cat([torch.randn(shape, generator=g) for g in generators]).to(self.device)
        start = None if sampling.start is None else self.encode_image(sampling.start[None])["mean"].to(self.device)
        answer = lambda x, t, c: self.predict(x, t / _TRAIN_STEPS, c)  # noqa: E731
        ask = guided(answer, told, len(seeds), cfg, self.way.lead)
        scheduler = samplers.build(
            sampler, "flow", zero_terminal_snr=False, schedule={"num_train_timesteps": _TRAIN_STEPS}
        )
        x = samplers.sample(
            scheduler,
            sampler,
            sampling.steps,
            e,
            generators,
            ask,
            start=start,
            denoise=sampling.denoise,
            sigmas=self.way.sigmas.steps(sampling.steps, self.tokens(e)),
        )
        return [self.coder.decode(latents) for latents in x]

    def rest(self, *, text_encoder: bool) -> None:
        self.coder.rest()
        if text_encoder:
            self.encoder.rest()

    # --- words: none -------------------------------------------------------------------------------------------------

    @property
    def word_widths(self) -> tuple[int, ...]:
        return ()

    def set_words(self, words: Mapping[str, Tensor]) -> None:
        if words:
            raise UserError(f"{self.facts.words} knows no new words", hint="leave them out of the LoRA")

    def vectors_of(self, text: str) -> Tensor:
        raise UserError(f"{self.facts.words} knows no new words", hint="leave them out of the LoRA")
