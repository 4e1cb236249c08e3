"""`lora-scripts new --from`: what a config of another trainer says is said in our keys, and the rest is told."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import tiny
from lora_scripts.adopt import ai_toolkit, ai_toolkit_sets, kohya_args, kohya_sets, onetrainer, turns
from lora_scripts.adopt.command import Adopted, adopt
from lora_scripts.adopt.found import NOTHING
from lora_scripts.cli import main
from lora_scripts.config import load
from lora_scripts.config.keys import adapter, training
from lora_scripts.config.schema import TrainConfig
from lora_scripts.config.types import TargetRule
from lora_scripts.errors import UserError
from lora_scripts.families import elsewhere
from lora_scripts.families.table import FAMILIES
from runs import faults

KOHYA = """
[model]
pretrained_model_name_or_path = "base.safetensors"
[network]
network_module = "networks.lora"
network_dim = 32
network_alpha = 16
network_args = ["conv_dim=8", "conv_alpha=4", "loraplus_lr_ratio=16"]
[pictures]
train_data_dir = "img"
resolution = "512,768"
shuffle_caption = true
keep_tokens = 2
flip_aug = true
caption_extension = ".txt"
[training]
train_batch_size = 4
gradient_accumulation_steps = 2
max_train_epochs = 5
unet_lr = 1e-4
text_encoder_lr = 5e-5
optimizer_type = "Lion"
lr_scheduler = "polynomial"
lr_warmup_steps = 0.1
min_snr_gamma = 5
max_timestep = 900
clip_skip = 2
save_every_n_epochs = 2
xformers = true
color_aug = true
betas_of_mine = 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a base and pictures as kohya's trainers want them: 7 ten times, 3 twice."""
    monkeypatch.chdir(tmp_path)
    for keys in (adapter, training):  # as if all optional packages were installed
        monkeypatch.setattr(keys, "find_spec", lambda name: True)
    tiny.write_base(tmp_path / "base.safetensors")
    tiny.write_pictures(tmp_path / "img" / "10_neon", 7)
    tiny.write_pictures(tmp_path / "img" / "2_rain", 3)
    return tmp_path


def adopted(name: str, text: str | dict[str, Any], data: str | None = None) -> tuple[Adopted, TrainConfig, str]:
    """What the file becomes: as it is told, as it is read back, and as it is written."""
    file = Path(name)
    file.write_text(text if isinstance(text, str) else json.dumps(text), "utf-8")
    path = Path("mine.yaml")
    path.unlink(missing_ok=True)
    told = adopt("mine", file, Path(data) if data else None, None, path)
    written = path.read_text("utf-8")
    lines = [line for line in written.splitlines() if line and line[0].isalpha()]
    assert all(" # " in line for line in lines)
    entries, faults = load.parse_file(written, path)
    config = TrainConfig.model_validate({entry.key: entry.value for entry in entries})
    assert not faults and {entry.key for entry in entries} == told.settings.keys()
    return told, config, written


def reasons(told: Adopted) -> dict[str, str]:
    return {left.theirs: left.reason for left in told.left}


def test_the_arguments_of_sd_scripts(here: Path) -> None:
    told, c, written = adopted("k.toml", KOHYA)
    assert (c.train_data_dir, c.base_model, c.folder_repeats) == (Path("img"), Path("base.safetensors"), True)
    assert (c.resolution, c.flip, c.shuffle_tags, c.keep_tags, c.clip_skip) == ((512, 768), True, True, 2, 2)
    assert (c.lora_rank, c.lora_alpha, c.lora_plus_ratio) == (32, 16, 16)
    assert c.targets == ("attention", "feed_forward", TargetRule(match="conv", rank=8, alpha=4))
    assert (c.batch_size, c.gradient_accumulation, c.epochs, c.val_split) == (4, 2, 5, 0)
    assert (c.learning_rate, c.train_text_encoder, c.text_encoder_lr) == (1e-4, True, 5e-5)
    assert (c.optimizer, c.weight_decay) == ("lion", 0)  # what lion-pytorch has where nobody says one
    assert (c.lr_schedule, c.lr_power, c.precision, c.sample_every) == ("polynomial", 1, "fp32", 0)  # their defaults
    assert (c.min_snr_gamma, c.timestep_max) == (5, 899)  # the last that is drawn there is one below
    # As train_network.py counts: batches of the pictures with their repeats, gathered, times epochs.
    each = math.ceil(math.ceil((7 * 10 + 3 * 2) / 4) / 2)
    assert told.steps == 5 * each == 50
    assert (c.save_steps, c.warmup_steps) == (2 * each, 5)
    assert "lora_rank: 32 " in written and "# network_dim = 32" in written
    assert reasons(told) == {
        "color_aug = true": kohya_sets._KNOWN["color_aug"][1],
        "betas_of_mine = 3": "is not known here",
    }
    assert told.decided == ("xformers",)


