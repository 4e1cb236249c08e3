"""A config as its base's family understands it: keys, targets and sizes that only the family can judge."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from pathlib import Path
from typing import Any

from lora_scripts.config import load
from lora_scripts.config.keys.training import LONGEST_ACCUMULATION
from lora_scripts.config.load import ItemFault
from lora_scripts.config.schema import NEEDS, TrainConfig, conflicts
from lora_scripts.config.types import FEATURES, SCALING, TargetRule, rule_for
from lora_scripts.config.values import did_you_mean, parse_path
from lora_scripts.data.listing import list_data
from lora_scripts.data.unquoted import told_once
from lora_scripts.errors import UserError, UserErrors
from lora_scripts.events import Sink, ignore
from lora_scripts.families import download, table
from lora_scripts.families.facts import Facts
from lora_scripts.formats.gguf import packed_types


def load_config(
    path: Path, overrides: Sequence[str] = (), sink: Sink = ignore, *, captions: bool = False
) -> TrainConfig:
    """As `config.load.load_config`, with what only the base's family can judge. UserErrors with every fault; with
    `captions` also those of caption files, which are otherwise told once the config is right.

    A base that is a name on the hub is fetched with what belongs to it, once nothing else is wrong, and then judged.
    """
    try:
        config = load.load_config(path, overrides, judge)
    except UserError as fault:
        more = _of_captions(path, overrides) if captions else []
        if not more:
            raise
        raise UserErrors([*fault.errors, *more]) from None
    fetched = dict(_fetched(config, sink))
    if all(getattr(config, key) == value for key, value in fetched.items()):
        return config
    return load.load_config(path, overrides, judge).model_copy(update=fetched)


def _of_captions(path: Path, overrides: Sequence[str]) -> list[UserError]:
    """What is wrong with the captions of the pictures that a faulty config names, if it names any. That some lack one
    may be meant, by a key that is wrong."""
    with suppress(UserError, ValueError):
        keys = load.written(path, overrides)
        folder, metadata = keys.get("train_data_dir"), keys.get("metadata_path")
        if isinstance(folder, str) and isinstance(metadata, str | None):
            there = parse_path(metadata) if metadata is not None else None
            if there is None or there.is_file():
                return told_once(list_data(parse_path(folder), there, allow_missing_captions=True).faults)
    return []


def dump_config(config: TrainConfig) -> str:
    """As `config.load.dump_config`: what the base's family has no use for is a comment, too."""
    return load.dump_config(config, judge)


def _fetched(config: TrainConfig, sink: Sink) -> Iterator[tuple[str, Any]]:
    """Of each key that may name something on the hub its value on the disk."""
    for key in ("base_model", "text_encoder", "vae", "training_adapter"):
        value = getattr(config, key)
        if isinstance(value, tuple):
            yield key, tuple(download.fetch(part, sink, key) for part in value)
        elif value is not None:
            yield key, download.fetch(value, sink, key)


def judge(values: Mapping[str, Any], given: Set[str], absent: Facts | None = None) -> Iterator[ItemFault]:
    """What only the base's family can say of the keys that are given. Nothing where the base is not known: that is told
    by whoever looks at it. `absent`: the family, if it is known while the base is not here."""
    base = values.get("base_model")
    if not isinstance(base, str | Path):
        return
    base = download.place(Path(base))
    if not base.exists():
        if absent is not None:
            yield from _unneeded(given, absent)
            yield from _targets(values.get("targets") or (), absent)
        return
    try:
        facts = table.find(base)
        told = facts.told(base)
    except UserError:
        return
    yield from _unneeded(given, facts)
    with suppress(UserError):  # of a broken base, which is told by whoever looks at it
        told = {**told, "sample_cfg": facts.drawn(base).cfg}
    whole = {**values, **{key: value for key, value in told.items() if values.get(key) is None}}
    before = set(conflicts(values, given))
    for fault in conflicts(whole, given):
        if fault not in before:
            yield (*fault, None)
    yield from _targets(values.get("targets") or (), facts)
    if values.get("fused_qkv") is True and facts.names().fused:
        yield from _fused(values.get("targets") or (), facts)


def _unneeded(given: Set[str], facts: Facts) -> Iterator[ItemFault]:
    """Keys that need what the family has not."""
    for key in sorted(given & NEEDS.keys()):
        if NEEDS[key] not in facts.features:
            fault = f"is for {FEATURES[NEEDS[key]]}, and base_model is {facts.checkpoint.words}"
            yield key, fault, "leave it out", None


def _fused(targets: Iterable[Any], facts: Facts) -> Iterator[ItemFault]:
    """Of layers that shall have one A: rules that give them two sizes or rates, or that train one of them alone.

    Held against all layers that the family's LoRA files have names for: a base has those, or some of them.
    """
    rules = [TargetRule(match=one) if isinstance(one, str) else TargetRule.model_validate(one) for one in targets]
    alone = True
    for group in facts.names().together:
        own = {path: rule for path in group if (rule := rule_for(path, rules, facts.groups))}
        alone = alone and len(own) < 2
        if len({(rule.rank, rule.alpha, rule.lr) for rule in own.values()}) > 1:
            named = " and ".join(dict.fromkeys(rule.match for rule in own.values()))
            fault = (
                f"gives layers that have one A (fused_qkv) two ranks, alphas or rates: {named}, at {next(iter(own))}"
            )
            yield "targets", fault, "give them the same, or leave fused_qkv out", None
            return
    if alone:
        fault = "has no effect: of the layers that would have one A, targets train one at most"
        yield "fused_qkv", fault, "add attention to targets, or leave it out", None


def _targets(targets: Iterable[Any], facts: Facts) -> Iterator[ItemFault]:
    """Words that are no group of the family's layers; patterns are held against the layers themselves, later."""
    for number, target in enumerate(targets if isinstance(targets, list | tuple) else ()):
        word = target.get("match") if isinstance(target, Mapping) else getattr(target, "match", target)
        if not isinstance(word, str) or word in facts.groups or "*" in word or "." in word:
            continue
        near = did_you_mean(word, tuple(facts.groups))
        mend = f"did you mean {near}?" if near else "write * for any text, for example '*attn1*'"
        shown = [name for name in facts.groups if name.islower()]
        block = next((name for name in facts.groups if name.startswith("OUT")), None)
        kinds = ", ".join([*shown, *([f"a block such as {block}"] if block else [])])
        yield "targets", f'must be {kinds}, or a pattern with *, not "{word}"', mend, number


# --- what can be changed where memory is short ------------------------------------------------------------------------


def smaller_batches(config: TrainConfig, samples: int) -> Iterator[dict[str, int]]:
    """Batches of fewer than `samples`, each at most half of the one before, and the accumulation that makes up for it
    exactly."""
    batch, effective = config.batch_size, config.batch_size * config.gradient_accumulation
    while batch > 1:
        batch = max(n for n in range(1, batch // 2 + 1) if config.batch_size % n == 0)
        if batch < samples and effective // batch <= LONGEST_ACCUMULATION:
            yield {"batch_size": batch, "gradient_accumulation": effective // batch}


def can_be_rounded(config: TrainConfig) -> bool:
    """Whether `base_precision: int8` would store the base in less: it is not rounded yet, and is not to be scaled."""
    return config.base_precision == "auto" and config.adapter not in SCALING and not packed_types(config.base_model)


def cache_of(config: TrainConfig, folder: Path) -> Path:
    """Where a run keeps what it encodes."""
    return config.cache_dir or folder / "cache"
