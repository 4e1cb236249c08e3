"""A folder with a causal language model, as transformers writes it: what is in it, told without loading it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_scripts.errors import UserError, raise_all
from lora_scripts.families.causal_lm.sight import module_of, sees
from lora_scripts.families.facts import FolderWeight
from lora_scripts.formats.header import Header, Kind, read_header

CAUSAL_LM = Kind("a causal language model")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")
TEMPLATE, PROCESSORS = "chat_template.jinja", "chat_template.json"
"""Where a chat template lies, beside tokenizer_config.json; the second is how models that see had it before 2025."""
FLIPPED = ("c_attn", "c_proj", "c_fc", "q_attn")
"""Layers of GPT-2 and its like, whose weights lie [in, out]."""
_FLIPS = ("gpt2", "openai-gpt")
"""Those models. Others with such names, as StarCoder's, have weights [out, in]."""
_PREFIXES = {"gpt2": "transformer", "openai-gpt": "transformer", "bloom": "transformer"}
_BARE = re.compile(r"(decoder\.)?(layers|h)\.\d+\.")
"""How names begin in a file that was saved without the output layer, as GPT-2 and BLOOM were."""
_MEND = "give the folder of a causal language model in the original precision, such as Qwen3-0.6B"


@dataclass(frozen=True)
class Folder:
    """What the files of a model say."""

    path: Path
    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    """generation_config.json; empty where there is none."""
    files: Mapping[str, Header]
    """Name of a file of weights -> what is in it."""

    @property
    def architecture(self) -> str:
        """Of transformers: "Qwen3ForCausalLM"."""
        return (_architectures(self.config) or [""])[0]

    @property
    def sees(self) -> bool:
        """Whether it reads pictures, too, so that the language model is one part of it."""
        return sees(self.config)

    def module_of(self, key: str) -> str:
        """The name that transformers has for what the files call `key`."""
        return module_of(key) if self.sees else key

    @property
    def stops(self) -> frozenset[int]:
        """The tokens that end an answer, by generation_config.json or else config.json."""
        inside = self.config.get("text_config") if self.sees else None
        config = {**(inside if isinstance(inside, dict) else {}), **self.config}
        told = self.generation.get("eos_token_id", config.get("eos_token_id"))
        tokens = told if isinstance(told, list) else [told]
        return frozenset(token for token in tokens if isinstance(token, int))

    @property
    def parameters(self) -> int:
        """How many numbers the weights are."""
        return sum(math.prod(shape) for header in self.files.values() for shape in header.shapes.values())


def has_template(path: Path) -> bool:
    """Whether the tokenizer of a folder has a chat template."""
    told = _json(path / "tokenizer_config.json", [], needed=False).get("chat_template")
    return bool(told) or (path / TEMPLATE).is_file() or processors_template(path) is not None


def processors_template(path: Path) -> str | None:
    """The chat template that only the processor of a model which sees is told; None where there is none."""
    source = _json(path / PROCESSORS, [], needed=False).get("chat_template")
    return source if isinstance(source, str) else None


def folder_kind(path: Path) -> Kind | None:
    """CAUSAL_LM for a folder whose config.json says so; None for anything else."""
    try:
        config = json.loads((path / "config.json").read_bytes())
    except (OSError, ValueError):
        return None
    return CAUSAL_LM if isinstance(config, dict) and _is_causal(config) else None


def open_folder(path: Path) -> Folder:
    """Reads the configs and the headers of the weights. UserErrors with everything that is wrong with the folder."""
    if not path.is_dir():
        hint = "give the folder, not a file in it" if path.is_file() else _MEND
        raise UserError("is not a folder" if path.exists() else "no such folder", file=path, hint=hint)
    if not (path / "config.json").is_file():
        _explain(path)
    faults: list[UserError] = []
    config = _json(path / "config.json", faults)
    generation = _json(path / "generation_config.json", faults, needed=False)
    if config:
        faults += _faults_of(config, path)
    if not any((path / name).is_file() for name in TOKENIZERS):
        message = f"no tokenizer ({', '.join(TOKENIZERS[:3])})"
        faults.append(UserError(message, file=path, hint="copy it from where the model comes from"))
    files = _weights(path, faults)
    raise_all(faults)
    return Folder(path, config, generation, files)


