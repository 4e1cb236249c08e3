"""OneTrainer: a preset or a config, as JSON.

Names and defaults: `modules/util/config/TrainConfig.py`, `ConceptConfig.py` and `modules/util/optimizer_util.py`, read
in October 2026.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lora_scripts.adopt import turns
from lora_scripts.adopt.foreign_file import flat
from lora_scripts.adopt.found import Found, Left, Row
from lora_scripts.adopt.noise_levels import of_flow
from lora_scripts.adopt.onetrainer_concepts import carry_concepts, carry_samples
from lora_scripts.adopt.onetrainer_rates import carry_rates
from lora_scripts.adopt.sizes import put_groups, put_rank, put_resolution
from lora_scripts.adopt.turns import count, flag, number, path, some, text
from lora_scripts.errors import UserError
from lora_scripts.families.elsewhere import USUAL
from lora_scripts.families.facts import Facts

_ROWS = (
    Row("base_model_name", "base_model", path),
    Row("vae.model_name", "vae", path),
    Row("lora_model_name", "init_lora", path),
    Row("batch_size", "batch_size", count, 1),
    Row("gradient_accumulation_steps", "gradient_accumulation", count),
    Row("clip_grad_norm", "max_grad_norm", number),
    Row("train_dtype", "precision", turns.precision, "fp16"),
    Row("output_dtype", "save_precision", turns.saved, "fp32"),
    Row("text_encoder.dropout_probability", "caption_dropout", some(number)),
    Row("offset_noise_weight", "noise_offset", number),
    Row("perturbation_noise_weight", "input_perturbation", number),
    Row("compile", "compile", flag),
    Row("min_noising_strength", "timestep_min", lambda value: int(1000 * number(value))),
    Row("max_noising_strength", "timestep_max", lambda value: int(1000 * number(value)) - 1),
)
_KNOWN: dict[str, tuple[object, str]] = {
    "mae_strength": (0.0, "the squared error is the measure here; loss: huber is here, too"),
    "log_cosh_strength": (0.0, "the squared error is the measure here; loss: huber is here, too"),
    "mse_strength": (1.0, "the loss has its full strength here"),
    "vb_loss_strength": (1.0, "is not here"),
    "generalized_offset_noise": (False, "the offset is the usual one here"),
    "masked_training": (
        False,
        "move the masks into a folder of their own, each named as its picture, and set mask_dir",
    ),
    "unmasked_probability": (0.1, "mask_background says how much what is masked out counts"),
    "unmasked_weight": (0.1, "mask_background says how much what is masked out counts"),
    "masked_prior_preservation_weight": (0.0, "class_data_dir keeps the class here"),
    "normalize_masked_area_loss": (False, "is not here"),
    "custom_conditioning_image": (False, "is not here"),
    "learning_rate_min_factor": (0.0, "schedules fall to zero here"),
    "custom_learning_rate_scheduler": (None, "schedules of one's own are not taken"),
    "scheduler_params": ([], "schedules of one's own are not taken"),
    "dropout_probability": (0.0, "is taken as lora_dropout where a LoRA is trained"),
    "embedding_learning_rate": (None, "new_token learns a word together with the LoRA"),
    "additional_embeddings": ([], "new_token learns a word together with the LoRA"),
    "force_circular_padding": (False, "is not here"),
    "lora_decompose_output_axis": (False, "dora measures each row of the weight here"),
    "oft_block_size": (32, "lora_rank stands in its place"),
    "oft_block_share": (False, "is not here"),
    "oft_scaled": (False, "is not here"),
    "lokr_decompose_factor": (-1, "lokr chooses the factor from the layer's widths here"),
    "lokr_full_matrix": (False, "a LoKr has a rank here"),
    "lokr_weight_decompose": (False, "is not here"),
    "layer_filter": (
        "",
        "targets names the layers by group or pattern; written is nothing, so attention and feed_forward",
    ),
    "layer_filter_regex": (False, "targets names the layers by group or pattern"),
    "multi_gpu": (False, "one card is trained on here"),
    "timestep_shift": (1.0, "is not here for this base"),
    "text_encoder.guidance_scale": (1.0, "is not here"),
    "unet.guidance_scale": (1.0, "a distilled model is trained at guidance 1 here"),
    "transformer.guidance_scale": (1.0, "a distilled model is trained at guidance 1 here"),
    "text_encoder_2_layer_skip": (0, "clip_skip counts for all text encoders here"),
    "samples_to_tensorboard": (True, "previews always go to tensorboard"),
    "validation": (False, "val_split holds pictures out, val_data_dir names a folder of them"),
    "ema_update_step_interval": (5, "the average is taken after every step here"),
}
_DECIDED = re.compile(
    r"__version|training_method|model_type|debug_\w+|workspace_dir|cache_dir|huggingface_cache_dir|offline_mode|tensorboard\w*"
    r"|validate_after\w*|continue_last_backup|prevent_overwrites|include_train_config|device_indexes|gradient_reduce_precision"
    r"|fused_gradient_reduce|async_\w+|output_model_\w+|concept\w*|aspect_ratio_bucketing|latent_caching|only_cache|secrets.*"
    r"|clear_cache_before_training|dataloader_threads|train_device|temp_device|fallback_train_dtype|enable_autocast_cache"
    r"|frames|attention_mechanism|loss_scaler|weight_dtype|lora_weight_dtype|embedding_weight_dtype|embedding\..*"
    r"|bundle_additional_embeddings|preserve_embedding_norm|sample_\w+|samples|non_ema_sampling|backup_\w+|rolling_backup\w*"
    r"|save_\w+|cloud\..*|optimizer_defaults.*|layer_filter_preset|quantization\..*|lora_decompose_norm_epsilon|lokr_\w+"
    r"|text_encoder(_\d)?_(sequence_length|layer_skip)|learning_rate_cycles|peft_type|(unet|transformer|prior|vae|effnet_encoder"
    r"|decoder\w*|unconditional_transformer|text_encoder(_\d)?)\.(weight_dtype|model_name|include|train|train_embedding"
    r"|attention_mask|stop_training_after\w*|offload_fraction|activation_offloading|gradient_checkpointing)"
)


def is_of_onetrainer(data: dict[str, Any]) -> bool:
    return "training_method" in data or {"model_type", "base_model_name"} <= data.keys()


def carry(data: dict[str, Any], file: Path, file_text: str, given: Path | None) -> Found:
    """A preset or config. UserError where it trains something else than a LoRA."""
    values = dict(flat({key: value for key, value in data.items() if key not in ("concepts", "samples")}))
    found = Found("OneTrainer", file, file_text, values)
    method = found.take("training_method", text, "FINE_TUNE")
    if method != "LORA":
        text_ = f"training_method is {method}: it trains no LoRA"
        raise UserError(
            text_, file=file, line=found.line("training_method"), hint="choose a LoRA preset there, and save it"
        )
    found.base_words = (found.take("model_type", text, USUAL),)
    found.rows(_ROWS)
    _network(found)
    _length(found)
    carry_rates(found)
    _objective(found)
    carry_concepts(found, data, given)
    carry_samples(found, data)
    files = {
        key: name
        for n in ("", "_2", "_3", "_4")
        if (name := found.take(key := f"text_encoder{n}.model_name", path, ""))
    }
    if files:
        found.put("text_encoder", [*files.values()], *files)
    weights = str(values.get("transformer.weight_dtype", values.get("unet.weight_dtype", "")))
    if rounded := {"FLOAT_8": "fp8", "INT_8": "int8", "NFLOAT_4": "nf4", "INT_W8A8": "w8a8", "FLOAT_W8A8": "fp8"}.get(
        weights
    ):
        found.put(
            "base_precision",
            rounded,
            "transformer.weight_dtype" if "transformer.weight_dtype" in values else "unet.weight_dtype",
        )
    found.put("val_split", 0, note="their default (validation): no picture is held out")
    return found


def finish(found: Found, facts: Facts | None) -> None:
    """What depends on the kind of base, and the rest."""
    _all_layers(found, facts)
    kind = found.take("timestep_distribution", text, "UNIFORM")
    weight, bias = found.take("noising_weight", number, 0.0), found.take("noising_bias", number, 0.0)
    key = "timestep_distribution"
    if kind == "LOGIT_NORMAL":
        found.put("timestep_sampling", "logit_normal", key)
        if bias:
            found.put("timestep_mean", bias, "noising_bias")
        if weight:
            found.put("timestep_std", weight + 1, "noising_weight", note="one more here")
    elif kind == "HEAVY_TAIL":
        found.put("timestep_sampling", "mode", key)
        found.put("timestep_mode_scale", weight, "noising_weight")
    elif kind == "UNIFORM":
        if of_flow(facts):
            found.put("timestep_sampling", "uniform", key)
    else:
        found.leave("timestep_distribution", "is not here; noise levels are drawn all alike")
    dynamic, shift = found.take("dynamic_timestep_shifting", flag, False), found.take("timestep_shift", number, 1.0)
    if (of_flow(facts) and not dynamic) or (not of_flow(facts) and shift != 1):
        found.put("timestep_shift", shift, "timestep_shift")
    found.rest(_KNOWN, _DECIDED)


def _all_layers(found: Found, facts: Facts | None) -> None:
    """Without a filter every layer is trained there."""
    if "targets" in found.puts or found.has("layer_filter"):
        return
    told = found.why("layer_filter_preset", "full")
    put_groups(found, facts, told, ("conv", "modulation", "refiners"))
    found.left.append(Left(told, "layers outside of the blocks are trained there, too, here only those of targets"))


def _network(found: Found) -> None:
    kind = found.take(
        "peft_type",
        turns.choice({"lora": "lora", "loha": "loha", "oft_2": "oft", "lokr": "lokr"}, "is not here; a plain LoRA is"),
        "lora",
    )
    if kind == "lora" and found.take("lora_decompose", flag, False):
        kind = "dora"
        found.put("adapter", "dora", "lora_decompose")
    elif kind != "lora":
        found.put("adapter", kind, "peft_type")
    found.taken.add("lora_decompose")
    rank = "lokr_dim" if kind == "lokr" else "lora_rank"
    put_rank(found, rank, "lora_alpha", rank=16, alpha=1.0, written=kind != "oft")
    found.taken |= {"lora_rank", "lokr_dim"}
    dropout = found.take("dropout_probability", some(number), None)
    if dropout:
        found.put("lora_dropout", dropout, "dropout_probability")
    preset = found.values.get("layer_filter_preset")
    if preset in ("attn-mlp", "attn-only"):
        targets = ["attention", "feed_forward"] if preset == "attn-mlp" else ["attention"]
        found.put("targets", targets, "layer_filter_preset")
        found.taken |= {"layer_filter", "layer_filter_preset"}
    again = ("gradient_checkpointing", "transformer.gradient_checkpointing", "unet.gradient_checkpointing")
    found.put_or_usual("gradient_checkpointing", next(filter(found.has, again), again[0]), _checkpointing, True)
    for part in ("unet", "transformer"):
        if found.values.get(f"{part}.train") is False:
            found.leave(f"{part}.train", "the UNet or transformer is always trained here")


def _checkpointing(value: Any) -> bool:
    return flag(value) if isinstance(value, bool) else text(value).upper() != "OFF"


def _length(found: Found) -> None:
    found.length.epochs = found.take("epochs", count, 100)
    found.length.epochs_why = found.why("epochs", 100)
    warmup = found.take("learning_rate_warmup_steps", number, 200.0)
    told = found.why("learning_rate_warmup_steps", 200)
    gathered = found.puts["gradient_accumulation"].value if "gradient_accumulation" in found.puts else 1
    if warmup > 1:
        found.put("warmup_steps", int(warmup / int(str(gathered))), note=told)
    elif warmup > 0:
        found.length.shares.append(("warmup_steps", warmup, told))
    every = found.take("save_every", some(count), None)
    unit = found.take("save_every_unit", text, "NEVER")
    if every and unit == "STEP":
        found.put("save_steps", every, "save_every", "save_every_unit")
    elif every and unit == "EPOCH":
        found.length.per_epoch.append(("save_steps", every, f"save_every = {every} epochs"))
    elif unit not in ("NEVER", "STEP", "EPOCH"):
        found.leave("save_every_unit", "save_steps counts steps")


def _objective(found: Found) -> None:
    weight = found.take("loss_weight_fn", text, "CONSTANT")
    gamma = found.take("loss_weight_strength", number, 5.0)
    if weight == "MIN_SNR_GAMMA":
        found.put("min_snr_gamma", gamma, "loss_weight_fn", "loss_weight_strength")
    elif weight == "DEBIASED_ESTIMATION":
        found.put("debiased_estimation", True, "loss_weight_fn")
    elif weight != "CONSTANT":
        found.leave("loss_weight_fn", "is not here; every noise level counts the same")
    huber, delta = found.take("huber_strength", number, 0.0), found.take("huber_delta", number, 1.0)
    if huber:
        found.put("loss", "huber", "huber_strength")
        found.put("huber_delta", delta, "huber_delta")
    if found.take("force_v_prediction", flag, False):
        found.put("prediction", "v", "force_v_prediction")
    if found.take("force_epsilon_prediction", flag, False):
        found.put("prediction", "epsilon", "force_epsilon_prediction")
    if found.take("rescale_noise_scheduler_to_zero_terminal_snr", flag, False):
        found.put("zero_terminal_snr", True, "rescale_noise_scheduler_to_zero_terminal_snr")
    skip = found.take("text_encoder_layer_skip", some(count), None)
    if skip:
        found.put("clip_skip", skip + 1, "text_encoder_layer_skip", note="counted from 0 there")
    if found.take("ema", text, "OFF") != "OFF":
        found.put("ema_decay", found.take("ema_decay", number, 0.999), "ema", "ema_decay")
    found.taken.add("ema_decay")
    fraction = found.take("transformer.offload_fraction", some(number), None)
    if fraction:
        found.leave(
            "transformer.offload_fraction",
            "offload_blocks counts blocks here: lora-scripts plan says how many are needed",
        )
    sizes: list[Any] = found.take("resolution", _sizes, [512])
    put_resolution(found, "resolution", sizes)


def _sizes(value: Any) -> list[Any]:
    return [turns.size(one.strip()) for one in str(value).split(",")]
