"""What holds a flow family against diffusers: the same narrow model in both hands, asked for the same.

A test file says in a `Case` how its family is asked; the checks are the same for all. They assert by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import tiny
from lora_scripts.adapters.inject import inject, remove
from lora_scripts.adapters.layer import LoraLayer
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.compute import memory
from lora_scripts.config.load import load_config
from lora_scripts.config.schema import TrainConfig
from lora_scripts.families.base import Batch, LoadOptions, Sampling
from lora_scripts.families.facts import Facts
from lora_scripts.families.flow.transformer import Transformer
from lora_scripts.families.sd.rows import to_rows
from lora_scripts.families.table import identify, load_family
from lora_scripts.formats.header import read_header
from lora_scripts.loras import dialects
from lora_scripts.loras.file import save
from lora_scripts.losses.noise import Draws
from movers import CopyMover
from runs import stopped
from tiny_flow import Models

PROMPTS = ("the weather in Paris is sunny", "hello")
OPTIONS = LoadOptions(torch.device("cpu"), torch.float32)


def levels(theirs: Any, steps: int, tokens: int) -> None:
    """Tells their scheduler so many steps, for a sampler that is the same for every size."""
    theirs.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps))


def latents(theirs: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation by their VAE of pictures [n, 3, h, w], as FLUX.1's pipelines normalise them."""
    posterior, config = theirs.vae.encode(pixels).latent_dist, theirs.vae.config
    return (posterior.mean - config.shift_factor) * config.scaling_factor, posterior.std * config.scaling_factor


