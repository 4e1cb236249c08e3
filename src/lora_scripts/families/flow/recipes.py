"""Settings to begin with on models of flow, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping

from lora_scripts.families.facts import Recipe, Setting

_RATES = {"1e-4": "5e-5 to 2e-4; lower if the loss rises", "3e-4": "1e-4 to 3e-4; lower if the loss rises"}


def recipes(*previews: Setting, rank: str = "32", rate: str = "1e-4") -> Mapping[str, Recipe]:
    """For a style and for a person or thing; `previews`: how the family's are drawn, `rank`: of a style, `rate`: of
    learning."""
    memory = (
        Setting("batch_size", "1", "2 where the card's memory allows it"),
        Setting("learning_rate", rate, _RATES[rate]),
        Setting("gradient_checkpointing", "true", "less memory, a slower step"),
        Setting("base_precision", "fp8", "half the memory of the base; auto where it fits"),
    )
    style = Recipe(
        seen=500,
        settings=(
            Setting("lora_rank", rank, "16 to 32"),
            *memory,
            *previews,
            Setting("caption_dropout", "0.05", "now and then without a caption, so that the style shows by itself"),
        ),
        prompts=("a house by a lake", "portrait of a woman with a hat"),
    )
    character = Recipe(
        seen=500,
        settings=(Setting("lora_rank", "16", "enough for one person or thing"), *memory, *previews),
        prompts=("by a lake", "portrait, smiling"),
    )
    return {"style": style, "character": character}
