"""The one reader of LoRA files: every naming in every command, and files that other libraries wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import blocks
import lora_files
import tiny
from lora_files import FACTS, KOHYA
from lora_scripts.adapters import lycoris as formulas
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.cli import main
from lora_scripts.errors import UserError
from lora_scripts.families.base import LoadOptions
from lora_scripts.families.sd1.names import STANDARD, sd1, sd1_base
from lora_scripts.families.table import by_name, load_pictures
from lora_scripts.loras import alphas, dialects, file, kohya, reading
from lora_scripts.loras.stack import LoraStack, Worn
from lora_scripts.loras.verify import verify

SOME = lora_files.weights(lora_files.TRAINABLE)
UNET = {path: w for path, w in SOME.items() if path.startswith("unet.")}
"""For the ways that have no names of their own in the text encoder."""


def in_kohya(folder: Path) -> Path:
    return lora_files.write(folder / "kohya.safetensors", lora_files.tensors(SOME), {"ss_base_model_version": "sd_v1"})


def in_original(folder: Path) -> Path:
    made = kohya.to_kohya(SOME, sd1().original, dtype=torch.float32)
    return lora_files.write(folder / "original.safetensors", made)


def in_te1(folder: Path) -> Path:
    made = {key.replace("lora_te_", "lora_te1_"): value for key, value in lora_files.tensors(SOME).items()}
    return lora_files.write(folder / "te1.safetensors", made)


def in_derived(folder: Path) -> Path:
    made = {key.replace("lora_te_text_model_", "lora_te_"): value for key, value in lora_files.tensors(SOME).items()}
    return lora_files.write(folder / "derived.safetensors", made)


def in_diffusers(folder: Path) -> Path:
    folded = dialects.to_diffusers(SOME, sd1(), torch.float32)
    return lora_files.write(folder / "diffusers.safetensors", folded.tensors, folded.metadata)


def in_old_diffusers(folder: Path) -> Path:
    """Attention processors as diffusers kept them before 0.20, without alpha."""
    made = {}
    for path, w in SOME.items():
        stem = sd1().diffusers[path]
        if ".attn1." in path or ".attn2." in path:
            parent, _, leaf = stem.rpartition(".to_")
            stem = f"{parent}.processor.to_{leaf.removesuffix('.0')}_lora"
        else:
            stem = f"{stem}.lora"
        made |= {f"{stem}.down.weight": w.down, f"{stem}.up.weight": w.up * (w.alpha / w.rank)}
    return lora_files.write(folder / "old.safetensors", made)


def in_native(folder: Path) -> Path:
    """Published names with their dots, as ComfyUI has them and OneTrainer writes them; alpha beside the matrices."""
    layers = {layer.path: layer for layer in sd1_base(STANDARD, shapes=False).layers}
    made = {}
    for path, w in SOME.items():
        ours = layers[path]
        stem = f"diffusion_model.{ours.ldm}" if ours.unet else f"text_encoders.clip_l.transformer.{ours.hf}"
        made |= {f"{stem}.lora_A.weight": w.down, f"{stem}.lora_B.weight": w.up, f"{stem}.alpha": torch.tensor(w.alpha)}
    return lora_files.write(folder / "native.safetensors", made)


def in_peft(folder: Path) -> Path:
    for part, adapter in dialects.to_peft(SOME, {"text_encoder": ""}).items():
        (folder / "peft" / part).mkdir(parents=True)
        save_file(adapter.tensors, folder / "peft" / part / file.ADAPTER_WEIGHTS)
        (folder / "peft" / part / file.ADAPTER_CONFIG).write_text(json.dumps(adapter.config))
    return folder / "peft"


WAYS = [in_kohya, in_original, in_te1, in_derived, in_diffusers, in_old_diffusers, in_native, in_peft]


def merged_and_combined(lora: Path, base: Path, folder: Path) -> tuple[dict[str, Tensor], file.LoraFile]:
    """What two commands make of a LoRA."""
    assert main(["merge", f"{lora}:0.5", "--base", str(base), "--output", str(folder / "m.safetensors")]) == 0
    second = blocks.save(folder / "second.safetensors", lora_files.weights(seed=3), ss_base_model_version="sd_v1")
    assert main(["combine", f"{lora}:0.5", f"{second}:1", "--output", str(folder / "c.safetensors")]) == 0
    return load_file(folder / "m.safetensors"), file.read(folder / "c.safetensors")


@pytest.fixture(scope="module")
def of_kohyas(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], file.LoraFile]:
    folder = tmp_path_factory.mktemp("kohya")
    return merged_and_combined(in_kohya(folder), base, folder)


@pytest.mark.parametrize("way", WAYS)
def test_every_command_takes_every_naming(way: Any, base: Path, of_kohyas: Any, tmp_path: Path) -> None:
    """merge, combine and generate do with each what they do with kohya's file of the same LoRA."""
    path, (one, combined) = way(tmp_path), of_kohyas
    other, also = merged_and_combined(path, base, tmp_path)
    assert one.keys() == other.keys()
    assert all(torch.allclose(one[key], other[key], rtol=1e-6, atol=1e-7) for key in one)
    check_read(also.modules, {path: lora_files.dense(w) for path, w in combined.weights.items()})
    family = load_pictures(base, LoadOptions(torch.device("cpu"), torch.float32))
    stack = LoraStack(family)
    stack.wear([Worn(path, 1.0, 1.0)])
    for module, layer in stack.layers[0].items():
        torch.testing.assert_close(layer.delta(), lora_files.dense(SOME[module]).float(), rtol=1e-5, atol=1e-8)
    assert stack.layers[0].keys() == SOME.keys()


