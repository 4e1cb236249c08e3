"""The command line: what reaches the commands, exit codes, and that nothing heavy is imported before it is needed."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

import lora_scripts
from lora_scripts.cli import COMMANDS, _not_typed, _parse, main, new, options, train
from lora_scripts.cli.examples import examples_of
from lora_scripts.errors import Terminated, UserError, UserErrors
from lora_scripts.generate.prompt import GenerateOptions
from lora_scripts.grid import sources
from lora_scripts.run.first_config import NewConfig

ROOT = Path(__file__).resolve().parents[1]
SOURCE = Path(lora_scripts.__file__).parents[1]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("base.safetensors").touch()
    Path("c.yaml").write_text("train_data_dir: data\nbase_model: base.safetensors\noutput_dir: out\n")
    return tmp_path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands in for what takes minutes, training and drawing: it records what it was asked for."""
    asked = SimpleNamespace(calls=[], error=None)
    lora, report = Path("out/out.safetensors"), Path("out/report.html")
    trained = SimpleNamespace(
        name="out", lora=lora, words={}, report=report, warning="", trigger="", strength=1.0, look_at=""
    )
    done = SimpleNamespace(trained=trained, report=report, command="lora-scripts generate", pictures=())

    def record(result: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            kwargs.pop("sink", None)
            asked.calls.append((args, kwargs))
            if asked.error is not None:
                raise asked.error
            return result

        return call

    monkeypatch.setattr("lora_scripts.run.train", record(trained))
    monkeypatch.setattr("lora_scripts.demo.main.run_demo", record(done))
    monkeypatch.setattr("lora_scripts.generate.command.generate_pictures", record(done))
    return asked


def python(*args: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, *args]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", cwd=cwd, env={**clean, **env})


def test_commands_that_are_told_can_be_typed_where_a_folder_has_a_blank() -> None:
    trained: Any = SimpleNamespace(base="my base", lora=Path("out/my lora"), report=Path("r.html"), warning="")
    written = NewConfig(Path("my configs/x.yaml"), 3, "a base", 10, ())
    for line in (train.words(trained)[1], *new.words(written)[1:]):
        words = shlex.split(line.split(": ", 1)[1])
        assert {"out/my lora:1", "my configs/x.yaml"} & set(words), line


@pytest.mark.parametrize(
    "argv",
    [
        ["--config", "c.yaml", "--resume", "epochs=3", "flip=true"],
        ["epochs=3", "--config", "c.yaml", "flip=true", "--resume"],
        ["--config=c.yaml", "epochs=3", "--resume", "flip=true"],
    ],
)
def test_train_hands_over_the_config_with_its_overrides(argv: list[str], run: SimpleNamespace) -> None:
    assert main(["train", *argv]) == 0
    ((config,), options) = run.calls[0]
    again = ["--config", "c.yaml", "epochs=3", "flip=true"]
    assert (config.epochs, config.flip, options) == (3, True, {"resume": True, "check_with": again})


def test_generate_hands_over_its_options(base: Path, run: SimpleNamespace) -> None:
    Path("base.safetensors").write_bytes(base.read_bytes())
    assert main(["generate", "--base", "base.safetensors", "--prompt", "a house"]) == 0
    plain = GenerateOptions(base=Path("base.safetensors"), prompt="a house")
    assert run.calls[0][0][0] == plain
    argv = "--negative-prompt ugly --seed 7 --steps 5 --cfg 3.5 --size 512x768 --lora-dir l --output x/y.png"
    more = "--vae base.safetensors --count 3 --device cuda:1 --precision bf16"
    Path("other.safetensors").write_bytes(base.read_bytes())
    assert main(["generate", "--base", "other.safetensors", "--prompt", "b", *argv.split(), *more.split()]) == 0
    assert run.calls[1][0][0] == GenerateOptions(
        base=Path("other.safetensors"),
        prompt="b",
        negative_prompt="ugly",
        seed=7,
        steps=5,
        cfg=3.5,
        size=(512, 768),
        lora_dir=Path("l"),
        output=Path("x/y.png"),
        vae=Path("base.safetensors"),
        count=3,
        device="cuda:1",
        precision="bf16",
    )


def test_demo_hands_over_its_folder(run: SimpleNamespace) -> None:
    assert main(["demo"]) == main(["demo", "--output", "elsewhere"]) == 0
    assert [args for args, _ in run.calls] == [(Path("output/demo"),), (Path("elsewhere"),)]


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        ([], "no command given; begin with the lines above"),
        (
            ["train", "--config", "“a.yaml”"],
            "“a.yaml” begins with a Chinese or curly quote, which the shell takes for a",
        ),
        (
            ["generate", "--prompt", "“a", "house”"],
            "“a begins with a Chinese or curly quote, which the shell takes for a ",
        ),
        (["train", "—config", "a.yaml"], "—config begins with a long dash; write --config"),
        (["trian"], "there is no command trian; did you mean train?"),
        (["train"], "the following arguments are required: --config; see lora-scripts train --help"),
        (["train", "--config", "c.yaml", "--epochs", "3"], "unknown option --epochs; a key of the config is written "),
        (["train", "--config", "c.yaml", "--conf=3"], "unknown option --conf=3; did you mean --config?"),
        (["train", "--config", "c.yaml", "3"], "3: is not key=value; write for example epochs=3"),
        (["train", "--config", "c.yaml", "--resume", "x"], "x: is not key=value; write for example epochs=3"),
        (["train", "--config", "c.yaml", "epochs=x"], 'epochs=x: must be a whole number, not "x"'),
        (["x"], "there is no command x; lora-scripts --help names them all"),
        (["train", "--config", "nix.yaml"], "nix.yaml: no such file; that folder holds c.yaml"),
        (["demo", "x"], "argument WORLD: invalid choice: 'x'"),
        (["demo", "words", "x=1"], "unknown option x=1; see lora-scripts demo --help"),
    ],
)
def test_a_persons_mistake_is_one_line_and_exit_code_2(
    argv: list[str], error: str, run: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {error}")
    assert not run.calls


def test_a_text_may_begin_with_a_quotation_or_a_dash(base: Path, run: SimpleNamespace) -> None:
    for prompt in ("“结节”是什么？", "“甲”和“乙”", "– a house", "“a” house"):
        assert main(["generate", "--base", str(base), "--prompt", prompt]) == 0
        assert run.calls[-1][0][0].prompt == prompt


@pytest.mark.parametrize("command", ["train", "plan"])
def test_faults_of_the_config_and_of_captions_are_told_together(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They took two rounds. Where the key of the captions is wrong itself, nothing is said of others."""
    Image.new("RGB", (64, 64)).save("data/a.png")
    Path("data/metadata.csv").write_text("filename,prompt\na.png,a cat, red\n")
    words = [command, "--config", "c.yaml", "epoch=3", "lora_rank=many"]
    assert main(words) == 2
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in told] == ["error"] * 3
    assert "did you mean epochs?" in told[0] and "lora_rank" in told[1]
    assert told[2].startswith("error: data/metadata.csv:2: too many fields (3 instead of 2)")
    assert main([*words, "metadata_path=data/none.csv"]) == 2
    assert "too many fields" not in capsys.readouterr().err
    code = "import sys; from lora_scripts.cli import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True)


@pytest.mark.parametrize("words", ["grid --base b", "card l.safetensors", "demo", "demo words"])
def test_no_folder_is_made_with_the_name_of_a_file(
    words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("there").touch()
    before = {*folder.iterdir()}
    for name in ("page.HTML", "there"):
        assert main([*words.split(), "--output", name]) == 2
        assert capsys.readouterr().err.startswith("error: argument --output: must be the name of a folder, not ")
    assert {*folder.iterdir()} == before
    Path("old.png").mkdir()
    assert options.folder("old.png") == Path("old.png") and options.folder("neon-1.5") == Path("neon-1.5")


@pytest.mark.parametrize(
    ("option", "error"),
    [
        ("--size 33", "argument --size: must be multiples of 8 from 64 to 2048 pixels"),
        ("--size 512:768", "argument --size: must be like 512 or 512x768"),
        ("--steps 0", "argument --steps: must be from 1 to 1000, not '0'"),
        ("--seed 1.5", "argument --seed: must be a whole number, not '1.5'"),
        ("--cfg nan", "argument --cfg: must be from 0 to 100, not 'nan'"),
        ("--device gpu", "argument --device: must be auto, cpu, cuda, mps, or one card such as cuda:1, not 'gpu'"),
        ("--precision fp8", "argument --precision: invalid choice: 'fp8'"),
        ("--output x.jpg", "argument --output: must be a .png file, not 'x.jpg'"),
        ("--vae nix.safetensors", "--vae: nix.safetensors does not exist; that folder holds base.safetensors"),
        ("--base x.ckpt", "--base: x.ckpt is a pickle file"),
        ("--lora x", "unknown option --lora; did you mean --lora-dir?"),
        ("--zzz x", "unknown option --zzz; see lora-scripts generate --help"),
        (
            "--szie 64 --cuont 2",
            "unknown option --szie; did you mean --size?\nerror: unknown option --cuont; did you mean ",
        ),
    ],
)
def test_options_of_generate_are_checked(
    option: str, error: str, run: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "--base", "base.safetensors", "--prompt", "p", *option.split()]) == 2
    assert capsys.readouterr().err.startswith(f"error: {error}")
    assert not run.calls


def test_errors_of_a_run_become_lines_and_exit_codes(run: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    cases = [
        (UserErrors([UserError("one", file="a", line=1), UserError("two")]), 2, "error: a:1: one\nerror: two\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
        (Terminated(), 143, "stopped\n"),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            2,
            "error: the package torch is not installed; run: python3 start.py setup\n",
        ),
    ]
    for run.error, code, text in cases:
        assert main(["train", "--config", "c.yaml"]) == code
        assert capsys.readouterr().err == text
    run.error = ZeroDivisionError()  # a bug of ours keeps its traceback
    with pytest.raises(ZeroDivisionError):
        main(["train", "--config", "c.yaml"])


@pytest.mark.parametrize("command", [[], ["train"], ["generate"], ["demo"]])
def test_help_has_one_line_an_option(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    assert main([*command, "--help"]) == 0
    text = capsys.readouterr().out
    options = text.partition("options:\n")[2].partition("\n\n")[0].splitlines()
    assert options and all(line.startswith("  -") and len(line) <= 110 for line in options)
    assert all(len(line.split()) > 2 for line in options)


def test_help_is_as_wide_as_the_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for width in (60, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        assert main(["generate", "--help"]) == 0
        lines = capsys.readouterr().out.partition("examples:")[0].splitlines()
        assert max(map(len, lines)) <= min(width, 110) and max(map(len, lines)) > min(width, 110) - 15


@pytest.mark.parametrize("command", COMMANDS)
def test_two_examples_of_each_command_are_commands(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    examples = examples_of(command)
    assert len(examples) == 2
    for purpose, typed in examples:
        options = _parse(shlex.split(typed)[1:])
        assert options.name == command and purpose
    assert main([command, "--help"]) == 0
    assert all(f"    {typed}\n" in capsys.readouterr().out for _, typed in examples[:1])


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"lora-scripts {lora_scripts.__version__}"


def test_help_imports_nothing_heavy() -> None:
    code = "import sys\nfrom lora_scripts.cli import main\nmain(['train', '--help'])\nprint(*sys.modules, sep='\\n')"
    done = python("-c", code, PYTHONPATH=str(SOURCE))
    loaded = set(done.stdout.splitlines())
    assert "argparse" in loaded
    assert not loaded & {"torch", "numpy", "pydantic", "yaml", "typer", "rich", "PIL", "lora_scripts.config.schema"}


def test_train_py_works_from_a_checkout_without_an_install(folder: Path) -> None:
    done = python(str(ROOT / "train.py"), "--config", "c.yaml", "epochs=three", cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == 'error: epochs=three: must be a whole number, not "three"\n'


def test_a_console_that_lacks_letters_gets_no_traceback() -> None:
    done = python(
        "-m", "lora_scripts", "train", "--config", "模型.yaml", PYTHONPATH=str(SOURCE), PYTHONIOENCODING="ascii"
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: \\u6a21\\u578b.yaml: no such file")


@pytest.mark.parametrize(
    "words",
    [
        ["check", "~/x"],
        ["check", "data", "--base", "~/x"],
        ["label", "--input", "data", "--output", "~/x.csv"],
        ["label", "--input", "data", "--repair", "--output", "~/x.csv"],
        ["label", "--input", "data", "--blacklist", "~/x.txt"],
        ["new", "x", "--data", "data"],
    ],
    ids=" ".join,
)
def test_nobodys_home(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As in a container whose user has no name, or a service."""
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # so it leaves a ~ that it does not know
    assert main(words) == 2
    told = capsys.readouterr().err
    assert "the home folder is not known; write the whole path" in told or words[0] == "new"
    with pytest.raises(UserError, match="the home folder is not known"):
        sources._checkpoints("~/x")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a file has no such name")
def test_half_characters_come_to_no_tokenizer(folder: Path) -> None:
    """A terminal of another encoding, a file that has such a name, and what YAML may write."""
    prompt = b"caf\xe9"
    asked = [sys.executable, "-m", "lora_scripts", "generate", "--base", "x.safetensors", "--prompt", prompt]
    done = subprocess.run(
        asked, capture_output=True, cwd=folder, env={**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONUTF8": "1"}
    )
    told = "error: caf\ufffd is not in UTF-8; write it in a terminal that is set to UTF-8\n"
    assert (done.returncode, done.stderr.decode()) == (2, told)
    (folder / os.fsdecode(prompt)).write_text("")
    named = str(folder / os.fsdecode(prompt))
    assert [fault.hint for word in (named, f"base_model={named}") for fault in _not_typed([word])] == 2 * ["rename it"]
    with (folder / "c.yaml").open("a") as file:
        file.write('sample_prompts: ["a \\ud800 cat"]\n')
    done = python(str(ROOT / "train.py"), "--config", "c.yaml", cwd=folder)
    assert "sample_prompts: half of a character (a lone surrogate); write the whole" in done.stderr


def test_faults_of_base_vae_init_lora_and_captions_come_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.safetensors"
    page.write_text("<!DOCTYPE html><html></html>")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "metadata.csv").write_text("filename,prompt\na.png,a cat, red\n")
    lines = {"train_data_dir": tmp_path / "pictures", "output_dir": tmp_path / "out"}
    config = tmp_path / "c.yaml"
    config.write_text(
        "".join(f"{k}: '{v}'\n" for k, v in {**lines, "base_model": page, "vae": page, "init_lora": page}.items())
    )
    assert main(["train", "--config", str(config)]) == 2
    told = capsys.readouterr().err
    assert told.count("this is a web page, not a model") == 3  # base_model, vae, init_lora
    assert "no images (jpg, png, webp, avif, bmp) found" in told and len(told.splitlines()) == 4


def test_a_rate_that_destroys_is_refused_unless_one_is_sure(
    run: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--config", "c.yaml", "learning_rate=0.2"]) == 2 and not run.calls
    told = capsys.readouterr().err
    assert "c.yaml: learning_rate 0.2 destroys a LoRA with adamw" in told and "write 2e-4; or add --sure" in told
    assert main(["train", "--config", "c.yaml", "learning_rate=0.2", "--sure"]) == 0 and len(run.calls) == 1
    assert main(["train", "--config", "c.yaml", "learning_rate=0.02"]) == 0 and len(run.calls) == 2
