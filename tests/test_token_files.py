"""The tokenizers that ship, for text encoders that come as weights alone: ids as other programs' papers print them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

import tiny_flow
import tiny_flux1
import tiny_zimage
from flow_checks import OPTIONS
from lora_scripts.families.flow import t5, token_files
from lora_scripts.families.flow.places import tokenizer_of
from lora_scripts.families.table import by_name, load_family
from runs import faults


@pytest.mark.parametrize(
    ("file", "text", "ids"),
    [
        # Qwen's own page on its tokens, for a text that only looks like a sign and one that is.
        (token_files.QWEN, 'print("<|endoftext|>")<|endoftext|>', [1350, 445, 151643, 899, 151643]),
        (token_files.QWEN, "Hello, world!", [9707, 11, 1879, 0]),
        # The example of T5 in transformers' documentation.
        (token_files.T5, "translate English to German: The house is wonderful.", [13959, 1566, 12, 2968, 10]),
        (token_files.T5, "Das Haus ist wunderbar.", [644, 4598, 229, 19250, 5, 1]),
    ],
)
def test_what_ships_reads_texts_as_published(file: Path, text: str, ids: list[int]) -> None:
    assert token_files.bare_tokenizer(file).encode(text).ids[: len(ids)] == ids


def test_qwens_table_has_every_byte_and_its_signs_behind_it() -> None:
    tokens = token_files.bare_tokenizer(token_files.QWEN)
    assert tokens.get_vocab_size() == 151_669
    for text in ("猫在雪地里 🎷\n\t\x00", "e\u0301"):  # the second as one sign: NFC
        assert tokens.decode(tokens.encode(text).ids) in (text, "é")
    signs = {"<|endoftext|>": 151_643, "<|im_start|>": 151_644, "<|im_end|>": 151_645, "</think>": 151_668}
    assert {sign: tokens.token_to_id(sign) for sign in signs} == signs
    assert set(signs) <= token_files.signs_of(token_files.QWEN)


def test_a_text_encoder_of_the_published_table_needs_no_file_beside_it(tmp_path: Path) -> None:
    """Its states are transformers' own, of the template's ids as they are known."""
    facts, base = by_name("zimage"), tiny_zimage.write_base(tmp_path / "base.safetensors")
    made = tiny_zimage.models()
    text = Qwen3ForCausalLM(Qwen3Config(**{**made.text.config.to_dict(), "vocab_size": 151_936})).eval()
    alone = tiny_flow.write_text(tmp_path / "alone" / "qwen.safetensors", made._replace(text=text))
    # The narrow tokenizer knows the template's signs and would be read; T5's does not, and is of another model.
    tiny_flux1.models().tokenizer.backend_tokenizer.save(str(alone.with_name("tokenizer.json")))
    beside = tiny_zimage.beside(base.parent)
    encoder = load_family(facts, base, replace(OPTIONS, **{**beside, "text_encoder": (alone,)})).encoder
    ids = [151644, 872, 198, 9707, 11, 1879, 0, 151645, 198, 151644, 77091, 198]
    want = text.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-2]
    assert torch.allclose(encoder.encode(["Hello, world!"])["states"], want, atol=1e-5)


def test_another_table_needs_its_own(tmp_path: Path) -> None:
    made = tiny_flux1.models()
    save_file({k: v.clone() for k, v in made.t5.state_dict().items()}, tmp_path / "t5.safetensors")
    assert "there is no tokenizer.json" in faults(lambda: t5.look(tmp_path / "t5.safetensors", tmp_path, 24))
    tensors = load_file(tmp_path / "t5.safetensors")
    wide = {k: torch.zeros(32_128, 24) for k in ("shared.weight", "encoder.embed_tokens.weight")}
    save_file({**tensors, **wide}, tmp_path / "t5.safetensors")
    assert t5.look(tmp_path / "t5.safetensors", tmp_path, 24).tokenizer == token_files.T5


def test_what_lies_beside_it_comes_first_and_what_is_damaged_is_told(tmp_path: Path) -> None:
    def found() -> Path:
        return tokenizer_of(tmp_path / "t5.safetensors", tmp_path, "tokenizer_2", ("</s>",), shipped=token_files.T5)

    own = tmp_path / "tokenizer.json"
    tiny_flux1.models().tokenizer.backend_tokenizer.save(str(own))
    assert found() == own
    own.write_text("{", "utf-8")
    assert "is no tokenizer" in faults(found)
