"""Conversions there and back, bit for bit; held against diffusers' and PEFT's own reading of what they give."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import lora_files
from conftest import offline
from lora_files import FEW, KOHYA, MID, dense, tensors
from lora_scripts.adapters.algebra import bake as dora
from lora_scripts.adapters.algebra import precision
from lora_scripts.adapters.dora import DoraLayer, RowDoraLayer
from lora_scripts.adapters.layer import LoraLayer
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.cli import main
from lora_scripts.errors import UserError
from lora_scripts.families.names import Names
from lora_scripts.families.sd1.names import sd1
from lora_scripts.families.sdxl.names import sdxl
from lora_scripts.formats.hashes import with_hashes
from lora_scripts.formats.header import read_header
from lora_scripts.loras import alphas, kohya, reading
from lora_scripts.loras.consumers import CONSUMERS
from lora_scripts.loras.file import open_lora, plain
from lora_scripts.loras.naming import Naming, naming_of
from lora_scripts.loras.verify import check, expected_by
from lora_scripts.workshop.convert import convert

Q = f"{MID}.attn1.to_q"
FACTS = {
    "ss_output_name": "x",
    "ss_network_dim": "4",
    "ss_network_alpha": "2.0",
    "ss_v2": "False",
    "ss_base_model_version": "sd_v1",
}


def run(*words: object) -> None:
    with offline():
        assert main(["convert", *map(str, words)]) == 0


def same(a: dict[str, LoraWeights], b: dict[str, LoraWeights]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(
        torch.equal(a[p].down, b[p].down) and torch.equal(a[p].up, b[p].up) and a[p].alpha == b[p].alpha for p in a
    )


def exported(path: Path, modules: dict[str, LoraWeights], names: Mapping[str, str] = KOHYA, **facts: str) -> Path:
    """A kohya file with metadata and hashes, as every export of ours."""
    found = kohya.to_kohya(modules, names, dtype=torch.float32, mixed=True)
    return lora_files.write(path, found, with_hashes(found, FACTS | facts))


def test_names_as_published() -> None:
    n = sd1()
    path = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"
    assert n.original[path] == "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_out_0"
    assert n.diffusers[path] == path
    assert n.original["unet.up_blocks.2.upsamplers.0.conv"] == "lora_unet_output_blocks_8_2_conv"
    assert n.original["unet.mid_block.resnets.1.conv2"] == "lora_unet_middle_block_2_out_layers_3"
    text = "text_encoder.encoder.layers.3.mlp.fc1"
    assert n.diffusers[text] == "text_encoder.text_model.encoder.layers.3.mlp.fc1"
    assert n.original[text] == n.kohya[text] == "lora_te_text_model_encoder_layers_3_mlp_fc1"
    for table in (n.kohya, n.original, n.diffusers):
        assert len(set(table.values())) == len(table)
    assert set(n.original) <= set(n.in_kohyas) == set(n.diffusers)
    assert set(lora_files.TRAINABLE) <= set(n.original)  # what is missing there exists in no model


@pytest.mark.parametrize("way", ["diffusers", "original", "peft"])
@pytest.mark.parametrize(("rank", "alpha"), [(4, 2.0), (3, 3.0), (6, 0.75)])
def test_there_and_back_is_the_same_file(way: str, rank: int, alpha: float, tmp_path: Path) -> None:
    """Byte for byte in float32: tensors, alpha, metadata, hashes."""
    modules = lora_files.weights(rank=rank, alpha=alpha)
    start = exported(tmp_path / "start.safetensors", modules, ss_network_dim=str(rank), ss_network_alpha=str(alpha))
    there = tmp_path / ("there" if way == "peft" else "there.safetensors")
    run(start, "--to", way, "--output", there)
    run(there, "--to", "kohya", "--output", tmp_path / "back.safetensors")
    assert naming_of(open_lora(there).tensors) is Naming(way)
    assert (tmp_path / "back.safetensors").read_bytes() == start.read_bytes()


def test_every_format_into_every_other(tmp_path: Path) -> None:
    modules = lora_files.weights(lora_files.TRAINABLE[::9])
    at = exported(tmp_path / "0.safetensors", modules)
    for i, way in enumerate(["peft", "original", "diffusers", "peft", "diffusers", "original", "kohya"], 1):
        to = tmp_path / (str(i) if way == "peft" else f"{i}.safetensors")
        run(at, "--to", way, "--output", to)
        assert same(open_lora(to).modules(), modules), way
        at = to
    assert at.read_bytes() == (tmp_path / "0.safetensors").read_bytes()


@pytest.mark.parametrize(("names", "conv_in"), [(sd1(), "conv_in"), (sdxl(), "input_blocks_0_0")])
def test_layers_that_only_other_trainers_train_go_along(names: Names, conv_in: str, tmp_path: Path) -> None:
    """The first and the last layer and the time embedding, which lycoris-lora trains unless it is told not to."""
    modules = {path: LoraWeights(torch.ones(4, 8), torch.ones(8, 4), 2.0) for path in (Q, *names.untrained)}
    assert f"lora_unet_{conv_in}" == names.untrained["unet.conv_in"]
    at = exported(tmp_path / "0.safetensors", modules, names=names.in_kohyas)
    for way in ("diffusers", "original", "kohya"):
        to = tmp_path / f"{way}.safetensors"
        run(at, "--to", way, "--output", to)
        assert same(open_lora(to).modules(), modules), way
        at = to
    assert at.read_bytes() == (tmp_path / "0.safetensors").read_bytes()
    resized = ["resize", str(at), "--rank", "2", "--output", str(tmp_path / "small.safetensors")]
    assert main(resized) == 0


def test_a_layer_without_a_name_is_told_in_a_line(tmp_path: Path) -> None:
    """The projection of SDXL's second text encoder, in ComfyUI's names."""
    stem = "text_encoders.clip_g.transformer.text_projection"
    keys = {f"{stem}.lora_A.weight": torch.ones(2, 8), f"{stem}.lora_B.weight": torch.ones(8, 2)}
    keys |= {
        f"{sdxl().kohya[Q]}.lora_down.weight": torch.ones(2, 8),
        f"{sdxl().kohya[Q]}.lora_up.weight": torch.ones(8, 2),
    }
    file = lora_files.write(tmp_path / "x.safetensors", keys, {"ss_base_model_version": "sdxl_base_v1-0"})
    with pytest.raises(
        UserError, match=r"1 modules have no name in a diffusers LoRA file: text_encoder_2\.text_projection"
    ):
        convert(file, "diffusers")


def test_a_scale_that_is_no_power_of_two_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    modules = lora_files.weights(rank=3, alpha=1.0)
    start = exported(tmp_path / "x.safetensors", modules)
    run(start, "--to", "diffusers")
    assert "no power of two" in capsys.readouterr().out
    back = open_lora(tmp_path / "x-diffusers.safetensors").modules()
    for path, w in modules.items():
        assert back[path].alpha == 1.0
        torch.testing.assert_close(back[path].up, w.up, rtol=2.4e-7, atol=0)  # the last bit or two
    small = {Q: LoraWeights(torch.ones(4, 64), torch.full((64, 4), 3 * 2.0**-24), 2.0)}  # fp16 counts by 2 ** -24 there
    run(lora_files.write(tmp_path / "small.safetensors", tensors(small, torch.float16)), "--to", "diffusers")
    assert "rounds the smallest of them: --dtype fp32" in capsys.readouterr().out
    run(start, "--to", "peft")
    assert "no power of two" not in capsys.readouterr().out
    assert same(open_lora(tmp_path / "x-peft").modules(), modules)
    # In half precision alpha is what it was, and ΔW what stands in the file: it is not rounded a second time.
    run(start, "--to", "diffusers", "--dtype", "fp16")
    written = load_file(tmp_path / "x-diffusers-fp16.safetensors")
    up, down = (written[f"{Q}.lora_{side}.weight"].double() for side in "BA")
    read = open_lora(tmp_path / "x-diffusers-fp16.safetensors").modules()[Q]
    assert read.alpha == 1.0
    torch.testing.assert_close(dense(read).double(), up @ down, rtol=1e-6, atol=1e-12)


def test_alphas_that_differ_become_one_without_rounding_in_half_precision(tmp_path: Path) -> None:
    """The file is fp16; what is asked for is not."""
    modules = lora_files.weights(FEW[:2]) | lora_files.weights(FEW[2:3], 4, 3.0)
    start = lora_files.write(tmp_path / "x.safetensors", tensors(modules, torch.float16))
    run(start, "--to", "kohya", "--dtype", "fp32", "--output", tmp_path / "one.safetensors")
    held, one = open_lora(start).modules(), open_lora(tmp_path / "one.safetensors").modules()
    assert {w.alpha for w in one.values()} == {4.0}
    for path, w in held.items():
        torch.testing.assert_close(dense(one[path]), dense(w), rtol=1e-6, atol=1e-9)


def test_what_the_folded_scale_makes_too_large_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In half precision, of which kohya's form holds every number: down 1, up 4000, and 64 times that folded."""
    large = {FEW[0]: LoraWeights(torch.ones(4, 48), torch.full((48, 4), 4000.0), 256.0)}
    start, there = exported(tmp_path / "x.safetensors", large), tmp_path / "there.safetensors"
    line = ["convert", str(start), "--to", "diffusers", "--output", str(there), "--dtype"]
    assert main([*line, "fp16"]) == 2
    assert "not finite numbers; train again with a lower learning rate, or save in fp32" in capsys.readouterr().err
    assert not there.exists()
    assert main([*line, "fp32"]) == 0


