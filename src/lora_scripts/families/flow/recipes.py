"""Settings to begin with on models of flow, each with its reason; how previews are drawn stands in `Facts.drawn`."""

from __future__ import annotations

from collections.abc import Mapping

from lora_scripts.families.facts import Recipe, Setting


def recipes(
    *more: Setting,
    rank: tuple[str, str] = ("32", "16 to 32; alpha is the same"),
    of_one: str = "16",
    rate: str = "1e-4",
    rates: str = "5e-5 to 2e-4",
    batch: str = "2 where the memory allows it",
    fp8: str = "half the memory of the base; auto where it fits",
    seen: int = 1000,
) -> Mapping[str, Recipe]:
    """For a style, a person or thing, and an edit. `more`: what the family has besides; `rank`: of a style, and why;
    `of_one`: of a person or thing; `rate`: of learning, out of the usual `rates`; `batch`: when more than one picture;
    `fp8`: what that precision of the base gives, "" where it is not needed; `seen`: pictures of a style."""
    # 1000: at 1e-4, one a step, 500 only began a style on narrow models; other trainers' defaults are 500 to 3,000.
    memory = (
        Setting("batch_size", "1", batch),
        Setting("learning_rate", rate, f"{rates}; lower if the loss rises"),
        Setting("gradient_checkpointing", "true", "less memory, a slower step"),
        *([Setting("base_precision", "fp8", fp8)] if fp8 else []),
        *more,
    )
    style = Recipe(
        seen=seen,
        settings=(
            Setting("lora_rank", *rank),
            *memory,
            Setting("caption_dropout", "0.05", "now and then without a caption, so that the style shows by itself"),
        ),
        prompts=("a house by a lake", "portrait of a woman with a hat"),
    )
    character = Recipe(
        seen=500,
        settings=(Setting("lora_rank", of_one, "enough for one person or thing"), *memory),
        prompts=("by a lake", "portrait, smiling"),
    )
    edit = Recipe(seen=seen, settings=(Setting("lora_rank", *rank), *memory), prompts=())
    return {"style": style, "character": character, "edit": edit}
