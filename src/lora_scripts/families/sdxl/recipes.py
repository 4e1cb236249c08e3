"""Settings to begin with on SDXL, each with its reason."""

from __future__ import annotations

from lora_scripts.families.facts import Recipe, Setting

_MEMORY = (
    Setting("batch_size", "2", "lower this first when memory runs out"),
    Setting("learning_rate", "1e-4", "5e-5 to 2e-4; lower if the loss rises"),
    Setting("gradient_checkpointing", "true", "less memory, a slower step"),
    Setting("min_snr_gamma", "5", "weighs noise levels evenly"),
)
STYLE = Recipe(
    seen=500,
    settings=(
        Setting("lora_rank", "32", "16 to 32"),
        Setting("lora_alpha", "16", "half the rank: a gentle start"),
        *_MEMORY,
        Setting("caption_dropout", "0.1", "now and then without a caption, so that the style shows by itself"),
    ),
    prompts=("a house by a lake", "portrait of a woman with a hat"),
)
CHARACTER = Recipe(
    seen=500,
    settings=(
        Setting("lora_rank", "16", "enough for one person or thing"),
        Setting("lora_alpha", "8", "half the rank: a gentle start"),
        *_MEMORY,
        Setting("train_text_encoder", "true", "so that the new name is learned"),
        Setting("text_encoder_lr", "[5e-5, 0]", "of the first of its two; 0 leaves the second as it is"),
        Setting("shuffle_tags", "true", "captions as tags: the first stays in front, the rest changes places"),
        Setting("keep_tags", "1", "the name"),
    ),
    prompts=("by a lake", "portrait, smiling"),
)
RECIPES = {"style": STYLE, "character": CHARACTER}
