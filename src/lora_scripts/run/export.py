"""The LoRA file of a run, with its metadata."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lora_scripts.adapters.lycoris import KINDS
from lora_scripts.adapters.weights import LoraWeights, uniform
from lora_scripts.formats import io
from lora_scripts.formats.hashes import with_hashes
from lora_scripts.loras import embedding, kohya, metadata
from lora_scripts.loras.metadata import TrainingFacts
from lora_scripts.run.new_words import metadata_of, save_words

if TYPE_CHECKING:
    from lora_scripts.run.story import Run


class Exporter:
    """Writes what a run has learnt so far, in kohya's format."""

    def __init__(self, run: Run, dtype: torch.dtype) -> None:
        self.run, self.dtype = run, dtype

    def weights(self) -> dict[str, LoraWeights]:
        """Path -> A, B, alpha as they stand in the file: of one rank, rounded to its precision. Not for LyCORIS."""
        plain = {}
        for path, leaves in self.leaves().items():
            down, up = leaves["lora_down.weight"], leaves["lora_up.weight"]
            plain[path] = LoraWeights(down, up, leaves["alpha"].item(), leaves.get("dora_scale"))

        def rounded(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.to(self.dtype)

        return {
            p: LoraWeights(w.down.to(self.dtype), w.up.to(self.dtype), w.alpha, rounded(w.dora))
            for p, w in uniform(plain).items()
        }

    def leaves(self) -> dict[str, dict[str, Tensor]]:
        """Path -> what a file holds of the layer, averaged where the run averages, not rounded."""
        with self.run.averaged():
            return {path: layer.leaves() for path, layer in self.run.layers.items()}

    @property
    def lycoris(self) -> bool:
        """That the file is one for readers of LyCORIS."""
        return self.run.config.adapter in KINDS

    def words(self) -> dict[str, Tensor]:
        """New words -> their vectors [k, width], averaged where the run averages, float32 as in every file."""
        with self.run.averaged():
            return {word: p.detach().cpu().clone() for word, p in self.run.model.words.items()}

    def tensors(self) -> dict[str, Tensor]:
        """What the file would hold now. UserError if a value is not finite in the file's precision."""
        words = embedding.to_bundle(self.words()) if self.run.config.token_bundle else {}
        if self.lycoris:
            return kohya.to_lycoris(self.leaves(), dtype=self.dtype) | words
        return kohya.to_kohya(self.weights(), dtype=self.dtype) | words

    def write(self, path: Path) -> None:
        """UserError if a value is not finite in the file's precision."""
        tensors = self.tensors()
        words = self.words()
        told = metadata.lora_metadata(self._facts(*self._size())) | metadata_of(words)
        save_words(words, path)  # first: a LoRA that is there has its words
        io.save_safetensors(path, tensors, with_hashes(tensors, told))

    def _size(self) -> tuple[int, float]:
        """Rank and alpha of every module in the file."""
        if self.lycoris:
            return self.run.model.rank, self.run.model.alpha
        one = next(iter(self.weights().values()))
        return one.rank, one.alpha

    def _facts(self, rank: int, alpha: float) -> TrainingFacts:
        """`rank` and `alpha` of every module in the file."""
        run, c = self.run, self.run.config
        asked = c.metadata_captions
        captions = Counter(s.caption for s in run.samples)
        folder = c.train_data_dir.name
        return TrainingFacts(
            output_name=run.folder.name,
            base_name=c.base_model.name,
            base_sha256=run.model.base_digest,
            rank=rank,
            alpha=alpha,
            resolution=c.size,
            images=len(run.samples),
            repeats=c.repeats,
            batch_size=c.batch_size,
            gradient_accumulation=c.gradient_accumulation,
            epoch=-(-run.state.step // run.feed.steps_per_epoch),
            epochs=c.epochs,
            steps=run.state.step,
            max_steps=run.total,
            learning_rate=c.learning_rate,
            unet_learning_rate=c.learning_rate,
            text_learning_rate=c.effective_text_encoder_lr,
            optimizer=type(run.optimizer).__module__ + "." + type(run.optimizer).__qualname__,
            scheduler=c.effective_lr_schedule,
            warmup_steps=c.warmup_steps,
            seed=c.seed,
            precision="no" if run.precision == "fp32" else run.precision,
            v_prediction=c.prediction == "v",
            dropout=c.lora_dropout,
            conv=any(layer.frozen.weight.shape[2:].numel() > 1 for layer in run.layers.values()),
            algorithm=c.adapter,
            clip_skip=c.clip_skip,
            min_snr_gamma=c.min_snr_gamma,
            noise_offset=c.noise_offset or None,
            caption_dropout=c.caption_dropout,
            tag_frequency={folder: dict(captions)} if asked else None,
            dataset_dirs={folder: {"n_repeats": c.repeats, "img_count": len(run.samples)}} if asked else None,
        )
