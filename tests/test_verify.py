"""Each consumer's verdict on good files, and on files that were spoilt in one way each."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import lora_files
from conftest import offline
from lora_files import FEW, KOHYA, MID, dense
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.cli import main
from lora_scripts.errors import UserError
from lora_scripts.families.sd1.names import sd1
from lora_scripts.loras import dialects, kohya
from lora_scripts.loras import verify as verifying
from lora_scripts.loras.consumers import CONSUMERS, RUN, STATED, compare, published
from lora_scripts.loras.consumers.compare import Verdict
from lora_scripts.loras.file import open_lora
from lora_scripts.loras.proof import BOUNDS, prove
from lora_scripts.loras.verify import MATCHERS, verify

Q, K = KOHYA[f"{MID}.attn1.to_q"], KOHYA[f"{MID}.attn2.to_k"]
TE = KOHYA["text_encoder.encoder.layers.0.self_attn.q_proj"]
Tensors = dict[str, Tensor]


def verdicts(path: Path, base: Path | None = None, reference: Path | None = None) -> dict[str, Verdict]:
    """Of every consumer; without a base, on a small model that has the layers of FEW."""
    if base is not None:
        return {v.consumer: v for v in verify(path, base, reference, CONSUMERS)}
    expected, _ = verifying.expected_by(open_lora(reference or path, lora_files.FACTS), lora_files.SMALL)
    source = open_lora(path, lora_files.FACTS)
    return {v.consumer: v for v in verifying.check(source, lora_files.SMALL, expected, CONSUMERS)}


def test_a_whole_file_is_right_everywhere(base: Path, tmp_path: Path) -> None:
    """Every layer that can be trained: linear, convolution, text encoder; rank unlike alpha."""
    modules = lora_files.weights(lora_files.TRAINABLE)
    path = lora_files.write(tmp_path / "x.safetensors", lora_files.tensors(modules))
    found = verdicts(path, base)
    assert tuple(found) == CONSUMERS
    for verdict in found.values():
        assert verdict.ok and verdict.right == verdict.total == len(modules) == 283, verdict
        assert 0 < verdict.largest < 3e-8
    line = str(prove(path, base, modules, "fp32"))
    assert line.startswith(f"verified: 283 of 283 modules in {', '.join(CONSUMERS)}; ΔW read to ")
    assert line.endswith(", no bit of it lost in fp32")


def test_the_expected_change_is_the_published_formula() -> None:
    modules = lora_files.weights()
    reading = published.read(lora_files.tensors(modules), lora_files.BASE, sd1())
    assert not reading.faults and reading.changes.keys() == modules.keys()
    for path, w in modules.items():
        torch.testing.assert_close(reading.changes[path].exact(), dense(w).flatten(1), rtol=1e-12, atol=1e-14)


def without(*keys: str) -> Callable[[Tensors], Tensors]:
    return lambda t: {key: value for key, value in t.items() if key not in keys}


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda t: {key.replace(old, new, 1) if key.startswith(old) else key: value for key, value in t.items()}


def changed(key: str, change: Callable[[Tensor], Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda t: t | {key: change(t[key]).contiguous()}


def swapped(a: str, b: str) -> Callable[[Tensors], Tensors]:
    return lambda t: t | {a: t[b], b: t[a]}


def with_conv_in(t: Tensors) -> Tensors:
    more = {"lora_down.weight": torch.randn(4, 4, 3, 3), "lora_up.weight": torch.randn(32, 4, 1, 1)}
    return t | {f"lora_unet_conv_in.{leaf}": v for leaf, v in (more | {"alpha": torch.tensor(2.0)}).items()}


ALL = set(CONSUMERS)
MUTATIONS: dict[str, tuple[Callable[[Tensors], Tensors], set[str], str]] = {
    "no up": (without(f"{Q}.lora_up.weight"), ALL, Q),
    "no down": (without(f"{Q}.lora_down.weight"), ALL, Q),
    "no alpha": (without(f"{Q}.alpha"), ALL - {"diffusers"}, Q),  # which takes the other modules' alpha for it
    "no module": (without(*(f"{Q}.{leaf}" for leaf in ("lora_up.weight", "lora_down.weight", "alpha"))), ALL, "attn1"),
    # diffusers does not see the alpha of one attention layer among others: the change is the trained one by luck.
    "another alpha": (changed(f"{K}.alpha", lambda a: a * 2), ALL - {"diffusers"}, K),
    "every alpha": (lambda t: {k: v * 2 if k.endswith(".alpha") else v for k, v in t.items()}, ALL, "lora_"),
    "swapped alpha": (swapped(f"{Q}.alpha", f"{K}.alpha"), ALL, ""),
    "transposed down": (changed(f"{K}.lora_down.weight", lambda m: m.T), ALL, K),
    "transposed up": (changed(f"{K}.lora_up.weight", lambda m: m.T), ALL, K),
    "turned": (changed(f"{Q}.lora_down.weight", lambda m: m.flip(1)), ALL, Q),
    "swapped modules": (swapped(f"{Q}.lora_up.weight", f"{KOHYA[FEW[1]]}.lora_up.weight"), ALL, "attn1_to_"),
    "derived text name": (
        renamed("lora_te_text_model_", "lora_te_"),
        ALL - {"diffusers", "PEFT"},
        "lora_te_encoder_layers_0",
    ),
    "text encoder of SDXL, 1": (
        renamed("lora_te_", "lora_te1_"),
        {"InvokeAI", "SD.Next", "additional-networks", "kohya"},
        "lora_te1_text_model_encoder_layers_0",
    ),
    "text encoder of SDXL, 2": (renamed("lora_te_", "lora_te2_"), ALL, "lora_te2_text_model_encoder_layers_0"),
    "prefix": (renamed("lora_unet_mid", "unet_mid"), ALL, "unet_mid_block"),
    "conv_in": (with_conv_in, {"additional-networks", "kohya"}, "lora_unet_conv_in"),
    "strange leaf": (lambda t: t | {f"{Q}.gamma": torch.ones(1)}, ALL, f"{Q}.gamma"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_spoilt_file_fails_with_consumer_and_key(name: str, tmp_path: Path) -> None:
    spoil, failing, key = MUTATIONS[name]
    modules = lora_files.weights()
    if name == "swapped alpha":  # of two modules whose alphas differ
        modules |= {f"{MID}.attn2.to_k": lora_files.weights(alpha=4.0)[f"{MID}.attn2.to_k"]}
    good = lora_files.tensors(modules)
    reference = lora_files.write(tmp_path / "good.safetensors", good)
    path = lora_files.write(tmp_path / "bad.safetensors", spoil(dict(good)))
    # conv_in is in no reference: it is a layer that was never trained.
    found = verdicts(path, reference=None if name == "conv_in" else reference)
    for consumer, verdict in found.items():
        if consumer in failing:
            assert (not verdict.ok and verdict.right < verdict.total) or name in ("strange leaf", "conv_in"), verdict
            assert not verdict.ok and key in str(verdict), (verdict, key)
        else:
            assert verdict.ok, verdict


def test_alphas_that_differ_fail_in_diffusers_alone(tmp_path: Path) -> None:
    """Why every file of ours has one rank and one alpha; the padded form of the same file is right everywhere."""
    modules = lora_files.weights() | lora_files.weights(FEW[:2], rank=2, alpha=3.0)
    path = lora_files.write(tmp_path / "mixed.safetensors", lora_files.tensors(modules))
    assert [name for name, verdict in verdicts(path).items() if not verdict.ok] == ["diffusers"]
    one = kohya.to_kohya(modules, sd1().kohya, dtype=torch.float32)
    padded = lora_files.write(tmp_path / "padded.safetensors", one)
    assert all(verdict.ok for verdict in verdicts(padded, reference=path).values())


def test_diffusers_loses_the_text_encoders_attention_without_its_out_proj(tmp_path: Path) -> None:
    """diffusers 0.42.1 tells the age of a file by its `to_out`; when there is none, q, k and v are left out."""
    paths = [path for path in FEW if "out_proj" not in path]
    path = lora_files.write(tmp_path / "x.safetensors", lora_files.tensors(lora_files.weights(paths)))
    found = verdicts(path)
    assert [name for name, verdict in found.items() if not verdict.ok] == ["diffusers"]
    assert TE in str(found["diffusers"])


def test_who_reads_diffusers_names(base: Path, tmp_path: Path) -> None:
    """The known table: A1111 takes nothing, ComfyUI 64 of the 192 modules, InvokeAI and additional-networks refuse."""
    attention = [path for path in lora_files.TRAINABLE if ".attentions." in path]
    folded = dialects.to_diffusers(lora_files.weights(attention), sd1(), torch.float32)
    path = lora_files.write(tmp_path / "x.safetensors", folded.tensors, folded.metadata)
    rights = {name: verdict.right for name, verdict in verdicts(path, base).items()}
    wanted = {"diffusers": 192, "PEFT": 192, "A1111": 0, "ComfyUI": 64}
    none = dict.fromkeys(("InvokeAI", "SD.Next", "additional-networks", "kohya"), 0)
    assert rights == wanted | none | {"Forge": 64}


def test_published_block_names_of_sd1(tmp_path: Path) -> None:
    unet = [path for path in FEW if path.startswith("unet.")]
    made = kohya.to_kohya(lora_files.weights(unet), sd1().original, dtype=torch.float32)
    found = verdicts(lora_files.write(tmp_path / "x.safetensors", made))
    assert {name for name, verdict in found.items() if verdict.ok} == {"A1111", "ComfyUI", "Forge", "SD.Next", "PEFT"}
    assert not any(found[name].right for name in ("InvokeAI", "additional-networks", "kohya"))


def test_dora_is_right_where_it_is_read(tmp_path: Path) -> None:
    modules = lora_files.weights()
    made = lora_files.tensors(modules)
    for path in FEW:
        shape = lora_files.SHAPES[path]
        made[f"{KOHYA[path]}.dora_scale"] = torch.rand(1, shape[1], *(1,) * (len(shape) - 2)) + 1
    found = verdicts(lora_files.write(tmp_path / "x.safetensors", made))
    assert {name for name, verdict in found.items() if verdict.ok} == {"A1111", "ComfyUI", "Forge", "InvokeAI"}
    assert "is multiplied by alpha / rank = 0.5 once more" in str(found["SD.Next"])
    assert "dora_scale" in str(found["kohya"]) and "dora_scale is left out" in str(found["diffusers"])
    made[f"{Q}.dora_scale"] = torch.rand(64, 1)  # a length for every output
    found = verdicts(lora_files.write(tmp_path / "rows.safetensors", made))
    assert f"{Q}.dora_scale" in str(found["A1111"]) and f"{Q}.dora_scale" in str(found["InvokeAI"])


def test_the_proof_compares_with_what_was_trained(base: Path, tmp_path: Path) -> None:
    modules = lora_files.weights(size=1e-4)
    path = lora_files.write(tmp_path / "x.safetensors", lora_files.tensors(modules))
    proof = prove(path, base, modules, "fp32")
    assert proof.modules == 10 and proof.consumers == CONSUMERS
    assert proof.rounding == 0 and proof.reading < 1e-6 and "10 of 10 modules" in str(proof)
    trained = modules | {FEW[3]: lora_files.weights(size=1.001e-4)[FEW[3]]}
    for spoilt, words in (
        (trained, "off by 0.1 % of the ΔW that was trained, where fp32 loses 0.0 % at most"),
        (dict(list(modules.items())[1:]), f"{FEW[0]} was not trained"),
        (modules | {"unet.mid_block.resnets.1.conv1": modules[FEW[5]]}, "unet.mid_block.resnets.1.conv1 is not in it"),
    ):
        with pytest.raises(UserError) as caught:
            prove(path, base, spoilt, "fp32")
        assert words in str(caught.value), str(caught.value)


def test_what_an_earlier_lora_brings_and_some_programs_leave_out_is_no_fault(base: Path, tmp_path: Path) -> None:
    """An `init_lora` of lycoris-lora's, whose first layer is not trained on and stays in the file."""
    modules = lora_files.weights([*FEW, "unet.conv_in"])
    made = kohya.to_kohya(modules, sd1().in_kohyas, dtype=torch.float32)
    proof = prove(lora_files.write(tmp_path / "x.safetensors", made), base, modules, "fp32")
    assert proof.modules == 11 and set(CONSUMERS) - set(proof.consumers) == set(proof.unread_by["outer"])


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_the_proof_tells_the_rounding_and_bounds_it(
    precision: str, dtype: torch.dtype, base: Path, tmp_path: Path
) -> None:
    """A file of the next lower precision is refused: what was trained, not what was rounded, is the measure."""
    modules = lora_files.weights([path for path in lora_files.TRAINABLE if ".attn" in path][::4])
    path = lora_files.write(tmp_path / "x.safetensors", lora_files.tensors(modules, dtype))
    proof = prove(path, base, modules, precision)
    kept = [(dense(w), dense(LoraWeights(w.down.to(dtype), w.up.to(dtype), w.alpha))) for w in modules.values()]
    lost = math.hypot(*((b - a).norm() for a, b in kept)) / math.hypot(*(a.norm() for a, _ in kept))
    assert proof.rounding == pytest.approx(lost) and 1e-4 < proof.rounding < BOUNDS[precision]
    assert proof.reading < 1e-5
    finer, mend = (
        ("fp32", "check the disk") if precision == "fp16" else ("fp16", "go on with --resume save_precision=fp32$")
    )
    with pytest.raises(UserError, match=f"ΔW that was trained, where {finer} loses.*; {mend}"):
        prove(path, base, modules, finer)


