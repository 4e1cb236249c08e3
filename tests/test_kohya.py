"""The name table against the modules of the real classes, and the file's effect through diffusers' own loader."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from lora_scripts.adapters.weights import LoraWeights, uniform
from lora_scripts.cli import main
from lora_scripts.errors import UserError
from lora_scripts.families.sd1.names import sd1, sd1_table
from lora_scripts.loras import file as loras
from lora_scripts.loras import kohya, reading
from lora_scripts.loras.file import plain

Q = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
KQ = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def small_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(32, 64, 64, 96),
        layers_per_block=2,
        cross_attention_dim=64,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )


def small_text() -> CLIPTextModel:
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 1}
    return CLIPTextModel(CLIPTextConfig(**shape))


def layers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    return {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)}


def paths_of(unet: torch.nn.Module, text: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Our path -> layer, of everything in the two models that the table names."""
    found = {f"unet.{name}": layer for name, layer in layers(unet).items()}
    found |= {f"text_encoder.{name.removeprefix('text_model.')}": layer for name, layer in layers(text).items()}
    outside = ("unet.conv_in", "unet.conv_out", "unet.time_embedding.")  # additional-networks refuses files with them
    return {path: layer for path, layer in found.items() if not path.startswith(outside)}


def random_lora(modules: dict[str, torch.nn.Module], rank: int, alpha: float) -> dict[str, LoraWeights]:
    torch.manual_seed(1)
    result = {}
    for path, layer in modules.items():
        shape = layer.weight.shape
        down = 0.1 * torch.randn(rank, *shape[1:])
        result[path] = LoraWeights(down, 0.1 * torch.randn(shape[0], rank, *(1,) * (len(shape) - 2)), alpha)
    return result


def delta(weights: LoraWeights) -> torch.Tensor:
    """By hand: ΔW = (alpha / rank) · up @ down, in float64."""
    up, down = weights.up.double().flatten(1), weights.down.double().flatten(1)
    return (weights.alpha / weights.down.shape[0] * up @ down).reshape(weights.up.shape[0], *weights.down.shape[1:])


def test_the_table_names_every_layer_of_the_real_classes() -> None:
    modules = paths_of(small_unet(), small_text())
    table = sd1_table(text_layers=2)
    assert set(modules) <= set(table)
    rest = set(table) - set(modules)
    assert all(path.endswith(".conv_shortcut") for path in rest)  # only where the width changes
    assert len(set(table.values())) == len(table)


def test_the_count_of_modules_that_every_trainer_knows() -> None:
    """kohya's trainer reports 192 modules of the UNet (with proj_in and proj_out) and 72 of the text encoder."""
    table = sd1_table()
    assert sum(".attentions." in path for path in table) == 192
    assert sum(path.startswith("text_encoder.") for path in table) == 72


def test_names_as_published() -> None:
    table = sd1_table()
    assert table[Q] == KQ
    assert table["unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"] == (
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0"
    )
    assert table["unet.up_blocks.3.attentions.2.transformer_blocks.0.ff.net.0.proj"] == (
        "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_ff_net_0_proj"
    )
    assert table["text_encoder.encoder.layers.11.mlp.fc2"] == "lora_te_text_model_encoder_layers_11_mlp_fc2"
    assert table["unet.down_blocks.1.downsamplers.0.conv"] == "lora_unet_down_blocks_1_downsamplers_0_conv"
    assert "unet.conv_in" not in table and "unet.down_blocks.3.attentions.0.proj_in" not in table


@pytest.mark.parametrize(("rank", "alpha", "dtype"), [(4, 1.0, torch.float32), (3, 7.0, torch.float16)])
def test_there_and_back(rank: int, alpha: float, dtype: torch.dtype) -> None:
    modules = random_lora(paths_of(small_unet(), small_text()), rank, alpha)
    tensors = kohya.to_kohya(modules, sd1().kohya, dtype=dtype)
    assert len(tensors) == 3 * len(modules) and {tensor.dtype for tensor in tensors.values()} == {dtype}
    back = plain(reading.read(tensors, sd1()))
    assert back.keys() == modules.keys()
    for path, weights in modules.items():
        assert torch.equal(back[path].down, weights.down.to(dtype)) and torch.equal(back[path].up, weights.up.to(dtype))
        assert back[path].alpha == alpha