def test_the_family_is_told_by_the_tables(tmp_path: Path) -> None:
    """SD 1.x with original names or lora_te1_ is not SDXL; SDXL in diffusers' block names is not SD 1.x."""
    for way in (in_original, in_te1, in_derived, in_diffusers, in_peft):
        assert file.family_of(way(tmp_path)) is FACTS, way
    names = by_name("sdxl").names()
    w = LoraWeights(torch.randn(2, 8), torch.randn(8, 2), 2.0)
    for table in (names.kohya, names.diffusers):
        made = kohya.to_kohya(dict.fromkeys(table, w), table, dtype=torch.float32)
        assert file.family_of(lora_files.write(tmp_path / "xl.safetensors", made)).name == "sdxl"
    flux = {f"lora_unet_single_blocks_57_linear2.{leaf}": torch.ones(2, 2) for leaf in ("lora_down.weight",)}
    with pytest.raises(UserError, match="this is a LoRA for FLUX"):
        file.family_of(lora_files.write(tmp_path / "flux.safetensors", flux))


def test_a_lora_of_another_family_is_told_in_one_line(base: Path, tmp_path: Path) -> None:
    names = by_name("sdxl").names().kohya
    made = kohya.to_kohya(dict.fromkeys(names, LoraWeights(torch.ones(1, 4), torch.ones(4, 1), 1.0)), names)
    path = lora_files.write(tmp_path / "xl.safetensors", made)
    with pytest.raises(UserError, match=r"this LoRA is for SDXL, the base model is Stable Diffusion 1\.x"):
        file.read(path, FACTS)


def peft_model(root: nn.Module, targets: list[str], **settings: Any) -> nn.Module:
    """PEFT's layers with random values on a part of the tiny model."""
    root.add_adapter(peft.LoraConfig(target_modules=targets, init_lora_weights=False, **settings), "default")
    return root


def meant_by_peft(root: nn.Module, part: str) -> dict[str, Tensor]:
    return {
        f"{part}.{name.removeprefix('text_model.')}": module.get_delta_weight("default").detach()
        for name, module in root.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }


