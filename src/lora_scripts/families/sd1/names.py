"""The names of the layers of Stable Diffusion 1.x and 2.x that a LoRA may change, by explicit tables: they are never
derived from a library's module names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

from lora_scripts.families.names import Base, Layer, Names
from lora_scripts.families.sd.unet import UNET_PREFIX
from lora_scripts.families.sd1.layout import LAYERS_2, Sd1Layout, text_rows, unet_rows

_BLOCKS = ("down_blocks.", "mid_block.", "up_blocks.")  # the UNet's: kohya's tools train no layer outside of them
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


def sd1_table(text_layers: int = 12) -> dict[str, str]:
    """Our module path -> kohya's name, of every module of SD 1.x or 2.x that a LoRA may change.

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


@cache
def sd1() -> Names:
    """Stable Diffusion 1.x."""
    return replace(_names(STANDARD), foreign_widths=frozenset({STANDARD_2.context_width}))


@cache
def sd2() -> Names:
    """Stable Diffusion 2.x: the same names, of more layers of the text encoder."""
    foreign = frozenset({STANDARD.context_width})
    return replace(_names(STANDARD_2), family="sd2", words="Stable Diffusion 2.x", foreign_widths=foreign)


def _names(standard: Sd1Layout) -> Names:
    kohya = sd1_table(standard.text_layers)
    # Widths that all differ, so that every shortcut that any model of this shape could have is in the table.
    layout = replace(standard, unet_widths=(32, 64, 96, 128))
    ldm = {
        f"unet.{row.hf.removesuffix('.weight')}": row.ldm.removeprefix(UNET_PREFIX).removesuffix(".weight")
        for row in unet_rows(layout)
        if row.hf.endswith(".weight")
    }
    original = {
        path: f"lora_unet_{ldm[path].replace('.', '_')}" if path in ldm else name
        for path, name in kohya.items()
        if path in ldm or path.startswith("text_encoder.")
    }
    diffusers = {path: path.replace("text_encoder.", "text_encoder.text_model.") for path in kohya}
    # The text encoder as the first of two, and as derived from the module names of transformers 5.6.
    odd = (("lora_te_", "lora_te1_"), ("lora_te_text_model_", "lora_te_"))
    others = {s.replace(a, b): path for path, s in kohya.items() if s.startswith("lora_te_") for a, b in odd}
    untrained: dict[str, str] = {}
    for layer in sd1_base(standard, shapes=False).layers:
        others |= dict.fromkeys(layer.native, layer.path)
        if layer.unet and not layer.kohya:  # conv_in and the like, which some trainers train
            untrained[layer.path], original[layer.path] = f"lora_unet_{layer.hf_flat}", f"lora_unet_{layer.ldm_flat}"
            diffusers[layer.path] = layer.path
    return Names("sd1", "Stable Diffusion 1.x", kohya, original, diffusers, others, untrained=untrained)


def sd1_base(layout: Sd1Layout, *, shapes: bool = True) -> Base:
    """The layers of a Stable Diffusion 1.x or 2.x."""
    layers = tuple(_sd1_layers(layout, shapes))
    return Base(layers, layout.context_width if shapes else 0)


STANDARD = Sd1Layout((320, 640, 1280, 1280), 768, 4, 4, (), 4, 768, 12, 3072, 49408, 77)
"""v1-5, for a look at a file without a base."""
STANDARD_2 = Sd1Layout((320, 640, 1280, 1280), 1024, 4, 4, (), 4, 1024, LAYERS_2, 4096, 49408, 77, second=True)
"""v2-1."""


def _sd1_layers(layout: Sd1Layout, shapes: bool) -> Iterator[Layer]:
    for row in unet_rows(layout):
        if row.hf.endswith(".weight") and len(row.shape) > 1:
            hf, ldm = row.hf.removesuffix(".weight"), row.ldm.removeprefix(UNET_PREFIX).removesuffix(".weight")
            kohya = f"lora_unet_{hf.replace('.', '_')}" if hf.startswith(_BLOCKS) else ""
            yield Layer(f"unet.{hf}", hf, ldm, kohya, row.shape if shapes else ())
    for row in text_rows(layout):
        if row.hf.endswith(".weight") and len(row.shape) > 1 and ".embeddings." not in row.hf:
            hf = row.hf.removesuffix(".weight")
            # open_clip's q, k and v: attn.in_proj_weight
            ldm = row.ldm.removeprefix("cond_stage_model.").removesuffix("_weight").removesuffix(".weight")
            path, kohya = "text_encoder." + hf.removeprefix("text_model."), f"lora_te_{hf.replace('.', '_')}"
            yield Layer(path, hf, ldm, kohya, row.shape if shapes else (), clip="clip_h" if layout.second else "")