def test_one_infinity_fails_in_every_program(base: Path, tmp_path: Path) -> None:
    modules = lora_files.weights()
    made = lora_files.tensors(modules)
    made[f"{Q}.lora_up.weight"][0, 0] = math.inf
    path = lora_files.write(tmp_path / "x.safetensors", made)
    for verdict in verify(path, base, None, CONSUMERS):
        assert not verdict.ok and "not finite" in str(verdict) and Q in str(verdict), verdict
    with pytest.raises(UserError, match="not finite"):
        prove(path, base, modules, "fp32")


def test_invokeai_cannot_tell_the_base_of_every_file(tmp_path: Path) -> None:
    path = lora_files.write(tmp_path / "x.safetensors", lora_files.tensors(lora_files.weights([f"{MID}.ff.net.2"])))
    found = verdicts(path)
    assert all(verdict.ok for verdict in found.values())
    assert "cannot tell on installing" in str(found["InvokeAI"]) and "cannot tell" not in str(found["A1111"])


def test_the_command(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = lora_files.write(tmp_path / "good.safetensors", lora_files.tensors(lora_files.weights()))
    words = ["verify", str(good), "--base", str(base)]
    with offline():
        assert main([*words, "--in", "a1111", "kohya", "PEFT"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in shown] == ["PEFT", "A1111", "kohya"]
    assert shown[1].startswith("A1111: 10 of 10 modules, ΔW equal (")
    bad = lora_files.write(tmp_path / "bad.safetensors", with_conv_in(lora_files.tensors(lora_files.weights())))
    assert main(["verify", str(bad), "--base", str(base), "--in", "additional-networks", "A1111"]) == 2
    told = capsys.readouterr()
    assert "additional-networks: 0 of 11 modules; lora_unet_conv_in." in told.out
    assert told.err.startswith(f"error: {bad}: not as trained in additional-networks; ")
    assert main(["verify", str(base), "--base", str(base)]) == 2
    assert "not a LoRA" in capsys.readouterr().err
    assert main([*words, "--in", "Photoshop"]) == 2


def test_the_matchers_run_nothing_and_diffusers_and_peft_are_run() -> None:
    assert tuple(MATCHERS) == STATED and (*RUN, *STATED) == CONSUMERS
    assert compare.judge({}, {}, lora_files.BASE, [], []) == []
