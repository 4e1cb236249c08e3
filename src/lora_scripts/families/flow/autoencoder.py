"""The VAEs of flow models: SD's, with other latents, in the spellings that their files have.

Of 16 channels (FLUX.1's `ae.safetensors`) without the two convolutions around the latents; of 32 (FLUX.2's) with
them, and with the running statistics of a BatchNorm, by which packed latents are normalised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts.errors import UserError
from lora_scripts.families import kinds
from lora_scripts.families.library import of_diffusers
from lora_scripts.families.sd.check import check_floats, read_config
from lora_scripts.families.sd.rows import Row, Shapes, check_rows, from_rows, is_spare, size_of
from lora_scripts.families.sd.vae import LEVELS, VAE_PREFIX, modern_name, published_name, vae_config, vae_rows
from lora_scripts.families.sd.whole import Part, check_part, vae_folder
from lora_scripts.formats.hashes import sha256_of
from lora_scripts.formats.header import Header, read_header

if TYPE_CHECKING:
    from torch import Tensor

    from lora_scripts.families.sd.latents import Normal

_QUANT = ("use_quant_conv", "use_post_quant_conv")
_COUNT = "bn.num_batches_tracked"
_SCALE_APART = 0.01
"""From here on the numbers of two folders' configs are those of two models."""
PUBLISHED = {
    "afc8e28272cd15db3919bacdb6918ce9c1ed22e96cb12c4d5ed0fba823529e38": (335304388, "FLUX.1", 0.3611),  # ae.safetensors
    "f5b59a26851551b67ae1fe58d32e76486e1e812def4696a4bea97f16604d40a3": (167666902, "FLUX.1", 0.3611),  # of its folder
    "8f53304a79335b55e13ec50f63e5157fee4deb2f30d5fae0654e2b2653c109dc": (167666902, "Stable Diffusion 3.5", 1.5305),
}
"""SHA-256 of published files that say nothing of their scale -> (bytes, whose, scale)."""
_MOVED = {"encoder.quant_conv.": "quant_conv.", "decoder.post_quant_conv.": "post_quant_conv."}
"""Where Black Forest Labs' files have the two convolutions."""


