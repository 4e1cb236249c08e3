"""`lora-scripts plan`: its figures against a real run, its proposals, and that it leaves no trace."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import lora_scripts
import tiny
from lora_scripts.cli import main
from lora_scripts.cli import plan as cli
from lora_scripts.compute import meter
from lora_scripts.config.load import load_config
from lora_scripts.config.schema import TrainConfig
from lora_scripts.errors import UserError
from lora_scripts.events import Event, Note, ignore
from lora_scripts.plan import command as planning
from lora_scripts.plan import forecast, text_plan
from lora_scripts.plan.command import Plan, PlanOptions, plan, stage_of, to_type
from lora_scripts.plan.forecast import DRIFT, batch_seconds, ladder
from lora_scripts.plan.measured import PHASES, Kind, Measured, Views
from lora_scripts.plan.rehearsal import Rehearsal
from lora_scripts.plan.stage import Stage
from lora_scripts.plan.text_worker import TextMeasured
from lora_scripts.plan.worker import rehearse
from lora_scripts.run import story
from lora_scripts.run.captions_first import captions_first
from lora_scripts.run.preflight import Split, preflight
from lora_scripts.train.progress import Smoothed
from lora_scripts.units import duration, size, typed

SOURCE = Path(lora_scripts.__file__).parents[1]


@pytest.fixture(scope="module")
def config(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight square pictures, the last like the first but one, and two wide ones."""
    folder = tmp_path_factory.mktemp("plan")
    tiny.write_pictures(folder / "data", count=8)
    rows = (folder / "data" / "metadata.csv").read_text("utf-8")
    for name, colour in (("w1.png", "red"), ("w2.png", "blue")):
        Image.new("RGB", (128, 64), colour).save(folder / "data" / name)
        rows += f"{name},wide\n"
    (folder / "data" / "metadata.csv").write_text(rows, "utf-8")
    keys = {"resolution": 128, "batch_size": 8, "save_steps": 2, "keep_last": 1, "sample_every": 3}
    keys |= {"targets": tiny.SOME}
    return tiny.write_config(folder, base_model=base, output_dir=folder / "mylora", **keys)


@pytest.fixture(scope="module")
def made(config: Path) -> Plan:
    """What is planned; everything around it stays as it is."""
    before = tree(config.parent)
    made = plan(PlanOptions(load_config(config), config, [], profile=True))
    assert tree(config.parent) == before
    return made


def test_it_tells_where_the_time_of_a_step_goes(made: Plan) -> None:
    told = made.measured.profile
    assert told is not None and planning.figures(made)["profile"] == told
    assert told["operations"] > 500 and told["arithmetic"] > 1e6 and told["seconds"] > 0
    assert {"convolutions", "matrix products", "optimizer"} <= set(told["kinds"])
    assert 0 <= told["waiting"] < told["seconds"]
    assert any(line.startswith("it goes to") for line in cli.words(made))


def tree(folder: Path) -> dict[Path, tuple[int, int]]:
    return {p: (p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.rglob("*"))}


