"""The metadata of a LoRA file. Every value is a string.

`ss_*` as kohya's sd-scripts writes them, which the WebUI's list and editor read; `modelspec.*` is Stability's ModelSpec
1.0.1. Captions, tags and folder names go into the file only when they are given.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.data.trigger import Trigger
from lora_scripts.families.facts import Facts, LoraFacts

if TYPE_CHECKING:
    from lora_scripts.adapters.weights import LoraWeights

MADE_BY, MADE_FROM = "lora_scripts.made_by", "lora_scripts.made_from"
TRAINED_WITH = "lora_scripts.training_adapter"
TRIGGER = "modelspec.trigger_phrase"
"""What calls the LoRA in a prompt."""
AGREEMENT = "lora_scripts.trigger_agreement"
"""How many of the captions begin with `modelspec.trigger_phrase`: "48 of 50"."""


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
    seen: int
    """Pictures in an epoch, with their repeats."""
    batch_size: int
    gradient_accumulation: int
    epoch: int
    """Epochs done, counting the one begun."""
    epochs: int
    steps: int
    """Steps done."""
    max_steps: int
    learning_rate: float
    """Of all but the text encoders."""
    text_learning_rate: float | tuple[float, ...] | None
    """Of all text encoders, or of each; None: they are frozen."""
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
    training_adapter: str = ""
    """Name and SHA-256 of a LoRA that was on while this one was trained; empty for none."""
    trigger: Trigger | None = None
    """What the captions begin with."""
    buckets: Mapping[tuple[int, int], int] | None = None
    """(width, height) in pixels -> pictures trained at that size, counted with their repeats."""
    tag_frequency: Mapping[str, Mapping[str, int]] | None = None
    """Data set -> tag -> count. It shows the captions: only if the person asks."""
    dataset_dirs: Mapping[str, Mapping[str, int]] | None = None
    """Folder name -> {"n_repeats": …, "img_count": …}: only if the person asks."""


@dataclass(frozen=True)
class Source:
    """One file that another was made from, as the metadata names it."""

    name: str
    sha256: str
    weight: float | None = None


def tag_counts(captions: Iterable[str]) -> dict[str, int]:
    """Tag -> captions that hold it, most first: what stands between commas, as kohya's scripts count it."""
    counts = Counter(tag for caption in captions for tag in dict.fromkeys(t.strip() for t in caption.split(",")) if tag)
    return dict(counts.most_common())


def of_training(facts: TrainingFacts) -> dict[str, str]:
    """The `ss_*` and `modelspec.*` of a LoRA that was trained; no date, so that equal runs give equal files."""
    lora = facts.lora
    if facts.v_prediction and lora.of_v is not None:
        lora = replace(lora, base_version=lora.of_v[0], architecture=lora.of_v[1])
    least = _least(lora, facts.output_name, facts.rank, facts.alpha, _args(facts))
    return dict(sorted((least | _ss(facts) | _modelspec(facts)).items()))


def of_making(
    family: Facts, name: str, weights: Mapping[str, LoraWeights], made_by: str, sources: Sequence[Source]
) -> dict[str, str]:
    """The least set that the tools want of a LoRA of one rank and alpha, with what it was made from."""
    first = next(iter(weights.values()))
    conv = any(w.down.dim() == 4 and w.down.shape[-1] > 1 for w in weights.values())  # larger than 1 x 1
    args = {"conv_dim": first.rank, "conv_alpha": first.alpha} if conv else {}
    values = _least(family.lora, name, first.rank, first.alpha, args)
    if len(sources) > 1:
        values["modelspec.merged_from"] = ", ".join(Path(source.name).stem for source in sources)
    return dict(sorted((values | made_from(made_by, sources)).items()))


def made_from(made_by: str, sources: Iterable[Source]) -> dict[str, str]:
    """Our own two keys: the command with its settings, and the files with their SHA-256 and weights."""
    rows = [{key: value for key, value in vars(source).items() if value is not None} for source in sources]
    return {MADE_BY: made_by, MADE_FROM: json.dumps(rows, ensure_ascii=False)}


