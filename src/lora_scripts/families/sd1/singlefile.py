"""Stable Diffusion 1.x and 2.x: the published single-file (LDM) layout <-> diffusers and transformers state dicts, by
tables.

The tables (layout.py) are generated from the widths, which are read from the shapes in the file. A key that stands
in no row raises, and so does a row without a key. Nothing here reads or writes files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.errors import UserError
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
from lora_scripts.families.sd.text import published_text_keys, text_layout_of
from lora_scripts.families.sd.unet import GROUPS, UNET_PREFIX
from lora_scripts.families.sd.vae import VAE_PREFIX, vae_rows
from lora_scripts.families.sd1.layout import (
    LAYERS_2,
    LEVELS,
    TEXT_2_PREFIX,
    TEXT_PREFIX,
    Sd1Layout,
    text_rows,
    unet_rows,
)

if TYPE_CHECKING:
    from torch import Tensor

_NOT_PLAIN = "this is not a plain Stable Diffusion model; get the original file"
_TOLERATED = {
    TEXT_PREFIX + "embeddings.position_ids",
    "cond_stage_model.logit_scale",
    "cond_stage_model.text_projection",
    "cond_stage_model.transformer.logit_scale",
    "cond_stage_model.transformer.text_projection.weight",
    "logit_scale",
    V_PREDICTION,
    ZERO_SNR,
    *(TEXT_2_PREFIX + name for name in ("attn_mask", "logit_scale", "text_projection")),
    TEXT_2_PREFIX + "transformer.text_model.embeddings.position_ids",  # in Waifu Diffusion 1.4
}
_TEXT = (
    TEXT_PREFIX + "embeddings.token_embedding.weight",
    TEXT_PREFIX + "embeddings.position_embedding.weight",
    TEXT_PREFIX + "encoder.layers.",
    "fc1",
)
_TEXT_2 = (
    TEXT_2_PREFIX + "token_embedding.weight",
    TEXT_2_PREFIX + "positional_embedding",
    TEXT_2_PREFIX + "transformer.resblocks.",
    "c_fc",
)
"""Where the widths of the text encoder are told: its tokens, its places, its layers, the first matrix of their MLPs."""
_UNREAD_LAYER = f"{TEXT_2_PREFIX}transformer.resblocks.{LAYERS_2}."


def layout_of(shapes: Shapes, *, file: Path | None = None, vae: bool = True) -> Sd1Layout:
    """Reads the widths from the shapes of a single-file checkpoint. UserError when a part is missing that is needed."""
    second = any(key.startswith(TEXT_2_PREFIX) for key in shapes)
    parts = {"UNet": UNET_PREFIX, "text encoder": TEXT_2_PREFIX if second else TEXT_PREFIX}
    parts |= {"VAE": VAE_PREFIX} if vae else {}
    require_models(shapes, parts, file)

    def size(key: str, axis: int) -> int:
        return size_of(shapes, key, axis, file)

    u = UNET_PREFIX
    table, places, blocks, inner = _TEXT_2 if second else _TEXT
    count = max(1, count_of(shapes, blocks))
    layout = Sd1Layout(
        unet_widths=tuple(size(f"{u}input_blocks.{3 * level + 1}.0.out_layers.3.weight", 0) for level in range(LEVELS)),
        context_width=size(u + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", 1),
        in_channels=size(u + "input_blocks.0.0.weight", 1),
        out_channels=size(u + "out.2.weight", 0),
        vae_widths=sd_vae.vae_widths(shapes, file) if vae else (),
        latent_channels=sd_vae.vae_latents(shapes, file) if vae else size(u + "out.2.weight", 0),
        text_width=size(table, 1),
        text_layers=min(count, LAYERS_2) if second else count,
        text_intermediate=size(f"{blocks}0.mlp.{inner}.weight", 0),
        vocab=size(table, 0),
        positions=size(places, 0),
        second=second,
    )
    if layout.context_width != layout.text_width:
        wide = f"the UNet reads text of width {layout.context_width}, the text encoder gives {layout.text_width}"
        raise UserError(wide, file=file, hint="parts of two models stand in one file; give the original checkpoint")
    if any(width % GROUPS for width in layout.unet_widths + layout.vae_widths):
        widths = f"UNet {layout.unet_widths} or VAE {layout.vae_widths}"
        raise UserError(f"a width is no multiple of {GROUPS}: {widths}", file=file, hint=_NOT_PLAIN)
    return layout


def is_tolerated(key: str) -> bool:
    """Whether a checkpoint may hold this key unused: EMA copies, schedule buffers, position ids, the VAE's loss, and of
    2.x the text encoder's last layer and projection."""
    return key in _TOLERATED or key.startswith(_UNREAD_LAYER) or is_spare(key)


