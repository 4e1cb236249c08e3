"""The matchers against a record of what the programs did: their own loading code was run on LoRAs of the miniature base
(24 November 2026; A1111 1.10.1, ComfyUI 0.3.64, Forge dfdcbab6, InvokeAI 6.14.2, SD.Next 431bcc36, additional-networks
e9f3d62, kohya's sd-scripts 48d368fa). diffusers and PEFT are no matchers: `verify` runs them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from lora_scripts.adapters.lycoris import LycorisLayer
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.cli import main
from lora_scripts.errors import UserError
from lora_scripts.families.names import Layer
from lora_scripts.families.table import find
from lora_scripts.formats import io
from lora_scripts.loras import kohya
from lora_scripts.loras.consumers import STATED, a1111, compare, published, run_diffusers
from lora_scripts.loras.consumers.rules import Delta, Reading
from lora_scripts.loras.embedding import to_bundle
from lora_scripts.loras.file import open_lora
from lora_scripts.loras.verify import MATCHERS

MINIATURE = Path(__file__).parents[1] / "src/lora_scripts/demo/assets/base.safetensors"
FACTS = find(MINIATURE)
BASE = FACTS.base(MINIATURE)
LAYERS = {layer.path: layer for layer in BASE.layers if layer.kohya}
Tensors = dict[str, Tensor]


def chosen(word: str) -> list[Layer]:
    """The layers whose paths hold the word."""
    return [layer for path, layer in LAYERS.items() if word in path]


def plain(layers: list[Layer], rank: int = 4, alpha: float = 2.0, seed: int = 0) -> dict[str, LoraWeights]:
    """Random factors of the layers' own shapes."""
    g = torch.Generator().manual_seed(seed)
    modules = {}
    for layer in layers:
        up = 0.1 * torch.randn(layer.shape[0], rank, *(1,) * (len(layer.shape) - 2), generator=g)
        modules[layer.path] = LoraWeights(0.1 * torch.randn(rank, *layer.shape[1:], generator=g), up, alpha)
    return modules


def written(modules: dict[str, LoraWeights]) -> Tensors:
    return kohya.to_kohya(modules, FACTS.names().kohya, dtype=torch.float32, mixed=True)


def lycoris(kind: str) -> Tensors:
    pytest.importorskip("lycoris")
    modules, g = {}, torch.Generator().manual_seed(1)
    for path, layer in LAYERS.items():
        linear = len(layer.shape) == 2
        frozen = (
            torch.nn.Linear(layer.shape[1], layer.shape[0])
            if linear
            else torch.nn.Conv2d(layer.shape[1], layer.shape[0], layer.shape[2])
        )
        leaves = LycorisLayer(frozen, kind, 4, 2.0).leaves()
        modules[path] = {
            name: tensor if name == "alpha" else tensor + 0.05 * torch.randn(tensor.shape, generator=g)
            for name, tensor in leaves.items()
        }
    return kohya.to_lycoris(modules, FACTS.names().kohya, dtype=torch.float32)


def dora(layers: list[Layer], alpha: float) -> Tensors:
    made = written(plain(layers, alpha=alpha))
    for layer in layers:
        made[f"{layer.kohya}.dora_scale"] = torch.rand(1, layer.shape[1], *(1,) * (len(layer.shape) - 2)) + 1
    return made


def changed(reading: Reading) -> int:
    """How many layers have another weight now."""
    return sum(bool(delta.delta().nan_to_num(1.0).any()) for delta in reading.changes.values())


def mixed_sizes() -> dict[str, LoraWeights]:
    first, *rest = LAYERS.values()
    return plain(rest) | plain([first], rank=2, alpha=3.0)


