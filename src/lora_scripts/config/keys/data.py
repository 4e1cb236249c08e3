"""What is seen of the pictures and captions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from lora_scripts.config.types import ConfigPath, Count, Fault, Fraction, Keys, Size, as_tuple, no_effect
from lora_scripts.units import number_of


def _word(value: str) -> str:
    if not value.strip() or set(value) & set("<>"):
        raise ValueError("is an empty text" if not value.strip() else "cannot stand in a prompt with < or >")
    if not value.isprintable():
        raise ValueError("holds a sign that nobody can type in a prompt; write the word without it")
    return value.strip()


def _words(value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    if isinstance(value, str):
        return _word(value)
    if not value:
        raise ValueError("is an empty list; leave it out, or name a word")
    return tuple(map(_word, value))


class DataKeys(Keys):
    """What is seen of the pictures and captions."""

    TITLE: ClassVar[str] = "Data"
    NEEDS: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("resolution", "flip", "random_crop", "folder_repeats"), "pictures"),
        **dict.fromkeys(("mask_alpha", "mask_dir", "mask_background"), "pictures"),
        "reference_dir": "references",
        **dict.fromkeys(("class_data_dir", "class_prompt", "class_images", "prior_weight"), "pictures"),
        **dict.fromkeys(("preserve_weight", "preserve_word", "preserve_every"), "pictures"),
        **dict.fromkeys(("trigger_word", "caption_dropout", "shuffle_tags", "keep_tags", "tag_dropout"), "pictures"),
        **dict.fromkeys(("caption_tokens", "clip_skip"), "clip"),
        "allow_missing_captions": "pictures",
    }

    resolution: Size = 512
    """Pixels of a side, or [width, height]; pictures of other shapes get buckets of the same area."""
    flip: bool = False
    """Mirror pictures left to right, half of the time. Not for text, or faces with a mark on one side."""
    random_crop: bool = False
    """Move the crop about at random instead of taking the middle."""
    repeats: Count = 1
    """How often each picture is seen in one epoch."""
    folder_repeats: bool = False
    """See pictures so many times as often as the name of their folder begins with, as kohya's trainers do: 10_name."""
    trigger_word: Annotated[str | tuple[str, ...], BeforeValidator(as_tuple), AfterValidator(_words)] | None = None
    """The word in the captions that calls the LoRA, or a list of them; it is written into the file, the report and the
    line to copy. Without it, what most captions begin with."""
    caption_dropout: Fraction = 0.0
    """The share of steps that see an empty caption."""
    shuffle_tags: bool = False
    """Shuffle the comma-separated parts of a caption anew each time."""
    keep_tags: Annotated[int, Field(ge=0, le=1000)] = 1
    """How many first parts of a caption stay in place. Only with shuffle_tags or tag_dropout."""
    caption_tokens: Literal[75, 150, 225] = 75
    """Where captions are cut off, in tokens; more than 75 are read in chunks, as WebUIs do."""
    clip_skip: Annotated[int, Field(ge=1, le=12)] = 1
    """The text encoder's layer that is read, from the end: 2 for bases of the anime kind, else 1."""
    tag_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of the comma-separated parts of a caption left out anew each time; the first keep_tags stay."""
    mask_alpha: bool = False
    """Train only what is opaque in each picture (PNG, WebP, AVIF with transparency). Of a base that draws transparency
    this is then not trained."""
    mask_dir: ConfigPath | None = None
    """Train only what is white in the picture of the same name in this folder."""
    mask_background: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """How much the masked-out part still counts; 0.1 keeps backgrounds from going astray."""
    reference_dir: ConfigPath | None = None
    """Pictures that others are made from, for a model that edits: for each training picture one of the same name in
    this folder, or name_1, name_2; the caption says what is done to it."""
    class_data_dir: ConfigPath | None = None
    """Pictures of the class (any woman, not this one), trained along so that it is not forgotten."""
    class_prompt: str = ""
    """The caption of class pictures that have none, as "a photo of a woman"."""
    class_images: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Draw class pictures with the base model and class_prompt until there are so many."""
    prior_weight: Annotated[float, Field(gt=0, le=10)] = 1.0
    """How much the loss of class pictures counts (prior preservation, arXiv:2208.12242)."""
    preserve_weight: Annotated[float, Field(gt=0, le=10)] | None = None
    """How much it counts that the base's own answer stays where a caption lacks the trigger word, so that the LoRA
    shows only when it is called. 1 is usual; a step takes about 2.2 times as long. Without it, nothing is held."""
    preserve_word: Annotated[str | tuple[str, ...], BeforeValidator(as_tuple)] = ""
    """What stands in captions in place of the trigger word then, as "woman", or one text for each trigger word. Without
    it, nothing does."""
    preserve_every: Count = 1
    """In every so many steps this is done: 4 makes steps 1.3 times as long, and holds the base a little less."""
    allow_missing_captions: bool = False
    """Train pictures that have no caption with an empty one, instead of refusing them."""

    @classmethod
    def idle(cls, values: Mapping[str, Any]) -> Iterator[Fault]:
        if values.get("shuffle_tags") is False and not values.get("tag_dropout"):
            yield no_effect("keep_tags", "shuffle_tags or tag_dropout", "shuffle_tags: true")
        if values.get("trigger_word") and values.get("new_token"):
            yield "trigger_word", "says again what new_token says", "leave it out"
        if values.get("mask_alpha") is True and values.get("mask_dir") is not None:
            yield "mask_alpha", "is a second mask beside mask_dir", "leave one of them out"
        if values.get("mask_alpha") is False and values.get("mask_dir") is None:
            yield no_effect("mask_background", "mask_dir or mask_alpha", "mask_dir")
        if values.get("class_data_dir") is None and values.get("class_images") == 0:
            yield no_effect("prior_weight", "class_data_dir or class_images", "class_images: 50")
            if values.get("class_prompt"):
                yield no_effect("class_prompt", "class_data_dir or class_images", "class_images: 50")
        if values.get("class_images") and not values.get("class_prompt"):
            yield "class_images", "cannot be drawn without class_prompt", 'add class_prompt: "a photo of a woman"'
        if values.get("preserve_weight") is None:
            yield no_effect("preserve_word", "preserve_weight", "preserve_weight: 1")
            yield no_effect("preserve_every", "preserve_weight", "preserve_weight: 1")
        words, instead = values.get("new_token") or values.get("trigger_word"), values.get("preserve_word")
        many = len(words) if isinstance(words, list | tuple) else 1
        if isinstance(instead, list | tuple) and len(instead) != many:
            fault = f"has {number_of(len(instead), 'text')} for {number_of(many, 'trigger word')}"
            yield "preserve_word", fault, "write one, or one for each"
        for key in ("caption_dropout", "tag_dropout"):
            if values.get(key) and values.get("preserve_weight") is not None:
                yield (
                    key,
                    "trains pictures without the trigger word, which preserve_weight holds to the base",
                    "leave it out",
                )
        for key in ("shuffle_tags", "tag_dropout"):
            if values.get(key) and values.get("caption_dropout") == 1:
                yield key, "has no effect, because caption_dropout: 1 drops every caption", "lower it"
