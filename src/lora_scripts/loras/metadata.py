"""The metadata of an SD 1.x LoRA file, and the hashes that WebUIs know files by. Every value is a string.

`ss_*` as kohya's sd-scripts writes them, which the WebUI's list and editor read; `modelspec.*` is Stability's ModelSpec
1.0.1. Captions, tags and folder names go into the file only when they are given.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.errors import UserError
from lora_scripts.formats.io import Buffer, safetensors_parts

if TYPE_CHECKING:
    from torch import Tensor

_LEGACY_START, _LEGACY_LENGTH = 0x100000, 0x10000  # bytes: the window that AUTOMATIC1111's first hash reads
_CHUNK = 1 << 20


@dataclass(frozen=True)
class TrainingFacts:
    """What one run knows about itself."""

    output_name: str
    """The alias in prompts, `<lora:NAME:1>`, and the title."""
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


@dataclass(frozen=True)
class Hashes:
    """Lower-case hexadecimal; of the bytes as they are on the disk."""

    sha256: str
    """Of the whole file."""
    sshs_model_hash: str
    """SHA-256 of all bytes after the safetensors header; "" for another format."""
    sshs_legacy_hash: str
    """First 8 of the SHA-256 of the 64 KiB at 0x100000."""

    @property
    def autov2(self) -> str:
        return self.sha256[:10]

    @property
    def autov3(self) -> str:
        return self.sshs_model_hash[:12]


def lora_metadata(facts: TrainingFacts) -> dict[str, str]:
    """The `ss_*` and `modelspec.*` of an SD 1.x LoRA; the same facts give the same texts."""
    return dict(sorted((_ss(facts) | _modelspec(facts)).items()))


def with_hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """`metadata` with the `sshs_*` hashes that the finished file will have.

    The model hash leaves the header out. The legacy hash reads 64 KiB at 1 MiB: placeholders of its length hold its
    place, and a header that reaches into the window, whose hash would have to contain itself, gets none.
    """
    filled = dict(metadata) | {"sshs_model_hash": "0" * 64, "sshs_legacy_hash": "0" * 8}
    header, buffers = safetensors_parts(tensors, filled)
    if len(header) > _LEGACY_START:
        del filled["sshs_legacy_hash"]
        header, buffers = safetensors_parts(tensors, filled)
    hashes = _hashes(_chain(header, buffers), len(header))
    filled["sshs_model_hash"] = hashes.sshs_model_hash
    if "sshs_legacy_hash" in filled:
        filled["sshs_legacy_hash"] = hashes.sshs_legacy_hash
    return filled


def model_hashes(source: Path | bytes) -> Hashes:
    """The hashes of a model file, read once in pieces of 1 MiB. UserError when it cannot be read."""
    if isinstance(source, bytes):
        return _hashes([source], _body_start(source))
    try:
        with source.open("rb") as file:
            start = _body_start(file.read(9))
            file.seek(0)
            return _hashes(iter(lambda: file.read(_CHUNK), b""), start)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", file=source, hint="check the path") from error


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
        "ss_base_model_version": "sd_v1",
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
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",  # whose names a kohya file of SD 1.x follows
        "modelspec.title": facts.output_name,
        "modelspec.resolution": f"{facts.resolution[0]}x{facts.resolution[1]}",
        "modelspec.prediction_type": "v" if facts.v_prediction else "epsilon",
    }
    if facts.clip_skip > 1:
        result["modelspec.encoder_layer"] = str(facts.clip_skip)
    if facts.date is not None:
        result["modelspec.date"] = facts.date
    return result


def _chain(header: bytes, buffers: Iterable[Buffer]) -> Iterable[Buffer]:
    yield header
    yield from buffers


def _body_start(start: bytes) -> int | None:
    """Where a safetensors file's tensors begin; None for another format."""
    return 8 + int.from_bytes(start[:8], "little") if start[8:9] == b"{" else None


def _hashes(buffers: Iterable[Buffer], body: int | None) -> Hashes:
    whole, after, window = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    at = 0
    for buffer in buffers:
        view = memoryview(buffer)
        whole.update(view)
        if body is not None:
            after.update(view[max(0, body - at) :])
        window.update(view[max(0, _LEGACY_START - at) : max(0, _LEGACY_START + _LEGACY_LENGTH - at)])
        at += len(view)
    return Hashes(whole.hexdigest(), after.hexdigest() if body is not None else "", window.hexdigest()[:8])
