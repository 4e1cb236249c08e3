"""A training adapter: on while training, off in previews and in the file; held against a base that has it merged by
hand.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import flow_checks
import tiny
import tiny_flux2
import tiny_zimage
from lora_scripts.adapters.algebra import factors
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.cli import main
from lora_scripts.families.base import LoadOptions, Sampling
from lora_scripts.families.table import by_name, load_family
from lora_scripts.formats.header import read_header
from lora_scripts.loras import dialects
from lora_scripts.loras.file import read, save
from lora_scripts.losses.noise import Draws
from lora_scripts.run.build import build_model
from lora_scripts.run.configs import load_config
from lora_scripts.run.parts import Model
from runs import faults, stopped

FACTS = by_name("zimage")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Setup:
    """A base, a training adapter for it, and the base with the adapter added to its weights by hand."""

    base: Path
    adapter: Path
    merged: Path
    beside: dict[str, Any]


def changes(scale: float = 1.0) -> dict[str, LoraWeights]:
    weights = flow_checks.lora_of(FACTS, tiny_zimage.models().transformer)
    return {path: LoraWeights(w.down, scale * w.up, w.alpha) for path, w in weights.items()}


def write(path: Path, weights: Mapping[str, LoraWeights]) -> Path:
    form = dialects.own_form(weights, FACTS.names(), torch.float32)
    save(path, form.tensors, form.metadata)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    folder = tmp_path_factory.mktemp("aid")
    base = tiny_zimage.write_base(folder / "base.safetensors")
    state = tiny_zimage.models().transformer.state_dict()
    for path, w in changes().items():
        state[f"{path.removeprefix('transformer.')}.weight"] += w.alpha / w.rank * w.up @ w.down
    merged = folder / "merged.safetensors"
    save_file({k: v.contiguous() for k, v in tiny_zimage.native(state).items()}, merged, read_header(base).metadata)
    return Setup(base, write(folder / "aid.safetensors", changes()), merged, tiny_zimage.beside(folder))


def model_of(made: Setup, folder: Path, data: Path, **keys: object) -> Model:
    more = {"train_data_dir": data, "training_adapter": made.adapter, **made.beside, **keys}
    config = load_config(tiny.write_config(folder, base_model=made.base, **more))
    return build_model(config, CPU, "fp32", {})


def plain(made: Setup, base: Path) -> Any:
    return load_family(FACTS, base, LoadOptions(CPU, torch.float32, **made.beside))


@pytest.mark.parametrize("checkpointing", ["true", "false"])
def test_loss_and_gradients_are_those_on_the_base_with_it_merged(
    made: Setup, data: Path, tmp_path: Path, checkpointing: str
) -> None:
    """Also where blocks are computed again in the backward pass."""
    model = model_of(made, tmp_path, data, gradient_checkpointing=checkpointing)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(2, 3, 64, 64, generator=generator) * 2 - 1
    noise, posterior = (torch.randn(2, 16, 8, 8, generator=generator) for _ in range(2))
    draws = Draws(torch.tensor([0.3, 0.8], dtype=torch.float64), noise, posterior)
    other = plain(made, made.merged)
    bare = plain(made, made.base)
    losses = []
    for family in (model.family, other, bare):
        batch = flow_checks.batch_of(family, pixels, ["hello", "how are you"])
        losses.append(family.losses(batch, family.objective, draws))
    assert (losses[0] - losses[1]).abs().max() < 1e-5 * losses[1].max() < (losses[0] - losses[2]).abs().max()
    losses[0].sum().backward()
    grads = {path: layer.up.grad for path, layer in model.layers.items()}  # type: ignore[attr-defined]
    # By hand: B's gradient is scale * (gradient by the weight) A', of the base with it merged.
    for path in model.layers:
        other.transformer.get_submodule(path.removeprefix("transformer.")).weight.requires_grad_(True)
    other.losses(flow_checks.batch_of(other, pixels, ["hello", "how are you"]), other.objective, draws).sum().backward()
    for path, layer in model.layers.items():
        by_weight = other.transformer.get_submodule(path.removeprefix("transformer.")).weight.grad
        want = layer.scale * by_weight @ layer.down.T  # type: ignore[attr-defined, operator]
        assert (grads[path] - want).abs().max() <= 1e-4 * want.abs().max() + 1e-9, path


def test_pictures_are_drawn_without_it(made: Setup, data: Path, tmp_path: Path) -> None:
    model = model_of(made, tmp_path, data)
    sampling = Sampling(steps=2, cfg=1.0, size=(64, 64))
    bare, merged = (plain(made, base) for base in (made.base, made.merged))
    ours = np.asarray(model.family.generate("hello", 3, sampling))
    assert np.array_equal(ours, np.asarray(bare.generate("hello", 3, sampling)))
    assert np.array_equal(ours, np.asarray(model.family.draw("hello", [3], sampling)[0]))
    assert not np.array_equal(ours, np.asarray(merged.generate("hello", 3, sampling)))
    # It is on again afterwards.
    x, sigma = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(2)), torch.tensor([0.6])
    texts: Any = model.family.encode_text(["hello"])
    answers = [family.predict(x, sigma, texts) for family in (model.family, merged)]  # type: ignore[attr-defined]
    assert torch.allclose(*answers, atol=1e-5)


@pytest.fixture(scope="module")
def runs(made: Setup, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What a run with it has written, and one on the merged base."""
    files = []
    for name, keys in (("aided", {"training_adapter": made.adapter}), ("merged", {"base_model": made.merged})):
        folder = tmp_path_factory.mktemp(name)
        more = {"save_precision": "fp32", "targets": "[attention]", "learning_rate": 1e-3, **keys}
        stopped(
            tiny.write_config(folder, **{"base_model": made.base, "train_data_dir": data, **made.beside, **more}), 3
        )
        files.append(folder / "out" / "out-step000003.safetensors")
    return files[0], files[1]


