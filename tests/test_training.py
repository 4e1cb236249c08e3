"""The loop against hand-made batches; and whole runs: what they learn, save, export, prove and report."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

import tiny
from conftest import Finished
from lora_scripts.adapters.algebra import factors
from lora_scripts.adapters.inject import inject, remove
from lora_scripts.adapters.layer import LoraLayer
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.cli import main
from lora_scripts.compute import device
from lora_scripts.errors import UserError
from lora_scripts.families.base import Batch
from lora_scripts.families.clip.tokenizer import clip_tokenizer
from lora_scripts.families.sd1.names import sd1, sd1_table
from lora_scripts.formats import io
from lora_scripts.loras import kohya
from lora_scripts.loras.file import read
from lora_scripts.loras.on_model import apply
from lora_scripts.losses.diffusion import Objective
from lora_scripts.report.chinese import missing
from lora_scripts.run import story
from lora_scripts.run.configs import load_config
from lora_scripts.train.loop import Hooks, LoopSettings, StepFacts, run_loop
from lora_scripts.train.optim import Rates
from lora_scripts.train.passes import there_and_back
from lora_scripts.train.state import RunState
from runs import stopped
from toy import Toy

Q, K = (f"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_{x}" for x in "qk")

MID, TEXT = "unet.mid_block.attentions.0.transformer_blocks.0", "text_encoder.encoder.layers.0"

# --- the loop, with a model of one layer ---------------------------------------------------------------------------


def batch_of(*seeds: int, mean: float = 0.0, names: list[str] | None = None) -> Batch:
    """One 8 x 8 latent for each seed, which decides it and its noise."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    latents = torch.stack([torch.randn(3, 8, 8, generator=g) for g in generators]) + mean
    captions, names = [""] * len(seeds), names or [f"{seed}.png" for seed in seeds]
    texts = {"states": torch.zeros(len(seeds), 1, 1)}
    return Batch({"mean": latents, "std": torch.full_like(latents, 0.1)}, captions, texts, names, generators)


class FixedFeed:
    """These batches, step by step."""

    def __init__(self, steps: list[list[Batch]]) -> None:
        self.made = steps

    def steps(self, first: int, total: int) -> Iterator[tuple[int, list[Batch]]]:
        for batches in self.made[first:total]:
            copies = [[g.clone_state() for g in b.generators] for b in batches]
            yield 0, [dataclasses.replace(b, generators=g) for b, g in zip(batches, copies, strict=True)]


@dataclasses.dataclass
class Looped:
    """What a loop did."""

    toy: Toy
    state: RunState
    done: bool = False
    facts: list[StepFacts] = dataclasses.field(default_factory=list)
    events: list[str] = dataclasses.field(default_factory=list)

    @property
    def weight(self) -> Tensor:
        return self.toy.net.weight.detach()


def loop(steps: list[list[Batch]], toy: Toy | None = None, stop_at: int = -1, scale: float = 0, **keys: Any) -> Looped:
    """Plain gradient descent over the steps, at a constant 0.1 unless told otherwise; `scale` as for fp16."""
    toy = toy or Toy()
    out = Looped(toy, RunState(0, len(steps), {}, {}, {}))
    defaults = {"rates": Rates("constant"), "max_grad_norm": 0.0, "seed": 1}
    settings = LoopSettings(**{"total": len(steps), **defaults, "save_every": 100, "preview_every": 0, **keys})
    optimizer = torch.optim.SGD([{"params": list(toy.net.parameters()), "lr": 0.1, "peak": 0.1}])

    def note(event: str) -> None:
        out.events.append(f"{event} {out.state.step}")

    hooks = Hooks(out.facts.append, lambda: note("save"), lambda: note("preview"), lambda: out.state.step == stop_at)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1, enabled=bool(scale))
    out.done = run_loop(
        there_and_back(loss_of(toy), scaler), FixedFeed(steps).steps, optimizer, scaler, settings, out.state, hooks
    )
    return out


