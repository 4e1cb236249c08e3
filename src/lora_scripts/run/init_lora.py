"""LoRAs that a run begins with: one to go on from, its weights at the rank that is asked for and the change they make
the same, and a training adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lora_scripts.adapters import lycoris
from lora_scripts.adapters.algebra import factors
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.config.schema import TrainConfig
from lora_scripts.config.types import TargetRule, rule_for
from lora_scripts.errors import UserError, raise_all
from lora_scripts.families import table
from lora_scripts.families.facts import Facts
from lora_scripts.loras import file as loras
from lora_scripts.loras.file import LoraFile
from lora_scripts.loras.reading import Change
from lora_scripts.units import percent, typed


@dataclass(frozen=True)
class Size:
    """Of one layer's LoRA."""

    rank: int
    alpha: float
    leaves: lycoris.Leaves | None = None
    """Of a LoHa, LoKr or OFT of an earlier file: its factors, whose shapes are the layer's."""


def read_initial(config: TrainConfig) -> dict[str, Change]:
    """What `init_lora` holds; nothing without it. UserError for a file that is not for the base's family, or of another
    kind than `adapter`."""
    if config.init_lora is None:
        return {}
    facts = table.find(config.base_model)
    initial = loras.read(config.init_lora, facts).modules
    _require_kind(config, initial, facts)
    if config.fused_qkv:
        plain = {path: change for path, change in initial.items() if isinstance(change, LoraWeights)}
        raise_all(list(_of_several(config, plain, facts))[:1])
    return initial


def _require_kind(config: TrainConfig, initial: Mapping[str, Change], facts: Facts) -> None:
    """UserError where a layer is of another kind than `adapter`. A DoRA leaves layers of one output plain."""
    for path, change in initial.items():
        plain = change if isinstance(change, LoraWeights) else None
        kind = (
            lycoris.kind_of(change)
            if not isinstance(change, LoraWeights)
            else "dora"
            if change.dora is not None
            else "lora"
        )
        one_output = plain is not None and len(plain.up) == 1
        if kind != config.adapter and not (config.adapter == "dora" and kind == "lora" and one_output):
            text = f"init_lora is a {_WORDS[kind]} ({path}), which adapter: {config.adapter} does not go on from"
            raise UserError(text, file=config.init_lora, hint=f"write adapter: {kind}")
        # In PEFT's folders a DoRA has a length for each output; what WebUIs read alike has one for each input.
        if kind == "dora" and plain is not None and (one_output or plain.by_output != facts.lora.folder):
            text = f"init_lora has other lengths ({path}) than adapter: dora trains: of outputs, or of inputs"
            bake = ["lora-scripts", "convert", str(config.init_lora), "--to", "kohya", "--bake-dora", "--base", "BASE"]
            raise UserError(text, file=config.init_lora, hint=f"make a plain LoRA of it: {typed(bake)}")


_WORDS = {"lora": "plain LoRA", "dora": "DoRA", "loha": "LoHa", "lokr": "LoKr", "oft": "OFT"}


def _of_several(config: TrainConfig, initial: Mapping[str, LoraWeights], facts: Facts) -> Iterator[UserError]:
    """What stands against one A for layers that have one LoRA each in `init_lora`."""
    file, hint = config.init_lora, "leave fused_qkv out"
    for group in facts.names().together:
        rules = {
            path: rule for path in group if path in initial if (rule := rule_for(path, config.rules, facts.groups))
        }
        if len(rules) < 2:
            continue
        (path, first), *others = ((path, initial[path]) for path in rules)
        for other, w in others:
            if w.alpha != first.alpha or not torch.equal(w.down, first.down):
                text = f"init_lora has an A of its own for {path} and for {other}, which fused_qkv would make one"
                yield UserError(text, file=file, hint=hint)
        if size_of(config, first, rules[path]).rank < first.rank:
            text = f"a smaller lora_rank cuts {path} and its neighbours each for itself, so they would not have one A"
            yield UserError(text, file=file, hint=f"{hint}, or lora_rank")


def read_adapter(config: TrainConfig) -> LoraFile | None:
    """The `training_adapter`; None without one. UserError for a file that is not for the base's family, that changes no
    weight, or that brings words."""
    if config.training_adapter is None:
        return None
    file = loras.read(config.training_adapter, table.find(config.base_model))
    if file.words:
        words = ", ".join(file.words)
        raise UserError(f"training_adapter brings words ({words})", file=file.path, hint="give one without them")
    return file


def default_size(config: TrainConfig, initial: Mapping[str, Change]) -> Size:
    """Of most layers: the config's; with an earlier LoRA its own, unless `lora_rank` or `lora_alpha` is written."""
    first = next(iter(initial.values()), None)
    if first is None:
        return Size(config.lora_rank, config.effective_alpha)
    if not isinstance(first, LoraWeights):
        return replace(_of_leaves(config, first, None), leaves=None)
    return _resized(config, first, config.lora_rank)


