"""What the commands on LoRA files make of a language model's, against PEFT; and what has no part here, in one line."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import small_words
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.cli import main
from lora_scripts.families.causal_lm.model import open_model
from lora_scripts.loras import adapter_folder, file

Run = Callable[..., str]
IDS = torch.arange(24)[None]


@pytest.fixture(params=["qwen3", "gpt2"], scope="module")
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_words.write_model(tmp_path_factory.mktemp("base") / "model", request.param)


@pytest.fixture(scope="module")
def loras(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of ranks 2 and 3, the second on half of the layers, each with the chat template that it was trained with."""
    model, draw, folders = open_model(base, torch.device("cpu"), torch.float32), torch.Generator().manual_seed(0), []
    for rank, paths in ((2, model.usual), (3, model.usual[::2])):
        weights = {}
        for path in paths:
            out, width = model.trainable()[path].weight.shape
            down, up = torch.randn(rank, width, generator=draw), torch.randn(out, rank, generator=draw) / 10
            weights[path] = LoraWeights(down, up, 1.0)
        folder = tmp_path_factory.mktemp("lora") / f"rank{rank}"
        files = adapter_folder.files_of(
            weights, torch.float32, base=str(base), layers=model.trainable(), transposed=model.transposes
        )
        adapter_folder.write(folder, {**files, adapter_folder.TEMPLATE: small_words.CHATML.encode()})
        folders.append(folder)
    return folders


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: object, code: int = 0) -> str:
        assert main([str(word) for word in words]) == code
        told = capsys.readouterr()
        return told.err if code else told.out

    return call