def loss_of(toy: Toy) -> Callable[[Batch], tuple[Tensor, int]]:
    return lambda batch: toy.loss(batch, Objective())


def by_hand(*seeds: int) -> tuple[float, Tensor, Tensor]:
    """Mean loss over the items, and its gradient for weight and bias at the start."""
    toy = Toy()
    losses = [toy.loss(batch_of(seed), Objective())[0] for seed in seeds]
    loss = torch.stack(losses).mean()
    loss.backward()
    return loss.item(), toy.net.weight.grad, toy.net.bias.grad  # type: ignore[return-value]


def test_a_step_goes_down_the_mean_gradient_however_the_batch_is_cut() -> None:
    loss, weight, bias = by_hand(1, 2, 3, 4)
    norm = float((weight.square().sum() + bias.square().sum()).sqrt())
    whole = [[batch_of(1, 2, 3, 4)]], [[batch_of(1, 2), batch_of(3, 4)]]
    uneven = [[batch_of(1, 2, 3), batch_of(4)]], [[batch_of(n) for n in (1, 2, 3, 4)]]
    for steps in (*whole, *uneven):
        got = loop(steps)
        torch.testing.assert_close(got.weight, Toy().net.weight - 0.1 * weight, rtol=1e-5, atol=1e-6)
        (facts,) = got.facts
        assert (facts.loss, facts.grad_norm) == pytest.approx((loss, norm), rel=1e-5)
        assert (facts.step, facts.images, facts.share) == (1, 4, 1.0)
        assert got.state.losses == [facts.loss] and got.done


def test_dropout_is_drawn_anew_in_each_step_and_depends_on_the_seed() -> None:
    """What torch's own generator gives within the loss: each step and each seed its own, and the same when resumed."""

    def drawn(seed: int, first: int = 0) -> list[float]:
        toy, seen = Toy(), list[float]()
        state = RunState(first, 4, {}, {}, {})

        def watched(batch: Batch) -> tuple[Tensor, int]:
            seen.append(torch.rand(()).item())
            return toy.loss(batch, Objective())

        settings = LoopSettings(4, Rates("constant"), 0.0, seed, 100, 0)
        optimizer = torch.optim.SGD([{"params": list(toy.net.parameters()), "lr": 0.1, "peak": 0.1}])
        hooks = Hooks(lambda facts: None, lambda: None, lambda: None, lambda: False)
        feed = FixedFeed([[batch_of(1)]] * 4)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        run_loop(there_and_back(watched, scaler), feed.steps, optimizer, scaler, settings, state, hooks)
        return seen

    ours, others = drawn(1), drawn(2)
    assert len({*ours, *others}) == 8
    assert drawn(1, first=2) == ours[2:] and drawn(1) == ours


def test_long_gradients_are_shortened_to_the_limit() -> None:
    _, weight, bias = by_hand(1, 2)
    norm = float((weight.square().sum() + bias.square().sum()).sqrt())
    clipped = loop([[batch_of(1, 2)]], max_grad_norm=norm / 4)
    torch.testing.assert_close(clipped.weight, Toy().net.weight - 0.1 * weight / 4, rtol=1e-4, atol=1e-6)
    assert clipped.facts[0].grad_norm == pytest.approx(norm, rel=1e-5)  # as it was
    for limit in (norm * 4, 0.0):
        free = loop([[batch_of(1, 2)]], max_grad_norm=limit)
        torch.testing.assert_close(free.weight, Toy().net.weight - 0.1 * weight, rtol=1e-5, atol=1e-6)


def test_the_rate_follows_the_schedule() -> None:
    steps = [[batch_of(n)] for n in range(6)]
    got = loop(steps, rates=Rates("linear", 2))
    assert [f.share for f in got.facts] == pytest.approx([0.5, 1, 1, 0.75, 0.5, 0.25])
    zero = loop(steps[:1], rates=Rates("constant", 10**9))
    assert torch.allclose(zero.weight, Toy().net.weight, atol=1e-8)


