"""What made the bundled VAE: norms that train quicker than torch's, and a base taken apart and packed again."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from benchmarks.miniature import measure_vae, pack, unpack
from benchmarks.miniature.quick_norm import quicken
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file

from lora_scripts.demo import world
from lora_scripts.formats.header import read_header

BASE = Path(world.__file__).parent / "assets" / "base.safetensors"


def test_quick_norms_have_torchs_gradients() -> None:
    torch.manual_seed(5)
    levels = (("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2)
    vae = AutoencoderKL(
        block_out_channels=(64, 32), layers_per_block=1, down_block_types=levels[0], up_block_types=levels[1]
    )
    for p in vae.parameters():
        p.data += 0.1 * torch.randn_like(p)
    vae = vae.double().to(memory_format=torch.channels_last)
    quick = copy.deepcopy(vae)
    quicken(quick)
    x = (torch.rand(2, 3, 16, 24) * 2 - 1).double().contiguous(memory_format=torch.channels_last).requires_grad_()
    outputs = [net(x).sample for net in (vae, quick)]
    assert torch.allclose(*outputs, atol=1e-9)
    towards = torch.randn_like(outputs[0])
    for y in outputs:
        (y * towards).sum().backward()
    for (name, p), q in zip(vae.named_parameters(), quick.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-7, atol=1e-9), name


def test_a_base_taken_apart_is_packed_as_it_was(tmp_path: Path) -> None:
    unpack.unpack(BASE, tmp_path / "work")
    pack.pack(tmp_path / "work", tmp_path / "again.safetensors")
    assert read_header(tmp_path / "again.safetensors").metadata == read_header(BASE).metadata
    before, after = load_file(BASE), load_file(tmp_path / "again.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_psnr_is_of_255() -> None:
    black, grey = (Image.new("RGB", (8, 8), (v, v, v)) for v in (0, 51))
    assert abs(measure_vae.psnr(black, grey) - 13.979) < 1e-3  # 20 log10 5
