"""The topology of Stable Diffusion 1.x, and a row for every parameter of its three parts, generated from the widths.

Facts: CompVis `ldm/modules/diffusionmodules/{openaimodel,model}.py` with `configs/stable-diffusion/v1-inference.yaml`,
and the classes UNet2DConditionModel and AutoencoderKL of diffusers, CLIPTextModel of transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model.transformer.text_model."

LEVELS = 4
"""Of the UNet and of the VAE; attention stands in the UNet's levels 0 to 2 and in its middle."""
RESNETS = 2
"""Residual blocks of a level going down; going up it is one more."""
HEADS = 8
GROUPS = 32


@dataclass(frozen=True)
class Sd1Layout:
    """The widths that tell one Stable Diffusion 1.x model from another; the rest of the topology is fixed."""

    unet_widths: tuple[int, ...]
    """Channels of the four levels: 320, 640, 1280, 1280 in v1-5."""
    context_width: int
    """Of the text embedding that cross-attention reads: 768 in v1-5."""
    in_channels: int
    out_channels: int
    vae_widths: tuple[int, ...]
    """Channels of the four levels: 128, 256, 512, 512 in v1-5; () when the file holds no VAE."""
    latent_channels: int
    text_width: int
    text_layers: int
    text_intermediate: int
    vocab: int
    positions: int


class Row(NamedTuple):
    """One parameter: its LDM key, its diffusers/transformers key, its shape in the LDM layout."""

    ldm: str
    hf: str
    shape: tuple[int, ...]


def unet_table(layout: Sd1Layout) -> list[tuple[str, str]]:
    """(LDM key, diffusers key) of every parameter of the UNet."""
    return [(row.ldm, row.hf) for row in unet_rows(layout)]


def vae_table(layout: Sd1Layout) -> list[tuple[str, str]]:
    """(LDM key, diffusers key) of every parameter of the VAE."""
    return [(row.ldm, row.hf) for row in vae_rows(layout.vae_widths, layout.latent_channels)]


def text_table(layout: Sd1Layout) -> list[tuple[str, str]]:
    """(LDM key, published transformers key, which begins `text_model.`) of every parameter of the text encoder."""
    return [(row.ldm, row.hf) for row in text_rows(layout)]


def unet_rows(layout: Sd1Layout) -> list[Row]:
    """Every parameter of the UNet, in the order of the data's way through it."""
    return [Row(UNET_PREFIX + ldm, hf, shape) for ldm, hf, shape in _unet(layout)]


def vae_rows(widths: tuple[int, ...], latents: int, prefix: str = VAE_PREFIX) -> list[Row]:
    """Every parameter of a VAE of these widths."""
    return [Row(prefix + ldm, hf, shape) for ldm, hf, shape in _vae(widths, latents)]


def text_rows(layout: Sd1Layout) -> list[Row]:
    """Every parameter of the CLIP text encoder; both layouts share the names."""
    return [Row(TEXT_PREFIX + name, "text_model." + name, shape) for name, _, shape in _text(layout)]


def unet_config(layout: Sd1Layout) -> dict[str, object]:
    """Arguments of diffusers' UNet2DConditionModel."""
    return {
        "sample_size": 64,
        "in_channels": layout.in_channels,
        "out_channels": layout.out_channels,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "block_out_channels": layout.unet_widths,
        "layers_per_block": RESNETS,
        "cross_attention_dim": layout.context_width,
        "attention_head_dim": HEADS,  # diffusers' name for the number of heads
        "norm_num_groups": GROUPS,
    }


def vae_config(layout: Sd1Layout) -> dict[str, object]:
    """Arguments of diffusers' AutoencoderKL."""
    return vae_config_of(layout.vae_widths, layout.latent_channels)


def vae_config_of(widths: tuple[int, ...], latent_channels: int = 4) -> dict[str, object]:
    """Arguments of diffusers' AutoencoderKL, of a VAE in a file of its own."""
    return {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",) * LEVELS,
        "up_block_types": ("UpDecoderBlock2D",) * LEVELS,
        "block_out_channels": widths,
        "layers_per_block": RESNETS,
        "latent_channels": latent_channels,
        "norm_num_groups": GROUPS,
        "sample_size": 512,
        "scaling_factor": 0.18215,
    }