def test_when_it_saves_and_shows() -> None:
    steps = [[batch_of(n)] for n in range(5)]
    got = loop(steps, save_every=2, preview_every=2)
    assert got.events == ["save 2", "preview 2", "save 4", "preview 4", "save 5"] and got.done
    assert loop(steps, save_every=5, preview_every=5).events == ["save 5"]
    early = loop(steps, stop_at=3)
    assert early.events == ["save 3"] and not early.done and early.state.step == 3
    late = loop(steps, stop_at=5)  # asked to stop when there is nothing left to do
    assert late.events == ["save 5"] and late.done


def test_a_loss_that_is_no_number_stops_before_the_weights() -> None:
    good, bad = [[batch_of(1)], [batch_of(2)]], batch_of(3, 4, mean=float("nan"), names=["dark.png", "x/light.png"])
    toy = Toy()
    with pytest.raises(
        UserError, match=r"^step 3: the loss or its gradient is not a finite number, at 9.png, dark.png"
    ):
        loop([*good, [batch_of(9), bad]], toy)
    assert torch.equal(toy.net.weight, loop(good).weight)
    with pytest.raises(UserError, match=r"dark.png, x/light.png; look at"):
        loop([[bad]])


def test_scaled_gradients_change_nothing_but_an_overflow_is_left_out() -> None:
    steps = [[batch_of(n, n + 1, n + 2, n + 3)] for n in (1, 2, 3)]
    scaled, plain = loop(steps, scale=2.0**10, max_grad_norm=0.5), loop(steps, max_grad_norm=0.5)
    torch.testing.assert_close(scaled.weight, plain.weight, rtol=1e-5, atol=1e-6)
    assert scaled.state.scaler["scale"] == 2.0**10 and not plain.state.scaler
    over = loop(steps, scale=3e38)  # the first step overflows, and the scale is halved until one does not
    assert over.state.scaler["scale"] < 3e38 and torch.isfinite(over.weight).all()
    assert torch.equal(loop(steps[:1], scale=3e38).weight, Toy().net.weight)
    with pytest.raises(UserError, match=r"at dark\.png"):  # a scale mends no loss that is no number
        loop([[batch_of(3, mean=float("nan"), names=["dark.png"])]], scale=2.0)


@pytest.mark.parametrize("kind", [torch.optim.SGD, partial(torch.optim.AdamW, fused=True)], ids=["plain", "fused"])
def test_a_gradient_that_is_no_number_stops_too_and_what_was_learnt_is_saved(kind: Any) -> None:
    """A fused update is begun before the CPU has seen the gradient, and must leave weights and moments alone."""

    class Sharp(Toy):
        """The root of 0 has no gradient; its value is a fine 0."""

        def loss(self, batch: Batch, objective: Objective) -> tuple[Tensor, int]:
            loss, count = super().loss(batch, objective)
            return loss + ((self.net.weight * 0).sum().abs().sqrt() if "sharp.png" in batch.names else 0), count

    toy, out = Sharp(), []
    settings = LoopSettings(2, Rates("constant"), 1.0, 1, 100, 0)
    optimizer = kind([{"params": list(toy.net.parameters()), "lr": 0.1, "peak": 0.1}])
    state, scaler = RunState(0, 2, {}, {}, {}), torch.amp.GradScaler("cpu", enabled=False)
    hooks = Hooks(lambda f: None, lambda: out.append((state.step, toy.net.weight.clone())), lambda: None, lambda: False)
    feed = FixedFeed([[batch_of(1)], [batch_of(2, names=["sharp.png"])]])
    with pytest.raises(UserError, match=r"at sharp.png; what was learnt before it is saved"):
        run_loop(there_and_back(loss_of(toy), scaler), feed.steps, optimizer, scaler, settings, state, hooks)
    ((step, saved),) = out
    assert step == 1 and torch.equal(saved, toy.net.weight) and torch.isfinite(saved).all()
    for moments in optimizer.state.values():
        assert all(torch.isfinite(value).all() for value in moments.values() if isinstance(value, Tensor))
        assert moments.get("step", torch.tensor(1.0)).item() == 1


