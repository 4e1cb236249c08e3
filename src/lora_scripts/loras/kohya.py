"""SD 1.x LoRA weights <-> kohya's file layout, by an explicit table: names are never derived from a library's module
names.

Leaves of a module: `.lora_down.weight` [rank, in] or [rank, in, k, k], `.lora_up.weight` [out, rank] or [out, rank, 1,
1] and `.alpha`, a scalar; ΔW = (alpha / rank) · up @ down. A DoRA has `.dora_scale` too, [1, in] or [1, in, 1, 1].
Nothing here reads or writes files.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lora_scripts.errors import UserError, raise_all

_DOWN, _UP, _ALPHA, _DORA = ".lora_down.weight", ".lora_up.weight", ".alpha", ".dora_scale"

_TRANSFORMER = {
    "proj_in": "proj_in",
    "transformer_blocks.0.attn1.to_q": "transformer_blocks_0_attn1_to_q",
    "transformer_blocks.0.attn1.to_k": "transformer_blocks_0_attn1_to_k",
    "transformer_blocks.0.attn1.to_v": "transformer_blocks_0_attn1_to_v",
    "transformer_blocks.0.attn1.to_out.0": "transformer_blocks_0_attn1_to_out_0",
    "transformer_blocks.0.attn2.to_q": "transformer_blocks_0_attn2_to_q",
    "transformer_blocks.0.attn2.to_k": "transformer_blocks_0_attn2_to_k",
    "transformer_blocks.0.attn2.to_v": "transformer_blocks_0_attn2_to_v",
    "transformer_blocks.0.attn2.to_out.0": "transformer_blocks_0_attn2_to_out_0",
    "transformer_blocks.0.ff.net.0.proj": "transformer_blocks_0_ff_net_0_proj",
    "transformer_blocks.0.ff.net.2": "transformer_blocks_0_ff_net_2",
    "proj_out": "proj_out",
}
_RESNET = ("conv1", "conv2", "conv_shortcut", "time_emb_proj")  # conv_shortcut: only where the width changes
_TEXT_LAYER = {
    "self_attn.q_proj": "self_attn_q_proj",
    "self_attn.k_proj": "self_attn_k_proj",
    "self_attn.v_proj": "self_attn_v_proj",
    "self_attn.out_proj": "self_attn_out_proj",
    "mlp.fc1": "mlp_fc1",
    "mlp.fc2": "mlp_fc2",
}

# What a key of another format gives away: (marks anywhere in a key, what the file is, what to do).
_OTHERS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("hada_w", "lokr_w", "oft_", "glora"), "a LyCORIS file (LoHa, LoKr, …)", "give a plain LoRA"),
    (("dora_scale",), "a DoRA", "bake it to a plain LoRA first: lora-scripts convert --bake-dora"),
    (
        ("bundle_emb.",),
        "a LoRA with words of its own in it",
        "give the one without them: train it without token_bundle",
    ),
    (("lora_mid",), "a LoCon with a Tucker core (lora_mid)", "bake it to a plain LoRA first"),
    (
        ("lora_te1_", "lora_te2_", "lora_unet_input_blocks_", "lora_unet_output_blocks_"),
        "a LoRA of SDXL",
        "give one of SD 1.x",
    ),
    (("lora_unet_double_blocks_", "single_transformer_blocks."), "a LoRA of FLUX", "give one of SD 1.x"),
    (
        ("lora_A.", "lora_B.", ".lora.down.", ".lora.up.", "_lora.down.", "_lora.up.", ".lora_linear_layer."),
        "a LoRA with PEFT or diffusers names, which the WebUI skips without a word",
        "convert it to kohya's names: lora-scripts convert FILE --to kohya",
    ),
    (
        ("model.diffusion_model.", "cond_stage_model.", "conditioner."),
        "a whole checkpoint, not a LoRA",
        "give it as base_model",
    ),
)


@dataclass(frozen=True)
class LoraWeights:
    """One module's LoRA; ΔW = (alpha / rank) · up @ down."""

    down: Tensor
    """[rank, in], of a convolution [rank, in, k, k]"""
    up: Tensor
    """[out, rank], of a convolution [out, rank, 1, 1]"""
    alpha: float
    dora: Tensor | None = None
    """Of a DoRA: the length m of every column of W + ΔW, [1, in] or [1, in, 1, 1]; see `formats.dora`."""

    @property
    def rank(self) -> int:
        return self.down.shape[0]


