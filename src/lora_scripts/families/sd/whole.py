"""Whether a diffusers folder is whole, told from its configs and headers alone: each part's config, files and tensors.

What the libraries say of one that is not takes tens of lines; or they say nothing, and make a missing weight up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_scripts.errors import UserError, raise_all
from lora_scripts.families.sd.check import check_floats
from lora_scripts.families.sd.component import PLAIN, configured
from lora_scripts.families.sd.rows import Row, check_rows
from lora_scripts.families.sd.text import TextLayout, clip_rows
from lora_scripts.families.sd.unet import GROUPS, SIZES, UnetLayout, unet_config, unet_rows
from lora_scripts.families.sd.vae import LEVELS, modern_name, vae_config, vae_rows
from lora_scripts.formats.header import DOWNLOAD, Header, read_header

Config = Mapping[str, Any]
UNET_STEM = "diffusion_pytorch_model"
UNET_SETTINGS: Config = {
    "flip_sin_to_cos": True,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "norm_num_groups": GROUPS,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
}
"""What diffusers' config of a UNet says besides its topology; what is not named here is empty, 0 or false there."""
UNET_FREE = (
    *("sample_size", "upcast_attention", "addition_embed_type_num_heads"),
    *("num_attention_heads", "attention_head_dim", "transformer_layers_per_block"),
)
"""What changes nothing that is computed here, or is in the layout."""
_PICKLES = "it needs .safetensors weights; pickle files are not read, because they can run code"


@dataclass(frozen=True)
class Part:
    """One model of a folder."""

    name: str
    """Of its folder."""
    words: str
    """As people call it."""
    stem: str
    """Of the file of its weights."""
    keys: tuple[str, ...]
    """What its config must say."""
    rows: Callable[[Config], Sequence[Row]]
    """Of a config: every tensor, by the keys of the folder's files; none for a topology that no table knows."""
    key: Callable[[str], str] = lambda key: key
    """What a key in a file is called in `rows`: some have older names."""


def check_parts(path: Path, parts: Sequence[Part], words: str) -> None:
    """UserErrors with every fault of these parts of a diffusers folder of a family, called `words`."""
    faults: list[UserError] = []
    missing = [f"{part.name}/config.json" for part in parts if not (path / part.name / "config.json").is_file()]
    if missing:
        hint = f"give a diffusers folder of {words}, or a single .safetensors file"
        faults.append(UserError(f"this folder has no {', '.join(missing)}", file=path, hint=hint))
    for part in parts:
        if f"{part.name}/config.json" not in missing:
            try:
                check_part(path / part.name, part)
            except UserError as error:
                faults += error.errors
    raise_all(faults)


def check_part(folder: Path, part: Part) -> None:
    """UserErrors unless the folder has the part, whole: a config, and every tensor that it calls for in its shape."""
    file, faults = folder / "config.json", list[UserError]()
    rows: Sequence[Row] = ()
    try:
        config = _json(file)
        lacking = [key for key in part.keys if key not in config]
        if lacking:
            raise UserError(f"says nothing of {', '.join(lacking)}", file=file, hint=PLAIN)
        with configured(folder):
            rows = part.rows(config)
            odd = {size for row in rows for size in row.model_shape if type(size) is not int or size < 1}
            if odd:
                raise ValueError(f"sizes of {', '.join(map(str, odd))}")
    except UserError as fault:
        faults.append(fault)
    headers: dict[Path, Header] = {}
    try:
        for one in weights_of(folder, part.stem):
            headers[one] = read_header(one)
            check_floats(one, headers[one], ("",), lambda key: key.endswith(("position_ids", "num_batches_tracked")))
    except UserError as fault:
        raise_all([*faults, fault])
    raise_all(faults)
    shapes = {part.key(key): shape for header in headers.values() for key, shape in header.shapes.items()}
    wanted = [Row(row.hf, row.hf, row.model_shape) for row in rows]
    where = next(iter(headers)) if len(headers) == 1 else folder
    check_rows(shapes, {part.words: wanted}, (), file=where, plain=PLAIN)


def vae_folder(path: Path) -> Path:
    """The folder of the VAE, in a diffusers folder or by itself."""
    return path / "vae" if (path / "vae").is_dir() else path


def weights_of(folder: Path, stem: str) -> list[Path]:
    """The files of a part's weights: one, or the pieces that its index names. UserErrors for what is not there."""
    index, whole = folder / f"{stem}.safetensors.index.json", folder / f"{stem}.safetensors"
    if index.is_file():
        try:
            names = sorted(set(_json(index)["weight_map"].values()))
            files = [folder / name for name in names]
        except (KeyError, TypeError, AttributeError):
            raise UserError("names no files of weights", file=index, hint=PLAIN) from None
        gone = [f for f in files if not f.is_file()]
        raise_all([UserError("no such file, though the index names it", file=f, hint=PLAIN) for f in gone])
        return files
    if whole.is_file():
        return [whole]
    others = sorted(p.name for p in folder.glob("*.safetensors"))
    if others:
        text = f"there is no {whole.name}, only {', '.join(others[:3])}"
        raise UserError(text, file=folder, hint=f"rename it to {whole.name}, or download that one")
    raise UserError(f"there is no {whole.name}", file=folder, hint=_PICKLES)


