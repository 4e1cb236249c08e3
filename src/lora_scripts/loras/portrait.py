"""What a LoRA file is, module by module and as a whole, from its tensors and metadata alone; no base model is needed.

Any family's file is read by its pairs of matrices, whatever their layers are called. Norms are of ΔW = (alpha /
rank) · up @ down, computed from the factors.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lora_scripts.adapters.algebra import factors
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.loras.naming import LENGTHS, PAIRS

_LYCORIS = (".hada_w", ".lokr_w", ".oft_", ".glora")
_BLOCK = re.compile(
    r"(down_blocks|up_blocks|input_blocks|output_blocks|double_blocks|single_blocks|joint_blocks"
    r"|single_transformer_blocks|transformer_blocks)[._](\d+)|(mid_block|middle_block)"
)


_LAYER = re.compile(
    r"(?:^|\.)(?:model|transformer|gpt_neox|backbone|language_model|text_model)\.(?:layers|h|blocks)\.(\d+)\."
)
"""Of a language model; those of text encoders stand under an encoder."""


@dataclass(frozen=True)
class Module:
    """One layer's LoRA."""

    name: str
    """The stem of its keys."""
    rank: int
    alpha: float
    scale: float
    """alpha / rank, by which up @ down is multiplied"""
    shape: tuple[int, ...]
    """of ΔW"""
    frobenius: float
    """|ΔW|, the root of the sum of squares"""
    spectral: float
    """the largest singular value of ΔW"""
    finite: bool
    dora: bool = False


@dataclass(frozen=True)
class Block:
    """The modules of one block of the model together."""

    name: str
    modules: int
    frobenius: float
    """of all of them as one vector"""
    spectral: float
    """the largest of any"""
    largest: str
    """the module of `spectral`"""


@dataclass
class Portrait:
    """What there is to say of a file's modules."""

    family: str
    dtypes: dict[str, int]
    """the format's name -> tensors of it"""
    modules: list[Module]
    blocks: list[Block] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def ranks(self) -> list[int]:
        return sorted({m.rank for m in self.modules})

    @property
    def alphas(self) -> list[float]:
        return sorted({m.alpha for m in self.modules})

    @property
    def scales(self) -> list[float]:
        return sorted({m.scale for m in self.modules})


def portrait(
    family: str,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    weights: Mapping[str, LoraWeights] | None = None,
) -> Portrait:
    """`family` in words. `weights`: the modules, where they are known better than from the keys (PEFT keeps its alpha
    in another file).
    """
    problems: list[str] = []
    found = _pairs(tensors, problems) if weights is None else dict(weights)
    modules = [_module(name, w) for name, w in found.items()]
    dtypes = Counter(str(t.dtype).removeprefix("torch.") for t in tensors.values())
    result = Portrait(family, dict(dtypes.most_common()), modules, _blocks(modules), problems)
    problems += _of_modules(modules)
    if weights is None:
        problems += _of_alphas(tensors, found)
    problems += _of_metadata(result, metadata)
    lycoris = next((key for key in tensors if any(mark in key for mark in _LYCORIS)), None)
    if lycoris:
        problems.append(f"holds LyCORIS modules (first {lycoris}), whose ΔW is not looked at here")
    return result


def triggers(metadata: Mapping[str, str], most: int = 8) -> list[tuple[str, int | None]]:
    """Words that may call the LoRA, likeliest first, and how many captions hold each; None where the file is silent.

    From `modelspec.trigger_phrase`, then from the tags in `ss_tag_frequency`, over all of its data sets.
    """
    found: list[tuple[str, int | None]] = []
    phrase = metadata.get("modelspec.trigger_phrase", "").strip()
    if phrase:
        found.append((phrase, None))
    counts: Counter[str] = Counter()
    for tags in _table(metadata.get("ss_tag_frequency")).values():
        if isinstance(tags, dict):
            counts.update({str(tag).strip(): n for tag, n in tags.items() if isinstance(n, int)})
    found += [(tag, count) for tag, count in counts.most_common(most) if tag and tag != phrase]
    return found


def _pairs(tensors: Mapping[str, Tensor], problems: list[str]) -> dict[str, LoraWeights]:
    """Stem -> weights, of every pair that can be multiplied; the others become problems."""
    found = {}
    for key, tensor in tensors.items():
        for one, other in (*PAIRS, *((up, down) for down, up in PAIRS)):
            if key.endswith(one) and key.removesuffix(one) + other not in tensors:
                problems.append(f"{key} stands alone: its other half {other.lstrip('._')} is missing")
        for end, other in PAIRS:
            stem = key.removesuffix(end)
            if stem == key or (up := tensors.get(stem + other)) is None:
                continue
            shapes = f"up {list(up.shape)} and down {list(tensor.shape)}"
            if min(tensor.dim(), up.dim()) < 2 or up.flatten(1).shape[1] != tensor.shape[0]:
                problems.append(f"{stem}: {shapes} cannot be multiplied")
                continue
            if not tensor.numel() or not up.numel():
                problems.append(f"{stem}: {shapes} hold no numbers")
                continue
            alpha = tensors.get(f"{stem}.alpha")
            if alpha is not None and alpha.numel() != 1:
                problems.append(f"{stem}.alpha has shape {list(alpha.shape)}, not one number")
                continue
            value = float(tensor.shape[0]) if alpha is None else float(alpha.item())
            lengths = next((tensors[stem + end] for end in LENGTHS if stem + end in tensors), None)
            found[stem] = LoraWeights(tensor, up, value, lengths)
    return found


