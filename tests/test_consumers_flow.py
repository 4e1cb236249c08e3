"""ComfyUI's matcher against a record of what ComfyUI did with LoRAs of diffusion transformers: its own loading code
(0.33.0, commit 783545f6) found and built each model from a file of random numbers in the published layout and patched
its weights (26 November 2026, on the CPU, in float32). The files were written here, rank 4, alpha 2, of every layer
that is trained here; of Chroma also of the others.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from lora_scripts.adapters.dora import DoraLayer
from lora_scripts.adapters.layer import LoraLayer
from lora_scripts.adapters.lycoris import LycorisLayer
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.config.schema import TrainConfig
from lora_scripts.families.anima.layout import AnimaLayout
from lora_scripts.families.black_forest.flux2_layout import Flux2Layout
from lora_scripts.families.chroma.layout import ChromaLayout
from lora_scripts.families.flux1.layout import Flux1Layout
from lora_scripts.families.krea2.layout import Krea2Layout
from lora_scripts.families.names import Base, Layer, Names
from lora_scripts.families.qwen_image.layout import QwenImageLayout
from lora_scripts.families.qwen_image21.layout import QwenImage21Layout
from lora_scripts.families.sd3.layout import Sd3Layout
from lora_scripts.families.table import by_name
from lora_scripts.families.zimage.layout import ZImageLayout
from lora_scripts.loras import dialects, kohya
from lora_scripts.loras.consumers import comfyui, compare, published
from lora_scripts.loras.unfused import unfused
from lora_scripts.run.build import maker
from lora_scripts.run.init_lora import Size

Tensors = dict[str, Tensor]
Modules = dict[str, LoraWeights]


class Ran(NamedTuple):
    """What was run of a family."""

    layout: Any
    """As many blocks as the model had, narrower."""
    modules: int
    """Layers that the files changed."""
    left: dict[str, int] = {}  # noqa: RUF012  the record
    """Form of the file -> how many of them ComfyUI did not change as the file means; of those not named, none."""


RUNS = {
    # One OFT is misread, that of the layer whose halves the published file has the other way round.
    "sd3": Ran(Sd3Layout(width=8, blocks=3, dual=(0,), text_width=8, pooled_width=8, positions=2), 43, {"oft": 1}),
    # The first 40 of the transformer, the others of CLIP-L.
    "flux1": Ran(Flux1Layout(width=8, double=2, single=2, text_width=8, pooled_width=8), 40 + 72),
    # 20 of them are known by diffusers' names, too; the network of modulations is not.
    "chroma": Ran(
        ChromaLayout(width=8, double=1, single=1, text_width=8, told=8, hidden=8),
        32,
        dict.fromkeys(("own", "one A", "diffusers", "dora", "lengths everywhere", "lokr", "loha", "oft"), 12),
    ),
    "flux2": Ran(Flux2Layout(width=8, double=2, single=2, text_width=8, inner=24), 28),
    "flux2_dev": Ran(Flux2Layout(width=8, double=2, single=2, text_width=8, inner=24, guidance=True), 28),
    "zimage": Ran(ZImageLayout(width=8, layers=1, refiners=2, text_width=8), 38),
    "qwen_image": Ran(QwenImageLayout(width=8, blocks=1, text_width=8), 20),
    # With the lines that later versions have for it.
    "qwen_image21": Ran(QwenImage21Layout(width=8, blocks=2, head=8, text_width=8, channels=8, inner=24), 22),
    "anima": Ran(AnimaLayout(width=8, blocks=2, text_width=8, modulation=4), 38),
    "krea2": Ran(
        Krea2Layout(width=8, blocks=2, shared=8, inner=8, time=8, text_width=8, text_shared=8, text_inner=8),
        56,
        {"lengths everywhere": 1},
    ),
}


def plain(layers: list[Layer], *, lengths: bool = False) -> Modules:
    g = torch.Generator().manual_seed(0)
    made = {}
    for layer in layers:
        out, inner = layer.shape
        dora = torch.rand(1, inner, generator=g) + 0.5 if lengths else None
        down, up = torch.randn(4, inner, generator=g), torch.randn(out, 4, generator=g)
        made[layer.path] = LoraWeights(down, up, 2.0, dora)
    return made


def trained(layers: list[Layer]) -> Modules:
    """A DoRA as a run makes it, in its first step."""
    make, made = maker(TrainConfig.model_construct(adapter="dora"), {}, {}, Size(4, 2.0)), {}
    for layer in layers:
        leaves = make(layer.path, nn.Linear(layer.shape[1], layer.shape[0])).leaves()
        down, up = leaves["lora_down.weight"], leaves["lora_up.weight"] + 1
        made[layer.path] = LoraWeights(down, up, 2.0, leaves.get("dora_scale"))
    return made


def one_a(modules: Modules, names: Names) -> Modules:
    """The same B's behind one A for q, k and v."""
    first = {path: group[0] for group in names.together for path in group}
    return {p: LoraWeights(modules[first.get(p, p)].down, w.up, w.alpha) for p, w in modules.items()}