def check(shapes: Shapes, layout: Sd1Layout, *, file: Path | None = None) -> None:
    """UserError, all faults at once: missing keys (how many, the first ones), unknown keys, wrong shapes."""
    parts = {"UNet": unet_rows(layout), "text encoder": text_rows(layout)}
    if layout.vae_widths:
        parts["VAE"] = vae_rows(layout.vae_widths, layout.latent_channels)
    unknown = {key for key in shapes if not is_tolerated(key) and (layout.vae_widths or not key.startswith(VAE_PREFIX))}
    names = {sd_vae.published_name(key): key for key in shapes}
    check_rows(shapes, parts, unknown, file=file, names=names, plain=_NOT_PLAIN)


def check_vae(shapes: Shapes, *, file: Path | None = None) -> tuple[int, ...]:
    """The widths of the VAE that `vae_from` would read; UserError, all faults at once, where it could not."""
    return sd_vae.check_vae(shapes, file=file, tolerated=is_tolerated, plain=_NOT_PLAIN)


def from_ldm(
    handle: Handle, layout: Sd1Layout, *, file: Path | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """(UNet, VAE, text encoder) state dicts in diffusers' and published transformers' names, in the file's own dtype.

    The tensors stay memory-mapped. The text keys begin `text_model.`; see `text_keys_like` for the model as built.
    Without a VAE in the layout its dict is empty. UserError for missing and unknown keys.
    """
    check(shapes_in(handle), layout, file=file)
    names = {sd_vae.published_name(key): key for key in handle.keys()}  # noqa: SIM118  it is no mapping
    unet, text = from_rows(handle, unet_rows(layout)), from_rows(handle, text_rows(layout))
    return unet, from_rows(handle, vae_rows(layout.vae_widths, layout.latent_channels), names), text


def vae_from(handle: Handle, shapes: Shapes, *, file: Path | None = None) -> tuple[tuple[int, ...], dict[str, Tensor]]:
    """(widths, diffusers state dict) of an SD 1.x VAE in a file of its own, or inside a checkpoint.

    Names may be LDM's, with `first_stage_model.` or without, or diffusers', old (`query`, `proj_attn`) or new (`to_q`).
    """
    return check_vae(shapes, file=file), sd_vae.vae_from(handle, shapes, file=file)


def to_ldm(unet: Mapping[str, Tensor], vae: Mapping[str, Tensor], text: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One state dict in the published LDM layout, from diffusers' and transformers' (with or without `text_model.`).

    ValueError for a missing or unknown key: it is ours to give whole models.
    """
    text = published_text_keys(text)
    (widths, latents), encoder = sd_vae.vae_layout_of(vae), text_layout_of(text)
    layout = Sd1Layout(
        unet_widths=tuple(unet[f"down_blocks.{level}.resnets.0.conv2.weight"].shape[0] for level in range(LEVELS)),
        context_width=unet["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"].shape[1],
        in_channels=unet["conv_in.weight"].shape[1],
        out_channels=unet["conv_out.weight"].shape[0],
        vae_widths=widths,
        latent_channels=latents,
        text_width=encoder.width,
        text_layers=encoder.layers,
        text_intermediate=encoder.intermediate,
        vocab=encoder.vocab,
        positions=encoder.positions,
        second=unet["down_blocks.0.attentions.0.proj_in.weight"].dim() == 2,
    )
    tensors = to_rows(unet_rows(layout), unet)
    tensors |= to_rows(vae_rows(widths, latents), vae)
    return tensors | to_rows(text_rows(layout), text)
