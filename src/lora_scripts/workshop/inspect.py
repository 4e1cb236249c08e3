"""`lora-scripts inspect`: what a model file is, what looks wrong with it, and where it will load."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_scripts.errors import UserError, UserErrors
from lora_scripts.families.kinds import LORA
from lora_scripts.families.sd1.names import STANDARD, sd1_base
from lora_scripts.families.table import identify, refuse, trainable
from lora_scripts.formats import header
from lora_scripts.formats.hashes import Hashes, model_hashes
from lora_scripts.formats.header import Header, Kind
from lora_scripts.loras.consumers import a1111, published
from lora_scripts.loras.dialects import ALPHA_KEY
from lora_scripts.loras.portrait import SD1, Portrait, portrait, triggers
from lora_scripts.loras.verify import MATCHERS, Source, open_lora

_PARTS = (("UNet", "model.diffusion_model."), ("VAE", "first_stage_model."), ("text encoder", "cond_stage_model."))


@dataclass
class Report:
    """One file, or one folder of PEFT's."""

    path: Path
    what: str
    family: str
    size: int
    """Bytes."""
    dtypes: dict[str, int]
    """The format's name -> numbers kept in it."""
    hashes: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    triggers: list[tuple[str, int | None]] = field(default_factory=list)
    naming: str = ""
    lora: Portrait | None = None
    problems: list[str] = field(default_factory=list)
    loads: dict[str, str] = field(default_factory=dict)
    """Program -> "yes", or the first key that fails and why."""
    parts: dict[str, int] = field(default_factory=dict)
    """Of a checkpoint: part -> numbers in it."""


def inspect(path: Path, *, as_json: bool) -> None:
    """Prints one report, or a table of a folder's files. UserError when there is nothing to look at."""
    if path.is_dir() and not _is_adapter(path):
        files = sorted(path.rglob("*.safetensors"))
        if not files:
            raise UserError("this folder holds no .safetensors file", file=path, hint="name a file")
        reports, faults = [], []
        for file in files:
            try:
                reports.append(report_of(file))
            except UserError as error:
                faults.append(error)
        print(
            json.dumps([_plain(r) for r in reports], indent=1, ensure_ascii=False) if as_json else _table(reports, path)
        )
        if faults:
            raise UserErrors(faults)
        return
    report = report_of(path)
    print(json.dumps(_plain(report), indent=1, ensure_ascii=False) if as_json else _page(report))


def report_of(path: Path) -> Report:
    """Everything there is to say of a file. UserError when it cannot be read."""
    if path.is_dir():
        return _lora(open_lora(path), sum(f.stat().st_size for f in path.rglob("*") if f.is_file()), {})
    kind = identify(path)
    if kind is LORA:
        return _lora(open_lora(path), path.stat().st_size, _hashes(model_hashes(path)))
    return _model(path, kind)


def _lora(source: Source, size: int, hashes: dict[str, str]) -> Report:
    # PEFT keeps alpha in another file, and our own diffusers files in the metadata.
    weights = source.modules() if source.adapters or ALPHA_KEY in source.metadata else None
    found = portrait(source.tensors, source.metadata, weights)
    report = Report(
        path=source.path,
        what="a LoRA in PEFT's folder" if source.adapters else "a LoRA",
        family=found.family,
        size=size,
        dtypes=_dtypes(source),
        hashes=hashes,
        metadata=source.metadata,
        triggers=triggers(source.metadata),
        naming=source.naming.value if source.naming else "unknown",
        lora=found,
        problems=list(found.problems),
    )
    if any(module.dora for module in found.modules):
        report.what = "a DoRA"
        report.problems.append(
            "a DoRA: diffusers, additional-networks and kohya's tools drop its lengths; convert bakes it"
        )
    told = source.metadata.get("sshs_model_hash")
    if told and hashes and told != hashes["sshs_model_hash"]:
        report.problems.append("sshs_model_hash in the metadata is not this file's: the tensors were changed after")
    if found.family == SD1:
        _where_it_loads(report, source)
    return report


def _where_it_loads(report: Report, source: Source) -> None:
    """By the matchers, with the names of SD 1.x and no shapes, for there is no base here."""
    base = sd1_base(STANDARD, shapes=False)
    unknown = published.read(source.tensors, base).faults
    strange = [fault for fault in unknown if fault.why.startswith("names no layer")]
    if strange:
        report.problems.append(f"{len(strange)} keys name no layer of {SD1}, first {strange[0].key}")
    hidden = a1111.hidden(source.metadata)
    if hidden:
        report.problems.append(hidden)
    for name, read in MATCHERS.items():
        reading = read(source.tensors, base)
        first = reading.faults[0] if reading.faults else None
        report.loads[name] = "yes" if first is None else f"no: {first.key}: {first.why}"