def test_diffusers_applies_the_same_change() -> None:
    """Every module, convolutions and the text encoder too, alpha ≠ rank, through the loader that people use."""
    unet, text = small_unet(), small_text()
    modules = paths_of(unet, text)
    before = {path: layer.weight.detach().double().clone() for path, layer in modules.items()}
    lora = random_lora(modules, rank=4, alpha=3.0)
    tensors = kohya.to_kohya(lora, sd1().kohya, dtype=torch.float32)
    pipe = StableDiffusionPipeline(
        vae=None, text_encoder=text, tokenizer=None, unet=unet, scheduler=None, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.load_lora_weights(dict(tensors))
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    after = paths_of(pipe.unet, pipe.text_encoder)
    worst = max(float((after[p].weight.double() - before[p] - delta(lora[p])).abs().max()) for p in lora)
    assert min(float(delta(weights).abs().max()) for weights in lora.values()) > 1e-2
    assert worst < 1e-7


def test_mixed_ranks_and_alphas_become_one_without_changing_the_effect() -> None:
    unet = small_unet()
    modules = dict(list(paths_of(unet, small_text()).items())[:12])
    lora = random_lora(modules, 4, 2.0)
    lora |= {path: w for i, (path, w) in enumerate(random_lora(modules, 2, 3.0).items()) if i % 2}
    tensors = kohya.to_kohya(lora, sd1().kohya, dtype=torch.float32)
    assert {float(value) for key, value in tensors.items() if key.endswith(".alpha")} == {4.0}
    back = plain(reading.read(tensors, sd1()))
    assert {weights.rank for weights in back.values()} == {4}
    assert max(float((delta(back[path]) - delta(lora[path])).abs().max()) for path in lora) < 1e-8


def test_equal_scales_are_only_padded() -> None:
    lora = {Q: LoraWeights(torch.randn(2, 8), torch.randn(8, 2), 1.0)}
    lora[Q.replace("to_q", "to_k")] = LoraWeights(torch.randn(4, 8), torch.randn(8, 4), 2.0)
    one = uniform(lora)[Q]
    assert one.alpha == 2.0 and one.rank == 4
    assert torch.equal(one.up[:, :2], lora[Q].up) and not one.up[:, 2:].any() and not one.down[2:].any()


def test_an_alpha_that_half_precision_would_round_stays_whole() -> None:
    lora = {Q: LoraWeights(torch.zeros(4, 8), torch.zeros(8, 4), 0.1)}
    tensors = kohya.to_kohya(lora, sd1().kohya, dtype=torch.bfloat16)
    assert tensors[KQ + ".alpha"].dtype == torch.float32 and tensors[KQ + ".lora_up.weight"].dtype == torch.bfloat16
    assert plain(reading.read(tensors, sd1()))[Q].alpha == pytest.approx(0.1, rel=1e-7)


def test_without_alpha_the_rank_counts() -> None:
    tensors = {KQ + ".lora_down.weight": torch.ones(4, 8), KQ + ".lora_up.weight": torch.ones(8, 4)}
    assert plain(reading.read(tensors, sd1()))[Q].alpha == 4.0


GOOD = {
    KQ + ".lora_down.weight": torch.ones(4, 8),
    KQ + ".lora_up.weight": torch.ones(8, 4),
    KQ + ".alpha": torch.tensor(4.0),
}
NAN = torch.full((8, 4), float("nan"))
FAULTS = {
    "typo": ({KQ.replace("attn1", "atn1") + ".alpha": torch.tensor(1.0)}, f"the nearest known one is {KQ}.alpha"),
    "layer": (
        {"lora_te_text_model_encoder_layers_12_mlp_fc1.alpha": torch.tensor(1.0)},
        "unknown key lora_te_text_model_encoder_layers_12",
    ),
    "leaf": ({KQ + ".bias": torch.ones(8)}, f"unknown key {KQ}.bias"),
    "no up": ({KQ + ".lora_up.weight": None}, f"{KQ} has no .lora_up.weight"),
    "no down": ({KQ + ".lora_down.weight": None}, f"{KQ} has no .lora_down.weight"),
    "alpha alone": (
        {KQ + ".lora_up.weight": None, KQ + ".lora_down.weight": None},
        "has no .lora_down.weight and no .lora_up.weight",
    ),
    "nan": ({KQ + ".lora_up.weight": NAN}, f"{KQ} holds values that are not finite numbers"),
    "alpha inf": ({KQ + ".alpha": torch.tensor(float("inf"))}, "not finite numbers"),
    "ranks": ({KQ + ".lora_up.weight": torch.ones(8, 3)}, "down [4, 8] and up [8, 3] do not fit each other"),
    "dimensions": ({KQ + ".lora_up.weight": torch.ones(8, 4, 1, 1)}, "do not fit each other"),
    "alpha shape": ({KQ + ".alpha": torch.ones(2)}, "has shape [2], not one number"),
    "diffusers": (
        {Q.replace("to_q", "to_qq") + ".lora_A.weight": torch.ones(4, 8)},
        f"the nearest known one is {Q}.lora_A.weight",
    ),
    "twice": ({Q + ".lora_A.weight": torch.ones(4, 8)}, "names a layer that the file has under another name, too"),
    "tucker": (
        {KQ + ".lora_mid.weight": torch.ones(4, 4, 3, 3)},
        "this is a LoCon whose Tucker core (lora_mid)",
    ),
    "loha": ({KQ + ".hada_w1_a": torch.ones(1)}, "no whole LoHa, LoKr or OFT"),
    "dora": ({KQ + ".dora_scale": torch.ones(1)}, "this is a DoRA"),
    "base": ({"model.diffusion_model.out.2.bias": torch.ones(4)}, "a whole checkpoint, not a LoRA"),
}


FILE = Path("x.safetensors")


@pytest.mark.parametrize("name", FAULTS)
def test_faulty_files_are_told(name: str) -> None:
    change, words = FAULTS[name]
    tensors = {key: value for key, value in (GOOD | change).items() if value is not None}
    with pytest.raises(UserError) as caught:
        plain(reading.read(tensors, sd1(), file=FILE), FILE)
    assert words in str(caught.value)
    assert all(line.startswith("x.safetensors: ") for line in str(caught.value).splitlines())


def test_all_faults_at_once() -> None:
    tensors = {KQ + ".lora_up.weight": torch.ones(8, 4), "lora_unet_nothing.alpha": torch.tensor(1.0)}
    with pytest.raises(UserError) as caught:
        plain(reading.read(tensors, sd1()))
    assert len(str(caught.value).splitlines()) == 2
    with pytest.raises(UserError, match="holds no tensors"):
        reading.read({}, sd1())


def test_what_cannot_be_written_is_told() -> None:
    good = LoraWeights(torch.ones(4, 8), torch.ones(8, 4), 4.0)
    with pytest.raises(UserError, match=r"1 modules have no name in a kohya LoRA file: unet\.conv_in"):
        kohya.to_kohya({"unet.conv_in": good}, sd1().kohya)
    large = LoraWeights(torch.full((4, 8), 1e5), torch.ones(8, 4), 4.0)
    with pytest.raises(UserError, match=r"not finite.*or save in fp32"):
        kohya.to_kohya({Q: large}, sd1().kohya)
    assert kohya.to_kohya({Q: large}, sd1().kohya, dtype=torch.float32)
    with pytest.raises(UserError, match="do not fit each other"):
        kohya.to_kohya({Q: LoraWeights(torch.ones(4, 8), torch.ones(8, 3), 4.0)}, sd1().kohya)


def test_a_locon_with_tucker_cores_is_read_as_a_plain_lora(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As lycoris-lora writes them with `use_tucker`; `verify` asks for the plain one: some programs pass cores over."""
    locon = pytest.importorskip("lycoris.modules.locon")
    conv = torch.nn.Conv2d(8, 16, 3, padding=1)
    theirs = locon.LoConModule("", conv, lora_dim=4, alpha=2.0, use_tucker=True)
    for name in ("lora_down", "lora_mid", "lora_up"):
        torch.nn.init.normal_(getattr(theirs, name).weight)
    stem, path = "lora_unet_down_blocks_0_resnets_0_conv1", tmp_path / "tucker.safetensors"
    save_file({f"{stem}.{leaf}": t.detach().contiguous() for leaf, t in theirs.custom_state_dict().items()}, path)
    want = (theirs.get_merged_weight()[0] - conv.weight).detach()
    plain_one = tmp_path / "plain.safetensors"
    assert main(["convert", str(path), "--to", "kohya", "--dtype", "fp32", "--output", str(plain_one)]) == 0
    for file in (path, plain_one):
        w = loras.read(file).weights["unet.down_blocks.0.resnets.0.conv1"]
        torch.testing.assert_close(w.alpha / w.rank * (w.up.flatten(1) @ w.down.flatten(1)).view_as(want), want)
    left = {key.partition(".")[2] for key in load_file(plain_one)}
    assert left == {"lora_down.weight", "lora_up.weight", "alpha"}
    assert main(["inspect", str(path)]) == 0 and "a LoCon with Tucker cores (lora_mid)" in capsys.readouterr().out
    assert main(["verify", str(path), "--base", str(base)]) == 2
    assert f"lora-scripts convert {path} --to kohya" in capsys.readouterr().err
