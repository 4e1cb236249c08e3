"""What a run proves of its exported file before it counts as done."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lora_scripts.adapters.layer import Adapter
from lora_scripts.adapters.lycoris import LycorisLayer
from lora_scripts.errors import UserError
from lora_scripts.loras import file as loras
from lora_scripts.loras.embedding import read_embedding
from lora_scripts.loras.verify import CONSUMERS, require, verify_trained
from lora_scripts.loras.words import embedding_file, read_words

if TYPE_CHECKING:
    from lora_scripts.run.story import Run

NO_BUNDLE = ("diffusers", "additional-networks")
"""Consumers that refuse a LoRA with words bundled in it."""
NO_DORA = ("diffusers", "PEFT", "additional-networks", "kohya")
"""Consumers that leave a DoRA's lengths out, or refuse the file: they are not asked about it."""


def prove_export(run: Run) -> str:
    """Every consumer takes the exported file, which is read from the disk again; the line to print.

    UserErrors, naming consumer and key, where one does not apply what was trained.
    """
    path, config = run.folder.final, run.config
    words = _prove_words(run)
    if run.exporter.lycoris:
        return _prove_lycoris(run) + words
    left_out = {*(NO_DORA if config.adapter == "dora" else ()), *(NO_BUNDLE if config.token_bundle else ())}
    asked = [name for name in CONSUMERS if name not in left_out]
    line = require(verify_trained(path, config.base_model, run.exporter.weights(), asked), path)
    if config.adapter == "dora":
        line += f"\nnote: {', '.join(NO_DORA)} read no DoRA; for them: lora-scripts convert {path} --bake-dora"
    return line + words


def _prove_words(run: Run) -> str:
    """The new words, read from the disk again as `generate` reads them, are those that were trained; to be printed."""
    path, trained = run.folder.final, run.exporter.words()
    found = read_words(path)
    for word, vectors in trained.items():
        files = [read_embedding(embedding_file(path, word)), *([found[word]] if word in found else [])]
        if len(files) < 2 or not all(torch.equal(vectors, other) for other in files):
            raise UserError(f"the word {word} does not read back as it was trained", file=path)
    line = "".join(f"\nverified: the word {word}, {len(v)} x {v.shape[1]} numbers" for word, v in trained.items())
    if run.config.token_bundle:
        line += f"\nnote: {', '.join(NO_BUNDLE)} refuse a LoRA with words in it (token_bundle)"
    return line


def _prove_lycoris(run: Run) -> str:
    """The file's own weight changes, computed by the library from its keys, against those that were trained."""
    path = run.folder.final
    read = loras.read(path).modules
    with run.averaged():
        worst = max(_distance(layer, read.get(name), name, run) for name, layer in run.layers.items())
    size = f"{len(run.layers)} of {len(run.layers)} modules in lycoris-lora"
    return f"verified: {size}; largest difference {worst:.0e}, the rounding to {run.config.save_precision} included"


def _distance(layer: Adapter, leaves: object | None, name: str, run: Run) -> float:
    if not leaves:
        raise UserError(f"does not load as trained: {name} is not in it", file=run.folder.final)
    other = LycorisLayer.of_leaves(layer.base, leaves)  # type: ignore[arg-type]
    trained, found = layer.delta(), other.delta()
    worst = (found - trained).abs().max().item()
    allowed = {"fp32": 1e-6, "fp16": 4e-3, "bf16": 3e-2}[run.config.save_precision]
    if not worst <= allowed * max(1e-6, trained.abs().max().item()) + 1e-7:
        raise UserError(f"does not load as trained: {name} differs by {worst:.0e}", file=run.folder.final)
    return worst
