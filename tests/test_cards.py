"""What a card allows, without one: sizes against files and stored weights, sums against a card that was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.cards import PUBLISHED, published
from safetensors import safe_open

import tiny
from lora_scripts.cli import main
from lora_scripts.compute import memory
from lora_scripts.compute.memory import MemoryOptions
from lora_scripts.compute.meter import GB
from lora_scripts.config.load import load_config
from lora_scripts.config.schema import TrainConfig
from lora_scripts.families import table
from lora_scripts.families.facts import Kept
from lora_scripts.families.table import FAMILIES, by_name
from lora_scripts.plan.cards import BESIDE, CARDS, MORE, Base, Piece, allowed, base_of, needs, rungs


def config_of(**keys: Any) -> TrainConfig:
    return TrainConfig(train_data_dir=Path("d"), base_model=Path("b"), output_dir=Path("o"), **keys)


@pytest.fixture(scope="module")
def own(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cards")
    return tiny.write_config(folder, base_model=base, train_data_dir=data, targets=["attention", "feed_forward"])


def test_sizes_are_those_of_the_file_and_of_what_is_stored(own: Path, base: Path) -> None:
    config = load_config(own)
    found = base_of(config, table.find(base))
    with safe_open(base, "pt") as file:
        keys = [key for key in file.keys() if key.startswith("model.diffusion_model.")]  # noqa: SIM118
        unet = [file.get_slice(key).get_shape() for key in keys]
    assert found.numbers == sum(torch.Size(shape).numel() for shape in unet)
    # The LoRA by hand: what diffusers calls so in its transformers, proj_in and proj_out among them.
    model = tiny.models()[0]
    ends = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
    layers = [layer for name, layer in model.named_modules() if "attentions" in name and name.endswith(ends)]
    assert found.lora == sum(config.lora_rank * sum(layer.weight.shape[:2]) for layer in layers)
    for storage in ("auto", "int8", "fp8"):
        model = tiny.models()[0].requires_grad_(False)
        options = MemoryOptions(storage=None if storage == "auto" else storage)
        memory.place(model, options, torch.device("cpu"), torch.bfloat16)
        blocks = memory.blocks_of(model)
        tensors = [[*m._parameters.values(), *m._buffers.values()] for block in blocks for m in block.modules()]
        stored = sum(t.nbytes for some in tensors for t in some if t is not None)
        assert sum(block.size(storage, 2, 0) for block in found.blocks) == stored
        assert found.around.size("auto", 2, 0) == sum(p.nbytes for p in model.parameters()) - sum(
            p.nbytes for block in blocks for p in block.parameters()
        )


@pytest.mark.parametrize(
    ("name", "whole", "again"), [("FLUX.2 klein 4B", 22.1, 9.2), ("Z-Image", 43.9, 14.4), ("SDXL", None, 6.2)]
)
def test_sums_are_what_a_card_allocated(name: str, whole: float | None, again: float) -> None:
    """GiB on an H200, docs/performance.md; the transformer or UNet and its LoRA alone."""
    for checkpointing, there in ((False, whole), (True, again)):
        if there is not None:
            config, base = published(name, gradient_checkpointing=checkpointing, precision="bf16")
            counted = (needs(config, base)["step"] - BESIDE) / MORE / 2**30
            assert 0.95 < counted / there < 1.1


def test_what_a_step_keeps_is_known_of_every_family() -> None:
    drawing = {facts.name: facts for facts in FAMILIES if "pictures" in facts.features}
    assert {family for family, _, _ in PUBLISHED.values()} == drawing.keys()
    assert sum(len(facts.kept) for facts in drawing.values()) == len(PUBLISHED)
    for name in ("SD 3.5 Medium", "FLUX.3 klein", "Stable Diffusion 2.1"):
        assert published(name)[1].kept is not None


PIECE = Piece(linear=500_000_000, rows=0, rest=0, largest=0)
MADE = Base(
    replace(by_name("sdxl"), kept={6000: Kept(10_000, 100)}),
    [PIECE] * 10,
    Piece(0, 0, 1_000_000_000, 0),
    0,
    1024 * 1024,
)
"""Ten blocks of 1 GB in bf16, and 2 GB around them."""


def test_the_least_is_changed_that_fits() -> None:
    config = config_of(resolution=1024, batch_size=2, gradient_accumulation=3, lora_alpha=4)
    again, single = {"gradient_checkpointing": True}, {"batch_size": 1, "gradient_accumulation": 6}
    order = list(rungs(config, MADE))
    assert order[:5] == [
        {},
        again,
        again | single,
        again | single | {"base_precision": "int8"},
        again | single | {"base_precision": "int8", "offload_blocks": 1},
    ]
    assert len(order) == 14 and order[-1]["offload_blocks"] == 10
    # By hand: 12 GB of weights; two pictures leave 2 x 10,000 MiB, or 2 x (100 + 1,000) with blocks computed again.
    assert needs(config, MADE)["step"] == round(MORE * (12e9 + 20_000 * 2**20)) + BESIDE
    once = config.model_copy(update=again)
    assert needs(once, MADE)["step"] == round(MORE * (12e9 + 2_200 * 2**20)) + BESIDE
    # 8 bits: 5 GB of blocks. Of 4 in RAM two are on the card at a time.
    rounded = config.model_copy(update={**order[3], "offload_blocks": 4})
    assert needs(rounded, MADE)["step"] == round(MORE * (2e9 + 6 * 0.5e9 + 2 * 0.5e9 + 1_100 * 2**20)) + BESIDE
    for card in (8, 12, 16, 24, 48):
        row = allowed(config, MADE, card)
        if row.changes is None:
            continue
        assert row.bytes <= card * GB
        before = order[: order.index({k: v for k, v in row.changes.items() if k != "vae_tiling"})]
        for less in before:
            with_tiles = config.model_copy(update={**less, "vae_tiling": True})
            assert max(needs(with_tiles, MADE).values()) > card * GB
    for rung in order:  # each can be written
        TrainConfig.model_validate({**config.model_dump(exclude_unset=True), **rung})
    long = config_of(batch_size=1024, gradient_accumulation=2)
    assert not any("batch_size" in rung for rung in rungs(long, MADE))  # more than a config takes
    assert allowed(config, MADE, 48).changes == {} and allowed(config, MADE, 2).changes is None
    assert allowed(config, MADE, 8).ram == allowed(config, MADE, 8).changes["offload_blocks"] * 500_000_000  # type: ignore[index]


def test_what_is_written_already_is_not_proposed() -> None:
    there = {"gradient_checkpointing": True, "base_precision": "fp8", "offload_blocks": 9}
    assert list(rungs(config_of(batch_size=1, **there), MADE)) == [{}, {"offload_blocks": 10}]
    assert all("base_precision" not in rung for rung in rungs(config_of(adapter="dora"), MADE))
    packed = replace(MADE, packed=0.5)
    assert needs(config_of(), packed)["step"] < needs(config_of(), MADE)["step"] - 7e9


def test_it_is_asked_without_a_card_and_without_a_rehearsal(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config", str(own), "--cards"]) == 0
    told = capsys.readouterr().out
    assert [line.split()[:2] for line in told.splitlines()[:4]] == [[str(n), "GB"] for n in CARDS]
    assert (
        "fits as it is: about 1." in told
        and "not in it: what a step keeps, which is not known for a base of this size" in told
    )
    assert main(["plan", "--config", str(own), "--cards", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["card"], row["changes"]) for row in rows] == [(n, {}) for n in CARDS]
    assert main(["plan", "--config", str(own), "--cards", "--memory", "8"]) == 2
    assert "leave one out" in capsys.readouterr().err
