"""The one reader of a LoRA's tensors, whatever its layers are called: dict -> dict by a family's tables. Nothing here
touches files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lora_scripts.adapters import lycoris
from lora_scripts.adapters.weights import LoraWeights, check, check_shapes, rescaled
from lora_scripts.config.values import did_you_mean
from lora_scripts.errors import UserError, raise_all
from lora_scripts.families.names import Names
from lora_scripts.loras import naming
from lora_scripts.loras.alphas import Alphas, alphas_of, of_peft
from lora_scripts.loras.naming import ALPHA, DORA, DOWN, PEFT_PREFIX, UP

Change = LoraWeights | Mapping[str, Tensor]
"""What a file holds of one layer: a LoRA or DoRA, or the leaves of LoHa, LoKr or OFT."""

# What a tensor of another format gives away: (marks anywhere in a key, what the file is, what to do).
_OTHERS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        ("model.diffusion_model.", "cond_stage_model.", "conditioner."),
        "a whole checkpoint, not a LoRA",
        "give it as base_model",
    ),
    (("lora_mid",), "a LoCon whose Tucker core (lora_mid) fits no layer", "get the original file"),
    ((".oft_R.",), "an OFT of a second kind (oft_R)", "merge it with the program that made it"),
    (("oft_unet_", "oft_te_"), "an OFT of kohya's own tools", "merge it with them"),
    (
        (
            ".diff.",
            ".diff_b.",
            ".w_norm",
            ".b_norm",
            ".on_input",
            ".a1.weight",
            ".lambda_layer",
        ),  # … IA3, GLoRA, T-LoRA
        "a LyCORIS file of a kind that is not read here",
        "give a plain LoRA",
    ),
)
_TEXTS = ("lora_te", "text_encoder", "text_encoders.")
"""What keys of layers of text encoders begin with."""


@dataclass
class Module:
    """The tensors of one layer, as they stand in a file."""

    stem: str
    """The layer's name in the keys."""
    leaves: dict[str, Tensor]
    """By kohya's word for what they are."""
    keys: dict[str, str]
    """The same, and the whole key of each."""


def sort(tensors: Mapping[str, Tensor], paths: Mapping[str, str]) -> tuple[dict[str, Module], list[str]]:
    """(our path -> its tensors, keys that name no layer or no part of one); `paths` as `Names.paths`."""
    modules: dict[str, Module] = {}
    strangers = []
    for key, tensor in tensors.items():
        stem, leaf = naming.split(key)
        if stem not in paths or not leaf:
            strangers.append(key)
            continue
        module = modules.setdefault(paths[stem], Module(stem, {}, {}))
        if leaf in module.leaves:  # the layer stands in the file under two names
            strangers.append(key)
            continue
        module.leaves[leaf] = by_output(tensor) if naming.of_outputs(key) else tensor
        module.keys[leaf] = key
    for module in modules.values():
        module.leaves = lycoris.without_idle_alpha(module.leaves)
    return modules, strangers


def by_output(lengths: Tensor) -> Tensor:
    """PEFT's and ai-toolkit's lengths of a DoRA, [out] or of a convolution [1, out, 1, 1], as [out, 1, …]."""
    return lengths.reshape(-1, 1) if lengths.dim() < 2 else lengths.transpose(0, 1)


def read(
    tensors: Mapping[str, Tensor], names: Names, *, metadata: Mapping[str, str] | None = None, file: Path | None = None
) -> dict[str, Change]:
    """Our module path -> what the file holds of the layer, in its own dtype.

    UserError, all faults at once: another format (and which), an unknown key and the nearest known one, a down without
    its up, shapes that do not fit each other, values that are not finite, no module at all.
    """
    return _read(tensors, names, alphas_of(metadata or {}, file), file)


def read_peft(
    adapters: Mapping[str, tuple[Mapping[str, Tensor], Mapping[str, Any]]], names: Names, *, file: Path | None = None
) -> dict[str, Change]:
    """As `read`, of PEFT adapters; `adapters` is part of the model -> (tensors, adapter_config)."""
    tensors: dict[str, Tensor] = {}
    for part, (own, config) in adapters.items():
        _check_config(config, file)
        tensors |= {f"{part}.{key.removeprefix(PEFT_PREFIX)}": tensor for key, tensor in own.items()}
    configs = {part: config for part, (_, config) in adapters.items()}
    return _read(tensors, names, of_peft(configs), file)


def part_of(keys: Mapping[str, object], names: Names) -> str:
    """Which part of the model a single PEFT adapter is for, by its layers' names; the first one that knows the most."""
    stems = {naming.split(key)[0].removeprefix(PEFT_PREFIX) for key in keys}
    return max(names.parts, key=lambda part: sum(f"{part}.{stem}" in names.paths for stem in stems))


def _read(tensors: Mapping[str, Tensor], names: Names, alphas: Alphas, file: Path | None) -> dict[str, Change]:
    modules, strangers = sort(tensors, names.paths)
    refuse_others(strangers, file)
    _refuse_texts(strangers, names, file)
    _refuse_fused(strangers, names, file)
    errors = [_unknown(key, names, file) for key in strangers[:10]]
    changes: dict[str, Change] = {}
    for path, module in modules.items():
        try:
            changes[path] = _change(path, module, alphas)
            _refuse_turned(module, names)
        except UserError as error:
            errors.append(UserError(error.message, file=file, hint=error.hint))
    if not tensors:
        errors.append(UserError("the LoRA file holds no tensors", file=file, hint="give another file"))
    raise_all(errors[:10])
    return changes