def check_read(modules: Any, wanted: dict[str, Tensor]) -> None:
    assert modules.keys() == wanted.keys()
    for path, delta in wanted.items():
        w = modules[path]
        assert (lora_files.dense(w) - delta).abs().max() <= 1e-6 * delta.abs().max(), path


SETTINGS: list[dict[str, Any]] = [
    {"r": 4, "lora_alpha": 2},
    {"r": 4, "lora_alpha": 4, "use_rslora": True},
    {"r": 4, "lora_alpha": 6, "rank_pattern": {"to_k": 2}, "alpha_pattern": {r"attn2\.to_q": 1, "mid_block.*to_v": 3}},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_diffusers_keeps_alpha_in_its_metadata(settings: dict[str, Any], base: Path, tmp_path: Path) -> None:
    """`lora_adapter_metadata`, which diffusers' own save_lora_weights writes; the ΔW of convert, merge and verify."""
    unet, _, text = tiny.models()
    peft_model(unet, ["to_q", "to_k", "to_v"], **settings)
    peft_model(text, ["q_proj", "out_proj"], r=2, lora_alpha=6)
    layers = {"unet": unet, "text_encoder": text}
    states = {
        f"{part}_lora_layers": convert_state_dict_to_diffusers(peft.get_peft_model_state_dict(root))
        for part, root in layers.items()
    }
    StableDiffusionPipeline.save_lora_weights(tmp_path, **states, **_collate_lora_metadata(layers))
    (path,) = tmp_path.glob("*.safetensors")
    wanted = meant_by_peft(unet, "unet") | meant_by_peft(text, "text_encoder")
    check_read(file.read(path).modules, wanted)
    assert main(["convert", str(path), "--to", "kohya", "--output", str(tmp_path / "k.safetensors")]) == 0
    check_read(file.read(tmp_path / "k.safetensors").modules, wanted)
    verdicts = {v.consumer: v for v in verify(path, base, None, ["diffusers", "PEFT", "A1111"])}
    assert verdicts["diffusers"].ok and verdicts["PEFT"].ok and not verdicts["A1111"].ok


def test_a_unet_that_diffusers_saved_alone(tmp_path: Path) -> None:
    unet, _, _ = tiny.models()
    peft_model(unet, ["to_q"], r=4, lora_alpha=1)
    unet.save_lora_adapter(tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    check_read(file.read(path).modules, meant_by_peft(unet, "unet"))


@pytest.mark.parametrize("settings", SETTINGS)
def test_pefts_own_folder(settings: dict[str, Any], tmp_path: Path) -> None:
    unet, _, text = tiny.models()
    models = {
        "unet": peft.get_peft_model(unet, peft.LoraConfig(target_modules=["to_q", "to_k", "to_v"], **settings)),
        "text_encoder": peft.get_peft_model(text, peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj"])),
    }
    wanted = {}
    for part, model in models.items():
        for p in model.parameters():
            if p.requires_grad:
                p.data.normal_()
        model.save_pretrained(tmp_path / part)
        wanted |= meant_by_peft(model.base_model.model, part)
    check_read(file.read(tmp_path).modules, wanted)
    check_read(
        file.read(tmp_path / "unet" / file.ADAPTER_WEIGHTS).modules,
        {path: delta for path, delta in wanted.items() if path.startswith("unet.")},
    )


@pytest.mark.parametrize("preset", ["attn-mlp", "unet-convblock-only"])
@pytest.mark.parametrize("algo", ["lora", "loha", "lokr", "diag-oft"])
def test_files_of_lycoris_own_network(algo: str, preset: str, tmp_path: Path) -> None:
    """lycoris-lora's network for kohya's trainer, alpha unlike rank, saved by itself; its layers' own outputs."""
    networks = pytest.importorskip("lycoris.kohya")
    unet, _, text = tiny.models()
    alpha = 0.0 if algo == "diag-oft" else 2.0
    network = networks.create_network(
        1.0, 4, alpha, None, text, unet, algo=algo, conv_dim=4, conv_alpha=alpha, factor=4, preset=preset
    )
    network.apply_to(text, unet, True, True)
    for number, p in enumerate(network.parameters()):
        p.data.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(number)))
    path = tmp_path / f"{algo}.safetensors"
    network.save_weights(str(path), torch.float32, {})
    modules, paths = file.read(path).modules, sd1().paths
    assert len(modules) == len(network.loras) > 60
    for lora in network.loras:
        module, frozen = modules[paths[lora.lora_name]], lora.org_module[0]
        size = frozen.weight.shape
        x = torch.randn(2, *((size[1],) if len(size) == 2 else (size[1], 5, 5)))
        theirs = lora(x) - lora.org_forward(x)
        change = _weight(module, frozen.weight)
        if len(size) == 2:
            ours = x @ change.T
        else:
            ours = torch.nn.functional.conv2d(x, change, None, frozen.stride, frozen.padding)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=lora.lora_name)


