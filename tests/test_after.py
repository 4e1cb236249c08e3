"""What is looked at after a run: what is asked of a LoRA, and what it does where nothing calls it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_scripts.adapters.inject import remove
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.config.schema import TrainConfig
from lora_scripts.data.scan import Sample
from lora_scripts.loras.on_model import apply
from lora_scripts.run.after.base_kept import OTHERS, keeps_base, told
from lora_scripts.run.after.copies import questions
from lora_scripts.run.after.worn import Worn
from lora_scripts.run.previews import previews_of


def config(tmp_path: Path, base: Path) -> TrainConfig:
    return TrainConfig(
        train_data_dir=tmp_path, base_model=base, output_dir=tmp_path / "out", resolution=64, sample_steps=1, seed=5
    )


def samples(*captions: str) -> list[Sample]:
    return [Sample(Path(f"{i}.png"), f"{i}.png", text, 64, 64, f"digest {i}") for i, text in enumerate(captions)]


@pytest.fixture
def worn(family: Any) -> Iterator[Worn]:
    """The tiny base with a strong LoRA in every attention layer."""
    g, weights = torch.Generator().manual_seed(0), {}
    for path, layer in family.trainable().items():
        if path.endswith("to_v") and isinstance(layer, torch.nn.Linear):
            down = torch.randn(2, layer.in_features, generator=g)
            weights[path] = LoraWeights(down, 0.5 * torch.randn(layer.out_features, 2, generator=g), 2.0)
    layers = apply(family, weights, 1.0)
    yield Worn(family, layers, {})
    remove(family.roots, layers)


def test_trained_captions_are_asked_for_and_held_out_ones(tmp_path: Path, base: Path) -> None:
    trained, held = samples("a", "b", "a", "", "c", "d", "e"), samples("h", "i")
    asked = questions(config(tmp_path, base), trained, held)
    assert [q.preview.prompt for q in asked] == ["a", "b", "c", "d", "h", "i"]
    assert [q.trained for q in asked] == [True] * 4 + [False] * 2
    assert [q.preview for q in asked[:2]] == previews_of(config(tmp_path, base), trained)  # they are drawn anyway


def test_a_strength_holds_as_long_as_it_is_asked_for(worn: Worn) -> None:
    with worn.at(0.0):
        assert {layer.strength for layer in worn.layers.values()} == {0.0}
    assert {layer.strength for layer in worn.layers.values()} == {1.0}


def test_what_a_lora_does_uncalled_is_measured_by_what_it_does_called(worn: Worn, tmp_path: Path, base: Path) -> None:
    called = [
        (worn.draw(p, 0.0), worn.draw(p, 1.0)) for p in previews_of(config(tmp_path, base), samples("zibbo", "zibbo b"))
    ]
    found = keeps_base(worn, config(tmp_path, base), "zibbo", called)
    assert found.touched and "so the base is not kept; preserve_weight: 1" in found.words  # it changes all there is
    assert [pair.prompt for pair in found.pairs] == list(OTHERS[:2])
    assert all(pair.before.tobytes() != pair.after.tobytes() for pair in found.pairs)
    still = keeps_base(Worn(worn.family, {}, {}), config(tmp_path, base), "zibbo", called)
    assert not still.touched and "change 0.00 times as much as those that call it, so the base is kept" in still.words


def test_what_was_done_already_is_not_recommended_again() -> None:
    neither, held, kept = (
        told("zibbo", 0.8, preserved=p, kept=k) for p, k in ((False, False), (True, False), (False, True))
    )
    assert "not kept; preserve_weight: 1, class pictures (class_prompt, class_images: 50), fewer epochs or" in neither
    assert "not kept; class pictures (class_prompt, class_images: 50), fewer epochs or" in held
    assert "not kept; preserve_weight: 1, more class pictures, fewer epochs or" in kept
