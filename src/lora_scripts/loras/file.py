"""LoRA files: the one reader, which knows every naming and family."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts.errors import UserError
from lora_scripts.families.facts import Facts
from lora_scripts.families.names import foreign_model
from lora_scripts.families.table import FAMILIES, Changed, of_lora, require_lora
from lora_scripts.formats import header, io
from lora_scripts.formats.hashes import model_hashes, with_hashes
from lora_scripts.formats.header import Header
from lora_scripts.loras import naming
from lora_scripts.loras.naming import PEFT_PREFIX, Naming
from lora_scripts.units import typed

if TYPE_CHECKING:
    from torch import Tensor

    from lora_scripts.adapters.weights import LoraWeights
    from lora_scripts.loras.reading import Change

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_LORA_CONFIG = {"peft_type": "LORA"}


@dataclass(frozen=True)
class Contents:
    """A LoRA as it lies on the disk, not looked at more closely: one file, or a folder of PEFT adapters."""

    path: Path
    tensors: dict[str, Tensor]
    """Of all adapters, words too."""
    metadata: dict[str, str]
    family: Facts | None = None
    """The family whose tables know the most of its names; None: none knows one."""
    adapters: dict[Path, tuple[dict[str, Tensor], dict[str, Any]]] = field(default_factory=dict)
    """Of PEFT: weights file -> (tensors, `adapter_config.json`)."""
    cored: bool = False
    """That the file is a LoCon with Tucker cores, which are gone here: some programs pass them over."""

    @property
    def naming(self) -> Naming | None:
        return naming.naming_of(self.tensors)

    @property
    def model(self) -> str:
        """What it is for, in words."""
        return self.family.words if self.family else foreign_model(self.tensors) or "an unknown family"

    def require_family(self) -> Facts:
        """UserError, saying what is known of the file, where it is of none."""
        return self.family or _strange(self.tensors, self.path)

    def parts(self) -> dict[str, tuple[dict[str, Tensor], dict[str, Any]]]:
        """The PEFT adapters by the part of the model that they are for: the folder's name, or told by their keys."""
        from lora_scripts.loras.reading import part_of

        names = self.require_family().names()
        return {
            file.parent.name if file.parent.name in names.parts else part_of(adapter[0], names): adapter
            for file, adapter in self.adapters.items()
        }

    def modules(self) -> dict[str, Change]:
        """Our module path -> what it holds of the layer. UserErrors for everything that is not as it should be."""
        from lora_scripts.loras import embedding, reading

        names = self.require_family().names()
        if self.adapters:
            return reading.read_peft(self.parts(), names, file=self.path)
        tensors, _ = embedding.split_bundle(self.tensors, self.path)
        return reading.read(tensors, names, metadata=self.metadata, file=self.path)


@dataclass(frozen=True)
class LoraFile:
    """One LoRA, read and understood."""

    path: Path
    family: Facts
    naming: Naming
    modules: dict[str, Change]
    """By our module path, in the file's own dtype."""
    words: dict[str, Tensor]
    """New words that are bundled in it -> their vectors [k, width]."""
    metadata: dict[str, str]

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def weights(self) -> dict[str, LoraWeights]:
        """The modules of a plain LoRA. UserError for a DoRA, LoHa, LoKr or OFT, saying which it is."""
        return plain(self.modules, self.path)

    @property
    def mergeable(self) -> dict[str, LoraWeights]:
        """As `weights`, of a LoRA or a DoRA: what can be added to a base, but not to another LoRA."""
        return plain(self.modules, self.path, dora=True)

    @property
    def rank(self) -> int:
        """The largest one in it, of a plain LoRA."""
        return max(w.rank for w in self.weights.values())

    @cached_property
    def sha256(self) -> str:
        """Of the file, lower case; of a folder's weights one after the other."""
        if self.path.is_file():
            return model_hashes(self.path).sha256
        digests = [model_hashes(file).sha256 for file in _weight_files(self.path)]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def read(path: Path, family: Facts | None = None) -> LoraFile:
    """Reads a LoRA file, or a folder of PEFT adapters, whole.

    UserError for another file, for unknown keys and spoilt values, for one that changes no weight, and for one that is
    not for `family`, where that is given.
    """
    from lora_scripts.loras import embedding, reading

    contents = open_lora(path, family)
    own = contents.require_family()
    if family is not None and own is not family:
        reading.refuse_others(list(contents.tensors), path)
        text = f"this LoRA is for {own.words}, the base model is {family.words}"
        raise UserError(text, file=path, hint="take a LoRA of the base's kind")
    modules = contents.modules()
    if not any(_changes(change) for change in modules.values()):
        raise UserError("this LoRA changes no weight: all of it is zero", file=path, hint="take another file")
    words = embedding.split_bundle(contents.tensors, path)[1]
    return LoraFile(path, own, contents.naming or Naming.KOHYA, modules, words, contents.metadata)