def logits(base: Path, *adapters: tuple[Path, float]) -> Tensor:
    """By transformers and PEFT alone."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base).eval()
    total: dict[str, Tensor] = {}
    for path, weight in adapters:
        worn = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(path)).merge_and_unload()
        before = model.state_dict()
        for name, value in worn.state_dict().items():
            total[name] = total.get(name, torch.zeros(())) + weight * (value - before[name])
    with torch.no_grad():
        for name, change in total.items():
            model.state_dict()[name] += change
        out: Tensor = model(IDS).logits
    return out


def test_combined_it_is_the_sum(base: Path, loras: list[Path], tmp_path: Path, run: Run) -> None:
    both = tmp_path / "both"
    told = run("combine", f"{loras[0]}:1", f"{loras[1]}:0.5", "--output", both)
    assert "layers.0" in told or "h.0" in told
    assert "(rank 5" in told
    wanted = logits(base, (loras[0], 1.0), (loras[1], 0.5))
    assert torch.allclose(logits(base, (both, 1.0)), wanted, atol=1e-4)
    assert (both / adapter_folder.TEMPLATE).read_text() == small_words.CHATML
    assert adapter_folder.config_of(both)["base_model_name_or_path"] == str(base)


def test_extracted_from_what_was_merged_it_is_the_same(base: Path, loras: list[Path], tmp_path: Path, run: Run) -> None:
    merged, back = tmp_path / "merged", tmp_path / "back"
    run("merge", f"{loras[0]}:1", "--base", base, "--output", merged)
    told = run("extract", "--base", base, "--tuned", merged, "--output", back, "--rank", 2, "--precision", "fp32")
    assert "energy kept: 100.00 % in all" in told
    assert torch.allclose(logits(base, (back, 1.0)), logits(base, (loras[0], 1.0)), atol=1e-3)
    run("unmerge", f"{loras[0]}:1", "--model", merged, "--output", tmp_path / "again", "--compare", base)
    assert torch.allclose(logits(tmp_path / "again"), logits(base), atol=1e-4)


def test_resized_and_in_another_precision(base: Path, loras: list[Path], tmp_path: Path, run: Run) -> None:
    assert "rank 3 before, 1 now" in run("resize", loras[1], "--rank", 1, "--output", tmp_path / "small")
    assert {w.rank for w in file.read(tmp_path / "small").weights.values()} == {1}
    run("convert", loras[0], "--to", "peft", "--dtype", "bf16", "--output", tmp_path / "half")
    ours, theirs = logits(base, (tmp_path / "half", 1.0)), logits(base, (loras[0], 1.0))
    assert 0 < (ours - theirs).abs().max() < 0.05 * (theirs - logits(base)).abs().max()


def test_peft_does_what_the_folder_means(base: Path, loras: list[Path], tmp_path: Path, run: Run) -> None:
    count = len(file.read(loras[0]).modules)
    assert run("verify", loras[0], "--base", base).startswith(f"PEFT: {count} of {count} modules, ΔW equal")
    assert "layer 0 " in run("inspect", loras[0])
    assert "knows no models of a language model" in run("verify", loras[0], "--base", base, "--in", "a1111", code=2)
    other = small_words.write_model(tmp_path / "other", "llama", hidden_size=48)
    assert run("verify", loras[0], "--base", other, code=2)


def test_a_dora_is_merged_verified_and_baked_as_peft_has_it(base: Path, tmp_path: Path, run: Run) -> None:
    model, draw, weights = open_model(base, torch.device("cpu"), torch.float32), torch.Generator().manual_seed(1), {}
    for path in model.usual:
        weight = model.trainable()[path].weight
        down, up = torch.randn(3, weight.shape[1], generator=draw), torch.randn(len(weight), 3, generator=draw) / 10
        lengths = weight.norm(dim=1, keepdim=True) * (1 + 0.2 * torch.rand(len(weight), 1, generator=draw))
        weights[path] = LoraWeights(down, up, 4.0, lengths.detach())
    dora, one, half = tmp_path / "dora", tmp_path / "one", tmp_path / "half"
    adapter_folder.write(
        dora, adapter_folder.files_of(weights, torch.float32, base=str(base), transposed=model.transposes)
    )
    wanted = logits(base, (dora, 1.0))
    run("merge", f"{dora}:1", "--base", base, "--output", one)
    assert torch.allclose(logits(one), wanted, atol=1e-4)
    run("merge", f"{dora}:0.5", "--base", base, "--output", half)
    assert torch.allclose(logits(half), logits(base, (dora, 0.5)), atol=1e-4)
    assert "ΔW equal" in run("verify", dora, "--base", base)
    assert "a DoRA" in run("inspect", dora)
    run("convert", dora, "--to", "peft", "--bake-dora", "--base", base, "--rank", 64, "--output", tmp_path / "plain")
    assert torch.allclose(logits(base, (tmp_path / "plain", 1.0)), wanted, atol=1e-3)
    assert "cannot be told from what they are" in run(
        "unmerge", f"{dora}:1", "--model", one, "--output", tmp_path / "x", code=2
    )
    # The command that a refusal names makes of it what combine takes.
    told = run("combine", f"{dora}:1", f"{tmp_path / 'plain'}:1", "--output", tmp_path / "x", code=2)
    hinted = shlex.split(told.partition("lora-scripts ")[2].replace("BASE", str(base)))
    run(*hinted, "--output", tmp_path / "hinted")
    run("combine", f"{tmp_path / 'hinted'}:1", f"{tmp_path / 'plain'}:1", "--output", tmp_path / "x")


def test_what_has_no_part_here_says_so_in_one_line(base: Path, loras: list[Path], tmp_path: Path, run: Run) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"text": "hello"}) + "\n")
    for words, line in (
        (("convert", loras[0], "--to", "kohya"), "a LoRA of a language model has no kohya names"),
        (("combine", *loras, "--output", "x.safetensors"), "is a folder, as PEFT has it; write --output x"),
        (("generate", "--base", base, "--prompt", "x"), "which draws no pictures; lora-scripts chat answers with it"),
        (("label", "--input", data), "which need no captions; look at them with lora-scripts check"),
        (("label", "--input", tmp_path), "which need no captions; look at them with lora-scripts check"),
    ):
        (told,) = run(*words, code=2).splitlines()
        assert line in told
