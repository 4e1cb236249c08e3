"""The VAE of Qwen-Image: one of films, after Wan's, that pictures go through as films of one frame.

Facts: diffusers' `AutoencoderKLQwenImage` and Wan2.1's `vae.py`, whose names the single file has. Its convolutions see
a frame and the two before it. Before the first there is nothing, zeros, so of one frame only the last of the three
slices of a kernel counts: the other two are left out here, a third of the products for the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts.errors import UserError
from lora_scripts.families import kinds
from lora_scripts.families.library import of_diffusers
from lora_scripts.families.sd.check import check_floats, read_config
from lora_scripts.families.sd.rows import Row, Shapes, both, check_rows, from_rows, is_spare, size_of
from lora_scripts.families.sd.vae import LEVELS, RESNETS
from lora_scripts.families.sd.whole import Part, check_part, vae_folder
from lora_scripts.formats.header import Header, read_header

if TYPE_CHECKING:
    from lora_scripts.families.sd.latents import Normal

MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip
"""Of each channel of its latents, as published; a single file says nothing of them."""
KERNEL = (3, 3, 3)
"""Of the convolutions: frames, rows, columns."""


@dataclass(frozen=True)
class FilmLayout:
    """What tells one of them from another."""

    base: int = 96
    """Channels of the first layer."""
    widths: tuple[int, ...] = (96, 192, 384, 384)
    """Of the four levels."""
    latents: int = len(MEAN)
    in_time: tuple[bool, ...] = (False, True, True)
    """Whether the step down behind a level halves the frames, too."""


def rows(layout: FilmLayout) -> list[Row]:
    """Every parameter."""
    return list(_rows(layout))


def _rows(layout: FilmLayout) -> Iterator[Row]:
    top, latents = layout.widths[-1], layout.latents
    yield from both("encoder.conv1", "encoder.conv_in", (layout.base, 3, 3, 3, 3))
    width, index = layout.base, 0
    for level, wide in enumerate(layout.widths):
        for _ in range(RESNETS):
            yield from resnet(f"encoder.downsamples.{index}", f"encoder.down_blocks.{index}", width, wide)
            width, index = wide, index + 1
        if level < LEVELS - 1:
            ldm, hf = f"encoder.downsamples.{index}", f"encoder.down_blocks.{index}"
            yield from both(f"{ldm}.resample.1", f"{hf}.resample.1", (wide, wide, 3, 3))
            if layout.in_time[level]:
                yield from both(f"{ldm}.time_conv", f"{hf}.time_conv", (wide, wide, 3, 1, 1))
            index += 1
    yield from middle("encoder", top)
    yield from head("encoder", 2 * latents, top)  # mean and log variance
    yield from both("conv1", "quant_conv", (2 * latents, 2 * latents, 1, 1, 1))
    yield from both("conv2", "post_quant_conv", (latents, latents, 1, 1, 1))
    yield from both("decoder.conv1", "decoder.conv_in", (top, latents, 3, 3, 3))
    yield from middle("decoder", top)
    width, index = top, 0
    for block, wide in enumerate(reversed(layout.widths)):
        for j in range(RESNETS + 1):
            yield from resnet(f"decoder.upsamples.{index}", f"decoder.up_blocks.{block}.resnets.{j}", width, wide)
            width, index = wide, index + 1
        if block < LEVELS - 1:
            ldm, hf = f"decoder.upsamples.{index}", f"decoder.up_blocks.{block}.upsamplers.0"
            yield from both(f"{ldm}.resample.1", f"{hf}.resample.1", (wide // 2, wide, 3, 3))
            if layout.in_time[::-1][block]:
                yield from both(f"{ldm}.time_conv", f"{hf}.time_conv", (2 * wide, wide, 3, 1, 1))
            width, index = wide // 2, index + 1
    yield from head("decoder", 3, layout.widths[0])


def resnet(ldm: str, hf: str, given: int, width: int, kernel: Sequence[int] = KERNEL) -> Iterator[Row]:
    """A residual block of Wan's; `kernel`: of its convolutions."""
    for number, name, wide in (("0", "norm1", given), ("3", "norm2", width)):
        yield Row(f"{ldm}.residual.{number}.gamma", f"{hf}.{name}.gamma", (wide, 1, 1, 1))
    for number, name, wide in (("2", "conv1", given), ("6", "conv2", width)):
        yield from both(f"{ldm}.residual.{number}", f"{hf}.{name}", (width, wide, *kernel))
    if given != width:
        yield from both(f"{ldm}.shortcut", f"{hf}.conv_shortcut", (width, given, *(1 for _ in kernel)))


