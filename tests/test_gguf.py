"""GGUF files as bases, against the package gguf: its reader, its quantiser, its `dequantize`."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

import tiny
import tiny_anima
import tiny_chroma
import tiny_flow
import tiny_flux1
import tiny_flux2
import tiny_flux2_dev
import tiny_flux3
import tiny_gguf
import tiny_krea2
import tiny_qwen
import tiny_qwen21
import tiny_zimage
from flow_checks import OPTIONS
from lora_scripts.adapters.products import outline
from lora_scripts.cli import main
from lora_scripts.compute import packed
from lora_scripts.compute.mapped import own
from lora_scripts.compute.packed import PackedLinear, make_whole
from lora_scripts.config.values import model_fault
from lora_scripts.families import download
from lora_scripts.families.flow import t5
from lora_scripts.families.flow.llm import MISTRAL3, QWEN3, QWEN3_VL, QWEN25_VL
from lora_scripts.families.flow.llm import find as find_qwen
from lora_scripts.families.flow.reader import build
from lora_scripts.families.flow.t5_reader import build_t5
from lora_scripts.families.table import by_name, find, identify, load_family
from lora_scripts.formats.gguf import PACKED, packed_types, read_gguf
from lora_scripts.formats.numbers import sound_digest
from lora_scripts.run.build import memory_words
from lora_scripts.run.configs import load_config
from lora_scripts.run.preflight import preflight
from lora_scripts.run.shortage import lower
from runs import faults, stopped
from tiny_gguf import gguf

ROOMS: dict[str, ModuleType] = {
    "flux1": tiny_flux1,
    "chroma": tiny_chroma,
    "flux2": tiny_flux2,
    "flux2_dev": tiny_flux2_dev,
    "zimage": tiny_zimage,
    "qwen_image": tiny_qwen,
    "qwen_image21": tiny_qwen21,
    "anima": tiny_anima,
    "flux3": tiny_flux3,
    "krea2": tiny_krea2,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow Z-Image in blocks, with what belongs to it beside it."""
    return tiny_gguf.of(tiny_zimage.write_base(tmp_path_factory.mktemp("gguf") / "base.safetensors"), arch="lumina2")


# --- blocks -----------------------------------------------------------------------------------------------------------


