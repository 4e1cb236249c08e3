"""`lora-scripts merge` and `unmerge`: against sums by hand, diffusers' own fusing and its own SDXL converters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers
from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

import tiny
from blocks import delta, mistake, random_lora, run, save, total
from lora_scripts.adapters.inject import remove
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.errors import UserError
from lora_scripts.families.base import LoadOptions
from lora_scripts.families.clip.tokenizer import clip_tokenizer
from lora_scripts.families.sd1.layout import text_rows, unet_rows
from lora_scripts.families.sdxl import names as sdxl_names
from lora_scripts.families.table import by_name, load_family
from lora_scripts.formats import header, io
from lora_scripts.formats.hashes import model_hashes
from lora_scripts.loras import kohya
from lora_scripts.loras.file import read
from lora_scripts.loras.on_model import apply
from lora_scripts.workshop import common, merge_record
from lora_scripts.workshop.checkpoint import open_checkpoint

EXTRA = {
    "model_ema.decay": torch.tensor(0.5),
    "model_ema.diffusion_modelinput_blocks00weight": torch.ones(3, 5),
    "alphas_cumprod": torch.linspace(1, 0.0047, 1000),
    "somebodys.own.key": torch.arange(7),
}


@pytest.fixture(scope="module")
def loras(family: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One in all layers, one in the UNet's middle and the text encoder."""
    folder = tmp_path_factory.mktemp("loras")
    made = {
        "a": random_lora(family, 2, 1.0, 1),
        "b": random_lora(family, 3, 6.0, 2, lambda p: ".mid_block" in p or p.startswith("text")),
    }
    return [save(folder / f"{name}.safetensors", w) for name, w in made.items()]


