"""The config: YAML 1.2 with lines, every fault at once with its mend, and the way back."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

import lora_scripts
from lora_scripts.config.load import dump_config, load_config
from lora_scripts.config.schema import GROUPS, TrainConfig
from lora_scripts.config.source import parse_file
from lora_scripts.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
PATHS = "train_data_dir: data\nbase_model: base.safetensors\noutput_dir: out\n"  # lines 1 to 3 of most configs here

ARTICLE = """\
train_data_dir: "./data/cyberpunk_train"
metadata_path: "./data/cyberpunk_train/metadata.csv"
base_model: "./models/v1-5-pruned.safetensors"
lora_rank: 16
epochs: 15
batch_size: 4
learning_rate: 2e-4
output_dir: "./output/cyberpunk_lora"
save_steps: 100
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with data, a base model and the article's files in it, as the current one."""
    monkeypatch.chdir(tmp_path)
    for name in ("data", "data/cyberpunk_train", "models"):
        (tmp_path / name).mkdir()
    for name in ("base.safetensors", "models/v1-5-pruned.safetensors", "data/cyberpunk_train/metadata.csv"):
        (tmp_path / name).touch()
    return tmp_path


def load(text: str | bytes, *overrides: str) -> TrainConfig:
    Path("c.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    return load_config(Path("c.yaml"), overrides)


def faults(text: str | bytes, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load(text, *overrides)
    return str(caught.value).splitlines()


def test_the_articles_config() -> None:
    config = load(ARTICLE)
    assert config.model_dump(exclude_unset=True) == {
        "train_data_dir": Path("data/cyberpunk_train"),
        "metadata_path": Path("data/cyberpunk_train/metadata.csv"),
        "base_model": Path("models/v1-5-pruned.safetensors"),
        "lora_rank": 16,
        "epochs": 15,
        "batch_size": 4,
        "learning_rate": 0.0002,
        "output_dir": Path("output/cyberpunk_lora"),
        "save_steps": 100,
    }
    assert isinstance(config.learning_rate, float)
    assert config.name == "cyberpunk_lora"
    assert (ROOT / "configs/cyberpunk.yaml").read_text(encoding="utf-8") == ARTICLE


@pytest.mark.parametrize(
    ("scalar", "value"),
    [  # YAML 1.2.2, section 10.3.2, and what plain PyYAML gets wrong
        *[
            ("2e-4", 0.0002),
            ("1e5", 1e5),
            ("2.0e4", 2e4),
            (".5", 0.5),
            ("2.", 2.0),
            ("-1E+2", -100.0),
            ("+12e03", 12e3),
        ],
        *[("010", 10), ("0o10", 8), ("0x1F", 31), ("-7", -7), ("+3", 3), ("0", 0)],
        *[("1:30", "1:30"), ("yes", "yes"), ("no", "no"), ("off", "off"), ("2026-11-22", "2026-11-22")],
        *[
            ("true", True),
            ("FALSE", False),
            ("null", None),
            ("~", None),
            ("", None),
            ("1_000", "1_000"),
            ("0b1", "0b1"),
        ],
        *[("'2e-4'", "2e-4"), ('"true"', "true"), ("!!str 5", "5"), ("!!float 5", 5.0), ("e5", "e5"), ("1e", "1e")],
        *[(".inf", float("inf")), ("-.INF", float("-inf")), ("[1, a, 2e1]", [1, "a", 20.0]), ("C:\\new", "C:\\new")],
    ],
)
def test_scalars_are_yaml_1_2(scalar: str, value: object) -> None:
    entries, found = parse_file(f"k: {scalar}\n", Path("c.yaml"))
    assert not found
    assert entries[0].value == value and type(entries[0].value) is type(value)


MODELS = "models/v1-5-pruned.ckpt"


@pytest.mark.parametrize(
    ("line", "fault"),
    [  # each is line 4 of a config
        ("learnig_rate: 1", "c.yaml:4: learnig_rate: unknown key; did you mean learning_rate?"),
        ("network_dim: 8", "c.yaml:4: network_dim: unknown key; did you mean lora_rank?"),
        ("max-train-epochs: 8", "c.yaml:4: max-train-epochs: unknown key; did you mean epochs?"),
        ("Epochs: 8", "c.yaml:4: Epochs: unknown key; did you mean epochs?"),
        ("xyzzy: 8", "c.yaml:4: xyzzy: unknown key; remove it"),
        ("epochs: three", 'c.yaml:4: epochs: must be a whole number, not "three"'),
        ("epochs: true", "c.yaml:4: epochs: must be a whole number, not true"),
        ("epochs: 1e3", "c.yaml:4: epochs: must be a whole number, not 1000.0; write 1000"),
        ("epochs: 1.5", "c.yaml:4: epochs: must be a whole number, not 1.5"),
        ("epochs:", "c.yaml:4: epochs: has no value; write one, or remove the line"),
        ("epochs: {a: 1}", "c.yaml:4: epochs: must be a whole number, not a group of keys"),
        ("epochs: 0", "c.yaml:4: epochs: must be 1 or more, not 0"),
        ('learning_rate: "2e-4"', 'c.yaml:4: learning_rate: must be a number, not "2e-4"; remove the quotes'),
        ("learning_rate: 0,1", 'c.yaml:4: learning_rate: must be a number, not "0,1"; write the decimal point as .'),
        ("learning_rate: true", "c.yaml:4: learning_rate: must be a number, not true"),
        ("learning_rate: 2", "c.yaml:4: learning_rate: must be 1.0 or less, not 2"),
        ("learning_rate: 1", "c.yaml:4: learning_rate: 1 is far too high for adamw; 2e-4 is a careful start"),
        ("weight_decay: .nan", "c.yaml:4: weight_decay: must be a number that is not infinite, not nan"),
        ("lora_rank: 129", "c.yaml:4: lora_rank: must be 128 or less, not 129"),
        ("lora_alpha: 0", "c.yaml:4: lora_alpha: must be more than 0.0, not 0"),
        ("flip: yes", 'c.yaml:4: flip: must be true or false, not "yes"; write true'),
        ("flip: no", 'c.yaml:4: flip: must be true or false, not "no"; write false'),
        ("flip: 1", "c.yaml:4: flip: must be true or false, not 1; write true"),
        (
            "lr_schedule: Cosin",
            'c.yaml:4: lr_schedule: must be one of cosine, constant, linear, cosine_restarts, polynomial, not "Cosin"; '
            "did you mean cosine?",
        ),
        ("caption_tokens: 100", "c.yaml:4: caption_tokens: must be one of 75, 150, 225, not 100"),
        (
            "prediction: v_prediction",
            'c.yaml:4: prediction: must be one of epsilon, v, flow, not "v_prediction"; did you mean v?',
        ),
        (
            "resolution: 500",
            "c.yaml:4: resolution: must be multiples of 8 from 64 to 2048 pixels, not 500; the nearest to 500 is 496",
        ),
        (
            "resolution: [512]",
            "c.yaml:4: resolution: must be a whole number or [width, height], multiples of 8 from 64 to 2048 pixels, "
            "not [512]",
        ),
        ("device: gpu", 'c.yaml:4: device: must be auto, cpu, cuda, mps, or one card such as cuda:1, not "gpu"'),
        (
            "targets: [attention, {match: OUT03, rank: 0}]",
            "c.yaml:4: targets: item 2 rank: must be 1 or more, not 0",
        ),
        ("targets: [{rank: 4}]", "c.yaml:4: targets: item 1 has no match; write {match: …}"),
        ("targets: [{match: conv, dim: 4}]", "c.yaml:4: targets: item 1 has an unknown key dim; remove it"),
        ("targets: []", "c.yaml:4: targets: must name at least one group of layers, not []"),
        (
            "sample_prompts: a red house",
            'c.yaml:4: sample_prompts: must be a list, not "a red house"; write it as ["one", "two"]',
        ),
        (
            "sample_prompts:\n - a\n - b: c",
            "c.yaml:6: sample_prompts: item 2 must be a text, not a group of keys; put it in quotes",
        ),
        ("epochs: 2\nepochs: 3", "c.yaml:5: epochs: given twice; it stands on line 4 too; remove one of the two"),
        ("vae: 5", "c.yaml:4: vae: must be a path, not 5; put it in quotes"),
        (
            'vae: "C:\\new"',
            "c.yaml:4: vae: holds a control character, because a backslash in double quotes starts an escape such as "
            "\\n; write the path with / or in single quotes",
        ),
        (
            'vae: "C:\\Users"',
            "c.yaml:4: not valid YAML: a backslash in double quotes starts an escape; "
            "write the path with / or in single quotes",
        ),
        (
            'vae: "D:\\models"',
            "c.yaml:4: not valid YAML: a backslash in double quotes starts an escape; "
            "write the path with / or in single quotes",
        ),
        ("\tepochs: 3", "c.yaml:4: not valid YAML: a tab stands where YAML wants spaces; use spaces"),
        ("epochs: 'x", "c.yaml:4: a quote is not closed; close it"),
        ("epochs", "c.yaml:4: not valid YAML: this line is not key: value; write a colon and a space after the key"),
        ("vae: a: b", "c.yaml:4: not valid YAML: a second ': ' stands in this line; put the value in quotes"),
        (
            "targets: [*attn1*]",
            "c.yaml:4: not valid YAML: a value starts with * or &, which YAML reserves; put it in quotes",
        ),
        ("targets: [conv, ", "c.yaml:4: not valid YAML: a [ or { is not closed; close it"),
        (
            "epochs: !!python/object:os.system x",
            "c.yaml:4: epochs: the tag tag:yaml.org,2002:python/object:os.system is not known here; "
            "put the value in quotes",
        ),
        ("epochs: 1\x00", "c.yaml:4: holds NUL bytes; it looks like UTF-16, or no text at all; save it as UTF-8"),
        (
            "keep_tags: 2",
            "c.yaml:4: keep_tags: has no effect without shuffle_tags or tag_dropout; add shuffle_tags: true, "
            "or leave keep_tags out",
        ),
        (
            "tag_dropout: 0.1\ncaption_dropout: 1",
            "c.yaml:4: tag_dropout: has no effect, because caption_dropout: 1 drops every caption; lower it",
        ),
        (
            "new_token: zyx\ncaption_dropout: 1",
            "c.yaml:4: new_token: is never seen, because caption_dropout: 1 drops every caption; lower it",
        ),
        (
            "text_encoder_lr: 1e-5",
            "c.yaml:4: text_encoder_lr: has no effect without train_text_encoder; "
            "add train_text_encoder: true, or leave text_encoder_lr out",
        ),
        (
            "train_text_encoder: true\ntext_encoder_lr: [0, 0.0]",
            "c.yaml:5: text_encoder_lr: trains no text encoder; leave train_text_encoder out",
        ),
        (
            "train_text_encoder: true\ntext_encoder_lr: [1e-5, 2]",
            "c.yaml:5: text_encoder_lr: item 2 must be less than 1.0, not 2",
        ),
        (
            "sample_negative: ugly\nsample_cfg: 1",
            "c.yaml:4: sample_negative: has no effect with sample_cfg: 1; "
            "raise sample_cfg, or leave sample_negative out",
        ),
        ("vae: base.safetensor", "c.yaml:4: vae: base.safetensor does not exist; did you mean base.safetensors?"),
        (
            f"vae: {MODELS}",
            f"c.yaml:4: vae: {MODELS} is a pickle file, which can run code when it is opened; "
            "convert it to v1-5-pruned.safetensors, or download that version of it",
        ),
        (
            "init_lora: models",
            "c.yaml:4: init_lora: models is a folder; name the file in it, for example models/v1-5-pruned.safetensors",
        ),
        (
            "metadata_path: nix.csv",
            "c.yaml:4: metadata_path: nix.csv does not exist; "
            "put the captions there, or remove the line to use those beside the pictures",
        ),
    ],
)
def test_each_fault_is_one_line_with_its_place_and_mend(line: str, fault: str) -> None:
    assert faults(PATHS + line + "\n") == [fault]


def test_a_rate_of_targets_beside_prodigy_is_told() -> None:
    pytest.importorskip("prodigyopt")
    lines = "targets: [conv, {match: OUT03, lr: 1e-4}]\noptimizer: prodigy\nlearning_rate: 1\n"
    fault = "c.yaml:4: targets: gives a part another rate, and prodigy knows only one for all; leave lr out"
    assert faults(PATHS + lines) == [fault]


def test_all_faults_at_once_in_file_order() -> None:
    text = (
        "output_dir: data/out\nbase_modell: x\nkeep_tags: 2\ntext_encoder_lr: 1e-5\nepochs: many\nepochs: 2\n"
        "train_data_dir: data\nvae: nix.safetensors\nbatch_size: 4\n"
    )
    places = [fault.split("; ")[0] for fault in faults(text, "lora_rank=0", "foo=1", "batch_size=x")]
    assert places == [
        "c.yaml:1: output_dir: lies in train_data_dir, so the previews would be trained on too",
        "c.yaml:2: base_modell: unknown key",  # base_model is not called missing: this is it
        "c.yaml:3: keep_tags: has no effect without shuffle_tags or tag_dropout",
        "c.yaml:4: text_encoder_lr: has no effect without train_text_encoder",
        'c.yaml:5: epochs: must be a whole number, not "many"',
        "c.yaml:6: epochs: given twice",
        "c.yaml:8: vae: nix.safetensors does not exist",
        "lora_rank=0: must be 1 or more, not 0",
        "foo=1: unknown key foo",
        'batch_size=x: must be a whole number, not "x"',
    ]


def test_missing_keys_say_what_they_are() -> None:
    assert faults("epochs: 1\n") == [
        "c.yaml: train_data_dir: missing; add it: the folder of the training pictures, in any layout",
        "c.yaml: base_model: missing; add it: the checkpoint to train on",
        "c.yaml: output_dir: missing; add it: where everything goes; the LoRA is named after this folder",
    ]


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "c.yaml: is empty; copy a template from configs/"),
        (b"# only a comment\n", "c.yaml: is empty; copy a template from configs/"),
        (b"- a\n- b\n", "c.yaml:1: expected keys with values, found a list; write each line as key: value"),
        ("epochs：3\n".encode(), "c.yaml:1: expected keys with values, found one text; write ': ' (the plain colon"),
        (ARTICLE.encode("utf-16"), "c.yaml:1: this is UTF-16 text; save it as UTF-8"),
        (ARTICLE.encode("utf-16-le"), "c.yaml:1: holds NUL bytes; it looks like UTF-16, or no text at all; save it"),
        (ARTICLE.encode("utf-16-be"), "c.yaml:1: holds NUL bytes; it looks like UTF-16, or no text at all; save it"),
        (b"\x93NUMPY\x00\x01", "c.yaml: is not text; name a .yaml file"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\2\0\0\0\2\0", "c.yaml: is not text; name a .yaml file"),
        ((PATHS + "vae: 模型\n").encode("gbk"), "c.yaml:4: not UTF-8 text; it looks like GBK (Chinese)"),
        (b"a: 1\n" * 300_000, "c.yaml: is over 1 MB, so not a config file; --config takes a .yaml file"),
        (b"[" * 1000, "c.yaml: is nested too deeply; write one key: value a line"),
        (b"a: 1\n---\nb: 2\n", "c.yaml:2: not valid YAML: a second document follows after ---; keep one in the file"),
    ],
)
def test_files_that_are_no_config(data: bytes, fault: str) -> None:
    (found,) = faults(data)
    assert found.startswith(fault)


