"""The VAE of Qwen-Image-2.1: after Wan2.2's, of pictures alone, with transparency: four channels in and out, 64 latents
for 16 x 16 pixels.

Facts: diffusers' `AutoencoderKLQwenImage21`. ComfyUI's single file has Wan2.2's names; its convolutions have an axis of
time, one frame long, which diffusers' have not. Shortcuts around the levels have no parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts.errors import UserError
from lora_scripts.families import kinds
from lora_scripts.families.flow.film import head, middle, resnet
from lora_scripts.families.library import of_diffusers
from lora_scripts.families.qwen_image21.layout import CHANNELS, PIXEL
from lora_scripts.families.sd.check import check_floats, read_config
from lora_scripts.families.sd.rows import Row, Shapes, both, check_rows, count_of, is_spare, size_of
from lora_scripts.families.sd.vae import RESNETS
from lora_scripts.families.sd.whole import Part, check_part, vae_folder
from lora_scripts.formats.header import Header, read_header

if TYPE_CHECKING:
    from lora_scripts.families.sd.latents import Normal


@dataclass(frozen=True)
class RgbaLayout:
    """What tells one of them from another."""

    base: int = 96
    """Channels of the encoder's first layer."""
    decoder: int = 144
    """Of the decoder's last."""
    times: tuple[int, ...] = (1, 2, 4, 8, 8)
    """So many times these have the levels."""
    in_time: tuple[bool, ...] = (False, True, True, True)
    """Whether the step down behind a level once halved the frames, too; of pictures that changes the shortcut."""
    latents: int = CHANNELS


STANDARD = RgbaLayout()
KERNEL = (3, 3)
"""Of the convolutions, without the frames of Wan's."""


def rows(layout: RgbaLayout) -> list[Row]:
    """Every parameter, as diffusers shapes it."""
    return list(_rows(layout))


def _rows(layout: RgbaLayout) -> Iterator[Row]:
    latents, last = layout.latents, len(layout.times) - 1
    widths = [layout.base * times for times in layout.times]
    yield from both("encoder.conv1", "encoder.conv_in", (layout.base, PIXEL, 3, 3))
    given = layout.base
    for level, wide in enumerate(widths):
        ldm, hf = f"encoder.downsamples.{level}.downsamples", f"encoder.down_blocks.{level}"
        for j in range(RESNETS):
            yield from resnet(f"{ldm}.{j}", f"{hf}.resnets.{j}", given if j == 0 else wide, wide, KERNEL)
        if level < last:
            step = f"{ldm}.{RESNETS}", f"{hf}.downsampler"
            yield from _step(*step, wide, wide if layout.in_time[level] else 0)
        given = wide
    yield from middle("encoder", given, KERNEL)
    yield from head("encoder", 2 * latents, given, KERNEL)  # mean and log variance
    yield from both("conv1", "quant_conv", (2 * latents, 2 * latents, 1, 1))
    yield from both("conv2", "post_quant_conv", (latents, latents, 1, 1))
    widths = [layout.decoder * times for times in reversed(layout.times)]
    given = widths[0]
    yield from both("decoder.conv1", "decoder.conv_in", (given, latents, 3, 3))
    yield from middle("decoder", given, KERNEL)
    for level, wide in enumerate(widths):
        ldm, hf = f"decoder.upsamples.{level}.upsamples", f"decoder.up_blocks.{level}"
        for j in range(RESNETS + 1):
            yield from resnet(f"{ldm}.{j}", f"{hf}.resnets.{j}", given if j == 0 else wide, wide, KERNEL)
        if level < last:
            step = f"{ldm}.{RESNETS + 1}", f"{hf}.upsampler"
            yield from _step(*step, wide, 2 * wide if layout.in_time[::-1][level] else 0)
        given = wide
    yield from head("decoder", PIXEL, given, KERNEL)


def _step(ldm: str, hf: str, width: int, in_time: int) -> Iterator[Row]:
    """To the next level."""
    yield from both(f"{ldm}.resample.1", f"{hf}.resample.1", (width, width, 3, 3))
    if in_time:
        yield from both(f"{ldm}.time_conv", f"{hf}.time_conv", (in_time, width, 1, 1))


