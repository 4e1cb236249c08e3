"""The kinds of model files that people have, told apart by their tensors' names and shapes, each with its mend."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum

from lora_scripts.families.sd1.layout import TEXT_PREFIX, UNET_PREFIX

_WHOLE = "give the whole diffusers folder (with model_index.json), or a single-file checkpoint"
_PLAIN = "give the plain checkpoint that it was made from"
_SD1 = "give a Stable Diffusion 1.x checkpoint, such as v1-5-pruned.safetensors"
DOWNLOAD = "download it again, and compare its size with the page it comes from"
_CONVERT = (
    "it can run code when opened, so it is not read here; get the .safetensors version, or convert it in the WebUI: "
    "Checkpoint Merger, one model, No interpolation, Checkpoint format: safetensors"
)


class Kind(Enum):
    """What a file is: (in words, what to do where a Stable Diffusion 1.x checkpoint was wanted)."""

    SD1 = ("a Stable Diffusion 1.x checkpoint", "")
    EMPTY = ("an empty file", DOWNLOAD)
    GIT_LFS = (
        "a git-lfs pointer, not the model itself",
        "run `git lfs pull` in its folder, or download the file itself",
    )
    HTML = ("a web page, not a model", "the download needs a login or a direct link; download the file itself")
    ZIP = ("a PyTorch .ckpt/.pt/.bin file (a pickle in a zip)", _CONVERT)
    PICKLE = ("an old PyTorch .ckpt/.pt file (a pickle)", _CONVERT)
    GGUF = ("a GGUF file (quantised)", "get the .safetensors version")
    NOT_SAFETENSORS = ("not a safetensors file", DOWNLOAD)
    LORA = ("a LoRA", f"give it as init_lora to train it further; as base_model {_SD1}")
    SDXL = ("an SDXL checkpoint", _SD1)
    SDXL_REFINER = ("an SDXL refiner", _SD1)
    SD2 = ("a Stable Diffusion 2.x checkpoint", _SD1)
    SD3 = ("a Stable Diffusion 3 checkpoint", _SD1)
    FLUX = ("a FLUX checkpoint", _SD1)
    SD1_INPAINTING = ("an inpainting checkpoint (9 input channels)", _PLAIN)
    SD1_EDITING = ("an instruct-pix2pix checkpoint (8 input channels)", _PLAIN)
    SD1_OLD_NAMES = (
        "a Stable Diffusion 1.x checkpoint with the old names of its text encoder (NAI style)",
        "load it in the WebUI and save it again with Checkpoint Merger (one model, No interpolation, safetensors)",
    )
    CONTROLNET = ("a ControlNet", _SD1)
    UNET = ("only a UNet, in diffusers' layout", _WHOLE)
    VAE = ("only a VAE", f"give it as vae; as base_model {_SD1}")
    TEXT_ENCODER = ("only a text encoder", _WHOLE)
    EMBEDDING = ("a textual inversion embedding", _SD1)
    LANGUAGE_MODEL = ("a language model", _SD1)
    UNKNOWN = ("a safetensors file of an unknown model", _SD1)

    @property
    def words(self) -> str:
        return self.value[0]

    @property
    def mend(self) -> str:
        return self.value[1]


def kind_of(shapes: Mapping[str, Sequence[int]]) -> Kind:
    """What the tensors are, by their names and a few of their shapes."""
    names = list(shapes)
    for kind, marks in _MARKS:
        if any(mark in name if mark[0] in "._" else name.startswith(mark) for name in names for mark in marks):
            return kind
    unet = UNET_PREFIX
    if not any(name.startswith(unet + "input_blocks.") for name in names):
        return _component(names)
    text = TEXT_PREFIX
    has_text = any(name.startswith(text) for name in names)
    context = _axis(shapes, unet + "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight", 1)
    channels = _axis(shapes, unet + "input_blocks.0.0.weight", 1)
    if not has_text and context in (1280, 2048):
        return Kind.SDXL if context == 2048 else Kind.SDXL_REFINER
    if not has_text and context == 1024:
        return Kind.SD2
    if channels in (8, 9):
        return Kind.SD1_INPAINTING if channels == 9 else Kind.SD1_EDITING
    if not has_text and any(name.startswith("cond_stage_model.transformer.e") for name in names):
        return Kind.SD1_OLD_NAMES
    return Kind.SD1


# Marks that decide at once, tried from the top: a mark beginning with "." or "_" may stand anywhere in a name.
_MARKS: tuple[tuple[Kind, tuple[str, ...]], ...] = (
    (
        Kind.LORA,
        (".lora_", "_lora.", ".lora.", ".hada_w", ".lokr_w", ".oft_", "lora_unet_", "lora_te", "lora_transformer_"),
    ),
    (Kind.CONTROLNET, ("control_model.", "controlnet_cond_embedding.", "input_hint_block.")),
    (Kind.SDXL_REFINER, ("conditioner.embedders.0.model.",)),
    (Kind.SDXL, ("conditioner.embedders.", "model.diffusion_model.label_emb.")),
    (Kind.SD3, ("model.diffusion_model.joint_blocks.", "joint_blocks.")),
    (Kind.FLUX, ("model.diffusion_model.double_blocks.", "double_blocks.", "single_transformer_blocks.")),
    (Kind.SD2, ("cond_stage_model.model.",)),
)


def _component(names: Iterable[str]) -> Kind:
    """A file without an LDM UNet: the part of a model that it may be."""
    rows = (
        (Kind.VAE, ("encoder.down_blocks.", "encoder.down.", "first_stage_model.")),
        (Kind.UNET, ("down_blocks.", "unet.down_blocks.")),
        (Kind.TEXT_ENCODER, ("text_model.", "embeddings.token_embedding.", "cond_stage_model.", "text_encoder.")),
        (Kind.EMBEDDING, ("emb_params", "string_to_param", "clip_l", "clip_g", "<")),
        (Kind.LANGUAGE_MODEL, ("model.layers.", "model.embed_tokens.", "transformer.h.", "lm_head.")),
    )
    names = list(names)
    for kind, marks in rows:
        if any(name.startswith(marks) for name in names):
            return kind
    return Kind.UNKNOWN


def _axis(shapes: Mapping[str, Sequence[int]], name: str, axis: int) -> int | None:
    shape = shapes.get(name, ())
    return shape[axis] if len(shape) > axis else None