def test_a_file_that_is_not_there() -> None:
    Path("other.yaml").touch()
    with pytest.raises(UserError, match=r"^nix\.yaml: no such file; that folder holds other\.yaml$"):
        load_config(Path("nix.yaml"))
    with pytest.raises(UserError, match=r"^data: is not a file; name a \.yaml file$"):
        load_config(Path("data"))


def test_a_utf8_mark_is_read_over() -> None:
    assert load(b"\xef\xbb\xbf" + ARTICLE.encode()).epochs == 15


def test_aliases_do_not_grow() -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
    told = faults(PATHS + bomb)  # one unknown key each; 9^29 items would not fit a machine
    assert len(told) == 21 and "10 further unknown keys" in told[20]


def test_a_checkpoint_given_as_a_hub_name() -> None:
    """It is no fault of the config: nothing is looked up here. A path of a file, and a spoilt name, are."""
    assert load(PATHS.replace("base.safetensors", "an-owner/a.model")).base_model == Path("an-owner/a.model")
    assert load(PATHS.replace("base.safetensors", "hf:owner/name/x.safetensors")).base_model.name == "x.safetensors"
    (fault,) = faults(PATHS.replace("base.safetensors", "hf:owner"))
    assert "hf:owner names no model on the hub; write hf:owner/name/file.safetensors" in fault
    (fault,) = faults(PATHS.replace("base.safetensors", "hf:owner/name/x.ckpt"))
    assert "is a pickle file" in fault
    (fault,) = faults(PATHS.replace("base.safetensors", "models/x.safetensors"))
    assert fault.endswith("models/x.safetensors does not exist; that folder holds v1-5-pruned.safetensors")


