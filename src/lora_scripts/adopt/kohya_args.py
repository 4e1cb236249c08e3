"""kohya's sd-scripts: what `train_network.py` and its sisters take, as TOML (`--config_file`) or as a command line.

Names and defaults: `library/train_util.py` (add_*_arguments), `library/custom_train_functions.py`, `train_network.py`
and `networks/lora.py` of sd-scripts, read in October 2026. musubi-tuner has the same for most.
"""

from __future__ import annotations

import re

from lora_scripts.adopt import turns
from lora_scripts.adopt.found import NOTHING, Found, Left, Row
from lora_scripts.adopt.kohya_network import carry_network
from lora_scripts.adopt.optimisers import leave_options, put_decay, put_optimizer, settle_prodigy
from lora_scripts.adopt.turns import Unlike, count, flag, number, path, some, text, whole
from lora_scripts.families.elsewhere import VERSIONS_NOT_HERE


def _keep(value: object) -> object:
    """`scale_v_pred_loss_like_noise_pred` and such: only for what is on."""
    return flag(value) or None


ROWS = (
    Row("pretrained_model_name_or_path", "base_model", path),
    Row("vae", "vae", path),
    Row("ae", "vae", path),
    Row("train_batch_size", "batch_size", count, 1),
    Row("gradient_accumulation_steps", "gradient_accumulation", count),
    Row("max_grad_norm", "max_grad_norm", number),
    Row("seed", "seed", whole),
    Row("mixed_precision", "precision", turns.precision, "fp32"),
    Row("save_precision", "save_precision", turns.saved),
    Row("gradient_checkpointing", "gradient_checkpointing", flag),
    Row("blocks_to_swap", "offload_blocks", whole),
    Row("torch_compile", "compile", flag),
    Row("compile", "compile", flag),
    Row("network_dropout", "lora_dropout", number),
    Row("network_weights", "init_lora", path),
    Row("clip_skip", "clip_skip", some(count)),
    Row("max_token_length", "caption_tokens", whole),
    Row("min_snr_gamma", "min_snr_gamma", some(number)),
    Row("debiased_estimation_loss", "debiased_estimation", flag),
    Row("noise_offset", "noise_offset", number),
    Row("multires_noise_iterations", "multires_noise_iterations", whole),
    Row("ip_noise_gamma", "input_perturbation", number),
    Row("zero_terminal_snr", "zero_terminal_snr", _keep),
    Row("prior_loss_weight", "prior_weight", number),
    Row("min_timestep", "timestep_min", whole),
    Row("max_timestep", "timestep_max", lambda value: whole(value) - 1),
    Row("sample_every_n_steps", "sample_every", some(count)),
    Row("sample_at_first", "sample_first", flag),
    Row("save_every_n_steps", "save_steps", some(count)),
    Row("validation_split", "val_split", number),
)
"""What has one counterpart."""