def sd1_table(text_layers: int = 12) -> dict[str, str]:
    """Our module path -> kohya's name, of every module of SD 1.x that a LoRA may change.

    Paths are `unet.<diffusers path>` and `text_encoder.<transformers path without text_model.>`.
    """
    table: dict[str, str] = {}

    def block(path: str, name: str, resnets: int, attentions: int) -> None:
        for j in range(resnets):
            table.update(
                {f"unet.{path}.resnets.{j}.{leaf}": f"lora_unet_{name}_resnets_{j}_{leaf}" for leaf in _RESNET}
            )
        for j in range(attentions):
            for leaf, short in _TRANSFORMER.items():
                table[f"unet.{path}.attentions.{j}.{leaf}"] = f"lora_unet_{name}_attentions_{j}_{short}"

    for i in range(4):
        block(f"down_blocks.{i}", f"down_blocks_{i}", resnets=2, attentions=2 if i < 3 else 0)
        if i < 3:
            table[f"unet.down_blocks.{i}.downsamplers.0.conv"] = f"lora_unet_down_blocks_{i}_downsamplers_0_conv"
    block("mid_block", "mid_block", resnets=2, attentions=1)
    for i in range(4):
        block(f"up_blocks.{i}", f"up_blocks_{i}", resnets=3, attentions=3 if i > 0 else 0)
        if i < 3:
            table[f"unet.up_blocks.{i}.upsamplers.0.conv"] = f"lora_unet_up_blocks_{i}_upsamplers_0_conv"
    for n in range(text_layers):
        for leaf, short in _TEXT_LAYER.items():
            table[f"text_encoder.encoder.layers.{n}.{leaf}"] = f"lora_te_text_model_encoder_layers_{n}_{short}"
    return table


def to_kohya(
    modules: Mapping[str, LoraWeights],
    *,
    dtype: torch.dtype = torch.float16,
    table: Mapping[str, str] | None = None,
    mixed: bool = False,
) -> dict[str, Tensor]:
    """The tensors of a kohya file: down, up and alpha of every module, one rank and one alpha for all (see `uniform`).

    `mixed=True` leaves ranks and alphas as they are, which not every consumer reads right.

    UserError for a module that kohya's layout has no name for, and for values that are not finite, also after rounding
    to `dtype`.
    """
    names = sd1_table() if table is None else table
    unnamed = [path for path in modules if path not in names]
    if unnamed:
        few = ", ".join(unnamed[:3]) + (", …" if len(unnamed) > 3 else "")
        text = f"{len(unnamed)} modules have no name in a kohya LoRA file: {few}"
        raise UserError(text, hint="leave them out of the targets")
    result: dict[str, Tensor] = {}
    errors = []
    for path, weights in (modules if mixed else uniform(modules)).items():
        _check_shapes(path, weights)
        down, up = (tensor.detach().to("cpu", dtype).contiguous() for tensor in (weights.down, weights.up))
        if not (_finite(down) and _finite(up)):
            hint = "train again with a lower learning rate" + (", or save in fp32" if dtype == torch.float16 else "")
            errors.append(UserError(f"the LoRA of {path} holds values that are not finite numbers", hint=hint))
        name = names[path]
        result |= {name + _DOWN: down, name + _UP: up, name + _ALPHA: _alpha(weights.alpha, dtype)}
        if weights.dora is not None:
            result[name + _DORA] = weights.dora.detach().to("cpu", dtype).contiguous()
    raise_all(errors[:10])
    return result


