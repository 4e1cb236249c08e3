"""Which metadata of a LoRA file the programs need, and which tells more about a person than they may want."""

from __future__ import annotations

import re
from collections.abc import Mapping

NEEDED = frozenset({
    "ss_v2", "ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_network_args",
    "ss_output_name", "modelspec.sai_model_spec", "modelspec.architecture", "modelspec.implementation",
    "modelspec.title", "modelspec.resolution", "modelspec.prediction_type", "modelspec.encoder_layer",
    "modelspec.trigger_phrase", "sshs_model_hash", "sshs_legacy_hash", "format", "lora_adapter_metadata",
    "lora_scripts.alpha",
})  # fmt: skip
"""Read by a program: whether the file is listed and under which name, how it is applied, what to write in a prompt."""

_CAPTIONS = frozenset({"ss_tag_frequency", "ss_dataset_dirs", "ss_reg_dataset_dirs", "ss_datasets", "ss_bucket_info"})
_SESSION = frozenset({
    "ss_session_id", "ss_training_started_at", "ss_training_finished_at", "ss_training_comment", "modelspec.date",
    "ot_config",  # OneTrainer's settings: folders, prompts
})  # fmt: skip
# How a path begins that names a folder of somebody's machine: /home/…, C:\…, \\server\…, ~/…
_ROOT = re.compile(r"(?<![A-Za-z])[A-Za-z]:[\\/]|\\\\|~[\\/]|(?<![\w.:/])/(?=[\w.-]+/)")
_PATH = re.compile(rf"""(?:{_ROOT.pattern})(?:[^"'\n,;]|(?<=\w)'(?=\w))*""")


def strip(metadata: Mapping[str, str]) -> dict[str, str]:
    """Only what a program reads."""
    return {key: value for key, value in metadata.items() if key in NEEDED}


def make_private(metadata: Mapping[str, str]) -> dict[str, str]:
    """Without captions, names of data folders and session marks; of every path only the last part stays."""
    kept = {key: value for key, value in metadata.items() if key not in _CAPTIONS | _SESSION}
    return {key: _bare(value) for key, value in kept.items() if not value.startswith("data:")}


def _bare(value: str) -> str:
    """Without the folders of the paths in it."""
    if _ROOT.match(value) and len(_ROOT.findall(value)) == 1 and not set('"\n') & set(value):
        return _last(value)  # one path, whatever stands in the names of its folders
    return _PATH.sub(lambda match: _last(match[0]), value)


def _last(path: str) -> str:
    """The file's own name; the path may be escaped, as in JSON."""
    parts = [part for part in re.split(r"[\\/]+", path.rstrip()) if part and part != "~"]
    return parts[-1] if parts else ""
