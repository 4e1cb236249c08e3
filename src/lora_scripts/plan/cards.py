"""What graphics cards of 8 to 24 GB allow, without one: from the sizes in a base's header, and what was counted.

On the card lie the base as it is stored, the LoRA with what moves it, and what a step keeps for its way back; or, while
a picture is drawn, the VAE at work. Text encoders and VAE are elsewhere meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from lora_scripts.adapters.inject import assign
from lora_scripts.adapters.layer import lora_shapes
from lora_scripts.compute.memory import TILE, blocks_of
from lora_scripts.compute.meter import GB
from lora_scripts.config.schema import TrainConfig
from lora_scripts.errors import UserError
from lora_scripts.families import table
from lora_scripts.families.facts import Facts, Kept
from lora_scripts.formats.gguf import packed_types
from lora_scripts.run.configs import can_be_rounded, smaller_batches

CARDS = (8, 12, 16, 24)
"""GB."""
BESIDE = GB
"""Bytes for the driver, for torch's own and for what else the screen shows."""
MORE = 1.05
"""What is asked for over what is counted: what torch reserves beside what it gave; see docs/memory.md."""
MOVED = {"adamw": 8, "schedule_free": 8, "adamw8bit": 2, "lion": 4, "adafactor": 1, "prodigy": 16}
"""Bytes that an optimizer keeps for a number, beside the number and its gradient in float32 and a copy of two bytes."""


@dataclass(frozen=True)
class Piece:
    """Weights that are stored in one way and move together."""

    linear: int
    """Numbers in weights that can be stored in 8 or 4 bits,"""
    rows: int
    """their output channels,"""
    rest: int
    """and all other numbers."""
    largest: int
    """Numbers of the largest of those weights, which is made whole for its product."""

    def size(self, storage: str, width: int, packed: float) -> int:
        """Bytes, with what is not stored otherwise in numbers of `width` bytes; `packed`: as of `Base`."""
        if storage == "auto":
            return round((packed or width) * self.linear) + width * self.rest
        held = self.linear // 2 + self.linear // 16 if storage == "nf4" else self.linear + 4 * self.rows
        return held + width * self.rest


@dataclass(frozen=True)
class Base:
    """What there is to place."""

    facts: Facts
    blocks: Sequence[Piece]
    around: Piece
    lora: int
    """Numbers that are trained."""
    native: int
    """Pixels of a picture that it is made for."""
    packed: float = 0.0
    """Bytes that a number takes in a file that keeps its blocks so (GGUF); 0 for another."""

    @property
    def numbers(self) -> int:
        return sum(piece.linear + piece.rest for piece in (*self.blocks, self.around))

    @property
    def kept(self) -> Kept | None:
        return self.facts.kept.get(round(self.numbers / 1e6))


@dataclass(frozen=True)
class Allowed:
    """What one card allows."""

    card: int
    """GB."""
    changes: Mapping[str, Any] | None
    """Of the config; none are needed where it is empty, and None where nothing helps."""
    bytes: int
    """That are needed then, `BESIDE` among them; of all that helps where nothing does."""
    ram: int
    """Bytes of blocks that live in RAM."""


@dataclass(frozen=True)
class Cards:
    """The answer."""

    words: str
    """What the base is."""
    left_out: Sequence[str]
    """What is not in the sums, in words."""
    rows: Sequence[Allowed]


def cards(config: TrainConfig) -> Cards:
    """For the run of a config. UserError for a base that cannot be trained, or of texts."""
    facts = table.find(config.base_model)
    if "pictures" not in facts.features:
        hint = "leave it out: plan rehearses the run of a language model"
        raise UserError("--cards is for models that draw", file=config.base_model, hint=hint)
    facts.check(config.base_model, config.vae is None)
    base = base_of(config, facts)
    left_out = [] if base.kept else ["what a step keeps, which is not known for a base of this size"]
    left_out += ["references of a picture besides one"] if config.reference_dir else []
    left_out += ["the text encoder that is trained"] if config.train_text_encoder else []
    return Cards(facts.words, left_out, [allowed(config, base, card) for card in CARDS])


def base_of(config: TrainConfig, facts: Facts) -> Base:
    """From the base's header."""
    model = facts.build(config.base_model)[facts.image_root]
    width, height = facts.made_for(config.base_model)
    found = measured(model, config, facts, width * height)
    if not packed_types(config.base_model):
        return found
    return replace(found, packed=config.base_model.stat().st_size / found.numbers)


def measured(model: nn.Module, config: TrainConfig, facts: Facts, native: int) -> Base:
    """Of a model whose tensors have their shapes; `native`: pixels of a picture that it is made for."""
    blocks, idle = _blocks(model)
    elsewhere = {id(module) for block in (*blocks, *idle) for module in block.modules()}
    around = [module for module in model.modules() if id(module) not in elsewhere]
    wrapped = ((path, layer) for path, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d))
    layers = {f"{facts.image_root}.{path}": layer for path, layer in wrapped}
    rules = assign(layers, config.rules, facts.groups)
    lora = 0
    for path, rule in rules.items():
        down, up = lora_shapes(layers[path], rule.rank or config.lora_rank)
        lora += math.prod(down) + math.prod(up)
    pieces = [_piece(list(block.modules()), stored=True) for block in blocks]
    return Base(facts, pieces, _piece(around, stored=False), lora, native)