def test_the_sizes_of_blocks_are_theirs() -> None:
    from lora_scripts.formats.gguf import _TYPES

    theirs = {kind.value: (kind.name, *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGMLQuantizationType}
    assert {number: block[:3] for number, block in _TYPES.items()} == {n: theirs[n] for n in _TYPES}


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("piece", [1 << 30, 700])
def test_a_block_is_the_numbers_that_the_package_says(kind: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a rounding in float32; in pieces as at once; in half precision rounded once."""
    monkeypatch.setitem(packed._PIECE, "cpu", piece)
    blocks = tiny_gguf.random_blocks((7, 512), kind)
    want = torch.from_numpy(gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind]))
    codes = torch.from_numpy(blocks)
    assert torch.equal(make_whole(codes, kind, torch.float32), want)
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(make_whole(codes, kind, dtype), want.to(dtype))


def test_a_packed_layer_is_the_layer_with_those_weights() -> None:
    """Forward and back; the weight is not kept for the way back."""
    blocks = torch.from_numpy(tiny_gguf.random_blocks((5, 256), "Q6_K"))
    layer, plain = nn.Linear(256, 5), nn.Linear(256, 5)
    plain.load_state_dict({"weight": make_whole(blocks, "Q6_K", torch.float32), "bias": layer.bias.detach()})
    packed.pack_layer(layer, blocks, "Q6_K", torch.float32)
    layer.to(torch.float32).requires_grad_(False)
    x, other = (torch.linspace(-1, 1, 3 * 256).view(3, 256).requires_grad_() for _ in range(2))
    y, want = layer(x), plain(other)
    saved: Any = y.grad_fn
    assert [t.dtype for t in saved.saved_tensors] == [torch.uint8]
    y.sum().backward()
    want.sum().backward()
    assert torch.equal(y, want) and torch.equal(x.grad, other.grad)
    assert torch.equal(layer.weight, plain.weight) and outline(layer).shape == plain.weight.shape


# --- headers ----------------------------------------------------------------------------------------------------------


def test_a_header_is_what_the_packages_reader_says(base: Path) -> None:
    head, theirs = read_gguf(base), gguf.GGUFReader(base)
    rows = {t.name: (t.tensor_type.name, tuple(map(int, t.shape[::-1])), int(t.data_offset)) for t in theirs.tensors}
    assert {k: (i.dtype, i.shape, head.body + i.span[0]) for k, i in head.tensors.items()} == rows
    sizes = {key: info.span[1] - info.span[0] for key, info in head.tensors.items()}
    assert {t.name: int(t.n_bytes) for t in theirs.tensors} == sizes
    assert head.metadata["general.architecture"] == "lumina2"


def test_values_of_every_type_are_passed_over(tmp_path: Path) -> None:
    """A tokenizer's lists, and what a tensor was before ComfyUI-GGUF reshaped it."""
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "qwen3")
    for kind in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "bool"):
        getattr(writer, f"add_{kind}")(f"a.{kind}", 1)
    writer.add_float32("a.float32", 0.5)
    writer.add_float64("a.float64", 0.5)
    writer.add_array("tokenizer.ggml.tokens", ["é", "b"] * 50)
    writer.add_array("tokenizer.ggml.scores", [0.5] * 50)
    writer.add_array("comfy.gguf.orig_shape.a.weight", [4, 8, 3, 3])
    writer.add_custom_alignment(64)
    writer.add_tensor("a.weight", np.zeros((9, 32), np.float32))
    writer.add_tensor("b", np.zeros(3, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    head = read_gguf(path)
    assert head.shapes == {"a.weight": (4, 8, 3, 3), "b": (3,)}
    assert head.metadata["a.int64"] == "1" and head.metadata["a.float64"] == "0.5"
    assert not any("token" in key or "shape" in key for key in head.metadata)
    assert identify(path).words == "a GGUF file (quantised) of the kind qwen3"


def test_a_damaged_header_is_a_line(base: Path, tmp_path: Path) -> None:
    """Cut or changed anywhere: never anything but a line that names the file."""
    whole, path = base.read_bytes(), tmp_path / "x.gguf"
    head = read_gguf(base)
    for size in [*range(4, head.body, 397), head.body + 1, len(whole) - 64]:
        path.write_bytes(whole[:size])
        assert "truncated: " in faults(lambda: read_gguf(path))
    path.write_bytes(whole + bytes(99))
    assert "bytes too many at the end" in faults(lambda: read_gguf(path))
    path.write_bytes(whole[:4] + b"\x01" + whole[5:])
    assert "GGUF file of version 1" in faults(lambda: read_gguf(path))
    generator = np.random.default_rng(0)
    for _ in range(100):
        data = bytearray(whole)
        data[int(generator.integers(4, head.body))] = int(generator.integers(256))
        path.write_bytes(data)
        try:
            read_gguf(path)
        except Exception as error:
            assert type(error).__name__ == "UserError" and "x.gguf" in str(error)


def test_a_broken_weight_is_named(base: Path, tmp_path: Path) -> None:
    head, data, path = read_gguf(base), bytearray(base.read_bytes()), tmp_path / "x.gguf"
    assert sound_digest(base) == hashlib.sha256(data).hexdigest()
    for kind in ("Q8_0", "Q5_1", "F32"):
        name, info = next((k, i) for k, i in head.tensors.items() if i.dtype == kind)
        broken = bytearray(data)
        end = head.body + info.span[1]
        if kind == "F32":
            broken[end - 4 : end] = np.float32(np.nan).tobytes()
        else:
            at = end - PACKED[kind].size + PACKED[kind].scales[-1]  # of the last block
            broken[at : at + 2] = np.float16(np.inf).tobytes()
        path.write_bytes(broken)
        assert f"not finite (NaN or infinity): {name}" in faults(lambda: sound_digest(path))


def test_a_download_that_did_not_end_is_named(tmp_path: Path) -> None:
    path, rows = tmp_path / "x.gguf", torch.randn(64, 256)
    rows[:, -1] = 0  # the last byte of each row, too: that is none
    tiny_gguf.write(path, {"a.weight": rows, "b": torch.zeros(5000)}, tiny_gguf.all_as("Q8_0"))
    sound_digest(path)
    data = bytearray(path.read_bytes())
    data[-25000:] = bytes(25000)
    path.write_bytes(data)
    assert "are zeros, from a.weight on" in faults(lambda: sound_digest(path))


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROOMS)
def test_a_model_in_blocks_is_the_model_with_their_numbers(name: str, tmp_path: Path) -> None:
    """Held against the same family loaded from a file with what the package says the blocks stand for; the blocks stay
    blocks, mapped from the file."""
    facts, made = by_name(name), ROOMS[name]
    plain = made.write_base(tmp_path / "base.safetensors")
    path = plain.with_suffix(".gguf")
    whole = tiny_gguf.write(path, load_file(plain))
    save_file(whole, tmp_path / "whole.safetensors")
    assert identify(path) is facts.checkpoint and find(path) is facts
    beside: Any = made.beside(tmp_path)
    ours, want = (load_family(facts, p, replace(OPTIONS, **beside)) for p in (path, tmp_path / "whole.safetensors"))
    kinds = {m.kind for m in ours.transformer.modules() if isinstance(m, PackedLinear)}
    assert set(tiny_gguf.BLOCKS) <= kinds
    for (path_, layer), (_, other) in zip(ours.trainable().items(), want.trainable().items(), strict=True):
        assert torch.equal(layer.weight, other.weight), path_
    head = read_gguf(path)
    in_blocks = {layer for layer, at in facts.weights(head, path).items() if head.tensors[at.key].dtype in PACKED}
    kept = {f"transformer.{name}" for name, m in ours.transformer.named_modules() if isinstance(m, PackedLinear)}
    assert in_blocks <= kept <= in_blocks | {"transformer.norm_out.linear"}  # whose halves stand the other way round
    texts = ours.encode_text(["hello"])
    assert all(torch.equal(texts[k], v) for k, v in want.encode_text(["hello"]).items())
    x = torch.randn(1, facts.latent_channels, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        one, two = (family.predict(x, torch.tensor([0.6]), texts) for family in (ours, want))
    # Products may round differently where a matrix does not begin at a round address.
    assert (one - two).abs().max() < 1e-5 * two.abs().max()
    held, full = (sum(t.nbytes for t in f.transformer.state_dict().values()) for f in (ours, want))
    assert held < 0.5 * full


def test_fill_up_tokens_may_have_one_axis_and_lie_in_blocks(base: Path, tmp_path: Path) -> None:
    """As stable-diffusion.cpp's Z-Image has them, behind a prefix."""
    tensors = load_file(base.with_suffix(".safetensors"))
    for key in ("x_pad_token", "cap_pad_token"):
        tensors[key] = tensors[key][0]

    def kinds(key: str, tensor: Tensor) -> str:
        return "Q8_0" if "pad_token" in key else tiny_gguf.mixed(key, tensor)

    path, prefix = tmp_path / "z.gguf", "model.diffusion_model."
    whole = tiny_gguf.write(path, {prefix + k: v for k, v in tensors.items()}, kinds, arch=None)
    facts = by_name("zimage")
    facts.check(path, False)
    family: Any = load_family(facts, path, replace(OPTIONS, **tiny_zimage.beside(base.parent)))
    assert torch.equal(family.transformer.x_pad_token[0], whole[f"{prefix}x_pad_token"])
    # Who writes into the file, which weights are mapped from, changes none of them.
    key = "layers.1.feed_forward.w2.weight"
    if sys.platform == "linux":
        assert own(path)
        path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(family.transformer.get_submodule(key.removesuffix(".weight")).weight, whole[prefix + key])


# --- text encoders ----------------------------------------------------------------------------------------------------


def write_language(path: Path, own: Any, arch: str) -> dict[str, Tensor]:
    """What the file's tensors stand for, in transformers' names."""
    tensors = {key: value for key, value in own.state_dict().items() if key != "lm_head.weight"}
    named = tiny_gguf.llama_names(arch, tensors, own.config.num_hidden_layers)
    path.parent.mkdir(parents=True, exist_ok=True)
    rope, kind = own.config.rope_parameters["rope_theta"], arch.lower()
    told = {f"{kind}.rope.freq_base": rope, f"{kind}.attention.layer_norm_rms_epsilon": own.config.rms_norm_eps}
    told[f"{kind}.attention.head_count"] = own.config.num_attention_heads
    heads = (
        {} if arch != "LLAMA" else {"attn_q": own.config.num_attention_heads, "attn_k": own.config.num_key_value_heads}
    )

    def turned(name: str, tensor: Tensor, back: bool = False) -> Tensor:
        """As llama.cpp's converter turns a head's two halves into one, of each pair of rows, and back."""
        for leaf, n in heads.items():
            if f".{leaf}.weight" in name:
                halves = (n, -1, 2) if back else (n, 2, -1)
                return tensor.unflatten(0, halves).transpose(1, 2).flatten(0, 2).contiguous()
        return tensor

    whole = tiny_gguf.write(path, {name: turned(name, t) for name, t in named.items()}, arch=kind, **told)
    return {key: turned(name, whole[name], True) for key, name in zip(tensors, named, strict=True)}


@torch.no_grad()
@pytest.mark.parametrize("kind", [QWEN3, QWEN3_VL, QWEN25_VL, MISTRAL3], ids=lambda kind: kind.words)
def test_a_language_model_in_blocks_reads_as_transformers_with_their_numbers(kind: Any, tmp_path: Path) -> None:
    arch = {"Qwen3": "QWEN3", "Qwen3-VL": "QWEN3VL", "Qwen2.5-VL": "QWEN2VL"}.get(kind.words, "LLAMA")
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 256,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 500,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e6},
    }
    # The file says how many heads there are, how they turn, and what keeps its norms from dividing by nothing.
    config = getattr(transformers, f"{kind.model}Config")(**shape)
    theirs = getattr(transformers, f"{kind.model}ForCausalLM")(config).eval()
    whole = write_language(tmp_path / "text.gguf", theirs, arch)
    theirs.load_state_dict(whole, strict=False)
    tiny_flow.language()[1].backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    source = find_qwen(kind, tmp_path / "base.safetensors", [tmp_path / "text.gguf"], 256, ())
    if kind is QWEN3_VL:  # of which only its word on what it is tells it from Qwen3
        assert "this is no Qwen3 text encoder" in faults(lambda: find_qwen(QWEN3, tmp_path, [source.path], 256, ()))
    ours = build(source, 2, torch.float32)
    assert sum(isinstance(m, PackedLinear) for m in ours.modules()) == 14  # q, k, v, o and the MLP, in two layers
    ids = torch.arange(40)[None]
    if not kind.ended:  # the norm is not read
        theirs.model.norm = nn.Identity()
    one, two = (m(input_ids=ids).last_hidden_state for m in (ours, theirs.model))
    assert (one - two).abs().max() < 1e-5 * two.abs().max()
    half = build(source, 2, torch.bfloat16)
    assert {t.dtype for t in half.state_dict().values()} == {torch.bfloat16, torch.uint8}


