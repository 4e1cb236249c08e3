"""`lora-scripts verify`, and the proof at the end of every training: does each consumer do with a file what was
trained?
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lora_scripts.errors import UserError
from lora_scripts.families.facts import Facts
from lora_scripts.families.names import Base
from lora_scripts.families.table import find
from lora_scripts.loras import dialects
from lora_scripts.loras.consumers import (
    CONSUMERS,
    a1111,
    additional_networks,
    comfyui,
    compare,
    forge,
    invokeai,
    kohya_tools,
    published,
    rules,
    run_diffusers,
    run_peft,
    sdnext,
)
from lora_scripts.loras.consumers.compare import Verdict
from lora_scripts.loras.consumers.rules import Delta, Fault, Reading
from lora_scripts.loras.dialects import Adapter
from lora_scripts.loras.file import Contents, open_lora, plain
from lora_scripts.units import typed

MATCHERS: dict[str, Callable[[Mapping[str, Tensor], Base], Reading]] = {
    "A1111": a1111.read,
    "ComfyUI": comfyui.read,
    "Forge": forge.read,
    "InvokeAI": invokeai.read,
    "SD.Next": sdnext.read,
    "additional-networks": additional_networks.read,
    "kohya": kohya_tools.read,
}
"""Our own statements of the programs' rules: consumers.STATED."""


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


def verify(path: Path, base: Path, reference: Path | None, consumers: Sequence[str]) -> list[Verdict]:
    """A verdict for each consumer asked for. UserError when a file cannot be read at all."""
    skeleton = Skeleton.of(base)
    source = open_lora(path, skeleton.facts)
    source.require_family()
    if source.cored:
        hint = f"verify what this makes of it: {typed(['lora-scripts', 'convert', str(path), '--to', 'kohya'])}"
        raise UserError(
            "this is a LoCon with Tucker cores (lora_mid), which some programs pass over", file=path, hint=hint
        )
    trained = open_lora(reference, skeleton.facts) if reference else None
    expected, faults = expected_by(trained or source, skeleton)
    if trained is not None and faults:
        why = f"the reference is broken: {faults[0].key} {faults[0].why}"
        raise UserError(why, file=reference, hint="give the original")
    return check(source, skeleton, expected, consumers)


def check(
    source: Contents, skeleton: Skeleton, expected: Mapping[str, Delta], consumers: Sequence[str]
) -> list[Verdict]:
    """Runs or consults each consumer that knows such models, and compares. UserError if none does."""
    facts, asked = skeleton.facts, [name for name in CONSUMERS if name in consumers]
    reading = [name for name in asked if name not in facts.lora.unread_by]
    if not reading:
        raise UserError(f"{', '.join(asked)} knows no models of {facts.words}", hint="ask another program")
    own = _published(source, skeleton).faults
    readings = {name: _read(name, source, skeleton) for name in reading}
    return compare.judge(expected, readings, skeleton.base, list(source.tensors), own)


def expected_by(source: Contents, skeleton: Skeleton) -> tuple[dict[str, Delta], list[Fault]]:
    """What the file means by the published formula, and its keys that mean nothing. PEFT's alpha is in its config."""
    reading = _published(source, skeleton)
    if source.adapters:
        return {path: Delta(change) for path, change in source.modules().items()}, reading.faults
    return reading.changes, reading.faults


def _published(source: Contents, skeleton: Skeleton) -> Reading:
    """The file by the published formula; of PEFT's adapters, each of which is for a part, only the faults."""
    names = skeleton.facts.names()
    if not source.adapters:
        return published.read(source.tensors, skeleton.base, names, source.metadata)
    parts = source.parts().items()
    readings = [published.read(tensors, skeleton.base.part(part), names) for part, (tensors, _) in parts]
    return Reading(faults=[fault for reading in readings for fault in reading.faults])


def _read(name: str, source: Contents, skeleton: Skeleton) -> Reading:
    if name in MATCHERS:
        return MATCHERS[name](source.tensors, skeleton.base)
    roots = skeleton.facts.build(skeleton.path)
    if name == "diffusers":
        if source.adapters:
            return Reading().refuse("", "its pipelines load one file; PEFT's folders are for PeftModel")
        return run_diffusers.read(source.path, roots, skeleton.facts.lora.loader)
    try:
        adapters = _adapters(source, skeleton.facts.wrapped())
    except UserError as error:
        return Reading().refuse("", f"it cannot be converted: {error.errors[0].message}")
    reading = run_peft.read(adapters, roots)
    reading.note = rules.unread_words(source.tensors)
    return reading


def _adapters(source: Contents, prefixes: Mapping[str, str]) -> dict[str, Adapter]:
    """PEFT's own, or a file converted to them."""
    if source.adapters:
        return {part: Adapter(tensors, config) for part, (tensors, config) in source.parts().items()}
    return dialects.to_peft(plain(source.modules(), dora=True), prefixes)
