"""A diffusers folder that is not whole: one line for each fault, with the file, before torch is imported."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

import families
import tiny
import tiny_flux1
from lora_scripts.cli import main
from lora_scripts.errors import UserError, UserErrors
from lora_scripts.families import table
from lora_scripts.families.base import LoadOptions
from lora_scripts.families.sd.component import require_kinds

UNET, VAE = "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
LONG = "down_blocks.1.resnets.0.conv1.weight"


@pytest.fixture(params=[row for row in families.ROWS if row.name in ("sd1", "sdxl")], ids=lambda row: row.name)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Of the families with a UNet; those of transformers come last."""
    return request.param.folder(tmp_path / "base")  # type: ignore[no-any-return]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def without(name: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        tensors = load_file(path)
        del tensors[next(key for key in tensors if key.endswith(name))]
        save_file(tensors, path)

    return change


def of_shape(name: str, shape: tuple[int, ...]) -> Callable[[Path], None]:
    return lambda path: save_file(load_file(path) | {name: torch.zeros(shape)}, path)


def config(**values: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        keys = json.loads(path.read_text()) | values
        path.write_text(json.dumps({key: value for key, value in keys.items() if value is not None}))

    return change


FAULTS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a cut config": ("unet/config.json", cut, "unet/config.json: is damaged: it is not readable as JSON; download it"),
    "an empty config": ("vae/config.json", lambda p: p.write_text("[]"), "vae/config.json: is damaged: it holds no k"),
    "no config": ("text_encoder/config.json", Path.unlink, "base: this folder has no text_encoder/config.json; give"),
    "a config that says nothing": (
        "unet/config.json",
        config(cross_attention_dim=None),
        "unet/config.json: says nothing of cross_attention_dim; get the folder as it was published",
    ),
    "nonsense": ("unet/config.json", config(block_out_channels=7), "unet/config.json: a value makes no sense ("),
    "a missing weight": (
        UNET,
        without(LONG),
        f"1 of NUMBER tensors of the UNet are missing: {LONG};",
    ),
    "another shape": (UNET, of_shape(LONG, (3, 3)), f"model.safetensors: {LONG} has shape [3, 3], not ["),
    "of the VAE": (
        VAE,
        without("decoder.conv_out.bias"),
        "1 of NUMBER tensors of the VAE are missing: decoder.conv",
    ),
    "of the text": (
        TEXT,
        without("final_layer_norm.bias"),
        "are missing: text_model.final_layer_norm.bias;",
    ),
    "another width": (
        "text_encoder/config.json",
        config(hidden_size=24),
        "token_embedding.weight has shape ",
    ),
    "a cut file": (VAE, cut, f"{VAE}: truncated: "),
    "a pickle": (
        VAE,
        lambda p: p.rename(p.with_suffix(".bin")),
        "vae: there is no diffusion_pytorch_model.safe",
    ),
    "only a variant": (
        UNET,
        lambda p: p.rename(p.with_name("diffusion_pytorch_model.fp16.safetensors")),
        "unet: there is no diffusion_pytorch_model.safetensors, only diffusion_pytorch_model.fp16.safetensors; rename",
    ),
    "whole numbers": (
        UNET,
        lambda p: save_file(load_file(p) | {LONG: torch.zeros(4, dtype=torch.int8)}, p),
        "1 tensors are not floating point",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_one_line(
    name: str, folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, change, words = FAULTS[name]
    table.find(folder).check(folder, True)
    change(folder / file)
    path = tiny.write_config(tmp_path, base_model=folder, train_data_dir=data)
    assert main(["train", "--config", str(path)]) == 2
    told = capsys.readouterr().err
    start, _, end = words.partition("NUMBER")
    assert start in told and end in told and str(folder) in told and told.startswith("error: ")
    assert told.count("\n") == (1 if name != "another width" else told.count("has shape"))


DAMAGED = {
    "text_encoder/config.json": ("rope_parameters", "x", "rope_parameters is 'x', and not a table"),
    "scheduler/scheduler_config.json": ("shift", None, "shift is null, and not a number"),
    "transformer/config.json": ("patch_size", None, "'NoneType' object is not subscriptable"),
    "text_conditioner/config.json": ("target_vocab_size", "x", "sizes of x"),
    "vae/config.json": ("dropout", "x", "dropout is 'x', and not a number"),
}
"""What no header shows, of a family of flow: found where the part is built, or before it is asked."""


def test_a_damaged_value_is_one_line_with_its_config(tmp_path: Path) -> None:
    base = next(row for row in families.ROWS if row.name == "anima").folder(tmp_path / "base")  # type: ignore[misc]
    facts, options = table.find(base), LoadOptions(torch.device("cpu"), torch.float32)
    for name, (key, value, words) in DAMAGED.items():
        whole = (base / name).read_text()
        (base / name).write_text(json.dumps({**json.loads(whole), key: value}))
        with pytest.raises(UserError) as caught:
            table.load_family(facts, base, options)
        plain = "get the folder as it was published"
        assert str(caught.value) == f"{base / name}: a value makes no sense ({words}); {plain}"
        (base / name).write_text(whole)
    table.load_family(facts, base, options)


def test_a_vae_that_says_no_scale(tmp_path: Path) -> None:
    """Whose class would be built with it, and fail when it is asked."""
    base = tiny_flux1.write_folder(tmp_path / "base")
    config(scaling_factor="null")(base / "vae/config.json")
    (base / "vae/config.json").write_text((base / "vae/config.json").read_text().replace('"null"', "null"))
    with pytest.raises(UserError, match=r"vae.config\.json: a value makes no sense \(scaling_factor is null, and not"):
        table.load_family(table.find(base), base, LoadOptions(torch.device("cpu"), torch.float32))


def test_a_text_encoder_with_a_value_that_its_library_refuses(folder: Path) -> None:
    config(initializer_factor=-1)(folder / "text_encoder/config.json")
    with pytest.raises(
        UserError, match=r"text_encoder.config\.json: a value makes no sense \(Validation error"
    ) as told:
        table.load_family(table.find(folder), folder, LoadOptions(torch.device("cpu"), torch.float32))
    assert "\n" not in str(told.value)


def test_a_unet_that_says_fewer_heads_than_levels(folder: Path) -> None:
    config(attention_head_dim=[8])(folder / "unet/config.json")
    with pytest.raises(UserError, match=r"unet.config\.json: a value makes no sense"):
        table.load_family(table.find(folder), folder, LoadOptions(torch.device("cpu"), torch.float32))


@pytest.mark.parametrize("kind", ["AutoencoderKL", "UNet2DConditionModel", "SD3Transformer2DModel"])
def test_what_a_class_of_diffusers_may_take(kind: str) -> None:
    """Values as published files have them, or as the class itself means them."""
    own = getattr(diffusers, kind)
    usual = {name: a.default for name, a in inspect.signature(own.__init__).parameters.items() if name != "self"}
    require_kinds(json.loads(json.dumps(usual)), own)
    fine: dict[str, dict[str, Any]] = {
        "AutoencoderKL": {"force_upcast": 1, "shift_factor": None, "scaling_factor": 1, "_class_name": 3},
        "UNet2DConditionModel": {"attention_head_dim": [5, 10, 20, 20], "upcast_attention": None},
        "SD3Transformer2DModel": {"out_channels": None, "dual_attention_layers": [0, 1]},
    }
    require_kinds(fine[kind], own)
    wrong: dict[str, dict[str, Any]] = {
        "AutoencoderKL": {"act_fn": 3},
        "UNet2DConditionModel": {"block_out_channels": 320},
        "SD3Transformer2DModel": {"dual_attention_layers": [0, None]},
    }
    with pytest.raises(ValueError, match="and not"):
        require_kinds(wrong[kind], own)


def test_every_part_is_told_at_once_and_before_torch(folder: Path, data: Path, tmp_path: Path) -> None:
    cut(folder / UNET)
    cut(folder / "vae" / "config.json")
    with pytest.raises(UserErrors) as caught:
        table.find(folder).check(folder, True)
    assert len(caught.value.errors) == 2
    table.find(folder)  # not the VAE's matter
    code = (
        "import sys; from pathlib import Path; from lora_scripts.families import table\n"
        "path = Path(sys.argv[1])\n"
        "try: table.find(path).check(path, True)\n"
        "except Exception as e: print(type(e).__name__, [n for n in ('torch', 'diffusers') if n in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert answer.stdout == "UserErrors []\n", answer.stderr


def test_a_folder_in_pieces_is_whole_when_its_index_and_they_are(folder: Path) -> None:
    tensors, unet = load_file(folder / UNET), folder / "unet"
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    (folder / UNET).unlink()
    for file, keys in halves.items():
        save_file({key: tensors[key] for key in keys}, unet / file)
    index = unet / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {key: file for file, keys in halves.items() for key in keys}}))
    check = table.find(folder).check
    check(folder, True)
    (unet / "b.safetensors").unlink()
    with pytest.raises(Exception, match=r"b\.safetensors: no such file, though the index names it"):
        check(folder, True)
    index.write_text("{}")
    with pytest.raises(Exception, match="names no files of weights"):
        check(folder, True)


def test_old_names_of_the_vae_are_as_good(folder: Path) -> None:
    """As the folders published with SD 1.x have them."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for key, tensor in load_file(folder / VAE).items():
        for new, name in old.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{name}.")
        tensors[key] = tensor
    assert any("proj_attn" in key for key in tensors)
    save_file(tensors, folder / VAE)
    table.find(folder).check(folder, True)
    table.find(folder).check_vae(folder)
    table.find(folder).check_vae(folder / "vae")


def test_another_topology_is_left_to_the_library(folder: Path) -> None:
    """A smaller UNet, such as distilled ones are: no table has its rows."""
    keys = json.loads((folder / "unet" / "config.json").read_text())
    config(layers_per_block=1)(folder / "unet" / "config.json")
    table.find(folder).check(folder, True)
    assert keys["layers_per_block"] == 2


FLOW_FAULTS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a cut config": ("transformer/config.json", cut, "transformer/config.json: is damaged: it is not readable as JSON"),
    "no config": ("transformer/config.json", Path.unlink, "config.json"),
    "cut weights": ("transformer/diffusion_pytorch_model.safetensors", cut, "diffusion_pytorch_model.safetensors"),
    "a missing weight": (
        "transformer/diffusion_pytorch_model.safetensors",
        lambda p: save_file(dict(sorted(load_file(p).items())[1:]), p),
        "missing",
    ),
    "of the VAE": (VAE, cut, "vae/diffusion_pytorch_model.safetensors"),
    "of the text": (TEXT, cut, "text_encoder/model.safetensors"),
}


FLOW = ("zimage", "flux2", "qwen_image", "anima")


@pytest.mark.parametrize("name", FLOW_FAULTS)
@pytest.mark.parametrize("row", [row for row in families.ROWS if row.name in FLOW], ids=lambda r: r.name)
def test_each_fault_of_a_transformers_folder_is_one_line(
    row: families.Row, name: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert row.folder is not None
    folder, (file, change, words) = row.folder(tmp_path / "base"), FLOW_FAULTS[name]
    change(folder / file)
    path = tiny.write_config(tmp_path, base_model=folder, train_data_dir=data)
    capsys.readouterr()  # transformers' bar of progress
    assert main(["train", "--config", str(path)]) == 2
    told = capsys.readouterr().err
    assert words in told and str(folder) in told and told.startswith("error: ") and "Traceback" not in told
    assert told.count("\n") == 1