def test_auto_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for has, wanted in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(device, "cpu_has_bf16", lambda has=has: has)
        assert device.choose_precision("auto", cpu) == wanted
    assert device.choose_precision("bf16", cpu) == "bf16"
    with pytest.raises(UserError, match="fp16 is for graphics cards"):
        device.choose_precision("fp16", cpu)


# --- one run, as a person sees it ------------------------------------------------------------------------------------


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as handle:
        return handle.metadata()


def losses_of(folder: Path) -> list[float]:
    (state,) = (folder / "state").iterdir()
    return json.loads((state / "run.json").read_text())["losses"]


def test_it_says_what_will_happen_and_proves_what_it_made(finished: Finished) -> None:
    before, _, after = " ".join(finished.told.split()).partition("step 1/6")
    assert f"to look closer, with pictures: lora-scripts check --config {finished.config}" in before
    assert "5 images x 1 repeats / batch 2 = 3 batches, x 2 epochs = 6 steps" in before
    assert "192 layers, rank 2, alpha 1" in before and "64x64: 5" in before and "fp32" in before
    consumers = "diffusers, PEFT, A1111, ComfyUI, Forge, InvokeAI, SD.Next, additional-networks, kohya"
    assert f"verified: 192 of 192 modules in {consumers}; ΔW read to " in after
    assert "<lora:mylora:1>" in after and str(finished.lora) in after


def test_each_sentence_of_its_report_is_there_in_chinese(finished: Finished) -> None:
    page = (finished.folder / "report.html").read_text("utf-8")
    left = [text for text in missing(page) if " " in text]
    # What is left is a file and a size.
    assert [text for text in left if ".safetensors" not in text and not text.endswith((" kB", " MB"))] == []


def test_it_keeps_the_last_files_and_one_state(finished: Finished) -> None:
    files = sorted(p.name for p in finished.folder.glob("*.safetensors"))
    assert files == ["mylora-step000004.safetensors", "mylora-step000005.safetensors", "mylora.safetensors"]
    assert [p.name for p in (finished.folder / "state").iterdir()] == ["step-00000006"]
    assert {p.name for p in finished.folder.rglob(".*")} <= {".lock"}  # no temporary file; the lock is free
    shown = sorted(p.name for p in (finished.folder / "samples").iterdir())
    assert shown == [f"step00000{step}-{n}.png" for step in (4, 6) for n in (1, 2)]


def test_the_file_is_kohyas(finished: Finished) -> None:
    tensors = load_file(finished.lora)
    assert len(tensors) == 3 * 192 and {t.dtype for t in tensors.values()} == {torch.float16}
    assert {float(t) for name, t in tensors.items() if name.endswith(".alpha")} == {1.0}
    assert {t.shape[0] for name, t in tensors.items() if name.endswith("lora_down.weight")} == {2}
    still = {name.partition(".")[0] for name, t in tensors.items() if not t.any()}
    assert still <= {Q, K}  # at 64 pixels the middle block attends to one pixel: its queries and keys have no effect
    told = metadata_of(finished.lora)
    wanted = {"ss_network_dim": "2", "ss_network_alpha": "1.0", "ss_steps": "6", "ss_output_name": "mylora"}
    assert {k: told[k] for k in wanted} == wanted and told["modelspec.architecture"] == "stable-diffusion-v1/lora"


def test_no_caption_and_no_path_goes_into_the_file(finished: Finished, data: Path) -> None:
    raw = finished.lora.read_bytes()
    header = raw[8 : 8 + int.from_bytes(raw[:8], "little")].decode()
    assert "gradient, round" not in header and "ss_tag_frequency" not in header and "ss_dataset_dirs" not in header
    assert not any(part in header for part in (str(data), str(finished.folder), data.parent.name, "0.png"))