def lycoris(kind: str) -> Callable[[list[Layer], Names], Tensors]:
    def made(layers: list[Layer], names: Names) -> Tensors:
        pytest.importorskip("lycoris")
        g = torch.Generator().manual_seed(1)
        modules = {}
        for layer in layers:
            leaves = LycorisLayer(nn.Linear(layer.shape[1], layer.shape[0]), kind, 4, 2.0).leaves()
            modules[layer.path] = {
                leaf: value if leaf == "alpha" else value + torch.randn(value.shape, generator=g)
                for leaf, value in leaves.items()
            }
        return kohya.to_lycoris(modules, names.written, dtype=torch.float32)

    return made


def own(modules: Modules, names: Names) -> Tensors:
    return dialects.own_form(kohya.prepared(modules), names, torch.float32).tensors


def convert(modules: Modules, names: Names, to: str) -> Tensors:
    """As the command writes them."""
    if to == "diffusers":
        return dialects.to_diffusers(modules, names, torch.float32).tensors
    table = getattr(names, to)
    if not table:
        pytest.skip("has no such names")
    return kohya.to_kohya(modules, table, dtype=torch.float32, mixed=True, fused=names.fused, turned=names.turned)


FORMS: dict[str, Callable[[list[Layer], Names], Tensors]] = {
    "own": lambda layers, names: own(plain(layers), names),
    "one A": lambda layers, names: own(one_a(plain(layers), names), names),
    "one A, kohya": lambda layers, names: convert(one_a(plain(layers), names), names, "kohya"),
    "kohya": lambda layers, names: convert(plain(layers), names, "kohya"),
    "original": lambda layers, names: convert(plain(layers), names, "original"),
    "diffusers": lambda layers, names: convert(plain(layers), names, "diffusers"),
    "dora": lambda layers, names: own(trained(layers), names),
    "lengths everywhere": lambda layers, names: own(plain(layers, lengths=True), names),
    "lokr": lycoris("lokr"),
    "loha": lycoris("loha"),
    "oft": lycoris("oft"),
}


AROUND = {
    "flux1": ("x_embedder", "context_embedder", "time_text_embed", "norm_out", "proj_out"),
    "sd3": ("context_embedder", "time_text_embed", "norm_out", "proj_out"),
    "flux2": ("x_embedder", "context_embedder", "time_", "double_stream_", "single_stream_", "norm_out", "proj_out"),
    "zimage": ("all_", "t_embedder", "cap_embedder"),
}
"""What layers around the blocks begin with, which no file of the record had."""


def family(name: str) -> tuple[Base, list[Layer], Names]:
    names = by_name(name).names()
    base: Base = import_module(f"lora_scripts.families.{name}.names").base(RUNS[name].layout)
    around = tuple(f"transformer.{start}" for start in AROUND.get(name.removesuffix("_dev"), ()))
    layers = [layer for layer in base.layers if layer.path in names.diffusers and not layer.path.startswith(around)]
    return base, layers, names


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("form", FORMS)
def test_forms_as_comfyui_took_them(form: str, name: str) -> None:
    (base, layers, names), ran = family(name), RUNS[name]
    left = ran.left.get(form.removeprefix("one A, "), 0)
    tensors = unfused(FORMS[form](layers, names), names)
    meant = published.read(tensors, base, names)
    assert not meant.faults and len(meant.changes) == len(layers) == ran.modules
    reading = comfyui.read(tensors, base)
    (verdict,) = compare.judge(meant.changes, {"ComfyUI": reading}, base, list(tensors), [])
    assert (verdict.right, verdict.ok) == (ran.modules - left, left == 0)


CONVERTED = "by musubi-tuner's converter"


