"""The UNet of Stable Diffusion 1.x and XL: a row for every parameter, generated from its widths and depths.

Facts: CompVis `ldm/modules/diffusionmodules/openaimodel.py` and Stability's generative-models
`sgm/modules/diffusionmodules/openaimodel.py`, and UNet2DConditionModel of diffusers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from lora_scripts.families.sd.rows import Row, both, under

UNET_PREFIX = "model.diffusion_model."
RESNETS = 2
"""Residual blocks of a level going down; going up it is one more."""
GROUPS = 32
"""Of the group norms; every width is a multiple of it."""
SIZES = 6
"""Numbers that XL is told of a picture: its height and width, the top and left of the crop, the crop's own size."""


@dataclass(frozen=True)
class UnetLayout:
    """What tells one UNet of the kind from another."""

    widths: tuple[int, ...]
    """Channels of each level, from the finest."""
    depths: tuple[int, ...]
    """Of each level, how many transformer blocks stand behind a residual block; 0: none. The middle has as many as the
    last level, and at least one."""
    heads: tuple[int, ...]
    """Attention heads of each level; the middle has as many as the last."""
    context_width: int
    """Of the text states that cross-attention reads."""
    in_channels: int = 4
    out_channels: int = 4
    linear: bool = False
    """Whether a transformer's way in and out is a matrix; else it is a 1 x 1 convolution."""
    pooled_width: int = 0
    """Of the pooled text state that is added to the time embedding with the sizes; 0: nothing is added."""
    size_width: int = 0
    """Channels that each of the `SIZES` numbers of a size takes up beside it."""

    @property
    def class_width(self) -> int:
        """Of the vector that is added to the time embedding (`label_emb`)."""
        return self.pooled_width + SIZES * self.size_width if self.pooled_width else 0

    @property
    def middle_depth(self) -> int:
        return max(1, self.depths[-1])


def unet_rows(layout: UnetLayout) -> list[Row]:
    """Every parameter, in the order of the data's way through it."""
    return under(UNET_PREFIX, _unet(layout))


def unet_config(layout: UnetLayout, sample_size: int) -> dict[str, object]:
    """Arguments of diffusers' UNet2DConditionModel; `sample_size` in latents."""
    with_text = [depth > 0 for depth in layout.depths]
    config: dict[str, object] = {
        "sample_size": sample_size,
        "in_channels": layout.in_channels,
        "out_channels": layout.out_channels,
        "down_block_types": tuple("CrossAttnDownBlock2D" if text else "DownBlock2D" for text in with_text),
        "up_block_types": tuple("CrossAttnUpBlock2D" if text else "UpBlock2D" for text in reversed(with_text)),
        "block_out_channels": layout.widths,
        "layers_per_block": RESNETS,
        "cross_attention_dim": layout.context_width,
        "attention_head_dim": _one(layout.heads),  # diffusers' name for the number of heads
        "norm_num_groups": GROUPS,
    }
    if layout.linear:
        config["use_linear_projection"] = True
    if layout.middle_depth > 1 or any(depth > 1 for depth in layout.depths):
        config["transformer_layers_per_block"] = tuple(max(1, depth) for depth in layout.depths)
    if layout.pooled_width:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": layout.size_width,
            "projection_class_embeddings_input_dim": layout.class_width,
        }
    return config


def _one(numbers: tuple[int, ...]) -> int | tuple[int, ...]:
    return numbers[0] if len(set(numbers)) == 1 else numbers


def block_of(path: str) -> str:
    """The published name of the block that a layer of the UNet is in: IN01 …, MID, OUT00 ….

    These are the input_blocks, middle_block and output_blocks of the LDM layout: a level has two (up: three) pairs of a
    residual block and a transformer; the downsampler is an input block of its own, the upsampler part of the last.
    """
    parts = path.removeprefix("unet.").split(".")
    if parts[0] == "mid_block":
        return "MID"
    level, kind, number = int(parts[1]), parts[2], int(parts[3])
    if parts[0] == "down_blocks":
        return f"IN{(RESNETS + 1) * level + (RESNETS + 1 if kind == 'downsamplers' else number + 1):02}"
    return f"OUT{(RESNETS + 1) * level + (RESNETS if kind == 'upsamplers' else number):02}"


def blocks(levels: int) -> tuple[str, ...]:
    """The names of all blocks that hold layers which a LoRA may change, on the data's way."""
    down = [f"IN{number:02}" for number in range(1, (RESNETS + 1) * levels)]
    up = [f"OUT{number:02}" for number in range((RESNETS + 1) * levels)]
    return (*down, "MID", *up)


def groups(blocks: Iterable[str]) -> dict[str, Callable[[str], bool]]:
    """Names for sets of layers, those blocks among them: our module path -> whether it belongs."""
    return {
        "attention": lambda p: (
            ".attn1." in p or ".attn2." in p or ".self_attn." in p or p.endswith(("proj_in", "proj_out"))
        ),
        "feed_forward": lambda p: ".ff.net." in p or ".mlp." in p,
        "conv": lambda p: ".resnets." in p or ".downsamplers." in p or ".upsamplers." in p,
        **{name: partial(_in_block, name) for name in blocks},
    }


