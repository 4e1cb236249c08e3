"""`lora-scripts inspect`: what a model file is, what looks wrong with it, and where it will load."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lora_scripts.errors import UserError
from lora_scripts.events import Note, Progress, Sink, ignore
from lora_scripts.families.facts import Facts
from lora_scripts.families.kinds import LORA
from lora_scripts.families.table import identify, refuse, trainable
from lora_scripts.formats import header
from lora_scripts.formats.below import models_below
from lora_scripts.formats.gguf import is_gguf, read_model
from lora_scripts.formats.hashes import model_hashes
from lora_scripts.formats.header import Header, Kind
from lora_scripts.loras.alphas import ALPHA_KEY, DIFFUSERS_KEY
from lora_scripts.loras.consumers import a1111, published
from lora_scripts.loras.file import Contents, is_adapter, open_lora, plain
from lora_scripts.loras.portrait import Portrait, portrait, triggers
from lora_scripts.loras.verify import MATCHERS

_PARTS = (
    ("UNet", "model.diffusion_model."),
    ("VAE", "first_stage_model."),
    ("text encoder", "cond_stage_model."),
    ("text encoders", "text_encoders."),
)


@dataclass(frozen=True, kw_only=True)
class Report:
    """One file, or one folder of PEFT's."""

    path: Path
    what: str
    family: str
    size: int
    """Bytes."""
    dtypes: Mapping[str, int]
    """The format's name -> numbers kept in it."""
    hashes: Mapping[str, str]
    metadata: Mapping[str, str]
    triggers: Sequence[tuple[str, int | None]] = ()
    naming: str = ""
    lora: Portrait | None = None
    problems: Sequence[str] = ()
    loads: Mapping[str, str] = field(default_factory=dict)
    """Program -> "yes", or the first key that fails and why."""
    parts: Mapping[str, int] = field(default_factory=dict)
    """Of a checkpoint: part -> numbers in it."""

    @property
    def plain(self) -> bool:
        """Whether it is neither a DoRA nor a LyCORIS file, which has no modules here."""
        modules = self.lora.modules if self.lora is not None else []
        return bool(modules) and not any(module.dora for module in modules)


@dataclass(frozen=True)
class Inspected:
    """What was looked at."""

    path: Path
    reports: tuple[Report, ...]
    faults: tuple[UserError, ...]
    """Of a folder: one for each file that cannot be read."""
    is_folder: bool
    """That `path` is a folder of files, not one file or one adapter."""


def inspect(path: Path, *, sink: Sink = ignore) -> Inspected:
    """Looks at a file, at PEFT's folder, or at every model of a folder. UserError when there is nothing to look at."""
    if not path.is_dir() or is_adapter(path):
        return Inspected(path, (report_of(path),), (), is_folder=False)
    files, left_out = models_below(path, ".safetensors", ".gguf")
    if not files:
        more = f" but {left_out} of a run's cache and resume states" if left_out else ""
        raise UserError(f"this folder holds no .safetensors or .gguf file{more}", file=path, hint="name a file")
    if left_out:
        sink(Note(f"{left_out} files of a run's cache and resume states are left out"))
    reports, faults = [], list[UserError]()
    for number, file in enumerate(files, 1):
        try:
            reports.append(report_of(file))
        except UserError as error:
            faults += error.errors
        sink(Progress("files", number, len(files)))
    return Inspected(path, tuple(reports), tuple(faults), is_folder=True)


def report_of(path: Path) -> Report:
    """Everything there is to say of a file. UserError when it cannot be read."""
    if path.is_dir():
        return _lora(open_lora(path), sum(f.stat().st_size for f in path.rglob("*") if f.is_file()), {})
    kind = identify(path)
    if kind is LORA:
        return _lora(open_lora(path), path.stat().st_size, _hashes(path))
    return _model(path, kind)