def test_the_table_names_the_schedule_that_is_taken(base: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("schedulefree")
    keys = {"optimizer": "schedule_free", "targets": tiny.SOME}
    parts = stopped(tiny.write_config(tmp_path, base_model=base, train_data_dir=data, **keys), 1)
    assert dict(story.rows_of(parts))["learning rate"] == "0.01, constant"


def test_the_resolved_config_reads_back_equal(finished: Finished) -> None:
    assert load_config(finished.folder / "config.yaml") == load_config(finished.config)


def test_tensorboard_has_the_curves_and_the_pictures(finished: Finished) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(finished.folder / "logs"))
    board.Reload()
    curves = {tag: [e.value for e in board.Scalars(tag)] for tag in board.Tags()["scalars"]}
    more = {"grad_norm", "images_per_second", "memory_gib"}
    assert len(curves.pop("heldout/training_pictures")) == 4  # the base's, too
    assert set(curves) == {"loss/step", "loss/smoothed", "learning_rate/unet", *more}
    assert all(len(values) == 6 and min(values) > 0 for values in curves.values())
    losses = losses_of(finished.folder)
    assert curves["loss/step"] == pytest.approx(losses, rel=1e-6)
    weights = [0.98 ** (5 - i) for i in range(6)]  # the newest counts 1
    average = sum(w * v for w, v in zip(weights, losses, strict=True)) / sum(weights)
    assert curves["loss/smoothed"][-1] == pytest.approx(average, rel=1e-5)
    half = 0.5 * (1 + 0.5**0.5)  # warm-up of 2, then 4 steps of a cosine
    assert curves["learning_rate/unet"] == pytest.approx([0.005, 0.01, 0.01, 0.01 * half, 0.005, 0.01 * (1 - half)])
    assert [e.step for e in board.Scalars("loss/step")] == [1, 2, 3, 4, 5, 6]
    assert {tag: [e.step for e in board.Images(tag)] for tag in board.Tags()["images"]} == {
        "preview/1": [4, 6],
        "preview/2": [4, 6],
    }
    title = board.SummaryMetadata("preview/1").display_name
    assert title == "preview/1: picture 0, a gradient, round 0"


def test_the_report_is_there(finished: Finished) -> None:
    page = (finished.folder / "report.html").read_text(encoding="utf-8")
    assert "&lt;lora:mylora:" in page and "mylora.safetensors" in page and "models/Lora" in page
    assert "verified: 192 of 192 modules" in page and "picture 0, a gradient, round 0" in page
    assert "http://" not in page.replace("http://www.w3.org/", "") and "https://" not in page