def test_folders_without_numbers_are_each_seen_once(here: Path) -> None:
    """There nothing would be found in them; `folder_repeats` would end the run."""
    plain = tiny.write_pictures(here / "plain", 3)
    args = {"pretrained_model_name_or_path": "base.safetensors", "network_module": "networks.lora"}
    for folder, counted in (("img", True), (plain.as_posix(), False), ("/not/here", True)):
        _, c, _ = adopted("k.json", {**args, "train_data_dir": folder})
        assert (c.train_data_dir, c.folder_repeats) == (Path(folder), counted)


def test_sets_of_sd_scripts_in_a_script(here: Path) -> None:
    """A command line over several lines, with a variable, and the dataset config that it names."""
    Path("sets.toml").write_text(
        "[general]\nkeep_tokens = 1\n[[datasets]]\nresolution = 768\nbatch_size = 3\n"
        "[[datasets.subsets]]\nimage_dir = 'img/10_neon'\nnum_repeats = 10\n"
        "[[datasets.subsets]]\nimage_dir = 'img/2_rain'\nnum_repeats = 2\nflip_aug = true\n"
        "[[datasets.subsets]]\nimage_dir = 'reg'\nis_reg = true\nclass_tokens = 'a city'\n",
        "utf-8",
    )
    tiny.write_pictures(Path("reg"), 4)
    script = (
        "#!/bin/sh\nBASE=base.safetensors\n# accelerate launch train_network.py --seed 1\n"
        "accelerate launch --mixed_precision fp16 sd-scripts/train_network.py \\\n"
        "  --pretrained_model_name_or_path=$BASE --dataset_config sets.toml \\\n"
        "  --network_module networks.lora --network_dim 256 --network_alpha 128 --seed 7 \\\n"
        "  --network_train_unet_only --learning_rate 1e-4 --max_train_steps 100 --mixed_precision bf16 --sdpa\n"
    )
    told, c, _ = adopted("run.sh", script)
    assert (c.train_data_dir, c.folder_repeats, c.repeats) == (Path("img"), True, 1)
    assert (c.class_data_dir, c.class_prompt) == (Path("reg"), "a city")
    assert (c.resolution, c.batch_size, c.precision, c.seed) == (768, 3, "bf16", 7)
    assert (c.lora_rank, c.lora_alpha, c.train_text_encoder) == (128, 64, False)  # 128 is the most; alpha / rank stays
    each = math.ceil((76 + 4) / 3)
    assert c.epochs == round(100 / each) == 4 and told.steps == 4 * each
    left = reasons(told)
    assert "108 steps" in left["max_train_steps = 100"] and "flip counts for all" in left["flip_aug = true"]
    assert any("4 to 76 an epoch; put them into a folder 19_name" in reason for reason in left.values())
    windows = (
        "@echo off\r\nset B=D:\\m\\x.safetensors\r\npython train_network.py ^\r\n --network_module=networks.lora ^\r\n"
    )
    told, c, _ = adopted("run.bat", windows + ' --train_data_dir="img" --pretrained_model_name_or_path="%B%"\r\n')
    assert c.base_model == Path("D:/m/x.safetensors") and told.notes[0].startswith("base_model: D:/m/x.safetensors")
    assert c.epochs == round(1600 / 76) and c.learning_rate == 2e-6  # their defaults


