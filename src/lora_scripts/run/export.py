"""The LoRA file of a run: what is learnt at one moment, as tensors, with its metadata, and the proof that it loads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lora_scripts.adapters.lycoris import KINDS
from lora_scripts.adapters.products import outline
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.compute.device import DTYPES
from lora_scripts.config.schema import TrainConfig
from lora_scripts.data.buckets import Size
from lora_scripts.data.scan import Sample
from lora_scripts.data.trigger import calling
from lora_scripts.errors import UserError
from lora_scripts.families import table
from lora_scripts.loras import dialects, embedding, kohya, metadata, proof
from lora_scripts.loras.embedding import read_embedding
from lora_scripts.loras.file import save
from lora_scripts.loras.metadata import TrainingFacts
from lora_scripts.loras.reading import Change
from lora_scripts.loras.words import embedding_file, read_words
from lora_scripts.run.parts import Model
from lora_scripts.run.pivotal import metadata_of, save_words
from lora_scripts.train.average import Ema, averaged
from lora_scripts.train.state import RunState
from lora_scripts.units import typed

_TITLES = {
    "dora": "DoRA", "loha": "LoHa", "lokr": "LoKr", "oft": "OFT", "outer": "LoRA of conv_in, conv_out, time_embedding",
    "unasked": "LoRA of layers around the blocks under these names (lora-scripts convert --to kohya writes others)",
}  # fmt: skip


@dataclass(frozen=True)
class Snapshot:
    """What a run has learnt, averaged where it averages; on the CPU, float32, independent of the model."""

    leaves: dict[str, dict[str, Tensor]]
    """Path -> what a file holds of the layer, not rounded."""
    words: dict[str, Tensor]
    """New words -> their vectors [k, sum of `word_widths`]"""
    word_widths: tuple[int, ...]
    """As `PictureFamily.word_widths`; empty without words."""


def snapshot(model: Model, ema: Ema | None) -> Snapshot:
    """The weights as they are shown and saved."""
    with averaged(model.trained, model.optimizer, ema):
        leaves = {path: layer.leaves() for path, layer in model.layers.items()}
        words = {word: p.detach().cpu().clone() for word, p in model.words.items()}
        # Of no words there are none to ask for, and a text encoder that nobody needs is not built for it.
        return Snapshot(leaves, words, model.family.word_widths if words else ())


@dataclass(frozen=True)
class LoraTensors:
    """A snapshot as a file holds it."""

    tensors: dict[str, Tensor]
    trained: Mapping[str, Change]
    """Path -> the change, not rounded"""
    rank: int
    """Of every module, as `alpha`."""
    alpha: float
    """That the file's readers take."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Of the names that it has."""


def to_file(taken: Snapshot, model: Model, config: TrainConfig) -> LoraTensors:
    """UserError if a value is not finite in the file's precision."""
    names, dtype = model.family.facts.names(), DTYPES[config.save_precision]
    words = embedding.to_bundle(taken.words, taken.word_widths) if config.token_bundle else {}
    if config.adapter in KINDS:
        tensors = kohya.to_lycoris(taken.leaves, names.written, dtype=dtype)
        return LoraTensors(tensors | words, taken.leaves, model.rank, model.alpha)
    weights = kohya.prepared(_weights(taken))
    one = next(iter(weights.values()))
    form = dialects.own_form(weights, names, dtype)
    alpha = float(one.rank) if form.metadata else one.alpha  # folded: whoever reads it takes alpha = rank
    return LoraTensors(form.tensors | words, weights, one.rank, alpha, form.metadata)


def _weights(taken: Snapshot) -> dict[str, LoraWeights]:
    return {
        path: LoraWeights(
            leaves["lora_down.weight"], leaves["lora_up.weight"], leaves["alpha"].item(), leaves.get("dora_scale")
        )
        for path, leaves in taken.leaves.items()
    }


def write(path: Path, file: LoraTensors, taken: Snapshot, facts: TrainingFacts) -> None:
    """The LoRA, and beside it the words that it was trained with."""
    told = metadata.of_training(facts) | metadata_of(taken.words) | dict(file.metadata)
    save_words(taken.words, taken.word_widths, path)  # first: a LoRA that is there has its words
    save(path, file.tensors, told)