def test_overrides_replace_keys_of_the_file() -> None:
    text = PATHS + "epochs: many\nresolution: 256\n"  # what is replaced is not judged
    config = load(text, "epochs=3", "resolution=[512,768]", "vae=", "sample_prompts=['a: b', *x]".replace("*x", "c"))
    assert (config.epochs, config.size, config.vae) == (3, (512, 768), None)
    assert config.sample_prompts == ("a: b", "c")
    assert load(PATHS, "sample_negative=*: #1").sample_negative == "*: #1"  # the shell has taken the quotes away
    assert load(PATHS, "learning_rate=1e-3", "shuffle_tags=true", "keep_tags=0").learning_rate == 0.001


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("base_model=", "base_model=: has no value; write one, or remove the line"),
        ("epochs=three", 'epochs=three: must be a whole number, not "three"'),
        ("epochs", "epochs: is not key=value; write for example epochs=3"),
        ("epoch=3", "epoch=3: unknown key epoch; did you mean epochs?"),
        ("resolution=[512", "resolution=[512: not valid YAML: a [ or { is not closed; put the value in quotes"),
        (
            "keep_tags=2",
            "keep_tags=2: has no effect without shuffle_tags or tag_dropout; add shuffle_tags: true",
        ),
    ],
)
def test_faults_of_overrides_name_the_override(override: str, fault: str) -> None:
    (found,) = faults(PATHS, override)
    assert found.startswith(fault)
    assert faults(PATHS, "epochs=1", "epochs=2")[0].startswith("epochs=2: epochs is given twice on the command line")


