"""The VAE of Stable Diffusion 1.x and XL: a row for every parameter, and every spelling that its files have.

Facts: CompVis `ldm/modules/diffusionmodules/model.py` and AutoencoderKL of diffusers. The two families differ in what
the latents are multiplied with, and in the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.families.sd.rows import Handle, Row, Shapes, both, check_rows, from_rows, size_of, under

if TYPE_CHECKING:
    from torch import Tensor

VAE_PREFIX = "first_stage_model."
LEVELS = 4
RESNETS = 2
"""Residual blocks of a level of the encoder; in the decoder it is one more."""
GROUPS = 32
FACTOR = 8
"""Pixels that a latent stands for, along each side."""

# The attention in the form that some converters write: diffusers' leaf names under LDM's block names.
_ATTENTION_LEAVES = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "group_norm": "norm"}
_OLD_DIFFUSERS_LEAVES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def vae_rows(widths: tuple[int, ...], latents: int, prefix: str = VAE_PREFIX, *, quant: bool = True) -> list[Row]:
    """Every parameter of a VAE of these widths, with `latents` channels; none without widths. `quant`: it has the two
    1 x 1 convolutions around its latents, which those of 16 channels have not."""
    return under(prefix, _vae(widths, latents, quant))


def vae_config(widths: tuple[int, ...], latents: int, *, scaling: float, sample_size: int) -> dict[str, object]:
    """Arguments of diffusers' AutoencoderKL; `sample_size` in pixels."""
    return {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",) * LEVELS,
        "up_block_types": ("UpDecoderBlock2D",) * LEVELS,
        "block_out_channels": widths,
        "layers_per_block": RESNETS,
        "latent_channels": latents,
        "norm_num_groups": GROUPS,
        "sample_size": sample_size,
        "scaling_factor": scaling,
    }


def vae_widths(shapes: Shapes, file: Path | None) -> tuple[int, ...]:
    """Channels of the four levels, from the published names behind `VAE_PREFIX`."""
    keys = [f"{VAE_PREFIX}encoder.down.{level}.block.0.conv2.weight" for level in range(LEVELS)]
    return tuple(size_of(shapes, key, 0, file) for key in keys)


def vae_latents(shapes: Shapes, file: Path | None) -> int:
    """Channels of the latents, from the published name behind `VAE_PREFIX`."""
    return size_of(shapes, VAE_PREFIX + "decoder.conv_in.weight", 1, file)


def check_vae(shapes: Shapes, *, file: Path | None, tolerated: Callable[[str], bool], plain: str) -> tuple[int, ...]:
    """The widths of the VAE that `vae_from` would read; UserError, all faults at once, where it could not.

    `tolerated`: whether a key may stand there unused. `plain`: what to do about a file that is not as published.
    """
    names = vae_names(shapes, file)
    renamed = {name: shapes[key] for name, key in names.items()}
    widths = vae_widths(renamed, file)
    rows = vae_rows(widths, vae_latents(renamed, file))
    unknown = [name for name in renamed if not tolerated(name)]
    check_rows(renamed, {"VAE": rows}, unknown, file=file, plain=plain)
    return widths


def vae_from(handle: Handle, shapes: Shapes, *, file: Path | None = None) -> dict[str, Tensor]:
    """diffusers' state dict of a VAE in a file of its own, or inside a checkpoint; checked before by `check_vae`.

    Names may be LDM's, with `first_stage_model.` or without, or diffusers', old (`query`, `proj_attn`) or new (`to_q`).
    """
    names = vae_names(shapes, file)
    renamed = {name: shapes[key] for name, key in names.items()}
    return from_rows(handle, vae_rows(vae_widths(renamed, file), vae_latents(renamed, file)), names)


def vae_names(shapes: Shapes, file: Path | None) -> dict[str, str]:
    """Published key -> key in the file, of everything that belongs to its VAE."""
    if any(key.startswith(VAE_PREFIX) for key in shapes):
        return {published_name(key): key for key in shapes if key.startswith(VAE_PREFIX)}
    if not any(key.startswith("encoder.down_blocks.") for key in shapes):
        return {published_name(VAE_PREFIX + key): key for key in shapes}
    keys = [f"encoder.down_blocks.{level}.resnets.0.conv2.weight" for level in range(LEVELS)]
    widths = tuple(size_of(shapes, key, 0, file) for key in keys)
    rename = {row.hf: row.ldm for row in vae_rows(widths, size_of(shapes, "decoder.conv_in.weight", 1, file))}
    return {rename.get(modern_name(key), key): key for key in shapes}


