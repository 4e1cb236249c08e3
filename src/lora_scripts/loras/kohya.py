"""SD 1.x LoRA weights <-> kohya's file layout, by an explicit table: names are never derived from a library's module
names.

Leaves of a module: `.lora_down.weight` [rank, in] or [rank, in, k, k], `.lora_up.weight` [out, rank] or [out, rank, 1,
1] and `.alpha`, a scalar; ΔW = (alpha / rank) · up @ down. A DoRA has `.dora_scale` too, [1, in] or [1, in, 1, 1].
Nothing here reads or writes files.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lora_scripts.adapters.weights import LoraWeights, check, check_shapes, finite, uniform
from lora_scripts.errors import UserError, raise_all
from lora_scripts.families.sd1.names import sd1_table

_DOWN, _UP, _ALPHA, _DORA = ".lora_down.weight", ".lora_up.weight", ".alpha", ".dora_scale"

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
        check_shapes(path, weights)
        down, up = (tensor.detach().to("cpu", dtype).contiguous() for tensor in (weights.down, weights.up))
        if not (finite(down) and finite(up)):
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


def to_lycoris(
    modules: Mapping[str, Mapping[str, Tensor]], *, dtype: torch.dtype, table: Mapping[str, str]
) -> dict[str, Tensor]:
    """The tensors of a LyCORIS file: kohya's module names, the library's leaves. UserError for values not finite."""
    names = table
    result: dict[str, Tensor] = {}
    errors = []
    for path, leaves in modules.items():
        for leaf, tensor in leaves.items():
            value = _alpha(tensor.item(), dtype) if leaf == "alpha" else tensor.to("cpu", dtype).contiguous()
            if not finite(value):
                hint = "train again with a lower learning rate, or save in fp32"
                errors.append(UserError(f"{leaf} of {path} holds values that are not finite numbers", hint=hint))
            result[f"{names[path]}.{leaf}"] = value
    raise_all(errors[:10])
    return result


def is_lycoris(keys: Iterable[str]) -> bool:
    """That a file is one of LoHa, LoKr or OFT."""
    return any(key.endswith(tuple(f".{leaf}" for leaf in LYCORIS)) for key in keys)


def from_lycoris(
    tensors: Mapping[str, Tensor], *, table: Mapping[str, str], file: Path | None = None
) -> dict[str, dict[str, Tensor]]:
    """Module path -> leaf -> tensor of a LyCORIS file for SD 1.x; UserErrors for modules of another model."""
    paths = {name: path for path, name in table.items()}
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