def test_several_sets_become_one_folder_where_that_means_the_same(here: Path) -> None:
    """Else the first is taken, and the others are named."""

    def sets(*folders: tuple[str, int], data: str | None = None) -> tuple[Path, int, bool, list[str]]:
        groups = [{"subsets": [{"image_dir": name, "num_repeats": times} for name, times in folders]}]
        args = {"network_module": "networks.lora", "pretrained_model_name_or_path": "base.safetensors", "seed": 1}
        told, c, _ = adopted("sets.json", {**args, "max_train_epochs": 1, "datasets": groups}, data)
        return c.train_data_dir, c.repeats, c.folder_repeats, [left.theirs for left in told.left]

    assert sets(("img/10_neon", 10), ("img/2_rain", 2)) == (Path("img"), 1, True, [])
    assert sets(("img/10_neon", 3), ("img/2_rain", 3)) == (Path("img"), 3, False, [])
    rain = "image_dir = img/2_rain, num_repeats = 4"
    assert sets(("img/10_neon", 3), ("img/2_rain", 4)) == (Path("img/10_neon"), 3, False, [rain])
    tiny.write_pictures(Path("img/others"), 2)  # which nobody asked for
    assert sets(("img/10_neon", 10), ("img/2_rain", 2))[0] == Path("img/10_neon")
    assert sets(("img/10_neon", 10), ("away/2_rain", 2))[0] == Path("img/10_neon")
    assert sets(("img/10_neon", 5), data="img/2_rain")[:3] == (Path("img/2_rain"), 5, False)
    assert sets(("x", 5), data="img")[:3] == (Path("img"), 1, True)


def test_models_of_flow_draw_their_levels_as_there(here: Path) -> None:
    args = {"network_module": "networks.lora_flux", "pretrained_model_name_or_path": "f.safetensors", "ae": "ae.st"}
    args |= {"train_data_dir": "img", "clip_l": "c.safetensors", "t5xxl": "t.safetensors", "max_train_epochs": 1}
    levels = {
        (): ("uniform", 3.0),
        ("timestep_sampling", "sigmoid"): ("sigmoid", 1.0),
        ("timestep_sampling", "shift"): ("sigmoid", 3.0),
        ("timestep_sampling", "flux_shift"): ("sigmoid", None),  # by size, as the base's own sampler
    }
    for (key, value), wanted in {(k or ("seed", 1)): v for k, v in levels.items()}.items():
        told, c, _ = adopted("f.json", {**args, key: value})
        assert (c.timestep_sampling, c.timestep_shift) == wanted
        assert (
            c.fused_qkv
            and "modulation" in c.targets
            and c.text_encoder == (Path("c.safetensors"), Path("t.safetensors"))
        )
    assert "their default (guidance_scale): 3.5" in reasons(told)
    told, c, _ = adopted("f.json", {**args, "weighting_scheme": "logit_normal", "logit_mean": 0.5, "min_snr_gamma": 5})
    assert (c.timestep_sampling, c.timestep_mean) == ("logit_normal", -0.5)  # there u counts from pure noise
    assert "is for models that predict noise or v" in reasons(told)["min_snr_gamma = 5"]
    musubi = {"dit": "z.safetensors", "network_module": "networks.lora_zimage", "dataset_config": "m.toml"}
    text = "[[datasets]]\nimage_directory = 'img/10_neon'\nnum_repeats = 3\nresolution = [960, 544]\n"
    Path("c").mkdir()
    Path("m.toml").write_text(text + "control_directory = 'c'\nno_resize_control = true\n", "utf-8")
    told, c, _ = adopted(
        "m.json", {**musubi, "max_train_epochs": 2, "discrete_flow_shift": 2.0, "timestep_sampling": "shift"}
    )
    assert (told.trainer, c.repeats, c.resolution, told.steps) == ("musubi-tuner", 3, (960, 544), 42)
    assert (c.timestep_shift, c.lora_rank, c.lora_alpha, c.fused_qkv) == (2, 4, 1, False)
    assert "control_directory = c" in reasons(told) and "a reference has" in reasons(told)["no_resize_control = true"]
    for version, left in (("edit-2511", False), ("Edit", True)):
        told, *_ = adopted("m.json", {**musubi, "model_version": version})
        assert ("the first Qwen-Image-Edit" in " ".join(reasons(told).values())) is left


