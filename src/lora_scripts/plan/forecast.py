"""What a run will take, from what a rehearsal of it measured, and what to change. Arithmetic only; torch is not needed.

Sizes are bytes, times seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lora_scripts.config.schema import TrainConfig
from lora_scripts.plan.measured import Measured
from lora_scripts.report.data import COMPARED, PREVIEWS
from lora_scripts.run.configs import can_be_rounded, smaller_batches
from lora_scripts.run.run_folder import STATES

SIDES = (896, 768, 512, 448, 384)
"""Resolutions to go down to when memory is short."""
RANKS = (8, 4)
SIDE_STEP = 64
ROOM = 0.9
"""A peak beyond this share of the memory that is there is too near: a run varies, and so do its neighbours."""
DRIFT = 160 * 2**20
"""What a process on a CPU may come to hold beyond that, as its allocator's pieces and the report's libraries add up."""
CHECKPOINTED = 0.3
"""About what a step still needs, beyond the resident, with gradient_checkpointing."""
REMEMBERED = 250
"""Bytes in the cache about a picture that was looked at, with its path."""


# --- time -------------------------------------------------------------------------------------------------------------


def batch_seconds(measured: Measured) -> Callable[[int], float]:
    """Seconds of a batch by its pixels: on the line through the largest and the smallest, which were rehearsed."""
    large, small = measured.kinds[0].pixels, measured.kinds[-1].pixels
    most, least = measured.seconds["largest"], measured.seconds.get("smallest", 0.0)
    if large == small or not least:
        return lambda pixels: most * pixels / large
    slope = max(0.0, most - least) / (large - small)
    return lambda pixels: min(most, least) + slope * (pixels - small)


def times(config: TrainConfig, m: Measured, before: float) -> dict[str, float]:
    """The parts of a run, in its order. `before`: from its start until the model was loaded, as measured."""
    of, seconds = batch_seconds(m), m.seconds
    pictures, views = sum(v.pictures for v in m.views), sum(v.views for v in m.views)
    previews = _previews(config, m)
    steps = config.epochs * sum(kind.per_epoch * of(kind.pixels) for kind in m.kinds)
    return {
        "start": before,
        "class pictures": m.drawn * seconds.get("class picture", 0.0),
        "encoding": pictures * seconds["picture"]
        + (views - pictures) * seconds["view"]
        + m.captions * seconds.get("caption", 0.0),
        "steps": steps,
        "held-out loss": steps * m.measuring / (1 - m.measuring),
        "previews": previews * m.prompts * seconds["preview"],
        "saves": -(-m.steps // config.save_steps) * seconds["save"],
        "proof and report": m.shown * seconds["preview"] + seconds["load"],
    }


def _previews(config: TrainConfig, m: Measured) -> int:
    """How often preview pictures are drawn."""
    return m.previews + config.sample_first


# --- disk -------------------------------------------------------------------------------------------------------------


def disk(config: TrainConfig, m: Measured) -> dict[str, int]:
    """What lies on the disk when the run is over."""
    sizes, previews = m.sizes, _previews(config, m)
    kept = (m.steps - 1) // config.save_steps
    kept = kept if config.keep_last is None else min(kept, config.keep_last)
    shown = 2 + 2 * min(m.prompts, COMPARED) + min(previews + 1, PREVIEWS) * m.prompts
    return {
        "cache": cache_size(m) + REMEMBERED * sum(v.pictures for v in m.views),
        "LoRA files": (kept + 1 + m.best) * sizes["lora"],
        "class pictures": m.drawn * sizes.get("class picture", 0),
        "resume state": sizes["state"] + 22 * m.steps,  # the loss of each step as text
        "samples": (previews * m.prompts + min(m.prompts, COMPARED)) * sizes["picture"],
        "logs": m.steps * sizes["scalars"] + previews * m.prompts * sizes["picture"],
        # Pictures stand in the page as text, four letters for three bytes; small ones take about a byte for a pixel.
        "report": round((shown * sizes["picture"] + m.thumbnails) * 4 / 3) + 50_000,
    }


def cache_size(m: Measured) -> int:
    """All encoded pictures and captions, as files."""
    largest = m.kinds[0].width * m.kinds[0].height
    latents = sum(v.views * v.width * v.height for v in m.views) * m.sizes["latents"] / largest
    return round(latents) + m.captions * m.sizes.get("caption", 0)


def in_passing(config: TrainConfig, steps: int, state: int, lora: int) -> int:
    """What is on the disk beyond that for a moment: a new state beside the two before it, and a new LoRA file, before
    older ones go. `state`, `lora`: bytes of one of each."""
    states = min(STATES + 1, -(-steps // config.save_steps))
    return (states - 1) * state + lora


# --- memory, and what to change ---------------------------------------------------------------------------------------


def target(m: Measured, limit: int) -> float:
    """What a peak may be at most, to fit into `limit` with room."""
    return min(ROOM * limit, limit - DRIFT) if m.device == "cpu" else ROOM * limit


def over(m: Measured, limit: int) -> set[str]:
    """The phases that come too near to `limit`, or beyond; none if it is not known (0)."""
    found = {phase for phase, peak in m.peaks.items() if limit and peak > target(m, limit)}
    return found | {m.at} if m.short else found


def ladder(config: TrainConfig, too_much: set[str], images: int, least: int = 0) -> Iterator[dict[str, Any]]:
    """What to change, less first: previews no larger than the pictures, then batch size with gradient accumulation to
    make up, resolution, rank, what costs time, and last a base in 8 bits. Each rung keeps what those before it changed.

    `images`: pictures in the largest batch, which a small bucket keeps below batch_size. `least`: pixels that a picture
    must have for this base. The effective batch and the ratio of alpha to rank stay as they were. A rung that cannot
    help the phases in `too_much` is left out.
    """
    changes: dict[str, Any] = {}
    if "preview" in too_much and math.prod(config.effective_sample_size) > math.prod(config.size):
        changes["sample_size"] = config.resolution
        yield dict(changes)
    if too_much & {"step", "measure"}:
        for batch in smaller_batches(config, images):
            changes |= batch
            yield dict(changes)
    if too_much & {"encode", "step", "preview", "measure"}:
        for side in SIDES:
            if least <= side**2 < math.prod(config.size):
                changes["resolution"] = smaller = _resolution(config, side)
                if config.sample_size is not None and math.prod(config.effective_sample_size) > side**2:
                    changes["sample_size"] = smaller
                yield dict(changes)
    if too_much - {"load"} and config.init_lora is None:  # the rank of an earlier LoRA stays
        for rank in RANKS:
            if rank < config.lora_rank:
                changes["lora_rank"] = rank
                if config.lora_alpha is not None:
                    changes["lora_alpha"] = config.lora_alpha * rank / config.lora_rank
                yield dict(changes)
    if "step" in too_much and not config.gradient_checkpointing:
        changes["gradient_checkpointing"] = True
        yield dict(changes)
    if can_be_rounded(config):
        changes["base_precision"] = "int8"
        yield dict(changes)


def promising(config: TrainConfig, changes: Mapping[str, Any], m: Measured, limit: int) -> bool:
    """Whether a rehearsal of the changes is worth its time: memory beyond the resident goes about as pixels do."""
    changed = changed_config(config, changes)
    if changed.base_precision != config.base_precision:
        # At best all that was loaded was the base.
        smaller = 4 if m.precision == "fp32" else 2
        return m.peaks.get("load", 0) / smaller <= target(m, limit)
    area = math.prod(changed.size) / math.prod(config.size)
    images = min(changed.batch_size, m.kinds[0].images) / m.kinds[0].images if m.kinds else 1.0
    drawn = math.prod(changed.effective_sample_size) / math.prod(config.effective_sample_size)
    kept = CHECKPOINTED if changed.gradient_checkpointing and not config.gradient_checkpointing else 1.0
    factors = {"load": 1.0, "encode": area, "preview": drawn, "step": area * images * kept, "measure": area * images}
    known = {phase: m.peaks[phase] for phase in factors if phase in m.peaks and not (m.short and phase == m.at)}
    rest = {phase: min(m.resident, peak) for phase, peak in known.items()}
    return all(rest[p] + (peak - rest[p]) * factors[p] <= 1.1 * target(m, limit) for p, peak in known.items())


def changed_config(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """The config with other values, checked anew."""
    return TrainConfig.model_validate({**config.model_dump(exclude_unset=True), **changes})


def _resolution(config: TrainConfig, side: int) -> int | tuple[int, int]:
    """About side x side pixels, in the shape that the config has."""
    width, height = config.size
    if width == height:
        return side
    factor = side / math.sqrt(width * height)
    return _side(width * factor), _side(height * factor)


def _side(length: float) -> int:
    return max(SIDE_STEP, int(length) // SIDE_STEP * SIDE_STEP)