KNOWN: dict[str, tuple[object, str]] = {
    "scale_weight_norms": (None, "norms of a LoRA are not held down here; the report measures the strength to write"),
    "noise_offset_random_strength": (False, "the offset always has its full strength here"),
    "ip_noise_gamma_random_strength": (False, "the perturbation always has its full strength here"),
    "adaptive_noise_scale": (0, "the offset does not depend on the picture here"),
    "scale_v_pred_loss_like_noise_pred": (False, "the loss of v is not scaled here; min_snr_gamma: 5 does nearly so"),
    "v_pred_like_loss": (0, "is not here"),
    "weighted_captions": (False, "brackets in captions weigh nothing here: take them out"),
    "network_train_text_encoder_only": (False, "the UNet or transformer is always trained here"),
    "base_weights": (None, "merge them into the base: lora-scripts merge"),
    "base_weights_multiplier": (None, "merge them into the base: lora-scripts merge"),
    "resume": (None, "states of other trainers cannot be gone on from; init_lora takes its LoRA file"),
    "initial_epoch": (None, "a run begins at its beginning here"),
    "initial_step": (None, "a run begins at its beginning here"),
    "lr_decay_steps": (0, "the schedule falls over all that is left here"),
    "lr_scheduler_type": ("", "schedules of one's own are not taken"),
    "lr_scheduler_args": (None, "schedules of one's own are not taken"),
    "lr_scheduler_timescale": (None, "that schedule is not here"),
    "lr_scheduler_min_lr_ratio": (None, "schedules fall to zero here"),
    "guidance_scale": (1.0, "a distilled model is trained at guidance 1 here"),
    "model_prediction_type": ("raw", "the flow itself is always what is learnt here"),
    "sample_sampler": ("ddim", "previews are drawn with the base's usual sampler"),
    "save_model_as": ("safetensors", "a LoRA file is always .safetensors"),
    "t5xxl_max_token_length": (None, "captions have the length that the base is usually given"),
    "apply_t5_attn_mask": (False, "is as the base's own pipeline does it"),
    "apply_lg_attn_mask": (False, "is as the base's own pipeline does it"),
    "controlnet_model_name_or_path": (None, "is not here"),
    "llm_adapter_path": (None, "the adapter in the base's file is used"),
    "preserve_distribution_shape": (False, "levels outside of the range are not drawn anew here"),
    "training_comment": (None, "lora-scripts metadata --set writes it into the file afterwards"),
    "logit_mean": (0.0, "counts with weighting_scheme: logit_normal alone"),
    "logit_std": (1.0, "counts with weighting_scheme: logit_normal alone"),
    "mode_scale": (1.29, "counts with weighting_scheme: mode alone"),
    "huber_scale": (1.0, "the loss has its full strength here"),
    "clip_l_dropout_rate": (0.0, "caption_dropout leaves whole captions out"),
    "clip_g_dropout_rate": (0.0, "caption_dropout leaves whole captions out"),
    "t5_dropout_rate": (0.0, "caption_dropout leaves whole captions out"),
    **dict.fromkeys(
        ("llm_adapter_lr", "self_attn_lr", "cross_attn_lr", "mlp_lr", "mod_lr"),
        (None, "targets can give layers a rate of their own: {match: '*attn*', lr: 1e-4}"),
    ),
    "qwen3_max_token_length": (512, "captions have the length that the base is usually given"),
    "t5_max_token_length": (512, "captions have the length that the base is usually given"),
    "turbo_dit": (None, "previews are drawn with the base"),
}
"""Their key -> (their default, why it is not carried over)."""

DECIDED = re.compile(
    r"v2|script|config_file|dataset_config|model_version|edit|edit_plus|model_type|tokenizer_cache_dir|use_safetensors|xformers|sdpa|mem_eff_attn"
    r"|flash_attn|sage_attn|flash3|split_attn|split_mode|attn_mode|use_\w*_attn|lowram|highvram|no_half_vae|full_(?:fp|bf)16"
    r"|fp8_(?!base)\w+|fp8_base_unet|fused_backward_pass|cpu_offload_checkpointing|gradient_checkpointing_cpu_offload"
    r"|cache_\w+|skip_cache_check|vae_batch_size|vae_dtype|vae_chunk_size|vae_disable_cache|vae_tiling|text_encoder_batch_size"
    r"|max_data_loader_n_workers|persistent_data_loader_workers|dynamo_\w+|compile_\w+|cuda_\w+|logging_dir|log_\w+"
    r"|wandb_\w+|huggingface_\w+|async_upload|save_state\w*|resume_from_huggingface|save_last_n_\w+_state|no_metadata"
    r"|metadata_\w+|dim_from_weights|disable_mmap_load_safetensors|disable_numpy_memmap|ddp_\w+|deepspeed|zero\w*_\w+"
    r"|offload_\w+|fp16_master\w+|enable_bucket|min_bucket_reso|max_bucket_reso|bucket_reso_steps|bucket_no_upscale"
    r"|caption_extens?t?ion|output_config|debug_dataset|dataset_class|t5xxl_d\w+|save_clip|save_t5xxl|show_timesteps"
    r"|num_timestep_buckets|block_swap_\w+|use_pinned_memory_for_block_swap|img_in_txt_in_offloading|initial_\w+"
    r"|skip_until_initial_step|output_dir|output_name|in_json|use_32bit_attention|validat\w+|max_validation_steps"
)
"""Settings that say how something is done, not what is learnt."""