def test_the_page_of_kohya_ss(here: Path) -> None:
    page = {"LoRA_type": "LyCORIS/LoCon", "pretrained_model_name_or_path": "base.safetensors", "train_data_dir": "img"}
    page |= {
        "max_resolution": "512,512",
        "epoch": 4,
        "max_train_epochs": 0,
        "max_train_steps": 0,
        "train_batch_size": 2,
    }
    page |= {
        "network_dim": 16,
        "network_alpha": 8,
        "conv_dim": 4,
        "conv_alpha": 2,
        "unet_lr": 0.0002,
        "text_encoder_lr": 0,
    }
    page |= {
        "lr_scheduler": "cosine",
        "lr_warmup": 10,
        "optimizer": "Prodigy",
        "optimizer_args": "decouple=True d_coef=2",
    }
    page |= {
        "noise_offset_type": "Multires",
        "noise_offset": 0.1,
        "multires_noise_iterations": 6,
        "seed": 0,
        "sdxl": False,
    }
    page |= {
        "additional_parameters": "--max_grad_norm=0.5",
        "gpu_ids": "",
        "caption_extension": ".tags",
        "train_norm": True,
    }
    told, c, _ = adopted("gui.json", page)
    assert (c.lora_rank, c.lora_alpha, c.targets[2]) == (16, 8, TargetRule(match="conv", rank=4, alpha=2))
    assert (c.epochs, c.batch_size, c.resolution, c.max_grad_norm) == (4, 2, 512, 0.5)
    assert (c.optimizer, c.learning_rate, c.weight_decay) == ("prodigy", 1, 0) and not c.train_text_encoder
    assert (c.noise_offset, c.multires_noise_iterations) == (0, 6)
    assert told.steps == 4 * 38 and c.warmup_steps == 15
    assert reasons(told).keys() == {
        *(
            "unet_lr = 0.0002",
            "optimizer_args d_coef = 2",
            "network_args train_norm = True",
            "caption_extension = .tags",
        ),
    }
    _, c, _ = adopted("gui.json", {**page, "LoRA_type": "Standard", "optimizer": "AdamW8bit"})
    assert c.targets == TrainConfig.model_fields["targets"].default and c.optimizer == "adamw8bit"
    (here / "my vae.safetensors").write_bytes(b"")
    _, c, _ = adopted("gui.json", {**page, "additional_parameters": '--vae "my vae.safetensors" --seed=5'})
    assert (c.vae, c.seed) == (Path("my vae.safetensors"), 5)
    told_of = faults(lambda: adopted("gui.json", {**page, "additional_parameters": '--vae "my'}))
    assert "gui.json: the command line cannot be read" in told_of and told_of.endswith("close the quotes")


AITK: dict[str, Any] = {
    "type": "sd_trainer",
    "device": "cuda:0",
    "trigger_word": "neonpunk",
    "network": {"type": "lora", "linear": 8, "linear_alpha": 4},
    "save": {"dtype": "float16", "save_every": 250, "max_step_saves_to_keep": 4},
    "datasets": [{"folder_path": "img/10_neon", "caption_ext": "txt", "resolution": [512, 768], "num_repeats": 2}],
    "train": {
        "batch_size": 2,
        "steps": 70,
        "lr": 1e-4,
        "optimizer": "adamw8bit",
        "dtype": "bf16",
        "noise_scheduler": "flowmatch",
    },
    "model": {"name_or_path": "Qwen/Qwen-Image", "arch": "qwen_image", "quantize": True},
    "sample": {"sample_every": 50, "prompts": ["[trigger] in the rain"], "width": 512, "height": 768, "seed": 3},
}


def job(**groups: Any) -> dict[str, Any]:
    process = {key: {**AITK[key], **more} if isinstance(more, dict) else more for key, more in groups.items()}
    return {"job": "extension", "config": {"name": "n", "process": [{**AITK, **process}]}}


