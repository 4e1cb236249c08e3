"""What the doctor says about captions: planted faults are found, and clean sets are left in peace."""

from __future__ import annotations

import random
from collections import Counter

import pytest

import bpe
from lora_scripts.check import contradictions, tags, vocabulary
from lora_scripts.check.caption_findings import READ, caption_findings, cut, identical, missing, nonsense, truncated
from lora_scripts.check.vocabulary import Captioned
from lora_scripts.data.findings import Finding
from lora_scripts.demo import world
from lora_scripts.families.clip import prompts
from lora_scripts.families.clip.tokenizer import clip_counter, clip_tokenizer


def captions(*texts: str) -> list[Captioned]:
    return [Captioned(f"{number}.png", text, f"metadata.csv:{number + 1}") for number, text in enumerate(texts, 1)]


def kinds(found: list[Finding]) -> Counter[str]:
    return Counter(finding.kind for finding in found)


# --- 77 tokens --------------------------------------------------------------------------------------------------------

VOCABULARY = """
cyberpunk cityscape neon lights rain street woman raincoat cinematic lighting low angle shot 1girl 3.5mm f/1.8 it's
霓虹灯 雨夜的街道 赛博朋克 高楼 ネオン 🌃 👩‍🚀 🇨🇳 é naïve ночь pneumonoultramicroscopicsilicovolcanoconiosis
masterpiece, best_quality, (glow:1.2), holographic-billboard, Łódź, İstanbul, --ar, 4k, <lora>
"""


def planted(count: int, seed: int) -> list[str]:
    """Captions of some 40 to 120 tokens, of words of many scripts, with blanks and without."""
    rng, words = random.Random(seed), VOCABULARY.split()
    return [
        "".join(rng.choice(("", " ", " ", ", ")) + rng.choice(words) for _ in range(rng.randint(12, 32)))
        for _ in range(count)
    ]


def test_long_captions_by_an_independent_count() -> None:
    texts = planted(400, seed=3)
    long = [len(bpe.tokens(text)) > READ for text in texts]
    assert 100 < sum(long) < 300
    assert [cut(text) is not None for text in texts] == long
    assert [found[0] for text in texts if (found := cut(text))] == [
        len(bpe.tokens(text)) for text, yes in zip(texts, long, strict=True) if yes
    ]


@pytest.mark.parametrize("count", [75, 76])
def test_the_limit(count: int) -> None:
    assert (cut(" ".join(["neon"] * count)) is not None) == (count > 75)


def test_what_is_cut_is_shown() -> None:
    [found] = truncated(captions(" ".join(["neon"] * 74) + ", low angle shot, 雨夜"))
    assert found.message.endswith('cut away: "low angle shot, 雨夜"')
    assert (found.files, found.source, found.severity) == (("1.png",), "metadata.csv:2", "warning")


@pytest.mark.parametrize("most", [1, 2, 3])
def test_the_cut_is_where_training_cuts(most: int) -> None:
    """A chunk that another follows ends at a comma, so that a caption of fewer tokens than are read may lose its last
    words, too; the last one is filled."""
    texts = [" ".join(pair) for pair in zip(planted(60, seed=4), planted(60, seed=5), strict=True)]
    texts += [f"{'neon ' * 59}, {'red ' * 15}{'blue ' * more}" for more in (0, 1, 60, 61, 74)]
    early = 0
    for text in texts:
        counted = clip_counter().encode(text)
        assert counted.ids == clip_tokenizer()(text, add_special_tokens=False, verbose=False)["input_ids"]
        read = [chunk.ids[1:-1] for chunk in prompts.chunks(prompts.plain(text), most)]
        seen = [token for ids in read for token in ids if token != prompts.END]
        found = cut(text, 75 * most)
        assert (found[:2] if found else (len(seen),) * 2) == (len(counted), len(seen))
        early += found is not None and len(counted) <= 75 * most
        assert found is None or found[2] == counted.offsets[len(seen)][0]
    assert (early > 0) == (most > 1)
    filled = prompts.chunks(prompts.plain(texts[-1]), most)[-1].ids
    assert len(texts) == 65 and (filled.index(prompts.END) == 76) == (most < 3)


