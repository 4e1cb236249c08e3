"""A language model with adapters in it, and the optimizer over them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from lora_scripts.adapters.dora import RowDoraLayer
from lora_scripts.adapters.inject import assign, inject
from lora_scripts.compute.device import DTYPES
from lora_scripts.config.schema import TrainConfig
from lora_scripts.errors import UserError, raise_all
from lora_scripts.families.base import LoadOptions
from lora_scripts.families.texts import TextFamily
from lora_scripts.loras import on_texts
from lora_scripts.loras.on_model import check_fits
from lora_scripts.loras.reading import Change
from lora_scripts.run.base_files import BaseFiles
from lora_scripts.run.build import begin, groups_of, maker, memory_options
from lora_scripts.run.init_lora import default_size, size_of
from lora_scripts.run.parts import TextModel
from lora_scripts.train.optim import build_optimizer


def load(config: TrainConfig, device: torch.device, precision: str) -> TextFamily:
    """The base alone. UserError for a mistake."""
    if config.offload_blocks:
        raise UserError("offload_blocks is for models that draw pictures", hint="write base_precision: nf4 or int8")
    return on_texts.load(
        config.base_model, LoadOptions(device, DTYPES[precision], memory=memory_options(config, device))
    )


def build_model(
    config: TrainConfig,
    family: TextFamily,
    initial: Mapping[str, Change],
    files: BaseFiles,
    read: Callable[[], Mapping[Path, str]],
) -> TextModel:
    """Puts the LoRA in, with the weights of `init_lora` if given. UserError for a mistake.

    `files`: the base's, whose digests `read` waits for, see `BaseFiles.begin`.
    """
    layers = family.trainable()
    if initial:
        assert config.init_lora is not None
        check_fits(initial, family, config.init_lora)
    left_out = _without_layers(config, family, layers)
    rules = assign(layers, [rule for rule in config.rules if rule.match not in left_out], family.facts.groups)
    usual = default_size(config, initial)
    sizes = {path: size_of(config, weights, rules.get(path)) for path, weights in initial.items()}
    injected = inject(
        family.roots,
        dict.fromkeys([*rules, *initial]),
        maker(config, rules, sizes, usual, RowDoraLayer),
        seed=config.seed,
    )
    for layer in injected.values():
        layer.place(family.device)
    resized = begin(injected, initial, sizes, rules)
    groups = groups_of(config, injected, rules, {})
    optimizer = build_optimizer(config.optimizer, groups, config.weight_decay)
    digest = hashlib.sha256("".join(read().values()).encode()).hexdigest()
    (rank, alpha), _ = Counter((layer.rank, layer.alpha) for layer in injected.values()).most_common(1)[0]
    return TextModel(injected, optimizer, rank, alpha, digest, files, resized=resized, family=family)


def _without_layers(config: TrainConfig, family: TextFamily, layers: Mapping[str, object]) -> list[str]:
    """The groups of layers among the targets that a model has none of, beside others that it has: feed_forward of one
    whose blocks are all experts. UserErrors for what cannot be trained, saying why."""
    found: dict[str, bool] = {}
    reasons: dict[str, str | None] = {}
    for rule in config.rules:
        group = family.facts.groups.get(rule.match)

        def matches(path: str, rule: str = rule.match, group: object = group) -> bool:
            return bool(group(path)) if callable(group) else fnmatchcase(path, rule)

        found[rule.match] = any(map(matches, layers))
        reasons[rule.match] = None if found[rule.match] else family.refusal(rule.match, matches)
    passed = [name for name in reasons if name in family.facts.groups and reasons[name] and any(found.values())]
    raise_all(UserError(f"targets: {why}") for name, why in reasons.items() if why and name not in passed)
    return passed