def carry(found: Found, *, musubi: bool = False) -> None:
    """All but the pictures."""
    found.rows(ROWS)
    _version(found)
    _length(found)
    _rates(found, musubi=musubi)
    _optimizer(found)
    _schedule(found)
    carry_network(found)
    _objective(found)
    _files(found)
    _previews(found)
    if "val_split" not in found.puts:
        found.put("val_split", 0, note="their default: no picture is held out")


def _version(found: Found) -> None:
    """What musubi-tuner is told of a base, which mostly says so itself."""
    for (key, value), reason in VERSIONS_NOT_HERE.items():
        if str(found.values.get(key)).lower() == value:
            found.leave(key, reason)


def _length(found: Found) -> None:
    epochs = found.take("max_train_epochs", some(count), None)
    steps = found.take("max_train_steps", some(count), None)
    if epochs:
        found.length.epochs, found.length.epochs_why = epochs, found.tell("max_train_epochs")
    else:
        found.length.steps = steps or 1600
        found.length.steps_why = found.tell("max_train_steps") if steps else "their default (max_train_steps): 1600"
    every = found.take("save_every_n_epochs", some(count), None)
    if every and "save_steps" not in found.puts:
        found.length.per_epoch.append(("save_steps", every, found.tell("save_every_n_epochs")))
    last = found.take("save_last_n_epochs", some(count), None)
    if last:
        found.put("keep_last", max(1, -(-last // (every or 1))), "save_last_n_epochs")
    last = found.take("save_last_n_steps", some(count), None)
    if last:
        found.put(
            "keep_last", max(1, -(-last // int(str(found.values.get("save_every_n_steps") or 1)))), "save_last_n_steps"
        )
    if found.take("save_n_epoch_ratio", some(count), None):
        found.leave("save_n_epoch_ratio", "save_steps says after how many steps a file is written")


def _rates(found: Found, *, musubi: bool) -> None:
    """The rates of the UNet or transformer, and of text encoders, which are trained unless that is said."""
    rate = found.take("learning_rate", number, 2e-6)
    unet = found.take("unet_lr", some(number), None)
    found.put("learning_rate", unet or rate, "unet_lr" if unet else "learning_rate")
    text_rate = found.take("text_encoder_lr", _text_rates, None)
    only = found.take("network_train_unet_only", flag, False)
    if musubi:
        return
    if only or text_rate == 0:
        found.put("train_text_encoder", False, "network_train_unet_only" if only else "text_encoder_lr")
        return
    found.put("train_text_encoder", True, "network_train_unet_only")
    found.put(
        "text_encoder_lr", rate if text_rate is None else text_rate, "text_encoder_lr" if text_rate else "learning_rate"
    )


def _text_rates(value: object) -> float | list[float]:
    parts = value if isinstance(value, list) else str(value).split()
    rates = [number(part) for part in parts]
    return rates[0] if len(set(rates)) == 1 else rates[:2]


def _optimizer(found: Found) -> None:
    kind = found.take("optimizer_type", text, "") or "AdamW"
    if found.take("use_8bit_adam", flag, False):
        kind = "AdamW8bit"
    if found.take("use_lion_optimizer", flag, False):
        kind = "Lion"
    name = put_optimizer(found, kind, "optimizer_type")
    settle_prodigy(found)
    options: dict[str, object] = found.take("optimizer_args", turns.names, {})
    if options:
        found.shown = {**found.shown, **{f"optimizer_args.{key}": f"optimizer_args {key}" for key in options}}
        found.values.update({f"optimizer_args.{key}": value for key, value in options.items()})
    put_decay(found, name, "optimizer_args.weight_decay")
    if name == "adafactor" and str(options.get("relative_step", True)).lower() == "true":
        told = found.why("optimizer_args.relative_step", True)
        found.left.append(Left(told, "adafactor takes learning_rate as it is here, and finds none by itself"))
        found.taken.add("optimizer_args.relative_step")
    same = {"decouple": "true", "scale_parameter": "false", "relative_step": "false", "warmup_init": "false"}
    same |= {"betas": "0.9,0.999", "eps": "1e-8", "use_bias_correction": "true", "safeguard_warmup": "true"}
    leave_options(found, "optimizer_args.", same)


def _schedule(found: Found) -> None:
    name = found.put_or_usual("lr_schedule", "lr_scheduler", turns.schedule, "constant")
    cycles = found.take("lr_scheduler_num_cycles", some(count), None)
    power = found.take("lr_scheduler_power", some(number), None)
    if cycles and name == "cosine_restarts":
        found.put("lr_cycles", cycles, "lr_scheduler_num_cycles")
    if name == "polynomial":
        found.put("lr_power", power or 1.0, "lr_scheduler_power")
    warmup = found.take("lr_warmup_steps", some(number), None)
    if warmup and str(found.values.get("lr_scheduler", "constant")).lower() == "constant":
        found.leave("lr_warmup_steps", "lr_scheduler = constant has none there either")
    elif warmup and warmup < 1:
        found.length.shares.append(("warmup_steps", warmup, found.tell("lr_warmup_steps")))
    elif warmup:
        found.put("warmup_steps", int(warmup), "lr_warmup_steps")


def _objective(found: Found) -> None:
    if found.take("v_parameterization", flag, False):
        found.put("prediction", "v", "v_parameterization")
    loss = found.take(
        "loss_type", turns.choice({w: w for w in ("l2", "huber", "smooth_l1")}, "is not here; l2 is"), None
    )
    delta, plan = found.take("huber_c", number, None), found.take("huber_schedule", text, "snr")
    if loss and loss != "l2":
        found.put("loss", loss, "loss_type")
        if delta:
            found.put("huber_delta", delta, "huber_c")
        if plan != "constant":
            found.leave("huber_schedule", "the measure is the same at all noise levels here, as with constant")
    discount = found.take("multires_noise_discount", number, None)
    if discount is not None and found.values.get("multires_noise_iterations") not in NOTHING:
        found.put("multires_noise_discount", discount, "multires_noise_discount")
    if any([found.take("fp8_base", flag, False), found.take("fp8_scaled", flag, False)]):
        found.put("base_precision", "fp8", "fp8_base", "fp8_scaled")
    masks = found.take("conditioning_data_dir", path, "")
    if found.take("masked_loss", flag, False) and masks:
        found.put("mask_dir", masks, "masked_loss", "conditioning_data_dir")
    if found.take("alpha_mask", flag, False):
        found.put("mask_alpha", True, "alpha_mask")


def _files(found: Found) -> None:
    """The text encoders that lie in files of their own."""
    keys = ("clip_l", "clip_g", "t5xxl", "qwen3", "gemma2", "text_encoder", "text_encoder1", "text_encoder2")
    files = {key: file for key in keys if (file := found.take(key, path, ""))}
    if files:
        found.put("text_encoder", [*files.values()], *files)


def _previews(found: Found) -> None:
    epochs = found.take("sample_every_n_epochs", some(count), None)
    if epochs:
        found.puts.pop("sample_every", None)  # epochs count there, too, where both are written
        found.put("sample_every_epochs", epochs, "sample_every_n_epochs")
    prompts = found.take("sample_prompts", _prompts, None)
    if prompts:
        found.put("sample_prompts", prompts, "sample_prompts")
    if not epochs and "sample_every" not in found.puts:
        found.put("sample_every", 0, note="their default: no previews on the way")


def _prompts(value: object) -> str | list[str] | None:
    if isinstance(value, list):
        return [text(one) for one in value]
    lines = [line.strip() for line in text(value).splitlines() if line.strip() and not line.startswith("#")]
    if len(lines) == 1 and re.search(r"\.(txt|toml|json)$", lines[0], re.IGNORECASE):
        if not lines[0].lower().endswith(".txt"):
            raise Unlike("prompts are read from a .txt here, one a line: write them into one")
        return path(lines[0])
    return lines or None
