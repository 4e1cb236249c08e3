"""ai-toolkit: `job: extension`, the first process of its YAML.

Names and defaults: `toolkit/config_modules.py` and `toolkit/optimizer.py`, read in October 2026.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_scripts.adopt import turns
from lora_scripts.adopt.ai_toolkit_sets import carry_sets
from lora_scripts.adopt.foreign_file import flat
from lora_scripts.adopt.found import NOTHING, Found, Left, Row, brief
from lora_scripts.adopt.noise_levels import of_flow
from lora_scripts.adopt.optimisers import leave_options, put_decay, put_optimizer, settle_prodigy
from lora_scripts.adopt.sizes import MOST, put_groups, put_rank
from lora_scripts.adopt.turns import count, flag, number, path, some, text, whole
from lora_scripts.config.types import TargetRule
from lora_scripts.errors import UserError
from lora_scripts.families.elsewhere import USUAL
from lora_scripts.families.facts import Facts

_ROWS = (
    Row("model.name_or_path", "base_model", path),
    Row("model.vae_path", "vae", path),
    Row("model.assistant_lora_path", "training_adapter", path),
    Row("network.dropout", "lora_dropout", number),
    Row("network.pretrained_lora_path", "init_lora", path),
    Row("train.batch_size", "batch_size", count, 1),
    Row("train.lr_scheduler", "lr_schedule", turns.schedule, "constant"),
    Row("train.max_grad_norm", "max_grad_norm", number),
    Row("train.dtype", "precision", turns.precision, "fp32"),
    Row("train.gradient_checkpointing", "gradient_checkpointing", flag, True),
    Row("train.min_snr_gamma", "min_snr_gamma", some(number)),
    Row("train.snr_gamma", "min_snr_gamma", some(number)),
    Row("train.noise_offset", "noise_offset", number),
    Row("train.min_denoising_steps", "timestep_min", whole),
    Row("train.max_denoising_steps", "timestep_max", lambda value: min(999, whole(value))),
    Row("train.seed", "seed", whole),
    Row("train.reg_weight", "prior_weight", number),
    Row("save.dtype", "save_precision", turns.saved),
    Row("save.save_every", "save_steps", count, 1000),
    Row("save.max_step_saves_to_keep", "keep_last", count, 5),
    Row("sample.sample_every", "sample_every", whole),
    Row("sample.guidance_scale", "sample_cfg", number),
    Row("sample.sample_steps", "sample_steps", whole),
    Row("sample.neg", "sample_negative", lambda value: text(value) if value is not False else None),
    Row("trigger_word", "trigger_word", text),
    Row("model.compile", "compile", flag),
)
_KNOWN: dict[str, tuple[object, str]] = {
    "train.content_or_style": (
        "balanced",
        "noise levels are drawn by timestep_sampling, timestep_mean and _shift here",
    ),
    "train.linear_timesteps": (False, "loss_weighting: bell is near to it"),
    "train.linear_timesteps2": (False, "is not here"),
    "train.prompt_dropout_prob": (0.0, "caption_dropout does that, and is what the data set says"),
    "train.unet_lr": (None, "learning_rate is its rate"),
    "train.lr_scheduler_params": ({}, "a schedule goes over all steps here"),
    "train.blank_prompt_preservation": (False, "preserve_weight holds the base to captions without the trigger word"),
    "train.force_first_sample": (False, "sample_first: true draws before the first step"),
    "train.start_step": (None, "a run begins at its beginning here; --resume goes on"),
    "train.optimal_noise_pairing_samples": (1, "is not here"),
    "train.max_loss": (None, "a loss that is not finite stops a run here"),
    "model.lora_path": (None, "merge it into the base: lora-scripts merge"),
    "model.inference_lora_path": (None, "is not here"),
    "model.refiner_name_or_path": (None, "the refiner is not trained"),
    "model.unet_path": (None, "write the base with it as base_model"),
    "sample.seed": (0, "a line of a prompt can end in --d SEED; else the seed of the run counts"),
    "sample.samples": (None, "sample_prompts has prompts as texts, each with --n, --w, --h, --d behind it"),
    "sample.network_multiplier": (1, "previews are drawn at full strength"),
    "network.network_kwargs": ({}, "targets names layers by pattern"),
    "network.all_layers": (False, "targets names layers by pattern"),
    "network.lokr_full_rank": (True, "a LoKr has a rank here: look at lora_rank"),
    "network.lokr_factor": (-1, "lokr chooses the factor from the layer's widths here"),
    "train.loss_target": ("noise", "the base says what is learnt"),
    "train.ema_config.use_feedback": (False, "is not here"),
    "slider": (None, "sliders are not trained here"),
    "adapter": (None, "adapters other than LoRA are not trained here"),
}
_DECIDED = re.compile(
    r"name|device|performance_log_every|log_dir|sqlite_db_path|logging\..*|meta\..*|datasets"
    r"|save\.(save_format|push_to_hub|hf_\w+)|model\.(is_\w+|arch|dtype|qtype\w*|quantize\w*|low_vram|vae_dtype|vae_device"
    r"|te_\w+|text_encoder_bits|layer_offloading\w*|auto_memory|compile_\w+|block_compile|model_kwargs.*|attn_masking"
    r"|use_\w+_cfg|split_model\w*|extras_name_or_path|latent_space_version|cache_size_limit)"
    r"|train\.(train_unet|train_refiner|noise_scheduler|xformers|sdp|attention_backend|unload_text_encoder|disable_sampling"
    r"|cache_text_embeddings|skip_first_sample|do_paramiter_swapping|bypass_guidance_embedding|loss_type|standardize\w*"
    r"|switch_boundary_every|num_train_timesteps|single_item_batching|show_turbo_outputs|unconditional_prompt|audio\w*)"
    r"|network\.(type|transformer_only|layer_offloading\w*|old_lokr_format|split_multistage_loras)"
    r"|sample\.(sampler|sample_start_step|walk_seed|fps|num_frames|format|ext|width|height)"
)


def is_of_ai_toolkit(data: dict[str, Any]) -> bool:
    config = data.get("config")
    return isinstance(config, dict) and isinstance(config.get("process"), list)


def carry(data: dict[str, Any], file: Path, file_text: str, given: Path | None) -> Found:
    """The first process of the job. UserError where it trains something else than a LoRA."""
    config = data["config"]
    process = next(iter(turns.groups(config["process"])), {})
    sets = turns.groups(process.get("datasets"))
    values = dict(flat({key: value for key, value in process.items() if key != "datasets"}))
    found = Found("ai-toolkit", file, file_text, values)
    kind = str(process.get("type", ""))
    network = str(values.get("network.type", "lora")).lower()
    if kind not in _TRAINERS or "network" not in process or network not in _ADAPTERS:
        what = (
            f"is a {kind}"
            if kind not in _TRAINERS
            else f"trains {network}"
            if "network" in process
            else "has no network"
        )
        hint = "only a network of type lora, locon, dora, lokr or loha is trained here"
        raise UserError(f"config.process[0] {what}", file=file, line=found.line("type"), hint=hint)
    found.taken |= {"type", "training_folder"}
    for more in config["process"][1:]:
        found.left.append(Left(f"a further process = {brief(more)}", "one run is trained here"))
    found.base_words = _words(found)
    found.rows(_ROWS)
    if _ADAPTERS[network] != "lora":
        found.put("adapter", _ADAPTERS[network], "network.type")
    _network(found)
    _train(found)
    carry_sets(found, sets, given)
    _preserve(found)
    _previews(found)
    for key, value in list(values.items()):
        if key.startswith("model.is_v_pred") and value is True:
            found.put("prediction", "v", key)
    found.put("val_split", 0, note="their default: no picture is held out")
    return found


_TRAINERS = ("sd_trainer", "diffusion_trainer", "ui_trainer", "")
_ADAPTERS = {"lora": "lora", "locon": "lora", "dora": "dora", "lokr": "lokr", "loha": "loha"}


def finish(found: Found, facts: Facts | None) -> None:
    """What depends on the kind of base, and the rest."""
    kind = found.take("train.timestep_type", text, "sigmoid")
    found.take("train.noise_scheduler", text, "")
    if of_flow(facts) or found.values.get("train.noise_scheduler") in ("flowmatch", "flow_match"):
        sampling = {"sigmoid": "sigmoid", "linear": "uniform", "weighted": "uniform", "shift": "uniform"}.get(kind)
        if sampling is None:
            found.leave("train.timestep_type", "is not here; sigmoid stands in its place")
        found.put("timestep_sampling", sampling or "sigmoid", "train.timestep_type")
        if kind == "weighted":
            found.put("loss_weighting", "inverse_loss", "train.timestep_type")
        if kind != "shift":
            found.put("timestep_shift", 1.0, note=f"train.timestep_type {kind} is not shifted there")
    if "targets" not in found.puts:
        put_groups(found, facts, "all layers of the transformer's blocks are trained there", ("modulation",))
    found.rest(_KNOWN, _DECIDED)


def _words(found: Found) -> tuple[str, ...]:
    arch = found.take("model.arch", text, "")
    marks = [
        key.removeprefix("model.")
        for key, value in found.values.items()
        if key.startswith("model.is_") and value is True
    ]
    return (arch,) if arch else tuple(mark for mark in marks if mark != "is_v_pred") or (USUAL,)


def _network(found: Found) -> None:
    rank = "network.rank" if "network.rank" in found.values else "network.linear"
    alpha = "network.linear_alpha" if "network.linear_alpha" in found.values else "network.alpha"
    put_rank(found, rank, alpha, rank=4, alpha=1.0)
    found.taken |= {"network.rank", "network.linear", "network.alpha", "network.linear_alpha"}
    size = found.take("network.conv", some(count), None)
    strength = found.take("network.conv_alpha", some(number), None)
    if size:
        here = min(size, MOST)
        rule = TargetRule.model_construct(match="conv", rank=here, alpha=(strength or size) * here / size)
        found.put("targets", ["attention", "feed_forward", rule], "network.conv", "network.conv_alpha")
    for key in ("only_if_contains", "ignore_if_contains"):
        for where in (f"network.network_kwargs.{key}", f"model.{key}"):
            if found.values.get(where) not in NOTHING:
                found.leave(where, "targets names the layers by pattern here: '*attn*'")


def _train(found: Found) -> None:
    steps = found.take("train.steps", count, 1000)
    batches, held = (
        found.take(f"train.{key}", whole, 1) for key in ("gradient_accumulation", "gradient_accumulation_steps")
    )
    if held < 0:
        found.leave("train.gradient_accumulation_steps", "gradient_accumulation gathers a number of batches here: 1")
    gathered = max(1, batches) * max(1, held)
    if gathered > 1:
        keys = [f"train.{key}" for key in ("gradient_accumulation", "gradient_accumulation_steps")]
        found.put("gradient_accumulation", gathered, *(key for key in keys if found.values.get(key, 1) != 1))
    found.length.steps = max(1, steps // max(1, held))
    found.length.steps_why = found.why("train.steps", 1000)
    kind = put_optimizer(found, found.take("train.optimizer", text, "adamw"), "train.optimizer")
    rate = found.take("train.lr", number, 1e-6)
    own = found.take("train.unet_lr", some(number), None)
    found.put("learning_rate", own or rate, "train.unet_lr" if own else "train.lr")
    settle_prodigy(found, "prodigy takes it for 1 there")
    put_decay(found, kind, "train.optimizer_params.weight_decay")
    leave_options(found, "train.optimizer_params.", {"betas": "0.9,0.999", "eps": "1e-8"})
    if found.take("train.train_text_encoder", flag, False):
        found.put("train_text_encoder", True, "train.train_text_encoder")
        found.put("text_encoder_lr", found.take("train.text_encoder_lr", number, rate), "train.text_encoder_lr")
    found.taken.add("train.text_encoder_lr")
    if found.take("train.ema_config.use_ema", flag, False):
        decay = "train.ema_config.ema_decay"
        found.put("ema_decay", found.take(decay, number, 0.999), decay)
    found.taken.add("train.ema_config.ema_decay")
    if found.take("model.quantize", flag, False):
        kind_of = found.take("model.qtype", text, "qfloat8")
        found.put("base_precision", "int8" if "int" in kind_of else "fp8", "model.quantize", "model.qtype")
        if "|" in kind_of or not re.search("8", kind_of):
            found.leave("model.qtype", "a base is rounded to 8 bits, or to nf4, here")
    loss = found.take("train.loss_type", text, "mse")
    if loss != "mse":
        found.leave("train.loss_type", "the squared error stands in its place; loss: huber is here, too")
    if found.values.get("train.train_unet") is False:
        found.leave("train.train_unet", "the UNet or transformer is always trained here")


def _preserve(found: Found) -> None:
    """What is trained beside, so that nothing but the trigger word calls the LoRA."""
    held = found.take("train.diff_output_preservation", flag, False)
    weight = found.take("train.diff_output_preservation_multiplier", number, 1.0)
    word = found.take("train.diff_output_preservation_class", text, "")
    if not held:
        return
    found.put("preserve_weight", weight, "train.diff_output_preservation", "train.diff_output_preservation_multiplier")
    found.put("preserve_every", 1, note="in every step, there")
    if word:
        found.put("preserve_word", word, "train.diff_output_preservation_class")
    for key in ("caption_dropout", "tag_dropout"):
        if key in found.puts:
            found.drop(
                key, "preserve_weight holds the base to captions without the trigger word, which this would train"
            )


_SAID = {
    "neg": "n",
    "width": "w",
    "height": "h",
    "seed": "d",
    "guidance_scale": "l",
    "sample_steps": "s",
    **dict.fromkeys(("ctrl_img", "ctrl_img_1", "ctrl_img_2", "ctrl_img_3"), "ref"),
}
"""Keys of one of `sample.samples` -> what a line of prompts calls them."""


def _line(sample: Mapping[str, Any]) -> str:
    """One of `sample.samples` as a line of prompts; of its first picture one name counts there, too."""
    told = {key: value for key, value in sample.items() if value not in (None, "")}
    if "ctrl_img_1" in told:
        told.pop("ctrl_img", None)
    said = (f"--{_SAID[key]} {told[key]}" for key in _SAID if key in told)
    return " ".join([str(sample["prompt"]).strip(), *said])


def _previews(found: Found) -> None:
    if found.take("train.disable_sampling", flag, False):
        found.put("sample_every", 0, "train.disable_sampling")
    word = str(found.values.get("trigger_word") or "")
    prompts = found.take(
        "sample.prompts", lambda value: [text(one) for one in value] if isinstance(value, list) else None, None
    )
    if prompts is None:
        items: list[Any] = found.take("sample.samples", lambda value: value if isinstance(value, list) else [], [])
        prompts = [_line(one) for one in items if isinstance(one, dict) and one.get("prompt")]
    if prompts:
        found.put(
            "sample_prompts",
            [one.replace("[trigger]", word).strip() for one in prompts if one.strip()],
            "sample.prompts",
            "sample.samples",
        )
    width, height = (found.take(f"sample.{key}", some(count), None) for key in ("width", "height"))
    if width and height:
        found.put("sample_size", width if width == height else [width, height], "sample.width", "sample.height")
    if (
        not found.take("train.skip_first_sample", flag, False)
        and "sample_every" in found.puts
        and found.puts["sample_every"].value
    ):
        found.put("sample_first", True, note="their default (train.skip_first_sample)")
