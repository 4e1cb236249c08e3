"""The LoRA file of a run: what is learnt at one moment, as tensors, with its metadata, and the proof that it loads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lora_scripts.adapters.lycoris import KINDS
from lora_scripts.adapters.weights import LoraWeights, uniform
from lora_scripts.compute.device import DTYPES
from lora_scripts.config.schema import TrainConfig
from lora_scripts.data.scan import Sample
from lora_scripts.loras import embedding, kohya, metadata
from lora_scripts.loras.file import save
from lora_scripts.loras.metadata import TrainingFacts
from lora_scripts.run.parts import Model
from lora_scripts.run.pivotal import metadata_of, save_words
from lora_scripts.train.average import Ema, averaged
from lora_scripts.train.state import RunState


@dataclass(frozen=True)
class Snapshot:
    """What a run has learnt, averaged where it averages; on the CPU, float32, independent of the model."""

    leaves: dict[str, dict[str, Tensor]]
    """Path -> what a file holds of the layer, not rounded."""
    words: dict[str, Tensor]
    """New words -> their vectors [k, width]"""


def snapshot(model: Model, ema: Ema | None) -> Snapshot:
    """The weights as they are shown and saved."""
    with averaged(model.trained, model.optimizer, ema):
        leaves = {path: layer.leaves() for path, layer in model.layers.items()}
        return Snapshot(leaves, {word: p.detach().cpu().clone() for word, p in model.words.items()})


@dataclass(frozen=True)
class LoraTensors:
    """A snapshot as a file holds it."""

    tensors: dict[str, Tensor]
    weights: dict[str, LoraWeights]
    """Path -> A, B, alpha as they stand in the file: of one rank, rounded to its precision. Empty for LyCORIS."""
    rank: int
    """Of every module, as `alpha`."""
    alpha: float


def to_file(taken: Snapshot, model: Model, config: TrainConfig) -> LoraTensors:
    """UserError if a value is not finite in the file's precision."""
    names, dtype = model.family.facts.names().kohya, DTYPES[config.save_precision]
    words = embedding.to_bundle(taken.words) if config.token_bundle else {}
    if config.adapter in KINDS:
        tensors = kohya.to_lycoris(taken.leaves, names, dtype=dtype)
        return LoraTensors(tensors | words, {}, model.rank, model.alpha)
    weights = {path: _rounded(w, dtype) for path, w in uniform(_weights(taken)).items()}
    one = next(iter(weights.values()))
    tensors = kohya.to_kohya(weights, names, dtype=dtype)
    return LoraTensors(tensors | words, weights, one.rank, one.alpha)


def _weights(taken: Snapshot) -> dict[str, LoraWeights]:
    return {
        path: LoraWeights(
            leaves["lora_down.weight"], leaves["lora_up.weight"], leaves["alpha"].item(), leaves.get("dora_scale")
        )
        for path, leaves in taken.leaves.items()
    }


def _rounded(w: LoraWeights, dtype: torch.dtype) -> LoraWeights:
    return LoraWeights(w.down.to(dtype), w.up.to(dtype), w.alpha, None if w.dora is None else w.dora.to(dtype))


def write(path: Path, file: LoraTensors, taken: Snapshot, facts: TrainingFacts) -> None:
    """The LoRA, and beside it the words that it was trained with."""
    told = metadata.of_training(facts) | metadata_of(taken.words)
    save_words(taken.words, path)  # first: a LoRA that is there has its words
    save(path, file.tensors, told)


def facts_of(
    config: TrainConfig,
    model: Model,
    file: LoraTensors,
    state: RunState,
    *,
    samples: Sequence[Sample],
    steps_per_epoch: int,
    precision: str,
) -> TrainingFacts:
    """What the metadata says of the run."""
    c, asked, folder = config, config.metadata_captions, config.train_data_dir.name
    captions = Counter(s.caption for s in samples)
    optimizer = type(model.optimizer)
    return TrainingFacts(
        lora=model.family.facts.lora,
        output_name=c.name,
        base_name=c.base_model.name,
        base_sha256=model.base_digest,
        rank=file.rank,
        alpha=file.alpha,
        resolution=c.size,
        images=len(samples),
        repeats=c.repeats,
        batch_size=c.batch_size,
        gradient_accumulation=c.gradient_accumulation,
        epoch=-(-state.step // steps_per_epoch),
        epochs=c.epochs,
        steps=state.step,
        max_steps=state.total,
        learning_rate=c.learning_rate,
        unet_learning_rate=c.learning_rate,
        text_learning_rate=c.effective_text_encoder_lr,
        optimizer=optimizer.__module__ + "." + optimizer.__qualname__,
        scheduler=c.effective_lr_schedule,
        warmup_steps=c.warmup_steps,
        seed=c.seed,
        precision="no" if precision == "fp32" else precision,
        v_prediction=model.family.objective.prediction == "v",
        dropout=c.lora_dropout,
        conv=any(layer.frozen.weight.shape[2:].numel() > 1 for layer in model.layers.values()),
        algorithm=c.adapter,
        clip_skip=c.clip_skip,
        min_snr_gamma=c.min_snr_gamma,
        noise_offset=c.noise_offset or None,
        caption_dropout=c.caption_dropout,
        tag_frequency={folder: dict(captions)} if asked else None,
        dataset_dirs={folder: {"n_repeats": c.repeats, "img_count": len(samples)}} if asked else None,
    )