def refuse_others(strangers: Sequence[str], file: Path | None) -> None:
    """UserError for keys that give away a file of another format, saying which."""
    for marks, words, mend in _OTHERS:
        other = next((key for key in strangers if any(mark in f"{key}." for mark in marks)), None)
        if other is not None:
            raise UserError(f"this is {words} (it has {shown(other)})", file=file, hint=mend)


def _refuse_texts(strangers: Sequence[str], names: Names, file: Path | None) -> None:
    """UserError for a LoRA of a text encoder that takes none."""
    for start, part in names.refused.items():
        other = next((key for key in strangers if key.startswith(start)), None)
        if other is not None:
            words = f"this LoRA changes {part}, too (it has {shown(other)}), which takes none here"
            raise UserError(words, file=file, hint=f"give one that was trained without {part}")
    text = next((key for key in strangers if key.startswith(_TEXTS)), None)
    if text is not None and not any(part.startswith("text_encoder") for part in names.parts):
        words = (
            f"this LoRA changes a text encoder, too (it has {shown(text)}), and of {names.words} none takes a LoRA here"
        )
        raise UserError(words, file=file, hint="give one of the transformer alone")


def _refuse_fused(strangers: Sequence[str], names: Names, file: Path | None) -> None:
    """UserError for what `unfused.unfused` has left under a name that several layers have."""
    leaves = ((stem, leaf) for stem, leaf in map(naming.split, strangers) if stem in names.fused)
    stem, leaf = next(((stem, leaf) for stem, leaf in leaves if leaf == DORA or leaf in naming.LYCORIS), ("", ""))
    if leaf:
        what = "lengths of a DoRA" if leaf == DORA else leaf
        text = f"{shown(stem)} has {what} for several layers together, which cannot be shared out among them"
        raise UserError(text, file=file, hint="give a plain LoRA, or merge it with the program that made it")


def _change(path: str, module: Module, alphas: Alphas) -> Change:
    leaves, stem = module.leaves, module.stem
    alpha = leaves.get(ALPHA)
    if alpha is not None and alpha.numel() != 1:
        raise UserError(f"{stem}.{ALPHA} has shape {list(alpha.shape)}, not one number", hint="get the original file")
    if any(leaf in naming.LYCORIS for leaf in leaves):
        lycoris.check(stem, leaves)
        return leaves
    down, up = leaves.get(DOWN), leaves.get(UP)
    if down is None or up is None:
        raise UserError(_halves(module), hint="the file is incomplete; get the original one")
    check_shapes(stem, LoraWeights(down, up, 1.0))
    rank = down.shape[0]
    if alpha is not None:
        weights = LoraWeights(down, up, float(alpha.item()), leaves.get(DORA))
    elif alphas.folded is not None:
        folded = alphas.folded if isinstance(alphas.folded, float) else alphas.folded.get(path, float(rank))
        scale = (folded or rank) / rank
        weights = LoraWeights(down, rescaled(up, 1 / scale), folded or float(rank), leaves.get(DORA))
    else:
        told = alphas.told(path, rank)
        weights = LoraWeights(down, up, float(rank) if told is None else told, leaves.get(DORA))
    check(stem, weights)
    return weights


def _refuse_turned(module: Module, names: Names) -> None:
    """UserError for a LoHa, LoKr or OFT of a layer of `Names.turned`: its factors have no halves to be put right. Of an
    OFT, which goes on any number of columns, it cannot be told whether they would have to be."""
    if module.stem in names.turned and any(leaf in naming.LYCORIS for leaf in module.leaves):
        rows, columns = lycoris.shape_of(module.leaves)
        if columns is None or rows == 2 * columns:
            text = f"{module.stem} may have its halves the other way round than the model, and is no plain LoRA"
            raise UserError(text, hint="give one without this layer, or a plain LoRA")


def _halves(module: Module) -> str:
    """Which matrices are missing, by the endings that this naming gives them."""
    for pair in naming.PAIRS:
        if any(module.stem + end in module.keys.values() for end in pair):
            return f"{module.stem} has no {next(end for end in pair if module.stem + end not in module.keys.values())}"
    return f"{module.stem} has no .{DOWN} and no .{UP}"


def _unknown(key: str, names: Names, file: Path | None) -> UserError:
    stem, leaf = naming.split(key)
    if leaf and stem in names.paths:
        text = f"{shown(key)} names a layer that the file has under another name, too"
        return UserError(text, file=file, hint="get the original file")
    near = nearest(key, names.stems)
    hint = f"the nearest known one is {near}" if near else f"this is not a LoRA of {names.words}"
    return UserError(f"unknown key {shown(key)}", file=file, hint=hint)


def nearest(key: str, stems: Iterable[str]) -> str | None:
    """The key that may have been meant, of those with one of these stems and named in the same way."""
    stem, leaf = naming.split(key)
    near = did_you_mean(stem, {known for known in stems if known.count(".") == stem.count(".")})
    return near and near + (key.removeprefix(stem) if leaf else f".{DOWN}")


def shown(key: str) -> str:
    """A key from a stranger's file, fit to be printed."""
    return ascii(key)[1:-1][:160]


def _check_config(config: Mapping[str, Any], file: Path | None) -> None:
    if config.get("peft_type") != "LORA":
        text = f"the adapter is of type {config.get('peft_type')}, not a LoRA"
        raise UserError(text, file=file, hint="merge it with PEFT instead")
    if config.get("lora_bias") or config.get("bias", "none") != "none" or config.get("modules_to_save"):
        raise UserError(
            "the adapter trains biases or whole layers too, which no LoRA file holds",
            file=file,
            hint="merge it instead",
        )
