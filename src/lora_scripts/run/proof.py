"""What a run proves of its exported file before it counts as done."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lora_scripts.adapters.layer import Adapter
from lora_scripts.adapters.lycoris import KINDS, LycorisLayer
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.config.schema import TrainConfig
from lora_scripts.errors import UserError
from lora_scripts.loras import file as loras
from lora_scripts.loras.embedding import read_embedding
from lora_scripts.loras.reading import Change
from lora_scripts.loras.verify import CONSUMERS, require, verify_trained
from lora_scripts.loras.words import embedding_file, read_words
from lora_scripts.run.export import LoraTensors, Snapshot
from lora_scripts.run.parts import Model
from lora_scripts.train.average import Ema, averaged

NO_BUNDLE = ("diffusers", "additional-networks")
"""Consumers that refuse a LoRA with words bundled in it."""
NO_DORA = ("diffusers", "PEFT", "additional-networks", "kohya")
"""Consumers that leave a DoRA's lengths out, or refuse the file: they are not asked about it."""


def prove_export(
    path: Path, config: TrainConfig, model: Model, ema: Ema | None, file: LoraTensors, taken: Snapshot
) -> str:
    """Every consumer takes the exported file, which is read from the disk again; the lines to tell.

    UserErrors, naming consumer and key, where one does not apply what was trained.
    """
    words = _prove_words(path, taken.words, bundled=config.token_bundle)
    if config.adapter in KINDS:
        with averaged(model.trained, model.optimizer, ema):
            return _prove_lycoris(path, model, config.save_precision) + words
    left_out = {*(NO_DORA if config.adapter == "dora" else ()), *(NO_BUNDLE if config.token_bundle else ())}
    asked = [name for name in CONSUMERS if name not in left_out]
    line = require(verify_trained(path, config.base_model, file.weights, asked), path)
    if config.adapter == "dora":
        line += f"\nnote: {', '.join(NO_DORA)} read no DoRA; for them: lora-scripts convert {path} --bake-dora"
    return line + words


def _prove_words(path: Path, trained: Mapping[str, Tensor], *, bundled: bool) -> str:
    """The new words, read from the disk again as `generate` reads them, are those that were trained; to be told."""
    known = read_words(path)
    for word, vectors in trained.items():
        files = [read_embedding(embedding_file(path, word)), *([known[word]] if word in known else [])]
        if len(files) < 2 or not all(torch.equal(vectors, other) for other in files):
            raise UserError(f"the word {word} does not read back as it was trained", file=path)
    lines = "".join(f"\nverified: the word {word}, {len(v)} x {v.shape[1]} numbers" for word, v in trained.items())
    if bundled:
        lines += f"\nnote: {', '.join(NO_BUNDLE)} refuse a LoRA with words in it (token_bundle)"
    return lines


def _prove_lycoris(path: Path, model: Model, precision: str) -> str:
    """The file's own weight changes, computed by the library from its keys, against those that were trained."""
    read = loras.read(path, model.family.facts).modules
    worst = max(_distance(layer, read.get(name), name, path, precision) for name, layer in model.layers.items())
    size = f"{len(model.layers)} of {len(model.layers)} modules in lycoris-lora"
    return f"verified: {size}; largest difference {worst:.0e}, the rounding to {precision} included"


def _distance(layer: Adapter, leaves: Change | None, name: str, path: Path, precision: str) -> float:
    if not leaves or isinstance(leaves, LoraWeights):
        raise UserError(f"does not load as trained: {name} is not in it", file=path)
    trained, read = layer.delta(), LycorisLayer.of_leaves(layer.base, leaves).delta()
    worst = (read - trained).abs().max().item()
    allowed = {"fp32": 1e-6, "fp16": 4e-3, "bf16": 3e-2}[precision]
    if not worst <= allowed * max(1e-6, trained.abs().max().item()) + 1e-7:
        raise UserError(f"does not load as trained: {name} differs by {worst:.0e}", file=path)
    return worst