ATTENTION, TEXT, ALL = chosen(".attentions."), chosen("text_encoder."), list(LAYERS.values())
KINDS: dict[str, Callable[[], Tensors]] = {
    "all": lambda: written(plain(ALL)),
    "alpha": lambda: written(plain(ATTENTION, alpha=3.0)),
    "perlayer": lambda: kohya.to_kohya(mixed_sizes(), FACTS.names().kohya, dtype=torch.float32),
    "rslora": lambda: written(plain(ATTENTION + TEXT, alpha=8.0)),
    "pissa": lambda: written(plain(ALL, rank=8, alpha=8.0)),
    "lokr": lambda: lycoris("lokr"),
    "loha": lambda: lycoris("loha"),
    "oft": lambda: lycoris("oft"),
    "dora_all_a": lambda: dora(ALL, alpha=2.0),
    "dora1": lambda: dora(ATTENTION, alpha=4.0),
    "bundle": lambda: written(plain(ATTENTION + TEXT)) | to_bundle({"qux": torch.randn(2, 32)}, [32]),
    "te_q": lambda: written(plain(chosen(".attn1.") + chosen("self_attn.q_proj"))),
    "self": lambda: written(plain(chosen(".attn1.to_q"))),
}
WRONG = "wrong"
"""Every layer is changed, in another way than the file means."""
NOTHING = "nothing"
RUNS: dict[str, tuple[int, dict[str, str]]] = {
    "all": (289, {}),
    "alpha": (192, {}),
    "perlayer": (289, {}),
    "rslora": (204, {}),
    "pissa": (289, {}),
    "lokr": (289, {"additional-networks": NOTHING, "kohya": NOTHING}),
    "loha": (289, {"additional-networks": NOTHING, "kohya": NOTHING}),
    "oft": (289, dict.fromkeys(("Forge", "SD.Next", "additional-networks", "kohya"), NOTHING)),
    "dora_all_a": (289, dict.fromkeys(("SD.Next", "additional-networks", "kohya"), WRONG)),
    "dora1": (192, {"additional-networks": WRONG, "kohya": WRONG}),
    "bundle": (204, {}),
    "te_q": (66, {}),
    "self": (16, {}),
}
"""Kind of file -> modules in it, and the programs that did not apply all of them as the file means."""
UNRECORDED = {
    ("rslora", "InvokeAI"), ("oft", "InvokeAI"), ("te_q", "InvokeAI"), ("self", "InvokeAI"), ("self", "Forge"),
    ("pissa", "additional-networks"), ("bundle", "additional-networks"), ("te_q", "additional-networks"),
    ("self", "additional-networks"),
    # It stopped with an error, for which the record gives no cause.
    ("rslora", "SD.Next"), ("te_q", "SD.Next"), ("self", "SD.Next"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_as_the_programs_took_them(kind: str) -> None:
    made, (modules, others) = KINDS[kind](), RUNS[kind]
    meant = published.read(made, BASE, FACTS.names())
    assert not meant.faults and len(meant.changes) == modules
    readings = {name: MATCHERS[name](made, BASE) for name in STATED if (kind, name) not in UNRECORDED}
    verdicts = {v.consumer: v for v in compare.judge(meant.changes, readings, BASE, list(made), [])}
    for name, reading in readings.items():
        wanted = others.get(name)
        assert changed(reading) == (0 if wanted == NOTHING else modules), name
        assert verdicts[name].ok == (wanted is None), verdicts[name]


def replaced(tensors: Tensors, old: str, new: str) -> Tensors:
    return {key.replace(old, new): value for key, value in tensors.items()}


def set_to(layer: Layer, **leaves: Tensor | None) -> Callable[[Tensors], Tensors]:
    """One layer's leaves (alpha, down, up, dora_scale, bias) changed; None: taken out."""
    names = {"down": "lora_down.weight", "up": "lora_up.weight"}

    def change(tensors: Tensors) -> Tensors:
        new = {f"{layer.kohya}.{names.get(leaf, leaf)}": value for leaf, value in leaves.items()}
        return {key: value for key, value in (tensors | new).items() if value is not None}

    return change


def of(layer: Layer, leaf: str) -> Tensor:
    w = PLAIN[layer.path]
    return {"down": w.down, "up": w.up}[leaf].clone()


def spoilt(tensor: Tensor, value: float) -> Tensor:
    tensor.view(-1)[0] = value
    return tensor


def without(tensors: Tensors, mark: str) -> Tensors:
    return {key: value for key, value in tensors.items() if mark not in key}


def each(ending: str, change: Callable[[Tensor], Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {k: change(v) if k.endswith(ending) else v for k, v in tensors.items()}


PLAIN = plain(ALL)
Q = LAYERS["unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_q"]
ATTN1_Q = LAYERS["unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"]
CONV = LAYERS["unet.mid_block.resnets.0.conv1"]
PROJ_IN = LAYERS["unet.mid_block.attentions.0.proj_in"]
CONV_IN = {
    "lora_down.weight": torch.ones(4, 4, 3, 3),
    "lora_up.weight": torch.ones(96, 4, 1, 1),
    "alpha": torch.ones(()),
}
assert Q.shape[0] == Q.shape[1] and len(PROJ_IN.shape) == 4


def flat(tensor: Tensor) -> Tensor:
    return tensor.flatten(1).contiguous()


def turned(layer: Layer) -> Callable[[Tensors], Tensors]:
    return set_to(layer, down=of(layer, "up").T.contiguous(), up=of(layer, "down").T.contiguous())


def same(tensors: Tensors) -> Tensors:
    return tensors


# name -> how it was made, and how many layers A1111, ComfyUI, additional-networks and kohya changed; None: not run,
# 0: nothing, most often because the program stopped.
Row = tuple[Callable[[Tensors], Tensors], int, int, int | None, int | None]
VARIANTS: dict[str, Row] = {
    "good": (same, 289, 289, None, None),
    "one_alpha": (set_to(Q, alpha=torch.tensor(8.0)), 289, 289, 289, 289),
    "all_alpha1": (each(".alpha", torch.ones_like), 289, 289, None, None),
    "renamed": (lambda t: replaced(t, Q.kohya + ".", Q.kohya.replace("to_q", "q") + "."), 288, 288, None, None),
    "transposed": (turned(Q), 289, 289, None, None),
    "transposed_square": (turned(ATTN1_Q), 289, 289, None, None),
    "no_te_out": (lambda t: without(t, "self_attn_out_proj"), 287, 287, None, None),
    "inf": (set_to(Q, up=spoilt(of(Q, "up"), math.inf)), 289, 289, 289, 289),
    "fp16_overflow": (each("lora_up.weight", lambda m: (m * 40000).half()), 289, 289, None, None),
    "te1": (lambda t: replaced(t, "lora_te_", "lora_te1_"), 289, 289, None, None),
    "te_flat": (lambda t: replaced(t, "lora_te_text_model_", "lora_te_"), 277, 277, None, None),
    "conv_in": (lambda t: t | {f"lora_unet_conv_in.{k}": v for k, v in CONV_IN.items()}, 290, 290, None, None),
    "stranger": (lambda t: t | {"something_else.weight": torch.ones(3)}, 289, 289, None, None),
    "nan": (set_to(Q, down=spoilt(of(Q, "down"), math.nan)), 289, 289, None, None),
    "rank_mismatch": (set_to(Q, down=of(Q, "down")[:2]), 288, 288, None, None),
    "one_rank2": (set_to(Q, down=of(Q, "down")[:2], up=of(Q, "up")[:, :2].contiguous()), 289, 289, None, None),
    "no_alpha": (lambda t: without(t, ".alpha"), 289, 289, None, None),
    "no_up": (set_to(Q, up=None), 0, 288, None, None),
    "no_down": (set_to(Q, down=None), 0, 0, None, None),
    "conv_flat": (set_to(CONV, down=flat(of(CONV, "down"))), 289, 289, 289, 0),
    "conv_up2d": (set_to(CONV, up=flat(of(CONV, "up"))), 289, 289, 289, 0),
    "projin_linear": (set_to(PROJ_IN, down=flat(of(PROJ_IN, "down")), up=flat(of(PROJ_IN, "up"))), 289, 289, 289, 0),
    "linear_as_conv": (
        set_to(Q, down=of(Q, "down")[..., None, None], up=of(Q, "up")[..., None, None]), 289, 289, 289, 0,
    ),
    "alpha_vec1": (set_to(Q, alpha=torch.tensor([2.0])), 289, 289, 0, 289),
    "alpha0": (set_to(Q, alpha=torch.tensor(0.0)), 288, 288, None, None),
    "alpha_nan": (set_to(Q, alpha=torch.tensor(math.nan)), 289, 289, None, None),
    "alpha_int": (set_to(Q, alpha=torch.tensor(2)), 289, 289, None, None),
    "all_zero": (each("lora_up.weight", torch.zeros_like), 0, 0, None, None),
    "to_out": (lambda t: replaced(t, "_to_out_0.", "_to_out."), 0, 257, None, None),
    "one_dora": (set_to(Q, dora_scale=torch.ones(1, Q.shape[1])), 289, 289, None, None),
    "fp8": (each(".weight", lambda m: m.to(torch.float8_e4m3fn)), 289, 289, 289, 289),
    "fp64": (lambda t: {key: value.double() for key, value in t.items()}, 289, 289, None, None),
    "v2_true": (same, 289, 289, None, None),
    "sdxl_meta": (same, 289, 289, None, None),
    "no_meta": (same, 289, 289, None, None),
    "width": (set_to(Q, down=of(Q, "down")[:, :-1].contiguous()), 288, 288, None, None),
    "bias_leaf": (set_to(Q, bias=torch.ones(5)), 288, 289, None, None),
    "truncated": (same, 0, 0, None, None),
    "trailing": (same, 0, 0, None, None),
}  # fmt: skip
METADATA = {
    "v2_true": {"ss_v2": "True"},
    "sdxl_meta": {"ss_base_model_version": "sdxl_base_v1-0"},
    "no_meta": {},
}
RIGHT = {
    "good", "te1", "no_alpha", "conv_up2d", "projin_linear", "linear_as_conv", "alpha_vec1", "alpha_int", "one_rank2",
    "v2_true", "sdxl_meta", "no_meta", "fp8", "fp64", "one_alpha", "all_alpha1", "transposed", "transposed_square",
    "conv_flat", "no_te_out", "one_dora", "conv_in", "alpha0", "fp16_overflow", "all_zero",
}  # fmt: skip
"""Files that mean a change which A1111 and ComfyUI make, whatever it is."""


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in ("truncated", "trailing")])
def test_variants_as_the_programs_took_them(name: str) -> None:
    change, *wanted = VARIANTS[name]
    made = change(dict(written(PLAIN)))
    programs = ("A1111", "ComfyUI", "additional-networks", "kohya")
    for program, count in zip(programs, wanted, strict=True):
        reading = MATCHERS[program](made, BASE)
        if count is not None:
            assert changed(reading) == count, (program, reading.faults[:2])
        if program in ("A1111", "ComfyUI"):
            meant = published.read(made, BASE, FACTS.names())
            (verdict,) = compare.judge(meant.changes, {program: reading}, BASE, list(made), meant.faults)
            assert verdict.ok == (name in RIGHT), (program, str(verdict))


def test_a_flat_convolution_is_random_in_additional_networks() -> None:
    made = VARIANTS["conv_flat"][0](written(PLAIN))
    (fault,) = MATCHERS["additional-networks"](made, BASE).faults
    assert fault.key == f"{CONV.kohya}.lora_down.weight" and "a random one" in fault.why


@pytest.mark.parametrize(("name", "count"), [("truncated", -1000), ("trailing", 4)])
def test_a_file_of_another_length_is_no_file(name: str, count: int, tmp_path: Path) -> None:
    assert VARIANTS[name][1:3] == (0, 0)
    path = tmp_path / "x.safetensors"
    io.save_safetensors(path, written(PLAIN), {})
    data = path.read_bytes()
    path.write_bytes(data[:count] if count < 0 else data + b"\0" * count)
    with pytest.raises(UserError, match=r"truncated|bytes too many"):
        open_lora(path)


@pytest.mark.parametrize(("name", "hidden"), [("v2_true", True), ("sdxl_meta", True), ("no_meta", False)])
def test_where_a1111_lists_a_file(name: str, hidden: bool) -> None:
    """ss_v2 counts as SD 2, the version of SDXL as SDXL; what has no metadata is shown beside every model."""
    assert (a1111.hidden(METADATA[name], FACTS.lora.base_version) is not None) == hidden


def test_every_cell_of_the_record_is_here() -> None:
    assert len(KINDS) == len(RUNS) == 13 and len(VARIANTS) == 39
    assert {name for _, name in UNRECORDED} <= set(STATED)


def test_inspect_says_who_reads_a_lokr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lokr.safetensors"
    io.save_safetensors(path, lycoris("lokr"), {"ss_base_model_version": "sd_v1"})
    assert main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    for program in ("A1111", "ComfyUI", "Forge", "InvokeAI", "SD.Next"):
        assert f"{program}: yes" in shown
    assert "additional-networks: no: " in shown and "kohya: no: " in shown


def test_some_rows_of_what_peft_adds_are_rows_of_all_that_it_adds() -> None:
    torch.manual_seed(0)
    layers = {"linear": nn.Linear(12, 20), "conv": nn.Conv2d(4, 20, 3), "flat": nn.Conv2d(4, 20, 1)}
    model = get_peft_model(nn.ModuleDict(layers), LoraConfig(r=3, lora_alpha=5, target_modules=list(layers)))
    for name, module in model.base_model.model.items():
        b = module.lora_B["default"].weight
        nn.init.normal_(b)
        before, whole = b.clone(), module.get_delta_weight("default").flatten(1)
        delta = run_diffusers._delta(module, "default", slice(5, 9)).flatten(1)
        assert torch.equal(delta, whole[5:9]) or (delta - whole[5:9]).abs().max() < 1e-6 * whole.abs().max(), name
        assert torch.equal(module.lora_B["default"].weight, before) and module.lora_B["default"].weight is b


def test_an_oft_that_has_hardly_turned_is_right_and_one_turned_back_is_not() -> None:
    """R is about 1 in every program, so float32 keeps seven digits of it, and fewer of R - I."""
    g = torch.Generator().manual_seed(0)
    (path, _), *_ = ((path, layer) for path, layer in LAYERS.items() if path.endswith("attn1.to_q"))
    for size, width in ((1e-5, 4), (1e-4, 4), (1e-3, 4), (1e-5, 32), (1e-3, 32)):
        blocks = size * torch.randn(4, width, width, generator=g)
        leaves = {"oft_blocks": blocks - blocks.mT}
        wrong = {"oft_blocks": blocks.mT - blocks}
        for change, right in ((leaves, True), (wrong, False)):
            reading = Reading({path: Delta(change)})
            (verdict,) = compare.judge({path: Delta(leaves)}, {"ComfyUI": reading}, BASE, [], [])
            assert verdict.ok is right, size