def size_of(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def test_what_it_says_is_what_the_run_does(config: Path, made: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    print("\n".join(cli.words(made)))
    table = " ".join(capsys.readouterr().out.split())
    assert main(["train", "--config", str(config)]) == 0
    told, out = " ".join(capsys.readouterr().out.split()), config.parent / "mylora"
    # 8 and 2 pictures in batches of 8: 2 batches, twice.
    for words in ("buckets 128x128: 8, 176x80: 2 ", "= 2 batches, x 2 epochs = 4 steps ", f"output {out / 'mylora'}"):
        assert words in table and words in told
    assert "step 4/4" in told
    assert made.measured.steps == 4
    assert made.measured.kinds == [Kind(128, 128, 8, 1), Kind(176, 80, 2, 1)]
    disk = made.disk
    encoded = sum(p.stat().st_size for p in (out / "cache").rglob("*.safetensors"))
    remembered = forecast.REMEMBERED * 10
    assert disk["cache"] - remembered == pytest.approx(encoded, rel=0.02)
    assert size_of(out / "cache") - encoded <= 2 * remembered
    assert disk["LoRA files"] == pytest.approx(sum(p.stat().st_size for p in out.glob("*.safetensors")), rel=0.01)
    assert disk["resume state"] == pytest.approx(size_of(out / "state"), rel=0.02)
    assert disk["samples"] == pytest.approx(size_of(out / "samples"), rel=0.5)
    assert sum(disk.values()) == pytest.approx(size_of(out), rel=0.15)
    # Now there is a run, which is no fault of a plan, and a fault of a training.
    folder = preflight(load_config(config), resume=None).folder
    told = planning.note_of(folder)
    assert "has a finished run (4 steps): " in told and "add --resume" not in told and "init_lora=" in told
    folder.report.rename(out / "page.html")
    assert "has a run at step 4: add --resume to go on" in planning.note_of(folder)
    assert main(["train", "--config", str(config)]) == 2


class Reader:
    """A text encoder that reads nothing."""

    def fingerprint(self) -> str:
        return "reader"

    def encode(self, captions: Sequence[str], shown: Sequence[torch.Tensor] = ()) -> dict[str, torch.Tensor]:
        return {"states": torch.zeros(len(captions), 2, 3)}

    def remember(self, texts: Sequence[str], shown: Sequence[torch.Tensor] = ()) -> None:
        pass

    def excess(self, text: str) -> int:
        return 0

    def is_short(self, text: str) -> bool:
        return False


def test_captions_are_measured_whatever_the_cache_holds(config: Path, tmp_path: Path) -> None:
    """A family with a large text encoder has them in `cache_dir` after its first run, or after somebody else's."""
    asked = load_config(config, [f"cache_dir={tmp_path / 'cache'}"])
    samples = preflight(asked, resume=None).samples
    captions_first(asked, tmp_path, samples, ignore)(Reader())
    filled = tree(tmp_path / "cache")
    rehearsal = Rehearsal(asked, samples, tmp_path, 0, lambda measured: None)
    rehearsal._first()(Reader())
    assert rehearsal.measured.sizes["caption"] > 0 and tree(tmp_path / "cache") == filled


def test_the_answer_for_people_and_for_scripts(made: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    figures = json.loads(json.dumps(planning.figures(made)))
    assert figures["fits"] == "yes" and figures["steps"] == 4 and figures["proposal"] is None
    seconds = figures["seconds"]
    assert seconds["total"] == pytest.approx(sum(v for k, v in seconds.items() if k != "total"))
    assert all(seconds[part] > 0 for part in ("start", "encoding", "steps", "previews", "saves", "proof and report"))
    memory = figures["memory"]
    assert list(memory["phases"]) == [phase for phase in PHASES if phase != "measure"]  # val_split: 0
    assert memory["peak"] == max(memory["phases"].values()) < memory["limit"]
    print("\n".join(cli.words(made)))
    *_, verdict = capsys.readouterr().out.splitlines()
    assert verdict == f"fits: peak {size(memory['peak'])} of {size(memory['limit'])} ({PHASES[made.measured.worst]})"
    print("\n".join(cli.words(dataclasses.replace(made, free_disk=1000))))
    assert "not enough disk space: needs " in capsys.readouterr().out


@pytest.mark.slow  # it rehearses one batch size after the other
def test_without_enough_memory_it_names_what_to_type(
    config: Path, made: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two thirds of what a batch of 8 takes is there: a smaller one fits, and a rehearsal of it says so."""
    options = PlanOptions(load_config(config), config, [])
    m, stage = made.measured, stage_of(preflight(options.config, resume=None).samples, tmp_path, 0, ignore)
    assert m.peak - m.resident > 100 << 20
    limit = round(m.resident + (m.peak - m.resident) * 2 / 3) + DRIFT
    proposal = planning.propose(options, stage, m, limit, 0.0)
    assert proposal is not None and proposal.measured is not None
    assert proposal.measured.peak < forecast.target(m, limit) < m.peak
    batch, accumulation = proposal.changes["batch_size"], proposal.changes["gradient_accumulation"]
    assert batch < 8 and batch * accumulation == 8
    less = m.peak - 1
    print("\n".join(cli.words(Plan(m, less, planning.verdict(m, less), proposal=proposal))))
    verdict = capsys.readouterr().out.splitlines()[-1]
    head = f"does not fit: peak {size(m.peak)} ({PHASES[m.worst]}), of {size(less)}; rehearsed with peak "
    assert verdict.startswith(head)
    words = shlex.split(verdict.partition(" type: ")[2])
    assert words[-2:] == [f"batch_size={batch}", f"gradient_accumulation={accumulation}"]
    changed = load_config(Path(words[words.index("--config") + 1]), words[-2:])
    assert changed.batch_size * changed.gradient_accumulation == 8
    # Nothing helps where the program alone does not fit.
    assert planning.propose(options, stage, m, 1 << 20, 0.0) is None
    assert list(tmp_path.iterdir()) == []


def proposal_of(config: TrainConfig, *phases: str, images: int = 100) -> list[list[str]]:
    return [planning.as_words(changes) for changes in ladder(config, set(phases), images)]


def config_of(**keys: Any) -> TrainConfig:
    return TrainConfig(train_data_dir=Path("d"), base_model=Path("b"), output_dir=Path("o"), **keys)


def test_the_order_of_what_to_change() -> None:
    """The article's: batch size, resolution, rank; gradient accumulation makes up. Then what costs time or rounds."""
    again = "gradient_checkpointing=true"
    assert proposal_of(config_of(batch_size=4, gradient_accumulation=3, resolution=640), "step") == [
        ["batch_size=2", "gradient_accumulation=6"],
        ["batch_size=1", "gradient_accumulation=12"],
        ["batch_size=1", "gradient_accumulation=12", "resolution=512"],
        ["batch_size=1", "gradient_accumulation=12", "resolution=448"],
        ["batch_size=1", "gradient_accumulation=12", "resolution=384"],
        ["batch_size=1", "gradient_accumulation=12", "resolution=384", "lora_rank=8"],
        ["batch_size=1", "gradient_accumulation=12", "resolution=384", "lora_rank=4"],
        [*(small := ["batch_size=1", "gradient_accumulation=12", "resolution=384", "lora_rank=4"]), again],
        [*small, again, "base_precision=int8"],
    ]
    assert proposal_of(config_of(), "load") == [["base_precision=int8"]]
    assert proposal_of(config_of(adapter="dora"), "load") == proposal_of(config_of(base_precision="fp8"), "load") == []
    # 9 is 3 x 3, so 4 would change the effective batch; a picture is encoded, and drawn, by itself.
    assert proposal_of(config_of(batch_size=9, lora_rank=4), "step")[:2] == [
        ["batch_size=3", "gradient_accumulation=3"],
        ["batch_size=1", "gradient_accumulation=9"],
    ]
    assert proposal_of(config_of(batch_size=8), "encode")[0] == ["resolution=448"]
    assert proposal_of(config_of(batch_size=8), "step", images=3)[0] == ["batch_size=2", "gradient_accumulation=4"]
    assert proposal_of(config_of(lora_alpha=8), "save")[:2] == [
        ["lora_rank=8", "lora_alpha=4"],
        ["lora_rank=4", "lora_alpha=2"],
    ]
    assert proposal_of(config_of(init_lora=Path("l")), "save") == [["base_precision=int8"]]
    wide = config_of(resolution=(768, 512), sample_size=1024, lora_rank=2)
    assert proposal_of(wide, "preview")[:4] == [
        ["sample_size=[768,512]"],
        ["sample_size=[576,384]", "resolution=[576,384]"],
        ["sample_size=[512,320]", "resolution=[512,320]"],
        ["sample_size=[448,256]", "resolution=[448,256]"],
    ]


@pytest.mark.parametrize("phase", ["encode", "step", "preview", "save"])
def test_every_proposal_is_a_config_with_the_same_effective_batch(
    phase: str, base: Path, data: Path, tmp_path: Path
) -> None:
    keys = {"resolution": "[768, 512]", "batch_size": 6, "sample_size": 1024, "lora_alpha": 1}
    file = tiny.write_config(tmp_path, base_model=base, train_data_dir=data, lora_rank=16, **keys)
    asked = load_config(file)
    found = proposal_of(asked, phase)
    assert found
    for words in found:
        config = load_config(file, words)
        assert config.batch_size * config.gradient_accumulation == 6
        assert config.effective_alpha / config.lora_rank == pytest.approx(1 / 16)


@pytest.mark.parametrize(
    ("batch", "accumulation", "wanted"),
    [(5, 1, [(1, 5)]), (6, 2, [(3, 4), (1, 12)]), (64, 32, [(32, 64), (16, 128), (8, 256), (4, 512), (2, 1024)])],
)
def test_smaller_batches_of_records_are_made_up_for_exactly(
    batch: int, accumulation: int, wanted: list[tuple[int, int]]
) -> None:
    config = config_of(batch_size=batch, gradient_accumulation=accumulation, max_length=600)
    rungs = [forecast.changed_config(config, changes) for changes in text_plan._ladder(config)]
    sizes = [(rung.batch_size, rung.gradient_accumulation) for rung in rungs]
    assert sizes[: len(wanted)] == wanted and set(sizes[len(wanted) :]) == {wanted[-1]}
    assert rungs[-1].gradient_checkpointing and rungs[-1].base_precision == "int8" and rungs[-1].max_length == 300


def test_a_rung_that_cannot_help_is_not_rehearsed() -> None:
    config = config_of(batch_size=8, gradient_accumulation=1)
    m = Measured(kinds=[Kind(512, 512, 8, 1)], peaks={"load": 2, "encode": 30, "step": 90, "preview": 30}, resident=10)
    assert not forecast.promising(config, {"batch_size": 4}, m, 40)  # 10 + 80 / 2 = 50
    assert forecast.promising(config, {"batch_size": 2}, m, 40)  # 10 + 80 / 4 = 30
    assert not forecast.promising(config, {"batch_size": 2}, m, 25)  # a picture alone takes 30 while it is encoded
    m.short, m.at = True, "step"  # how much it needs is then not known
    assert forecast.promising(config, {"batch_size": 4}, m, 40)
    # Of a base in bf16 8 bits leave half.
    m.peaks, m.precision = {"load": 70}, "bf16"
    assert forecast.promising(config, {"base_precision": "int8"}, m, 40)
    assert not forecast.promising(config, {"base_precision": "int8"}, m, 38)


def test_time_goes_by_the_line_through_two_batches() -> None:
    m = Measured(
        kinds=[Kind(64, 64, 4, 3), Kind(64, 32, 1, 2)], steps=10, prompts=2, captions=7, shown=6, drawn=3, previews=3
    )
    m.measuring = 0.2
    m.views = [Views(64, 64, 12, 24), Views(64, 32, 2, 2)]
    m.seconds = {"largest": 4.0, "smallest": 0.5, "picture": 1.0, "view": 0.5, "caption": 0.1}
    m.seconds |= {"preview": 3.0, "save": 0.25, "load": 2.0, "class picture": 2.5}
    assert batch_seconds(m)(64 * 64 * 2) == pytest.approx(0.5 + 3.5 * (8192 - 2048) / (16384 - 2048))
    config = config_of(epochs=2, save_steps=4, sample_every=3, keep_last=1)
    assert forecast.times(config, m, 6.0) == pytest.approx(
        {
            "start": 6.0,
            "class pictures": 3 * 2.5,
            "encoding": 14 * 1.0 + 12 * 0.5 + 0.7,
            "steps": 2 * (3 * 4.0 + 2 * 0.5),
            "held-out loss": 26.0 / 4,
            "previews": 3 * 2 * 3.0,  # after steps 3, 6 and 9
            "saves": 3 * 0.25,  # after 4, 8 and 10
            "proof and report": 6 * 3.0 + 2.0,
        }
    )
    m.sizes = {"latents": 1000, "caption": 10, "lora": 500, "state": 900, "picture": 100, "scalars": 3}
    found = forecast.disk(config, m)
    assert found["cache"] == 24 * 1000 + 2 * 500 + 7 * 10 + forecast.REMEMBERED * 14
    assert (found["LoRA files"], found["samples"], found["logs"]) == (2 * 500, 8 * 100, 10 * 3 + 6 * 100)
    assert forecast.disk(config_of(save_steps=4), m)["LoRA files"] == 3 * 500
    # Steps 4, 8 and 10 save: the third state comes while the first two are there; one is counted among what stays.
    assert forecast.in_passing(config, 10, 900, 500) == 2 * 900 + 500
    assert forecast.in_passing(config_of(save_steps=9), 10, 900, 500) == 900 + 500
    assert forecast.in_passing(config_of(save_steps=10), 10, 900, 500) == 500
    m_texts = TextMeasured(at="done", steps=10, lora=500, state=900)
    there = text_plan.TextPlan(m_texts, 0, "unknown", {}, {"LoRAs": 1500, "resume state": 900}, 2300, 4700)
    assert not any("disk space" in line for line in cli.words(there))
    told = cli.words(dataclasses.replace(there, free_disk=4699))[-1]
    assert told.startswith("not enough disk space: needs 5 kB, 5 kB free; lower it with keep_last=1")
    assert [duration(s) for s in (0.04, 45, 120, 200, 7801)] == ["0.0 s", "45 s", "2 min", "3 min 20 s", "2 h 10 min"]


def test_ctrl_c_leaves_nothing(config: Path, tmp_path: Path) -> None:
    """SIGINT while it rehearses."""
    command = [sys.executable, "-m", "lora_scripts", "plan", "--config", str(config), f"output_dir={tmp_path / 'x'}"]
    env = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell starts background jobs with Ctrl-C switched off, and tests may be run from one
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout and process.stdout.readline().startswith("rehearsing ")
    until = time.monotonic() + 60
    while not list(tmp_path.glob(".lora-scripts-plan-*/1/*")) and time.monotonic() < until:
        time.sleep(0.02)
    assert list(tmp_path.iterdir())
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors, list(tmp_path.iterdir())) == (130, "stopped\n", [])


DYING = """
import os, sys
if "lora_scripts.plan.worker" in sys.orig_argv:
    os.kill(os.getpid(), 9)
"""


def test_a_rehearsal_that_the_system_ends_is_an_answer(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Linux does when memory runs out."""
    (tmp_path / "sitecustomize.py").write_text(DYING)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["plan", "--config", str(config), f"output_dir={tmp_path / 'new'}"]) == 0
    told = capsys.readouterr().out.strip().splitlines()[-1]
    tried = "no smaller batch size, resolution or rank helps, nor a base in 8 bits"
    head = f"does not fit: memory ran out in loading; {tried}"
    assert told == f"{head}: plan --cards counts what else there is"
    assert main(["plan", "--config", str(config), f"output_dir={tmp_path / 'new'}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fits"] == "no"


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import os; os.kill(os.getpid(), 9)", None),
        (
            "raise SystemExit('no module of this name')",
            "code 1 before it began: no module of this name; mend",
        ),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_process_that_ends_before_it_takes_its_task_is_told(
    source: str, told: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task of many pictures is more than a pipe holds, so that writing it fails."""
    (tmp_path / "ending.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    stage = Stage("ending", Measured.read, PHASES, tmp_path, 0, ignore, also={"samples": "x" * (1 << 20)})
    if told is None:
        assert stage.rehearse(config_of(), "a run").short
        return
    with pytest.raises(UserError, match=told):
        stage.rehearse(config_of(), "a run")


def test_memory_that_runs_out_on_the_way_is_an_answer(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch refuses more memory than there is, in the middle of a step: what was measured before it stands."""
    steps = 0

    smooth = story.Smoothed.add

    def greedy(smoothed: Smoothed, loss: float) -> None:
        nonlocal steps
        steps += 1
        if steps == 1:  # where a step is slow, it may be the only one of its kind
            torch.empty(1 << 60, dtype=torch.uint8)
        smooth(smoothed, loss)

    monkeypatch.setattr(story.Smoothed, "add", greedy)
    keys = [f"output_dir={tmp_path / 'new'}", "class_images=3", "class_prompt=a thing"]
    loaded, lines = load_config(config, keys), list[str]()
    samples = preflight(loaded, resume=None).samples
    parted = (samples.trained, samples.held_out)
    values = [[sample.row() for sample in some] for some in parted]
    asked, scratch = loaded.model_dump(mode="json", exclude_unset=True), tmp_path / "scratch"
    scratch.mkdir()
    task = {"config": asked, "samples": values, "scratch": str(scratch), "memory": 0, "profile": False}
    rehearse(task, lambda message: lines.append(json.dumps(message)))
    last = Measured.read(json.loads(lines[-1]))
    assert last.drawn == 3 and Kind(128, 128, 8, 1) in last.kinds and Kind(128, 128, 3, 1) in last.kinds
    assert not (tmp_path / "new").exists()
    assert last.short and last.worst == "step" and not last.done
    assert last.peaks.keys() == {"load", "encode", "preview", "step"} and min(last.peaks.values()) > 0
    assert planning.verdict(last, 0) == "no" and forecast.over(last, 10**15) == {"step"}
    assert next(ladder(loaded, {"step"}, 2)) == {"batch_size": 1, "gradient_accumulation": 8}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["epochs=0", "train_data_dir=nowhere"], "nowhere does not exist"),
        (["allow_missing_captions=true", "metadata_path=empty.csv"], "empty.csv"),
        pytest.param(["targets=['*nothing*']"], "nothing", marks=pytest.mark.slow),  # known when the base is loaded
        (["--memory", "much"], "--memory: must be a number, not 'much'"),
    ],
)
def test_faults_are_told_as_by_train(
    words: list[str], told: str, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--config", str(config), f"output_dir={tmp_path / 'new'}", *words]) == 2
    errors = capsys.readouterr().err
    assert told in errors and errors.startswith("error: ") and "Traceback" not in errors
    if words[0] != "--memory":
        assert main(["train", "--config", str(config), f"output_dir={tmp_path / 'new'}", *words]) == 2
        assert capsys.readouterr().err == errors


def test_the_meter_sees_what_came_and_went() -> None:
    meter.restart_ram()
    before, filled = meter.peak_ram(), b"x" * (64 << 20)
    high = meter.peak_ram()
    del filled
    assert high - before > 60 << 20
    assert meter.used_ram() > 0 and meter.free_ram() > 0
    if sys.platform == "linux":
        meter.restart_ram()
        assert meter.peak_ram() < high - (60 << 20)


def test_the_words_that_are_typed_keep_what_was_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = PlanOptions(config_of(), Path("my c.yaml"), ["epochs=3", "batch_size=8"])
    changes: Mapping[str, Any] = {"batch_size": 4, "gradient_accumulation": 2, "resolution": (448, 320)}
    words = ["--config", "my c.yaml", "epochs=3", "batch_size=4", "gradient_accumulation=2", "resolution=[448,320]"]
    assert shlex.split(to_type(options, changes)) == ["lora-scripts", "train", *words]
    (tmp_path / "train.py").touch()
    assert shlex.split(to_type(options, changes)) == ["python", "train.py", *words]


def test_a_command_is_quoted_for_the_shell_that_it_is_typed_in() -> None:
    words = ["lora-scripts", "check", "my pictures/it's", "a=b"]
    assert shlex.split(typed(words, windows=False)) == words
    assert typed(words, windows=True) == 'lora-scripts check "my pictures/it\'s" a=b'


def test_a_long_phase_is_told_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a process that says nothing for a while."""
    monkeypatch.setattr("lora_scripts.plan.stage.SILENT", 0.05)
    told: list[Event] = []
    stage = stage_of(Split([], []), tmp_path, 0, told.append)
    stage.at = "step"
    slow = "import time; print('a', flush=True); time.sleep(0.5); print('b')"
    with subprocess.Popen([sys.executable, "-c", slow], stdout=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stdout and list(stage._lines(process.stdout)) == ["a\n", "b\n"]
    waited = [event.text for event in told if isinstance(event, Note)]
    assert waited and all(text.startswith("  still rehearsing (a step): ") for text in waited)
