"""Words of one caption: the rules one by one, and what style and character sets leave out."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from lora_scripts.families.clip.tokenizer import clip_tokenizer
from lora_scripts.label.wording import WordRules, apply_rules, clean_tag, close_gaps, looks_like_tags


def count(text: str) -> int:
    return len(clip_tokenizer()(text, add_special_tokens=False).input_ids)


def sentence(text: str, **rules: Any) -> str:
    return apply_rules(text, WordRules(**rules), "sentence", count)


def tags(text: str, **rules: Any) -> str:
    return apply_rules(text, WordRules(**rules), "tags", count)


STYLE = {
    "a painting of a city at night with neon lights": "a city at night with neon lights",
    "an oil painting of an old man": "an old man",
    "a black and white drawing of a house": "a house",
    "a photo of a dog": "a dog",
    "A digital illustration of a girl in the style of studio ghibli": "a girl",
    "a girl sitting in a chair in the style of hokusai with a cat": "a girl sitting in a chair with a cat",
    "a car drawn in the style of a comic book, parked on a street": "a car, parked on a street",
    "a woman in a red dress in anime style": "a woman in a red dress",
    "a city in a cyberpunk style with neon lights": "a city with neon lights",
    "anime girl with long hair": "girl with long hair",
    "an anime-style elf standing in a forest": "an elf standing in a forest",
    "a cyberpunk cityscape with neon lights and rain": "a cityscape with neon lights and rain",
    "a street at night, cyberpunk style, digital art, trending on artstation": "a street at night",
    "The image shows a cat on a mat. The style is minimalist and clean.": "a cat on a mat.",
    # what only looks like a style stays
    "a woman holding a painting of a cat": "a woman holding a painting of a cat",
    "a picture of a woman's hairstyle": "a woman's hairstyle",
    "a close up of a cat": "a close up of a cat",
    "a girl with long hair and blue eyes": "a girl with long hair and blue eyes",
}
CHARACTER = {
    "a girl with blue hair and green eyes standing in a field": "a girl standing in a field",
    "a girl with long hair and a sword": "a girl with a sword",
    "a girl with a sword and blue hair": "a girl with a sword",
    "a girl with pink hair, a sword and a hat": "a girl with a sword and a hat",
    "a girl with long black hair and glasses": "a girl with glasses",
    "a girl with blonde hair blowing in the wind, smiling": "a girl, smiling",
    "a girl with black hair is standing in front of a blue sky": "a girl is standing in front of a blue sky",
    "a young woman with red hair, wearing a hat": "a young woman, wearing a hat",
    "a woman with blue hair and wearing a hat": "a woman wearing a hat",
    "a woman with her hair in a bun is reading": "a woman is reading",
    "a man with a beard sitting on a bench": "a man sitting on a bench",
    "a girl with cat ears and a tail": "a girl",
    "a blue-haired girl in a red dress": "a girl in a red dress",
    "an auburn-haired girl sits": "a girl sits",
    "a blue-eyed elf": "an elf",
    "a blonde woman with a red hair ribbon": "a woman with a red hair ribbon",
    "She has long hair and wears a hat.": "She wears a hat.",
    "She has long, wavy blonde hair and bright blue eyes. She stands on a beach.": "She stands on a beach.",
    "Her hair is long and blonde. She smiles.": "She smiles.",
    "Her long blonde hair is tied in a ponytail, and she wears a red coat.": "she wears a red coat.",
    "the woman has short brown hair, is smiling and wears a blue shirt": "the woman is smiling and wears a blue shirt",
    # what passes, or is worn, stays
    "a girl with closed eyes and wet hair": "a girl with closed eyes and wet hair",
    "a painting of a girl in anime style": "a painting of a girl in anime style",
    "a red car with white lights under a blue sky": "a red car with white lights under a blue sky",
}


@pytest.mark.parametrize(("text", "wanted"), STYLE.items())
def test_style_sentences(text: str, wanted: str) -> None:
    assert sentence(text, purpose="style") == wanted


@pytest.mark.parametrize(("text", "wanted"), CHARACTER.items())
def test_character_sentences(text: str, wanted: str) -> None:
    assert sentence(text, purpose="character") == wanted


def test_style_tags() -> None:
    text = (
        "1girl, monochrome, sketch, traditional_media, watercolor_(medium), 1990s_(style), retro_artstyle, cyberpunk, "
        "city, neon_lights, anime_coloring, realistic, painting_(object), pixel_art, night, art_nouveau, hat, blue_hair"
    )
    assert tags(text, purpose="style") == "1girl, city, neon lights, painting (object), night, hat, blue hair"


def test_character_tags() -> None:
    gone = (
        "long_hair, blue_eyes, cat_ears, hair_between_eyes, dark-skinned_female, ponytail, mole_under_eye, "
        "large_breasts, black_wings, very_long_hair, ahoge, heterochromia, fang, twintails, multicolored_hair, "
        "pointy_ears, fox_tail"
    )
    stays = "hat, hair ribbon, closed eyes, smile, hair bow, wet hair, outdoors, red dress, looking at viewer, sketch"
    assert tags(f"{gone}, 1girl, {stays}", purpose="character") == f"1girl, {stays}"


def test_tags_are_cleaned_and_ordered() -> None:
    text = "long_hair, hat,, Hat, ^_^, solo, >_<, saber_\\(fate\\), 2girls,long hair"
    assert tags(text) == "solo, 2girls, long hair, hat, ^_^, >_<, saber (fate)"
    assert [clean_tag(tag) for tag in ("0_0", "o_o", "a_b", "ab_c", "长_发")] == ["0_0", "o_o", "a_b", "ab c", "长 发"]


def test_replace_takes_whole_words_of_any_case() -> None:
    pairs = (("car", "vehicle"), ("city at night", "town"), ("猫", "狗"))
    assert sentence("Car and scar, a CAR's city  at night", replace=pairs) == "Vehicle and scar, a vehicle's town"
    assert sentence("一只猫在树上", replace=pairs) == "一只狗在树上"
    assert tags("gray_hair, hat, grey hair", replace=(("gray", "grey"),)) == "grey hair, hat"  # one of two equals stays


@pytest.mark.parametrize(
    ("word", "text", "wanted"),
    [
        ("hat", "a cat in a hat on a mat", "a cat on a mat"),
        ("hat", "a cat with a hat", "a cat"),
        ("hat", "a hatter with a hat, that sits", "a hatter, that sits"),
        ("beautiful", "a beautiful owl and a beautiful dog", "an owl and a dog"),
        ("ugly", "an ugly dog", "a dog"),
        ("red", "a red, old car", "an old car"),
        ("rain", "a city, rain, lights", "a city, lights"),
        (
            "unicorn",
            "an hour, a university, a cat",
            "an hour, a university, a cat",
        ),  # nothing taken out: nothing mended
    ],
)
def test_remove_in_a_sentence_leaves_a_sentence(word: str, text: str, wanted: str) -> None:
    assert sentence(text, remove=(word,)) == wanted


def test_remove_and_whitelist_take_whole_tags() -> None:
    assert tags("hat, witch hat, red_hat", remove=("hat", "red hat")) == "witch hat"
    assert tags("hat, witch_hat, Smile", whitelist=("smile", "witch hat")) == "witch hat, Smile"


RULES = WordRules(trigger="neonpunk", prefix="a photo of", append="cyberpunk style, rain")


@pytest.mark.parametrize(
    ("text", "kind", "wanted"),
    [
        ("a cat on a mat.", "sentence", "neonpunk, a photo of a cat on a mat, cyberpunk style, rain"),
        ("rain, cat, neonpunk", "tags", "neonpunk, a photo of, cat, cyberpunk style, rain"),
        ("", "sentence", "neonpunk, a photo of, cyberpunk style, rain"),
        ("neonpunk，一座房子，红色，rain", "tags", "neonpunk, a photo of, 一座房子, 红色, cyberpunk style, rain"),
        ("neonpunk，一座房子，红色", "sentence", "neonpunk, a photo of 一座房子，红色, cyberpunk style, rain"),
    ],
)
def test_own_words_stand_around_the_caption_once(text: str, kind: Any, wanted: str) -> None:
    once = apply_rules(text, RULES, kind, count)
    assert once == wanted
    assert apply_rules(once, RULES, kind, count) == wanted


def test_own_words_are_safe_from_the_convention() -> None:
    rules = {"purpose": "style", "append": "cyberpunk style", "trigger": "anime"}
    assert sentence("a painting of a cat", **rules) == "anime, a cat, cyberpunk style"
    assert tags("anime, cat, sketch", **rules) == "anime, cat, cyberpunk style"


@pytest.mark.parametrize("limit", range(4, 16))
def test_max_tokens_cuts_the_middle_at_a_word_or_tag(limit: int) -> None:
    text, rules = (
        "a cat with a hat on the old mat near an extraordinary house",
        {"trigger": "neonpunk", "append": "rain"},
    )
    if limit < count("neonpunk, rain"):
        return
    short = sentence(text, max_tokens=limit, **rules)
    assert count(short) <= limit and short.startswith("neonpunk, ") and short.endswith(", rain")
    middle = short.removeprefix("neonpunk, ").removesuffix(", rain").removesuffix("rain")
    assert text.startswith(middle) and not middle.endswith((" a", " with", " the", " on", " near", " an"))
    several = "1girl, long dress, witch hat, extraordinary house, mat"
    assert all(tag in several.split(", ") for tag in tags(several, max_tokens=limit).split(", "))


def test_max_tokens_takes_as_much_as_fits() -> None:
    text = " ".join(["word"] * 100)
    assert [count(sentence(text, max_tokens=n)) for n in (1, 7, 75, 99, 100, 200)] == [1, 7, 75, 99, 100, 100]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("1girl, solo, long hair, hat", True),
        ("long_hair, hat", True),
        ("a cat, a dog, a house", False),
        ("neonpunk, a city with rain, cyberpunk style", False),
        ("a city at night", False),
        ("She sits on a mat, with a cat beside her, in the rain", False),
    ],
)
def test_tags_are_known_by_their_shape(text: str, answer: bool) -> None:
    assert looks_like_tags(text) is answer


def test_no_input_takes_long() -> None:
    """Captioners that lose their way repeat words without end; the patterns must not try every split of them."""
    start = time.process_time()
    for text in (
        "long " * 300,
        "long, " * 300,
        "in a " * 300,
        "very highly detailed " * 100,
        "her long hair and " * 150,
    ):
        for purpose in ("style", "character"):
            sentence(text, purpose=purpose)
    assert time.process_time() - start < 30  # it took minutes once


def test_a_sentence_without_gaps_stays_as_it_is() -> None:
    assert close_gaps("a  cat , , and") == "a  cat , , and"


def test_the_examples_in_the_docs_are_true() -> None:
    page = (Path(__file__).parents[1] / "docs" / "label.md").read_text("utf-8")
    rows = re.findall(
        r"^\| (?:the captioner|a tagger) says \| (.+) \|\n\| `--for (\w+) --trigger \"?(\w+)\"?` \| (.+) \|$",
        page,
        re.M,
    )
    assert len(rows) == 3
    for text, purpose, trigger, wanted in rows:
        apply = tags if looks_like_tags(text) else sentence
        assert apply(text, purpose=purpose, trigger=trigger) == wanted
