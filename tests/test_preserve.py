"""What `preserve_weight` does: where nothing in a caption calls the LoRA, the base's answer stays."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

import tiny
import toy
from lora_scripts.adapters.inject import inject
from lora_scripts.adapters.layer import Adapter, LoraLayer, counting
from lora_scripts.adapters.masters import Masters
from lora_scripts.data.cache import Cache
from lora_scripts.data.trigger import without
from lora_scripts.events import Event, Note
from lora_scripts.families.base import Batch, LoadOptions
from lora_scripts.families.table import load_pictures
from lora_scripts.formats import io
from lora_scripts.losses.diffusion import Objective
from lora_scripts.run.captions_first import _asked
from lora_scripts.run.configs import load_config
from lora_scripts.run.dataset import ASKED, STEP_COST, preserving, step_cost
from lora_scripts.run.overview import odd_schedule
from lora_scripts.run.parts import Parts
from lora_scripts.run.preflight import Split, preflight, tell_trigger
from lora_scripts.train.feed import Feed
from lora_scripts.train.passes import LaunchedPasses, RecordedPasses
from lora_scripts.train.planned import plan_pictures
from runs import faults, stopped
from test_losses import SCHEDULER

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("text", "instead", "wanted"),
    [
        ("zibbo, a red house", "", "a red house"),
        ("a red house, Zibbo", "", "a red house"),
        ("1girl, zibbo, smile", "", "1girl, smile"),
        ("a photo of zibbo on a chair", "", "a photo of on a chair"),
        ("a photo of zibbo on a chair, zibbo's hat", "a woman", "a photo of a woman on a chair, a woman's hat"),
        ("zibbo", "", ""),
        ("zibbos, zibbo", "", "zibbos"),  # no part of a longer word
        ("一张zibbo的照片，白天", "女孩", "一张女孩的照片，白天"),
        ("zibbo，一只猫", "", "一只猫"),
        ("a (zibbo:1.2) house", r"\1", r"a (\1:1.2) house"),
        ("nothing of it,  here", "", "nothing of it, here"),
    ],
)
def test_a_caption_without_its_word(text: str, instead: str, wanted: str) -> None:
    assert without(text, ["zibbo"], instead) == wanted


def test_several_words_are_all_left_out() -> None:
    assert without("ann and bo, outside", ["ann", "bo"], "a person") == "a person and a person, outside"
    words = ["ann", "ann lee", "bo"]  # one is a part of another
    assert without("Ann Lee and bo with ann", words, ("a girl", "a woman", "")) == "a woman and with a girl"


# --- one batch, by hand -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def worn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, dict[str, Adapter]]]:
    """A narrow Stable Diffusion 1.x in float32 with LoRAs on a few layers that change something."""
    base = tiny.write_base(tmp_path_factory.mktemp("worn") / "base.safetensors")
    family = load_pictures(base, LoadOptions(CPU, torch.float32))
    paths = [path for path in family.trainable() if path.endswith(("attn2.to_q", "attn2.to_v"))][:4]
    layers = inject(family.roots, paths, lambda _, layer: LoraLayer(layer, 2, 3.0))
    g = torch.Generator().manual_seed(3)
    for layer in layers.values():
        for p in layer.values().values():
            with torch.no_grad():
                p.copy_(torch.randn(p.shape, generator=g))
    yield family, layers


def batch_of_two(weight: float) -> Batch:
    g = torch.Generator().manual_seed(5)
    mean, states = torch.randn(2, 4, 8, 8, generator=g), torch.randn(2, 77, 16, generator=g)
    latents, noise = {"mean": mean, "std": torch.zeros_like(mean)}, [torch.Generator().manual_seed(n) for n in (1, 2)]
    weights = torch.tensor([weight, weight])
    return Batch(latents, ["", ""], {"states": states}, ["a", "b"], noise, weights=weights, preserved=True)


def by_hand(layers: dict[str, Adapter], batch: Batch, weight: float) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients by diffusers' UNet alone, with W + (alpha / rank) B A in place of each W."""
    unet, own = tiny.models()[0], [(path.removeprefix("unet."), layer.values()) for path, layer in layers.items()]
    leaves = [{name: p.detach().clone().requires_grad_() for name, p in values.items()} for _, values in own]
    weights = dict(unet.named_parameters())
    changed = {
        f"{path}.weight": weights[f"{path}.weight"].detach() + 3.0 / 2 * leaf["up"] @ leaf["down"]
        for (path, _), leaf in zip(own, leaves, strict=True)
    }
    again = replace(batch, generators=[torch.Generator().manual_seed(n) for n in (1, 2)])
    draws, x0 = again.draws(Objective(), 1000), batch.latents["mean"]
    t = (draws.u * 1000).long()
    given = (SCHEDULER.add_noise(x0, draws.noise, t), t)
    assert batch.texts is not None
    states = {"encoder_hidden_states": batch.texts["states"]}
    with torch.no_grad():
        base = unet(*given, **states).sample
    with_lora = functional_call(unet, changed, given, states).sample
    loss = weight * (with_lora - base).square().mean((1, 2, 3)).sum()
    return loss.detach(), list(torch.autograd.grad(loss, [p for leaf in leaves for p in leaf.values()]))