@pytest.mark.parametrize("start", ["diffusion_model.", "lycoris_", "", CONVERTED])
@pytest.mark.parametrize("name", ["sd3", "flux1", "chroma", "flux2", "zimage"])
def test_published_names_with_nothing_before_them_are_passed_over(name: str, start: str) -> None:
    """Of q, k and v as one, and of the layer of SD 3 that is the other way round: they are not in its table of keys.
    Nor are the names of attention that musubi-tuner's converter makes, though they begin as those that are."""
    base, layers, names = family(name)
    shapes = {layer.path: layer.shape for layer in layers}
    turned = {stem: [path] for stem, path in names.turned.items() if shapes.get(path) == (16, 8)}
    tensors, there = Tensors(), set[str]()
    for stem, paths in {**{stem: list(shares) for stem, shares in names.fused.items()}, **turned}.items():
        before = next(word for word in ("diffusion_model.", "lora_unet_", "lycoris_", "") if stem.startswith(word))
        before = CONVERTED if stem in names.unheard else before
        if before == start and shapes.keys() >= set(paths):
            rows, columns = sum(shapes[path][0] for path in paths), shapes[paths[0]][1]
            tensors |= {f"{stem}.lora_A.weight": torch.ones(4, columns), f"{stem}.lora_B.weight": torch.ones(rows, 4)}
            there |= set(paths)
    tensors = unfused(tensors, names)
    meant, reading = published.read(tensors, base, names), comfyui.read(tensors, base)
    nowhere = {("zimage", "lycoris_"), ("zimage", CONVERTED), ("sd3", CONVERTED)}
    assert bool(there) == ((name, start) not in nowhere)
    assert not meant.faults and meant.changes.keys() == there
    asked = start == "diffusion_model."
    assert reading.changes.keys() == (there if asked else set())
    assert [fault.key for fault in reading.faults] == ([] if asked else list(tensors))


_FLUX = ("transformer.{0}", "{0}", "lycoris_{1}", "lora_transformer_{1}")
_Z_IMAGE = ("diffusion_model.{0}", "transformer.{0}", "{0}", "lycoris_{1}")
_SD3 = ("transformer.{0}", "lycoris_{1}", "lora_transformer_{1}")
ASKED: dict[tuple[str, str], tuple[tuple[str, ...], str]] = {
    ("sd3", "transformer_blocks.0.attn2.to_q"): (_SD3, ""),
    ("sd3", "transformer_blocks.1.norm1_context.linear"): (_SD3, "joint_blocks.1.context_block.adaLN_modulation.1"),
    # Under its published name it asks for this one, too, with the halves as they stand in that file.
    ("sd3", "transformer_blocks.2.norm1_context.linear"): (_SD3, ""),
    ("flux1", "transformer_blocks.0.attn.to_q"): (_FLUX, ""),
    ("flux1", "transformer_blocks.0.attn.to_out.0"): (_FLUX, "double_blocks.0.img_attn.proj"),
    ("flux1", "x_embedder"): (_FLUX, "img_in"),
    ("chroma", "single_transformer_blocks.0.proj_mlp"): (_FLUX, ""),
    ("chroma", "distilled_guidance_layer.layers.0.linear_1"): ((), "distilled_guidance_layer.layers.0.in_layer"),
    ("flux2", "transformer_blocks.0.attn.add_q_proj"): (_FLUX, ""),
    ("flux2", "single_transformer_blocks.0.attn.to_qkv_mlp_proj"): (_FLUX, "single_blocks.0.linear1"),
    ("flux2", "double_stream_modulation_img.linear"): ((), "double_stream_modulation_img.lin"),
    ("zimage", "layers.0.attention.to_k"): (_Z_IMAGE, ""),
    ("zimage", "context_refiner.1.attention.to_out.0"): (_Z_IMAGE, "context_refiner.1.attention.out"),
    ("qwen_image", "transformer_blocks.0.attn.to_add_out"): (
        ("transformer.{0}", "{0}", "lycoris_{1}"),
        "transformer_blocks.0.attn.to_add_out",
    ),
    ("anima", "transformer_blocks.1.attn1.to_q"): ((), "blocks.1.self_attn.q_proj"),
    ("krea2", "text_fusion.projector"): (_Z_IMAGE, "txtfusion.projector"),
}
"""(family, layer in diffusers) -> (the names made of that, with dots and with "_", under which ComfyUI asks for it; its
name in the published layout where it is a layer there, for which it asks in two ways)."""


@pytest.mark.parametrize(("name", "layer"), ASKED)
def test_a_layer_is_asked_for_under_the_names_that_comfyui_has(name: str, layer: str) -> None:
    forms, whole = ASKED[name, layer]
    want = {form.format(layer, layer.replace(".", "_")) for form in forms}
    want |= {f"diffusion_model.{whole}", f"lora_unet_{whole.replace('.', '_')}"} if whole else set()
    base, _, _ = family(name)
    (found,) = (found for found in base.layers if found.path == f"transformer.{layer}")
    assert set(found.asked) == want


def test_a_dora_has_no_lengths_in_a_layer_of_one_output() -> None:
    """ComfyUI would take them for another thing, so a run gives it a plain LoRA; the change is one row either way."""
    make = maker(TrainConfig.model_construct(adapter="dora"), {}, {}, Size(4, 2.0))
    assert type(make("one", nn.Linear(12, 1))) is LoraLayer
    assert type(make("two", nn.Linear(12, 2))) is DoraLayer