def mixed() -> dict[str, LoraWeights]:
    return lora_files.weights() | lora_files.weights(FEW[:3], rank=2, alpha=4.0) | lora_files.weights(FEW[5:6], 3, 1.5)


@pytest.mark.parametrize("way", ["diffusers", "original", "peft"])
def test_mixed_ranks_can_be_kept(way: str, tmp_path: Path) -> None:
    start = exported(tmp_path / "x.safetensors", mixed())
    there = tmp_path / ("there" if way == "peft" else "there.safetensors")
    run(start, "--to", way, "--keep-ranks", "--output", there)
    run(there, "--to", "kohya", "--keep-ranks", "--output", tmp_path / "back.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes() == start.read_bytes()


def test_mixed_ranks_are_padded_to_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = exported(tmp_path / "x.safetensors", mixed(), ss_network_dim="Dynamic")
    run(start, "--to", "kohya", "--output", tmp_path / "one.safetensors")
    assert "all padded to rank 4, alpha 4" in capsys.readouterr().out
    one = open_lora(tmp_path / "one.safetensors")
    modules = one.modules()
    assert {(w.rank, w.alpha) for w in modules.values()} == {(4, 4.0)}
    assert (one.metadata["ss_network_dim"], one.metadata["ss_network_alpha"]) == ("4", "4.0")
    for path, w in mixed().items():
        torch.testing.assert_close(dense(modules[path]), dense(w), rtol=1e-6, atol=1e-9)


def old_diffusers(modules: dict[str, LoraWeights], prefix: str) -> dict[str, Tensor]:
    """As diffusers 0.14 … 0.20 saved: attention processors, and `lora_linear_layer` in the text encoder."""
    found = {}
    for path, w in modules.items():
        stem = path.replace("text_encoder.", "text_encoder.text_model.")
        if ".attn" in stem:
            for new, old in (("to_out.0", "to_out"), ("to_q", "to_q"), ("to_k", "to_k"), ("to_v", "to_v")):
                if stem.endswith(new):
                    stem = stem.removesuffix(new) + f"processor.{old}_lora"
        elif "self_attn" in stem:
            stem += ".lora_linear_layer" if prefix else ""
        else:
            stem += ".lora" if stem.startswith("unet.") else ".lora_linear_layer"
        stem = stem if prefix else stem.removeprefix("unet.")
        found |= {f"{stem}.down.weight": w.down, f"{stem}.up.weight": w.up * (w.alpha / w.rank)}
    return found


def test_old_names_of_diffusers_are_read(tmp_path: Path) -> None:
    """And as diffusers reads them, which still knows them."""
    paths = [f"{MID}.attn1.to_q", f"{MID}.attn1.to_k", f"{MID}.attn1.to_v", f"{MID}.attn1.to_out.0", f"{MID}.ff.net.2"]
    modules = lora_files.weights([*paths, *(p for p in FEW if p.startswith("text_encoder."))])
    path = lora_files.write(tmp_path / "old.safetensors", old_diffusers(modules, "unet."))
    read = open_lora(path).modules()
    assert {w.alpha for w in read.values()} == {4.0} and read.keys() == modules.keys()
    for name, w in modules.items():
        torch.testing.assert_close(dense(read[name]), dense(w), rtol=1e-6, atol=1e-9)
    expected, faults = expected_by(open_lora(path), lora_files.SMALL)
    (verdict,) = check(open_lora(path), lora_files.SMALL, expected, ["diffusers"])
    assert verdict.ok and not faults, verdict
    bare = {k: v for k, v in old_diffusers(lora_files.weights(paths[:4]), "").items()}
    assert reading.read(bare, sd1()).keys() == set(paths[:4])


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", "fp8"])
def test_what_it_writes_loads_in_diffusers_and_peft(dtype: str, tmp_path: Path) -> None:
    start = exported(tmp_path / "x.safetensors", lora_files.weights())
    for way in ("diffusers", "kohya"):
        run(start, "--to", way, "--dtype", dtype, "--output", tmp_path / f"{way}.safetensors")
        source = open_lora(tmp_path / f"{way}.safetensors")
        assert {str(t.dtype)[6:] for k, t in source.tensors.items() if not k.endswith("alpha")} == {
            {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "fp8": "float8_e4m3fn"}[dtype]
        }
        expected, _ = expected_by(source, lora_files.SMALL)
        wanted = CONSUMERS[:2] if way == "diffusers" else CONSUMERS
        for verdict in check(source, lora_files.SMALL, expected, wanted):
            assert verdict.ok and verdict.right == len(FEW), verdict


def test_pefts_own_loader_takes_the_folder(tmp_path: Path) -> None:
    """PeftModel.from_pretrained on what we write, and our reading of what PEFT writes: rsLoRA, patterns of ranks."""
    from peft import LoraConfig, PeftModel, get_peft_model

    modules = mixed()
    run(exported(tmp_path / "x.safetensors", modules), "--to", "peft", "--output", tmp_path / "ours")
    roots = lora_files.SMALL.facts.build(lora_files.SMALL.path)
    for part, model in roots.items():
        loaded = PeftModel.from_pretrained(model, tmp_path / "ours" / part)
        layers = dict(loaded.named_modules())
        for path, w in modules.items():
            root, _, inner = path.partition(".")
            if root == part:
                delta = layers[f"base_model.model.{inner}"].get_delta_weight("default").double()
                torch.testing.assert_close(delta, dense(w), rtol=1e-5, atol=1e-8)
    config = LoraConfig(r=4, lora_alpha=3, use_rslora=True, target_modules=["to_q", "conv1"], rank_pattern={"conv1": 2})
    theirs = get_peft_model(lora_files.SMALL.facts.build(lora_files.SMALL.path)["unet"], config)
    for name, parameter in theirs.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter)
    theirs.save_pretrained(tmp_path / "theirs")
    read = open_lora(tmp_path / "theirs")
    known = sd1().kohya
    layers = dict(theirs.named_modules())
    assert {p.rpartition(".")[2] for p in read.modules()} == {"to_q", "conv1"} and set(read.modules()) <= set(known)
    for path, w in read.modules().items():
        delta = layers[path.replace("unet.", "base_model.model.")].get_delta_weight("default").double()
        torch.testing.assert_close(dense(w), delta, rtol=1e-5, atol=1e-6)


