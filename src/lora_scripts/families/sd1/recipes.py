"""Settings to begin with on Stable Diffusion 1.x, each with its reason."""

from __future__ import annotations

from lora_scripts.families.facts import Recipe, Setting

STYLE = Recipe(
    seen=750,
    settings=(
        Setting("lora_rank", "16", "12 to 16 for a rich style"),
        Setting("batch_size", "4", "lower this first when memory runs out"),
        Setting("learning_rate", "2e-4", "1e-4 to 5e-4; lower if the loss rises"),
        Setting("caption_dropout", "0.1", "now and then without a caption, so that the style shows by itself"),
        Setting("min_snr_gamma", "5", "weighs noise levels evenly"),
    ),
    prompts=("a house by a lake", "portrait of a woman with a hat"),
)
CHARACTER = Recipe(
    seen=500,
    settings=(
        Setting("lora_rank", "8", "enough for one person or thing"),
        Setting("batch_size", "2", "lower this first when memory runs out"),
        Setting("learning_rate", "1e-4", "lower than for a style: faces overfit soon"),
        Setting("train_text_encoder", "true", "so that the new name is learned"),
        Setting("text_encoder_lr", "5e-5", "half of the rest"),
        Setting("shuffle_tags", "true", "captions as tags: the first stays in front, the rest changes places"),
        Setting("keep_tags", "1", "the name"),
    ),
    prompts=("by a lake", "portrait, smiling"),
)
RECIPES = {"style": STYLE, "character": CHARACTER}
