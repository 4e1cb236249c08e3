"""LoRAs of diffusion transformers as OneTrainer writes them. Its own savers and conversions (of 19 August 2026) were
run on narrow layers of nine families in all five formats (28 November 2026); what stands here are names from there.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lora_scripts.families.table import by_name
from lora_scripts.loras.file import family_of, read, save
from runs import faults

T = "transformer."
QKV = tuple(f"{T}transformer_blocks.0.attn.to_{leaf}" for leaf in "qkv")
# (family, format) -> stem -> our layers, in the order of their rows.
NAMES: dict[tuple[str, str], dict[str, tuple[str, ...]]] = {
    ("flux2", "comfy"): {
        "diffusion_model.double_blocks.0.img_attn.qkv": QKV,
        "diffusion_model.single_blocks.1.linear1": (f"{T}single_transformer_blocks.1.attn.to_qkv_mlp_proj",),
        "diffusion_model.double_stream_modulation_txt.lin": (f"{T}double_stream_modulation_txt.linear",),
        "diffusion_model.final_layer.adaLN_modulation.1": (f"{T}norm_out.linear",),
    },
    ("flux1", "legacy"): {
        "lora_transformer_transformer_blocks_0_attn_to_q": QKV[:1],
        "lora_transformer_time_text_embed_text_embedder_linear_1": (f"{T}time_text_embed.text_embedder.linear_1",),
    },
    ("sd3", "original"): {
        "joint_blocks.0.x_block.attn.qkv": QKV,
        "final_layer.linear": (f"{T}proj_out",),
    },
    ("krea2", "original"): {
        "blocks.0.attn.gate": (f"{T}transformer_blocks.0.attn.to_gate",),
        "txtfusion.projector": (f"{T}text_fusion.projector",),
    },
    ("anima", "original"): {"net.blocks.0.self_attn.q_proj": (f"{T}transformer_blocks.0.attn1.to_q",)},
}
ROWS = {"linear1": 72, "adaLN_modulation.1": 16, "lin": 48, "linear": 64}
"""Of layers that have more or less of them than columns, 8."""


def layers(
    family: str, form: str, *, lengths: str = ""
) -> tuple[dict[str, torch.Tensor], dict[str, tuple[torch.Tensor, ...]]]:
    """The tensors of a file, and what each of our layers has of it: (B A times alpha / rank, lengths)."""
    generator, tensors, want = torch.Generator().manual_seed(0), {}, {}
    for stem, paths in NAMES[family, form].items():
        rows = ROWS.get(stem.removeprefix("diffusion_model.final_layer.").rpartition(".")[2], 8) * len(paths)
        rows = 16 if stem.endswith("adaLN_modulation.1") else rows
        down, up = torch.randn(2, 8, generator=generator), torch.randn(rows, 2, generator=generator)
        of = torch.rand(rows, generator=generator) + 0.5
        a, b = ("lora_down", "lora_up") if form == "legacy" else ("lora_A", "lora_B")
        tensors |= {f"{stem}.{a}.weight": down, f"{stem}.{b}.weight": up, f"{stem}.alpha": torch.tensor(1.0)}
        tensors |= {"outputs": {f"{stem}.dora_scale": of[:, None]},
                    "peft": {f"{stem}.lora_magnitude_vector.weight": of}}.get(lengths, {})  # fmt: skip
        if stem.endswith("adaLN_modulation.1"):  # its halves stand the other way round
            up, of = (torch.cat([t[8:], t[:8]]) for t in (up, of))
        for n, path in enumerate(paths):
            own = slice(n * rows // len(paths), (n + 1) * rows // len(paths))
            want[path] = 0.5 * (up[own] @ down), of[own]
    return tensors, want


@pytest.mark.parametrize(("family", "form"), NAMES)
@pytest.mark.parametrize("lengths", ["", "outputs", "peft"])
def test_its_files_are_read(tmp_path: Path, family: str, form: str, lengths: str) -> None:
    """DoRA, too, with a length for each output ("dora on output"): they are shared out as the rows are."""
    tensors, want = layers(family, form, lengths=lengths)
    save(tmp_path / "lora.safetensors", tensors, {})
    found = read(tmp_path / "lora.safetensors", by_name(family)).mergeable
    assert found.keys() == want.keys() and family_of(tmp_path / "lora.safetensors").name == family
    for path, w in found.items():
        change, of = want[path]
        torch.testing.assert_close(w.alpha / w.rank * (w.up @ w.down), change)
        assert (w.dora is None) == (not lengths)
        assert w.dora is None or (w.by_output and torch.equal(w.dora.flatten(), of))


def test_lengths_of_inputs_that_several_layers_share_are_refused(tmp_path: Path) -> None:
    """What it writes by default: one for each input, of all rows of q, k and v together."""
    tensors, _ = layers("flux2", "comfy")
    stem = "diffusion_model.double_blocks.0.img_attn.qkv"
    save(tmp_path / "lora.safetensors", {**tensors, f"{stem}.dora_scale": torch.ones(1, 8)}, {})
    told = faults(lambda: read(tmp_path / "lora.safetensors", by_name("flux2")))
    assert told.count(stem) == 1 and "has lengths of a DoRA for several layers together" in told
    leaves = {"lokr_w1": torch.ones(2, 2), "lokr_w2": torch.ones(12, 4), "alpha": torch.tensor(1.0)}
    save(tmp_path / "lokr.safetensors", {f"{stem}.{leaf}": tensor for leaf, tensor in leaves.items()}, {})
    assert "has lokr_w1 for several layers together" in faults(lambda: read(tmp_path / "lokr.safetensors"))
    halves = {"lora_down.weight": torch.ones(2, 8), "lora_up.weight": torch.tensor(1.0), "dora_scale": torch.ones(1)}
    for held in (halves, {**leaves, "lokr_w1": torch.tensor(1.0)}):  # a number in the place of a matrix
        save(tmp_path / "number.safetensors", {f"{stem}.{leaf}": tensor for leaf, tensor in held.items()}, {})
        assert "for several layers together" in faults(lambda: read(tmp_path / "number.safetensors"))