def _weight(change: reading.Change, weight: Tensor) -> Tensor:
    if isinstance(change, LoraWeights):
        return lora_files.dense(change).float().view(weight.shape)
    return formulas.change_of({name: tensor.float() for name, tensor in change.items()}, weight.detach())


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    stem = KOHYA[lora_files.FEW[0]]
    good = lora_files.tensors(lora_files.weights(lora_files.FEW[:1]))
    loha = {f"hada_w{n}_{h}": torch.ones(64, 2) if h == "a" else torch.ones(2, 64) for n in (1, 2) for h in "ab"}
    cases = {
        "a loha with lengths of its own": {f"{stem}.{k}": v for k, v in (loha | {"dora_scale": torch.ones(1)}).items()},
        "do not fit each other": {f"{stem}.{k}": v for k, v in (loha | {"hada_w1_b": torch.ones(3, 64)}).items()},
        "an OFT of a second kind": {f"{stem}.oft_R.weight": torch.ones(2, 2)},
        "oft_blocks .2, 4, 0. do not fit": {f"{stem}.oft_blocks": torch.ones(2, 4, 0)},
        "no whole LoHa, LoKr or OFT": {f"{stem}.hada_w1_a": torch.ones(2, 2)},
        "a BOFT, which is not read here": {f"{stem}.oft_blocks": torch.ones(2, 4, 2, 2)},
        "an OFT of kohya's own tools": {f"{stem.replace('lora', 'oft')}.oft_blocks": torch.ones(2, 2, 2)},
        "of a kind that is not read here .it has .*on_input": {f"{stem}.on_input": torch.ones(1)},
        "of a kind that is not read here .it has .*a1": {f"{stem}.a1.weight": torch.ones(2, 2)},
        "of a kind that is not read here .it has .*lambda": {f"{stem}.lambda_layer": torch.ones(1, 2)},
        "changes no weight": {key: torch.zeros_like(value) for key, value in good.items()},
    }
    for words, tensors in cases.items():
        with pytest.raises(UserError, match=words):
            file.read(lora_files.write(tmp_path / "x.safetensors", tensors))
    whole = {f"{stem}.{key}": value for key, value in (loha | {"alpha": torch.tensor(1.0)}).items()}
    with pytest.raises(UserError, match="a LyCORIS file \\(it has hada_w1_a of "):  # alpha is no sign of one
        file.read_plain(lora_files.write(tmp_path / "x.safetensors", whole))
    for key, words in ((alphas.DIFFUSERS_KEY, "lora_adapter_metadata is not readable"),):
        folded = dialects.to_diffusers(lora_files.weights(), sd1(), torch.float32).tensors
        with pytest.raises(UserError, match=words):
            file.read(lora_files.write(tmp_path / "x.safetensors", folded, {key: "?"}))