@pytest.fixture(scope="module")
def wide(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base as people have it: fp16 with EMA copies, a schedule, a key that nobody knows, and metadata."""
    tensors = {key: value.half() for key, value in load_file(base).items()}
    path = tmp_path_factory.mktemp("wide") / "wide.safetensors"
    io.save_safetensors(
        path, tensors | EXTRA, {"modelspec.title": "A base", "modelspec.hash_sha256": "0xabc", "x": "é"}
    )
    return path


def where(path: str) -> str:
    """The key of a module in the single file, by the table of the layout."""
    rows = (*unet_rows(tiny.LAYOUT), *text_rows(tiny.LAYOUT))
    keys = {row.hf.removeprefix("text_model.").removesuffix(".weight"): row.ldm for row in rows}
    return keys[path.partition(".")[2]]


@torch.no_grad()
def test_merged_then_drawn_is_drawn_with_the_loras(base: Path, loras: list[Path], family: Any, tmp_path: Path) -> None:
    output = tmp_path / "merged.safetensors"
    run("merge", f"{loras[0]}:0.8", f"{loras[1]}:-0.5", "--base", base, "--output", output)
    x, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([500])

    def answer(model: Any) -> torch.Tensor:
        return model.predict(x, t, model.encode_text(["a house"])["states"])

    plain = answer(family)
    on = [apply(family, read(path).weights, strength) for path, strength in zip(loras, (0.8, -0.5), strict=True)]
    applied = answer(family)
    for layers in reversed(on):
        remove(family.roots, layers)
    merged = answer(load_family(by_name("sd1"), output, LoadOptions(torch.device("cpu"), torch.float32)))
    assert (applied - plain).abs().max() > 0.1 * plain.abs().max()
    assert (merged - applied).abs().max() < 2e-5 * applied.abs().max()


def test_the_sum_is_rounded_once_and_the_rest_is_untouched(
    wide: Path, loras: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "merged.safetensors"
    run("merge", f"{loras[0]}:0.8", loras[1], "--base", wide, "--output", output)
    out = capsys.readouterr().out
    before, after = load_file(wide), load_file(output)
    parts = [(read(loras[0]).weights, 0.8), (read(loras[1]).weights, 1.0)]
    changed = {where(path): total(parts, path) for path in parts[0][0]}
    assert after.keys() == before.keys() and len(changed) == len(parts[0][0])
    lost = size = 0.0
    for key, tensor in before.items():
        assert after[key].dtype == tensor.dtype and after[key].shape == tensor.shape
        if key in changed:
            exact = tensor.double() + changed[key].view(tensor.shape)
            assert torch.equal(after[key], exact.half()), key
            lost += ((after[key].double() - exact) ** 2).sum().item()
            size += (changed[key] ** 2).sum().item()
        else:
            assert torch.equal(after[key], tensor), key
    assert f"{100 * (lost / size) ** 0.5:.2f} % of what the LoRAs change" in out
    one, two = header.read_header(wide), header.read_header(output)
    assert [*one.tensors] == [*two.tensors]  # also the order in the file
    told = json.loads(two.metadata.pop(merge_record.MERGED))
    assert two.metadata == {"modelspec.title": "A base", "x": "é"} and "modelspec.hash_sha256" in out
    assert [(row["name"], row["weight"]) for row in told] == [("a.safetensors", 0.8), ("b.safetensors", 1.0)]
    hashes = model_hashes(output)
    assert hashes.sha256 in out and hashes.autov2 in out and hashes.autov3 in out


def test_another_precision_leaves_schedules_alone(wide: Path, loras: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "merged.safetensors"
    run("merge", loras[1], "--base", wide, "--output", output, "--precision", "bf16")
    before, after, lora = load_file(wide), load_file(output), read(loras[1]).weights
    changed = {where(path): delta(w) for path, w in lora.items()}
    for key, tensor in before.items():
        model = key.startswith(("model", "cond_stage", "first_stage"))
        assert after[key].dtype == (torch.bfloat16 if model else tensor.dtype), key
        if key in changed:
            exact = tensor.double() + changed[key].view(tensor.shape)
            torch.testing.assert_close(after[key].double(), exact, rtol=2**-8, atol=1e-30)
        else:
            assert torch.equal(after[key], tensor.to(after[key].dtype))
    with safe_open(output, "pt") as file:  # every tensor where its type wants it: the library can map it
        assert all(file.get_tensor(key).shape == before[key].shape for key in before)


def test_unmerged_is_the_base_within_the_rounding_that_is_told(
    wide: Path, loras: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merged, again = tmp_path / "merged.safetensors", tmp_path / "again.safetensors"
    words = [f"{loras[0]}:0.8", f"{loras[1]}:-0.5"]
    run("merge", *words, "--base", wide, "--output", merged)
    capsys.readouterr()
    run("unmerge", *words, "--model", merged, "--output", again, "--compare", wide, "--json")
    told = json.loads(capsys.readouterr().out)
    before, after = load_file(wide), load_file(again)
    changed = {where(path) for path in read(loras[0]).weights}
    off = {key: (after[key].double() - before[key].double()).abs() for key in before}
    assert all(not off[key].any() for key in before if key not in changed)
    largest = max(off[key].max().item() for key in changed)
    everything = torch.cat([off[key].flatten() for key in changed])
    assert told["compared"] == pytest.approx(
        {"largest": largest, "mean": everything.mean().item(), "equal": (everything == 0).double().mean().item()}
    )
    assert 0 < largest <= told["bound"] * 1.001 and everything.mean() <= told["mean_bound"] and told["bound"] < 0.01
    assert header.read_header(again).metadata == {"modelspec.title": "A base", "x": "é"} and told["notes"] == []
    run("unmerge", f"{loras[0]}:0.7", "--model", merged, "--output", tmp_path / "other.safetensors")
    out = capsys.readouterr().out
    assert "does not say that a.safetensors:0.7 is in it; it says a.safetensors:0.8, b.safetensors:-0.5" in out


def test_a_float32_base_comes_back(base: Path, loras: list[Path], tmp_path: Path) -> None:
    merged, again = tmp_path / "merged.safetensors", tmp_path / "again.safetensors"
    run("merge", loras[0], "--base", base, "--output", merged)
    run("unmerge", loras[0], "--model", merged, "--output", again)
    before, after, between = load_file(base), load_file(again), load_file(merged)
    assert max((after[k] - before[k]).abs().max().item() for k in before) < 1e-6
    assert max((between[k] - before[k]).abs().max().item() for k in before) > 0.1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base as diffusers writes it, with a second copy of the weights that is a pickle, and a README."""
    unet, vae, text = tiny.models()
    schedule = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "steps_offset": 1,
        "clip_sample": False,
    }
    pipe = StableDiffusionPipeline(
        vae, text, unet=unet, tokenizer=clip_tokenizer(), scheduler=DDIMScheduler(**schedule),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("folder") / "base"
    pipe.save_pretrained(path)
    (path / "README.md").write_text("mine", encoding="utf-8")
    (path / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"old weights")
    return path


@torch.no_grad()
def test_a_diffusers_folder_is_what_diffusers_fuses(
    folder: Path, loras: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "merged"
    run("merge", f"{loras[0]}:0.8", "--base", folder, "--output", output)
    out = capsys.readouterr().out
    parts = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    ours = StableDiffusionPipeline.from_pretrained(output, local_files_only=True, **parts)
    theirs = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, **parts)
    theirs.load_lora_weights(str(loras[0].parent), weight_name=loras[0].name)
    theirs.fuse_lora(lora_scale=0.8)
    theirs.unload_lora_weights()
    for part in ("unet", "text_encoder", "vae"):
        one, two = getattr(ours, part).state_dict(), getattr(theirs, part).state_dict()
        assert one.keys() == two.keys()
        assert max((one[key] - two[key]).abs().max().item() for key in one) < 1e-6
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    made = {p.relative_to(output).as_posix() for p in output.rglob("*") if p.is_file()}
    assert names - made == {"unet/diffusion_pytorch_model.bin"} and not made - names
    assert "left out, because they hold the weights as they were: unet/diffusion_pytorch_model.bin" in out
    same = [n for n in made if not n.endswith("safetensors") or n.startswith("vae")]
    assert all((output / n).read_bytes() == (folder / n).read_bytes() for n in same) and "README.md" in same
    run("unmerge", f"{loras[0]}:0.8", "--model", output, "--output", tmp_path / "again", "--compare", folder, "--json")
    told = json.loads(capsys.readouterr().out)
    assert told["compared"]["largest"] < 1e-6 and told["notes"] == []


def sdxl(width: int = 8) -> dict[str, torch.Tensor]:
    """An SDXL checkpoint of the true names, 8 wide: every layer that a LoRA may change, and a little more."""
    g = torch.Generator().manual_seed(0)
    tensors = {"model.diffusion_model.label_emb.0.0.weight": torch.randn(width, width, generator=g)}
    for module in sdxl_names.modules():
        kernel = (3, 3) if module.path.endswith(("layers.2", "layers.3", ".op", ".conv")) else ()
        rows = 3 * width if module.share is not None else width
        tensors.setdefault(module.ldm, 0.1 * torch.randn(rows, width, *kernel, generator=g).half())
    context = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
    tensors[context] = torch.randn(width, 2048, generator=g).half()
    return tensors


def test_sdxl_goes_where_the_tables_say(tmp_path: Path) -> None:
    """Also into the thirds of the second text encoder's matrix, read back by diffusers' own converter."""
    base = tmp_path / "xl.safetensors"
    io.save_safetensors(base, sdxl())
    shapes, g = open_checkpoint(base), torch.Generator().manual_seed(1)
    lora = {}
    for module in sdxl_names.modules():
        shape = shapes.shape(module.path)
        up = torch.randn(shape[0], 2, *(1,) * (len(shape) - 2), generator=g)
        lora[module.path] = LoraWeights(torch.randn(2, *shape[1:], generator=g), up, 1.0)
    tensors = kohya.to_kohya(lora, sdxl_names.sdxl().kohya, dtype=torch.float32)
    io.save_safetensors(tmp_path / "lora.safetensors", tensors)
    run("merge", f"{tmp_path / 'lora.safetensors'}:0.5", "--base", base, "--output", tmp_path / "out.safetensors")
    before, after = sdxl(), load_file(tmp_path / "out.safetensors")
    for module in sdxl_names.modules():
        if module.share is None:
            exact = before[module.ldm].double() + delta(lora[module.path], 0.5).view(before[module.ldm].shape)
            assert torch.equal(after[module.ldm], exact.half()), module
    prefix = "conditioner.embedders.1.model."
    config = CLIPTextConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=32, num_attention_heads=1, projection_dim=8, vocab_size=9
    )
    one, two = (
        convert_open_clip_checkpoint(CLIPTextModelWithProjection(config), dict(s), prefix) for s in (before, after)
    )
    seen = 0
    for key in one:
        if key.endswith(("_proj.weight", "fc1.weight", "fc2.weight")) and ".layers." in key:
            path = "text_encoder_2." + key.removeprefix("text_model.").removesuffix(".weight")
            exact = one[key].double() + delta(lora[path], 0.5)
            assert torch.equal(two[key], exact.half()), key
            seen += 1
    assert seen == 32 * 6