def _in_block(name: str, path: str) -> bool:
    return path.startswith("unet.") and block_of(path) == name


def _resnet(ldm: str, hf: str, given: int, width: int, time: int) -> Iterator[Row]:
    yield from both(f"{ldm}.in_layers.0", f"{hf}.norm1", (given,))
    yield from both(f"{ldm}.in_layers.2", f"{hf}.conv1", (width, given, 3, 3))
    yield from both(f"{ldm}.emb_layers.1", f"{hf}.time_emb_proj", (width, time))
    yield from both(f"{ldm}.out_layers.0", f"{hf}.norm2", (width,))
    yield from both(f"{ldm}.out_layers.3", f"{hf}.conv2", (width, width, 3, 3))
    if given != width:
        yield from both(f"{ldm}.skip_connection", f"{hf}.conv_shortcut", (width, given, 1, 1))


def _transformer(ldm: str, hf: str, width: int, depth: int, layout: UnetLayout) -> Iterator[Row]:
    """One spatial transformer; the two layouts share the names inside."""
    around = (width, width) if layout.linear else (width, width, 1, 1)
    yield from both(f"{ldm}.norm", f"{hf}.norm", (width,))
    yield from both(f"{ldm}.proj_in", f"{hf}.proj_in", around)
    for number in range(depth):
        old, new = f"{ldm}.transformer_blocks.{number}", f"{hf}.transformer_blocks.{number}"
        for attention, source in (("attn1", width), ("attn2", layout.context_width)):
            for name, size in (("to_q", width), ("to_k", source), ("to_v", source)):
                yield Row(f"{old}.{attention}.{name}.weight", f"{new}.{attention}.{name}.weight", (width, size))
            yield from both(f"{old}.{attention}.to_out.0", f"{new}.{attention}.to_out.0", (width, width))
        yield from both(f"{old}.ff.net.0.proj", f"{new}.ff.net.0.proj", (8 * width, width))  # GEGLU: value and gate
        yield from both(f"{old}.ff.net.2", f"{new}.ff.net.2", (width, 4 * width))
        for norm in ("norm1", "norm2", "norm3"):
            yield from both(f"{old}.{norm}", f"{new}.{norm}", (width,))
    yield from both(f"{ldm}.proj_out", f"{hf}.proj_out", around)


def _unet(layout: UnetLayout) -> Iterator[Row]:
    widths, depths, time = layout.widths, layout.depths, 4 * layout.widths[0]
    last, pairs = len(widths) - 1, RESNETS + 1  # an LDM block of each level for every residual block, and one more
    yield from both("time_embed.0", "time_embedding.linear_1", (time, widths[0]))
    yield from both("time_embed.2", "time_embedding.linear_2", (time, time))
    if layout.class_width:
        yield from both("label_emb.0.0", "add_embedding.linear_1", (time, layout.class_width))
        yield from both("label_emb.0.2", "add_embedding.linear_2", (time, time))
    yield from both("input_blocks.0.0", "conv_in", (widths[0], layout.in_channels, 3, 3))
    width, skips = widths[0], [widths[0]]  # channels now, and of what the way up will concatenate
    for level, wide in enumerate(widths):
        for j in range(RESNETS):
            ldm, hf = f"input_blocks.{pairs * level + j + 1}", f"down_blocks.{level}"
            yield from _resnet(f"{ldm}.0", f"{hf}.resnets.{j}", width, wide, time)
            width = wide
            if depths[level]:
                yield from _transformer(f"{ldm}.1", f"{hf}.attentions.{j}", width, depths[level], layout)
            skips.append(width)
        if level < last:
            ldm, hf = f"input_blocks.{pairs * (level + 1)}.0.op", f"down_blocks.{level}.downsamplers.0.conv"
            yield from both(ldm, hf, (width, width, 3, 3))
            skips.append(width)
    yield from _resnet("middle_block.0", "mid_block.resnets.0", width, width, time)
    yield from _transformer("middle_block.1", "mid_block.attentions.0", width, layout.middle_depth, layout)
    yield from _resnet("middle_block.2", "mid_block.resnets.1", width, width, time)
    for block, (wide, depth) in enumerate(zip(reversed(widths), reversed(depths), strict=True)):
        for j in range(RESNETS + 1):
            ldm, hf = f"output_blocks.{pairs * block + j}", f"up_blocks.{block}"
            yield from _resnet(f"{ldm}.0", f"{hf}.resnets.{j}", width + skips.pop(), wide, time)
            width = wide
            if depth:
                yield from _transformer(f"{ldm}.1", f"{hf}.attentions.{j}", width, depth, layout)
        if block < last:  # the upsampler stands in the last output block, after the transformer if there is one
            ldm = f"output_blocks.{pairs * block + RESNETS}.{2 if depth else 1}.conv"
            yield from both(ldm, f"up_blocks.{block}.upsamplers.0.conv", (width, width, 3, 3))
    yield from both("out.0", "conv_norm_out", (width,))
    yield from both("out.2", "conv_out", (layout.out_channels, width, 3, 3))
