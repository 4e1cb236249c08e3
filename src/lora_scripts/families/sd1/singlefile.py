"""Stable Diffusion 1.x: the published single-file (LDM) layout <-> diffusers and transformers state dicts, by tables.

The tables (sd1_layout.py) are generated from the widths, which are read from the shapes in the file. A key that stands
in no row raises, and so does a row without a key. Nothing here reads or writes files.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lora_scripts.errors import UserError, raise_all
from lora_scripts.families.sd1.layout import (
    GROUPS,
    LEVELS,
    TEXT_PREFIX,
    UNET_PREFIX,
    VAE_PREFIX,
    Row,
    Sd1Layout,
    text_config,
    text_rows,
    text_table,
    unet_config,
    unet_rows,
    unet_table,
    vae_config,
    vae_config_of,
    vae_rows,
    vae_table,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "TEXT_PREFIX", "UNET_PREFIX", "VAE_PREFIX", "Handle", "Row", "Sd1Layout", "check", "check_vae", "from_ldm",
    "is_tolerated", "layout_of", "text_config", "text_keys_like", "text_rows", "text_table", "to_ldm", "unet_config",
    "unet_rows", "unet_table", "vae_config", "vae_config_of", "vae_from", "vae_rows", "vae_table",
]  # fmt: skip

_NOT_PLAIN = "this is not a plain Stable Diffusion 1.x model; get the original file"
_SCHEDULE_BUFFERS = {
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2", "lvlb_weights", "logvar",
    "scale_factor", "global_step",
}  # fmt: skip
_TOLERATED = _SCHEDULE_BUFFERS | {
    TEXT_PREFIX + "embeddings.position_ids",
    "cond_stage_model.logit_scale",
    "cond_stage_model.text_projection",
    "cond_stage_model.transformer.logit_scale",
    "cond_stage_model.transformer.text_projection.weight",
    "logit_scale",
}
_TOLERATED_PREFIXES = ("model_ema.", VAE_PREFIX + "loss.", VAE_PREFIX + "model_ema.", "embedding_manager.")


class _Slice(Protocol):
    def get_shape(self) -> list[int]: ...


class Handle(Protocol):
    """What `safetensors.safe_open` gives."""

    def keys(self) -> Collection[str]: ...
    def get_tensor(self, name: str) -> Tensor: ...
    def get_slice(self, name: str) -> _Slice: ...


def layout_of(shapes: Mapping[str, Sequence[int]], *, file: Path | None = None, vae: bool = True) -> Sd1Layout:
    """Reads the widths from the shapes of a single-file checkpoint. UserError when a part is missing that is needed."""
    parts = {"UNet": UNET_PREFIX, "text encoder": TEXT_PREFIX} | ({"VAE": VAE_PREFIX} if vae else {})
    absent = [part for part, prefix in parts.items() if not any(key.startswith(prefix) for key in shapes)]
    if absent:
        hint = "give the full checkpoint" + (", or the file of a VAE as vae" if absent == ["VAE"] else "")
        raise UserError(f"the file holds no {' and no '.join(absent)}", file=file, hint=hint)

    def size(key: str, axis: int) -> int:
        return _size(shapes, key, axis, file)

    u, t = UNET_PREFIX, TEXT_PREFIX
    layout = Sd1Layout(
        unet_widths=tuple(size(f"{u}input_blocks.{3 * level + 1}.0.out_layers.3.weight", 0) for level in range(LEVELS)),
        context_width=size(u + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", 1),
        in_channels=size(u + "input_blocks.0.0.weight", 1),
        out_channels=size(u + "out.2.weight", 0),
        vae_widths=_vae_widths(shapes, file) if vae else (),
        latent_channels=size(VAE_PREFIX + "decoder.conv_in.weight", 1) if vae else size(u + "out.2.weight", 0),
        text_width=size(t + "embeddings.token_embedding.weight", 1),
        text_layers=_text_layers(shapes),
        text_intermediate=size(t + "encoder.layers.0.mlp.fc1.weight", 0),
        vocab=size(t + "embeddings.token_embedding.weight", 0),
        positions=size(t + "embeddings.position_embedding.weight", 0),
    )
    if layout.context_width != layout.text_width:
        wide = f"the UNet reads text of width {layout.context_width}, the text encoder gives {layout.text_width}"
        raise UserError(wide, file=file, hint="parts of two models stand in one file; give the original checkpoint")
    if any(width % GROUPS for width in layout.unet_widths + layout.vae_widths):
        widths = f"UNet {layout.unet_widths} or VAE {layout.vae_widths}"
        raise UserError(f"a width is no multiple of {GROUPS}: {widths}", file=file, hint=_NOT_PLAIN)
    return layout


def is_tolerated(key: str) -> bool:
    """Whether a checkpoint may hold this key unused: EMA copies, schedule buffers, position ids, the VAE's loss."""
    return key in _TOLERATED or key.startswith(_TOLERATED_PREFIXES)


