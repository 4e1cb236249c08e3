"""The LoRA of a run on texts: what is learnt at one moment as a PEFT adapter, and the proof that it loads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lora_scripts import __version__
from lora_scripts.adapters.dora import RowDoraLayer
from lora_scripts.adapters.inject import put_back, remove
from lora_scripts.adapters.weights import LoraWeights, check
from lora_scripts.compute.device import DTYPES
from lora_scripts.config.schema import TrainConfig
from lora_scripts.errors import UserError
from lora_scripts.families.sequences import Example, padded
from lora_scripts.families.texts import TextFamily
from lora_scripts.formats import io
from lora_scripts.loras import adapter_folder
from lora_scripts.loras import file as loras
from lora_scripts.loras.on_model import apply
from lora_scripts.run.parts import TextModel
from lora_scripts.train.average import Ema, averaged
from lora_scripts.units import number_of, percent

BOUND = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}
"""Of the change that the LoRA makes to the logits, how much the file may be off by: its numbers are rounded."""
NOISE, TRIALS = 2, 8
"""How many times as much as rounding alone makes of the logits, and how often that is tried: a base in bf16 says a
little else after any change, and a LoRA that has learned little yet is not much more than that."""


def weights_of(model: TextModel, ema: Ema | None) -> dict[str, LoraWeights]:
    """What is learnt, averaged where the run averages; on the CPU, float32."""
    with averaged(model.trained, model.optimizer, ema):
        leaves = {path: layer.leaves() for path, layer in model.layers.items()}
    return {
        path: LoraWeights(own["lora_down.weight"], own["lora_up.weight"], own["alpha"].item(), own.get("dora_scale"))
        for path, own in leaves.items()
    }


def write(
    path: Path, config: TrainConfig, model: TextModel, weights: Mapping[str, LoraWeights], facts: Mapping[str, object]
) -> None:
    """The adapter's folder, with the chat template that it was trained with. UserError if a value is not finite."""
    dtype = DTYPES[config.save_precision]
    for name, one in weights.items():
        check(name, LoraWeights(one.down.to(dtype), one.up.to(dtype), one.alpha, one.dora))
    metadata = {"lora_scripts": __version__, "lora_scripts.training": json.dumps(facts, ensure_ascii=False)}
    files = adapter_folder.files_of(
        weights,
        dtype,
        base=str(config.base_model),
        layers=model.family.layer_names,
        transposed=model.family.transposes,
        metadata=metadata,
    )
    template = model.family.template_text(config.chat_template)
    if template is not None:
        files[adapter_folder.TEMPLATE] = template.encode()
    io.write_folder(path, files)


def elsewhere(model: TextModel) -> str | None:
    """What other programs than PEFT do not read of the adapter: None where that is nothing."""
    layers = list(model.layers.values())
    if any(isinstance(layer, RowDoraLayer) for layer in layers):
        return "vLLM and llama.cpp read no DoRA: merge it for them"
    if len({(layer.rank, layer.alpha) for layer in layers}) > 1:
        return "vLLM and llama.cpp read one rank and alpha for all layers, and these differ: merge the LoRA for them"
    return None


def prove(path: Path, config: TrainConfig, model: TextModel, ema: Ema | None, examples: Sequence[Example]) -> str:
    """Reads the folder again, by the reader of LoRA files and by PEFT's own loader; the line to tell.

    UserErrors where one of them does not make of the base what the training made of it.
    """
    family, rows = model.family, list(examples[:2])
    with averaged(model.trained, model.optimizer, ema):
        model.train(False)
        trained = [_logits(family, row) for row in rows]
        noise = _noise(model, config, rows, trained)
        with model.off():
            base = [_logits(family, row) for row in rows]
        model.train(True)
    remove(family.roots, model.layers)
    try:
        worn = apply(family, loras.read(path, family.facts).modules, 1.0)
        ours = [_logits(family, row) for row in rows]
        remove(family.roots, worn)
        rounded = config.base_precision != "auto"  # PEFT has kinds of its own for rounded weights, not ours
        theirs = ours if rounded else [family.as_peft_loads(path, padded([row]))[0] for row in rows]
    finally:
        put_back(family.roots, model.layers)
    change = _length(trained, base)
    for name, logits in (("the reader of this program", ours), ("PEFT", theirs)):
        off = _length(logits, trained)
        if off > BOUND[config.save_precision] * change + NOISE * noise:
            far = percent(off / change if change else 1, 1)
            text = f"{name} makes another model of it: off by {far} of what was learnt"
            raise UserError(text, file=path, hint="go on with --resume save_precision=fp32")
    off = max(_length(ours, trained), _length(theirs, trained)) / change if change else 0.0
    count = number_of(len(model.layers), "layer")
    return f"verified: {count}, as PEFT loads them; off by {off:.1e} of what was learnt, the rounding to " + (
        f"{config.save_precision} included"
    )


def _noise(model: TextModel, config: TrainConfig, rows: Sequence[Example], trained: Sequence[Tensor]) -> float:
    """How far the logits go by rounding alone: of the LoRA's numbers as in the file, and on a base of 16 bits by as
    much as its type rounds, too. There PEFT multiplies with the numbers as they are, and a step that a few of all the
    sums take or do not take is most of what a LoRA does that has learned little: the farthest of some trials counts."""
    types = {p.dtype for root in model.family.roots.values() for p in root.parameters()}
    step = max((torch.finfo(dtype).eps for dtype in types & {torch.bfloat16, torch.float16}), default=0.0)
    dtype, generator = DTYPES[config.save_precision], torch.Generator().manual_seed(0)
    kept, found = [p.detach().clone() for p in model.trained], 0.0
    with torch.no_grad():
        for _ in range(TRIALS if step else 1):
            for p, value in zip(model.trained, kept, strict=True):
                moved = 1 + step * (torch.rand(p.shape, generator=generator) - 0.5)
                p.copy_(value.to(dtype).to(p.dtype) * moved.to(p.device))
            found = max(found, _length([_logits(model.family, row) for row in rows], trained))
        for p, value in zip(model.trained, kept, strict=True):
            p.copy_(value)
    return found


def _logits(family: TextFamily, row: Example) -> Tensor:
    return family.logits(padded([row]))[0]


def _length(some: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """The Euclidean distance of all logits."""
    squares = [(a - b).double().square().sum() for a, b in zip(some, others, strict=True)]
    return float(torch.stack(squares).sum().sqrt())