def film_latents(theirs: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """As `latents`, by a VAE of films: of one frame."""
    posterior, config = theirs.vae.encode(pixels.unsqueeze(2)).latent_dist, theirs.vae.config
    mean, std = (torch.tensor(numbers).view(1, -1, 1, 1) for numbers in (config.latents_mean, config.latents_std))
    return (posterior.mean.squeeze(2) - mean) / std, posterior.std.squeeze(2) / std


@dataclass(frozen=True)
class Case:
    """A family; nothing but `facts`, `files` and `layout` is ours."""

    facts: Facts
    made: ModuleType
    """Its narrow models: `tiny_...`."""
    files: Transformer[Any]
    layout: ModuleType
    """`families.<name>.layout`."""
    answer: Callable[[Any, Tensor, Tensor, str], Tensor]
    """(their pipeline, latents [1, c, h, w], noise level [1], caption) -> their transformer's velocity, as the latents.
    """
    latents: Callable[[Any, Tensor], tuple[Tensor, Tensor]] = latents
    levels: Callable[[Any, int, int], None] = levels
    """(their pipeline, steps, tokens)."""


def fixtures(facts: Facts, made: ModuleType) -> tuple[Any, Any]:
    """`base` and `family` for a test file: the model as one file with its parts beside it, and as we load it."""

    @pytest.fixture(scope="module")
    def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
        path: Path = made.write_base(tmp_path_factory.mktemp(facts.name) / "base.safetensors")
        return path

    @pytest.fixture(scope="module")
    def family(base: Path) -> Any:
        return load_family(facts, base, replace(OPTIONS, **made.beside(base.parent)))

    return base, family


def pipeline_of(kind: Any, made: Models, scheduler: Any) -> Any:
    """The same model in diffusers' hands."""
    parts = {"transformer": made.transformer, "vae": made.vae, "text_encoder": made.text, "tokenizer": made.tokenizer}
    pipe = kind(scheduler=scheduler, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def template(name: str, **given: object) -> TrainConfig:
    """`configs/<name>_style.yaml`, with paths that are there for those that a person fills in."""
    path = Path(__file__).parents[1] / "configs" / f"{name}_style.yaml"
    keys = {key: path for key in ("metadata_path", "base_model", "text_encoder", "vae")}
    return load_config(path, [f"{key}={v}" for key, v in {**keys, "train_data_dir": path.parent, **given}.items()])


# --- numbers ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def loss_of_a_batch(case: Case, family: Any, theirs: Any, steps: int) -> None:
    """Two pictures, the one at the last of so many steps and the other at a fifth of the way: levels and losses."""
    generator = torch.Generator().manual_seed(5)
    pixels, tokens = torch.rand(2, 3, 64, 96, generator=generator) * 2 - 1, 24
    mean, std = case.latents(theirs, pixels)
    noise, posterior = (torch.randn(mean.shape, generator=generator) for _ in range(2))
    u = torch.tensor([1 / steps, 0.8], dtype=torch.float64)
    draws = Draws(u, noise, posterior)
    ours = family.losses(batch_of(family, pixels, PROMPTS), family.objective, draws)
    missed = family.missed(batch_of(family, pixels, PROMPTS), family.objective, draws)

    case.levels(theirs, steps, tokens)
    x0 = mean + std * posterior
    for row, step in enumerate((steps - 1, steps // 5)):
        t, one = theirs.scheduler.timesteps[step], slice(row, row + 1)
        x_t = theirs.scheduler.scale_noise(x0[one], t[None], noise[one])
        answer = case.answer(theirs, x_t, t[None] / 1000, PROMPTS[row])
        left = noise[one] - x0[one] - answer
        torch.testing.assert_close(missed[one], left, rtol=1e-4, atol=5e-5)  # of numbers around 1
        error = left.square().mean()
        sigma = family.objective.sigmas.at(u, tokens)[row]
        assert abs(theirs.scheduler.sigmas[step].item() - sigma.item()) < 1e-6
        assert abs(ours[row].item() - error.item()) < 1e-5 * error.item()


@torch.no_grad()
def neighbour(family: Any) -> None:
    """A longer caption in the same batch changes nothing of a picture's loss."""
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    draws = Draws(torch.tensor([0.4, 0.6], dtype=torch.float64), torch.ones(2, 16, 8, 8), torch.zeros(2, 16, 8, 8))
    longer = f"{PROMPTS[0]} {PROMPTS[0]} how are you hello hello hello"
    both = family.losses(batch_of(family, pixels, [longer, "hello"]), family.objective, draws)
    alone = batch_of(family, pixels[1:], ["hello"])
    single = family.losses(alone, family.objective, Draws(draws.u[1:], draws.noise[1:], draws.posterior[1:]))
    assert abs(both[1].item() - single[0].item()) < 1e-5


def block_by_block(family: Any, patch: pytest.MonkeyPatch) -> None:
    """A text encoder for which a card has no room gives the same bits, and only two blocks of it are ever there."""
    whole, movers, bring = family.encode_text(["a red house", "sea"]), list[CopyMover](), memory.bring

    def mover(device: torch.device) -> CopyMover:
        movers.append(CopyMover())
        return movers[-1]

    patch.setattr(memory, "PlainMover", mover)
    patch.setattr(memory, "bring", lambda model, device: bring(model, device, room=0))
    family.encoder.rest()
    same(family.encode_text(["a red house", "sea"]), whole)
    family.encoder.rest()
    (one,) = movers
    assert one.begun >= 2 and one.most <= 2


def preview(case: Case, family: Any, theirs: Any, draw: Callable[[Tensor, dict[str, int]], Any], **asked: Any) -> None:
    """`draw`: (noise, how many steps of which size) -> the picture of their pipeline."""
    ours = family.generate(PROMPTS[0], 7, Sampling(steps=4, size=(64, 96), **asked))
    with torch.no_grad():
        shape = case.latents(theirs, torch.zeros(1, 3, 96, 64))[0].shape
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    want = draw(noise, {"height": 96, "width": 64, "num_inference_steps": 4})
    assert ours.size == (64, 96)
    alike(ours, want)


def alike(ours: Any, want: Any) -> None:
    """Two pictures, but for 2 of 255 from rounding."""
    difference = np.abs(np.asarray(ours, dtype=int) - np.asarray(want, dtype=int))
    assert difference.max() <= 2


# --- files ------------------------------------------------------------------------------------------------------------


def same(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> None:
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in two)


def one_file(
    case: Case,
    path: Path,
    prefix: str,
    own: Any,
    convert: Callable[[dict[str, Tensor]], Mapping[str, Tensor]] | None = None,
    aside: str | tuple[str, ...] = "no key",
) -> None:
    """The file `path` of the transformer `own` is known, read as their converter reads it, and goes back as it was.

    Keys behind the prefix that start with `aside` are another model's.
    """
    assert identify(path) is case.facts.checkpoint
    state = case.files.load(path, torch.float32).state_dict()
    before = {key.removeprefix(prefix): value for key, value in load_file(path).items()}
    before = {key: value for key, value in before.items() if not key.startswith(aside)}
    if convert is not None:
        same(state, convert(dict(before)))
    same(state, own.state_dict())
    layout = case.layout.layout_of({key: value.shape for key, value in before.items()}, path)
    same(before, to_rows(case.layout.rows(layout), state))


def save_own(facts: Facts, weights: Mapping[str, LoraWeights], path: Path) -> dict[str, Tensor]:
    """The tensors of a LoRA as we write it."""
    form = dialects.own_form(weights, facts.names(), torch.float32)
    save(path, form.tensors, form.metadata)
    return form.tensors


@torch.no_grad()
def drawn_with(case: Case, family: Any, theirs: Any, weights: dict[str, LoraWeights], path: Path) -> None:
    """With the LoRA `weights`, of alpha 0.5, in the file `path` diffusers' transformer answers what ours answers."""
    shape = case.latents(theirs, torch.zeros(1, 3, 64, 64))[0].shape
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    sigma, texts = torch.tensor([0.6]), family.encode_text(["hello"])
    bare, ours = predicted(family, weights, x, sigma, texts)
    theirs.load_lora_weights(str(path), adapter_name="mine")
    answer = case.answer(theirs, x, sigma, "hello")
    theirs.unload_lora_weights()
    size = (ours - bare).abs().max()
    assert size > 1e-2 and (answer - ours).abs().max() < 1e-4 * size


def trained(folder: Path, data: Path, tmp_path: Path, **more: object) -> Path:
    """What a step on a base that is stored in fp8, with recomputed blocks, has written."""
    keys = {"gradient_checkpointing": "true", "precision": "bf16", "base_precision": "fp8", **more}
    stopped(tiny.write_config(tmp_path, base_model=folder, train_data_dir=data, **keys), 1)
    path = tmp_path / "out" / "out-step000001.safetensors"
    assert path.exists()
    return path


# --- parts ------------------------------------------------------------------------------------------------------------


def batch_of(family: Any, pixels: Tensor, captions: Sequence[str]) -> Batch:
    """As the loop gives it."""
    latents, texts = family.encode_image(pixels), family.encode_text(captions)
    return Batch(latents, captions, texts, ["a", "b"], [torch.Generator().manual_seed(n) for n in range(2)])


def lora_of(facts: Facts, transformer: Any, rank: int = 2, alpha: float = 0.5) -> dict[str, LoraWeights]:
    """On every layer that LoRA files have names for, with alpha unlike the rank."""
    generator = torch.Generator().manual_seed(3)
    layers, weights = transformer.state_dict(), {}
    for path in facts.names().written:
        key = f"{path.removeprefix('transformer.')}.weight"
        if key in layers:
            out, inner = layers[key].shape
            down, up = (torch.randn(*shape, generator=generator) / 4 for shape in ((rank, inner), (out, rank)))
            weights[path] = LoraWeights(down, up, alpha)
    return weights


BLOCKS = ("transformer_blocks.", "single_transformer_blocks.", "layers.", "noise_refiner.", "context_refiner.")


def in_blocks(weights: Mapping[str, LoraWeights]) -> dict[str, LoraWeights]:
    """Without the layers around the blocks, which are not trained here."""
    start = tuple(f"transformer.{name}" for name in BLOCKS)
    return {path: w for path, w in weights.items() if path.startswith((*start, "text_encoder"))}


def predicted(
    family: Any, weights: dict[str, LoraWeights], x: Tensor, sigma: Tensor, texts: Any
) -> tuple[Tensor, Tensor]:
    """What the base answers alone, and with a LoRA of rank 2 and alpha 0.5."""
    bare = family.predict(x, sigma, texts)
    layers: Any = inject(family.roots, weights, lambda path, layer: LoraLayer(layer, 2, 0.5), reset=False)
    for path, layer in layers.items():
        layer.load({"down": weights[path].down, "up": weights[path].up})
    ours = family.predict(x, sigma, texts)
    remove(family.roots, layers)
    return bare, ours


def misplaced(facts: Facts, base: Path, parts: Callable[[Path], dict[str, object]]) -> list[str]:
    """Paths whose weight in the file, as `Facts.weights` finds it, is not the loaded model's."""
    tensors, wrong = load_file(base), []
    options: Any = {"device": torch.device("cpu"), "dtype": torch.float32, **parts(base.parent)}
    model: Any = load_family(facts, base, LoadOptions(**options))
    state = model.transformer.state_dict()
    for path, at in facts.weights(read_header(base), base).items():
        held = tensors[at.key]
        if at.share is not None:
            held = held[at.share.rows(len(held))]
        if at.swapped:
            held = torch.cat(held.chunk(2)[::-1])
        if not torch.equal(held, state[f"{path.removeprefix('transformer.')}.weight"]):
            wrong.append(path)
    return wrong