def _module(name: str, w: LoraWeights) -> Module:
    thin = factors.of(w)
    finite = bool(torch.isfinite(thin.up).all()) and bool(torch.isfinite(thin.down).all())
    values = torch.linalg.svdvals(factors.core(thin)) if finite else torch.zeros(1)
    frobenius, spectral = torch.linalg.norm(values).item(), values.max().item()
    scale = w.alpha / w.rank
    return Module(name, w.rank, w.alpha, scale, w.shape, frobenius, spectral, finite, w.dora is not None)


def _blocks(modules: list[Module]) -> list[Block]:
    groups: dict[str, list[Module]] = {}
    for module in modules:
        groups.setdefault(block_of(module.name), []).append(module)
    result = []
    for name, rows in groups.items():
        largest = max(rows, key=lambda m: m.spectral)
        whole = sum(m.frobenius**2 for m in rows) ** 0.5
        result.append(Block(name, len(rows), whole, largest.spectral, largest.name))
    return sorted(result, key=lambda block: _order(block.name))


def block_of(name: str) -> str:
    """The block of the model that a layer stands in: "down_blocks 1", "mid_block", "text encoder", "layer 3"."""
    if layer := _LAYER.search(name):
        return f"layer {layer[1]}"
    if name.startswith(("lora_te", "text_encoder")) or "text_model" in name or ".self_attn." in name:
        second = name.startswith(("lora_te2", "text_encoder_2"))
        return "text encoder 2" if second else "text encoder"
    match = _BLOCK.search(name)
    if match is None:
        return "other"
    return match[3] or f"{match[1]} {match[2]}"


def _order(name: str) -> tuple[int, str, int]:
    """Down, middle, up, the rest; by number."""
    word, _, number = name.rpartition(" ") if name[-1:].isdigit() and " " in name else (name, "", "")
    starts = ("text", "down", "input", "mid", "up", "output")
    place = next((i for i, start in enumerate(starts) if word.startswith(start)), len(starts))
    return place, word, int(number or 0)


def _of_modules(modules: list[Module]) -> list[str]:
    spoilt = [m.name for m in modules if not m.finite]
    still = [m.name for m in modules if m.finite and m.frobenius == 0]
    problems = []
    if spoilt:
        problems.append(f"{_count(spoilt)} values that are NaN or infinite, first {spoilt[0]}")
    if modules and len(still) == len(modules):
        problems.append("changes nothing: every module is zero")
    elif still:
        problems.append(f"{_count(still)} nothing but zeros, first {still[0]}")
    odd = sorted({m.scale for m in modules if not 0.25 <= m.scale <= 2})
    if odd:
        values = ", ".join(f"{value:g}" for value in odd[:4])
        problems.append(f"alpha / rank is {values}, outside 0.25 … 2: it may need an unusual strength in prompts")
    return problems


def _of_alphas(tensors: Mapping[str, Tensor], found: Mapping[str, LoraWeights]) -> list[str]:
    kohya = [stem for stem in found if f"{stem}.lora_down.weight" in tensors]
    bare = [stem for stem in kohya if f"{stem}.alpha" not in tensors]
    problems = []
    if bare:
        which = "no module has" if len(bare) == len(kohya) else f"{len(bare)} of {len(kohya)} modules have no"
        problems.append(f"{which} alpha, first {bare[0]}: the programs then take alpha = rank")
    ranks, alphas = {w.rank for w in found.values()}, {w.alpha for w in found.values()}
    if len(ranks) > 1:
        problems.append(
            f"ranks differ, {min(ranks)} to {max(ranks)}: old diffusers misapply that; convert pads them to one"
        )
    if kohya and len(alphas) > 1:
        problems.append(
            f"alphas differ, {min(alphas):g} to {max(alphas):g}: diffusers misapplies that; convert mends it"
        )
    return problems


def _of_metadata(found: Portrait, metadata: Mapping[str, str]) -> list[str]:
    """Where the metadata says another thing than the tensors."""
    problems = []
    for key, values in (("ss_network_dim", found.ranks), ("ss_network_alpha", found.alphas)):
        said = metadata.get(key)
        if said is not None and len(values) == 1 and _number(said) not in (None, float(values[0])):
            problems.append(f"the metadata says {key} {said}, the tensors {values[0]:g}: one of them was changed")
    return problems


def _count(names: list[str]) -> str:
    return "1 module holds" if len(names) == 1 else f"{len(names)} modules hold"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _table(text: str | None) -> dict[str, object]:
    try:
        value = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