def test_defaults_that_follow_other_keys() -> None:
    config = load(PATHS)
    assert (config.effective_alpha, config.effective_text_encoder_lr) == (16.0, None)
    assert (config.effective_sample_every, config.effective_sample_size) == (100, (512, 512))
    config = load(PATHS + "train_text_encoder: true\nlora_alpha: 8\nsample_every: 0\nsample_size: [64, 128]\n")
    assert (config.effective_alpha, config.effective_text_encoder_lr) == (8.0, 5e-5)
    assert (config.effective_sample_every, config.effective_sample_size) == (0, (64, 128))
    assert config.text_encoder_rates(["one", "two"]) == {"one": 5e-5, "two": 5e-5}
    config = load(PATHS + "train_text_encoder: true\ntext_encoder_lr: [1e-5, 0]\n")
    assert config.text_encoder_rates(["one", "two"]) == {"one": 1e-5}
    with pytest.raises(UserError, match="text_encoder_lr has 2 rates, the base model has 1 text encoder; write one"):
        config.text_encoder_rates(["one"])
    assert load(PATHS, "output_dir=.").name == Path.cwd().name


def test_the_schema_by_itself_is_frozen_and_checks_conflicts() -> None:
    paths = {"train_data_dir": "data", "base_model": "b", "output_dir": "out"}
    config = TrainConfig.model_validate(paths)
    with pytest.raises(ValidationError, match="frozen"):
        config.epochs = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="keep_tags has no effect"):
        TrainConfig.model_validate({**paths, "keep_tags": 1})
    for bad in ("out/a:b", "out/<x>", "/"):
        with pytest.raises(ValidationError, match="named after this folder"):
            TrainConfig.model_validate({**paths, "output_dir": bad})


