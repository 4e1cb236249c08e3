"""What kohya_ss, the GUI around sd-scripts, saves as JSON: as arguments of sd-scripts.

Its page has a value for every field; 0 and "" are what is not written. The names are those of its saved files as they
are known; the GUI itself was not run.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lora_scripts.adopt.foreign_file import options_of_words, words_of
from lora_scripts.adopt.found import NOTHING, Found
from lora_scripts.adopt.turns import number
from lora_scripts.errors import UserError
from lora_scripts.families.table import FAMILIES

_OF_FAMILY = re.compile(rf"(?:{'|'.join(sorted((facts.name for facts in FAMILIES), key=len, reverse=True))})_")
"""What stands before the fields of one kind of model."""
_RENAMED = {
    "epoch": "max_train_epochs",
    "max_resolution": "resolution",
    "optimizer": "optimizer_type",
    "lora_network_weights": "network_weights",
}
_LORA = {
    "standard": ("networks.lora", ""),
    "kohya locon": ("networks.lora", ""),
    "lora-fa": ("networks.lora_fa", ""),
    "kohya dylora": ("networks.dylora", ""),
    "lycoris/locon": ("lycoris.kohya", "locon"),
    "lycoris/loha": ("lycoris.kohya", "loha"),
    "lycoris/lokr": ("lycoris.kohya", "lokr"),
    "lycoris/dylora": ("lycoris.kohya", "dylora"),
    "lycoris/ia3": ("lycoris.kohya", "ia3"),
    "lycoris/glora": ("lycoris.kohya", "glora"),
    "lycoris/diag-oft": ("lycoris.kohya", "diag-oft"),
    "lycoris/boft": ("lycoris.kohya", "boft"),
    "lycoris/native fine-tuning": ("lycoris.kohya", "full"),
}
"""LoRA_type -> (network_module, algo)."""
_ARGS = re.compile(
    r"rank_dropout|train_norm|use_scalar|rank_dropout_scale|bypass_mode|module_dropout|loraplus_lr_ratio|loraplus_unet_lr_ratio|loraplus_text_encoder_lr_ratio"
    r"|down_lr_weight|mid_lr_weight|up_lr_weight|block_dims|block_alphas|conv_block_dims|split_qkv"
    r"|conv_block_alphas|train_blocks|use_tucker|use_cp|decompose_both|constrain|rescaled|dora_wd"
)
"""Fields that become network_args."""
_PAGE = re.compile(
    r"checkbox|model_list|save_as_bool|train_data_dir_count|gpu_ids|multi_gpu|num_machines|LoRA_type|num_processes"
    r"|num_cpu_threads_per_process|main_process_port|extra_accelerate_launch_args|unit|folder_name"
    r"|noise_offset_type|finetune"
    r"|LyCORIS_preset|additional_parameters|lr_warmup|factor|full_path|dynamo_mode|stop_text_encoder_training"
    r"|stop_text_encoder_training_pct|min_bucket_reso|max_bucket_reso"
)
_USUAL = {"max_token_length": 75, "clip_skip": 1, "max_timestep": 1000, "min_timestep": 0, "huber_c": 0.1}
"""Values of the page that change nothing."""


def is_of_gui(data: dict[str, Any]) -> bool:
    """Whether it is one of its files: they all say which type of LoRA the page was set to, or have the page's names."""
    return "LoRA_type" in data or {"max_resolution", "pretrained_model_name_or_path"} <= data.keys()


