"""Whether a file or folder is a Stable Diffusion 3, told from headers and configs alone, and what its files are made
of: the single file may hold the VAE and the text encoders, too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lora_scripts.families.flow.autoencoder import Autoencoder
from lora_scripts.families.flow.transformer import Transformer, class_of, stripped
from lora_scripts.families.kinds import Shapes, axis
from lora_scripts.families.sd.check import read_config
from lora_scripts.families.sd.vae import VAE_PREFIX
from lora_scripts.families.sd3 import layout, trio
from lora_scripts.families.sd3.layout import CHANNELS, Sd3Layout
from lora_scripts.formats.gguf import is_gguf, read_model
from lora_scripts.formats.header import Kind

_BASE = "give Stable Diffusion 3.5 Medium or Large (sd3.5_medium.safetensors)"
CHECKPOINT = Kind("a Stable Diffusion 3 or 3.5 checkpoint")
RELATIVE = Kind("a relative of Stable Diffusion 3 with other latents", _BASE)
BARE = Kind(
    "only a Stable Diffusion 3 transformer, in diffusers' layout", f"give the whole diffusers folder; or {_BASE}"
)
VAE = Autoencoder(16, quant=False, normed=False, file="sd3_vae.safetensors", scaling=1.5305, shift=0.0609, inside=True)


class Sd3Files(Transformer[Sd3Layout]):
    """Its single file may have a VAE and text encoders in it."""

    def check(self, path: Path, vae: bool) -> None:
        inside = vae and path.is_file() and self._holds_vae(path)
        super().check(path, vae and not inside)
        if inside:
            self.vae.check(path, self.words)

    def unread(self, key: str, vae: bool) -> bool:
        if key.startswith(trio.INSIDE):
            return False
        return not vae if key.startswith(VAE_PREFIX) else super().unread(key, vae)

    def _holds_vae(self, path: Path) -> bool:
        return not is_gguf(path) and any(key.startswith(VAE_PREFIX) for key in read_model(path).tensors)


FILES = Sd3Files(
    words="Stable Diffusion 3.5",
    model="SD3Transformer2DModel",
    layout_of=layout.layout_of,
    layout_from=layout.layout_from,
    config_of=layout.config_of,
    config_keys=layout.CONFIG,
    rows=layout.rows,
    text=trio.find,
    vae=VAE,
    side=layout.SIDE,
)


def kind_of(shapes: Shapes, metadata: Mapping[str, str]) -> Kind | None:
    """What a single file is: its marks are its blocks, in which picture and text are joined."""
    keys = {stripped(key): key for key in shapes}
    if {"pos_embed.pos_embed", "transformer_blocks.0.attn.add_q_proj.weight"} <= keys.keys():
        return BARE
    if "joint_blocks.0.x_block.attn.qkv.weight" not in keys:
        return None
    channels = axis(shapes, keys.get("x_embedder.proj.weight", ""), 1)
    return CHECKPOINT if channels in (CHANNELS, None) else RELATIVE


def folder_kind(path: Path) -> Kind | None:
    """What a diffusers folder is, by its transformer's config."""
    if class_of(path) != FILES.model:
        return None
    channels = (read_config(path / "transformer") or {}).get("in_channels", CHANNELS)
    return CHECKPOINT if channels == CHANNELS else RELATIVE