@dataclass(frozen=True)
class RgbaAutoencoder:
    """As `flow.autoencoder.Autoencoder`."""

    file: str
    """As people know it."""

    def part(self) -> Part:
        """Of a diffusers folder."""
        return Part("vae", "VAE", "diffusion_pytorch_model", ("base_dim", "dim_mult", "z_dim"), self._rows_of)

    def _rows_of(self, config: Mapping[str, Any]) -> list[Row]:
        layout = _layout_from(config)
        spread = [len(config[name]) for name in ("latents_mean", "latents_std") if name in config]
        if any(size != layout.latents for size in spread) or len(layout.in_time) != len(layout.times) - 1:
            raise ValueError("the sizes of its latents or of its levels do not fit each other")
        if not config.get("is_residual", True) or config.get("patch_size") or config.get("attn_scales"):
            raise ValueError("it has other blocks")
        return rows(layout)

    def check(self, path: Path, words: str) -> Header | None:
        """The header of a file with such a VAE alone; None of a folder. UserErrors for another file or VAE; `words`:
        what people call the base."""
        if path.is_dir():
            config = read_config(vae_folder(path)) or {}
            if "block_out_channels" in config:
                raise UserError(f"this is a VAE without transparency, not that of {words}", file=path, hint=self._hint)
            self._fits(config.get("z_dim"), config.get("in_channels", PIXEL), words, path)
            check_part(vae_folder(path), self.part())
            return None
        header = read_header(path)
        kind = kinds.addition(header.shapes) or kinds.other(header.shapes)
        names = _names(header.shapes)
        shapes = _flat(header.shapes, names)
        if kind not in (kinds.FILM_VAE, kinds.VAE) or "encoder.conv1.weight" not in shapes:
            raise UserError(f"this is {kind.words}, not the VAE of {words}", file=path, hint=self._hint)
        latents = size_of(shapes, "decoder.conv1.weight", 1, path)
        self._fits(latents, size_of(shapes, "encoder.conv1.weight", 1, path), words, path)
        unknown = [name for name in shapes if not is_spare(name)]
        check_rows(shapes, {"VAE": rows(_layout_of(shapes, path))}, unknown, file=path, plain=self._hint)
        check_floats(path, header, ("",), is_spare)
        return header

    @property
    def _hint(self) -> str:
        return f"give {self.file}, the VAE of {CHANNELS} channels, or a folder with it"

    def _fits(self, latents: Any, seen: Any, words: str, path: Path) -> None:
        if isinstance(latents, int) and latents != CHANNELS:
            text = f"this VAE makes latents of {latents} channels, {words} has {CHANNELS}"
            raise UserError(text, file=path, hint=self._hint)
        if seen != PIXEL:
            raise UserError(f"this VAE has no transparency, that of {words} has", file=path, hint=self._hint)

    def load(self, path: Path, words: str) -> Any:
        """A `frame.Frame` around the model of diffusers, from a file or a folder that `check` takes."""
        import torch
        from safetensors import safe_open

        from lora_scripts.families.qwen_image21.frame import Frame
        from lora_scripts.families.sd.load import pretrained

        kind = of_diffusers("AutoencoderKLQwenImage21")
        header = self.check(path, words)
        if header is None:
            return Frame(pretrained(kind, vae_folder(path)))
        names = _names(header.shapes)
        layout = _layout_of(_flat(header.shapes, names), path)
        with safe_open(path, "pt") as handle:
            state = {row.hf: handle.get_tensor(names[row.ldm]).reshape(row.shape) for row in rows(layout)}
        with torch.device("meta"):
            vae = kind(**_config(layout))
        vae.load_state_dict(state, strict=True, assign=True)
        return Frame(vae)

    def normal(self, vae: Any) -> Normal:
        """How its latents are normalised: by mean and deviation of each channel."""
        from lora_scripts.families.sd.latents import Normal

        return Normal.of_channels(vae)


def _names(shapes: Shapes) -> dict[str, str]:
    """Published key -> key in the file, which may have diffusers' names."""
    if "encoder.conv_in.weight" not in shapes:
        return {key: key for key in shapes}
    rename = {row.hf: row.ldm for row in rows(STANDARD)}
    return {rename.get(key, key): key for key in shapes}


def _flat(shapes: Shapes, names: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Shapes by published key, without the axis of time of a frame."""
    told = {name: tuple(shapes[key]) for name, key in names.items()}
    return {name: (*own[:2], *own[3:]) if len(own) == 5 and own[2] == 1 else own for name, own in told.items()}


def _layout_of(shapes: Shapes, file: Path) -> RgbaLayout:
    """Of a single file, by its published keys."""
    levels = range(count_of(shapes, "encoder.downsamples."))
    downs = [f"encoder.downsamples.{n}.downsamples" for n in levels]
    base = size_of(shapes, "encoder.conv1.weight", 0, file)
    times = tuple(size_of(shapes, f"{down}.0.residual.2.weight", 0, file) // base for down in downs)
    return RgbaLayout(
        base=base,
        decoder=size_of(shapes, "decoder.head.0.gamma", 0, file),
        times=times,
        in_time=tuple(f"{down}.{RESNETS}.time_conv.weight" in shapes for down in downs[:-1]),
        latents=size_of(shapes, "decoder.conv1.weight", 1, file),
    )


def _layout_from(config: Mapping[str, Any]) -> RgbaLayout:
    """Of a folder. KeyError and the like for a config that says it not."""
    base, times = config["base_dim"], tuple(config["dim_mult"])
    in_time = tuple(config.get("temperal_downsample", STANDARD.in_time))
    return RgbaLayout(base, config.get("decoder_base_dim") or base, times, in_time, config["z_dim"])


def _config(layout: RgbaLayout) -> dict[str, Any]:
    """Arguments of the model of diffusers; how its latents are spread a single file does not say: as published."""
    return {
        "base_dim": layout.base,
        "decoder_base_dim": layout.decoder,
        "z_dim": layout.latents,
        "dim_mult": list(layout.times),
        "num_res_blocks": RESNETS,
        "temperal_downsample": list(layout.in_time),
    }


RGBA_VAE = RgbaAutoencoder("qwen_image_2.1_vae_bf16.safetensors")