def test_precision_is_told_and_never_destroys() -> None:
    _, loss = precision.cast(lora_files.weights(), torch.float32)
    assert str(loss) == "no bit is lost"
    got, loss = precision.cast(lora_files.weights(), torch.bfloat16)
    real = max(float((dense(got[p]) - dense(w)).norm() / dense(w).norm()) for p, w in lora_files.weights().items())
    assert loss.worst == pytest.approx(real, rel=1e-9) and 1e-3 < loss.worst < 1e-2
    small = {Q: LoraWeights(torch.full((4, 64), 1e-4), torch.full((64, 4), 1e-9), 4.0)}
    with pytest.raises(UserError, match=r"fp16 would destroy unet\.mid_block.*100 %.*use bf16"):
        precision.cast(small, torch.float16)
    large = {Q: LoraWeights(torch.full((4, 64), 1e5), torch.ones(64, 4), 4.0)}
    with pytest.raises(UserError, match="holds values too large for fp16"):
        precision.cast(large, torch.float16)
    with pytest.raises(UserError, match="holds values too large for fp8"):
        precision.cast({Q: LoraWeights(torch.full((4, 64), 1e4), torch.full((64, 4), 1e4), 4.0)}, torch.float8_e4m3fn)
    some = torch.ones(4, 64)
    some[0, :3] = 1e-9
    _, loss = precision.cast({Q: LoraWeights(some, torch.ones(64, 4), 4.0)}, torch.float16)
    assert loss.vanished == 3 and "3 of 512 values round to zero" in str(loss)