def test_every_field_is_documented_and_stands_in_one_group() -> None:
    fields = TrainConfig.model_fields
    assert all(field.description for field in fields.values())
    grouped = [key for group in GROUPS for key in group.model_fields]
    assert sorted(grouped) == sorted(fields)


@pytest.mark.parametrize(
    "keys",
    [
        "",
        "learning_rate: 1e-5\nresolution: [64, 2048]\nnoise_offset: 0\nmax_grad_norm: 1e16\nlora_alpha: 3\n",
        'sample_prompts: ["a: \\"b\\" # c", "中文 🏠", "- x", "null", "2e-4", "tab\\t\\u2028\\x7f", "'
        + "w " * 90
        + 'w"]\n',
        "shuffle_tags: true\nkeep_tags: 3\ntrain_text_encoder: true\ntext_encoder_lr: 1e-6\n",
        "targets: [conv, '*attn2*']\nsample_cfg: 1\ndevice: cuda:1\nkeep_last: 2\nsample_negative: ''\n",
        "cache_dir: 'C:\\new'\n",
        "targets: [attention, {match: OUT03, rank: 4, lr: 1e-4}, {match: '*conv*', alpha: 2}]\n",
    ],
)
def test_dump_reads_back_equal_and_has_every_key(keys: str) -> None:
    config = load(PATHS + keys)
    text = dump_config(config)
    assert load(text) == config
    written = {line.removeprefix("# ").partition(":")[0] for line in text.splitlines()}
    assert set(TrainConfig.model_fields) <= written
    plain = yaml.safe_load(text)  # another reader of YAML sees the same texts
    assert plain["sample_prompts"] == list(config.sample_prompts)