def _lora(source: Contents, size: int, hashes: dict[str, str]) -> Report:
    # PEFT keeps alpha in another file, and diffusers, as our own files with its names, in the metadata.
    elsewhere = source.adapters or not {ALPHA_KEY, DIFFUSERS_KEY}.isdisjoint(source.metadata)
    weights = plain(source.modules(), source.path, dora=True) if elsewhere else None
    seen = portrait(source.model, source.tensors, source.metadata, weights)
    is_dora = any(module.dora for module in seen.modules)
    problems = list(seen.problems)
    if source.cored:
        problems.append(
            "a LoCon with Tucker cores (lora_mid), which some programs pass over; convert makes it a plain one"
        )
    if is_dora and not source.adapters:
        problems.append("a DoRA: diffusers, additional-networks and kohya's tools drop its lengths; convert bakes it")
    stored = source.metadata.get("sshs_model_hash")
    if stored and stored.startswith("0x"):
        text = "is lycoris-lora's own, which no site knows: any change with lora-scripts metadata writes the true one"
        problems.append(f"sshs_model_hash in the metadata {text}")
    elif stored and hashes and stored != hashes["sshs_model_hash"]:
        problems.append("sshs_model_hash in the metadata is not this file's: the tensors were changed after")
    loads: dict[str, str] = {}
    if source.family is not None and source.family.model:
        more, loads = _where_it_loads(source, source.family)
        problems += more
    return Report(
        path=source.path,
        what="a DoRA" if is_dora else "a LoRA in PEFT's folder" if source.adapters else "a LoRA",
        family=seen.family,
        size=size,
        dtypes=_dtypes(source),
        hashes=hashes,
        metadata=source.metadata,
        triggers=triggers(source.metadata),
        naming=source.naming.value if source.naming else "unknown",
        lora=seen,
        problems=problems,
        loads=loads,
    )


def _where_it_loads(source: Contents, family: Facts) -> tuple[list[str], dict[str, str]]:
    """(problems, program -> what it says), by the matchers, with the family's names and without shapes."""
    if family.lora.folder:
        return [], {"PEFT": "its own form; lora-scripts verify with a --base proves it"}
    base = family.base(None)
    unknown = published.read(source.tensors, base, family.names(), source.metadata).faults
    strange = [fault for fault in unknown if fault.why.startswith("names no layer")]
    problems = [f"{len(strange)} keys name no layer of {family.words}, first {strange[0].key}"] if strange else []
    if hidden := a1111.hidden(source.metadata, family.lora.base_version, family.lora.v2):
        problems.append(hidden)
    loads = {}
    for name, read in MATCHERS.items():
        if name in family.lora.unread_by:
            continue
        faults = read(source.tensors, base).faults
        loads[name] = f"no: {faults[0].key}: {faults[0].why}" if faults else "yes"
    return problems, loads


def _model(path: Path, kind: Kind) -> Report:
    packed = is_gguf(path)
    if not packed and header.sniff(path) is not None:
        refuse(kind, path)
    head = read_model(path)
    dtypes: Counter[str] = Counter()
    parts: Counter[str] = Counter()
    for name, info in head.tensors.items():
        numbers = math.prod(info.shape)
        dtypes[info.dtype] += numbers
        parts[next((part for part, prefix in _PARTS if name.startswith(prefix)), "other")] += numbers
    return Report(
        path=path,
        what=f"{kind.words}, in a GGUF file" if packed and "GGUF" not in kind.words else kind.words,
        family=kind.words.removeprefix("a ").removeprefix("an ").removesuffix(" checkpoint"),
        size=path.stat().st_size,
        dtypes=dict(dtypes.most_common()),
        hashes=_hashes(path),
        metadata=head.metadata,
        parts=dict(parts),
        problems=_of_model(path, kind, head),
    )


def _of_model(path: Path, kind: Kind, head: Header) -> list[str]:
    facts = next((facts for facts in trainable() if facts.checkpoint is kind), None)
    if facts is None:
        return []
    try:
        facts.check(path, any(name.startswith("first_stage_model.") for name in head.tensors))
    except UserError as error:
        return [one.message for one in error.errors]
    return []


def _hashes(path: Path) -> dict[str, str]:
    hashes = model_hashes(path)
    return {
        "AutoV2": hashes.autov2,
        "AutoV3": hashes.autov3,
        "sha256": hashes.sha256,
        "sshs_model_hash": hashes.sshs_model_hash,
        "sshs_legacy_hash": hashes.sshs_legacy_hash,
    }


def _dtypes(source: Contents) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for tensor in source.tensors.values():
        counts[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    return dict(counts.most_common())
