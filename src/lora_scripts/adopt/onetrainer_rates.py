"""OneTrainer's optimizer, schedule and learning rates (`optimizer_util.py`, `create.py`)."""

from __future__ import annotations

import math

from lora_scripts.adopt import turns
from lora_scripts.adopt.found import NOTHING, Found
from lora_scripts.adopt.optimisers import leave_options, put_decay, put_optimizer, settle_prodigy
from lora_scripts.adopt.turns import count, flag, number, some, text

_SCHEDULES = {
    "constant": "constant",
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_hard_restarts": "cosine_restarts",
}


def carry_rates(found: Found) -> None:
    """The optimizer, the schedule, and the rate of every part."""
    kind = put_optimizer(found, found.take("optimizer.optimizer", text, "ADAMW"), "optimizer.optimizer")
    put_decay(found, kind, "optimizer.weight_decay")
    same = {"beta1": "0.9", "beta2": "0.99" if kind == "lion" else "0.999", "eps": "1e-8", "d_coef": "1.0"}
    same |= dict.fromkeys(("fused", "stochastic_rounding", "use_bias_correction", "safeguard_warmup"), "true")
    for key, value in list(found.values.items()):
        if key.startswith("optimizer.") and value in NOTHING:
            found.taken.add(key)  # its files have every option of every optimizer
    leave_options(found, "optimizer.", same)
    name = found.put_or_usual(
        "lr_schedule",
        "learning_rate_scheduler",
        turns.choice(_SCHEDULES, "is not here; constant stands in its place"),
        "constant",
    )
    cycles = found.take("learning_rate_cycles", number, 1.0)
    if name == "cosine_restarts" and cycles >= 1:
        found.put("lr_cycles", round(cycles), "learning_rate_cycles")
    part = "transformer" if found.values.get("transformer.learning_rate") else "unet"
    scale, scaled = _scale(found)
    rate = found.take("learning_rate", number, 3e-6)
    own = found.take(f"{part}.learning_rate", some(number), None)
    key = f"{part}.learning_rate" if own else "learning_rate"
    found.put("learning_rate", (own or rate) * scale, key)
    if scaled:
        found.put("learning_rate", (own or rate) * scale, note=f"{found.why(key, rate)}, {scaled}")
    settle_prodigy(found)
    rates = []
    for n in ("", "_2", "_3", "_4"):
        trained = found.take(f"text_encoder{n}.train", flag, True)
        rates.append(
            (found.take(f"text_encoder{n}.learning_rate", some(number), None) or rate) * scale if trained else 0.0
        )
    _text_rates(found, rates)


def _scale(found: Found) -> tuple[float, str]:
    """learning_rate_scaler: the square root of what a step gathers."""
    kind = found.take("learning_rate_scaler", text, "NONE")
    batch, gathered = (
        int(str(found.puts[key].value)) if key in found.puts else 1 for key in ("batch_size", "gradient_accumulation")
    )
    both = batch * gathered
    sizes = {"NONE": 1, "BATCH": batch, "GLOBAL_BATCH": batch, "GRADIENT_ACCUMULATION": gathered}
    size = sizes.get(kind, both)
    return math.sqrt(size), f"times the root of {size}, {found.tell('learning_rate_scaler')}" if size > 1 else ""


def _text_rates(found: Found, rates: list[float]) -> None:
    two = "_XL_" in found.base_words[0]
    if not any(rates[: 2 if two else 1]):
        found.put("train_text_encoder", False, "text_encoder.train", "text_encoder_2.train")
        return
    found.put("train_text_encoder", True, "text_encoder.train", "text_encoder_2.train")
    value = rates[:2] if two and rates[0] != rates[1] else rates[0]
    found.put("text_encoder_lr", value, "text_encoder.learning_rate", "learning_rate")
    after = found.take("text_encoder.stop_training_after", some(count), None)
    unit = found.take("text_encoder.stop_training_after_unit", text, "EPOCH")
    if "text_encoder.stop_training_after" not in found.values and unit == "EPOCH":
        after = 30
    if after and unit == "EPOCH" and after < (found.length.epochs or 0):
        found.length.per_epoch.append(("text_encoder_stop", after, f"text_encoder stops after {after} epochs there"))
    elif after and unit == "STEP":
        found.put("text_encoder_stop", after, "text_encoder.stop_training_after")
