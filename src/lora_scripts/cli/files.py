"""Words for model files: what was written, how large it is, how much of a change is in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_scripts import units
from lora_scripts.units import percent

if TYPE_CHECKING:
    from lora_scripts.workshop.common import Written
    from lora_scripts.workshop.merge import Rewritten


def written(lora: Written) -> list[str]:
    """A LoRA that was written, as it was read again."""
    known = f" (AutoV2 {lora.autov2}, AutoV3 {lora.autov3})" if lora.autov3 else ""
    return [
        f"written: {lora.output} (rank {lora.rank}, alpha {lora.alpha:g}, {lora.modules} modules, "
        f"{lora.precision}, {units.size(lora.bytes)})",
        f"read again: ΔW as meant to {lora.rounding:.1e} of its size",
        f"sha256 {lora.sha256}{known}",
    ]


def energy(share: float, worst_share: float, worst_module: str) -> str:
    """How much of |ΔW|² a file of smaller rank holds."""
    return f"energy kept: {percent(share, 2)} in all; least {percent(worst_share, 2)}, in {worst_module}"


def rewritten(model: Rewritten) -> list[str]:
    """A model that was written with other weights, and the hashes of its files."""
    lines = [f"written: {model.output} ({model.changed} weights changed)"]
    for part in model.files:
        inside = model.output in part.file.parents
        name = part.file.relative_to(model.output).as_posix() if inside else part.file.name
        lines.append(f"{name}: sha256 {part.sha256} (AutoV2 {part.autov2}, AutoV3 {part.autov3})")
    if model.left_out:
        lines.append(f"left out, because they hold the weights as they were: {', '.join(model.left_out)}")
    return lines