@pytest.mark.parametrize("kind", [LaunchedPasses, RecordedPasses])
def test_the_loss_of_what_is_preserved_is_how_far_the_answer_is_from_the_bases(kind: Any, worn: Any) -> None:
    family, layers = worn
    masters = Masters(layers.values())
    masters.refresh()
    values = [p for layer in layers.values() for p in layer.values().values()]
    for p in values:
        p.grad = None
    batch = batch_of_two(0.5)
    wanted, gradients = by_hand(layers, batch, 0.5)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    go = kind(family, family.objective, scaler, masters, lambda: counting(layers.values(), 0.0))
    loss, n = go(batch)
    assert n == 0 and wanted > 1e-6  # it counts as no picture of the step
    torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=0)
    for p, gradient in zip(values, gradients, strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, gradient, rtol=2e-3, atol=1e-3 * gradient.abs().max().item())
    assert {layer.strength for layer in layers.values()} == {1.0}


# --- what is fed ------------------------------------------------------------------------------------------------------


def fed(folder: Path, first: int = 0, **settings: Any) -> list[tuple[int, list[Batch]]]:
    """Six steps of three pictures each in batches of two, two batches a step; the second picture has no word."""
    family, pictures = toy.Toy(), toy.samples(folder / "data", 5)
    whole = toy.feed(family, pictures, accumulation=2, batch_size=2, **settings)
    known = [replace(p, preserved=None if i == 1 else f"other {i}") for i, p in enumerate(whole.pictures)]
    feed = Feed(family, known, whole.settings, cache_text=True)
    feed.fill(Cache(folder / "cache", io.write_atomic), lambda *_: None)
    return list(feed.steps(first, 6))


def test_what_is_preserved_comes_beside_what_is_trained_which_stays_the_same(tmp_path: Path) -> None:
    plain, held = fed(tmp_path), fed(tmp_path, preserve=0.5, preserve_every=3)
    for step, ((_, before), (_, after)) in enumerate(zip(plain, held, strict=True)):
        own = [batch for batch in after if not batch.preserved]
        again = [batch for batch in after if batch.preserved]
        assert [b.names for b in own] == [b.names for b in before] and [b.captions for b in own] == [
            b.captions for b in before
        ]
        noise = [[torch.randn(3, generator=g).tolist() for g in b.generators] for b in (*own, *before, *again)]
        assert noise[: len(own)] == noise[len(own) : 2 * len(own)]
        if step % 3:
            assert not again
            continue
        shown = [(name, caption) for b in again for name, caption in zip(b.names, b.captions, strict=True)]
        assert shown == [(n, f"other {n[0]}") for b in own for n in b.names if n != "1.png"]
        assert not {str(n) for n in noise[2 * len(own) :]} & {str(n) for n in noise[: len(own)]}
        for batch in again:
            assert batch.masks is None and batch.weights is not None and set(batch.weights.tolist()) == {0.5}
            assert batch.texts is not None and len(batch.texts["states"]) == len(batch.names)


def test_what_is_preserved_is_a_function_of_the_step(tmp_path: Path) -> None:
    whole, late = (fed(tmp_path, first, preserve=1.0, preserve_every=2) for first in (0, 3))
    told = [
        [(b.names, b.captions, b.preserved, b.generators[0].initial_seed()) for b in batches]
        for _, batches in whole[3:]
    ]
    assert told == [
        [(b.names, b.captions, b.preserved, b.generators[0].initial_seed()) for b in batches] for _, batches in late
    ]