def _of_leaves(config: TrainConfig, leaves: lycoris.Leaves, rule: TargetRule | None) -> Size:
    """Of a LoHa, LoKr or OFT, whose factors stay as they are. UserError where another rank or alpha is asked for."""
    rank = lycoris.rank_of(leaves)
    if rank is None:  # alpha counts with a rank only: files have 1e10 there
        return Size(config.lora_rank, config.effective_alpha, leaves)
    alpha = float(leaves["alpha"]) if "alpha" in leaves else float(rank)
    own_rank = (rule.rank if rule else None) or (config.lora_rank if "lora_rank" in config.model_fields_set else None)
    own_alpha = (rule.alpha if rule else None) or config.lora_alpha
    for key, asked, there in (("rank", own_rank, rank), ("alpha", own_alpha, alpha)):
        if asked not in (None, there):
            kind = _WORDS[lycoris.kind_of(leaves)]
            text = f"lora_{key} {asked:g} cannot be with this init_lora: it has {key} {there:g}, and the factors of a "
            raise UserError(f"{text}{kind} stay", file=config.init_lora, hint=f"leave lora_{key} out")
    return Size(rank, alpha, leaves)


def size_of(config: TrainConfig, weights: Change, rule: TargetRule | None) -> Size:
    """Of a layer that the earlier LoRA has; one that is not trained (no rule) stays as it is."""
    if not isinstance(weights, LoraWeights):
        return _of_leaves(config, weights, rule)
    if rule is None:
        return Size(weights.rank, weights.alpha)
    if rule.rank is not None:
        return Size(rule.rank, rule.alpha or weights.alpha / weights.rank * rule.rank)
    size = _resized(config, weights, config.lora_rank)
    return Size(size.rank, rule.alpha or size.alpha)


def _resized(config: TrainConfig, weights: LoraWeights, asked: int) -> Size:
    rank = asked if "lora_rank" in config.model_fields_set else weights.rank
    alpha = weights.alpha / weights.rank * rank  # the strength stays
    return Size(rank, alpha if config.lora_alpha is None else config.lora_alpha)


def fitted(weights: LoraWeights, size: Size, fresh: Tensor) -> tuple[LoraWeights, float, float]:
    """The weights at another size, and how much of Σ s² of their ΔW is kept, of how much.

    More rank: the rows that are missing are those of `fresh` (a new A, of the wanted rank) with a B of zero, so ΔW is
    the same. Less: the best ΔW of that rank (Eckart & Young 1936). Another strength alpha / rank is made up for by B.
    """
    if (weights.rank, weights.alpha) == (size.rank, size.alpha):
        return weights, 1.0, 1.0
    scale, kept, whole = size.alpha / size.rank, 1.0, 1.0
    up, down = weights.up.double() * (weights.alpha / weights.rank / scale), weights.down
    if size.rank < weights.rank:
        found = factors.svd(factors.of(weights))
        whole, kept = (found.s**2).sum().item(), (found.s[: size.rank] ** 2).sum().item()
        best = factors.balanced(factors.cut(found, min(size.rank, len(found.s))))
        down = best.down.reshape(best.rank, *weights.down.shape[1:])
        up = (best.up / scale).reshape(best.up.shape[0], best.rank, *weights.up.shape[2:])
    missing = size.rank - down.shape[0]
    if missing > 0:
        down = torch.cat([down, fresh.to(down).reshape(size.rank, *down.shape[1:])[-missing:]])
        up = torch.cat([up, up.new_zeros(up.shape[0], missing, *up.shape[2:])], dim=1)
    return LoraWeights(down.float(), up.float(), size.alpha, weights.dora), kept, whole


def fit_all(
    initial: Mapping[str, Change], sizes: Mapping[str, Size], fresh: Callable[[str], Tensor]
) -> tuple[dict[str, Change], str]:
    """Every layer at its size, and in words what was done; empty if nothing was."""
    found: dict[str, Change] = dict(initial)
    wider, narrower, kept, whole = set(), set(), 0.0, 0.0
    for path, weights in initial.items():
        if not isinstance(weights, LoraWeights):
            continue
        size = sizes[path]
        found[path], part, of = fitted(weights, size, fresh(path))
        change = (weights.rank, size.rank)
        if size.rank > weights.rank:
            wider.add(change)
        elif size.rank < weights.rank:
            narrower.add(change)
            kept, whole = kept + part, whole + of
    told = [f"rank {a} widened to {b} by fresh directions, its effect unchanged" for a, b in sorted(wider)]
    energy = f"{percent(kept / whole if whole else 1.0, 1)} of its energy kept"
    told += [f"rank {a} cut to {b} by SVD, {energy}" for a, b in sorted(narrower)]
    return found, "; ".join(told)