@pytest.mark.parametrize(
    ("name", "rank"),
    [
        *(("cyberpunk", 16), ("sd15_style", 16), ("sd15_character", 8), ("low_vram", 8), ("demo", 16)),
        *(("sdxl_style", 32), ("sdxl_character", 16), ("sdxl_low_vram", 16)),
        *(("words", 16), ("words_low_vram", 16)),
    ],
)
def test_templates_load(name: str, rank: int) -> None:
    path = ROOT / "configs" / f"{name}.yaml"
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key in ("train_data_dir", "train_file", "metadata_path", "base_model"):
        if key in given:
            target = Path(given[key])
            target.mkdir(parents=True, exist_ok=True) if not target.suffix else target.touch()
    config = load_config(path)
    assert config.lora_rank == rank
    assert config.model_fields_set - set(given) == (
        {"train_data_dir"} if "train_file" in given else set()
    )  # its folder


def test_broken_files_never_give_a_traceback() -> None:
    """Mutants of a config, seeded: each loads, or is a UserError whose every line names its place."""
    source = (ARTICLE + "flip: true\ntargets: [attention, '*conv*']\nsample_prompts:\n  - a house\n").encode()
    pieces = [
        *(bytes([b]) for b in b"\t\n :#-[]{}'\"\\*&!|>%@`,?0\x00\xff\xc3"),
        b"\xef\xbb\xbf",
        b"<<: ",
        b"\r",
        b"---\n",
    ]
    choose = random.Random(7)
    refused = 0
    for _ in range(300):
        data = bytearray(source)
        for _ in range(choose.randint(1, 3)):
            at = choose.randrange(len(data))
            data[at : at + choose.choice((0, 0, 1, 5))] = choose.choice(pieces)
        try:
            load(bytes(data))
        except UserError as error:
            refused += 1
            assert all(line.startswith("c.yaml:") for line in str(error).splitlines()), str(error)
    assert refused > 100