# --- one caption ------------------------------------------------------------------------------------------------------


def test_missing_and_identical() -> None:
    assert missing([], allowed=False) == []
    assert [f.severity for f in missing(["a.png", "b.png"], allowed=False)] == ["error"]
    assert [f.severity for f in missing(["a.png"], allowed=True)] == ["warning"]
    [found] = identical(captions("a cat", "a dog", "A cat"))
    assert found.files == ("1.png", "3.png")


@pytest.mark.parametrize(
    "text",
    [
        "1girl, indoors, outdoors",
        "a street, daytime, night",
        "solo, 2girls, smile",
        "no humans, 1girl",
        "a man outdoors, standing indoors",
    ],
)
def test_a_caption_against_itself(text: str) -> None:
    assert kinds(contradictions.within(captions(text))) == {"caption_contradiction": 1}


@pytest.mark.parametrize(
    "text",
    [
        "a street from day to night",
        "a room seen through a window from outdoors, indoors",
        "a nightclub on a Friday, weekday crowd",
        "1girl, 1boy, smile",
        "a dog under a night sky",
        "half of it at night, half of it by day",
    ],
)
def test_a_caption_in_peace(text: str) -> None:
    assert contradictions.within(captions(text)) == []


# --- the vocabulary of a set ------------------------------------------------------------------------------------------

RAINY = ("neonpunk, neon lights, rain, street", "neonpunk, rain, alley, car", "neonpunk, neon lights, tower, sky")


def test_spellings_of_one_tag() -> None:
    found = caption_findings(captions(*RAINY, "neonpunk, neonlights, bar", "neonpunk, neon_lights, bridge"))
    [one] = [finding for finding in found if finding.kind == "spelling_variants"]
    assert '"neon lights" in 2 captions, "neon_lights" in 1, "neonlights" in 1' in one.message
    assert one.files == ("4.png", "5.png")
    found = caption_findings(captions(*RAINY, "neonpunk, neon light, bar"))
    assert [f.severity for f in found if f.kind == "spelling_variants"] == ["note"]  # a plural may be meant
    found = caption_findings(captions(*RAINY, "neonpunk, Neon Lights"))
    assert kinds(found)["tag_case"] == 1 and not kinds(found)["spelling_variants"]


def test_spellings_inside_sentences() -> None:
    found = caption_findings(
        captions("a street with neon lights", "neonlights in the rain", "an every day scene everyday")
    )
    assert [f.files for f in found if f.kind == "spelling_variants"] == [("2.png",)]


def test_misspelt_words() -> None:
    street = [f"cyberpunk street number {n}" for n in ("one", "two", "three", "four")]
    found = vocabulary.misspelt(captions(*street, "cyberpnuk stret"))
    assert [finding.message.split('"')[1] for finding in found] == ["cyberpnuk", "stret"]
    assert found[0].source == "metadata.csv:6"


def test_near_words_that_are_words() -> None:
    texts = [f"a house by the river under light {n}" for n in "abcd"]
    assert vocabulary.misspelt(captions(*texts, "a horse, a rider, lights, lighting, riverside, a hose")) == []


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        ("neon", "neon", 0),
        ("neon", "noen", 1),
        ("neon", "neo", 1),
        ("neon", "xeon", 1),
        ("kitten", "sitting", 3),
        ("a", "abcd", 3),
    ],
)
def test_edits(a: str, b: str, distance: int) -> None:
    assert vocabulary.edits(a, b) == vocabulary.edits(b, a) == distance


def test_the_trigger() -> None:
    texts = [f"neonpunk, a {thing}" for thing in ("car", "house", "tree", "lamp", "boat", "bar", "dog", "door", "sign")]
    assert vocabulary.guess_trigger(captions(*texts, "a cat")) == ("neonpunk",)
    [guessed] = vocabulary.trigger_coverage(captions(*texts, "a cat, red"), ())
    assert (guessed.files, guessed.severity) == (("10.png",), "note")
    [given] = vocabulary.trigger_coverage(captions(*texts, "neonpunks everywhere"), ("NeonPunk",))
    assert (given.files, given.severity) == (("10.png",), "warning")
    assert "9 of 10" in given.message
    assert vocabulary.trigger_coverage(captions(*texts), ()) == []
    both = captions("ann, a car", "bo, a house", "a tree")  # several words: one of them is enough
    [given] = vocabulary.trigger_coverage(both, ("ann", "bo"))
    assert given.files == ("3.png",) and "ann, bo" in given.message
    assert vocabulary.trigger_coverage(captions("one", "two", "three", "four", "five"), ()) == []
    assert vocabulary.trigger_coverage(captions("c1", "c2", "c3", "c4", "c5", "c6"), ()) == []  # no word is "c"