@dataclass(frozen=True)
class Autoencoder:
    """What tells one of them from the others."""

    channels: int
    quant: bool
    """The two convolutions."""
    normed: bool
    """The running statistics; latents are packed 2 x 2."""
    file: str
    """As people know it."""
    scaling: float = 1.0
    shift: float = 0.0
    """Of latents that are not `normed`."""
    side: int = 1024
    """Pixels along the sides of a picture that it is told to be made for."""
    inside: bool = False
    """Whether it may also lie in the base's own file, behind `first_stage_model.`"""

    def rows(self, widths: tuple[int, ...]) -> list[Row]:
        """Every parameter, published names without a prefix."""
        table = vae_rows(widths, self.channels, "", quant=self.quant)
        names = ("bn.running_mean", "bn.running_var") if self.normed else ()
        return table + [Row(name, name, (4 * self.channels,)) for name in names]

    def part(self) -> Part:
        """Of a diffusers folder."""
        keys = ("block_out_channels", "latent_channels")
        return Part("vae", "VAE", "diffusion_pytorch_model", keys, self._rows_of, modern_name)

    def _rows_of(self, config: Mapping[str, Any]) -> list[Row]:
        widths, latents = tuple(config["block_out_channels"]), config["latent_channels"]
        quant = [config.get(key, True) for key in _QUANT]
        if len(widths) != LEVELS or latents != self.channels or any(one != self.quant for one in quant):
            raise ValueError(f"this VAE makes latents of {latents} channels, or has other layers around them")
        if config.get("decoder_block_out_channels"):
            raise ValueError("its decoder has widths of its own")
        return self.rows(widths)

    def check(self, path: Path, words: str) -> Header | None:
        """The header of a file with such a VAE alone; None of a folder. UserErrors for another file or VAE; `words`:
        what people call the base."""
        if path.is_dir():
            config = read_config(vae_folder(path)) or {}
            if "z_dim" in config:
                raise UserError(f"this is {kinds.FILM_VAE.words}, not a VAE of {words}", file=path, hint=self._hint)
            latents = config.get("latent_channels")
            if isinstance(latents, int) and latents != self.channels:
                self._refuse(latents, words, path)
            scaling = config.get("scaling_factor")
            if not self.normed and isinstance(scaling, int | float) and abs(scaling / self.scaling - 1) > _SCALE_APART:
                text = f"this VAE scales latents by {scaling}, that of {words} by {self.scaling}"
                raise UserError(text, file=path, hint=self._hint)
            check_part(vae_folder(path), self.part())
            return None
        header = read_header(path)
        own = self._own(header.shapes)
        kind = kinds.addition(header.shapes) or kinds.other(own)
        if kind is not kinds.VAE:
            raise UserError(f"this is {kind.words}, not a VAE of {words}", file=path, hint=self._hint)
        names = self._names(own, path)
        shapes = {name: header.shapes[key] for name, key in names.items()}
        latents = size_of(shapes, "decoder.conv_in.weight", 1, path)
        if latents != self.channels:
            self._refuse(latents, words, path)
        unknown = [name for name in shapes if not (is_spare(name) or name == _COUNT)]
        check_rows(shapes, {"VAE": self.rows(widths_in(shapes, path))}, unknown, file=path, plain=self._hint)
        check_floats(path, header, tuple(own), lambda key: key.endswith(_COUNT) or is_spare(key))
        self._refuse_published(path, words)
        return header

    def _refuse_published(self, path: Path, words: str) -> None:
        """UserError for a published file of another model, whose tensors are as many and as large."""
        if path.stat().st_size not in {size for size, _, _ in PUBLISHED.values()}:
            return
        _, whose, scaling = PUBLISHED.get(sha256_of(path), (0, "", self.scaling))
        if scaling != self.scaling:
            raise UserError(f"this is the VAE of {whose}, not of {words}", file=path, hint=self._hint)

    def _own(self, shapes: Shapes) -> Shapes:
        """Of a file with everything in it, what is the VAE's."""
        own = {key: shape for key, shape in shapes.items() if key.startswith(VAE_PREFIX)} if self.inside else {}
        return own or shapes

    @property
    def _hint(self) -> str:
        return f"give {self.file}, the VAE of {self.channels} channels, or a folder with it"

    def _refuse(self, latents: int, words: str, path: Path) -> None:
        text = f"this VAE makes latents of {latents} channels, {words} has {self.channels}"
        raise UserError(text, file=path, hint=self._hint)

    def _names(self, shapes: Shapes, file: Path) -> dict[str, str]:
        """Published key, without prefix -> key in the file."""
        names = {key.removeprefix(VAE_PREFIX): key for key in shapes}
        for old, new in _MOVED.items():
            names = {name.replace(old, new) if name.startswith(old) else name: key for name, key in names.items()}
        if "encoder.down_blocks.0.resnets.0.conv2.weight" not in names:
            return {published_name(name): key for name, key in names.items()}
        widths = tuple(
            size_of(shapes, names.get(f"encoder.down_blocks.{n}.resnets.0.conv2.weight", ""), 0, file)
            for n in range(LEVELS)
        )
        rename = {row.hf: row.ldm for row in self.rows(widths)}
        return {rename.get(modern_name(name), name): key for name, key in names.items()}

    def load(self, path: Path, words: str) -> Any:
        """The model of diffusers, from a file or a folder that `check` takes."""
        import torch
        from safetensors import safe_open

        from lora_scripts.families.sd.load import pretrained

        kind = of_diffusers("AutoencoderKLFlux2" if self.normed else "AutoencoderKL")
        header = self.check(path, words)
        if header is None:
            return pretrained(kind, vae_folder(path))
        names = self._names(self._own(header.shapes), path)
        widths = widths_in({name: header.shapes[key] for name, key in names.items()}, path)
        with safe_open(path, "pt") as handle:
            state: dict[str, Tensor] = from_rows(handle, self.rows(widths), names)
        with torch.device("meta"):
            vae = kind(**self.config(widths))
        more = {_COUNT: torch.zeros((), dtype=torch.long)} if self.normed else {}
        vae.load_state_dict(state | more, strict=True, assign=True)
        return vae

    def config(self, widths: tuple[int, ...]) -> dict[str, Any]:
        """Arguments of the model of diffusers."""
        plain = vae_config(widths, self.channels, scaling=self.scaling, sample_size=self.side)
        if self.normed:
            del plain["scaling_factor"]
            return plain
        return {**plain, "shift_factor": self.shift, **dict.fromkeys(_QUANT, self.quant)}

    def normal(self, vae: Any) -> Normal:
        """How its latents are normalised, as its config or its statistics say."""
        from lora_scripts.families.sd.latents import Normal

        if not self.normed:
            return Normal(vae.config.scaling_factor, vae.config.shift_factor or 0.0)
        spread = (vae.bn.running_var.float() + vae.config.batch_norm_eps).sqrt()
        return Normal(1 / spread.view(-1, 1, 1), vae.bn.running_mean.float().view(-1, 1, 1), packed=True)


VAE16 = Autoencoder(16, quant=False, normed=False, file="ae.safetensors", scaling=0.3611, shift=0.1159)
VAE32 = Autoencoder(32, quant=True, normed=True, file="flux2-vae.safetensors")


def widths_in(shapes: Shapes, file: Path) -> tuple[int, ...]:
    """Channels of the four levels, from published names."""
    return tuple(size_of(shapes, f"encoder.down.{n}.block.0.conv2.weight", 0, file) for n in range(LEVELS))