def test_fp8_is_balanced_between_the_factors() -> None:
    """B of a young LoRA is far below fp8's smallest number; a power of two from A saves it, and no digit changes."""
    w = LoraWeights(torch.randn(4, 64), 1e-4 * torch.randn(64, 4), 4.0)
    got, loss = precision.cast({Q: w}, torch.float8_e4m3fn)
    assert loss.worst < 0.1 and float((dense(got[Q]) - dense(w)).norm() / dense(w).norm()) < 0.1
    assert not bool((w.up.to(torch.float8_e4m3fn).float() != 0).any())  # unbalanced, all of it would vanish


def dora_by_hand(w: LoraWeights, base: Tensor) -> Tensor:
    """Column by column, as the paper has it."""
    assert w.dora is not None
    moved = base.double() + dense(w)
    out = torch.empty_like(moved)
    for i in range(base.shape[1]):
        out[:, i] = w.dora.double().flatten()[i] * moved[:, i] / moved[:, i].norm()
    return out - base.double()


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3, 3)])
def test_dora_is_baked_as_the_paper_says(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    more = (1,) * (len(shape) - 2)
    base = torch.randn(shape)
    w = LoraWeights(torch.randn(2, *shape[1:]), torch.randn(6, 2, *more), 1.0, torch.rand(1, 5, *more) + 0.5)
    wanted = dora_by_hand(w, base)
    torch.testing.assert_close(dora.change(w, base), wanted, rtol=1e-10, atol=1e-12)
    full = dora.bake(w, base, 100)
    assert full.energy == pytest.approx(1.0) and full.weights.rank <= 6 and full.weights.dora is None
    torch.testing.assert_close(dense(full.weights), wanted, rtol=1e-7, atol=1e-9)
    low = dora.bake(w, base, 2)
    values = torch.linalg.svdvals(wanted.flatten(1))
    assert low.weights.rank == 2
    assert low.energy == pytest.approx(float((values[:2] ** 2).sum() / (values**2).sum()))
    assert float((dense(low.weights) - wanted).norm()) == pytest.approx(float(values[2:].norm()), rel=1e-6)
    with pytest.raises(UserError, match="neither one number an input nor one an output"):
        dora.change(LoraWeights(w.down, w.up, 1.0, torch.ones(1, 4)), base)


@pytest.mark.parametrize("kind", [DoraLayer, RowDoraLayer])
def test_what_of_a_weight_is_all_zeros_stays_so_under_a_dora(kind: type[LoraLayer]) -> None:
    """Its length is 0, so its direction is none: the layer leaves it, and so do file and base."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(4, 4, bias=False)
    linear.weight.data[:, 1] = linear.weight.data[1] = 0
    layer = kind(linear, 2, 1.0)
    values = {"down": torch.randn(2, 4), "up": torch.randn(4, 2)}
    values["down"][:, 1] = values["up"][1] = 0
    layer.load({**layer.values(), **values})
    leaves, x = layer.leaves(), torch.randn(3, 4)
    w = LoraWeights(leaves["lora_down.weight"], leaves["lora_up.weight"], 1.0, leaves["dora_scale"])
    wanted = layer(x) - linear(x)
    assert wanted.isfinite().all() and wanted.abs().max() > 0.1
    torch.testing.assert_close(x @ layer.delta().T, wanted, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(x @ dora.change(w, linear.weight.detach()).float().T, wanted, rtol=1e-4, atol=1e-6)


def test_the_command_bakes_a_dora(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = load_file(base)
    keys = {
        f"{MID}.attn1.to_q": "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight",
        "unet.mid_block.resnets.0.conv1": "model.diffusion_model.middle_block.0.in_layers.2.weight",
        FEW[-1]: "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
    }
    modules = lora_files.weights(list(keys))
    for path, key in keys.items():
        lengths = held[key].transpose(0, 1).flatten(1).norm(dim=1) * 1.1
        shaped = lengths.reshape(1, -1, *(1,) * (held[key].dim() - 2))
        modules[path] = LoraWeights(modules[path].down, modules[path].up, 2.0, shaped)
    start = lora_files.write(tmp_path / "dora.safetensors", tensors(modules))
    run(start, "--to", "kohya", "--bake-dora", "--base", base, "--rank", 64, "--output", tmp_path / "plain.safetensors")
    assert "DoRA baked: 3 modules at rank 64 keep 100.0 %" in capsys.readouterr().out
    plain = open_lora(tmp_path / "plain.safetensors").modules()
    for path, key in keys.items():
        torch.testing.assert_close(dense(plain[path]), dora_by_hand(modules[path], held[key]), rtol=1e-4, atol=1e-6)
    assert main(["resize", str(start), "--rank", "2", "--output", str(tmp_path / "x.safetensors")]) == 2
    hinted = shlex.split(capsys.readouterr().err.partition("lora-scripts ")[2].replace("BASE", str(base)))
    assert main([*hinted, "--output", str(tmp_path / "hinted.safetensors")]) == 0
    assert open_lora(tmp_path / "hinted.safetensors").modules().keys() == plain.keys()
    capsys.readouterr()
    for way in ("diffusers", "peft"):
        assert main(["convert", str(start), "--to", way]) == 2
        assert "3 modules are DoRA" in capsys.readouterr().err
    run(start, "--to", "original")
    assert torch.equal(open_lora(tmp_path / "dora-original.safetensors").modules()[Q].dora, modules[Q].dora)


def test_mistakes_are_told(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = str(exported(tmp_path / "x.safetensors", lora_files.weights()))
    odd = lora_files.write(tmp_path / "odd.safetensors", {f"unet.{MID[5:]}.attn1.to_p.lora_A.weight": torch.ones(2, 4)})
    half = lora_files.write(tmp_path / "half.safetensors", {f"{Q}.lora_A.weight": torch.ones(4, 64)})
    folder = tmp_path / "models"  # of other LoRAs, as PEFT has them, and of a person's own files
    (folder / "mine").mkdir(parents=True)
    kept = [folder / "mine" / "adapter_config.json", folder / "notes.txt"]
    for file in kept:
        file.write_text("{}")
    mistakes = {
        (start, "--to", "kohya", "--rank", "4"): "do nothing without --bake-dora",
        (start, "--to", "kohya", "--bake-dora"): "--bake-dora needs the base",
        (start, "--to", "kohya", "--bake-dora", "--base", str(base)): "no module of this file is a DoRA",
        (start, "--to", "peft", "--output", str(tmp_path / "y.safetensors")): "PEFT's form is a folder",
        (start, "--to", "kohya", "--output", start, "--overwrite"): "would be written over what is read",
        (start, "--to", "original", "--output", str(half)): "already exists; give --output another name, or add",
        (start, "--to", "peft", "--output", str(folder), "--overwrite"): "is a folder that is already there",
        (start, "--to", "kohya", "--output", str(tmp_path / "y")): "must end in .safetensors",
        (str(odd), "--to", "kohya"): "unknown key unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_p",
        (str(half), "--to", "kohya"): f"{Q} has no .lora_B.weight",
        (str(base), "--to", "kohya"): "not a LoRA",
        (str(tmp_path), "--to", "kohya"): "holds no adapter_config.json",
    }
    for words, told in mistakes.items():
        assert main(["convert", *words]) == 2
        assert told in capsys.readouterr().err, words
    assert sorted(p for p in folder.rglob("*") if p.is_file()) == kept
    assert sorted(p.name for p in tmp_path.glob("*.*")) == ["half.safetensors", "odd.safetensors", "x.safetensors"]


def test_private_keys_of_one_format_do_not_reach_another(tmp_path: Path) -> None:
    stale = {"lora_adapter_metadata": "{}", "modelspec.hash_sha256": "0x1"}
    start = exported(tmp_path / "x.safetensors", lora_files.weights(), **stale)
    run(start, "--to", "diffusers")
    told = read_header(tmp_path / "x-diffusers.safetensors").metadata
    assert json.loads(told[alphas.ALPHA_KEY]) == 2.0 and not told.keys() & stale.keys()
    body = (tmp_path / "x-diffusers.safetensors").read_bytes()
    length = 8 + int.from_bytes(body[:8], "little")
    assert told["sshs_model_hash"] == hashlib.sha256(body[length:]).hexdigest()
    with pytest.raises(UserError, match=r"metadata lora_scripts\.alpha is not readable"):
        tensors_there = open_lora(tmp_path / "x-diffusers.safetensors").tensors
        reading.read(tensors_there, sd1(), metadata={alphas.ALPHA_KEY: "?"})


def test_words_in_a_lora_stay_in_kohyas_names_and_are_told_where_they_cannot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors = {"bundle_emb.zibbo.string_to_param.*": torch.ones(2, 16)}
    found = tensors(lora_files.weights()) | vectors
    start = lora_files.write(tmp_path / "x.safetensors", found, with_hashes(found, FACTS))
    run(start, "--to", "original")
    run(tmp_path / "x-original.safetensors", "--to", "kohya", "--output", tmp_path / "back.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes() == start.read_bytes()
    assert "zibbo" not in capsys.readouterr().out
    run(start, "--to", "diffusers")
    assert "the words in x.safetensors (zibbo) do not go in" in capsys.readouterr().out
    assert not load_file(tmp_path / "x-diffusers.safetensors").keys() & vectors.keys()


def test_a_dora_is_refused_where_nobody_minds_it() -> None:
    found = tensors(lora_files.weights([Q])) | {f"{KOHYA[Q]}.dora_scale": torch.ones(1, 64)}
    modules = reading.read(found, sd1())
    with pytest.raises(UserError, match="a DoRA"):
        plain(modules)
    w = modules[Q]
    assert isinstance(w, LoraWeights) and w.dora is not None
