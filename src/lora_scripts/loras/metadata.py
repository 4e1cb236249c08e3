"""The metadata of a LoRA file. Every value is a string.

`ss_*` as kohya's sd-scripts writes them, which the WebUI's list and editor read; `modelspec.*` is Stability's ModelSpec
1.0.1. Captions, tags and folder names go into the file only when they are given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from lora_scripts.families.facts import LoraFacts


@dataclass(frozen=True)
class TrainingFacts:
    """What one run knows about itself."""

    output_name: str
    """The alias in prompts, `<lora:NAME:1>`, and the title."""
    lora: LoraFacts
    """Of the family."""
    base_name: str
    """File name of the base model, without its folder."""
    base_sha256: str
    """Of the whole base file, lower case; "" for a diffusers folder."""
    rank: int
    alpha: float
    resolution: tuple[int, int]
    """Width, height in pixels."""
    images: int
    repeats: int
    batch_size: int
    gradient_accumulation: int
    epoch: int
    """Epochs done, counting the one begun."""
    epochs: int
    steps: int
    """Steps done."""
    max_steps: int
    learning_rate: float
    unet_learning_rate: float
    text_learning_rate: float | None
    """None: the text encoder is frozen."""
    optimizer: str
    scheduler: str
    warmup_steps: int
    seed: int
    precision: str
    """no (fp32), fp16 or bf16: the words of kohya's scripts."""
    clip_skip: int = 1
    v_prediction: bool = False
    dropout: float = 0.0
    conv: bool = False
    """Whether convolutions carry a LoRA too."""
    algorithm: str = "lora"
    """What the adapter is: "lora", "dora", or what LyCORIS calls its own: "loha", "lokr", "oft"."""
    min_snr_gamma: float | None = None
    noise_offset: float | None = None
    caption_dropout: float = 0.0
    date: str | None = None
    """ISO 8601. None leaves it out, so that equal runs give equal files."""
    tag_frequency: Mapping[str, Mapping[str, int]] | None = None
    """Data set -> tag -> count. It shows the captions: only if the person asks."""
    dataset_dirs: Mapping[str, Mapping[str, int]] | None = None
    """Folder name -> {"n_repeats": …, "img_count": …}: only if the person asks."""


def lora_metadata(facts: TrainingFacts) -> dict[str, str]:
    """The `ss_*` and `modelspec.*` of an SD 1.x LoRA; the same facts give the same texts."""
    return dict(sorted((_ss(facts) | _modelspec(facts)).items()))


def _ss(facts: TrainingFacts) -> dict[str, str]:
    """kohya's keys, as its networks/train_network.py fills them."""
    args: dict[str, object] = {}
    if facts.dropout:
        args["dropout"] = facts.dropout
    if facts.conv:
        args |= {"conv_dim": facts.rank, "conv_alpha": facts.alpha}
    if facts.algorithm in ("loha", "lokr", "oft"):
        args["algo"] = "diag-oft" if facts.algorithm == "oft" else facts.algorithm
    if facts.algorithm == "dora":
        args["dora_wd"] = True
    batches = -(-facts.images * facts.repeats // facts.batch_size)
    result = {
        "ss_v2": "False",
        "ss_base_model_version": facts.lora.base_version,
        "ss_network_module": "lycoris.kohya" if "algo" in args else "networks.lora",
        "ss_network_dim": str(facts.rank),
        "ss_network_alpha": str(facts.alpha),
        "ss_network_dropout": str(facts.dropout or None),
        "ss_network_args": json.dumps(args),
        "ss_output_name": facts.output_name,
        "ss_sd_model_name": facts.base_name,
        "ss_steps": str(facts.steps),
        "ss_max_train_steps": str(facts.max_steps),
        "ss_epoch": str(facts.epoch),
        "ss_num_epochs": str(facts.epochs),
        "ss_num_train_images": str(facts.images * facts.repeats),
        "ss_num_reg_images": "0",
        "ss_num_batches_per_epoch": str(batches),
        "ss_total_batch_size": str(facts.batch_size),
        "ss_gradient_accumulation_steps": str(facts.gradient_accumulation),
        "ss_resolution": str(facts.resolution),
        "ss_learning_rate": str(facts.learning_rate),
        "ss_unet_lr": str(facts.unet_learning_rate),
        "ss_text_encoder_lr": str(facts.text_learning_rate),
        "ss_optimizer": facts.optimizer,
        "ss_lr_scheduler": facts.scheduler,
        "ss_lr_warmup_steps": str(facts.warmup_steps),
        "ss_mixed_precision": facts.precision,
        "ss_seed": str(facts.seed),
        "ss_clip_skip": str(facts.clip_skip),
        "ss_min_snr_gamma": str(facts.min_snr_gamma),
        "ss_noise_offset": str(facts.noise_offset),
        "ss_caption_dropout_rate": str(facts.caption_dropout),
    }
    if facts.base_sha256:
        result["ss_new_sd_model_hash"] = facts.base_sha256
    if facts.tag_frequency is not None:
        result["ss_tag_frequency"] = json.dumps(facts.tag_frequency, ensure_ascii=False)
    if facts.dataset_dirs is not None:
        result["ss_dataset_dirs"] = json.dumps(facts.dataset_dirs, ensure_ascii=False)
    return result


def _modelspec(facts: TrainingFacts) -> dict[str, str]:
    """ModelSpec 1.0.1: the musts, and what training decides."""
    result = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": facts.lora.architecture,
        "modelspec.implementation": facts.lora.implementation,
        "modelspec.title": facts.output_name,
        "modelspec.resolution": f"{facts.resolution[0]}x{facts.resolution[1]}",
        "modelspec.prediction_type": "v" if facts.v_prediction else "epsilon",
    }
    if facts.clip_skip > 1:
        result["modelspec.encoder_layer"] = str(facts.clip_skip)
    if facts.date is not None:
        result["modelspec.date"] = facts.date
    return result