def read_plain(path: Path, *, dora: bool = False) -> LoraFile:
    """As `read`, of a plain LoRA (with `dora` also a DoRA) that brings no words: its ΔW is all that it does."""
    file = read(path)
    if file.words:
        text = f"this is a LoRA with words of its own in it ({', '.join(file.words)})"
        raise UserError(text, file=path, hint="give the one without them: train it without token_bundle")
    plain(file.modules, path, dora=dora)
    return file


def open_lora(path: Path, family: Facts | None = None) -> Contents:
    """Reads the tensors of a LoRA file, or of a PEFT folder (`adapter_config.json` in it, or in folders of it).

    `family` counts where the names fit it no less than another. UserError for what is no LoRA. A file of PEFT without
    its folder is an adapter whose alpha is its rank.
    """
    import safetensors.torch

    if not path.is_dir():
        require_lora(path)
    elif not _weight_files(path):
        raise UserError(f"this folder holds no {ADAPTER_CONFIG}", file=path, hint="name a .safetensors file, or PEFT's")
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    adapters = {}
    for file in _weight_files(path):
        metadata |= _head(file).metadata
        held = safetensors.torch.load_file(file)
        tensors |= held
        if path.is_dir() or naming.naming_of(held) is Naming.PEFT:
            adapters[file] = held, _config(file.parent / ADAPTER_CONFIG)
    cored = any(key.endswith(f".{naming.CORE}") for key in tensors)
    if cored:
        from lora_scripts.loras.unfused import without_cores

        tensors = without_cores(tensors)
    own = of_lora(_layers({key: tensor.shape for key, tensor in tensors.items()}), metadata, family)
    if own is not None and own.names().fused:
        from lora_scripts.loras.unfused import unfused

        tensors = unfused(tensors, own.names())
    return Contents(path, tensors, metadata, own, adapters, cored)


def family_of(path: Path) -> Facts:
    """The family of a LoRA, told by headers; torch is not needed. UserError when it is no LoRA, or of none."""
    if path.is_file() or not path.exists():
        require_lora(path)
    heads = [_head(file) for file in _weight_files(path)]
    shapes = {key: shape for head in heads for key, shape in head.shapes.items()}
    metadata = {key: value for head in heads for key, value in head.metadata.items()}
    return of_lora(_layers(shapes), metadata) or _strange(shapes, path)


def plain(modules: Mapping[str, Change], file: Path | None = None, *, dora: bool = False) -> dict[str, LoraWeights]:
    """The same modules, all plain LoRA; with `dora` a DoRA will do. UserError for others, saying what they are."""
    from lora_scripts.adapters.weights import LoraWeights

    result = {}
    for path, change in modules.items():
        if not isinstance(change, LoraWeights):
            leaf = next(leaf for leaf in change if leaf in naming.LYCORIS)  # alpha stands before them
            text = f"this is a LyCORIS file (it has {leaf} of {path})"
            raise UserError(text, file=file, hint="give a plain LoRA")
        if change.dora is not None and not dora:
            name, form = file.as_posix() if file else "FILE", "peft" if file and file.is_dir() else "kohya"
            bake = typed(["lora-scripts", "convert", name, "--to", form, "--bake-dora", "--base", "BASE"])
            text, hint = f"this is a DoRA (it has dora_scale of {path})", f"make a plain LoRA of it first: {bake}"
            raise UserError(text, file=file, hint=hint)
        result[path] = change
    return result


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a LoRA file with the hashes that WebUIs know it by."""
    io.save_safetensors(path, tensors, with_hashes(tensors, metadata))


def is_adapter(path: Path) -> bool:
    """That a folder is one of PEFT's, or holds such folders."""
    return path.is_dir() and bool(_weight_files(path))


