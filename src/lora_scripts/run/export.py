"""The LoRA file of a run, with its metadata."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lora_scripts.formats import io, kohya, metadata
from lora_scripts.formats.kohya import LoraWeights
from lora_scripts.formats.metadata import TrainingFacts

if TYPE_CHECKING:
    from lora_scripts.run.training import Run


class Exporter:
    """Writes what a run has learnt so far, in kohya's format."""

    def __init__(self, run: Run, dtype: torch.dtype) -> None:
        self.run, self.dtype = run, dtype

    def weights(self) -> dict[str, LoraWeights]:
        """Path -> A, B, alpha as they stand in the file: of one rank, rounded to its precision."""
        layers = self.run.layers
        plain = {
            p: LoraWeights(layer.down.detach().cpu(), layer.up.detach().cpu(), layer.alpha)
            for p, layer in layers.items()
        }
        return {
            p: LoraWeights(w.down.to(self.dtype), w.up.to(self.dtype), w.alpha) for p, w in kohya.uniform(plain).items()
        }

    def write(self, path: Path) -> None:
        """UserError if a value is not finite in the file's precision."""
        weights = self.weights()
        tensors: dict[str, Tensor] = kohya.to_kohya(weights, dtype=self.dtype)
        told = metadata.lora_metadata(self._facts(next(iter(weights.values()))))
        io.save_safetensors(path, tensors, metadata.with_hashes(tensors, told))

    def _facts(self, one: LoraWeights) -> TrainingFacts:
        """`one` of the modules in the file: all have its rank and alpha."""
        run, c = self.run, self.run.config
        asked = c.metadata_captions
        captions = Counter(s.caption for s in run.samples)
        folder = c.train_data_dir.name
        return TrainingFacts(
            output_name=run.folder.name,
            base_name=c.base_model.name,
            base_sha256=run.model.base_digest,
            rank=one.rank,
            alpha=one.alpha,
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
            optimizer="torch.optim.AdamW",
            scheduler=c.lr_schedule,
            warmup_steps=c.warmup_steps,
            seed=c.seed,
            precision="no" if run.precision == "fp32" else run.precision,
            v_prediction=c.prediction == "v",
            dropout=c.lora_dropout,
            conv=any(layer.down.dim() == 4 and layer.down.shape[-1] > 1 for layer in run.layers.values()),
            min_snr_gamma=c.min_snr_gamma,
            noise_offset=c.noise_offset or None,
            caption_dropout=c.caption_dropout,
            tag_frequency={folder: dict(captions)} if asked else None,
            dataset_dirs={folder: {"n_repeats": c.repeats, "img_count": len(run.samples)}} if asked else None,
        )
