"""What a LoRA does to prompts that do not call it: how far the base's pictures of other things move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from PIL import Image

from lora_scripts.config.schema import TrainConfig
from lora_scripts.families.base import PictureFamily
from lora_scripts.grid import measures
from lora_scripts.report.data import Comparison, Kept
from lora_scripts.run.after.worn import Worn
from lora_scripts.run.previews import usual

OTHERS = ("a house", "a tree", "a car", "a flower")
"""Things that every base draws, and that no word of a LoRA calls."""
DRAWN = 2 * len(OTHERS)
SHOWN = 2
"""Of them, in the report."""
TOUCHED = 0.5
"""Of what the LoRA changes in pictures that call it: a change of others from which on the base does not count as
kept."""

Pair = tuple[Image.Image, Image.Image]


def keeps_base(worn: Worn, config: TrainConfig, word: str, called: Sequence[Pair]) -> Kept:
    """Draws other things without and with the LoRA; `word` calls it, in the pictures `called`, without and with it."""
    previews = [replace(usual(config), prompt=text, seed=config.seed + i) for i, text in enumerate(OTHERS)]
    pairs = [(worn.draw(preview, 0.0), worn.draw(preview, 1.0)) for preview in previews]
    moved, usually = (_moved(worn.family, some) for some in (pairs, called))
    share = moved / max(usually, 1e-6)
    shown = [Comparison(p.prompt, p.seed, *pair) for p, pair in zip(previews[:SHOWN], pairs, strict=False)]
    words = told(word, share, preserved=config.preserve_weight is not None, kept=config.class_images > 0)
    return Kept(words, share > TOUCHED, shown)


def told(word: str, share: float, *, preserved: bool, kept: bool) -> str:
    """The finding in words; `preserved`: the base's answers were trained along without the word, `kept`: class
    pictures were."""
    text = f"without {word}: pictures of other things ({', '.join(OTHERS)}) change {share:.2f} times as much as those "
    text += "that call it"
    if share <= TOUCHED:
        return f"{text}, so the base is kept"
    helps = [] if preserved else ["preserve_weight: 1"]
    helps += ["more class pictures" if kept else "class pictures (class_prompt, class_images: 50)", "fewer epochs"]
    return f"{text}, so the base is not kept; {', '.join(helps)} or a lower strength help"


def _moved(family: PictureFamily, pairs: Sequence[Pair]) -> float:
    """The mean of |difference| over all latents, of unit variance."""
    looks = [[measures.look(family, measures.as_pixels(image)) for image in pair] for pair in pairs]
    return fmean(measures.latent_difference(one, other) for one, other in looks)
