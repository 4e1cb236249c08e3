"""`lora-scripts verify`, and the proof at the end of every training: does each consumer do with a file what was
trained?
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.errors import UserError, UserErrors
from lora_scripts.families.facts import Facts
from lora_scripts.families.names import Base
from lora_scripts.families.sd1.names import sd1
from lora_scripts.families.table import find, require_lora
from lora_scripts.formats import header
from lora_scripts.loras import dialects, embedding
from lora_scripts.loras.consumers import (
    a1111,
    additional_networks,
    comfyui,
    compare,
    invokeai,
    kohya_tools,
    published,
    rules,
    run_diffusers,
    run_peft,
)
from lora_scripts.loras.consumers.compare import Verdict
from lora_scripts.loras.consumers.rules import Change, Fault, Reading
from lora_scripts.loras.dialects import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Adapter
from lora_scripts.loras.naming import Naming, naming_of

MATCHERS: dict[str, Callable[[Mapping[str, Tensor], Base], Reading]] = {
    "A1111": a1111.read,
    "ComfyUI": comfyui.read,
    "InvokeAI": invokeai.read,
    "additional-networks": additional_networks.read,
    "kohya": kohya_tools.read,
}
"""Our own statements of the programs' rules, by the programs' names."""
RUN = ("diffusers", "PEFT")
"""Libraries that are run."""
CONSUMERS = (*RUN, *MATCHERS)


@dataclass(frozen=True)
class Skeleton:
    """A base model without its weights: the layers that a LoRA meets, read from headers and configs alone."""

    facts: Facts
    path: Path
    base: Base

    @classmethod
    def of(cls, path: Path) -> Skeleton:
        """UserError when the base is of no family, or broken."""
        facts = find(path)
        return cls(facts, path, facts.base(path))


@dataclass(frozen=True)
class Source:
    """A LoRA as it lies on the disk: one file, or a folder of PEFT adapters."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    adapters: dict[str, Adapter]
    """By part; of a folder."""

    @property
    def naming(self) -> Naming | None:
        return naming_of(self.tensors)

    def modules(self) -> dict[str, LoraWeights]:
        """Our module path -> weights, DoRA too. UserErrors for everything that is not as it should be."""
        if self.adapters:
            parts = {part: (adapter.tensors, adapter.config) for part, adapter in self.adapters.items()}
            return dialects.from_peft(parts, sd1(), file=self.path)
        return dialects.read(self.tensors, self.metadata, self.naming or Naming.KOHYA, sd1(), file=self.path)


def open_lora(path: Path) -> Source:
    """Reads a LoRA file, or a PEFT folder (`adapter_config.json` in it, or in folders of it). UserError for others."""
    if not path.is_dir():
        require_lora(path)
        return Source(path, safetensors.torch.load_file(path), header.read_header(path).metadata, {})
    folders = (
        [path] if (path / ADAPTER_CONFIG).is_file() else sorted(p.parent for p in path.glob(f"*/{ADAPTER_CONFIG}"))
    )
    if not folders:
        raise UserError(f"this folder holds no {ADAPTER_CONFIG}", file=path, hint="name a .safetensors file, or PEFT's")
    adapters: dict[str, Adapter] = {}
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for folder in folders:
        weights = folder / ADAPTER_WEIGHTS
        metadata |= header.read_header(weights).metadata
        found = safetensors.torch.load_file(weights)
        adapters[dialects.part_of(found)] = Adapter(found, _config(folder / ADAPTER_CONFIG))
        tensors |= found
    return Source(path, tensors, metadata, adapters)


def verify(path: Path, base: Path, reference: Path | None, consumers: Sequence[str]) -> list[Verdict]:
    """A verdict for each consumer asked for. UserError when a file cannot be read at all."""
    skeleton = Skeleton.of(base)
    source = open_lora(path)
    if source.naming is None:
        raise UserError("no key of this file names a layer of a LoRA", file=path, hint="name another file")
    trained = open_lora(reference) if reference else None
    expected, faults = expected_by(trained or source, skeleton.base)
    if trained is not None and faults:
        why = f"the reference is broken: {faults[0].key} {faults[0].why}"
        raise UserError(why, file=reference, hint="give the original")
    return check(source, skeleton, expected, consumers)


def verify_trained(
    path: Path, base: Path, weights: Mapping[str, LoraWeights], consumers: Sequence[str] = CONSUMERS
) -> list[Verdict]:
    """The consumers' verdicts on a file that was just written; `weights` is what was trained, from memory."""
    changes = {p: Change(w.down, w.up, w.alpha / w.rank, w.dora) for p, w in weights.items()}
    return check(open_lora(path), Skeleton.of(base), changes, consumers)


def require(verdicts: Sequence[Verdict], path: Path) -> str:
    """The one line of a file that is right everywhere; UserErrors, one for each consumer, where it is not."""
    failed = [verdict for verdict in verdicts if not verdict.ok]
    if failed:
        raise UserErrors([UserError(f"does not load as trained: {verdict}", file=path) for verdict in failed])
    return compare.summary(verdicts)


def check(
    source: Source, skeleton: Skeleton, expected: Mapping[str, Change], consumers: Sequence[str]
) -> list[Verdict]:
    """Runs or consults each consumer, and compares."""
    own = published.read(source.tensors, skeleton.base).faults
    readings = {name: _read(name, source, skeleton) for name in CONSUMERS if name in consumers}
    return compare.judge(expected, readings, skeleton.base, list(source.tensors), own)


def expected_by(source: Source, base: Base) -> tuple[dict[str, Change], list[Fault]]:
    """What the file means by the published formula, and its keys that mean nothing. PEFT's alpha is in its config."""
    reading = published.read(source.tensors, base)
    if source.adapters:
        known = source.modules()
        return {p: Change(w.down, w.up, w.alpha / w.rank) for p, w in known.items()}, reading.faults
    return reading.changes, reading.faults


def _read(name: str, source: Source, skeleton: Skeleton) -> Reading:
    if name in MATCHERS:
        return MATCHERS[name](source.tensors, skeleton.base)
    roots = skeleton.facts.build(skeleton.path)
    if name == "diffusers":
        if source.adapters:
            return Reading().refuse("", "its pipelines load one file; PEFT's folders are for PeftModel")
        return run_diffusers.read(source.path, roots)
    try:
        modules = replace(source, tensors=embedding.split_bundle(source.tensors)[0]).modules()
        adapters = dialects.to_peft(modules, flat_text=run_peft.text_is_flat(roots["text_encoder"]))
    except UserErrors as errors:
        return Reading().refuse("", f"it cannot be converted: {errors.errors[0].message}")
    except UserError as error:
        return Reading().refuse("", f"it cannot be converted: {error.message}")
    reading = run_peft.read(source.adapters or adapters, roots)
    reading.note = rules.unread_words(source.tensors)
    return reading


def _config(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read: {error}", file=path, hint="get the original file") from None
    if not isinstance(found, dict):
        raise UserError("is no table of settings", file=path, hint="get the original file")
    return found