def test_a_second_start_is_refused(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    before = finished.lora.stat().st_mtime_ns
    assert main(["train", "--config", str(finished.config)]) == 2
    told = capsys.readouterr().err
    start = (
        f"init_lora={finished.lora.as_posix()} and another output_dir go on from it with more epochs or other pictures"
    )
    assert told.startswith(
        f"error: {finished.folder}: this folder already has a finished run (6 steps); {start}; another"
    )
    assert told.count("\n") == 1 and finished.lora.stat().st_mtime_ns == before


# --- other runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def again(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a second run with what decides the result the same, and what does not decide it changed."""
    folder = tmp_path_factory.mktemp("again")
    other = [f"output_dir={folder / 'mylora'}", "save_steps=2", "keep_last=null", "sample_every=0"]
    assert main(["train", "--config", str(finished.config), *other]) == 0
    return folder / "mylora"


def test_the_same_seed_gives_the_same_bytes(finished: Finished, again: Path) -> None:
    assert (again / "mylora.safetensors").read_bytes() == finished.lora.read_bytes()
    assert losses_of(again) == losses_of(finished.folder)
    early = (again / "mylora-step000004.safetensors").read_bytes()
    assert early == (finished.folder / "mylora-step000004.safetensors").read_bytes()
    assert sorted(p.name for p in again.glob("*-step*")) == [f"mylora-step00000{n}.safetensors" for n in (2, 4)]


def test_another_seed_gives_another_lora_and_never_another_base(
    finished: Finished, again: Path, family: Any, tmp_path: Path
) -> None:
    other = stopped(finished.config, 2, f"output_dir={tmp_path / 'mylora'}", "seed=43", "sample_every=0")
    one, two = (load_file(f / "mylora-step000002.safetensors") for f in (other.folder.path, again))
    differing = [name for name in one if not torch.equal(one[name], two[name])]
    assert len(differing) >= 2 * 192 - 2 and not any(name.endswith(".alpha") for name in differing)
    for part in ("unet", "text_encoder"):
        trained, fresh = other.model.family.roots[part].state_dict(), family.roots[part].state_dict()
        kept = {k.replace(".base.", "."): v for k, v in trained.items() if not k.endswith((".down", ".up"))}
        assert kept.keys() == fresh.keys() and all(torch.equal(kept[k], fresh[k]) for k in fresh)


def test_bf16_with_dropout_learns_much_the_same(finished: Finished, tmp_path: Path) -> None:
    keys = ["precision=bf16", "lora_dropout=0.1", "sample_every=1"]
    run = stopped(finished.config, 2, f"output_dir={tmp_path / 'mylora'}", *keys)
    assert run.state.losses == pytest.approx(losses_of(finished.folder)[:2], rel=0.03)
    assert run.state.losses != losses_of(finished.folder)[:2]
    layers = run.model.layers.values()
    assert {p.dtype for layer in layers for p in (layer.down, layer.up)} == {torch.float32}
    assert {layer.weight.dtype for layer in layers} == {torch.bfloat16}
    assert {(layer.dropout, layer.training) for layer in layers} == {(0.1, True)}  # after a preview, too
    assert load_file(run.folder.checkpoint(2)).keys() == load_file(finished.lora).keys()


def test_an_earlier_lora_is_where_it_goes_on(finished: Finished, tmp_path: Path) -> None:
    """With steps too small to see, the new file is the old one, in its rank and alpha."""
    keys = ["lora_alpha=null", "learning_rate=1e-12", "weight_decay=0", "sample_every=0"]
    run = stopped(finished.config, 1, f"output_dir={tmp_path / 'out'}", f"init_lora={finished.lora}", *keys)
    old, new = load_file(finished.lora), load_file(run.folder.checkpoint(1))
    assert old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old)
    assert metadata_of(run.folder.checkpoint(1))["ss_network_dim"] == "2"
    assert run.state.losses[0] != losses_of(finished.folder)[0]  # it was in effect in the first step


def test_what_an_earlier_lora_has_and_is_not_trained_stays_in_effect(
    finished: Finished, family: Any, tmp_path: Path
) -> None:
    """A layer of the text encoder, without dropout, below cached captions; of several ranks the file has one."""
    unet, text = f"{MID}.attn2.to_k", f"{TEXT}.self_attn.k_proj"
    g = torch.Generator().manual_seed(1)
    weights = {
        unet: LoraWeights(torch.randn(2, 16, generator=g), torch.randn(64, 2, generator=g), 1.0),
        text: LoraWeights(torch.randn(3, 16, generator=g), torch.randn(16, 3, generator=g), 3.0),
    }
    io.save_safetensors(tmp_path / "early.safetensors", kohya_as_is(weights))
    keys = [f"init_lora={tmp_path / 'early.safetensors'}", "targets=['*.mid_block.*attn2*']", "lora_dropout=0.5"]
    more = ["save_precision=fp32", "sample_every=0", f"output_dir={tmp_path / 'out'}"]
    run = stopped(finished.config, 1, *keys, *more)
    assert sorted(run.model.layers) == sorted(
        [*(f"{MID}.attn2.{x}" for x in ("to_q", "to_k", "to_v", "to_out.0")), text]
    )
    layers = apply(family, {text: weights[text]}, 1.0)
    try:
        for one in run.feed.encoded.asked:
            wanted = family.encode_text([one.caption])["states"]
            torch.testing.assert_close(run.feed.encoded.told([one])["states"], wanted, rtol=1e-4, atol=1e-5)
    finally:
        remove(family.roots, layers)
    new = read(run.folder.checkpoint(1)).weights
    assert {w.rank for w in new.values()} == {3} and len({w.alpha for w in new.values()}) == 1
    told = metadata_of(run.folder.checkpoint(1))
    assert (told["ss_network_dim"], float(told["ss_network_alpha"])) == ("3", new[text].alpha)
    old_change, new_change = (factors.of(w).dense() for w in (weights[text], new[text]))
    torch.testing.assert_close(old_change, new_change, rtol=1e-5, atol=1e-5)


