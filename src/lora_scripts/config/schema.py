"""The one config of a training run: typed, frozen, unknown keys refused; the doc of a field stands under the field.

Relative paths count from the folder in which the command is started, not from the folder of the config file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from lora_scripts.config.values import DEVICE, check_size, did_you_mean, parse_path

TARGET_GROUPS = ("attention", "feed_forward", "conv")


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _target(value: str) -> str:
    if value in TARGET_GROUPS or "*" in value or "." in value:
        return value
    near = did_you_mean(value, TARGET_GROUPS)
    mend = f"did you mean {near}?" if near else "write * for any text, for example '*attn1*'"
    raise ValueError(f"must be {', '.join(TARGET_GROUPS)} or a pattern with *; {mend}")


def _targets(value: tuple[str, ...]) -> tuple[str, ...]:
    if not value or len(set(value)) < len(value):
        raise ValueError("must name at least one group of layers" if not value else "names the same layers twice")
    return value


def _prompt(value: str) -> str:
    if not value.strip():
        raise ValueError("is an empty text")
    return value


def _device(value: str) -> str:
    if not DEVICE.fullmatch(value):
        raise ValueError("must be auto, cpu, cuda, mps, or one card such as cuda:1")
    return value


def _output_dir(path: Path) -> Path:
    # The exported LoRA bears the folder's name, and prompts call it as <lora:NAME:0.8>.
    name = Path(os.path.abspath(path)).name
    if not name or set(name) & set("<>:"):
        raise ValueError("the LoRA is named after this folder, and a prompt cannot call a name with < > : or none")
    return path


ConfigPath = Annotated[Path, BeforeValidator(parse_path)]
Size = Annotated[int | tuple[int, int], BeforeValidator(check_size)]
Targets = Annotated[
    tuple[Annotated[str, AfterValidator(_target)], ...], BeforeValidator(_tuple), AfterValidator(_targets)
]
Prompts = Annotated[tuple[Annotated[str, AfterValidator(_prompt)], ...], BeforeValidator(_tuple)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]


class TrainConfig(BaseModel):
    """Everything that decides a training run; made by `load_config`, or directly with the same checks of values."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    train_data_dir: ConfigPath
    """The folder of the training pictures, in any layout. Relative paths count from the folder you start in."""
    metadata_path: ConfigPath | None = None
    """The captions: a .csv (filename,prompt) or .jsonl file. Without it, captions beside the pictures are found."""
    base_model: ConfigPath
    """The checkpoint to train on: one .safetensors file, or a diffusers folder."""
    vae: ConfigPath | None = None
    """A VAE to use in place of the checkpoint's own: one .safetensors file, or a diffusers folder."""
    prediction: Literal["epsilon", "v"] = "epsilon"
    """What the base model predicts: epsilon (most SD 1.x models) or v."""
    output_dir: Annotated[ConfigPath, AfterValidator(_output_dir)]
    """Where everything goes; the LoRA is named after this folder."""

    resolution: Size = 512
    """Pixels of a side, or [width, height]; pictures of other shapes get buckets of the same area."""
    flip: bool = False
    """Mirror pictures left to right, half of the time. Not for text, or faces with a mark on one side."""
    random_crop: bool = False
    """Move the crop about at random instead of taking the middle."""
    repeats: Count = 1
    """How often each picture is seen in one epoch."""
    caption_dropout: Fraction = 0.0
    """The share of steps that see an empty caption."""
    shuffle_tags: bool = False
    """Shuffle the comma-separated parts of a caption anew each time."""
    keep_tags: Annotated[int, Field(ge=0, le=1000)] = 1
    """How many first parts of a caption stay in place. Only with shuffle_tags."""
    allow_missing_captions: bool = False
    """Train pictures that have no caption with an empty one, instead of refusing them."""
    cache_dir: ConfigPath | None = None
    """Where encoded pictures and captions are kept. Without it, inside output_dir."""

    lora_rank: Annotated[int, Field(ge=1, le=128)] = 16
    """The size of the LoRA: 8 for a person or a thing, 12 to 16 for a style, at most 128."""
    lora_alpha: Annotated[float, Field(gt=0, le=1024)] | None = None
    """The LoRA's strength is alpha / rank. Without it, alpha is the rank."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of the LoRA's inputs dropped in each step."""
    targets: Targets = ("attention", "feed_forward")
    """Which layers are trained: attention, feed_forward, conv, or patterns with * that match the names of layers."""
    train_text_encoder: bool = False
    """Train the text encoder too."""
    text_encoder_lr: Rate | None = None
    """The text encoder's learning rate. Without it, a quarter of learning_rate. Only with train_text_encoder."""
    init_lora: ConfigPath | None = None
    """An earlier LoRA (.safetensors) to start from; its rank is taken over."""

    epochs: Count = 15
    """How often the whole data set is seen."""
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 4
    """Pictures in one step. The first number to lower when memory runs out."""
    gradient_accumulation: Annotated[int, Field(ge=1, le=1024)] = 1
    """Batches gathered into one step: the effect of a larger batch without its memory."""
    learning_rate: Rate = 2e-4
    """The size of the first steps: 1e-4 to 5e-4."""
    lr_schedule: Literal["cosine", "constant", "linear"] = "cosine"
    """How the learning rate goes on: down in a curve, down in a line, or constant."""
    warmup_steps: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Steps in which the learning rate rises from zero."""
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """AdamW's weight decay."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Longer gradients are shortened to this length; 0 leaves them as they are."""
    min_snr_gamma: Annotated[float, Field(gt=0)] | None = None
    """Min-SNR loss weighting (arXiv:2303.09556); 5 is usual. Without it, every noise level counts the same."""
    noise_offset: Fraction = 0.0
    """Noise that is the same all over a picture, for darker darks and brighter lights; 0.0357 is usual."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """The number format while training; auto takes the best that the processor has."""
    device: Annotated[str, AfterValidator(_device)] = "auto"
    """Where to train: auto, cpu, cuda, mps, or one card such as cuda:1."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """The start of all randomness: the same seed gives the same LoRA."""

    save_steps: Count = 100
    """A LoRA file and a resume state are written every so many steps."""
    keep_last: Count | None = None
    """How many of the LoRA files written on the way are kept. Without it, all."""
    save_precision: Literal["fp16", "bf16", "fp32"] = "fp16"
    """The number format of the LoRA file."""
    metadata_captions: bool = False
    """Write the captions and the name of the data folder into the LoRA file."""

    sample_prompts: Prompts = ()
    """Prompts of the preview pictures. Without them, two captions of the data set."""
    sample_every: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    """Preview pictures every so many steps; 0: none while training. Without it, as often as save_steps."""
    sample_steps: Annotated[int, Field(ge=1, le=1000)] = 20
    """Denoising steps of a preview picture."""
    sample_cfg: Annotated[float, Field(ge=0, le=100)] = 7.0
    """How closely a preview follows its prompt (classifier-free guidance)."""
    sample_negative: str = ""
    """The negative prompt of the preview pictures."""
    sample_size: Size | None = None
    """The size of the preview pictures. Without it, resolution."""

    @model_validator(mode="after")
    def _no_conflicts(self) -> TrainConfig:
        if found := conflicts(self.__dict__, self.model_fields_set):
            raise ValueError("; ".join(f"{key} {fault}; {mend}" for key, fault, mend in found))
        return self

    @property
    def name(self) -> str:
        """The LoRA's name: that of the output folder."""
        return Path(os.path.abspath(self.output_dir)).name

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of `resolution`, in pixels."""
        return _pair(self.resolution)

    @property
    def effective_alpha(self) -> float:
        """`lora_alpha`, by default the rank."""
        return float(self.lora_rank) if self.lora_alpha is None else self.lora_alpha

    @property
    def effective_text_encoder_lr(self) -> float | None:
        """`text_encoder_lr`, by default a quarter of `learning_rate`; None where the text encoder is frozen."""
        if not self.train_text_encoder:
            return None
        return self.learning_rate / 4 if self.text_encoder_lr is None else self.text_encoder_lr

    @property
    def effective_sample_every(self) -> int:
        """`sample_every`, by default `save_steps`; 0: no previews while training."""
        return self.save_steps if self.sample_every is None else self.sample_every

    @property
    def effective_sample_size(self) -> tuple[int, int]:
        """(width, height) of `sample_size`, by default of `resolution`, in pixels."""
        return self.size if self.sample_size is None else _pair(self.sample_size)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def conflicts(values: Mapping[str, Any], given: Set[str]) -> list[tuple[str, str, str]]:
    """(key, fault, mend) of every key in `given` that does nothing beside the others.

    `values` has each key's value or default; a key whose own value is wrong may be left out.
    """
    found = []
    if "keep_tags" in given and values.get("shuffle_tags") is False:
        found.append(
            ("keep_tags", "has no effect without shuffle_tags", "add shuffle_tags: true, or leave keep_tags out")
        )
    if values.get("text_encoder_lr") is not None and values.get("train_text_encoder") is False:
        mend = "add train_text_encoder: true, or leave text_encoder_lr out"
        found.append(("text_encoder_lr", "has no effect without train_text_encoder", mend))
    if values.get("shuffle_tags") is True and values.get("caption_dropout") == 1:
        found.append(("shuffle_tags", "has no effect, because caption_dropout: 1 drops every caption", "lower it"))
    if values.get("sample_negative") and values.get("sample_cfg") == 1:
        found.append(
            ("sample_negative", "has no effect with sample_cfg: 1", "raise sample_cfg, or leave sample_negative out")
        )
    return found


# The order and the headings of the resolved config; a test holds it against the fields.
GROUPS: dict[str, tuple[str, ...]] = {
    "Paths": ("train_data_dir", "metadata_path", "base_model", "vae", "prediction", "output_dir", "cache_dir"),
    "Data": (
        *("resolution", "flip", "random_crop", "repeats", "caption_dropout"),
        *("shuffle_tags", "keep_tags", "allow_missing_captions"),
    ),
    "LoRA": (
        *("lora_rank", "lora_alpha", "lora_dropout", "targets"),
        *("train_text_encoder", "text_encoder_lr", "init_lora"),
    ),
    "Training": (
        *("epochs", "batch_size", "gradient_accumulation", "learning_rate", "lr_schedule", "warmup_steps"),
        *("weight_decay", "max_grad_norm", "min_snr_gamma", "noise_offset", "precision", "device", "seed"),
    ),
    "Saving": ("save_steps", "keep_last", "save_precision", "metadata_captions"),
    "Previews": ("sample_prompts", "sample_every", "sample_steps", "sample_cfg", "sample_negative", "sample_size"),
}