def arguments(data: dict[str, Any], file: Path, text: str) -> Found:
    """The fields as arguments of sd-scripts, with what the file calls them."""
    if "LoRA_type" not in data:
        mend = "open the LoRA tab of the GUI, and save its configuration"
        raise UserError("is of another tab than LoRA: it trains a whole model or an embedding", file=file, hint=mend)
    values: dict[str, object] = {}
    shown: dict[str, str] = {}
    words: list[str] = []
    for field, value in data.items():
        key = _OF_FAMILY.sub("", field)
        if _OF_FAMILY.fullmatch(f"{field}_") or key == "checkbox":
            words += [field.removesuffix("_checkbox")] if value is True else []
            continue
        key = _RENAMED.get(key, key)
        if value in NOTHING or _PAGE.fullmatch(key) or _USUAL.get(key) == value:
            continue
        values[key], shown[key] = value, field
    found = Found("the kohya_ss GUI", file, text, values, shown, base_words=tuple(words))
    _type(found, data)
    _rates(found, data)
    _run(found, data)
    extra = str(data.get("additional_parameters") or "")
    for key, value in options_of_words(words_of(extra, file, windows=True)).items():
        values[key], shown[key] = value, f"additional_parameters --{key}"
    return found


def _type(found: Found, data: dict[str, Any]) -> None:
    kind = str(data["LoRA_type"])
    module, algo = _LORA.get(kind.casefold(), ("networks.lora", ""))
    if kind.casefold() not in _LORA and kind.casefold().endswith("oft"):
        module = "networks.oft"
    found.base_words = (*found.base_words, kind)
    found.values["network_module"], found.shown = (
        module,
        {**found.shown, "network_module": f"LoRA_type {kind}, network_module"},
    )
    convolutions = kind.casefold() != "standard"
    args = {key: found.values.pop(key) for key in list(found.values) if _ARGS.fullmatch(key)}
    for key in ("conv_dim", "conv_alpha"):  # the page has numbers there for every type
        value = found.values.pop(key, None)
        if convolutions and value and (algo or kind.casefold() == "kohya locon"):
            args[key] = value
    if algo:
        args["algo"] = algo
        preset = data.get("LyCORIS_preset")
        args |= {"preset": preset} if preset not in (*NOTHING, "full") else {}
        if algo == "lokr" and data.get("factor") not in (None, "", -1):
            args["factor"] = data["factor"]
    if args:
        found.values["network_args"] = [f"{key}={value}" for key, value in args.items()]


def _rates(found: Found, data: dict[str, Any]) -> None:
    """A rate of 0 for one part, and one for the other, is the page's way to train one alone."""
    unet, words = (_number(found, data, key) for key in ("unet_lr", "text_encoder_lr"))
    if unet and not words:
        found.values["network_train_unet_only"] = True
        found.shown = {**found.shown, "network_train_unet_only": "text_encoder_lr = 0, so network_train_unet_only"}
    if words and not unet:
        found.values["network_train_text_encoder_only"] = True


def _run(found: Found, data: dict[str, Any]) -> None:
    if found.values.get("max_train_steps"):
        found.values.pop("max_train_epochs", None)
    if data.get("max_train_epochs"):
        found.values["max_train_epochs"] = data["max_train_epochs"]
        found.shown = {**found.shown, "max_train_epochs": "max_train_epochs"}
    elif "max_train_epochs" not in found.values and "max_train_steps" not in found.values:
        found.values["max_train_epochs"] = 1
    percent = _number(found, data, "lr_warmup")
    if percent and "lr_warmup_steps" not in found.values:
        found.values["lr_warmup_steps"] = percent / 100
        found.shown = {**found.shown, "lr_warmup_steps": "lr_warmup in %: lr_warmup_steps"}
    if data.get("noise_offset_type") == "Multires":
        found.values.pop("noise_offset", None)
    elif data.get("noise_offset_type") == "Original":
        found.values.pop("multires_noise_iterations", None)
        found.values.pop("multires_noise_discount", None)
    for key in ("stop_text_encoder_training", "stop_text_encoder_training_pct"):
        if stop := _number(found, data, key):
            found.length.shares.append(("text_encoder_stop", stop / 100, f"{key} = {stop:g} %"))


def _number(found: Found, data: dict[str, Any], field: str) -> float:
    """A field's number; 0 where it is empty."""
    value = data.get(field)
    if value in (None, "", []):
        return 0.0
    try:
        return number(value)
    except ValueError as error:
        found.fault(field, str(error))
        return 0.0
