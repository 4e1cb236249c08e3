"""What a file is, told from its head; every refusal is one line with the file and the mend."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lora_scripts.errors import UserError
from lora_scripts.families import kinds
from lora_scripts.families.sd.rows import Row
from lora_scripts.families.sd.vae import vae_rows
from lora_scripts.families.sd1 import check, singlefile
from lora_scripts.families.sd1.layout import Sd1Layout, text_rows, unet_rows
from lora_scripts.families.sdxl import check as sdxl
from lora_scripts.families.table import find, identify
from lora_scripts.formats import header
from lora_scripts.formats.header import Kind

LAYOUT = Sd1Layout((32, 32, 32, 32), 32, 4, 4, (32, 32, 32, 32), 4, 32, 1, 64, 100, 8)


def rows(layout: Sd1Layout = LAYOUT) -> list[Row]:
    return unet_rows(layout) + vae_rows(layout.vae_widths, 4) + text_rows(layout)


def checkpoint(dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    return {row.ldm: torch.zeros(row.shape, dtype=dtype) for row in rows()}


def named(**shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    return {key.replace("__", "."): torch.zeros(shape) for key, shape in shapes.items()}


def saved(tensors: dict[str, torch.Tensor], folder: Path, **metadata: str) -> Path:
    save_file(tensors, folder / "model.safetensors", metadata or None)
    return folder / "model.safetensors"


def raw(folder: Path, text: str | bytes, body: bytes = b"") -> Path:
    text = text.encode() if isinstance(text, str) else text
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + body)
    return folder / "model.safetensors"


def told(path: Path) -> str:
    """The one line that a person gets."""
    with pytest.raises(UserError) as caught:
        find(path).check(path, True)
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and "; " in line and "\n" not in line
    return line


def test_reads_what_safetensors_wrote(tmp_path: Path) -> None:
    tensors = {
        "a": torch.zeros(2, 3, dtype=torch.bfloat16),
        "b": torch.zeros((), dtype=torch.float64),
        "c": torch.zeros(0, 4),
    }
    head = header.read_header(saved(tensors, tmp_path, title="x"))
    assert head.metadata == {"title": "x"} and head.shapes == {"a": (2, 3), "b": (), "c": (0, 4)}
    assert {name: info.dtype for name, info in head.tensors.items()} == {"a": "BF16", "b": "F64", "c": "F32"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_whole_checkpoint_is_taken(tmp_path: Path, dtype: torch.dtype) -> None:
    path = saved(checkpoint(dtype) | {"model_ema.decay": torch.zeros((), dtype=torch.int64)}, tmp_path)
    head = check.require_file(path)
    find(path).check(path, True)
    assert identify(path) is check.CHECKPOINT and singlefile.layout_of(head.shapes) == LAYOUT


BYTES = {
    header.EMPTY: b"",
    header.GIT_LFS: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4265380512\n",
    header.HTML: b"\n<!DOCTYPE html><html><head><title>Log in</title>",
    header.GGUF: b"GGUF\x03\0\0\0" + b"\0" * 16,
    header.PICKLE: b"\x80\x02}q\0X\x0a\0\0\0state_dictq\x01",
    header.PICTURE: b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    header.NOT_SAFETENSORS: b"%PDF-1.7\n1 0 obj\n",
}


@pytest.mark.parametrize("kind", BYTES, ids=lambda kind: kind.words)
def test_other_formats(tmp_path: Path, kind: Kind) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(BYTES[kind])
    assert identify(path) is kind and kind.words in told(path)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_picture(tmp_path: Path, form: str) -> None:
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (8, 8)).save(path, form)
    assert identify(path) is header.PICTURE and "name a model's file" in told(path)


def test_a_torch_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": {}}, path)
    assert zipfile.is_zipfile(path) and identify(path) is header.ZIP
    assert "convert it in the WebUI" in told(path)
    torch.save({"state_dict": {}}, path, _use_new_zipfile_serialization=False)
    assert identify(path) is header.PICKLE


UNET = {"model.diffusion_model.input_blocks.0.0.weight": (32, 4, 3, 3)}
ATTENTION = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
NAMES = {
    "kohya": (kinds.LORA, {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (4, 8)}),
    "peft": (kinds.LORA, {"unet.mid_block.attentions.0.proj_in.lora_A.weight": (4, 8)}),
    "old diffusers": (kinds.LORA, {"mid_block.attentions.0.attn1.processor.to_q_lora.down.weight": (4, 8)}),
    "loha": (kinds.LORA, {"lora_unet_mid_block_attentions_0_proj_in.hada_w1_a": (4, 8)}),
    "sdxl": (sdxl.CHECKPOINT, UNET | {"conditioner.embedders.0.transformer.text_model.final_layer_norm.bias": (768,)}),
    "sdxl unet": (sdxl.CHECKPOINT, UNET | {ATTENTION: (640, 2048)}),
    "refiner": (sdxl.REFINER, UNET | {"conditioner.embedders.0.model.ln_final.bias": (1280,)}),
    "sd2": (check.CHECKPOINT_2, UNET | {"cond_stage_model.model.ln_final.bias": (1024,)}),
    "sd2 unet": (check.CHECKPOINT_2, UNET | {ATTENTION: (640, 1024)}),
    "flux": (kinds.FLUX, {"double_blocks.0.img_attn.qkv.weight": (8, 8)}),
    "flux in a checkpoint": (kinds.FLUX, {"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": (8, 8)}),
    "inpainting": (check.INPAINTING, {"model.diffusion_model.input_blocks.0.0.weight": (32, 9, 3, 3)}),
    "pix2pix": (check.EDITING, {"model.diffusion_model.input_blocks.0.0.weight": (32, 8, 3, 3)}),
    "nai": (check.OLD_NAMES, UNET | {"cond_stage_model.transformer.embeddings.token_embedding.weight": (100, 32)}),
    "controlnet": (kinds.CONTROLNET, {"control_model.input_blocks.0.0.weight": (32, 4, 3, 3)}),
    "unet": (kinds.UNET, {"down_blocks.0.resnets.0.conv1.weight": (8, 8), "conv_in.weight": (8, 4, 3, 3)}),
    "vae": (kinds.VAE, {"encoder.down_blocks.0.resnets.0.conv1.weight": (8, 8)}),
    "ldm vae": (kinds.VAE, {"encoder.down.0.block.0.conv1.weight": (8, 8)}),
    "text": (kinds.TEXT_ENCODER, {"text_model.embeddings.token_embedding.weight": (100, 32)}),
    "embedding": (kinds.EMBEDDING, {"emb_params": (4, 768)}),
    "llm": (kinds.LANGUAGE_MODEL, {"model.layers.0.self_attn.q_proj.weight": (8, 8)}),
    "other": (kinds.UNKNOWN, {"something.weight": (8, 8)}),
}


@pytest.mark.parametrize("name", NAMES)
def test_other_models(tmp_path: Path, name: str) -> None:
    kind, shapes = NAMES[name]
    path = saved({key: torch.zeros(shape, dtype=torch.float16) for key, shape in shapes.items()}, tmp_path)
    assert identify(path) is kind
    if kind in (sdxl.CHECKPOINT, check.CHECKPOINT_2):  # a base that can be trained, but here only a part of one
        assert "the file holds no" in told(path)
    else:
        assert kind.words in told(path)


def test_truncated_wherever_it_is_cut(tmp_path: Path) -> None:
    whole = saved({"a": torch.zeros(8), "b": torch.zeros(8)}, tmp_path).read_bytes()
    path = tmp_path / "cut.safetensors"
    for length in range(10, len(whole)):
        path.write_bytes(whole[:length])
        assert "truncated" in told(path), length
    for length in range(10):
        path.write_bytes(whole[:length])
        assert "compare its size" in told(path), length


BAD_HEADERS = {
    "twice": '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{}}',
    "dtype": '{"a":{"dtype":"X8","shape":[1],"data_offsets":[0,1]}}',
    "negative": '{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}',
    "true": '{"a":{"dtype":"U8","shape":[true],"data_offsets":[0,1]}}',
    "length": '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,1]}}',
    "gap": '{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}',
    "rest": '{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
    "field": '{"a":{"dtype":"U8","shape":[1]}}',
    "metadata": '{"__metadata__":{"a":1}}',
    "json": '{"a":',
    "utf8": b'{"\xff":1}',
    "half a character": b'{"a\xed\xa0\x80":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
    "half a character, written out": '{"a\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
    "deep": '{"a":' + "[" * 100_000 + "]" * 100_000 + "}",
    "digits": '{"a":' + "9" * 10_000 + "}",
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_damaged_headers(tmp_path: Path, name: str) -> None:
    assert "damaged safetensors header" in told(raw(tmp_path, BAD_HEADERS[name], b"\0"))


def test_the_repeated_key_is_named(tmp_path: Path) -> None:
    assert "stands twice: 'a'" in told(raw(tmp_path, BAD_HEADERS["twice"], b"\0"))


def test_places_that_are_no_files(tmp_path: Path) -> None:
    assert "no such file" in told(tmp_path / "none.safetensors")
    assert "is a folder" in told(tmp_path)
    with pytest.raises(UserError, match="is a folder"):
        header.read_header(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        assert "not a plain file" in told(tmp_path / "pipe")


def test_an_incomplete_checkpoint_counts_what_is_missing(tmp_path: Path) -> None:
    tensors = checkpoint()
    gone = [key for key in tensors if ".middle_block." in key]
    path = saved({key: value for key, value in tensors.items() if key not in gone}, tmp_path)
    assert f"{len(gone)} of {len(unet_rows(LAYOUT))} tensors of the UNet are missing: {gone[0]}" in told(path)


def test_a_checkpoint_without_a_part(tmp_path: Path) -> None:
    tensors = {key: value for key, value in checkpoint().items() if not key.startswith("first_stage_model.")}
    path = saved(tensors, tmp_path)
    assert "the file holds no VAE; give the full checkpoint, or the file of a VAE as vae" in told(path)
    assert check.require_file(path, vae=False).shapes.keys() == tensors.keys()
    path = saved(
        {key: value for key, value in checkpoint().items() if not key.startswith("cond_stage_model.")}, tmp_path
    )
    assert "the file holds no text encoder" in told(path)


def test_a_quantised_checkpoint(tmp_path: Path) -> None:
    tensors = checkpoint()
    key = "model.diffusion_model.out.2.weight"
    assert f"1 tensors are not floating point, first {key} (I8)" in told(
        saved(tensors | {key: tensors[key].to(torch.int8)}, tmp_path)
    )


def test_a_vae_is_required(tmp_path: Path) -> None:
    prefix = "first_stage_model."
    vae = {key.removeprefix(prefix): value for key, value in checkpoint().items() if key.startswith(prefix)}
    assert len((check.check_vae(saved(vae, tmp_path)) or header.Header({}, {})).tensors) == len(vae)
    assert check.check_vae(saved(checkpoint(), tmp_path))
    with pytest.raises(UserError, match="this is a LoRA, not a VAE"):
        check.check_vae(saved({"lora_unet_x.lora_up.weight": torch.zeros(1, 1)}, tmp_path))
    del vae["quant_conv.bias"]
    rows, name = len(vae) + 1, "first_stage_model.quant_conv.bias"
    with pytest.raises(UserError, match=f"1 of {rows} tensors of the VAE are missing: {name}"):
        check.check_vae(saved(vae, tmp_path))


def test_random_damage_never_ends_in_a_traceback(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    whole = saved(named(a__weight=(4, 4), b=(3,)), tmp_path, title="x").read_bytes()
    length = int.from_bytes(whole[:8], "little") + 8
    path = tmp_path / "mutant.safetensors"
    refused = 0
    for _ in range(400):
        mutant = bytearray(whole)
        where = int(torch.randint(length, (), generator=generator))
        mutant[where] = int(torch.randint(256, (), generator=generator))
        path.write_bytes(mutant)
        try:
            header.read_header(path)
        except UserError as error:
            refused += str(path) in str(error)
    assert refused > 200


def test_the_header_alone_is_read(tmp_path: Path) -> None:
    """A sparse file of 1 TB is told in no time and no memory."""
    size = 1 << 40
    text = json.dumps({"lora_te_x.lora_down.weight": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}})
    path = raw(tmp_path, text)
    try:
        os.truncate(path, 8 + len(text) + size)
    except OSError:
        pytest.skip("no sparse files here")
    assert identify(path) is kinds.LORA