def _blocks(model: Any) -> tuple[list[nn.Module], list[nn.Module]]:
    """As a family hands them to `memory.place`: of a UNet, or every list of blocks; and what is never asked here, of a
    transformer that reads other things than pictures, too."""
    if hasattr(model, "down_blocks"):
        return blocks_of(model), []
    kinds = dict(getattr(model, "mode_blocks", {}))
    lists = [*model.children(), *(blocks for kind, blocks in kinds.items() if kind == "image")]
    found = [block for blocks in lists if isinstance(blocks, nn.ModuleList) for block in blocks]
    return found, [blocks for kind, blocks in kinds.items() if kind != "image"]


def _piece(modules: Sequence[nn.Module], *, stored: bool) -> Piece:
    numbers = sum(p.numel() for module in modules for p in module._parameters.values() if p is not None)
    weights = [module.weight for module in modules if stored and isinstance(module, nn.Linear | nn.Conv2d)]
    linear = sum(p.numel() for p in weights)
    rows, largest = sum(len(p) for p in weights), max((p.numel() for p in weights), default=0)
    return Piece(linear, rows, numbers - linear, largest)


# --- what a card holds ------------------------------------------------------------------------------------------------


def needs(config: TrainConfig, base: Base) -> dict[str, int]:
    """Bytes on the card in a step, and while a picture is drawn."""
    storage, width = config.base_precision, 4 if config.precision == "fp32" else 2
    sizes = _sizes(config, base)
    away = sizes[: config.offload_blocks]
    there = base.around.size("auto", width, 0) + sum(sizes) - sum(away) + sum(away[:2])
    if storage != "auto" or base.packed:
        there += width * max((block.largest for block in base.blocks), default=0)
    moved = 10 + MOVED[config.optimizer] + 4 * (config.ema_decay is not None)
    seen = 2 if config.reference_dir else 1  # a reference has as many tokens as its picture
    share = config.batch_size * math.prod(config.size) * seen / base.native
    step = there + base.lora * moved + round(_kept(config, base) * share)
    coder, drawn = base.facts.coder, math.prod(config.effective_sample_size)
    at_once = min(drawn, TILE**2) if config.vae_tiling else drawn
    preview = there + base.lora * moved + coder.weights * 10**6 + coder.pixel * at_once
    return {"step": round(MORE * step) + BESIDE, "preview": round(MORE * preview) + BESIDE}


def _sizes(config: TrainConfig, base: Base) -> list[int]:
    """Bytes of each block as it is stored, the largest first."""
    storage, width = config.base_precision, 4 if config.precision == "fp32" else 2
    return sorted((block.size(storage, width, base.packed) for block in base.blocks), reverse=True)


def _kept(config: TrainConfig, base: Base) -> float:
    """Bytes for the way back of one picture of the base's size."""
    if base.kept is None:
        return 0
    whole, again = base.kept.whole << 20, base.kept.again << 20
    numbers = [block.linear + block.rest for block in base.blocks]
    one = whole * max(numbers) / sum(numbers)  # the block that is being computed again
    if config.gradient_checkpointing:
        return again + one
    away = min(config.offload_blocks, len(numbers)) / len(numbers)
    return away * again + (1 - away) * whole + (one if away else 0)


def allowed(config: TrainConfig, base: Base, card: int) -> Allowed:
    """The least that has to be changed for a card of so many GB."""
    changes: Mapping[str, Any] = {}
    found = 0
    for changes in rungs(config, base):
        for tiles in ({}, {"vae_tiling": True}):
            if tiles and (config.vae_tiling or max(config.effective_sample_size) <= TILE):
                continue
            now = config.model_copy(update={**changes, **tiles})
            asked = needs(now, base)
            found = max(asked.values())
            if found <= card * GB:
                return Allowed(card, {**changes, **tiles}, found, sum(_sizes(now, base)[: now.offload_blocks]))
    return Allowed(card, None, found, 0)


def rungs(config: TrainConfig, base: Base) -> Iterator[dict[str, Any]]:
    """What to change, first what leaves the LoRA the same: computing again, smaller batches, rounding the base, blocks
    in RAM, one more each time."""
    changes: dict[str, Any] = {}
    yield dict(changes)
    if not config.gradient_checkpointing:
        changes["gradient_checkpointing"] = True
        yield dict(changes)
    if single := [batch for batch in smaller_batches(config, config.batch_size) if batch["batch_size"] == 1]:
        changes |= single[0]
        yield dict(changes)
    if can_be_rounded(config):
        changes["base_precision"] = "int8"
        yield dict(changes)
    for count in range(config.offload_blocks + 1, len(base.blocks) + 1):
        yield {**changes, "offload_blocks": count}
