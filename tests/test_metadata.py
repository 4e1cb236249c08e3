"""Metadata as the WebUIs read it, and hashes as hashlib gives them on the finished file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from lora_scripts.data.trigger import Trigger, trigger_of
from lora_scripts.errors import UserError
from lora_scripts.families.sd1.facts import FACTS as SD1
from lora_scripts.formats import io
from lora_scripts.formats.hashes import model_hashes, with_hashes
from lora_scripts.loras import metadata
from lora_scripts.loras.metadata import TrainingFacts

FACTS = TrainingFacts(
    output_name="cyberpunk_lora",
    lora=SD1.lora,
    base_name="v1-5-pruned.safetensors",
    base_sha256="ab" * 32,
    rank=16,
    alpha=8.0,
    resolution=(512, 768),
    seen=100,
    batch_size=4,
    gradient_accumulation=1,
    epoch=3,
    epochs=15,
    steps=75,
    max_steps=375,
    learning_rate=2e-4,
    text_learning_rate=None,
    optimizer="AdamW",
    scheduler="cosine",
    warmup_steps=0,
    seed=42,
    precision="bf16",
)


def test_the_least_set_of_the_consumers() -> None:
    texts = metadata.of_training(FACTS)
    assert texts["ss_v2"] == "False" and not texts["ss_base_model_version"].startswith("sdxl_")
    assert (texts["ss_network_module"], texts["ss_network_dim"], texts["ss_network_alpha"]) == (
        "networks.lora",
        "16",
        "8.0",
    )
    assert json.loads(texts["ss_network_args"]) == {}
    assert texts["ss_output_name"] == texts["modelspec.title"] == "cyberpunk_lora"
    assert texts["modelspec.sai_model_spec"] == "1.0.1"
    assert texts["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert texts["modelspec.resolution"] == "512x768" and texts["ss_resolution"] == "(512, 768)"
    assert texts["modelspec.implementation"] == "diffusers" and texts["modelspec.prediction_type"] == "epsilon"
    assert (texts["ss_num_train_images"], texts["ss_num_batches_per_epoch"]) == ("100", "25")
    assert texts["ss_new_sd_model_hash"] == "ab" * 32
    assert all(isinstance(key, str) and isinstance(value, str) for key, value in texts.items())


def test_nothing_private_unless_given() -> None:
    keys = set(metadata.of_training(FACTS))
    given = replace(
        FACTS,
        tag_frequency={"set": {"neon": 3}},
        dataset_dirs={"set": {"img_count": 50, "n_repeats": 2}},
    )
    more = metadata.of_training(given)
    assert set(more) - keys == {"ss_tag_frequency", "ss_dataset_dirs"}
    assert json.loads(more["ss_tag_frequency"]) == {"set": {"neon": 3}}
    assert json.loads(more["ss_dataset_dirs"])["set"]["img_count"] == 50


def test_buckets_trigger_and_tags_as_other_tools_write_them() -> None:
    captions = ["zorb, a cat, red", "Zorb, a dog", "zorb, a cat", "zorb, a cat, a cat", "a house"]
    trigger = trigger_of(captions)
    assert trigger == Trigger(("zorb",), 4, 5)
    texts = metadata.of_training(replace(FACTS, trigger=trigger, buckets={(512, 768): 6, (512, 512): 20}))
    assert texts["modelspec.trigger_phrase"] == "zorb" and texts["lora_scripts.trigger_agreement"] == "4 of 5"
    rows = {"0": {"resolution": [512, 512], "count": 20}, "1": {"resolution": [512, 768], "count": 6}}
    assert json.loads(texts["ss_bucket_info"]) == {"buckets": rows}
    assert metadata.tag_counts(captions) == {"zorb": 3, "a cat": 3, "red": 1, "Zorb": 1, "a dog": 1, "a house": 1}
    assert "ss_bucket_info" not in metadata.of_training(FACTS)


@pytest.mark.parametrize(
    ("captions", "phrase"),
    [
        (["ohwx man by a lake", "ohwx man at night", "OHWX man"], "ohwx"),
        (["neon style, a cat", "neon style, a car", "neon style, rain", "a neon style", "neon style, b"], "neon style"),
        (["霓虹，一座房子", "霓虹，夜晚，雨", "霓虹、红色"], "霓虹"),  # the commas of an input method
        (["a photo of a cat", "a photo of a dog"], None),
        (["photo of ohwx", "photo of ohwx man"], None),
        (["one red cat", "two blue dogs", "snow"], None),
        (["alone"], None),
        ([], None),
    ],
)
def test_the_trigger_is_what_most_captions_begin_with(captions: list[str], phrase: str | None) -> None:
    found = trigger_of(captions)
    assert (found.phrase if found else None) == phrase


def test_what_differs_by_run() -> None:
    texts = metadata.of_training(replace(FACTS, clip_skip=2, v_prediction=True, dropout=0.1, conv=True, base_sha256=""))
    assert (
        texts["ss_clip_skip"] == texts["modelspec.encoder_layer"] == "2" and texts["modelspec.prediction_type"] == "v"
    )
    assert json.loads(texts["ss_network_args"]) == {"dropout": 0.1, "conv_dim": 16, "conv_alpha": 8.0}
    assert "ss_new_sd_model_hash" not in texts


def saved(folder: Path, megabytes: int, texts: dict[str, str]) -> tuple[Path, dict[str, str]]:
    torch.manual_seed(0)
    tensors = {"b": torch.randn(megabytes << 18), "a": torch.randn(7)}
    filled = with_hashes(tensors, texts)
    io.save_safetensors(folder / "x.safetensors", tensors, filled)
    return folder / "x.safetensors", filled


@pytest.mark.parametrize("megabytes", [0, 1, 3])
def test_the_hashes_in_the_file_are_those_of_the_file(tmp_path: Path, megabytes: int) -> None:
    path, filled = saved(tmp_path, megabytes, metadata.of_training(FACTS))
    with safe_open(path, "pt") as handle:
        assert handle.metadata() == filled
    data = path.read_bytes()
    body = data[8 + int.from_bytes(data[:8], "little") :]
    assert filled["sshs_model_hash"] == hashlib.sha256(body).hexdigest()
    assert filled["sshs_legacy_hash"] == hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8]
    for hashes in (model_hashes(path), model_hashes(data)):
        assert hashes.sha256 == hashlib.sha256(data).hexdigest()
        assert hashes.autov2 == hashes.sha256[:10]
        assert hashes.autov3 == filled["sshs_model_hash"][:12]
        assert hashes.sshs_legacy_hash == filled["sshs_legacy_hash"]


def test_a_header_that_fills_the_window_gets_no_legacy_hash(tmp_path: Path) -> None:
    path, filled = saved(tmp_path, 1, {"ss_tag_frequency": "x" * (1 << 20)})
    assert "sshs_legacy_hash" not in filled
    assert filled["sshs_model_hash"] == model_hashes(path).sshs_model_hash


def test_metadata_does_not_change_the_model_hash(tmp_path: Path) -> None:
    assert saved(tmp_path, 1, {})[1]["sshs_model_hash"] == saved(tmp_path, 1, {"a": "b"})[1]["sshs_model_hash"]


def test_hashes_of_other_files(tmp_path: Path) -> None:
    hashes = model_hashes(b"PK\x03\x04 no safetensors")
    assert hashes.sshs_model_hash == hashes.autov3 == ""
    assert hashes.sshs_legacy_hash == "e3b0c442"  # of no bytes at all, as the WebUI has it for short files
    with pytest.raises(UserError, match=r"none\.safetensors: cannot be read"):
        model_hashes(tmp_path / "none.safetensors")