def published_name(key: str) -> str:
    """The published name of a key; another name for the VAE's attention becomes the published one."""
    block, found, leaf = key.partition(".mid.attn_1.")
    layer, _, end = leaf.rpartition(".")
    return f"{block}.mid.attn_1.{_ATTENTION_LEAVES[layer]}.{end}" if found and layer in _ATTENTION_LEAVES else key


def vae_layout_of(state: Mapping[str, Tensor]) -> tuple[tuple[int, ...], int]:
    """(widths, channels of the latents) of diffusers' state dict."""
    widths = tuple(state[f"encoder.down_blocks.{n}.resnets.0.conv2.weight"].shape[0] for n in range(LEVELS))
    return widths, state["decoder.conv_in.weight"].shape[1]


def modern_name(key: str) -> str:
    """diffusers' name of today for a key of its VAE; the folders published with SD 1.x have the old names of the
    attention.
    """
    block, found, leaf = key.partition(".mid_block.attentions.0.")
    layer, _, end = leaf.rpartition(".")
    return f"{block}{found}{_OLD_DIFFUSERS_LEAVES[layer]}.{end}" if layer in _OLD_DIFFUSERS_LEAVES else key


def _resnet(ldm: str, hf: str, given: int, width: int) -> Iterator[Row]:
    yield from both(f"{ldm}.norm1", f"{hf}.norm1", (given,))
    yield from both(f"{ldm}.conv1", f"{hf}.conv1", (width, given, 3, 3))
    yield from both(f"{ldm}.norm2", f"{hf}.norm2", (width,))
    yield from both(f"{ldm}.conv2", f"{hf}.conv2", (width, width, 3, 3))
    if given != width:
        yield from both(f"{ldm}.nin_shortcut", f"{hf}.conv_shortcut", (width, given, 1, 1))


def _middle(part: str, width: int) -> Iterator[Row]:
    """Residual block, attention, residual block."""
    ldm, hf = f"{part}.mid", f"{part}.mid_block"
    yield from _resnet(f"{ldm}.block_1", f"{hf}.resnets.0", width, width)
    yield from both(f"{ldm}.attn_1.norm", f"{hf}.attentions.0.group_norm", (width,))
    for old, new in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")):
        yield from both(f"{ldm}.attn_1.{old}", f"{hf}.attentions.0.{new}", (width, width, 1, 1), flat=True)
    yield from _resnet(f"{ldm}.block_2", f"{hf}.resnets.1", width, width)


def _vae(widths: tuple[int, ...], latents: int, quant: bool) -> Iterator[Row]:
    if not widths:
        return
    yield from both("encoder.conv_in", "encoder.conv_in", (widths[0], 3, 3, 3))
    width = widths[0]
    for level, wide in enumerate(widths):
        ldm, hf = f"encoder.down.{level}", f"encoder.down_blocks.{level}"
        for j in range(RESNETS):
            yield from _resnet(f"{ldm}.block.{j}", f"{hf}.resnets.{j}", width, wide)
            width = wide
        if level < LEVELS - 1:
            yield from both(f"{ldm}.downsample.conv", f"{hf}.downsamplers.0.conv", (width, width, 3, 3))
    yield from _middle("encoder", width)
    yield from both("encoder.norm_out", "encoder.conv_norm_out", (width,))
    yield from both("encoder.conv_out", "encoder.conv_out", (2 * latents, width, 3, 3))  # mean and log variance
    if quant:
        yield from both("quant_conv", "quant_conv", (2 * latents, 2 * latents, 1, 1))
        yield from both("post_quant_conv", "post_quant_conv", (latents, latents, 1, 1))
    yield from both("decoder.conv_in", "decoder.conv_in", (width, latents, 3, 3))
    yield from _middle("decoder", width)
    for block, wide in enumerate(reversed(widths)):
        ldm, hf = f"decoder.up.{LEVELS - 1 - block}", f"decoder.up_blocks.{block}"  # LDM counts from the finest level
        for j in range(RESNETS + 1):
            yield from _resnet(f"{ldm}.block.{j}", f"{hf}.resnets.{j}", width, wide)
            width = wide
        if block < LEVELS - 1:
            yield from both(f"{ldm}.upsample.conv", f"{hf}.upsamplers.0.conv", (width, width, 3, 3))
    yield from both("decoder.norm_out", "decoder.conv_norm_out", (width,))
    yield from both("decoder.conv_out", "decoder.conv_out", (3, width, 3, 3))
