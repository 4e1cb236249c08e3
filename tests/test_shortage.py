"""Memory that runs out: one line with what to lower, and what was learnt until then is saved, exactly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import lora_scripts
import tiny
from lora_scripts.cli import main
from lora_scripts.config.schema import TrainConfig
from lora_scripts.errors import UserError
from lora_scripts.families.base import Sampling
from lora_scripts.families.sd1.model import StableDiffusion1
from lora_scripts.generate.command import draw
from lora_scripts.run import story
from lora_scripts.run.after import finish
from lora_scripts.run.shortage import lower, smaller_words
from lora_scripts.train import optim
from lora_scripts.train import state as states
from lora_scripts.train.probe import Probe
from lora_scripts.train.state import RunState
from runs import only_the_file, stopped

END = 6


def greedy(real: Callable[..., Any], calls: int, error: str = "") -> Callable[..., Any]:
    """What was asked for until the nth call, which asks for more memory than there is in the world."""
    count = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == calls:
            if error:
                raise RuntimeError(error)
            torch.empty(1 << 60, dtype=torch.uint8)
        return real(*args, **kwargs)

    return call


@pytest.fixture(scope="module")
def config(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    keys = {"targets": "['*.mid_block.*attn2*']", "save_steps": 2, "ema_decay": 0.9, "val_every": 3}
    keys |= {"val_split": "null"}
    return tiny.write_config(tmp_path_factory.mktemp("shortage"), base_model=base, train_data_dir=data, **keys)


@pytest.fixture(scope="module")
def unbroken(config: Path) -> Path:
    out = config.parent / "unbroken" / "out"
    with mock.patch.object(story, "finish", only_the_file):
        assert main(["train", "--config", str(config), f"output_dir={out}"]) == 0
    return out


def result(out: Path) -> tuple[bytes, dict[str, Any], dict[str, torch.Tensor]]:
    at = out / "state" / f"step-{END:08d}"
    return (
        (out / "out.safetensors").read_bytes(),
        json.loads((at / "run.json").read_text("utf-8")),
        load_file(at / "optimizer.safetensors"),
    )


PLACES = {
    # what fails, at which call -> the step that is saved, the step it is told after
    "the fourth step's loss": (StableDiffusion1, "loss", 4, 3, 3),
    "the second measurement": (Probe, "losses", 2, 3, 3),
    "the second save": (states, "pack", 2, 4, 4),
}


@pytest.mark.parametrize("name", PLACES)
def test_what_was_learnt_is_saved_and_going_on_is_exact(
    name: str,
    config: Path,
    unbroken: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    short: None,
) -> None:
    owner, function, calls, saved, after = PLACES[name]
    argv = ["train", "--config", str(config), f"output_dir={tmp_path / 'out'}"]
    with monkeypatch.context() as patch:
        patch.setattr(owner, function, greedy(getattr(owner, function), calls))
        assert main(argv) == 2
    told = capsys.readouterr().err
    assert told == (
        f"error: memory ran out after step {after}; step {saved} is saved; "
        "go on with --resume gradient_checkpointing=true: the same LoRA with less memory, more slowly\n"
    )
    assert main([*argv, "--resume", "gradient_checkpointing=true"]) == 0
    mine, theirs = result(tmp_path / "out"), result(unbroken)
    assert mine[:2] == theirs[:2]
    assert mine[2].keys() == theirs[2].keys() and all(torch.equal(mine[2][k], theirs[2][k]) for k in mine[2])


def small(real: Callable[..., Any], most: Callable[[], int]) -> Callable[..., Any]:
    """A loss that has memory for `most()` pictures at a time."""

    def call(self: Any, batch: Any, objective: Any) -> Any:
        if len(batch.names) > most():
            torch.empty(1 << 60, dtype=torch.uint8)
        return real(self, batch, objective)

    return call


@pytest.mark.parametrize("accumulation", [2])
def test_with_adapt_the_step_is_taken_again_in_halves_and_going_on_is_exact(
    accumulation: int,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Memory for four pictures, from step 3 on for one: 4 -> 2 -> 1."""
    keys = {"targets": "['*.up_blocks.3*to_out*']", "batch_size": 4, "epochs": 4, "ema_decay": 0.9, "flip": "true"}
    keys |= {"gradient_accumulation": accumulation, "save_steps": 100, "caption_dropout": 0.3}
    keys |= {"seed": 1}  # of others a picture may meet a norm over next to nothing, which makes much of last bits
    tiny.write_pictures(tmp_path / "data", 8)
    config = tiny.write_config(tmp_path, base_model=base, **keys)
    step, end = 2 // accumulation + 1, 6 // accumulation
    stopped(config, step, f"output_dir={tmp_path / 'roomy'}")
    state = RunState(0, 0, {}, {}, {})
    monkeypatch.setattr(
        StableDiffusion1, "loss", small(StableDiffusion1.loss, lambda: 4 if state.step < 2 // accumulation else 1)
    )
    new_state = story.new_state

    def watched(*args: Any, **more: Any) -> RunState:
        nonlocal state
        state = new_state(*args, **more)
        return state

    monkeypatch.setattr(story, "new_state", watched)
    with pytest.raises(UserError, match=r"ran out after step \d; step \d is saved; go on with --resume gradient"):
        stopped(config, end, f"output_dir={tmp_path / 'stops'}")
    capsys.readouterr()
    stopped(config, end, "on_oom=adapt", f"output_dir={tmp_path / 'whole'}")
    told = " ".join(capsys.readouterr().out.split())
    for most in (2, 1):
        assert f"memory ran out in step {step}: from here on batches come in pieces of at most {most}, acc" in told
    # In another process it would be the same: what is resumed knows only its state, and is not told to adapt again.
    stopped(config, step, "on_oom=adapt", f"output_dir={tmp_path / 'broken'}")
    # Adam's step makes much of last bits; the mean of the gradients does not.
    roomy, tight = (optimizer_of(tmp_path / name, step) for name in ("roomy", "broken"))
    means = {name: value for name, value in roomy.items() if name.endswith("exp_avg")}
    most = max(float(value.abs().max()) for value in means.values())
    assert len(means) == 12 and any(not torch.equal(tight[name], value) for name, value in means.items())
    for name, value in means.items():
        torch.testing.assert_close(tight[name], value, rtol=0, atol=1e-4 * most)
    again = stopped(config, end, f"output_dir={tmp_path / 'broken'}", resume=True)
    assert again.state.smaller == [[step - 1, 2], [step - 1, 1]]
    assert ("memory ran out", smaller_words(again.state)) in story.rows_of(again)
    whole, broken = (optimizer_of(tmp_path / name, end) for name in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    assert (tmp_path / "whole" / last(end)).read_bytes() == (tmp_path / "broken" / last(end)).read_bytes()


def last(step: int) -> str:
    return f"state/step-{step:08d}/lora.safetensors"


def optimizer_of(out: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file((out / last(step)).with_name("optimizer.safetensors"))


def test_a_step_that_the_optimizer_left_half_done_is_not_saved(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights of step 4 and moments of step 3 would be a state of no step: the one before it stays the last."""
    monkeypatch.setattr(optim.AdamW, "step", greedy(optim.AdamW.step, 4, "CUDA error: out of memory"))
    assert main(["train", "--config", str(config), f"output_dir={tmp_path / 'out'}"]) == 2
    assert "memory ran out after step 3; step 2 is saved; go on with --resume" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "out" / "state").iterdir()] == ["step-00000002"]


def test_before_the_first_step_and_in_what_comes_around_the_steps(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["train", "--config", str(config), f"output_dir={tmp_path / 'out'}"]
    cases = [
        (story, "build_model", "memory ran out while loading the base; close what else needs memory, or write base_"),
        (StableDiffusion1, "encode_image", "memory ran out while encoding pictures; write vae_tiling: true, or a smal"),
        (StableDiffusion1, "loss", "memory ran out after step 0; write gradient_checkpointing: true or batch_size: 1"),
    ]
    for owner, function, words in cases:
        with monkeypatch.context() as patch:
            patch.setattr(owner, function, greedy(getattr(owner, function), 1))
            assert main(argv) == 2
        told = capsys.readouterr().err
        assert told.startswith(f"error: {words}") and told.count("\n") == 1
        assert not (tmp_path / "out" / "state").exists()
    with monkeypatch.context() as patch:  # the report alone: the LoRA is there
        patch.setattr(story, "report_pictures", greedy(finish.report_pictures, 1))
        assert main(argv) == 2
    told = capsys.readouterr().err
    lora = tmp_path / "out" / "out.safetensors"
    assert f"memory ran out while drawing the report; go on with --resume and a smaller sample_size; {lora}" in told
    assert lora.is_file() and not (tmp_path / "out" / "report.html").exists()
    assert main([*argv, "--resume", "sample_size=64"]) == 0
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_preview_that_does_not_fit_is_told_and_the_run_goes_on(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], short: None
) -> None:
    monkeypatch.setattr(StableDiffusion1, "generate", greedy(StableDiffusion1.generate, 1))
    argv = ["train", "--config", str(config), f"output_dir={tmp_path / 'out'}", "sample_every=3"]
    assert main(argv) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "preview 1 of step 3 failed (not enough memory; a smaller sample_size needs less)" in told


def test_another_failure_keeps_its_traceback(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = greedy(StableDiffusion1.loss, 2, "CUDA error: an illegal memory access was encountered")
    monkeypatch.setattr(StableDiffusion1, "loss", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        main(["train", "--config", str(config), f"output_dir={tmp_path / 'out'}"])


def test_pictures_are_drawn_fewer_at_once_until_they_fit() -> None:
    def drawing(fails: int) -> Any:
        return SimpleNamespace(draw=greedy(lambda prompt, seeds, sampling: [prompt] * len(seeds), fails))

    assert [seed for seed, _ in draw(drawing(1), "a", range(5), Sampling(), 5)] == list(range(5))
    with pytest.raises(UserError, match="the memory is too small for one picture; choose a smaller --size"):
        list(draw(drawing(1), "a", [1], Sampling()))
    with pytest.raises(RuntimeError, match="illegal"):
        list(draw(SimpleNamespace(draw=greedy(print, 1, "illegal")), "a", [1], Sampling()))  # type: ignore[arg-type]


def test_wherever_memory_runs_out_it_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = Path(lora_scripts.__file__).parent / "demo" / "assets" / "words"
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", greedy(print, 1))
    assert main(["chat", "--base", str(words), "--message", "x", "--device", "cpu"]) == 2
    assert capsys.readouterr().err == "error: memory ran out; close what else needs memory, or ask for less at once\n"


def test_what_to_lower() -> None:
    def config(**keys: object) -> TrainConfig:
        required = {"train_data_dir": "a", "base_model": "b.safetensors", "output_dir": "c"}
        return TrainConfig.model_validate({**required, **keys})

    whole = config(batch_size=6)
    tight: dict[str, object] = {"gradient_checkpointing": True}
    assert "batch_size: 3 with gradient_accumulation: 2, which learns" in lower(whole, card=True, begun=False)
    gathered = lower(config(batch_size=6, gradient_accumulation=600, **tight), card=True, begun=False)
    assert "gradient_accumulation" not in gathered and "base_precision: int8" in gathered  # 1200 would be refused
    assert "gradient_checkpointing=true" in lower(whole, card=True, begun=True)
    assert "--resume on_oom=adapt: half the batch" in lower(config(**tight), card=True, begun=True)
    tight["on_oom"] = "adapt"
    single: dict[str, object] = {"gradient_checkpointing": True, "batch_size": 1}
    assert "--resume offload_blocks=8" in lower(config(**tight), card=True, begun=True)
    assert "output_dir" in lower(config(**tight), card=False, begun=True)
    assert "base_precision: int8" in lower(config(**single), card=False, begun=False)
    rounded = config(**single, base_precision="int8")
    assert "resolution" in lower(rounded, card=False, begun=False)
    # Of a language model no block can be in RAM, and it has no resolution.
    assert "; lora-scripts plan" in lower(config(**tight), card=True, begun=True, texts=True)
    assert "offload" not in lower(config(**tight), card=True, begun=True, texts=True)
    assert "write a smaller max_length and start" in lower(rounded, card=True, begun=True, texts=True)
