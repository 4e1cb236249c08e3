"""A base model on the disk, in either layout, and where in it each weight stands that a LoRA may change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from lora_scripts.dtypes import FLOATS
from lora_scripts.errors import UserError, raise_all
from lora_scripts.families.facts import Facts
from lora_scripts.families.names import Share
from lora_scripts.families.table import FAMILIES, bases, identify
from lora_scripts.formats.gguf import is_gguf
from lora_scripts.formats.header import Header, read_header

BESIDE = "text_encoder"
_WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".onnx", ".h5")


class Place(NamedTuple):
    """Where one layer's weight stands."""

    file: str
    """Inside the folder, with /; "" of a single file."""
    key: str
    share: Share | None = None
    """Which of its rows, where it is the weight of several layers."""
    flipped: bool = False
    """Whether the weight lies [in, out] there."""
    swapped: bool = False
    """Whether its two halves stand the other way round there."""

    def rows(self, length: int) -> slice:
        """The rows of the tensor [length, …] that are meant."""
        return slice(0, length) if self.share is None else self.share.rows(length)


@dataclass(frozen=True)
class Checkpoint:
    """One `.safetensors` in the published layout, or a diffusers folder."""

    path: Path
    family: Facts
    files: dict[str, Header]
    """Every file with weights, also those that no LoRA changes; "" of a single file."""
    places: dict[str, list[Place]]
    """Our module path -> where its weight stands; in a folder with variants (fp16), more than once. Of all layers, also
    those that no LoRA file has a name for."""
    left_out: list[str] = field(default_factory=list)
    """Of a folder: other copies of the weights, which a merge would leave as they were."""
    beside: Path | None = None
    """Of a single file: that of the text encoder, where LoRAs go into that, too; in `files` it is called BESIDE."""

    @property
    def is_folder(self) -> bool:
        return self.path.is_dir()

    def file(self, name: str) -> Path:
        if name == BESIDE and self.beside is not None:
            return self.beside
        return self.path / name if name else self.path

    def written(self, name: str, output: Path) -> Path:
        """Where the file is written to when the model is written to `output`."""
        if name == BESIDE and self.beside is not None:
            return output.with_name(f"{output.stem}-{self.beside.name}")
        return output / name if name else output

    def shape(self, module: str) -> tuple[int, ...]:
        """Of the layer's weight."""
        place = self.places[module][0]
        shape = self.files[place.file].tensors[place.key].shape
        if place.flipped:
            return shape[::-1]
        rows = place.rows(shape[0])
        return (rows.stop - rows.start, *shape[1:])

    def others(self) -> Iterator[str]:
        """Of a folder: every other file that belongs to it."""
        for path in sorted(self.path.rglob("*")):
            name = path.relative_to(self.path).as_posix()
            hidden = any(part.startswith(".") for part in name.split("/"))
            if path.is_file() and name not in self.files and name not in self.left_out and not hidden:
                yield name


def open_checkpoint(path: Path, text_encoder: Path | None = None) -> Checkpoint:
    """Finds the weights by the headers alone. UserError for a model that no LoRA goes into, saying what it is.

    `text_encoder`: of a base in one file, the file of the text encoder that takes LoRA, too. Keys that no table knows
    are no fault here: they are copied as they are.
    """
    model = _folder(path) if path.is_dir() else _single(path)
    if text_encoder is not None:
        model = _with_text(model, text_encoder)
    quantised = []
    for places in model.places.values():
        for place in places:
            info = model.files[place.file].tensors[place.key]
            if info.dtype not in FLOATS:
                quantised.append((model.file(place.file), place.key, info.dtype))
    if quantised:
        file, key, dtype = quantised[0]
        hint = "this is a quantised file; give the fp32, fp16 or bf16 version"
        raise UserError(f"{len(quantised)} weights are not floating point, first {key} ({dtype})", file=file, hint=hint)
    return model


def _single(path: Path) -> Checkpoint:
    family, header = _family(path), read_header(path)
    weights = family.weights(header, path)
    places = {
        module: [Place("", weight.key, weight.share, swapped=weight.swapped)] for module, weight in weights.items()
    }
    return Checkpoint(path, family, {"": header}, places)


def _with_text(model: Checkpoint, path: Path) -> Checkpoint:
    find = model.family.text_weights
    if find is None or model.is_folder:
        what = "a folder, which has its own" if find else f"{model.family.words}, of which no such file takes a LoRA"
        raise UserError(f"text_encoder: the base is {what}", file=path, hint="leave it out")
    if not path.is_file():
        raise UserError("text_encoder must be a file", file=path, hint="give the one of the text encoder, .safetensors")
    places = {module: [Place(BESIDE, key)] for module, key in find(model.path, path).items()}
    files = {**model.files, BESIDE: read_header(path)}
    return replace(model, files=files, places={**model.places, **places}, beside=path)


def _family(path: Path) -> Facts:
    """UserError for a model that no LoRA goes into."""
    kind = identify(path)
    family = next((facts for facts in FAMILIES if kind in facts.mergeable), None)
    if family is None:
        raise UserError(f"this is {kind.words}", file=path, hint=bases())
    if path.is_file() and is_gguf(path):
        text = f"this is {kind.words} in a GGUF file, to whose numbers nothing can be added"
        hint = "give its .safetensors in bf16, fp16 or fp32; a LoRA that was trained on the GGUF fits that, too"
        raise UserError(text, file=path, hint=hint)
    return family


def _folder(path: Path) -> Checkpoint:
    family = _family(path)
    if family.folder_weights is not None:
        weights = family.folder_weights(path)
        headers = {name: read_header(path / name) for name in family.folder_files(path)}
        here = {module: [Place(w.file, w.key, flipped=w.flipped)] for module, w in weights.items()}
        others = [p.name for p in sorted(path.glob("*")) if p.suffix in _WEIGHTS and p.name not in headers]
        return Checkpoint(path, family, headers, here, others)
    if not family.parts:
        hint = f"give {family.words} as one .safetensors file"
        raise UserError(
            f"this is a diffusers folder of {family.words}, which is not supported here", file=path, hint=hint
        )
    files: dict[str, Header] = {}
    places: dict[str, list[Place]] = {}
    faults, left_out = [], [p.name for p in sorted(path.glob("*")) if p.suffix in _WEIGHTS]
    for part, dropped in family.parts.items():
        shards = sorted((path / part).glob("*.safetensors"), key=lambda p: (len(p.name), p.name))
        left_out += [
            f"{part}/{p.name}" for p in sorted((path / part).glob("*")) if p.suffix in _WEIGHTS and p not in shards
        ]
        if not shards and part in family.text_roots and family.check_text is not None:
            continue  # it lies elsewhere
        if not shards:
            hint = "it needs .safetensors weights; pickle files are not read, because they can run code"
            faults.append(UserError("there are no .safetensors weights", file=path / part, hint=hint))
        for file in shards:
            name = f"{part}/{file.name}"
            files[name] = header = read_header(file)
            for key in header.tensors:
                if key.endswith(".weight"):
                    module = f"{part}.{key.removesuffix('.weight').removeprefix(dropped)}"
                    places.setdefault(module, []).append(Place(name, key))
    raise_all(faults)
    return Checkpoint(path, family, files, places, left_out)