@torch.no_grad()
def test_a_t5_in_blocks_reads_as_transformers_with_their_numbers(tmp_path: Path) -> None:
    """As city96's t5-v1_1-xxl-encoder; a decoder's tensors are left aside. In half precision the last layers of its
    MLPs compute in fp32."""
    torch.manual_seed(0)
    shape = {"d_model": 64, "d_kv": 16, "d_ff": 256, "num_layers": 2, "num_heads": 4}
    made = tiny_flux1.models()
    theirs = T5EncoderModel(T5Config(vocab_size=400, feed_forward_proj="gated-gelu", **shape)).eval()
    tiny_flux1.write_texts(tmp_path, made._replace(t5=theirs))
    tensors = load_file(tmp_path / "t5xxl_fp16.safetensors")
    named = tiny_gguf.llama_names("T5ENCODER", tensors, 2)
    path = tmp_path / "t5.gguf"
    whole = tiny_gguf.write(path, {**named, "dec.blk.0.attn_q.weight": torch.zeros(2, 2)}, arch="t5encoder")
    numbers = {key: whole[name] for key, name in zip(tensors, named, strict=True)}
    theirs.load_state_dict({**numbers, "encoder.embed_tokens.weight": numbers["shared.weight"]})
    source = t5.look(path, tmp_path / "base.safetensors", 64)
    ours, ids = build_t5(source, torch.float32), torch.arange(40)[None]
    assert sum(isinstance(m, PackedLinear) for m in ours.modules()) == 14
    one, two = (m(input_ids=ids).last_hidden_state for m in (ours, theirs))
    assert (one - two).abs().max() < 1e-5 * two.abs().max()
    half = build_t5(source, torch.float16)
    assert half.encoder.block[1].layer[1].DenseReluDense.wo.weight.dtype == torch.float32
    assert torch.isfinite(half(input_ids=ids).last_hidden_state).all()


