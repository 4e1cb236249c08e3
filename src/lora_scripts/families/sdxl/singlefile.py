"""SDXL: the published single file <-> diffusers and transformers state dicts, by the tables of layout.py.

The widths and depths are read from the shapes in the file. A key that stands in no row raises, and so does a row
without a key. Nothing here reads or writes files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.errors import UserError, raise_all
from lora_scripts.families.sd import vae as sd_vae
from lora_scripts.families.sd.check import V_PREDICTION, ZERO_SNR, require_models
from lora_scripts.families.sd.rows import (
    Handle,
    Shapes,
    check_rows,
    count_of,
    from_rows,
    is_spare,
    shapes_in,
    size_of,
    to_rows,
)
from lora_scripts.families.sd.text import TextLayout, clip_layout, published_text_keys, text_layout_of
from lora_scripts.families.sd.unet import GROUPS, RESNETS, SIZES, UNET_PREFIX, UnetLayout
from lora_scripts.families.sd.vae import VAE_PREFIX
from lora_scripts.families.sdxl.layout import (
    HEAD,
    TEXT_2_PREFIX,
    TEXT_PREFIX,
    SdxlLayout,
    parts,
    text_2_rows,
    text_rows,
    unet_rows,
    vae_rows,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NOT_PLAIN = "this is not a plain SDXL model; get the original file"
_TOLERATED = {
    V_PREDICTION,
    ZERO_SNR,
    TEXT_PREFIX + "embeddings.position_ids",
    TEXT_2_PREFIX + "logit_scale",
    TEXT_2_PREFIX + "attn_mask",
    "conditioner.embedders.0.transformer.logit_scale",
    "conditioner.embedders.0.transformer.text_projection.weight",
    "conditioner.embedders.0.logit_scale",
    "conditioner.embedders.0.text_projection",
    "denoiser.sigmas",
    "denoiser.log_sigmas",
}


def layout_of(shapes: Shapes, *, file: Path | None = None, vae: bool = True) -> SdxlLayout:
    """Reads widths and depths from the shapes of a single file. UserError when a part is missing that is needed."""
    wanted = {"UNet": UNET_PREFIX, "first text encoder": TEXT_PREFIX, "second text encoder": TEXT_2_PREFIX}
    wanted |= {"VAE": VAE_PREFIX} if vae else {}
    require_models(shapes, wanted, file)
    text, text_2 = clip_layout(shapes, TEXT_PREFIX, file), _text_2(shapes, file)
    layout = SdxlLayout(
        unet=_unet(shapes, file, text_2.projection),
        text=text,
        text_2=text_2,
        vae_widths=sd_vae.vae_widths(shapes, file) if vae else (),
        latent_channels=sd_vae.vae_latents(shapes, file) if vae else 4,
    )
    raise_all(_misfits(layout, file))
    return layout


def _unet(shapes: Shapes, file: Path | None, pooled: int) -> UnetLayout:
    def size(key: str, axis: int) -> int:
        return size_of(shapes, UNET_PREFIX + key, axis, file)

    levels = count_of(shapes, UNET_PREFIX + "input_blocks.") // (RESNETS + 1)
    first = [f"input_blocks.{(RESNETS + 1) * level + 1}" for level in range(levels)]
    widths = tuple(size(f"{block}.0.out_layers.3.weight", 0) for block in first)
    return UnetLayout(
        widths=widths,
        depths=tuple(count_of(shapes, f"{UNET_PREFIX}{block}.1.transformer_blocks.") for block in first),
        heads=tuple(max(1, width // HEAD) for width in widths),
        context_width=size("middle_block.1.transformer_blocks.0.attn2.to_k.weight", 1),
        in_channels=size("input_blocks.0.0.weight", 1),
        out_channels=size("out.2.weight", 0),
        linear=True,
        pooled_width=pooled,
        size_width=(size("label_emb.0.0.weight", 1) - pooled) // SIZES,
    )


def _text_2(shapes: Shapes, file: Path | None) -> TextLayout:
    table = TEXT_2_PREFIX + "token_embedding.weight"
    return TextLayout(
        width=size_of(shapes, table, 1, file),
        layers=count_of(shapes, TEXT_2_PREFIX + "transformer.resblocks."),
        intermediate=size_of(shapes, TEXT_2_PREFIX + "transformer.resblocks.0.mlp.c_fc.weight", 0, file),
        vocab=size_of(shapes, table, 0, file),
        positions=size_of(shapes, TEXT_2_PREFIX + "positional_embedding", 0, file),
        projection=size_of(shapes, TEXT_2_PREFIX + "text_projection", 1, file),
        activation="gelu",
    )


def _misfits(layout: SdxlLayout, file: Path | None) -> list[UserError]:
    """What the parts' widths have to do with each other, and with the number of heads."""
    unet, together = layout.unet, layout.text.width + layout.text_2.width
    faults = []
    if unet.context_width != together:
        hint = "parts of two models stand in one file; give the original checkpoint"
        wide = f"the UNet reads text of width {unet.context_width}, the two text encoders give {together}"
        faults.append(UserError(wide, file=file, hint=hint))
    if any(width % GROUPS or (width > HEAD and width % HEAD) for width in unet.widths):
        faults.append(
            UserError(f"the UNet's widths {unet.widths} are no multiples of {HEAD}", file=file, hint=NOT_PLAIN)
        )
    if any(width % GROUPS for width in layout.vae_widths):
        text = f"the VAE's widths {layout.vae_widths} are no multiples of {GROUPS}"
        faults.append(UserError(text, file=file, hint=NOT_PLAIN))
    return faults