# --- a run ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("given")
    base = tiny.write_base(folder / "base.safetensors")
    data = tiny.write_pictures(folder / "data")
    told = (data / "metadata.csv").read_text("utf-8").replace('"picture', '"zibbo, picture')
    (data / "metadata.csv").write_text(told, encoding="utf-8")
    return {"base_model": base, "train_data_dir": data}


def moved(parts: Parts, caption: str) -> float:
    """How far a LoRA in training moves the answers to a caption, in the mean square."""
    family: Any = parts.model.family
    g = torch.Generator().manual_seed(1)
    x, t = torch.randn(8, 4, 8, 8, generator=g), torch.linspace(50, 950, 8).long()
    states = family.encode_text([caption])["states"].expand(8, -1, -1)
    with torch.no_grad():
        change = family.predict(x, t, states)
        with parts.model.off():
            change = change - family.predict(x, t, states)
    return change.square().mean().item()


def test_a_run_holds_the_base_where_nothing_calls_the_lora(
    given: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the first step the LoRA changes nothing yet, so there is nothing to hold."""
    keys = {**given, "trigger_word": "zibbo", "epochs": 8, "learning_rate": 0.02, "save_steps": 100}
    weights, changes = [], []
    for weight in ({}, {"preserve_weight": 5}):
        config = tiny.write_config(tmp_path, **keys, **weight, cache_dir=tmp_path / "cache")
        weights.append(
            {name: p.clone() for name, p in stopped(config, 1, f"output_dir={tmp_path / 'a'}").model.weights().items()}
        )
        parts = stopped(config, 20, f"output_dir={tmp_path / 'b'}")
        changes.append(moved(parts, "picture 1, a gradient, round 1"))
        for folder in "ab":
            shutil.rmtree(tmp_path / folder)
    assert all(torch.equal(one, weights[1][name]) for name, one in weights[0].items())
    assert 0 < changes[1] < changes[0] / 2
    told = capsys.readouterr().out
    assert "under 5 captions without what calls the LoRA, weight 5; a step takes about 2.2 times as long" in told
    assert "the first: picture 0, a gradient, round 0" in told


def test_of_captions_alone_that_are_encoded_first_those_without_the_word_are_too(
    given: dict[str, Path], tmp_path: Path
) -> None:
    written = tiny.write_config(tmp_path, **given, preserve_weight=1, preserve_word="a thing")
    config = load_config(written)
    captions = {one.caption for one in _asked(config, Split(preflight(config, resume=None).scanned, [], None))}
    assert {"zibbo, picture 0, a gradient, round 0", "a thing, picture 0, a gradient, round 0", ""} <= captions


def test_the_word_is_what_most_captions_begin_with_where_none_is_named(given: dict[str, Path], tmp_path: Path) -> None:
    config = load_config(tiny.write_config(tmp_path, **given, preserve_weight=1))
    samples = preflight(config, resume=None).scanned
    pictures = plan_pictures(samples, (64, 64), (64, 32), flip=False, random_crop=False, seed=1)
    odd = replace(pictures[0], sample=replace(pictures[0].sample, caption="a  house,, red"))  # untidy, and without it
    assert [p.preserved for p in preserving(config, [odd, *pictures[1:]])] == [
        None,
        *(f"picture {i}, a gradient, round {i}" for i in range(1, 5)),
    ]


def test_another_word_is_another_run(given: dict[str, Path], tmp_path: Path) -> None:
    config = tiny.write_config(tmp_path, **given, preserve_weight=1, trigger_word="zibbo")
    stopped(config, 3)
    again = tiny.write_config(tmp_path, **given, preserve_weight=1, trigger_word="gradient")
    assert "cannot resume exactly, because something changed: called by: zibbo -> gradient" in faults(
        lambda: stopped(again, 5, resume=True)
    )


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ({"preserve_word": "a cat"}, "preserve_word: has no effect without preserve_weight; add preserve_weight: 1"),
        ({"preserve_every": 2}, "preserve_every: has no effect without preserve_weight"),
        ({"preserve_weight": 1, "caption_dropout": 0.1}, "caption_dropout: trains pictures without the trigger word"),
        ({"preserve_weight": 1, "tag_dropout": 0.1}, "tag_dropout: trains pictures without the trigger word"),
    ],
)
def test_keys_that_go_against_it(keys: dict[str, object], fault: str, given: dict[str, Path], tmp_path: Path) -> None:
    path = tiny.write_config(tmp_path, **given, **keys)
    assert fault in faults(lambda: load_config(path)).replace("`", "")


def test_captions_in_which_nothing_calls_the_lora_are_told(given: dict[str, Path], tmp_path: Path) -> None:
    data = tiny.write_pictures(tmp_path / "data")
    (data / "metadata.csv").write_text(
        "filename,prompt\n" + "".join(f"{i}.png,{word} {i}\n" for i, word in enumerate("abcde")), encoding="utf-8"
    )
    config = load_config(tiny.write_config(tmp_path, **given | {"train_data_dir": data}, preserve_weight=1))
    told = faults(lambda: preflight(config, resume=None))
    assert told.startswith("preserve_weight: the captions have no word in common") and "trigger_word" in told


def test_what_a_step_costs(given: dict[str, Path], tmp_path: Path) -> None:
    config = load_config(tiny.write_config(tmp_path, **given))
    assert step_cost(config) == STEP_COST
    each, fourth = (config.model_copy(update={"preserve_weight": 1.0, "preserve_every": n}) for n in (1, 4))
    assert step_cost(each) == pytest.approx(2 * STEP_COST + ASKED)
    assert step_cost(fourth) == pytest.approx(STEP_COST + (STEP_COST + ASKED) / 4)


def test_several_trigger_words(given: dict[str, Path], tmp_path: Path) -> None:
    """Each of them must stand in some captions; each has something of its own in its place, or all the same."""
    data = tiny.write_pictures(tmp_path / "data")
    rows = [f'{i}.png,"{word}, a thing, {i}"' for i, word in enumerate(("ann", "bo", "ann", "bo", "nobody"))]
    (data / "metadata.csv").write_text("\n".join(["filename,prompt", *rows]) + "\n", encoding="utf-8")
    keys = {**given, "train_data_dir": data, "preserve_weight": 1, "sample_prompts": ["bo on a chair"]}
    config = load_config(tiny.write_config(tmp_path, **keys, trigger_word="[ann, bo]", preserve_word="[a girl, a boy]"))
    samples, told = preflight(config, resume=None).scanned, list[Event]()
    pictures = plan_pictures(samples, (64, 64), (64, 32), flip=False, random_crop=False, seed=1)
    own = [p.preserved for p in preserving(config, pictures)]
    assert own == ["a girl, a thing, 0", "a boy, a thing, 1", "a girl, a thing, 2", "a boy, a thing, 3", None]
    tell_trigger(config, samples, told.append)
    assert [event.text for event in told if isinstance(event, Note)] == [
        "note: the trigger word ann, bo stands in 4 of 5 captions; not in 4.png"
    ]
    idle = load_config(tiny.write_config(tmp_path, **keys, trigger_word="[ann, cid, dee]"))
    found = faults(lambda: preflight(idle, resume=None)).splitlines()
    assert [line.partition(";")[0] for line in found] == [
        "trigger_word: no caption holds cid",
        "trigger_word: no caption holds dee",
    ]
    wrong = tiny.write_config(tmp_path, **keys, trigger_word="[ann, bo]", preserve_word="[a girl]")
    assert "preserve_word: has 1 text for 2 trigger words; write one, or one for each" in faults(
        lambda: load_config(wrong)
    )


def test_what_would_hold_nothing_is_told(given: dict[str, Path], tmp_path: Path) -> None:
    same = load_config(tiny.write_config(tmp_path, **given, preserve_weight=1, preserve_word="a Zibbo"))
    assert faults(lambda: preflight(same, resume=None)).startswith("preserve_word: zibbo calls the LoRA")
    late = load_config(tiny.write_config(tmp_path, **given, preserve_weight=1, preserve_every=6))
    assert "preserve_every 6 of 6 steps: in the first alone, when nothing is learnt yet" in odd_schedule(late, 6)
    assert not odd_schedule(late, 7)