def _weight_files(path: Path) -> list[Path]:
    """Of a file itself; of a folder the weights of its adapters."""
    if not path.is_dir():
        return [path]
    configs = [path / ADAPTER_CONFIG] if (path / ADAPTER_CONFIG).is_file() else sorted(path.glob(f"*/{ADAPTER_CONFIG}"))
    return [config.parent / ADAPTER_WEIGHTS for config in configs]


def _head(file: Path) -> Header:
    """Of a LoRA's weights. UserError where they are not there, saying what lies in their place, or not whole."""
    pickle = file.with_name("adapter_model.bin")
    if pickle.is_file() and not file.exists():
        text = "this adapter's weights are a pickle, which can run code when opened, so they are not read here"
        raise UserError(text, file=pickle, hint=f"save it again with a newer PEFT, which writes {ADAPTER_WEIGHTS}")
    return header.read_header(file)


def _config(path: Path) -> dict[str, Any]:
    """Of a PEFT adapter; where the file is not there, that of a LoRA with alpha = rank."""
    if not path.exists():
        return dict(_LORA_CONFIG)
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot be read: {error}", file=path, hint="get the original file") from None
    if not isinstance(config, dict):
        raise UserError("is no table of settings", file=path, hint="get the original file")
    return config


def _layers(shapes: Mapping[str, Sequence[int]]) -> Iterator[Changed]:
    """Of each layer the names in its keys. PEFT's do not say in which part of the model they are: any part will do."""
    sizes: dict[str, dict[str, Sequence[int]]] = {}
    for key, shape in shapes.items():
        stem, leaf = naming.split(key)
        sizes.setdefault(stem, {})[leaf] = shape
    for stem, leaves in sizes.items():
        inner = stem.removeprefix(PEFT_PREFIX)
        parts = [part for facts in FAMILIES for part in facts.names().parts] if inner != stem else []
        up, down = (leaves.get(leaf, ()) for leaf in (naming.UP, naming.DOWN))
        size = (up[0], down[1]) if len(up) > 1 and len(down) > 1 else (0, 0)
        yield Changed({stem, *(f"{part}.{inner}" for part in parts)}, *size)


def _strange(keys: Iterable[str], path: Path) -> Facts:
    """Raises the one line that says what a LoRA of no known family may be for."""
    keys = list(keys)
    model = foreign_model(keys)
    known = " or ".join(facts.words for facts in FAMILIES)
    if model is not None:
        raise UserError(f"this is a LoRA for {model}", file=path, hint=f"give a LoRA of {known}")
    from lora_scripts.loras.reading import nearest, refuse_others, shown

    refuse_others(keys, path)
    first = keys[0] if keys else ""
    near = nearest(first, (stem for facts in FAMILIES for stem in facts.names().stems))
    hint = f"the nearest known one is {near}" if near else f"give a LoRA of {known}"
    raise UserError(f"unknown key {shown(first)}: it names no layer of {known}", file=path, hint=hint)


def _changes(change: Change) -> bool:
    """Whether a module changes anything."""
    from lora_scripts.adapters import lycoris
    from lora_scripts.adapters.weights import LoraWeights

    if not isinstance(change, LoraWeights):
        return lycoris.changes(change)
    return change.dora is not None or bool(change.up.any() and change.down.any() and change.alpha)