# --- a run ------------------------------------------------------------------------------------------------------------


def run(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


def beside(base: Path) -> dict[str, object]:
    """With the text encoder as a GGUF file, too."""
    path = base.parent / "text" / "qwen.gguf"
    if not path.exists():
        write_language(path, tiny_zimage.models().text, "QWEN3")
    return {**tiny_zimage.beside(base.parent), "text_encoder": [path]}


@pytest.fixture(scope="module")
def trained(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a run that was stopped and went on."""
    keys = {"gradient_checkpointing": "true", "precision": "bf16", "targets": "['*layers.1.*']"}
    keys |= beside(base)
    folder = tmp_path_factory.mktemp("run")
    config = tiny.write_config(folder, base_model=base, train_data_dir=data, output_dir=folder / "mylora", **keys)
    stopped(config, 2)
    run("train", "--config", config, "--resume")
    return config


def test_it_trains_and_goes_on_exactly(trained: Path, tmp_path: Path) -> None:
    out = trained.parent / "mylora"
    run("train", "--config", trained, f"output_dir={tmp_path / 'mylora'}", f"cache_dir={out / 'cache'}")
    assert (tmp_path / "mylora" / "mylora.safetensors").read_bytes() == (out / "mylora.safetensors").read_bytes()
    assert "base stored as its GGUF has it (Q" in (out / "report.html").read_text("utf-8")


def test_it_draws_with_a_lora(trained: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [word for key, path in beside(base).items()
             for word in (f"--{key.replace('_', '-')}", *(path if isinstance(path, list) else [path]))]  # fmt: skip
    ask = ["generate", "--base", base, "--size", 64, "--steps", 2, "--seed", 3, "--precision", "fp32", *flags]
    where = ["--lora-dir", trained.parent / "mylora"]
    run(*ask, *where, "--prompt", "picture 3 <lora:mylora:1>", "--output", tmp_path / "with.png")
    run(*ask, "--prompt", "picture 3", "--output", tmp_path / "without.png")
    one, other = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("with", "without"))
    assert not np.array_equal(one, other)
    assert main([str(word) for word in (*ask, *where, "--prompt", "a <lora:mylora:1>", "--merged")]) == 2
    assert "--merged: nothing can be added to the numbers of a GGUF file" in capsys.readouterr().err


# --- what is told, and what is refused --------------------------------------------------------------------------------


def test_inspect_says_what_it_is(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("inspect", base)
    told = capsys.readouterr().out
    assert "a Z-Image checkpoint, in a GGUF file" in told and "Q8_0 (" in told and "nothing looks wrong" in told
    run("metadata", base)
    assert "lumina2" in capsys.readouterr().out


def told(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main([str(word) for word in words]) == 2
    return capsys.readouterr().err


def test_nothing_is_merged_into_it(
    base: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = trained.parent / "mylora" / "mylora.safetensors"
    line = told(capsys, "merge", lora, "--base", base, "--output", tmp_path / "m.safetensors")
    assert line.count("\n") == 1 and "in a GGUF file, to whose numbers nothing can be added" in line
    assert "give its .safetensors in bf16" in line and not (tmp_path / "m.safetensors").exists()
    run("verify", lora, "--base", base)


def test_other_parts_may_be_none(base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check: Any = by_name("zimage").check_text
    assert "this is no Qwen3 text encoder" in faults(lambda: check(base, [base]))
    assert "this is a GGUF file (quantised)" in faults(lambda: by_name("zimage").check_vae(base))
    other = tmp_path / "sdxl.gguf"
    tiny_gguf.write(other, {"label_emb.0.0.weight": torch.zeros(2, 2)}, lambda *_: "F32", arch="sdxl")
    line = told(capsys, "train", "--config", tiny.write_config(tmp_path, base_model=other, train_data_dir=data))
    assert "this is a GGUF file (quantised) of the kind sdxl" in line and "get the .safetensors version" in line


def test_types_that_nobody_reads_are_named(base: Path, tmp_path: Path) -> None:
    key, path = "layers.0.attention.out.weight", tmp_path / "x.gguf"
    tensors = load_file(base.with_suffix(".safetensors"))
    tiny_gguf.write(path, tensors, lambda name, t: "F32" if name == key else tiny_gguf.mixed(name, t))
    data = bytearray(path.read_bytes())
    at = data.index(key.encode()) + len(key) + 4 + 2 * 8  # behind its axes
    for number, words in {
        24: f"1 tensors are of types that are not read here, first {key} (I8)",
        77: f"'{key}' is of type 77, which is not known here",
    }.items():
        data[at : at + 4] = number.to_bytes(4, "little")
        path.write_bytes(data)
        assert words in faults(lambda: find(path).check(path, False))


def test_it_is_not_rounded_again(base: Path, data: Path, tmp_path: Path) -> None:
    keys = {"base_model": base, "train_data_dir": data, **tiny_zimage.beside(base.parent)}
    config = tiny.write_config(tmp_path, base_precision="fp8", **keys)
    line = faults(lambda: preflight(load_config(config, []), resume=False))
    assert "base_precision fp8: this base is quantised as it is (" in line and "leave base_precision out" in line
    # One that holds no blocks is like any other.
    half = tmp_path / "half.gguf"
    tiny_gguf.write(half, load_file(base.with_suffix(".safetensors")), lambda key, t: "BF16" if t.ndim > 1 else "F32")
    assert packed_types(half) == [] and packed_types(base)[0] in PACKED
    config = tiny.write_config(tmp_path, base_precision="fp8", **{**keys, "base_model": half})
    preflight(load_config(config, []), resume=False)
    assert "GGUF" not in memory_words(load_config(config, []))


def test_names_of_such_files_are_offered(base: Path) -> None:
    """On the disk, and on the hub, where a page may hold nothing else."""
    near = base.with_name("bases.gguf")
    shutil.copy(base, base.with_name("other.gguf"))
    assert model_fault(near, kind="checkpoint", folder=True) == (
        f"{near.as_posix()} does not exist",
        f"did you mean {base.as_posix()}?",
    )
    listed = {"README.md": 1, "z_image-Q4_K_S.gguf": 5, "z_image-Q8_0.gguf": 9}
    assert "did you mean hf:a/b/z_image-Q8_0.gguf?" in faults(lambda: download._one(listed, "a/b", "z_image_q8_0.gguf"))
    assert "name one of its files: hf:a/b/z_image-Q4_K_S.gguf" in faults(lambda: download._whole(listed, "a/b"))
    assert download._one(listed, "a/b", "z_image-Q8_0.gguf") == ["z_image-Q8_0.gguf"]


def test_a_config_to_begin_with_leaves_rounding_out(base: Path, data: Path, tmp_path: Path) -> None:
    run("new", "mia", "--data", data, "--base", base, "--output", tmp_path / "mia.yaml")
    assert "base_precision" not in (tmp_path / "mia.yaml").read_text("utf-8")
    keys = {"base_model": base, "train_data_dir": data, "batch_size": 1, "gradient_checkpointing": "true"}
    config = load_config(tiny.write_config(tmp_path, **keys, **tiny_zimage.beside(base.parent)), [])
    assert "base_precision" not in lower(config, card=False, begun=False)


def test_the_package_that_is_missing_is_named(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_scripts.families.flow import pieces

    real = importlib.util.find_spec
    monkeypatch.setattr(pieces, "find_spec", lambda name: None if name == "gguf" else real(name))
    assert "a GGUF file needs the package gguf" in (line := faults(lambda: find(base).check(base, False)))
    assert "install it: pip install gguf" in line
    check: Any = find(base).check_text
    assert "needs the package gguf" in faults(lambda: check(base, beside(base)["text_encoder"]))
