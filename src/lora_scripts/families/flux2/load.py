"""FLUX.2 klein, from files or a folder to its parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import Flux2Transformer2DModel

from lora_scripts.families.flow import qwen3
from lora_scripts.families.flow.autoencoder import VAE32
from lora_scripts.families.flow.pieces import Pieces, as_built
from lora_scripts.families.flow.qwen3 import Source
from lora_scripts.families.flux2 import check
from lora_scripts.families.flux2.layout import Flux2Layout, config_of, layout_from, layout_of, rows
from lora_scripts.families.sd.check import read_config
from lora_scripts.families.sd.rows import from_rows
from lora_scripts.families.sd.whole import weights_of


def load_text(path: Path, given: Path | None) -> Source:
    """Where the text encoder lies. UserErrors where it is not whole, or not that of the base."""
    check.check_text(path, given)
    return qwen3.find(path, given, check.layout_at(path).text_width // check.TAPPED)


def load_vae(path: Path, given: Path | None) -> Any:
    """diffusers' AutoencoderKLFlux2: what `vae` names, else the folder's own."""
    return VAE32.load(given or path, check.WORDS)


def load_transformer(path: Path, dtype: torch.dtype) -> Flux2Transformer2DModel:
    """Its weights in the file's own precision, memory-mapped; those that have a scale are made whole in `dtype`."""
    if path.is_file():
        pieces = check.require_file(path)
        layout = layout_of(pieces.shapes, path)
        return build(layout, from_rows(pieces, rows(layout), dtype=dtype))
    config = read_config(path / "transformer") or {}
    layout = layout_from(config)
    pieces = Pieces(weights_of(path / "transformer", check.TRANSFORMER.stem))
    return build(layout, from_rows(pieces, as_built(rows(layout)), dtype=dtype), config)


def build(
    layout: Flux2Layout, state: dict[str, torch.Tensor] | None = None, config: dict[str, Any] | None = None
) -> Flux2Transformer2DModel:
    """The transformer of a layout with a state dict's weights or, without one, on the meta device.

    `config`: a folder's own, in whose words the model is built.
    """
    with torch.device("meta"):
        if config is None:
            model = Flux2Transformer2DModel(**config_of(layout))
        else:
            model = Flux2Transformer2DModel.from_config(config)
    if state is not None:
        model.load_state_dict(state, strict=True, assign=True)
    return model