def test_sdxl_names_are_those_of_the_published_model() -> None:
    """Counted as kohya's trainer counts, and led through diffusers' own conversion to the layers of its SDXL UNet."""
    modules = sdxl_names.modules()
    parts = [m.path.partition(".")[0] for m in modules]
    inside = ("transformer_blocks", "proj_in", "proj_out")
    assert sum(m.path.startswith("unet.") and any(word in m.path for word in inside) for m in modules) == 722
    assert parts.count("text_encoder") == 72 and parts.count("text_encoder_2") == 192
    config = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048, "use_linear_projection": True,
    }  # fmt: skip
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    blocks = ("down_blocks", "mid_block", "up_blocks")
    real = {
        "lora_unet_" + name.replace(".", "_")
        for name, layer in unet.named_modules()
        if name.startswith(blocks) and isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
    }
    state = {m.kohya + ".alpha": torch.tensor(1.0) for m in modules if m.path.startswith("unet.")}
    mapped = {key.removesuffix(".alpha") for key in _maybe_map_sgm_blocks_to_diffusers(dict(state), unet.config)}
    renamed = {
        "input_blocks": "down_blocks", "middle_block": "mid_block", "output_blocks": "up_blocks",
        "in_layers_2": "conv1", "out_layers_3": "conv2", "emb_layers_1": "time_emb_proj",
        "skip_connection": "conv_shortcut", "downsamplers_0_op": "downsamplers_0_conv",
    }  # fmt: skip
    for old, new in renamed.items():
        mapped = {name.replace(old, new) for name in mapped}
    assert real <= mapped
    assert all(name.endswith("conv_shortcut") for name in mapped - real)  # only where the width changes


