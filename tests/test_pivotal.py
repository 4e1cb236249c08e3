"""Pivotal tuning: new words that are trained together with the LoRA, and the files that bring them."""

from __future__ import annotations

import contextlib
import io as text_io
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import tiny
from conftest import offline
from lora_scripts.cli import main
from lora_scripts.config.load import load_config
from lora_scripts.errors import UserError, UserErrors
from lora_scripts.families.base import LoadOptions
from lora_scripts.families.clip.prompts import chunks, plain, weighted
from lora_scripts.families.clip.tokenizer import clip_tokenizer
from lora_scripts.families.clip.word_table import spread
from lora_scripts.families.table import by_name, load_family
from lora_scripts.formats import header, io
from lora_scripts.loras.consumers import CONSUMERS
from lora_scripts.loras.embedding import to_bundle
from lora_scripts.loras.file import read
from lora_scripts.loras.stack import LoraStack, Worn
from lora_scripts.loras.verify import verify
from lora_scripts.loras.words import read_words
from lora_scripts.run.preflight import preflight
from runs import stopped

FIRST = 49408
"""The number after CLIP's last token."""


@pytest.fixture(scope="module")
def words(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures whose captions hold two new words."""
    folder = tmp_path_factory.mktemp("words") / "data"
    shutil.copytree(data, folder)
    rows = [f'{i}.png,"picture {i} of a Zorblax, {"qux-3 " * (i % 2)}round {i}"' for i in range(5)]
    (folder / "metadata.csv").write_text("\n".join(["filename,prompt", *rows]) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def config(base: Path, words: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pivotal")
    keys = {"new_token": "[zorblax, qux-3]", "token_vectors": 3, "token_init": '["neon city", gradient]'}
    keys |= {"token_lr": 0.05, "token_stop": 0.5, "ema_decay": 0.9, "caption_dropout": 0.2}
    keys |= {"targets": tiny.SOME}
    paths = {"base_model": base, "train_data_dir": words, "output_dir": folder / "neon"}
    return tiny.write_config(folder, **paths, **keys)


@pytest.fixture(scope="module")
def trained(config: Path) -> tuple[Path, str]:
    """(its folder, what it told) of a run of six steps."""
    told = text_io.StringIO()
    with offline(), contextlib.redirect_stdout(told):
        assert main(["train", "--config", str(config)]) == 0
    return config.parent / "neon", told.getvalue()


def fresh(base: Path) -> Any:
    return load_family(by_name("sd1"), base, LoadOptions(torch.device("cpu"), torch.float32))


def test_a_words_tokens_stand_where_it_stands_and_never_part() -> None:
    known = {"zorblax": (FIRST, FIRST + 1, FIRST + 2)}
    tokenizer = clip_tokenizer()

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    (chunk,) = chunks(weighted("a (ZORBLAX:1.5), zorblaxes"), words=known)
    wanted = [*ids("a"), FIRST, FIRST + 1, FIRST + 2, *ids(", zorblaxes")]
    assert list(chunk.ids[1 : len(wanted) + 1]) == wanted
    assert chunk.weights[2:5] == (1.5, 1.5, 1.5) and chunk.weights[5] == 1.0
    # 73 tokens are there: three more do not fit, and the word begins the next chunk whole.
    first, second = chunks(plain("dog " * 73 + "zorblax cat"), words=known)
    assert first.ids[73] == ids("dog")[0] and first.ids[74] == tokenizer.eos_token_id
    assert list(second.ids[1:5]) == [FIRST, FIRST + 1, FIRST + 2, *ids("cat")]
    assert chunks(plain("a red house, round"), words={}) == chunks(plain("a red house, round"), words=known)


def test_only_the_new_rows_get_a_gradient(base: Path) -> None:
    family = fresh(base)
    before = family.encode_text(["a red house"])["states"]
    table = family.text_encoder.get_input_embeddings().weight.clone()
    rows = torch.nn.Parameter(spread(family.vectors_of("neon city"), 2))
    assert torch.equal(rows, table[clip_tokenizer()("neon city", add_special_tokens=False).input_ids])
    assert torch.equal(family.vectors_of(""), table.mean(0, keepdim=True))
    family.set_words({"zorblax": rows})
    assert torch.equal(family.encode_text(["a red house"])["states"], before)
    family._captions(["a zorblax house", "a house"])["states"].square().sum().backward()
    assert rows.grad is not None and bool(rows.grad.any(1).all())
    assert [name for name, p in family.text_encoder.named_parameters() if p.grad is not None] == [
        name for name, p in family.text_encoder.named_parameters() if p is rows
    ]
    # Against a table that is really longer, with the same rows behind.
    family.set_words({})
    longer = torch.nn.Embedding.from_pretrained(torch.cat([table, rows.detach()]), freeze=False)
    family.text_encoder.set_input_embeddings(longer)
    family.words = {"zorblax": (FIRST, FIRST + 1)}
    family._captions(["a zorblax house", "a house"])["states"].square().sum().backward()
    assert longer.weight.grad is not None
    torch.testing.assert_close(rows.grad, longer.weight.grad[FIRST:], rtol=1e-5, atol=1e-7)


def test_words_stop_when_told_and_are_saved_as_averaged(config: Path, trained: tuple[Path, str]) -> None:
    folder, told = trained
    assert "zorblax (in 5 of 5 captions), qux-3 (in 2 of 5 captions)" in " ".join(told.split())
    assert "verified: the word zorblax, 3 x 16 numbers" in told
    state = safetensors.torch.load_file(folder / "state" / "step-00000006" / "lora.safetensors")
    saved = {
        name: read_words(folder / f"{name}.safetensors") for name in ("neon", "neon-step000002", "neon-step000004")
    }
    assert all(list(found) == ["zorblax", "qux-3"] for found in saved.values())
    assert torch.equal(saved["neon"]["zorblax"], state["ema.new_token.zorblax"])
    step = stopped(config, 3, f"output_dir={config.parent / 'half'}", "sample_every=0")
    halfway = {word: p.detach().clone() for word, p in step.model.words.items()}
    # token_stop: 0.5 of six steps: what is trained rests from then on.
    assert all(torch.equal(state[f"new_token.{word}"], value) for word, value in halfway.items())
    family = fresh(load_config(config).base_model)
    start = spread(family.vectors_of("neon city"), 3)
    assert not torch.equal(halfway["zorblax"], start) and not torch.equal(
        halfway["qux-3"], family.vectors_of("gradient")
    )


def test_a_resumed_run_is_an_unbroken_one(config: Path, trained: tuple[Path, str]) -> None:
    out = config.parent / "again" / "neon"
    stopped(config, 2, f"output_dir={out}", "token_stop=")
    stopped(config, 5, f"output_dir={out}", "token_stop=", resume=True)
    whole = config.parent / "whole" / "neon"
    stopped(config, 5, f"output_dir={whole}", "token_stop=")
    one, other = (safetensors.torch.load_file(f / "state" / "step-00000005" / "lora.safetensors") for f in (out, whole))
    assert "ema.new_token.qux-3" in one and one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_diffusers_reads_the_embedding_files_as_we_do(base: Path, trained: tuple[Path, str]) -> None:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTokenizer

    lora = trained[0] / "neon.safetensors"
    family = fresh(base)
    family.set_words(read_words(lora))
    prompt = "a zorblax on sand, qux-3 round"
    ours = family.encode_text([prompt])["states"]
    _, vae, text = tiny.models()
    unet = tiny.models()[0]
    own = clip_tokenizer()
    tokenizer = CLIPTokenizer(vocab=own.get_vocab(), merges=_merges(), model_max_length=77)
    pipeline = StableDiffusionPipeline(vae, text, tokenizer, unet, None, None, None, requires_safety_checker=False)
    for word in ("zorblax", "qux-3"):
        pipeline.load_textual_inversion(str(lora.parent / "embeddings" / "neon" / f"{word}.safetensors"), token=word)
    theirs, _ = pipeline.encode_prompt(prompt, torch.device("cpu"), 1, do_classifier_free_guidance=False)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=0)
    family.set_words({})
    assert not torch.allclose(family.encode_text([prompt])["states"], theirs, atol=1e-3)


def _merges() -> list[tuple[str, str]]:
    from lora_scripts.families.clip.tokenizer import _vocabulary

    return _vocabulary()[1]


def bundle(lora: Path, path: Path) -> Path:
    """The LoRA with its words in it, as `token_bundle` writes it."""
    head = header.read_header(lora)
    tensors = safetensors.torch.load_file(lora) | to_bundle(read_words(lora), [tiny.LAYOUT.text_width])
    io.save_safetensors(path, tensors, head.metadata)
    return path


def test_generate_knows_the_words_beside_a_lora_and_in_it(
    base: Path, trained: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beside = trained[0] / "neon.safetensors"
    inside = bundle(beside, tmp_path / "bundled.safetensors")
    family = fresh(base)
    prompt = "a zorblax"
    bare = family.encode_text([prompt])["states"]
    family.set_words(read_words(beside))
    known = family.encode_text([prompt])["states"]
    family.set_words({})
    assert not torch.allclose(bare, known, atol=1e-3)
    stack = LoraStack(family)
    for path in (beside, inside):
        stack.wear([Worn(path, 0.5, 0.5)])
        assert torch.equal(family.encode_text([prompt])["states"], known)
        stack.take_off()
        assert torch.equal(family.encode_text([prompt])["states"], bare)
        assert type(family.text_encoder.get_input_embeddings()) is torch.nn.Embedding

    alone = tmp_path / "alone" / "neon.safetensors"
    alone.parent.mkdir()
    shutil.copy(beside, alone)
    argv = ["generate", "--base", str(base), "--steps", "1", "--size", "64", "--output", str(tmp_path / "a.png")]
    assert main([*argv, "--lora-dir", str(alone.parent), "--prompt", "a Zorblax <lora:neon:1>"]) != 0
    assert "was trained with the word 'zorblax', whose vectors are not there" in capsys.readouterr().err
    assert main([*argv, "--lora-dir", str(alone.parent), "--prompt", "a house <lora:neon:1>"]) == 0
    other = tmp_path / "other.safetensors"
    tensors = safetensors.torch.load_file(inside)
    tensors["bundle_emb.Zorblax.string_to_param.*"] = tensors.pop("bundle_emb.zorblax.string_to_param.*") + 1
    io.save_safetensors(other, tensors, {})
    with pytest.raises(UserError, match="with another meaning"):
        stack.wear([Worn(inside, 1, 1), Worn(other, 1, 1)])


def test_what_is_made_of_a_lora_says_where_its_word_stays(
    base: Path, trained: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = trained[0] / "neon.safetensors"
    told = f"note: the word zorblax of neon.safetensors does not go in; take its embedding file along: {trained[0]}"
    assert main(["combine", str(lora), f"{lora}:0.5", "--output", str(tmp_path / "both.safetensors")]) == 0
    assert capsys.readouterr().out.count(told) == 1
    output = tmp_path / ("merged" if base.is_dir() else "merged.safetensors")
    assert main(["merge", str(lora), "--base", str(base), "--output", str(output)]) == 0
    assert capsys.readouterr().out.count(told) == 1


def test_who_takes_a_file_with_words_in_it(base: Path, trained: tuple[Path, str], tmp_path: Path) -> None:
    lora = trained[0] / "neon.safetensors"
    assert all(verdict.ok for verdict in verify(lora, base, None, CONSUMERS))
    found = {v.consumer: v for v in verify(bundle(lora, tmp_path / "b.safetensors"), base, lora, CONSUMERS)}
    assert {name for name, verdict in found.items() if not verdict.ok} == {"diffusers", "additional-networks"}
    assert found["A1111"].note == "and its prompts know the word qux-3, zorblax"
    for name in ("ComfyUI", "InvokeAI", "kohya", "PEFT"):
        assert "is not read, its embedding file is" in found[name].note


def test_bundled_in_the_lora_if_asked(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = config.parent / "bundled"
    keys = ["token_bundle=true", "epochs=1", "adapter=dora"]
    assert main(["train", "--config", str(config), f"output_dir={out}", *keys]) == 0
    told = capsys.readouterr().out
    assert "note: diffusers, additional-networks refuse a LoRA with words in it" in told
    (command,) = re.findall("read no .*; for them: (.*)", told)
    assert main(shlex.split(command)[1:]) == 0 and "DoRA baked" in capsys.readouterr().out
    tensors = safetensors.torch.load_file(out / "bundled.safetensors")
    name = "bundle_emb.zorblax.string_to_param.*"
    beside = safetensors.torch.load_file(out / "embeddings" / "bundled" / "zorblax.safetensors")
    assert torch.equal(tensors[name], beside["emb_params"]) and tensors[name].shape == (3, 16)
    # Going on with it: its words are where it left them.
    more = [
        "new_token=zorblax",
        "adapter=lora",
        f"init_lora={trained_lora(config)}",
        f"output_dir={config.parent / 'on'}",
    ]
    loaded = load_config(config, [*more, "token_init=neon"])
    from lora_scripts.run.build import build_model

    with pytest.raises(UserError, match="was trained with the word 'qux-3'"):
        build_model(loaded, torch.device("cpu"), "fp32", read(trained_lora(config)).weights)
    loaded = load_config(config, [more[2], more[3]])
    model = build_model(loaded, torch.device("cpu"), "fp32", read(trained_lora(config)).weights)
    assert torch.equal(model.words["zorblax"], read_words(trained_lora(config))["zorblax"])


def trained_lora(config: Path) -> Path:
    return config.parent / "neon" / "neon.safetensors"


def test_faults(config: Path) -> None:
    with pytest.raises(UserErrors) as found:
        preflight(
            load_config(config, ["new_token=[house, flumox]", "token_init=[]", "output_dir=" + str(config.parent)]),
            resume=None,
        )
    told = [str(error) for error in found.value.errors]
    assert "new_token: CLIP knows the word 'house' already; choose one" in told[0]
    mend = "no caption holds the word 'flumox'; write it into the captions, as lora-scripts label --trigger flumox"
    assert any(mend in line for line in told)
    for override, fault in {
        "new_token=[a b]": "must be one word",
        "new_token=[zorblax, Zorblax]": "names a word twice",
        "token_init=[a, b, c]": "has 3 texts for 2 new words",
        "token_stop=1.5": "must be a share of the run below 1, or a step",
        "optimizer=prodigy": "cannot have a rate of its own",
    }.items():
        with pytest.raises((UserError, UserErrors), match=fault):
            load_config(config, [override, *(["learning_rate=1"] if "prodigy" in override else [])])
    with pytest.raises((UserError, UserErrors), match="token_lr: has no effect without new_token"):
        load_config(config, ["new_token=[]"])


def test_the_report_shows_the_base_without_the_words(trained: tuple[Path, str], base: Path, tmp_path: Path) -> None:
    """The last preview is drawn with the words of the file, as generate draws it."""
    folder, _ = trained
    argv = ["--prompt", "picture 0 of a Zorblax, round 0 <lora:neon:1>", "--seed", "42", "--steps", "1", "--size", "64"]
    argv += ["--precision", "fp32", "--lora-dir", str(folder.parent), "--output", str(tmp_path / "a.png")]
    assert main(["generate", "--base", str(base), *argv]) == 0
    last, again = (np.asarray(Image.open(p)) for p in (folder / "samples" / "step000006-1.png", tmp_path / "a.png"))
    assert np.array_equal(last, again)