def kohya_as_is(weights: dict[str, LoraWeights]) -> dict[str, Tensor]:
    """A file of several ranks, as other trainers write them."""
    tensors = {}
    for path, w in weights.items():
        tensors |= kohya.to_kohya({path: w}, sd1().kohya, dtype=torch.float32)
    return tensors


def refused(finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str], *keys: str) -> str:
    argv = ["train", "--config", str(finished.config), f"output_dir={tmp_path / 'out'}", *keys]
    assert main(argv) == 2
    return capsys.readouterr().err


def test_a_lora_that_changes_nothing_is_refused(
    finished: Finished, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = load_file(finished.lora)
    zero = {name: t * 0 if "lora_up" in name else t for name, t in tensors.items()}
    io.save_safetensors(tmp_path / "zero.safetensors", zero)
    told = refused(finished, tmp_path, capsys, f"init_lora={tmp_path / 'zero.safetensors'}")
    fault = "this LoRA changes no weight: all of it is zero; take another file"
    assert told == f"error: {tmp_path / 'zero.safetensors'}: {fault}\n"
    told = refused(finished, tmp_path, capsys, f"init_lora={base}")
    assert "this is a Stable Diffusion 1.x checkpoint, not a LoRA" in told
    wide = {
        n: torch.ones(2, 640, 1, 1) if n.endswith("mid_block_attentions_0_proj_in.lora_down.weight") else t
        for n, t in tensors.items()
    }
    io.save_safetensors(tmp_path / "wide.safetensors", wide)
    told = refused(finished, tmp_path, capsys, f"init_lora={tmp_path / 'wide.safetensors'}")
    assert "unet.mid_block.attentions.0.proj_in" in told and "this LoRA is for another base model" in told


def test_a_diverging_run_stops_and_names_the_pictures(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    huge = {name: t.float() * 1e25 if "lora_up" in name else t.float() for name, t in load_file(finished.lora).items()}
    io.save_safetensors(tmp_path / "huge.safetensors", huge)
    told = refused(finished, tmp_path, capsys, f"init_lora={tmp_path / 'huge.safetensors'}", "save_precision=fp32")
    assert told.startswith("error: step 1: the loss or its gradient is not a finite number, at ")
    assert ".png" in told and told.count("\n") == 1
    assert not list((tmp_path / "out").glob("*.safetensors")) and not (tmp_path / "out" / "state").exists()


@pytest.fixture(scope="module")
def everything(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with convolutions, the text encoder and a v target, float32 in the file, alpha 6 to rank 4."""
    folder = tmp_path_factory.mktemp("everything")
    keys = {
        **{"targets": "[attention, feed_forward, conv]", "train_text_encoder": "true", "text_encoder_lr": 0.002},
        **{"prediction": "v", "lora_rank": 4, "lora_alpha": 6, "epochs": 1, "save_steps": 1, "shuffle_tags": "true"},
        **{"metadata_captions": "true", "save_precision": "fp32", "min_snr_gamma": 5, "noise_offset": 0.1},
    }
    config = tiny.write_config(folder, base_model=base, train_data_dir=data, **keys)
    assert main(["train", "--config", str(config)]) == 0
    return folder / "out"


def test_text_encoder_and_convolutions_are_exported(everything: Path, family: Any) -> None:
    tensors = load_file(everything / "out.safetensors")
    names = {name.partition(".")[0] for name in tensors}
    wanted = {sd1_table(1)[path] for path in family.trainable()}
    assert names == wanted and sum(name.startswith("lora_te_text_model_encoder_layers_0_") for name in names) == 6
    assert tensors["lora_unet_down_blocks_0_downsamplers_0_conv.lora_down.weight"].shape == (4, 32, 3, 3)
    assert tensors["lora_unet_down_blocks_0_downsamplers_0_conv.lora_up.weight"].shape == (32, 4, 1, 1)
    # The first step of Adam is the learning rate in each number: the text encoder has its own.
    first = load_file(everything / "out-step000001.safetensors")
    for part, rate in (("lora_te_", 0.002), ("lora_unet_", 0.01)):
        sizes = [first[k].abs().max().item() for k in first if k.startswith(part) and "lora_up" in k]
        assert max(sizes) == pytest.approx(rate, rel=1e-3) and sum(size > rate / 2 for size in sizes) > len(sizes) / 2


def test_captions_go_into_the_file_when_asked_for(everything: Path) -> None:
    told = metadata_of(everything / "out.safetensors")
    tags = json.loads(told["ss_tag_frequency"])["data"]
    assert tags["picture 3"] == tags["round 3"] == 1 and tags["a gradient"] == sum(t.startswith("round") for t in tags)
    assert told["modelspec.prediction_type"] == "v" and told["ss_min_snr_gamma"] == "5.0"
    assert (told["ss_network_dim"], told["ss_network_alpha"]) == ("4", "6.0")
    assert json.loads(told["ss_network_args"]) == {"conv_dim": 4, "conv_alpha": 6.0}


@torch.no_grad()
def test_the_file_does_in_diffusers_what_was_trained(everything: Path, family: Any) -> None:
    """Through the pipeline's `load_lora_weights`, against the weights in the resume state; alpha is not the rank."""
    unet, vae, text = tiny.models()
    parts = {
        "tokenizer": clip_tokenizer(),
        "scheduler": DDIMScheduler(steps_offset=1, clip_sample=False),
        "safety_checker": None,
        "feature_extractor": None,
    }
    pipe = StableDiffusionPipeline(vae, text, unet=unet, requires_safety_checker=False, **parts)
    x, t = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([30, 800])
    states = torch.randn(2, 77, 16, generator=torch.Generator().manual_seed(2))
    ids = clip_tokenizer()(["a house"], padding="max_length", max_length=77, return_tensors="pt").input_ids
    plain, plain_text = unet(x, t, states).sample, text(ids)[0]
    pipe.load_lora_weights(str(everything), weight_name="out.safetensors")

    (state,) = (everything / "state").iterdir()
    trained = load_file(state / "lora.safetensors")
    layers = inject(family.roots, family.trainable(), lambda _, base: LoraLayer(base, 4, 6.0))
    try:
        for path, layer in layers.items():
            layer.down.copy_(trained[f"{path}.down"])
            layer.up.copy_(trained[f"{path}.up"])
        ours, ours_text = family.predict(x, t, states), family.encode_text(["a house"])["states"]
    finally:
        remove(family.roots, layers)
    theirs, theirs_text = pipe.unet(x, t, states).sample, pipe.text_encoder(ids)[0]
    assert (theirs - plain).abs().max() > 0.05 and (theirs_text - plain_text).abs().max() > 0.005
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(theirs_text, ours_text, rtol=1e-3, atol=1e-5)