def facts_of(
    config: TrainConfig,
    model: Model,
    file: LoraTensors,
    state: RunState,
    *,
    samples: Sequence[Sample],
    sizes: Sequence[Size],
    times: Sequence[int],
    steps_per_epoch: int,
    precision: str,
) -> TrainingFacts:
    """What the metadata says of the run. Of each picture `sizes`: (width, height) that it is trained at; `times`: how
    often in an epoch."""
    c, asked, folder = config, config.metadata_captions, config.train_data_dir.name
    optimizer, buckets = type(model.optimizer), Counter[Size]()
    for size, count in zip(sizes, times, strict=True):
        buckets[size] += count
    return TrainingFacts(
        lora=model.family.facts.lora,
        output_name=c.name,
        base_name=c.base_model.name,
        base_sha256=model.base_digest,
        training_adapter=" ".join([c.training_adapter.name, model.training_adapter]) if c.training_adapter else "",
        rank=file.rank,
        alpha=file.alpha,
        resolution=c.size,
        seen=sum(times),
        batch_size=c.batch_size,
        gradient_accumulation=c.gradient_accumulation,
        epoch=-(-state.step // steps_per_epoch),
        epochs=c.epochs,
        steps=state.step,
        max_steps=state.total,
        learning_rate=c.learning_rate,
        text_learning_rate=c.effective_text_encoder_lr,
        optimizer=optimizer.__module__ + "." + optimizer.__qualname__,
        scheduler=c.effective_lr_schedule,
        warmup_steps=c.warmup_steps,
        seed=c.seed,
        precision="no" if precision == "fp32" else precision,
        v_prediction=model.family.objective.prediction == "v",
        dropout=c.lora_dropout,
        conv=any(outline(layer.frozen).shape[2:].numel() > 1 for layer in model.layers.values()),
        algorithm=c.adapter,
        clip_skip=c.clip_skip,
        min_snr_gamma=c.min_snr_gamma,
        noise_offset=c.noise_offset or None,
        caption_dropout=c.caption_dropout,
        trigger=calling(c.named_words, [s.caption for s in samples]),
        buckets=buckets,
        tag_frequency={folder: metadata.tag_counts(s.caption for s in samples)} if asked else None,
        dataset_dirs=_folders(c, samples, times) if asked else None,
    )


def _folders(config: TrainConfig, samples: Sequence[Sample], times: Sequence[int]) -> dict[str, dict[str, int]]:
    """Folder -> how often its pictures are seen, and how many they are."""
    folders: dict[str, dict[str, int]] = {}
    for sample, count in zip(samples, times, strict=True):
        inner = sample.name.partition("/")[0] if config.folder_repeats and "/" in sample.name else ""
        told = folders.setdefault(inner or config.train_data_dir.name, {"n_repeats": count, "img_count": 0})
        told["img_count"] += 1
    return folders


def prove(path: Path, config: TrainConfig, file: LoraTensors, taken: Snapshot) -> str:
    """Every program that knows such a file takes it, read from the disk again; the lines to tell.

    UserErrors, naming program and key, where one does not apply what was trained.
    """
    words = _prove_words(path, taken.words)
    proved = proof.prove(path, config.base_model, file.trained, config.save_precision)
    lines = [str(proved)]
    for kind, names in proved.unread_by.items():
        text = "refuse a LoRA with words in it (token_bundle)" if kind == "words" else f"read no {_TITLES[kind]}"
        mend = f"; for them: {_baking(path, config.base_model)}" if kind == "dora" else ""
        lines.append(f"note: {', '.join(names)} {text}{mend}")
    return "\n".join([*lines, *words])


def _baking(lora: Path, base: Path) -> str:
    """The command that makes a plain LoRA of a DoRA, in the names that most programs read."""
    names = "kohya" if table.find(base).names().kohya else "diffusers"
    words = ["lora-scripts", "convert", lora.as_posix(), "--to", names, "--bake-dora", "--base", base.as_posix()]
    return typed(words)


def _prove_words(path: Path, trained: Mapping[str, Tensor]) -> list[str]:
    """The new words, read from the disk again as `generate` reads them, are those that were trained; to be told."""
    known = read_words(path)
    for word, vectors in trained.items():
        files = [read_embedding(embedding_file(path, word)), *([known[word]] if word in known else [])]
        if len(files) < 2 or not all(torch.equal(vectors, other) for other in files):
            raise UserError(f"the word {word} does not read back as it was trained", file=path)
    return [f"verified: the word {word}, {len(v)} x {v.shape[1]} numbers" for word, v in trained.items()]