def shared(files: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What the metadata of all files say alike of their base, their resolution and how they are used."""
    keys = (
        "ss_sd_model_name", "ss_sd_model_hash", "ss_new_sd_model_hash", "ss_clip_skip", "ss_resolution",
        "modelspec.resolution", "modelspec.prediction_type", "modelspec.encoder_layer",
    )  # fmt: skip
    first = files[0]
    return {key: first[key] for key in keys if key in first and all(file.get(key) == first[key] for file in files)}


def together(files: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The words that call any of several LoRAs that are one file now, each once."""
    phrases = dict.fromkeys(phrase for file in files if (phrase := file.get(TRIGGER, "").strip()))
    return {TRIGGER: ", ".join(phrases)} if phrases else {}


def _least(lora: LoraFacts, name: str, rank: int, alpha: float, args: Mapping[str, object]) -> dict[str, str]:
    """What programs need to list a LoRA and to tell what it is for."""
    return {
        "ss_v2": str(lora.v2),
        "ss_base_model_version": lora.base_version,
        "ss_network_module": "lycoris.kohya" if "algo" in args else "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(alpha),
        "ss_network_args": json.dumps(args),
        "ss_output_name": name,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": lora.architecture,
        "modelspec.implementation": lora.implementation,
        "modelspec.title": name,
    }


def _args(facts: TrainingFacts) -> dict[str, object]:
    """`ss_network_args`: what the network was made with besides rank and alpha."""
    args: dict[str, object] = {}
    if facts.dropout:
        args["dropout"] = facts.dropout
    if facts.conv:
        args |= {"conv_dim": facts.rank, "conv_alpha": facts.alpha}
    if facts.algorithm in ("loha", "lokr", "oft"):
        args["algo"] = "diag-oft" if facts.algorithm == "oft" else facts.algorithm
    if facts.algorithm == "dora":
        args["dora_wd"] = True
    return args


def _ss(facts: TrainingFacts) -> dict[str, str]:
    """kohya's keys of a training, as its networks/train_network.py fills them."""
    batches, rates = -(-facts.seen // facts.batch_size), facts.text_learning_rate
    result = {
        "ss_network_dropout": str(facts.dropout or None),
        "ss_sd_model_name": facts.base_name,
        "ss_steps": str(facts.steps),
        "ss_max_train_steps": str(facts.max_steps),
        "ss_epoch": str(facts.epoch),
        "ss_num_epochs": str(facts.epochs),
        "ss_num_train_images": str(facts.seen),
        "ss_num_reg_images": "0",
        "ss_num_batches_per_epoch": str(batches),
        "ss_total_batch_size": str(facts.batch_size),
        "ss_gradient_accumulation_steps": str(facts.gradient_accumulation),
        "ss_resolution": str(facts.resolution),
        "ss_learning_rate": str(facts.learning_rate),
        "ss_unet_lr": str(facts.learning_rate),
        "ss_text_encoder_lr": str(list(rates) if isinstance(rates, tuple) else rates),
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
    if facts.training_adapter:
        result[TRAINED_WITH] = facts.training_adapter
    if facts.base_sha256:
        result["ss_new_sd_model_hash"] = facts.base_sha256
    if facts.buckets:
        rows = enumerate(sorted(facts.buckets.items()))
        buckets = {str(number): {"resolution": list(size), "count": count} for number, (size, count) in rows}
        result["ss_bucket_info"] = json.dumps({"buckets": buckets})
    if facts.tag_frequency is not None:
        result["ss_tag_frequency"] = json.dumps(facts.tag_frequency, ensure_ascii=False)
    if facts.dataset_dirs is not None:
        result["ss_dataset_dirs"] = json.dumps(facts.dataset_dirs, ensure_ascii=False)
    return result


def _modelspec(facts: TrainingFacts) -> dict[str, str]:
    """ModelSpec 1.0.1: what training decides."""
    result = {
        "modelspec.resolution": f"{facts.resolution[0]}x{facts.resolution[1]}",
        "modelspec.prediction_type": "v" if facts.v_prediction else "epsilon",
    }
    if facts.clip_skip > 1:
        result["modelspec.encoder_layer"] = str(facts.clip_skip)
    if facts.trigger is not None:
        result[TRIGGER] = facts.trigger.phrase
        result[AGREEMENT] = facts.trigger.agreement
    return result
