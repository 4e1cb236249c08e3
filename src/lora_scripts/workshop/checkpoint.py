"""A base model on the disk, in either layout, and where in it each weight stands that a LoRA may change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from lora_scripts.errors import UserError, raise_all
from lora_scripts.families.kinds import kind_of
from lora_scripts.families.sd1 import singlefile
from lora_scripts.families.sdxl import names
from lora_scripts.formats.header import Header, read_header
from lora_scripts.loras.file import FAMILIES, SD1, SDXL, LoraFamily

_WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".onnx", ".h5")
_ROOTS = {"unet": "unet", "text_encoder": "text_encoder"}
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


class Place(NamedTuple):
    """Where one layer's weight stands."""

    file: str
    """Inside the folder, with /; "" of a single file."""
    key: str
    third: int | None = None
    """Which third of its rows, where q, k and v are one matrix."""

    def rows(self, length: int) -> slice:
        """The rows of the tensor [length, …] that are meant."""
        if self.third is None:
            return slice(0, length)
        step = length // 3
        return slice(self.third * step, (self.third + 1) * step)


@dataclass(frozen=True)
class Checkpoint:
    """One `.safetensors` in the published layout, or a diffusers folder."""

    path: Path
    family: LoraFamily
    files: dict[str, Header]
    """Every file with weights that a LoRA may change; "" of a single file."""
    places: dict[str, list[Place]]
    """Our module path -> where its weight stands; in a folder with variants (fp16), more than once. Of all layers, also
    those that no LoRA file has a name for."""
    left_out: list[str] = field(default_factory=list)
    """Of a folder: other copies of the weights, which a merge would leave as they were."""

    @property
    def is_folder(self) -> bool:
        return self.path.is_dir()

    def file(self, name: str) -> Path:
        return self.path / name if name else self.path

    def shape(self, module: str) -> tuple[int, ...]:
        """Of the layer's weight."""
        place = self.places[module][0]
        shape = self.files[place.file].tensors[place.key].shape
        return shape if place.third is None else (shape[0] // 3, *shape[1:])

    def others(self) -> Iterator[str]:
        """Of a folder: every other file that belongs to it."""
        for path in sorted(self.path.rglob("*")):
            name = path.relative_to(self.path).as_posix()
            hidden = any(part.startswith(".") for part in name.split("/"))
            if path.is_file() and name not in self.files and name not in self.left_out and not hidden:
                yield name


def open_checkpoint(path: Path) -> Checkpoint:
    """Finds the weights by the headers alone. UserError for a model that no LoRA goes into, saying what it is.

    Keys that no table knows are no fault here: they are copied as they are.
    """
    found = _folder(path) if path.is_dir() else _single(path)
    odd = []
    for places in found.places.values():
        for place in places:
            info = found.files[place.file].tensors[place.key]
            if info.dtype not in _FLOATS:
                odd.append((found.file(place.file), place.key, info.dtype))
    if odd:
        file, key, dtype = odd[0]
        hint = "this is a quantised file; give the fp32, fp16 or bf16 version"
        raise UserError(f"{len(odd)} weights are not floating point, first {key} ({dtype})", file=file, hint=hint)
    return found


def _single(path: Path) -> Checkpoint:
    header = read_header(path)
    kind = kind_of(header.shapes)
    family = next((family for family in FAMILIES if kind in family.kinds), None)
    if family is None:
        hint = "give a Stable Diffusion 1.x or SDXL checkpoint: one .safetensors file or a diffusers folder"
        raise UserError(f"this is {kind.words}", file=path, hint=hint)
    places: dict[str, list[Place]] = {}
    if family is SDXL:
        for module in names.modules():
            if module.ldm in header.tensors:
                places[module.path] = [Place("", module.ldm, module.third)]
    else:
        layout = singlefile.layout_of(header.shapes, file=path, vae=False)
        for part, rows in (("unet", singlefile.unet_rows(layout)), ("text_encoder", singlefile.text_rows(layout))):
            for row in rows:
                if row.hf.endswith(".weight") and row.ldm in header.tensors:
                    name = row.hf.removesuffix(".weight").removeprefix("text_model.")
                    places[f"{part}.{name}"] = [Place("", row.ldm)]
    return Checkpoint(path, family, {"": header}, places)


def _folder(path: Path) -> Checkpoint:
    if (path / "text_encoder_2").exists():
        hint = "give SDXL as one .safetensors file"
        raise UserError("this is a diffusers folder of SDXL, which is not supported here", file=path, hint=hint)
    missing = [part for part in _ROOTS if not (path / part / "config.json").is_file()]
    if missing:
        words = f"this folder has no {', '.join(f'{part}/config.json' for part in missing)}"
        raise UserError(words, file=path, hint="give a diffusers folder of Stable Diffusion 1.x, or a single file")
    files: dict[str, Header] = {}
    places: dict[str, list[Place]] = {}
    faults, left_out = [], [p.name for p in sorted(path.glob("*")) if p.suffix in _WEIGHTS]
    for part in _ROOTS:
        found = sorted((path / part).glob("*.safetensors"), key=lambda p: (len(p.name), p.name))
        left_out += [
            f"{part}/{p.name}" for p in sorted((path / part).glob("*")) if p.suffix in _WEIGHTS and p not in found
        ]
        if not found:
            hint = "it needs .safetensors weights; pickle files are not read, because they can run code"
            faults.append(UserError("there are no .safetensors weights", file=path / part, hint=hint))
        for file in found:
            name = f"{part}/{file.name}"
            files[name] = header = read_header(file)
            for key in header.tensors:
                if key.endswith(".weight"):
                    module = f"{part}.{key.removesuffix('.weight').removeprefix('text_model.')}"
                    places.setdefault(module, []).append(Place(name, key))
    raise_all(faults)
    context = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    if context not in places:
        raise UserError("this is not a Stable Diffusion 1.x model", file=path, hint="give the folder of one")
    if files[places[context][0].file].tensors[places[context][0].key].shape[1] == 1024:
        raise UserError("this is Stable Diffusion 2.x, which is not supported", file=path, hint="give one of 1.x")
    return Checkpoint(path, SD1, files, places, left_out)