def test_a_job_of_ai_toolkit(here: Path) -> None:
    told, c, _ = adopted("job.yaml", job(train={"timestep_type": "weighted", "ema_config": {"use_ema": True}}))
    assert (c.train_data_dir, c.repeats, c.resolution) == (Path("img/10_neon"), 2, 768)
    assert (c.lora_rank, c.lora_alpha, c.batch_size, c.learning_rate) == (8, 4, 2, 1e-4)
    assert (c.lr_schedule, c.gradient_checkpointing, c.ema_decay, c.base_precision) == ("constant", True, 0.999, "fp8")
    assert (c.timestep_sampling, c.loss_weighting, c.timestep_shift) == ("uniform", "inverse_loss", 1)
    assert (c.epochs, told.steps) == (10, 70)  # 7 pictures twice, two a step
    assert c.targets == ("attention", "feed_forward", "modulation")  # img_mod and txt_mod lie in its blocks
    assert (c.save_steps, c.keep_last, c.sample_every, c.sample_first) == (250, 4, 50, True)
    assert (c.sample_prompts, c.sample_size) == (("neonpunk in the rain",), (512, 768))
    assert {"datasets[0] resolution = [512, 768]", "sample.seed = 3"} == reasons(told).keys()
    _, c, _ = adopted("job.yaml", job(train={"gradient_accumulation": 2, "gradient_accumulation_steps": 5}))
    assert (c.gradient_accumulation, c.timestep_sampling) == (10, "sigmoid")
    assert c.epochs == round(70 / 5)  # 14 steps of 20 pictures, of which an epoch has 14
    Path("c").mkdir()
    Image.new("RGB", (64, 64)).save("c/a b.png")
    pairs = {**AITK["datasets"][0], "control_path_1": "c", "control_path_2": None}
    samples = [{"prompt": "[trigger] at night", "seed": 5, "ctrl_img_1": "c/a b.png", "ctrl_img": "c/a b.png"}]
    sample = {"prompts": None, "samples": samples}
    edit = {"name_or_path": "Qwen/Qwen-Image-Edit-2509", "arch": "qwen_image_edit_plus"}
    told, c, written = adopted("job.yaml", job(datasets=[pairs], sample=sample, model=edit))
    assert c.reference_dir == Path("c") and "# control_path_1 = c" in written
    assert c.sample_prompts == ("neonpunk at night --d 5 --ref c/a b.png",)
    told, *_ = adopted("job.yaml", job(datasets=[{**pairs, "control_path_2": "d"}], model=edit))
    assert "several references" in reasons(told)['datasets[0] control_path_1, control_path_2 = ["c", "d"]']
    away = job(datasets=[{"folder_path": "/not/here", "num_repeats": 1}])
    told, c, written = adopted("job.yaml", away)
    assert "set epochs to 140 / (pictures x repeats)" in reasons(told)["train.steps = 70"] and told.steps is None
    assert "train_data_dir: /not/here does not exist" in told.notes[-1] and "to be set" in written