def text_config(layout: Sd1Layout) -> dict[str, object]:
    """Arguments of transformers' CLIPTextConfig."""
    return {
        "vocab_size": layout.vocab,
        "hidden_size": layout.text_width,
        "intermediate_size": layout.text_intermediate,
        "num_hidden_layers": layout.text_layers,
        "num_attention_heads": max(1, layout.text_width // 64),
        "max_position_embeddings": layout.positions,
        "hidden_act": "quick_gelu",
        "projection_dim": layout.text_width,
        "bos_token_id": layout.vocab - 2,
        "eos_token_id": layout.vocab - 1,
        "pad_token_id": layout.vocab - 1,
    }


Names: TypeAlias = tuple[str, str, tuple[int, ...]]
"""LDM key and diffusers key without the part's prefix, and the shape."""


def _both(ldm: str, hf: str, weight: tuple[int, ...]) -> Iterator[Names]:
    """A layer with a weight and a bias; the bias is as long as the weight's first axis."""
    yield ldm + ".weight", hf + ".weight", weight
    yield ldm + ".bias", hf + ".bias", weight[:1]


def _unet_resnet(ldm: str, hf: str, given: int, width: int, time: int) -> Iterator[Names]:
    yield from _both(f"{ldm}.in_layers.0", f"{hf}.norm1", (given,))
    yield from _both(f"{ldm}.in_layers.2", f"{hf}.conv1", (width, given, 3, 3))
    yield from _both(f"{ldm}.emb_layers.1", f"{hf}.time_emb_proj", (width, time))
    yield from _both(f"{ldm}.out_layers.0", f"{hf}.norm2", (width,))
    yield from _both(f"{ldm}.out_layers.3", f"{hf}.conv2", (width, width, 3, 3))
    if given != width:
        yield from _both(f"{ldm}.skip_connection", f"{hf}.conv_shortcut", (width, given, 1, 1))


def _unet_attention(ldm: str, hf: str, width: int, context: int) -> Iterator[Names]:
    """One spatial transformer; the two layouts share the names inside."""
    yield from _both(f"{ldm}.norm", f"{hf}.norm", (width,))
    yield from _both(f"{ldm}.proj_in", f"{hf}.proj_in", (width, width, 1, 1))
    old, new = f"{ldm}.transformer_blocks.0", f"{hf}.transformer_blocks.0"
    for attention, source in (("attn1", width), ("attn2", context)):
        for name, size in (("to_q", width), ("to_k", source), ("to_v", source)):
            yield f"{old}.{attention}.{name}.weight", f"{new}.{attention}.{name}.weight", (width, size)
        yield from _both(f"{old}.{attention}.to_out.0", f"{new}.{attention}.to_out.0", (width, width))
    yield from _both(f"{old}.ff.net.0.proj", f"{new}.ff.net.0.proj", (8 * width, width))  # GEGLU: value and gate
    yield from _both(f"{old}.ff.net.2", f"{new}.ff.net.2", (width, 4 * width))
    for norm in ("norm1", "norm2", "norm3"):
        yield from _both(f"{old}.{norm}", f"{new}.{norm}", (width,))
    yield from _both(f"{ldm}.proj_out", f"{hf}.proj_out", (width, width, 1, 1))


def _unet(layout: Sd1Layout) -> Iterator[Names]:
    widths, context, time = layout.unet_widths, layout.context_width, 4 * layout.unet_widths[0]
    yield from _both("time_embed.0", "time_embedding.linear_1", (time, widths[0]))
    yield from _both("time_embed.2", "time_embedding.linear_2", (time, time))
    yield from _both("input_blocks.0.0", "conv_in", (widths[0], layout.in_channels, 3, 3))
    width, skips = widths[0], [widths[0]]  # channels now, and of what the way up will concatenate
    for level, wide in enumerate(widths):
        for j in range(RESNETS):
            ldm, hf = f"input_blocks.{3 * level + j + 1}", f"down_blocks.{level}"
            yield from _unet_resnet(f"{ldm}.0", f"{hf}.resnets.{j}", width, wide, time)
            width = wide
            if level < LEVELS - 1:
                yield from _unet_attention(f"{ldm}.1", f"{hf}.attentions.{j}", width, context)
            skips.append(width)
        if level < LEVELS - 1:
            ldm, hf = f"input_blocks.{3 * level + 3}.0.op", f"down_blocks.{level}.downsamplers.0.conv"
            yield from _both(ldm, hf, (width, width, 3, 3))
            skips.append(width)
    yield from _unet_resnet("middle_block.0", "mid_block.resnets.0", width, width, time)
    yield from _unet_attention("middle_block.1", "mid_block.attentions.0", width, context)
    yield from _unet_resnet("middle_block.2", "mid_block.resnets.1", width, width, time)
    for block, wide in enumerate(reversed(widths)):
        for j in range(RESNETS + 1):
            ldm, hf = f"output_blocks.{3 * block + j}", f"up_blocks.{block}"
            yield from _unet_resnet(f"{ldm}.0", f"{hf}.resnets.{j}", width + skips.pop(), wide, time)
            width = wide
            if block > 0:
                yield from _unet_attention(f"{ldm}.1", f"{hf}.attentions.{j}", width, context)
        if block < LEVELS - 1:  # the upsampler stands in the last output block, after the attention if there is one
            ldm = f"output_blocks.{3 * block + RESNETS}.{2 if block else 1}.conv"
            yield from _both(ldm, f"up_blocks.{block}.upsamplers.0.conv", (width, width, 3, 3))
    yield from _both("out.0", "conv_norm_out", (width,))
    yield from _both("out.2", "conv_out", (layout.out_channels, width, 3, 3))


def _vae_resnet(ldm: str, hf: str, given: int, width: int) -> Iterator[Names]:
    yield from _both(f"{ldm}.norm1", f"{hf}.norm1", (given,))
    yield from _both(f"{ldm}.conv1", f"{hf}.conv1", (width, given, 3, 3))
    yield from _both(f"{ldm}.norm2", f"{hf}.norm2", (width,))
    yield from _both(f"{ldm}.conv2", f"{hf}.conv2", (width, width, 3, 3))
    if given != width:
        yield from _both(f"{ldm}.nin_shortcut", f"{hf}.conv_shortcut", (width, given, 1, 1))


def _vae_middle(part: str, width: int) -> Iterator[Names]:
    """Residual block, attention, residual block; the attention is 1 x 1 convolutions in LDM, linear layers in
    diffusers.
    """
    ldm, hf = f"{part}.mid", f"{part}.mid_block"
    yield from _vae_resnet(f"{ldm}.block_1", f"{hf}.resnets.0", width, width)
    yield from _both(f"{ldm}.attn_1.norm", f"{hf}.attentions.0.group_norm", (width,))
    for old, new in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")):
        yield from _both(f"{ldm}.attn_1.{old}", f"{hf}.attentions.0.{new}", (width, width, 1, 1))
    yield from _vae_resnet(f"{ldm}.block_2", f"{hf}.resnets.1", width, width)


def _vae(widths: tuple[int, ...], latents: int) -> Iterator[Names]:
    if not widths:
        return
    yield from _both("encoder.conv_in", "encoder.conv_in", (widths[0], 3, 3, 3))
    width = widths[0]
    for level, wide in enumerate(widths):
        ldm, hf = f"encoder.down.{level}", f"encoder.down_blocks.{level}"
        for j in range(RESNETS):
            yield from _vae_resnet(f"{ldm}.block.{j}", f"{hf}.resnets.{j}", width, wide)
            width = wide
        if level < LEVELS - 1:
            yield from _both(f"{ldm}.downsample.conv", f"{hf}.downsamplers.0.conv", (width, width, 3, 3))
    yield from _vae_middle("encoder", width)
    yield from _both("encoder.norm_out", "encoder.conv_norm_out", (width,))
    yield from _both("encoder.conv_out", "encoder.conv_out", (2 * latents, width, 3, 3))  # mean and log variance
    yield from _both("quant_conv", "quant_conv", (2 * latents, 2 * latents, 1, 1))
    yield from _both("post_quant_conv", "post_quant_conv", (latents, latents, 1, 1))
    yield from _both("decoder.conv_in", "decoder.conv_in", (width, latents, 3, 3))
    yield from _vae_middle("decoder", width)
    for block, wide in enumerate(reversed(widths)):
        ldm, hf = f"decoder.up.{LEVELS - 1 - block}", f"decoder.up_blocks.{block}"  # LDM counts from the finest level
        for j in range(RESNETS + 1):
            yield from _vae_resnet(f"{ldm}.block.{j}", f"{hf}.resnets.{j}", width, wide)
            width = wide
        if block < LEVELS - 1:
            yield from _both(f"{ldm}.upsample.conv", f"{hf}.upsamplers.0.conv", (width, width, 3, 3))
    yield from _both("decoder.norm_out", "decoder.conv_norm_out", (width,))
    yield from _both("decoder.conv_out", "decoder.conv_out", (3, width, 3, 3))


def _text(layout: Sd1Layout) -> Iterator[Names]:
    """CLIP's text model; both layouts share the names."""
    width, inner = layout.text_width, layout.text_intermediate

    def same(name: str, weight: tuple[int, ...]) -> Iterator[Names]:
        return _both(name, name, weight)

    for name, count in (("token", layout.vocab), ("position", layout.positions)):
        key = f"embeddings.{name}_embedding.weight"
        yield key, key, (count, width)
    for n in range(layout.text_layers):
        layer = f"encoder.layers.{n}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from same(f"{layer}.self_attn.{name}", (width, width))
        yield from same(f"{layer}.layer_norm1", (width,))
        yield from same(f"{layer}.mlp.fc1", (inner, width))
        yield from same(f"{layer}.mlp.fc2", (width, inner))
        yield from same(f"{layer}.layer_norm2", (width,))
    yield from same("final_layer_norm", (width,))