def is_tolerated(key: str) -> bool:
    """Whether a checkpoint may hold this key unused: EMA copies, schedule buffers, position ids, the VAE's loss."""
    return key in _TOLERATED or is_spare(key)


def check(shapes: Shapes, layout: SdxlLayout, *, file: Path | None = None) -> None:
    """UserError, all faults at once: missing keys (how many, the first ones), unknown keys, wrong shapes."""
    with_vae = bool(layout.vae_widths)
    unknown = {key for key in shapes if not is_tolerated(key) and (with_vae or not key.startswith(VAE_PREFIX))}
    names = {sd_vae.published_name(key): key for key in shapes}
    check_rows(shapes, parts(layout), unknown, file=file, names=names, plain=NOT_PLAIN)


def from_ldm(
    handle: Handle, layout: SdxlLayout, *, file: Path | None = None, dtype: torch.dtype | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """(UNet, VAE, text encoder 1, text encoder 2) state dicts in diffusers' and published transformers' names.

    The tensors are in the file's own dtype and stay memory-mapped; those of the UNet that have a scale are made whole
    in `dtype`, those of the other parts in float32. Without a VAE in the layout its dict is empty. UserError for
    missing and unknown keys.
    """
    check(shapes_in(handle), layout, file=file)
    names = {sd_vae.published_name(key): key for key in handle.keys()}  # noqa: SIM118  it is no mapping
    unet = from_rows(handle, unet_rows(layout), dtype=dtype)
    texts = from_rows(handle, text_rows(layout)), from_rows(handle, text_2_rows(layout))
    return unet, from_rows(handle, vae_rows(layout), names), *texts


def to_ldm(
    unet: Mapping[str, Tensor], vae: Mapping[str, Tensor], text: Mapping[str, Tensor], text_2: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """One state dict in the published layout, from diffusers' and transformers' (with or without `text_model.`).

    ValueError for a missing or unknown key: it is ours to give whole models.
    """
    text, text_2 = published_text_keys(text), published_text_keys(text_2)
    encoders = text_layout_of(text), text_layout_of(text_2, "gelu")
    layout = SdxlLayout(_unet_of(unet, encoders[1].projection), *encoders, *sd_vae.vae_layout_of(vae))
    tensors = to_rows(unet_rows(layout), unet)
    tensors |= to_rows(text_rows(layout), text)
    tensors |= to_rows(text_2_rows(layout), text_2)
    return tensors | to_rows(vae_rows(layout), vae)


def _unet_of(unet: Mapping[str, Tensor], pooled: int) -> UnetLayout:
    """The layout of diffusers' state dict."""
    levels = count_of(unet, "down_blocks.")
    widths = tuple(unet[f"down_blocks.{level}.resnets.0.conv2.weight"].shape[0] for level in range(levels))
    return UnetLayout(
        widths=widths,
        depths=tuple(count_of(unet, f"down_blocks.{n}.attentions.0.transformer_blocks.") for n in range(levels)),
        heads=tuple(max(1, width // HEAD) for width in widths),
        context_width=unet["mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"].shape[1],
        in_channels=unet["conv_in.weight"].shape[1],
        out_channels=unet["conv_out.weight"].shape[0],
        linear=True,
        pooled_width=pooled,
        size_width=(unet["add_embedding.linear_1.weight"].shape[1] - pooled) // SIZES,
    )