def test_words_everywhere_and_words_once() -> None:
    texts = [f"neonpunk, cyberpunk style, a {thing}" for thing in ("car", "house", "tree", "lamp", "boat")]
    everywhere, once = vocabulary.common_and_single(captions(*texts), ("neonpunk",))
    assert "in every caption: cyberpunk, style." in everywhere.message and not everywhere.files
    assert "boat, car, house, lamp, tree" in once.message
    assert vocabulary.common_and_single(captions("a", "b"), ()) == []


def test_two_names_for_one_thing() -> None:
    [found] = contradictions.synonyms(captions("a car", "cars", "an automobile", "a car beside an automobile"))
    assert found.files == ("3.png",) and '"car" in 2, "automobile" in 1' in found.message
    assert contradictions.synonyms(captions("a car", "autobahn", "a scar", "carpet")) == []


def test_one_picture_two_stories() -> None:
    said = {c.name: c for c in captions("a street by day", "a street at night", "a street", "three dogs play chess")}
    found = contradictions.between([("1.png", "2.png"), ("1.png", "3.png"), ("3.png", "4.png")], said)
    assert [finding.files for finding in found] == [("1.png", "2.png"), ("3.png", "4.png")]


def test_a_clean_set_gets_no_warning() -> None:
    texts = [world.caption(scene) for scene in world.style_set("plain", 200, seed=9)]
    assert {f.severity for f in caption_findings(captions(*texts))} <= {"note"}


# --- corrections ------------------------------------------------------------------------------------------------------


def test_corrections_touch_spacing_alone() -> None:
    texts = [*RAINY, "neonpunk, neonlights, cars, Rain"]
    table = tags.corrections(texts)
    assert table == {"neonlights": "neon lights"}
    assert tags.corrected(texts[3], table) == "neonpunk, neon lights, cars, Rain"


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("a, b, a", "a, b"),
        ("a ,b,, c,", "a,b, c"),
        (", a, b", "a, b"),
        ("1,000 people, rain, rain", "1,000 people, rain"),
        ("霓虹灯，雨夜，霓虹灯", "霓虹灯，雨夜"),
        ("a plain sentence with no tags", "a plain sentence with no tags"),
        ("it was, as so often, as so often", "it was, as so often"),
        ("Rain, rain", "Rain"),
    ],
)
def test_corrected(text: str, right: str) -> None:
    assert tags.corrected(text, {}) == right
    assert tags.corrected(right, {}) == right


# --- what is no caption -----------------------------------------------------------------------------------------------


def test_what_programs_leave_in_place_of_words_is_told_and_words_are_not() -> None:
    bad = {
        "<html><head><title>502 Bad Gateway</title></head></html>": "a web page",
        "<!DOCTYPE html> <p>Not found": "a web page",
        "#NAME?": "an error of a spreadsheet",
        "#DIV/0!": "an error of a spreadsheet",
        "nan": "a program's word for nothing",
        "None": "a program's word for nothing",
        "a car\x00 at night": "text with control characters, or letters that were lost",
        "a caf\ufffd": "text with control characters, or letters that were lost",
    }
    good = [
        "#1 fan",
        "nan bread on a plate",
        "none of them",
        "<lora:neon:1>",
        "a < b",
        "Größe, naïve, 霓虹灯, 🌃",
        "a\tb",
    ]
    found = nonsense(captions(*bad, *good))
    assert [finding.message.partition(":")[0] for finding in found] == [f"the caption is {why}" for why in bad.values()]
    assert {finding.severity for finding in found} == {"warning"}
    assert all(finding.message.isprintable() for finding in found)
    assert kinds(caption_findings(captions("#NAME?", *good)))["caption_nonsense"] == 1
