"""Long prompts and weights: against the WebUI's documented examples, CLIP's own tokenizer, and sums by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from lora_scripts.errors import UserError
from lora_scripts.families.base import Sampling
from lora_scripts.families.clip.prompts import BREAK, chunks, emphasise, plain, weighted
from lora_scripts.families.clip.tokenizer import clip_tokenizer

START, END = 49406, 49407


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        ("[less] ((more))", [("less", 1 / 1.1), (" ", 1.0), ("more", 1.21)]),
        ("(a:0.5), b) ]c:1.2)", [("a", 0.5), (", b) ]c:1.2)", 1.0)]),
        ("(a:-1) (b: 1.5 )", [("a", -1.0), (" ", 1.0), ("b", 1.5)]),
        ("a BREAK b", [("a", 1.0), (BREAK, -1.0), ("b", 1.0)]),
        ("BREAKFAST", [("BREAKFAST", 1.0)]),
        ("", [("", 1.0)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                *[("a ", 1), ("house", 1.573), (" ", 1.1), ("on", 1), (" a ", 1.1), ("hill", 0.55)],
                *[(", sun, ", 1.1), ("sky", 1.4641), (".", 1.1)],
            ],
        ),
    ],
)
def test_weights_are_read_as_the_webui_documents_them(prompt: str, wanted: list[tuple[str, float]]) -> None:
    got = weighted(prompt)
    assert [text for text, _ in got] == [text for text, _ in wanted]
    assert [weight for _, weight in got] == pytest.approx([weight for _, weight in wanted])


def test_a_short_prompt_is_one_chunk_as_clip_pads_it() -> None:
    text = "a city at night, neon (lights)"
    (chunk,) = chunks(plain(text))
    theirs = clip_tokenizer()(text, padding="max_length", max_length=77, truncation=True).input_ids
    assert list(chunk.ids) == theirs and set(chunk.weights) == {1.0}
    (empty,) = chunks(plain(""))
    assert empty.ids == (START, *[END] * 76)


def test_a_long_prompt_fills_chunks_of_75_and_loses_nothing() -> None:
    text = " ".join(f"word{i % 7}" for i in range(120))  # two tokens each, no comma
    bare = clip_tokenizer()(text, add_special_tokens=False).input_ids
    found = chunks(plain(text))
    inner = [token for chunk in found for token in chunk.ids[1:-1]]
    assert len(found) == -(-len(bare) // 75) and inner[: len(bare)] == bare and set(inner[len(bare) :]) == {END}
    assert all(len(c.ids) == 77 and c.ids[0] == START and c.ids[-1] == END for c in found)
    assert chunks(plain(text), 1) == found[:1]


def test_a_full_chunk_ends_at_its_last_comma_and_break_begins_a_new_one() -> None:
    tags = ", ".join(["red house"] * 40)  # three tokens each with the comma: a chunk ends in the middle of one
    first, second = chunks(plain(tags))[:2]
    assert first.ids[75] == 267 and first.ids[76] == END  # 25 tags, the last token a comma
    text = "x " * 74 + "red house"
    first, second = chunks(plain(text))[:2]
    assert END not in first.ids[1:76] and second.ids[2] == END  # no comma near: "house" alone goes on
    near = "x " * 70 + ", red house by the lake"
    first, second = chunks(plain(near))[:2]
    assert (
        first.ids[71] == 267 and first.ids[72] == END and second.ids[1:4] == chunks(plain("red house by"))[0].ids[1:4]
    )
    first, second = chunks(weighted("a BREAK b"))
    assert first.ids[2] == END and second.ids[1] == chunks(plain("b"))[0].ids[1]


def test_weights_multiply_states_and_keep_the_chunks_mean(family: Any) -> None:
    (bare,) = chunks(plain("a red house"))
    (heavy,) = chunks(weighted("a (red:1.5) house"))
    assert heavy.ids == bare.ids and heavy.weights == (1.0, 1.0, 1.5, *[1.0] * 74)
    with torch.no_grad():
        before, after = (family.encoder.encode([[chunk]], 1, 1, normed=True).states for chunk in (bare, heavy))
    weights = torch.ones(77, 1)
    weights[2] = 1.5
    torch.testing.assert_close(after, before * weights)  # the tiny encoder's states have mean zero
    shifted = before + 0.25
    wanted = shifted * weights
    wanted = wanted * (shifted.mean() / wanted.mean())
    torch.testing.assert_close(emphasise(shifted, weights.T), wanted, rtol=1e-4, atol=1e-5)


def test_captions_are_literal_prompts_are_not(family: Any) -> None:
    with torch.no_grad():
        literal, emphasised = (family.encode_text([c])["states"] for c in ("a (red:1.5) house", "a red house"))
        assert not torch.equal(literal, emphasised)
    small = Sampling(steps=1, cfg=2.0, size=(64, 64))
    pictures = [
        family.generate(p, 1, small).tobytes() for p in ("a red house", "a (red:1.0) house", "a (red:2.0) house")
    ]
    assert pictures[0] == pictures[1] != pictures[2]


def test_long_captions_give_longer_states_only_when_asked(family: Any) -> None:
    text = " ".join(f"word{i % 7}" for i in range(120))
    short = family.encode_text([text, "a"])["states"]
    plain_settings = family.settings
    try:
        family.settings = replace(plain_settings, caption_tokens=225)
        long = family.encode_text([text, "a"])["states"]
        marked = family.fingerprint("text")
    finally:
        family.settings = plain_settings
    assert short.shape[1] == 77 and long.shape[1] == 231 and marked != family.fingerprint("text")
    torch.testing.assert_close(long[:, :77], short)
    empty = family.encode_text([""])["states"][0]  # what is missing is the empty prompt
    torch.testing.assert_close(long[1, 77:154], empty)
    assert not torch.equal(long[0, 154:], long[1, 154:])


def test_clip_skip_reads_an_earlier_layer_and_norms_it(family: Any) -> None:
    ids = torch.tensor([chunks(plain("a red house"))[0].ids])
    model = family.text_encoder
    inner = getattr(model, "text_model", model)
    embedded = inner.embeddings(input_ids=ids)  # the tiny encoder has one layer: before it are the embeddings
    settings = family.settings
    try:
        family.settings = replace(settings, clip_skip=2)
        with pytest.raises(UserError, match="has 1 layers"):
            family.encode_text(["a"])
        family.settings = replace(settings, clip_skip=1)
        last = family.encode_text(["a red house"])["states"]
    finally:
        family.settings = settings
    with torch.no_grad():
        assert not torch.allclose(inner.final_layer_norm(embedded), last)