def _json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", file=file, hint="check its permissions") from None
    except ValueError:
        raise UserError("is damaged: it is not readable as JSON", file=file, hint=DOWNLOAD) from None
    if not isinstance(values, dict):
        raise UserError("is damaged: it holds no keys", file=file, hint=DOWNLOAD)
    return values


# --- the parts of every family of the kind ----------------------------------------------------------------------------


def unet_part(pooled: bool) -> Part:
    """The UNet; `pooled`: it is told a pooled state and sizes."""
    keys = ("block_out_channels", "cross_attention_dim", "in_channels", "out_channels", "down_block_types")
    more = ("addition_time_embed_dim", "projection_class_embeddings_input_dim") if pooled else ()
    return Part("unet", "UNet", UNET_STEM, (*keys, *more), _unet_rows)


def text_part(name: str, words: str, *, projection: bool = False) -> Part:
    """A CLIP text encoder."""
    keys = ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size", "max_position_embeddings")

    def rows(config: Config) -> list[Row]:
        layout = TextLayout(*(config[key] for key in keys))
        pooled = "text_projection.weight"
        shape = (config["projection_dim"], layout.width) if projection else ()
        return [*clip_rows(layout, ""), *([Row(pooled, pooled, shape)] if projection else [])]

    return Part(name, words, "model", (*keys, "projection_dim") if projection else keys, rows, _text_key)


def _text_key(key: str) -> str:
    """transformers >= 5.6 writes no `text_model.`"""
    return key if key.startswith(("text_model.", "text_projection.")) else f"text_model.{key}"


def unet_layout(folder: Path) -> UnetLayout | None:
    """Of the config of a UNet that was checked; None for a topology or a setting that our UNet has not."""
    config = _json(folder / "config.json")
    layout = _unet_layout(config)
    if layout is None:
        return None
    usual = {key: value for key, value in {**UNET_SETTINGS, **unet_config(layout, 1)}.items() if key not in UNET_FREE}
    known = all(_listed(config[key]) == _listed(value) for key, value in usual.items() if key in config)
    odd = (key for key, value in config.items() if value and key not in usual and key not in UNET_FREE)
    return layout if known and all(key.startswith("_") for key in odd) else None


def _unet_rows(config: Config) -> list[Row]:
    layout = _unet_layout(config)
    return unet_rows(layout) if layout else []


def _unet_layout(config: Config) -> UnetLayout | None:
    """None for a topology that no table knows."""
    widths, kinds = tuple(config["block_out_channels"]), config["down_block_types"]
    given = config.get("transformer_layers_per_block") or 1
    depths = given if isinstance(given, list) else [given] * len(widths)
    pooled = config.get("addition_embed_type") == "text_time"
    size_width = config["addition_time_embed_dim"] if pooled else 0
    layout = UnetLayout(
        widths=widths,
        depths=tuple(depth if "CrossAttn" in kind else 0 for depth, kind in zip(depths, kinds, strict=True)),
        heads=_heads(config, len(widths)),  # they change no shape
        context_width=config["cross_attention_dim"],
        in_channels=config["in_channels"],
        out_channels=config["out_channels"],
        linear=bool(config.get("use_linear_projection")),
        pooled_width=config["projection_class_embeddings_input_dim"] - SIZES * size_width if pooled else 0,
        size_width=size_width,
    )
    usual = unet_config(layout, 1)
    names = ("down_block_types", "up_block_types", "layers_per_block")
    same = all(_listed(config.get(name, usual[name])) == _listed(usual[name]) for name in names)
    odd = any(config.get(name) for name in ("only_cross_attention", "dual_cross_attention", "class_embed_type"))
    scaled = config.get("resnet_time_scale_shift", "default") != "default"
    return layout if same and not (odd or scaled) else None


def _heads(config: Config, levels: int) -> tuple[int, ...]:
    """diffusers' "attention_head_dim" is, of this UNet, their number."""
    given = config.get("num_attention_heads") or config.get("attention_head_dim") or 8
    return tuple(given) if isinstance(given, list) else (given,) * levels


def _vae_rows(config: Config) -> list[Row]:
    widths, latents = tuple(config["block_out_channels"]), config["latent_channels"]
    if len(widths) != LEVELS:
        return []
    usual = vae_config(widths, latents, scaling=1.0, sample_size=1)
    names = ("down_block_types", "up_block_types", "layers_per_block", "in_channels", "out_channels")
    same = all(_listed(config.get(name, usual[name])) == _listed(usual[name]) for name in names)
    whole = all(config.get(name, True) for name in ("use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"))
    return vae_rows(widths, latents) if same and whole else []


def _listed(value: object) -> object:
    return list(value) if isinstance(value, tuple | list) else value


_VAE_KEYS = ("block_out_channels", "latent_channels")
VAE = Part("vae", "VAE", "diffusion_pytorch_model", _VAE_KEYS, _vae_rows, modern_name)