def test_a_preset_of_onetrainer(here: Path) -> None:
    preset: dict[str, Any] = {"unet": {"gradient_checkpointing": False}, "text_encoder": {"dropout_probability": 0.1}}
    preset |= {"training_method": "LORA", "model_type": "STABLE_DIFFUSION_15", "batch_size": 4}
    preset |= {
        "base_model_name": "base.safetensors",
        "lora_rank": 8,
        "epochs": 40,
        "learning_rate": 1e-4,
        "resolution": "512",
    }
    preset |= {"gradient_accumulation_steps": 4, "learning_rate_scaler": "BOTH", "text_encoder_layer_skip": 1}
    preset |= {"loss_weight_fn": "MIN_SNR_GAMMA", "learning_rate_warmup_steps": 0.25, "layer_filter_preset": "attn-mlp"}
    preset |= {
        "optimizer": {"optimizer": "ADAMW_8BIT", "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "foreach": False}
    }
    concept = {"path": "img/10_neon", "balancing": 3.0, "text": {"enable_tag_shuffling": True, "keep_tags_count": 2}}
    concept |= {"image": {"enable_random_flip": True, "enable_crop_jitter": False, "enable_random_hue": True}}
    preset["concepts"] = [concept, {"path": "img/2_rain", "type": "VALIDATION"}, {"path": "other", "enabled": False}]
    told, c, _ = adopted("p.json", preset)
    assert (c.train_data_dir, c.repeats, c.val_data_dir) == (Path("img/10_neon"), 3, Path("img/2_rain"))
    assert (c.lora_rank, c.lora_alpha, c.epochs, c.targets) == (8, 1, 40, ("attention", "feed_forward"))
    assert (c.gradient_checkpointing, c.caption_dropout) == (False, 0.1)
    assert c.learning_rate == pytest.approx(1e-4 * 4)  # the root of 4 x 4
    assert (c.train_text_encoder, c.clip_skip, c.min_snr_gamma) == (True, 2, 5)
    assert (c.optimizer, c.weight_decay, c.precision) == ("adamw8bit", 0.1, "fp16")
    assert (c.shuffle_tags, c.keep_tags, c.flip, c.random_crop) == (True, 2, True, False)
    each = math.ceil(math.ceil(7 * 3 / 4) / 4)
    assert told.steps == 40 * each and (c.warmup_steps, c.text_encoder_stop) == (10 * each, 30 * each)
    assert reasons(told).keys() == {"optimizer.beta2 = 0.95", "concept img/10_neon: image.enable_random_hue = true"}
    flow = {
        **preset,
        "model_type": "Z_IMAGE",
        "base_model_name": "Tongyi-MAI/Z-Image",
        "text_encoder": {"train": False},
    }
    flow |= {"timestep_distribution": "LOGIT_NORMAL", "noising_weight": 0.5, "noising_bias": 0.2, "timestep_shift": 3.0}
    flow |= {"layer_filter_preset": "full"}
    _, c, _ = adopted("p.json", flow)
    assert c.targets == ("attention", "feed_forward", "modulation", "refiners")
    assert (c.timestep_sampling, c.timestep_std, c.timestep_mean, c.timestep_shift) == ("logit_normal", 1.5, 0.2, 3)
    preset.pop("concepts")
    Path("concepts.json").write_text(json.dumps([concept]), "utf-8")
    assert adopted("p.json", {**preset, "concept_file_name": "away/concepts.json"})[1].repeats == 3


def test_the_command_tells_all_of_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("k.toml").write_text(KOHYA, "utf-8")
    assert main(["new", "mine", "--from", "k.toml"]) == 0
    told = capsys.readouterr().out
    assert "written: configs/mine.yaml" in told and "not carried over: color_aug = true: colours" in told
    assert "not carried over: betas_of_mine = 3: is not known here" in told and "xformers" in told
    assert main(["new", "mine", "--from", "k.toml"]) == 2  # nothing is overwritten
    capsys.readouterr()
    assert main(["new", "two", "--from", "k.toml", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"]["lora_rank"] == "network_dim = 32" and found["steps"] == 50
    for command in ("train", "check"):
        assert main([command, "--config", "k.toml"]) == 2
        assert "lora-scripts new NAME --from k.toml" in capsys.readouterr().err
    Path("job.yaml").write_text(json.dumps(job()), "utf-8")
    assert main(["train", "--config", "job.yaml"]) == 2
    assert "is the config of another trainer; lora-scripts new NAME --from job.yaml" in capsys.readouterr().err


FAULTS = {
    "a.toml": (
        "network_module = 'networks.lora'\nnetwork_dim = 'x'\n",
        "a.toml:2: network_dim: must be a whole number",
    ),
    "b.toml": ("network_dim = \n", "b.toml:1: not valid TOML"),
    "c.toml": ("pretrained_model_name_or_path = 'x'\n", "without network_module it trains something else than a LoRA"),
    "d.toml": ("[[datasets]]\nresolution = 512\n", "holds data sets alone"),
    "e.toml": ("title = 'x'\n", "is no config of a trainer that is read here"),
    "f.sh": ("echo hello\n", "holds no command that starts a trainer"),
    "g.sh": (
        "accelerate launch train_textual_inversion.py --seed 1\n",
        "train_textual_inversion.py trains something else",
    ),
    "h.json": (
        '{"training_method": "FINE_TUNE"}',
        "training_method is FINE_TUNE: it trains no LoRA; choose a LoRA preset",
    ),
    "i.json": ('{"a": \n', "i.json:2: not valid JSON"),
    "j.yaml": (
        '{"job": "extension", "config": {"process": [{"type": "sd_trainer"}]}}',
        "config.process[0] has no network",
    ),
    "k.json": (
        '{"training_method": "LORA", "model_type": "PIXART_ALPHA", "concepts": [{"path": "x"}]}',
        "trains on PIXART_ALPHA",
    ),
    "l.toml": ("network_module = 'networks.lora'\ntrain_data_dir = 'img'\n", "names no base model; say which: --base"),
    "m.toml": ("network_module = 'lycoris.kohya'\nnetwork_args = ['algo=full']\n", "algo=full is not trained here"),
    "n.toml": ("network_module = 'networks.lora'\ndataset_config = 'o.toml'\n", "dataset_config: o.toml is not here"),
    "q.toml": (
        "network_module = 'networks.lora'\ntrain_data_dir = 'img'\npretrained_model_name_or_path = 'x.ckpt'\n",
        "q.toml: pretrained_model_name_or_path = x.ckpt: ",
    ),
    "p.json": ("[]", "holds data sets alone"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_none_of_these_is_told_in_one_line(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, fault = FAULTS[name]
    Path(name).write_text(text, "utf-8")
    assert main(["new", "mine", "--from", name]) == 2
    told = capsys.readouterr().err
    assert fault in told and told.count("error: ") == told.count("\n") and not Path("configs").exists()


def test_every_target_is_a_key_of_ours_and_nothing_is_known_twice() -> None:
    tables = {
        kohya_args.ROWS: kohya_args.KNOWN,
        kohya_sets._OF_PICTURES: kohya_sets._KNOWN,
        ai_toolkit._ROWS: ai_toolkit._KNOWN,
        ai_toolkit_sets._OF_SET: ai_toolkit_sets._OF_SET_KNOWN,
        onetrainer._ROWS: onetrainer._KNOWN,
    }
    for rows, known in tables.items():
        assert {row.ours for row in rows} <= TrainConfig.model_fields.keys()
        assert not {row.theirs for row in rows} & known.keys()
        assert all(reason and not reason.endswith(".") for _, reason in known.values())
    families = {facts.name: facts for facts in FAMILIES}
    of_them = (elsewhere._WORDS, elsewhere.ALSO_BY_KOHYA, elsewhere.LEVELS_OF_KOHYA, elsewhere.UNLIKE_OF_KOHYA)
    assert all(names <= families.keys() for names in (*map(set, of_them), elsewhere.FUSED_BY_KOHYA))
    assert all(set(groups) <= families[name].groups.keys() for name, groups in elsewhere.ALSO_BY_KOHYA.items())
    assert set(turns.OPTIMIZERS.values()) | set(turns.NEAREST.values()) == set(turns.DECAY)


def test_damaged_values_end_in_a_line(here: Path) -> None:
    """Whatever stands in place of one or two values: it is written, or told; nothing else."""
    bad: list[object] = [
        *NOTHING,
        -1,
        1e300,
        "abc",
        [1, "a"],
        {"x": 1},
        True,
        1.5,
        "1,2,3",
        [[]],
        [{}],
        10**30,
        "a\nb",
        "=",
    ]
    preset = {
        "training_method": "LORA",
        "base_model_name": "base.safetensors",
        "concepts": [{"path": "img", "text": {}}],
    }
    sets = [{"subsets": [{"image_dir": "img", "num_repeats": 2}], "resolution": 512, "batch_size": 2}]
    plain = {"network_module": "lycoris.kohya", "pretrained_model_name_or_path": "base.safetensors", "datasets": sets}
    page = {
        "LoRA_type": "Standard",
        "train_data_dir": "img",
        "unet_lr": 1,
        "lr_warmup": 1,
        "network_dim": 8,
        "epoch": 1,
    }
    rng = random.Random(0)
    for _ in range(120):
        data = json.loads(
            json.dumps(rng.choice([job(), preset, {**plain, "network_dim": 4, "optimizer_args": ["a=1"]}, page]))
        )
        for _ in range(rng.choice([1, 2])):
            place = data
            while True:
                key = rng.choice([*place] if isinstance(place, dict) else [*range(len(place))])
                if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.3:
                    place[key] = rng.choice(bad)
                    break
                place = place[key]
        try:
            adopted("x.json", data)
        except UserError as error:
            assert all("\n" not in str(one) for one in error.errors)


def test_what_keeps_the_base_is_carried_over_from_ai_toolkit(here: Path) -> None:
    """Their extra loss is added in every step; captions without their word would be trained and held at once."""
    held = {"diff_output_preservation": True, "diff_output_preservation_class": "city"}
    dropping = [{**AITK["datasets"][0], "caption_dropout_rate": 0.05}]
    told, c, _ = adopted("job.yaml", job(train=held, datasets=dropping))
    assert (c.preserve_weight, c.preserve_word, c.preserve_every, c.caption_dropout) == (1, "city", 1, 0)
    assert any("caption_dropout: preserve_weight holds the base" in why for why in reasons(told).values())
    told, c, _ = adopted("job.yaml", job(train={**held, "diff_output_preservation_multiplier": 0.5}))
    assert c.preserve_weight == 0.5
    told, c, _ = adopted("job.yaml", job(train={**held, "diff_output_preservation": False}, datasets=dropping))
    assert (c.preserve_weight, c.preserve_word, c.caption_dropout) == (None, "", 0.05)
    assert not [key for key in reasons(told) if "preservation" in key]
