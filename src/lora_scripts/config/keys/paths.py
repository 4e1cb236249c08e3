"""Where everything lies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from lora_scripts.config.types import ConfigPath, ConfigPaths, Keys, OutputPath


class PathKeys(Keys):
    """Where everything lies."""

    TITLE: ClassVar[str] = "Paths"
    NEEDS: ClassVar[Mapping[str, str]] = {
        "metadata_path": "pictures",
        "vae": "vae",
        "text_encoder": "language",
        "prediction": "prediction",
    }

    train_data_dir: ConfigPath
    """The folder of the training pictures, in any layout. Relative paths count from the folder you start in."""
    metadata_path: ConfigPath | None = None
    """The captions: a .csv (filename,prompt) or .jsonl file. Without it, captions beside the pictures are found."""
    base_model: ConfigPath
    """The checkpoint to train on: one .safetensors file, of a flow model also a .gguf, a diffusers folder, or a name on
    the Hugging Face hub (hf:owner/name/file.safetensors, owner/name), which is fetched once into models/ after its size
    is told."""
    vae: ConfigPath | None = None
    """A VAE to use in place of the checkpoint's own: one .safetensors file, or a diffusers folder; or
    hf:owner/name/file.safetensors, as of base_model."""
    text_encoder: ConfigPaths | None = None
    """The text encoder of a base that comes in separate files: a .safetensors or .gguf file, a folder,
    or hf:owner/name/file.safetensors, as of base_model (CLIP's, Qwen's and T5's tokenizers come along, Mistral's lies
    in its file). Of a base with several of them a list, in any order: [clip_l.safetensors, t5xxl_fp16.safetensors]."""
    prediction: Literal["epsilon", "v", "flow"] | None = None
    """What the base model predicts: epsilon (most of them), v or flow. Without it, as the base's file or folder says,
    or its weights give away (a run tells); else epsilon."""
    output_dir: OutputPath
    """Where everything goes; the LoRA is named after this folder."""
    cache_dir: ConfigPath | None = None
    """Where encoded pictures and captions are kept. Without it, inside output_dir."""
