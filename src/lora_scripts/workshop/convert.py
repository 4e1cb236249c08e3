"""`lora-scripts convert`: one LoRA in other names, another precision, one rank, or without its DoRA."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from lora_scripts.adapters.algebra import bake as dora
from lora_scripts.adapters.algebra import precision
from lora_scripts.adapters.weights import LoraWeights, uniform
from lora_scripts.errors import UserError
from lora_scripts.families.names import Layer, Names
from lora_scripts.families.sd1.layout import TEXT_PREFIX, UNET_PREFIX
from lora_scripts.families.sd1.names import STANDARD, sd1, sd1_base
from lora_scripts.families.table import find
from lora_scripts.formats import io
from lora_scripts.formats.hashes import with_hashes
from lora_scripts.loras import dialects, kohya
from lora_scripts.loras.dialects import ADAPTER_CONFIG, ADAPTER_WEIGHTS, ALPHA_KEY
from lora_scripts.loras.naming import Naming
from lora_scripts.loras.verify import MATCHERS, Source, open_lora

_NOT_CARRIED = (ALPHA_KEY, "lora_adapter_metadata", "format")
"""What belongs to the naming that it came in: diffusers' text encoder fails on its own key beside kohya's alphas."""


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """What `lora-scripts convert` was asked for."""

    file: Path
    to: str
    """A word of `names.Naming`."""
    output: Path | None = None
    dtype: str | None = None
    """A word of `precision.DTYPES`; None: as it is."""
    keep_ranks: bool = False
    bake_dora: bool = False
    base: Path | None = None
    rank: int | None = None
    overwrite: bool = False


def convert_file(options: ConvertOptions) -> None:
    """Writes the converted LoRA and tells what it cost. UserError for a mistake; then nothing is written."""
    output = _output(options)
    source, names = open_lora(options.file), sd1()
    modules = source.modules()
    told = [f"{options.file}: {len(modules)} modules, {_naming(source)} names, {_ranks(modules)}"]
    if options.bake_dora:
        assert options.base is not None
        modules, line = _baked(modules, options.base, options.rank, options.file)
        told.append(line)
    dtype = _main_dtype(modules) if options.dtype is None else precision.DTYPES[options.dtype]
    naming = Naming(options.to)
    if naming is not Naming.PEFT and not options.keep_ranks:
        padded = uniform(modules)
        if any(padded[path] is not w for path, w in modules.items()):
            told.append(f"ranks and alphas differ: all padded to {_ranks(padded)}")
        modules = padded
    modules, loss = precision.cast(modules, dtype)
    if options.dtype is not None:
        told.append(f"{options.dtype}: {loss}")
    carried = {key: value for key, value in source.metadata.items() if key not in _NOT_CARRIED}
    told += _write(output, naming, modules, dtype, _renumbered(carried, modules), names)
    print("\n".join([*told, f"written: {output}"]))


def _write(
    path: Path,
    naming: Naming,
    modules: Mapping[str, LoraWeights],
    dtype: torch.dtype,
    carried: dict[str, str],
    names: Names,
) -> list[str]:
    """Writes, and gives the lines that a person should read."""
    if naming is Naming.PEFT:
        io.write_folder(path, _peft_files(modules, dtype, carried))
        parts = sorted({name.partition("/")[0] for name in modules_by_part(modules)})
        return [f"load it with PeftModel.from_pretrained(pipeline.{part}, '{path / part}')" for part in parts]
    if naming is Naming.DIFFUSERS:
        folded = dialects.to_diffusers(modules, names, dtype)
        tensors, carried = folded.tensors, carried | folded.metadata | {"format": "pt"}
        lines = [] if folded.exact else [_rounding(modules)]
    else:
        table = names.original if naming is Naming.ORIGINAL else names.kohya
        tensors, lines = kohya.to_kohya(modules, dtype=dtype, table=table, mixed=True), []
    io.save_safetensors(path, tensors, with_hashes(tensors, carried))
    base = sd1_base(STANDARD, shapes=False)
    readings = {name: read(tensors, base) for name, read in MATCHERS.items()}
    fine = [name for name, reading in readings.items() if not reading.faults]
    lines.append(f"every key is read by {', '.join(fine)}" if fine else "these names are read by diffusers")
    return lines


def _rounding(modules: Mapping[str, LoraWeights]) -> str:
    """Why alpha did not go into the weights without a rounding."""
    if all(math.frexp(w.alpha / w.rank)[0] == 0.5 for w in modules.values()):
        return "folding alpha / rank into the weights rounds the smallest of them: --dtype fp32 keeps every bit"
    return "alpha / rank is no power of two: folding it into the weights rounds their last bit"


def modules_by_part(modules: Mapping[str, LoraWeights]) -> set[str]:
    """The parts that a LoRA changes: "unet", "text_encoder"."""
    return {path.partition(".")[0] for path in modules}


def _peft_files(modules: Mapping[str, LoraWeights], dtype: torch.dtype, carried: dict[str, str]) -> dict[str, io.Data]:
    """A folder for each part, as PeftModel.from_pretrained reads it."""
    from transformers import CLIPTextConfig, CLIPTextModel

    from lora_scripts.loras.consumers.run_peft import text_is_flat

    with torch.device("meta"):
        flat = text_is_flat(CLIPTextModel(CLIPTextConfig(num_hidden_layers=1)))
    files: dict[str, io.Data] = {}
    for part, adapter in dialects.to_peft(modules, flat_text=flat, dtype=dtype).items():
        header, buffers = io.safetensors_parts(adapter.tensors, carried | {"format": "pt"})
        files[f"{part}/{ADAPTER_WEIGHTS}"] = [header, *buffers]
        files[f"{part}/{ADAPTER_CONFIG}"] = (json.dumps(adapter.config, indent=2, ensure_ascii=False) + "\n").encode()
    return files


def _baked(
    modules: Mapping[str, LoraWeights], base: Path, rank: int | None, file: Path
) -> tuple[dict[str, LoraWeights], str]:
    """Every DoRA module as a plain LoRA; the plain ones stay as they are."""
    with_dora = [path for path, w in modules.items() if w.dora is not None]
    if not with_dora:
        raise UserError("no module of this file is a DoRA", file=file, hint="leave out --bake-dora, --base and --rank")
    weight = _base_weights(base)
    result, shares = dict(modules), {}
    for path in with_dora:
        baked = dora.bake(modules[path], weight(path), rank or modules[path].rank)
        result[path], shares[path] = baked.weights, baked.energy
    least = min(shares, key=lambda path: shares[path])
    mean = sum(shares.values()) / len(shares)
    asked = rank or max(modules[path].rank for path in with_dora)
    return result, (
        f"DoRA baked: {len(with_dora)} modules at rank {asked} keep {mean:.1%} of their change's energy on average, "
        f"{shares[least]:.1%} at least ({least})"
    )


def _base_weights(base: Path) -> Callable[[str], Tensor]:
    """Our path -> the base's frozen weight, read one at a time."""
    layers = {layer.path: layer for layer in find(base).base(base).layers}
    files = (
        [base]
        if base.is_file()
        else [f for part in ("unet", "text_encoder") for f in (base / part).glob("*.safetensors")]
    )
    where: dict[str, Path] = {}
    for file in files:
        with safe_open(file, "pt") as handle:
            prefix = "" if base.is_file() else f"{file.parent.name}:"
            where |= {prefix + key: file for key in handle.keys()}  # noqa: SIM118  no mapping

    def weight(path: str) -> Tensor:
        if path not in layers:
            raise UserError(f"the base has no layer {path}", file=base, hint="this LoRA is for another base model")
        for key in _keys(layers[path], single=base.is_file()):
            if key in where:
                with safe_open(where[key], "pt") as handle:
                    return handle.get_tensor(key.partition(":")[2] or key)
        raise UserError(f"the weight of {path} is missing", file=base, hint="get the original file")

    return weight