def test_mistakes(
    base: Path, wide: Path, folder: Path, loras: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.safetensors"

    def told(*words: object) -> str:
        return mistake(capsys, "merge", *words)

    assert "over what is read" in told(loras[0], "--base", base, "--output", base, "--overwrite")
    assert "over what is read" in told(loras[0], "--base", base, "--output", loras[0], "--overwrite")
    assert "over what is read" in told(loras[0], "--base", folder, "--output", folder / "unet" / "merged")
    assert "must be a .safetensors" in told(loras[0], "--base", base, "--output", tmp_path / "x.ckpt")
    assert "the base is a folder" in told(loras[0], "--base", folder, "--output", out)
    (tmp_path / "mine").mkdir()
    assert "already there" in told(loras[0], "--base", folder, "--output", tmp_path / "mine", "--overwrite")
    assert "this is a LoRA" in told(loras[0], "--base", loras[1], "--output", out)
    assert "--data is for language models" in told(loras[0], "--base", base, "--output", out, "--data", tmp_path)
    assert "weight 0 changes nothing" in told(f"{loras[0]}:0", "--base", base, "--output", out)
    tensors = kohya.to_kohya(
        {sdxl_names.modules()[9].path: LoraWeights(torch.ones(1, 4), torch.ones(4, 1), 1.0)}, sdxl_names.sdxl().kohya
    )
    io.save_safetensors(tmp_path / "xl.safetensors", tensors)
    assert "the LoRAs are for SDXL" in told(tmp_path / "xl.safetensors", "--base", base, "--output", out)
    path = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    deep = "text_encoder.encoder.layers.7.mlp.fc1"
    wrong = {path: LoraWeights(torch.ones(2, 1280), torch.ones(1280, 2), 2.0)}
    wrong[deep] = LoraWeights(torch.ones(2, 16), torch.ones(32, 2), 2.0)
    save(tmp_path / "wrong.safetensors", wrong)
    words = told(tmp_path / "wrong.safetensors", "--base", base, "--output", out).splitlines()
    assert (
        len(words) == 2
        and any("for a weight [64, 64]" in w for w in words)
        and any("no such layer" in w for w in words)
    )
    assert "does not fit float16" in told(f"{loras[0]}:1e7", "--base", wide, "--output", out)
    assert not out.exists() and not list(tmp_path.glob(".lora*"))
    out.write_bytes(b"mine")
    assert "already exists" in told(loras[0], "--base", base, "--output", out) and out.read_bytes() == b"mine"
    run("merge", loras[0], "--base", base, "--output", out, "--overwrite")
    with pytest.raises(UserError, match="the disk has"):
        common.check_space(out, 10**18)