def _model(path: Path, kind: Kind) -> Report:
    if header.sniff(path) is not None:
        refuse(kind, path)
    head = header.read_header(path)
    dtypes: Counter[str] = Counter()
    parts: Counter[str] = Counter()
    for name, info in head.tensors.items():
        numbers = math.prod(info.shape)
        dtypes[info.dtype] += numbers
        parts[next((part for part, prefix in _PARTS if name.startswith(prefix)), "other")] += numbers
    return Report(
        path=path,
        what=kind.words,
        family=kind.words.removeprefix("a ").removeprefix("an ").removesuffix(" checkpoint"),
        size=path.stat().st_size,
        dtypes=dict(dtypes.most_common()),
        hashes=_hashes(model_hashes(path)),
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
    except UserErrors as errors:
        return [error.message for error in errors.errors]
    except UserError as error:
        return [error.message]
    return []


def _hashes(hashes: Hashes) -> dict[str, str]:
    return {
        "AutoV2": hashes.autov2,
        "AutoV3": hashes.autov3,
        "sha256": hashes.sha256,
        "sshs_model_hash": hashes.sshs_model_hash,
        "sshs_legacy_hash": hashes.sshs_legacy_hash,
    }


def _dtypes(source: Source) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for tensor in source.tensors.values():
        counts[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    return dict(counts.most_common())


def _is_adapter(path: Path) -> bool:
    return (path / "adapter_config.json").is_file() or any(path.glob("*/adapter_config.json"))


def _page(r: Report) -> str:
    """The report for a terminal."""
    lines = [f"{r.path}: {r.what}" + (f", {r.family}" if r.lora else "") + f", {_bytes(r.size)}"]
    lines.append(f"precision: {', '.join(f'{name} ({count:,})' for name, count in r.dtypes.items())}")
    if r.lora:
        m = r.lora
        lines.append(f"names: {r.naming}; {len(m.modules)} modules, {_ranks(m)}")
        lines += ["", f"{'block':<18}{'modules':>8}{'|ΔW|':>11}{'largest σ':>11}  where"]
        lines += [f"{b.name:<18}{b.modules:>8}{b.frobenius:>11.4g}{b.spectral:>11.4g}  {b.largest}" for b in m.blocks]
    lines += [f"{part}: {count:,} numbers" for part, count in r.parts.items()]
    lines += ["", *(f"{name}: {value}" for name, value in r.hashes.items() if value)]
    if r.triggers:
        words = ", ".join(word + (f" ({count})" if count else "") for word, count in r.triggers)
        lines.append(f"trigger words: {words}")
    if r.metadata:
        lines.append(f"metadata: {len(r.metadata)} keys, see lora-scripts metadata")
    if r.loads:
        lines += ["", *(f"{name}: {said}" for name, said in r.loads.items())]
        lines.append("diffusers, PEFT: run lora-scripts verify with a --base")
    lines += ["", *(f"! {problem}" for problem in r.problems)] if r.problems else ["", "nothing looks wrong"]
    return "\n".join(lines)


def _table(reports: list[Report], folder: Path) -> str:
    """A line for each file of a folder."""
    rows = [("file", "what", "rank", "alpha", "modules", "size", "AutoV2", "looks wrong")]
    for r in reports:
        m = r.lora
        rows.append(
            (
                r.path.relative_to(folder).as_posix(),
                f"{r.what.removeprefix('a ')}, {r.family}" if m else r.what.removeprefix("a "),
                _span(m.ranks) if m else "",
                _span(m.alphas) if m else "",
                str(len(m.modules)) if m else "",
                _bytes(r.size),
                r.hashes.get("AutoV2", ""),
                f"{len(r.problems)}: {r.problems[0]}" if r.problems else "",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _ranks(m: Portrait) -> str:
    return f"rank {_span(m.ranks)}, alpha {_span(m.alphas)}, alpha / rank {_span(m.scales)}"


def _span(values: list[int] | list[float]) -> str:
    if not values:
        return "?"
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} … {values[-1]:g}"


def _bytes(size: int) -> str:
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size = size / 1000  # type: ignore[assignment]
    return f"{size:.3g} GB"


def _plain(report: Report) -> dict[str, Any]:
    """For JSON: numbers and texts only; what is not finite becomes null."""
    made: dict[str, Any] = dataclasses.asdict(report)
    made["path"] = str(report.path)
    cleaned: dict[str, Any] = json.loads(json.dumps(made), parse_constant=lambda _: None)
    return cleaned