def test_the_file_holds_what_was_learnt_and_nothing_of_it(made: Setup, runs: tuple[Path, Path]) -> None:
    """The same as on a base with it merged; of the layers that only the adapter has there is none."""
    ours, theirs = (read(file).weights for file in runs)
    assert ours.keys() == theirs.keys() and len(ours) == 8 < len(changes())
    for path, w in ours.items():
        one, two = (factors.of(x).dense() for x in (w, theirs[path]))
        assert (one - two).abs().max() < 0.02 * two.abs().max() < 0.02 * factors.of(changes()[path]).dense().abs().max()
    name, sha256 = read_header(runs[0]).metadata["lora_scripts.training_adapter"].split()
    assert name == "aid.safetensors" and sha256 == read(made.adapter).sha256
    assert "lora_scripts.training_adapter" not in read_header(runs[1]).metadata


def test_a_run_goes_on_only_with_the_same_one(
    made: Setup, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever it lies; and as a run that was never stopped."""
    own = tmp_path / "aid.safetensors"
    shutil.copy(made.adapter, own)
    keys = {"training_adapter": own, "train_data_dir": data, "base_model": made.base, **made.beside}
    config = tiny.write_config(tmp_path, **keys)
    stopped(config, 2)
    write(own, changes(scale=0.5))
    for other in (f"training_adapter={own}", "training_adapter=null"):
        capsys.readouterr()
        assert main(["train", "--config", str(config), "--resume", other]) == 2
        assert "something changed: training_adapter" in capsys.readouterr().err
    moved = f"training_adapter={made.adapter}"
    stopped(config, 4, moved, resume=True)
    stopped(config, 4, moved, f"output_dir={tmp_path / 'whole'}")
    at = Path("state") / "step-00000004" / "lora.safetensors"
    one, two = (load_file(tmp_path / out / at) for out in ("out", "whole"))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_one_that_would_do_nothing_or_lies_wrong_is_refused(made: Setup, data: Path, tmp_path: Path) -> None:
    def told(path: Path, *more: str) -> str:
        keys = {"base_model": made.base, "train_data_dir": data, "training_adapter": path, **made.beside}
        return faults(lambda: build_model(load_config(tiny.write_config(tmp_path, **keys), more), CPU, "fp32", {}))

    assert "this LoRA changes no weight: all of it is zero" in told(write(tmp_path / "zero.safetensors", changes(0.0)))
    weights = flow_checks.lora_of(by_name("flux2"), tiny_flux2.models().transformer)
    form = dialects.own_form(weights, by_name("flux2").names(), torch.float32)
    save(tmp_path / "flux2.safetensors", form.tensors, form.metadata)
    assert "this LoRA is for FLUX.2 klein, the base model is Z-Image" in told(tmp_path / "flux2.safetensors")
    deep = {"transformer.layers.29.attention.to_q": LoraWeights(torch.ones(2, 32), torch.ones(32, 2), 2.0)}
    assert "the base model has no such layer" in told(write(tmp_path / "deep.safetensors", deep))
    assert "nowhere.safetensors does not exist" in told(tmp_path / "nowhere.safetensors")
    assert "cannot lie under adapter: dora" in told(made.adapter, "adapter=dora")


def test_other_adapters_lie_over_it(made: Setup, data: Path, tmp_path: Path) -> None:
    """On SD 1.x too, whose blocks are computed in a leaner way."""
    pytest.importorskip("lycoris")
    model = model_of(made, tmp_path, data, adapter="lokr")
    x, sigma = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(2)), torch.tensor([0.6])
    texts: Any = model.family.encode_text(["hello"])
    answers = [f.predict(x, sigma, texts) for f in (model.family, plain(made, made.merged))]  # type: ignore[attr-defined]
    assert torch.allclose(*answers, atol=1e-5)
    base = tiny.write_base(tmp_path / "sd1.safetensors")
    facts = by_name("sd1")
    path = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    one = {path: LoraWeights(torch.ones(2, 32), torch.ones(32, 2), 2.0)}
    form = dialects.own_form(one, facts.names(), torch.float32)
    save(tmp_path / "sd1_aid.safetensors", form.tensors, form.metadata)
    keys = {"base_model": base, "train_data_dir": data, "training_adapter": tmp_path / "sd1_aid.safetensors"}
    stopped(tiny.write_config(tmp_path, **keys), 1)
    assert path in read(tmp_path / "out" / "out-step000001.safetensors").weights