LYCORIS = ("hada_w1_a", "lokr_w1", "lokr_w1_a", "oft_blocks")
"""Leaves by which a LyCORIS module is known: LoHa's, LoKr's (whole or in factors), OFT's."""


def to_lycoris(modules: Mapping[str, Mapping[str, Tensor]], *, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a LyCORIS file: kohya's module names, the library's leaves. UserError for values not finite."""
    names = sd1_table()
    result: dict[str, Tensor] = {}
    errors = []
    for path, leaves in modules.items():
        for leaf, tensor in leaves.items():
            value = _alpha(tensor.item(), dtype) if leaf == "alpha" else tensor.to("cpu", dtype).contiguous()
            if not _finite(value):
                hint = "train again with a lower learning rate, or save in fp32"
                errors.append(UserError(f"{leaf} of {path} holds values that are not finite numbers", hint=hint))
            result[f"{names[path]}.{leaf}"] = value
    raise_all(errors[:10])
    return result


def is_lycoris(keys: Iterable[str]) -> bool:
    """That a file is one of LoHa, LoKr or OFT."""
    return any(key.endswith(tuple(f".{leaf}" for leaf in LYCORIS)) for key in keys)


def from_lycoris(tensors: Mapping[str, Tensor], *, file: Path | None = None) -> dict[str, dict[str, Tensor]]:
    """Module path -> leaf -> tensor of a LyCORIS file for SD 1.x; UserErrors for modules of another model."""
    paths = {name: path for path, name in sd1_table().items()}
    modules: dict[str, dict[str, Tensor]] = {}
    errors = []
    for key, tensor in tensors.items():
        name, _, leaf = key.partition(".")
        if name not in paths:
            errors.append(_unknown(key, paths, file))
            continue
        modules.setdefault(paths[name], {})[leaf] = tensor
    raise_all(errors[:10])
    return modules


def from_kohya(
    tensors: Mapping[str, Tensor],
    *,
    file: Path | None = None,
    table: Mapping[str, str] | None = None,
    dora: bool = False,
) -> dict[str, LoraWeights]:
    """Module path -> weights, in the file's own dtype; a missing alpha means alpha = rank, as every consumer reads it.

    `dora=True` for a caller that minds `LoraWeights.dora`; without it a DoRA is refused.

    UserError, all faults at once: another format (and which), an unknown key and the nearest known one, a down without
    its up, shapes that do not fit each other, values that are not finite, no module at all.
    """
    paths = {name: path for path, name in (sd1_table() if table is None else table).items()}
    _refuse_others([k for k in tensors if _split(k)[0] not in paths or (_split(k)[1] == _DORA and not dora)], file)
    errors = [_unknown(key, paths, file) for key in tensors if _split(key)[0] not in paths or not _split(key)[1]]
    modules: dict[str, LoraWeights] = {}
    for name in dict.fromkeys(name for key in tensors if (name := _split(key)[0]) in paths):
        try:
            modules[paths[name]] = _module(name, tensors)
        except UserError as error:
            errors.append(UserError(error.message, file=file, hint=error.hint))
    if not tensors:
        errors.append(UserError("the LoRA file holds no tensors", file=file, hint="give another file"))
    raise_all(errors[:10])
    return modules


def uniform(modules: Mapping[str, LoraWeights]) -> dict[str, LoraWeights]:
    """The same ΔW with one rank and one alpha: padded with zeros to the largest rank, `up` rescaled where the scale
    differs.

    diffusers misapplies a file whose alphas differ, without an error. Modules that agree come back as they are.
    """
    ranks, scales = {w.rank for w in modules.values()}, {w.alpha / w.rank for w in modules.values()}
    if len(ranks) < 2 and len(scales) < 2:
        return dict(modules)
    rank, scale = max(ranks), scales.pop() if len(scales) == 1 else 1.0
    result = {}
    for path, weights in modules.items():
        down, up = weights.down, weights.up
        more = rank - weights.rank
        if weights.alpha / weights.rank != scale:
            up = up * (weights.alpha / weights.rank / scale)
        if more:
            down = torch.cat([down, down.new_zeros(more, *down.shape[1:])])
            up = torch.cat([up, up.new_zeros(up.shape[0], more, *up.shape[2:])], dim=1)
        result[path] = LoraWeights(down, up, scale * rank, weights.dora)
    return result


def _alpha(alpha: float, dtype: torch.dtype) -> Tensor:
    """A scalar in the file's dtype, or in fp32 where that would round it."""
    short = torch.tensor(alpha, dtype=dtype)
    return short if short.item() == alpha else torch.tensor(alpha, dtype=torch.float32)


def _split(key: str) -> tuple[str, str]:
    """(module name, leaf), the leaf "" when it is none of a LoRA's."""
    for leaf in (_DOWN, _UP, _ALPHA, _DORA):
        if key.endswith(leaf):
            return key.removesuffix(leaf), leaf
    return key, ""


def _module(name: str, tensors: Mapping[str, Tensor]) -> LoraWeights:
    down, up, alpha = (tensors.get(name + leaf) for leaf in (_DOWN, _UP, _ALPHA))
    if down is None or up is None:
        absent = " and no ".join(leaf for leaf, value in ((_DOWN, down), (_UP, up)) if value is None)
        raise UserError(f"{name} has no {absent}", hint="the file is incomplete; get the original one")
    if alpha is not None and alpha.numel() != 1:
        raise UserError(f"{name}{_ALPHA} has shape {list(alpha.shape)}, not one number", hint="get the original file")
    dora = tensors.get(name + _DORA)
    weights = LoraWeights(down, up, float(down.shape[0]) if alpha is None else float(alpha.item()), dora)
    check(name, weights)
    return weights


def check(name: str, weights: LoraWeights) -> None:
    """UserError unless the shapes fit each other and every value is a finite number."""
    _check_shapes(name, weights)
    tensors = (weights.down, weights.up, weights.dora)
    if not (math.isfinite(weights.alpha) and all(_finite(tensor) for tensor in tensors if tensor is not None)):
        raise UserError(
            f"{name} holds values that are not finite numbers", hint="the file is spoilt; take an earlier one"
        )


def _finite(tensor: Tensor) -> bool:
    """Also of fp8, for which torch has no test."""
    return bool(torch.isfinite(tensor.float() if tensor.element_size() == 1 else tensor).all())


def _check_shapes(name: str, weights: LoraWeights) -> None:
    down, up = weights.down.shape, weights.up.shape
    fits = len(down) == len(up) and len(down) in (2, 4) and down[0] == up[1] and down[0] > 0 and set(up[2:]) <= {1}
    if not fits:
        text = f"{name}: down {list(down)} and up {list(up)} do not fit each other"
        raise UserError(text, hint="down is [rank, in, …] and up is [out, rank, …]")


def _unknown(key: str, paths: Mapping[str, str], file: Path | None) -> UserError:
    name, leaf = _split(key)
    nearest = difflib.get_close_matches(name, paths, n=1)
    hint = (
        f"the nearest known one is {nearest[0]}{leaf or _DOWN}"
        if nearest
        else "this is not a Stable Diffusion 1.x LoRA"
    )
    return UserError(f"unknown key {ascii(key)[1:-1][:160]}", file=file, hint=hint)


def _refuse_others(unknown: Sequence[str], file: Path | None) -> None:
    for marks, words, mend in _OTHERS:
        key = next((key for key in unknown if any(mark in key for mark in marks)), None)
        if key is not None:
            raise UserError(f"this is {words} (it has {ascii(key)[1:-1][:160]})", file=file, hint=mend)