def middle(part: str, width: int, kernel: Sequence[int] = KERNEL) -> Iterator[Row]:
    """Residual block, attention, residual block."""
    ldm, hf = f"{part}.middle", f"{part}.mid_block"
    yield from resnet(f"{ldm}.0", f"{hf}.resnets.0", width, width, kernel)
    yield Row(f"{ldm}.1.norm.gamma", f"{hf}.attentions.0.norm.gamma", (width, 1, 1))
    yield from both(f"{ldm}.1.to_qkv", f"{hf}.attentions.0.to_qkv", (3 * width, width, 1, 1))
    yield from both(f"{ldm}.1.proj", f"{hf}.attentions.0.proj", (width, width, 1, 1))
    yield from resnet(f"{ldm}.2", f"{hf}.resnets.1", width, width, kernel)


def head(part: str, out: int, width: int, kernel: Sequence[int] = KERNEL) -> Iterator[Row]:
    """What makes latents, or pixels, of the last features."""
    yield Row(f"{part}.head.0.gamma", f"{part}.norm_out.gamma", (width, 1, 1, 1))
    yield from both(f"{part}.head.2", f"{part}.conv_out", (out, width, *kernel))


@dataclass(frozen=True)
class FilmAutoencoder:
    """As `autoencoder.Autoencoder`."""

    file: str
    """As people know it."""

    def part(self) -> Part:
        """Of a diffusers folder."""
        return Part("vae", "VAE", "diffusion_pytorch_model", ("base_dim", "dim_mult", "z_dim"), self._rows_of)

    def _rows_of(self, config: Mapping[str, Any]) -> list[Row]:
        layout = _layout_from(config)
        mean, std = (config.get(name, of) for name, of in (("latents_mean", MEAN), ("latents_std", STD)))
        sizes = {len(layout.widths): LEVELS, len(mean): layout.latents, len(std): layout.latents}
        if layout.latents != len(MEAN) or any(size != wanted for size, wanted in sizes.items()):
            raise ValueError(f"this VAE makes latents of {layout.latents} channels, or says not how they are spread")
        if config.get("num_res_blocks", RESNETS) != RESNETS or config.get("attn_scales"):
            raise ValueError("it has other blocks")
        return rows(layout)

    def check(self, path: Path, words: str) -> Header | None:
        """The header of a file with such a VAE alone; None of a folder. UserErrors for another file or VAE; `words`:
        what people call the base."""
        if path.is_dir():
            config = read_config(vae_folder(path)) or {}
            if "block_out_channels" in config:
                raise UserError(f"this is a VAE of pictures alone, not the VAE of {words}", file=path, hint=self._hint)
            self._fits(config.get("z_dim"), config.get("input_channels", 3), words, path)
            check_part(vae_folder(path), self.part())
            return None
        header = read_header(path)
        kind = kinds.addition(header.shapes) or kinds.other(header.shapes)
        if kind is not kinds.FILM_VAE:
            what = "a VAE of pictures alone" if kind is kinds.VAE else kind.words
            raise UserError(f"this is {what}, not the VAE of {words}", file=path, hint=self._hint)
        names = _names(header.shapes)
        shapes = {name: header.shapes[key] for name, key in names.items()}
        latents = size_of(shapes, "decoder.conv1.weight", 1, path)
        self._fits(latents, size_of(shapes, "encoder.conv1.weight", 1, path), words, path)
        unknown = [name for name in shapes if not is_spare(name)]
        check_rows(shapes, {"VAE": rows(_layout_of(shapes, path))}, unknown, file=path, plain=self._hint)
        check_floats(path, header, ("",), is_spare)
        return header

    @property
    def _hint(self) -> str:
        return f"give {self.file}, the VAE of {len(MEAN)} channels, or a folder with it"

    def _fits(self, latents: Any, seen: Any, words: str, path: Path) -> None:
        if isinstance(latents, int) and latents != len(MEAN):
            text = f"this VAE makes latents of {latents} channels, {words} has {len(MEAN)}"
            raise UserError(text, file=path, hint=self._hint)
        if seen == 4:
            raise UserError(f"this VAE has transparency, {words} has none", file=path, hint=self._hint)

    def load(self, path: Path, words: str) -> Any:
        """A `still.Still` around the model of diffusers, from a file or a folder that `check` takes."""
        import torch
        from safetensors import safe_open

        from lora_scripts.families.flow.still import Still
        from lora_scripts.families.sd.load import pretrained

        kind = of_diffusers("AutoencoderKLQwenImage")
        header = self.check(path, words)
        if header is None:
            return Still(pretrained(kind, vae_folder(path)))
        names = _names(header.shapes)
        layout = _layout_of({name: header.shapes[key] for name, key in names.items()}, path)
        with safe_open(path, "pt") as handle:
            state = from_rows(handle, rows(layout), names)
        with torch.device("meta"):
            vae = kind(**self.config(layout))
        vae.load_state_dict(state, strict=True, assign=True)
        return Still(vae)

    def config(self, layout: FilmLayout) -> dict[str, Any]:
        """Arguments of the model of diffusers."""
        return {
            "base_dim": layout.base,
            "z_dim": layout.latents,
            "dim_mult": [width // layout.base for width in layout.widths],
            "num_res_blocks": RESNETS,
            "temperal_downsample": list(layout.in_time),
            "latents_mean": list(MEAN),
            "latents_std": list(STD),
        }

    def normal(self, vae: Any) -> Normal:
        """How its latents are normalised: by mean and deviation of each channel."""
        from lora_scripts.families.sd.latents import Normal

        return Normal.of_channels(vae)


def _names(shapes: Shapes) -> dict[str, str]:
    """Published key -> key in the file."""
    if "encoder.conv_in.weight" not in shapes:
        return {key: key for key in shapes}
    rename = {row.hf: row.ldm for row in rows(FilmLayout())}
    return {_as_published(key, rename): key for key in shapes}


def _as_published(name: str, rename: Mapping[str, str]) -> str:
    """By the published layout; a VAE that is wider in other places has shortcuts in other blocks."""
    stem, _, leaf = name.partition(".conv_shortcut.")
    if leaf and f"{stem}.norm1.gamma" in rename:
        return f"{rename[f'{stem}.norm1.gamma'].removesuffix('.residual.0.gamma')}.shortcut.{leaf}"
    return rename.get(name, name)


def _layout_of(shapes: Shapes, file: Path) -> FilmLayout:
    """Of a single file, by its published keys."""
    firsts = [level * (RESNETS + 1) for level in range(LEVELS)]
    return FilmLayout(
        base=size_of(shapes, "encoder.conv1.weight", 0, file),
        widths=tuple(size_of(shapes, f"encoder.downsamples.{n}.residual.2.weight", 0, file) for n in firsts),
        latents=size_of(shapes, "decoder.conv1.weight", 1, file),
        in_time=tuple(f"encoder.downsamples.{n - 1}.time_conv.weight" in shapes for n in firsts[1:]),
    )


def _layout_from(config: Mapping[str, Any]) -> FilmLayout:
    """Of a folder. KeyError and the like for a config that says it not."""
    base, in_time = config["base_dim"], tuple(config.get("temperal_downsample", FilmLayout.in_time))
    return FilmLayout(base, tuple(base * times for times in config["dim_mult"]), config["z_dim"], in_time)


QWEN_VAE = FilmAutoencoder("qwen_image_vae.safetensors")
