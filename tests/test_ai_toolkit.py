"""LoRAs of diffusion transformers as ai-toolkit writes them. Its own networks and conversions (of 21 August 2026) were
run on narrow layers of nine families (28 November 2026); what stands here are names and values from there.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lora_scripts.families.table import by_name
from lora_scripts.loras.file import read, save
from lora_scripts.workshop.inspect import report_of
from runs import faults

T = "transformer."
QKV = tuple(f"{T}transformer_blocks.0.attn.to_{leaf}" for leaf in "qkv")
# Family -> (stem, our layers in the order of their rows).
NAMES: dict[str, tuple[str, tuple[str, ...]]] = {
    "flux1": ("transformer.transformer_blocks.0.attn.to_q", QKV[:1]),
    "flux2": ("diffusion_model.double_blocks.0.img_attn.qkv", QKV),
    "zimage": ("diffusion_model.layers.0.attention.to_q", (f"{T}layers.0.attention.to_q",)),
    "krea2": ("diffusion_model.txtfusion.projector", (f"{T}text_fusion.projector",)),
    "anima": (
        "diffusion_model.blocks.0.adaln_modulation_self_attn.1",
        (f"{T}transformer_blocks.0.norm1.linear_1",),
    ),
}
# The same of its older names of a LoKr.
OLD: dict[str, tuple[str, tuple[str, ...]]] = {
    "flux2_dev": ("lycoris_double_blocks_0_img_attn_qkv", QKV),
    "chroma": (
        "lycoris_distilled_guidance_layer_layers_0_in_layer",
        (f"{T}distilled_guidance_layer.layers.0.linear_1",),
    ),
    "sd3": ("lycoris_joint_blocks_0_x_block_attn_qkv", QKV),
}


@pytest.mark.parametrize("family", NAMES)
def test_a_dora_is_read(tmp_path: Path, family: str) -> None:
    """Its lengths are one for each output, and it has no alpha."""
    stem, paths = NAMES[family]
    g, rows = torch.Generator().manual_seed(0), 8 * len(paths)
    down, up, of = torch.randn(2, 8, generator=g), torch.randn(rows, 2, generator=g), torch.rand(rows, generator=g)
    tensors = {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up, f"{stem}.magnitude": of}
    save(tmp_path / "lora.safetensors", tensors, {})
    found = read(tmp_path / "lora.safetensors", by_name(family)).mergeable
    assert tuple(found) == paths
    for n, w in enumerate(found.values()):
        own = slice(8 * n, 8 * n + 8)
        assert w.alpha == w.rank and torch.equal(w.up @ w.down, up[own] @ down)
        assert w.dora is not None and torch.equal(w.dora, of[own, None])
    assert any(problem.startswith("a DoRA") for problem in report_of(tmp_path / "lora.safetensors").problems)


@pytest.mark.parametrize("family", NAMES)
def test_an_alpha_that_fp16_has_no_number_for_counts_for_nothing(tmp_path: Path, family: str) -> None:
    """What its LoKr of two whole matrices has by default; with a factor, an alpha counts, and has to be a number."""
    stem, paths = NAMES[family]
    tensors = {f"{stem}.lokr_w1": torch.ones(3, 2), f"{stem}.lokr_w2": torch.ones(8, 4)}
    tensors = {key: own.half() for key, own in (tensors | {f"{stem}.alpha": torch.tensor(9999999999)}).items()}
    save(tmp_path / "lora.safetensors", tensors, {})
    found = read(tmp_path / "lora.safetensors", by_name(family)).modules
    assert tuple(found) == paths and all(
        leaves.keys() == {"lokr_w1", "lokr_w2"} for leaves in map(dict, found.values())
    )
    del tensors[f"{stem}.lokr_w2"]
    tensors |= {f"{stem}.lokr_w2_a": torch.ones(8, 1), f"{stem}.lokr_w2_b": torch.ones(1, 4)}
    save(tmp_path / "lora.safetensors", tensors, {})
    assert "not finite numbers" in faults(lambda: read(tmp_path / "lora.safetensors", by_name(family)))


@pytest.mark.parametrize("family", OLD)
def test_older_names_of_a_lokr_are_read(tmp_path: Path, family: str) -> None:
    stem, paths = OLD[family]
    w1, w2 = torch.rand(3, 2), torch.rand(8, 4)
    tensors = {f"{stem}.lokr_w1": w1, f"{stem}.lokr_w2": w2, f"{stem}.alpha": torch.tensor(1.0)}
    save(tmp_path / "lora.safetensors", tensors, {})
    found = read(tmp_path / "lora.safetensors", by_name(family)).modules
    assert tuple(found) == paths
    for n, leaves in enumerate(found.values()):
        own = w1[n : n + 1] if len(paths) > 1 else w1
        assert isinstance(leaves, dict) and torch.equal(leaves["lokr_w1"], own) and torch.equal(leaves["lokr_w2"], w2)


@pytest.mark.parametrize(
    ("family", "block", "layer"),
    [
        ("flux2", "double_blocks.0.img_attn", "proj"),
        ("qwen_image", "transformer_blocks.0.attn", "to_q"),
        ("zimage", "layers.0.attention", "to_q"),
    ],
)
def test_whole_weights_of_norms_are_told(tmp_path: Path, family: str, block: str, layer: str) -> None:
    """What `all_layers` adds: with the base that the file is for, too, where it was called FLUX.1's."""
    stem = f"diffusion_model.{block}.{layer}"
    tensors = {f"{stem}.lora_A.weight": torch.ones(2, 8), f"{stem}.lora_B.weight": torch.ones(8, 2)}
    tensors[f"diffusion_model.{block}.norm_q.diff"] = torch.ones(8)
    save(tmp_path / "lora.safetensors", tensors, {})
    told = [faults(lambda base=base: read(tmp_path / "lora.safetensors", base)) for base in (by_name(family), None)]
    assert all(f"not read here (it has diffusion_model.{block}.norm_q.diff)" in text for text in told)


@pytest.mark.parametrize(
    "stem", ["diffusion_model.llm_adapter.blocks.0.self_attn.q_proj", "lora_unet_llm_adapter_blocks_0_self_attn_q_proj"]
)
def test_a_lora_of_animas_adapter_is_told(tmp_path: Path, stem: str) -> None:
    """The second name is that of sd-scripts."""
    tensors = {}
    for one in ("diffusion_model.blocks.0.self_attn.q_proj", stem):
        tensors |= {f"{one}.lora_A.weight": torch.ones(2, 8), f"{one}.lora_B.weight": torch.ones(8, 2)}
    save(tmp_path / "lora.safetensors", tensors, {})
    told = faults(lambda: read(tmp_path / "lora.safetensors"))
    assert f"changes the adapter of the text encoder, too (it has {stem}" in told