def check(shapes: Mapping[str, Sequence[int]], layout: Sd1Layout, *, file: Path | None = None) -> None:
    """UserError, all faults at once: missing keys (how many, the first ones), unknown keys, wrong shapes."""
    parts = {"UNet": unet_rows(layout), "text encoder": text_rows(layout)}
    if layout.vae_widths:
        parts["VAE"] = vae_rows(layout.vae_widths, layout.latent_channels)
    unknown = {key for key in shapes if not is_tolerated(key) and (layout.vae_widths or not key.startswith(VAE_PREFIX))}
    _check_rows(shapes, parts, unknown, file)


def check_vae(shapes: Mapping[str, Sequence[int]], *, file: Path | None = None) -> tuple[int, ...]:
    """The widths of the VAE that `vae_from` would read; UserError, all faults at once, where it could not."""
    names = _vae_names(shapes, file)
    renamed = {name: shapes[key] for name, key in names.items()}
    widths = _vae_widths(renamed, file)
    rows = vae_rows(widths, _size(renamed, VAE_PREFIX + "decoder.conv_in.weight", 1, file))
    _check_rows(renamed, {"VAE": rows}, {name for name in renamed if not is_tolerated(name)}, file)
    return widths


def from_ldm(
    handle: Handle, layout: Sd1Layout, *, file: Path | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """(UNet, VAE, text encoder) state dicts in diffusers' and published transformers' names, in the file's own dtype.

    The tensors stay memory-mapped. The text keys begin `text_model.`; see `text_keys_like` for the model as built.
    Without a VAE in the layout its dict is empty. UserError for missing and unknown keys.
    """
    check({key: handle.get_slice(key).get_shape() for key in handle.keys()}, layout, file=file)  # noqa: SIM118  no mapping
    names = {_canonical(key): key for key in handle.keys()}  # noqa: SIM118
    unet = {row.hf: handle.get_tensor(row.ldm) for row in unet_rows(layout)}
    text = {row.hf: handle.get_tensor(row.ldm) for row in text_rows(layout)}
    vae = vae_rows(layout.vae_widths, layout.latent_channels)
    return unet, {row.hf: _as_hf(handle.get_tensor(names[row.ldm]), row) for row in vae}, text


def vae_from(
    handle: Handle, shapes: Mapping[str, Sequence[int]], *, file: Path | None = None
) -> tuple[tuple[int, ...], dict[str, Tensor]]:
    """(widths, diffusers state dict) of an SD 1.x VAE in a file of its own, or inside a checkpoint.

    Names may be LDM's, with `first_stage_model.` or without, or diffusers', old (`query`, `proj_attn`) or new (`to_q`).
    """
    widths, names = check_vae(shapes, file=file), _vae_names(shapes, file)
    latents = shapes[names[VAE_PREFIX + "decoder.conv_in.weight"]][1]
    return widths, {row.hf: _as_hf(handle.get_tensor(names[row.ldm]), row) for row in vae_rows(widths, latents)}


def to_ldm(unet: Mapping[str, Tensor], vae: Mapping[str, Tensor], text: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One state dict in the published LDM layout, from diffusers' and transformers' (with or without `text_model.`).

    ValueError for a missing or unknown key: it is ours to give whole models.
    """
    text = {key if key.startswith("text_model.") else f"text_model.{key}": value for key, value in text.items()}
    text.pop("text_model.embeddings.position_ids", None)
    layout = Sd1Layout(
        unet_widths=tuple(unet[f"down_blocks.{level}.resnets.0.conv2.weight"].shape[0] for level in range(LEVELS)),
        context_width=unet["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"].shape[1],
        in_channels=unet["conv_in.weight"].shape[1],
        out_channels=unet["conv_out.weight"].shape[0],
        vae_widths=tuple(
            vae[f"encoder.down_blocks.{level}.resnets.0.conv2.weight"].shape[0] for level in range(LEVELS)
        ),
        latent_channels=vae["decoder.conv_in.weight"].shape[1],
        text_width=text["text_model.embeddings.token_embedding.weight"].shape[1],
        text_layers=sum(key.endswith(".mlp.fc1.weight") for key in text),
        text_intermediate=text["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        vocab=text["text_model.embeddings.token_embedding.weight"].shape[0],
        positions=text["text_model.embeddings.position_embedding.weight"].shape[0],
    )
    tables = (
        (unet_rows(layout), unet),
        (vae_rows(layout.vae_widths, layout.latent_channels), vae),
        (text_rows(layout), text),
    )
    result: dict[str, Tensor] = {}
    for rows, tensors in tables:
        odd = {row.hf for row in rows} ^ set(tensors)
        if odd:
            raise ValueError(f"{len(odd)} keys missing or unknown, first {min(odd)}")
        result |= {row.ldm: _as_ldm(tensors[row.hf], row) for row in rows}
    return result


def text_keys_like(text: Mapping[str, Tensor], model_keys: Collection[str]) -> dict[str, Tensor]:
    """The text encoder's state dict in the names of the built model: transformers >= 5.6 has no `text_model.`, older
    ones do.
    """
    flat = not any(key.startswith("text_model.") for key in model_keys)
    return {key.removeprefix("text_model.") if flat else key: value for key, value in text.items()}


# The VAE's attention in the form that some converters write: diffusers' leaf names under LDM's block names.
_ATTENTION_LEAVES = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "group_norm": "norm"}
_OLD_DIFFUSERS_LEAVES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _canonical(key: str) -> str:
    """The published LDM name of a key; another name for the VAE's attention becomes the published one."""
    block, found, leaf = key.partition(".mid.attn_1.")
    layer, _, end = leaf.rpartition(".")
    return f"{block}.mid.attn_1.{_ATTENTION_LEAVES[layer]}.{end}" if found and layer in _ATTENTION_LEAVES else key


def _is_attention(row: Row) -> bool:
    """Whether the row is a 1 x 1 convolution in LDM and a linear layer in diffusers."""
    return ".mid.attn_1." in row.ldm and len(row.shape) == 4


def _as_hf(tensor: Tensor, row: Row) -> Tensor:
    return tensor.reshape(row.shape[:2]) if _is_attention(row) else tensor


def _as_ldm(tensor: Tensor, row: Row) -> Tensor:
    wanted = row.shape[:2] if _is_attention(row) else row.shape
    if tuple(tensor.shape) != wanted:
        raise ValueError(f"{row.hf} has shape {tuple(tensor.shape)}, not {wanted}")
    return tensor.reshape(row.shape)


def _check_rows(
    shapes: Mapping[str, Sequence[int]], parts: Mapping[str, Sequence[Row]], unknown: set[str], file: Path | None
) -> None:
    """Raises all faults at once; `unknown` are the keys that must stand in some row."""
    names = {_canonical(key): key for key in shapes}
    errors = []
    for part, rows in parts.items():
        missing = [row.ldm for row in rows if row.ldm not in names]
        if missing:
            few = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
            text = f"{len(missing)} of {len(rows)} tensors of the {part} are missing: {few}"
            errors.append(UserError(text, file=file, hint="the file is incomplete; get the original one"))
        for row in rows:
            shape = tuple(shapes[names[row.ldm]]) if row.ldm in names else row.shape
            if shape != row.shape and not (_is_attention(row) and shape == row.shape[:2]):
                text = f"{row.ldm} has shape {list(shape)}, not {list(row.shape)}"
                errors.append(UserError(text, file=file, hint=_NOT_PLAIN))
        unknown = unknown - {names.get(row.ldm, "") for row in rows}
    if unknown:
        text = f"{len(unknown)} unknown tensors, first {ascii(min(unknown))[1:120]}"
        errors.append(UserError(text, file=file, hint=_NOT_PLAIN))
    raise_all(errors[:10])


def _vae_names(shapes: Mapping[str, Sequence[int]], file: Path | None) -> dict[str, str]:
    """Published LDM name -> key in the file, of everything that belongs to its VAE."""
    if any(key.startswith(VAE_PREFIX) for key in shapes):
        return {_canonical(key): key for key in shapes if key.startswith(VAE_PREFIX)}
    if not any(key.startswith("encoder.down_blocks.") for key in shapes):
        return {_canonical(VAE_PREFIX + key): key for key in shapes}
    keys = [f"encoder.down_blocks.{level}.resnets.0.conv2.weight" for level in range(LEVELS)]
    widths = tuple(_size(shapes, key, 0, file) for key in keys)
    rename = {row.hf: row.ldm for row in vae_rows(widths, _size(shapes, "decoder.conv_in.weight", 1, file))}
    return {rename.get(_modern(key), key): key for key in shapes}


def _modern(key: str) -> str:
    """diffusers' name of today for a key of its VAE; the published folders of SD 1.x have the old names of the
    attention.
    """
    block, found, leaf = key.partition(".mid_block.attentions.0.")
    layer, _, end = leaf.rpartition(".")
    return f"{block}{found}{_OLD_DIFFUSERS_LEAVES[layer]}.{end}" if layer in _OLD_DIFFUSERS_LEAVES else key


def _vae_widths(shapes: Mapping[str, Sequence[int]], file: Path | None) -> tuple[int, ...]:
    keys = [f"{VAE_PREFIX}encoder.down.{level}.block.0.conv2.weight" for level in range(LEVELS)]
    return tuple(_size(shapes, key, 0, file) for key in keys)


def _size(shapes: Mapping[str, Sequence[int]], key: str, axis: int, file: Path | None) -> int:
    """One width, or UserError when the tensor that tells it is not there."""
    shape = shapes.get(key)
    if shape is None or len(shape) <= axis:
        raise UserError(f"the tensor {key} is missing", file=file, hint="the file is incomplete; get the original one")
    return shape[axis]


def _text_layers(shapes: Mapping[str, Sequence[int]]) -> int:
    """How many layers the text encoder counts to."""
    start = TEXT_PREFIX + "encoder.layers."
    numbers = [key.removeprefix(start).partition(".")[0] for key in shapes if key.startswith(start)]
    return max((int(number) + 1 for number in numbers if number.isdecimal()), default=1)
