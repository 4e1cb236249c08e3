"""Model files that are no base of ours, told apart by their tensors' names, each with its mend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lora_scripts.formats.header import Kind

Shapes = Mapping[str, Sequence[int]]
"""Tensor name -> shape, of a header."""

_WHOLE = "give the whole diffusers folder (with model_index.json), or a single-file checkpoint"

LORA = Kind("a LoRA", "give it as init_lora to train it further; as base_model {base}")
CONTROLNET = Kind("a ControlNet")
VAE = Kind("only a VAE", "give it as vae; as base_model {base}")
FILM_VAE = Kind("only a VAE of films", VAE.mend)
UNET = Kind("only a UNet, in diffusers' layout", _WHOLE)
TEXT_ENCODER = Kind("only a text encoder", _WHOLE)
EMBEDDING = Kind("a textual inversion embedding")
LANGUAGE_MODEL = Kind("a language model")
FLUX = Kind("a FLUX checkpoint")
UNKNOWN = Kind("a safetensors file of an unknown model")

# Tried from the top: a mark beginning with "." or "_" may stand anywhere in a name.
_FIRST: tuple[tuple[Kind, tuple[str, ...]], ...] = (
    (
        LORA,
        (".lora_", "_lora.", ".lora.", ".hada_w", ".lokr_w", ".oft_", "lora_unet_", "lora_te", "lora_transformer_"),
    ),
    (CONTROLNET, ("control_model.", "controlnet_cond_embedding.", "input_hint_block.", "controlnet_blocks.")),
)
_OTHERS: tuple[tuple[Kind, tuple[str, ...]], ...] = (
    (FLUX, ("model.diffusion_model.double_blocks.", "double_blocks.", "single_transformer_blocks.")),
    (FILM_VAE, ("encoder.downsamples.", "encoder.down_blocks.0.norm1.")),
    (VAE, ("encoder.down_blocks.", "encoder.down.", "first_stage_model.")),
    (UNET, ("down_blocks.", "unet.down_blocks.")),
    (TEXT_ENCODER, ("text_model.", "embeddings.token_embedding.", "cond_stage_model.", "text_encoder.")),
    (EMBEDDING, ("emb_params", "string_to_param", "clip_l", "clip_g", "<")),
    (LANGUAGE_MODEL, ("model.layers.", "model.embed_tokens.", "transformer.h.", "lm_head.")),
)


def addition(shapes: Shapes) -> Kind | None:
    """A LoRA or a ControlNet, which bear the names of the model that they are for; None for anything else."""
    return _marked(shapes, _FIRST)


def other(shapes: Shapes) -> Kind:
    """Of a file that no family knows: the part, or the model, that it may be."""
    return _marked(shapes, _OTHERS) or UNKNOWN


def axis(shapes: Shapes, name: str, number: int) -> int | None:
    """The size of a tensor along an axis; None where it is not there."""
    shape = shapes.get(name, ())
    return shape[number] if len(shape) > number else None


def _marked(shapes: Shapes, rows: Sequence[tuple[Kind, tuple[str, ...]]]) -> Kind | None:
    for kind, marks in rows:
        if any(mark in name if mark[0] in "._" else name.startswith(mark) for name in shapes for mark in marks):
            return kind
    return None