def _keys(layer: Layer, *, single: bool) -> tuple[str, ...]:
    """Where the weight stands in a single file, or in a diffusers folder ("part:key")."""
    if single:
        inner = layer.ldm.removeprefix("transformer.text_model.")
        return (f"{UNET_PREFIX if layer.unet else TEXT_PREFIX}{inner}.weight",)
    if layer.unet:
        return (f"unet:{layer.hf}.weight",)
    return f"text_encoder:{layer.hf}.weight", f"text_encoder:{layer.hf.removeprefix('text_model.')}.weight"


def _renumbered(carried: dict[str, str], modules: Mapping[str, LoraWeights]) -> dict[str, str]:
    """Rank and alpha in kohya's metadata, where the file now has one of each and has said another."""
    ranks, alphas = {w.rank for w in modules.values()}, {w.alpha for w in modules.values()}
    changed = dict(carried)
    for key, values in (("ss_network_dim", ranks), ("ss_network_alpha", alphas)):
        if key in changed and len(values) == 1 and not _says(changed[key], next(iter(values))):
            changed[key] = str(next(iter(values)))
    return changed


def _says(text: str, value: float) -> bool:
    try:
        return float(text) == value
    except ValueError:
        return False


def _output(options: ConvertOptions) -> Path:
    """Where to write: asked for, or beside the file. UserError where something stands that may not be replaced."""
    word = f"-{options.dtype}" if options.dtype else ""
    name = f"{options.file.stem if options.file.suffix == '.safetensors' else options.file.name}-{options.to}{word}"
    suffix = "" if options.to == Naming.PEFT.value else ".safetensors"
    output = options.output or options.file.parent / f"{name}{suffix}"
    if bool(suffix) != (output.suffix == ".safetensors"):
        hint = "PEFT's form is a folder" if not suffix else "the name must end in .safetensors"
        raise UserError(f"--output {output} does not fit --to {options.to}", hint=hint)
    if output.exists() and not options.overwrite:
        raise UserError("is there already", file=output, hint="name another --output, or add --overwrite")
    return output


def _main_dtype(modules: Mapping[str, LoraWeights]) -> torch.dtype:
    return Counter(w.down.dtype for w in modules.values()).most_common(1)[0][0]


def _naming(source: Source) -> str:
    return source.naming.value if source.naming else "unknown"


def _ranks(modules: Mapping[str, LoraWeights]) -> str:
    ranks, alphas = sorted({w.rank for w in modules.values()}), sorted({w.alpha for w in modules.values()})
    few = [f"{name} {', '.join(f'{v:g}' for v in values[:4])}" for name, values in (("rank", ranks), ("alpha", alphas))]
    return ", ".join(few)