def test_a_config_error_imports_nothing_heavy() -> None:
    Path("c.yaml").write_text(PATHS + "epochs: x\n")
    code = (
        "import sys\nfrom lora_scripts.cli import main\nassert main(['train', '--config', 'c.yaml']) == 2\n"
        "print(*sorted({'torch', 'numpy', 'PIL', 'transformers', 'diffusers', 'typer', 'rich'} & set(sys.modules)))"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(lora_scripts.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.strip() == ""
    assert done.stderr == 'error: c.yaml:4: epochs: must be a whole number, not "x"\n'


def test_one_value_in_place_of_a_list_has_no_item() -> None:
    wrong = 'must be one word of letters, digits, - and _, as people will type it, not "a b"'
    assert faults(PATHS + 'new_token: "a b"\n') == [f"c.yaml:4: new_token: {wrong}"]
    assert faults(PATHS + 'new_token: [x, "a b"]\n') == [f"c.yaml:4: new_token: item 2 {wrong}"]
    assert faults(PATHS, "new_token=a b") == [f"new_token=a b: item 1 {wrong}"]


@pytest.mark.parametrize("key", ["output_dir", "cache_dir"])
def test_a_folder_that_cannot_be_made_is_told_by_the_config(key: str) -> None:
    """A file of that name, and one above it: `check --config` and `plan` tell it, too, before a model is loaded."""
    lines = [line for line in PATHS.splitlines() if not line.startswith(key)]
    for path in ("base.safetensors", "base.safetensors/a/b"):
        told = faults("\n".join([*lines, f"{key}: {path}"]) + "\n")
        assert told == [f"c.yaml:{len(lines) + 1}: {key}: base.safetensors is no folder; name a folder"]


@pytest.mark.parametrize("key", ["train_data_dir", "base_model", "output_dir", "cache_dir", "vae", "mask_dir"])
def test_a_name_that_no_disk_takes_is_one_line(key: str) -> None:
    ending = ".safetensors" if key in ("base_model", "vae") else ""
    lines = [line for line in PATHS.splitlines() if not line.startswith(key)]
    told = faults("\n".join([*lines, f"{key}: a/{'ä' * 150}{ending}"]) + "\n")
    assert told == [
        f"c.yaml:{len(lines) + 1}: {key}: has a name of {300 + len(ending)} bytes in it, and 255 is the most; "
        "choose a shorter one"
    ]
    told = faults("\n".join([*lines, f"{key}: {'a/' * 2500}b{ending}"]) + "\n")
    assert told == [
        f"c.yaml:{len(lines) + 1}: {key}: is {5001 + len(ending)} bytes long, and 4095 is the most; "
        "choose a shorter one"
    ]


def test_a_lora_whose_files_would_have_too_long_names_is_refused() -> None:
    lines = [line for line in PATHS.splitlines() if not line.startswith("output_dir")]
    (told,) = faults("\n".join([*lines, f"output_dir: {'x' * 201}"]) + "\n")
    assert told == "c.yaml:3: output_dir: the LoRA is named after this folder, so 200 bytes is the most for its name"


def test_many_faults_of_one_kind_are_counted() -> None:
    told = faults(PATHS + "".join(f"zz{number}: 1\n" for number in range(20_000)))
    assert len(told) == 21 and told[0] == "c.yaml:4: zz0: unknown key; remove it"
    assert told[20] == "c.yaml: 19980 further unknown keys; is it the config of another program?"
    told = faults(PATHS + "epochs: 1\n" * 5000)
    assert len(told) == 21 and told[20] == "c.yaml: 4979 further keys are given twice"


def test_folders_inside_the_data_set_are_told_whatever_links_lead_there() -> None:
    Path("link").symlink_to("data", target_is_directory=True)
    Path("data/inside").mkdir()
    keep = [line for line in PATHS.splitlines() if not line.startswith("output_dir")]
    (told,) = faults("\n".join([*keep, "output_dir: link/out"]) + "\n")
    assert told.startswith("c.yaml:3: output_dir: lies in train_data_dir, so the previews would be trained on too; ")
    for other in ("data", "./data/", "link", "data/inside"):
        for key, words in (("val_data_dir", "every picture of it would be"), ("mask_dir", "the masks would be")):
            (told,) = faults(PATHS + f"{key}: {other}\n")
            assert told.startswith(f"c.yaml:4: {key}: lies in train_data_dir, so {words} trained")


def test_chinese_quotes_and_colons_are_told() -> None:
    """An input method writes them by itself; to YAML they are letters, and a path in them is not there."""
    (fault,) = faults(PATHS.replace("data\n", "“data”\n", 1))
    assert (
        fault
        == "c.yaml:1: train_data_dir: stands in Chinese or curly quotes (“ ”), which YAML takes for letters; "
        + ('write "data"')
    )
    (fault,) = faults(PATHS + "sample_prompts: [‘a cat’]\n")
    assert fault.startswith("c.yaml:4: sample_prompts: stands in") and fault.endswith('write "a cat"')
    assert load(PATHS + 'sample_prompts: ["“quoted” cat", “a” and “b” c]\n').sample_prompts[1] == "“a” and “b” c"
    (fault,) = faults(PATHS + "epochs：3\nbatch_size: 2\n")
    assert fault == "c.yaml:4: a Chinese colon (：) stands behind the key; write ': ' (the plain colon and a space)"
    (fault,) = faults(PATHS, "class_prompt=“a cat”")
    assert fault.endswith('write "a cat"')