def _explain(path: Path) -> None:
    """UserError for what people take for the folder of a model: a LoRA's, or one around it."""
    if (path / "adapter_config.json").is_file():
        hint = "give the folder of the model that it was made for; a run goes on from a LoRA by init_lora"
        raise UserError("this is the folder of a LoRA, not of a model", file=path, hint=hint)
    inside = sorted(p.parent for pattern in ("*", "snapshots/*") for p in path.glob(f"{pattern}/config.json"))
    if inside:
        raise UserError("has no config.json, but a folder in it has", file=path, hint=f"did you mean {inside[0]}?")
    if not any((path / name).is_file() for name in (WEIGHTS, INDEX, *TOKENIZERS)):
        raise UserError("no such file", file=path / "config.json", hint=_MEND)


def layer_weights(folder: Folder) -> dict[str, FolderWeight]:
    """Name of a layer, as transformers calls it -> where its weight stands."""
    kind = str(folder.config.get("model_type"))
    names = {key: folder.module_of(key) for header in folder.files.values() for key in header.tensors}
    bare = any(map(_BARE.match, names))
    prefix = f"{_PREFIXES.get(kind, 'model')}." if bare else ""
    return {
        ("" if key.startswith("lm_head.") else prefix) + names[key].removesuffix(".weight"): FolderWeight(
            name, key, flipped=key.split(".")[-2] in FLIPPED and kind in _FLIPS
        )
        for name, header in folder.files.items()
        for key, info in header.tensors.items()
        if key.endswith(".weight") and len(info.shape) == 2
    }


def _architectures(config: Mapping[str, Any]) -> list[str]:
    """What config.json says that it is the config of."""
    names = config.get("architectures")
    return [str(name) for name in names] if isinstance(names, list) else []


def _is_causal(config: Mapping[str, Any]) -> bool:
    return sees(config) or any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in _architectures(config))


def _faults_of(config: Mapping[str, Any], path: Path) -> list[UserError]:
    faults, file = [], path / "config.json"
    if not _is_causal(config):
        told = ", ".join(_architectures(config)) or f"model_type {config.get('model_type')}"
        faults.append(UserError(f"this is no causal language model, but {told}", file=file, hint=_MEND))
    quantised = config.get("quantization_config")
    if isinstance(quantised, dict):
        method = quantised.get("quant_method", "a quantised form")
        message = f"its weights are stored rounded ({method}), so that nothing could be merged into them"
        hint = "give the original model; base_precision: nf4 or int8 rounds it while it is loaded"
        faults.append(UserError(message, file=file, hint=hint))
    return faults


def _json(path: Path, faults: list[UserError], *, needed: bool = True) -> dict[str, Any]:
    if not path.is_file():
        if needed:
            faults.append(UserError("no such file", file=path, hint=_MEND))
        return {}
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        faults.append(UserError(f"is not JSON: {error}", file=path, hint="download it again"))
        return {}
    if not isinstance(value, dict):
        faults.append(UserError("is no JSON object", file=path, hint="download it again"))
        return {}
    return value


def _weights(path: Path, faults: list[UserError]) -> dict[str, Header]:
    """The files of weights with their headers, one or those that the index names."""
    names = [WEIGHTS] if (path / WEIGHTS).is_file() else []
    if not names and (path / INDEX).is_file():
        index = _json(path / INDEX, faults).get("weight_map", {})
        names = sorted({str(name) for name in index.values()}) if isinstance(index, dict) else []
    if not names:
        other = sorted(p.name for p in path.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".gguf"))
        message = f"no {WEIGHTS}" + (f"; there is {other[0]}, which is not read" if other else "")
        faults.append(UserError(message, file=path, hint="get the model with its weights as .safetensors"))
    headers: dict[str, Header] = {}
    for name in names:
        try:
            headers[name] = read_header(path / name)
        except UserError as fault:
            faults.append(fault)
    return headers
