"""Held-out pictures: which they are, how they are measured, what follows, and that training does not notice."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import tiny
import toy
from lora_scripts.cli import main
from lora_scripts.config.load import load_config
from lora_scripts.data.cache import Cache
from lora_scripts.data.scan import Sample, scan
from lora_scripts.data.split import hold_out, share_of
from lora_scripts.errors import UserError
from lora_scripts.events import ignore
from lora_scripts.families.sd.denoiser import Denoiser
from lora_scripts.families.sd1.model import StableDiffusion1
from lora_scripts.formats import io
from lora_scripts.losses import diffusion
from lora_scripts.losses.diffusion import Objective
from lora_scripts.losses.noise import middle
from lora_scripts.report import chinese
from lora_scripts.run import overview, story
from lora_scripts.run.dataset import STEP_COST
from lora_scripts.run.heldout import Measuring, as_before, levels_of, passes, trained
from lora_scripts.run.preflight import copies, split
from lora_scripts.train.evidence import Evaluation, best_of, bootstrap, judge, stalled, tail, words
from lora_scripts.train.feed import generator
from lora_scripts.train.probe import Probe, Range
from runs import stopped


def sample(name: str, digest: str) -> Sample:
    return Sample(Path(name), name, "", 64, 64, digest)


# --- which ---------------------------------------------------------------------------------------------------------


def test_a_tenth_and_two_or_three_of_few() -> None:
    assert [share_of(n, None) for n in (5, 6, 11, 12, 19, 34, 50, 200, 1000)] == [0, 2, 2, 3, 3, 3, 5, 20, 24]
    assert [share_of(10, s) for s in (0.0, 0.01, 0.25, 0.5)] == [0, 1, 2, 5]
    assert share_of(1, 0.5) == 0


def test_the_choice_is_of_seed_and_contents_not_of_names_or_order() -> None:
    files = [sample(f"{i}.png", f"digest {i}") for i in range(30)]
    train, held = hold_out(files, 3, seed=1)
    assert len(held) == 3 and len(train) == 27 and not {s.digest for s in held} & {s.digest for s in train}
    renamed = [replace(s, name=f"x{s.name}") for s in reversed(files)]
    assert {s.digest for s in hold_out(renamed, 3, seed=1)[1]} == {s.digest for s in held}
    assert {s.digest for s in hold_out(files, 3, seed=2)[1]} != {s.digest for s in held}
    more = [*files, sample("new.png", "another")]
    assert len({s.digest for s in hold_out(more, 3, seed=1)[1]} & {s.digest for s in held}) >= 2


def test_a_picture_with_a_copy_is_never_held_out(tmp_path: Path) -> None:
    files = [sample(f"{i}.png", f"digest {i // 2}") for i in range(10)] + [sample("a.png", "a"), sample("b.png", "b")]
    for seed in range(20):
        assert {s.name for s in hold_out(files, 4, seed)[1]} == {"a.png", "b.png"}
        assert [s.name for s in hold_out(files, 4, seed, {"a.png"})[1]] == ["b.png"]
    rng = np.random.default_rng(0)
    for name in "abcd":
        picture = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize(
            (96, 96), Image.Resampling.BICUBIC
        )
        picture.save(tmp_path / f"{name}.png")
    Image.open(tmp_path / "a.png").save(tmp_path / "a2.jpg", quality=80)
    Image.open(tmp_path / "b.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "b2.png")
    found = scan(tmp_path, allow_missing_captions=True)
    assert copies(found) == {"a.png", "a2.jpg", "b.png", "b2.png"}


# --- measuring -----------------------------------------------------------------------------------------------------


def probe(tmp_path: Path, batch: int = 3, **keys: object) -> Probe:
    family = toy.Toy()
    feed = toy.feed(family, toy.samples(tmp_path / "data", 3))
    feed.fill(Cache(tmp_path / "cache", io.write_atomic), lambda *told: None)
    return Probe(feed, [0, 2], Objective(), Range(4), 7, batch, **keys)  # type: ignore[arg-type]


def timestep(u: Tensor) -> int:
    """Of a thousand; `u` is in its middle."""
    t = (u * 1000).long()
    assert u.dtype == torch.float64 and torch.equal(u, middle(t, 1000))
    return int(t)


def test_noise_levels_are_stratified() -> None:
    g = torch.Generator().manual_seed(0)
    for levels in (Range(8), Range(4, 200, 399), Range(3, 0, 9)):
        count = levels.last - levels.first + 1
        for part in range(levels.strata):
            low, high = (levels.first + edge * count / levels.strata for edge in (part, part + 1))
            drawn = [timestep(levels.draw(part, g, 1000)) for _ in range(200)]
            assert low - 1 < min(drawn) and max(drawn) < high and len(set(drawn)) > 1
            assert low - 1 < timestep(levels.middle(part, 1000)) < high
            free = [levels.draw(part, g, None).item() for _ in range(200)]
            assert low / 1000 <= min(free) and max(free) <= high / 1000 and len(set(free)) == 200
            assert max(free) - min(free) > 0.9 * (high - low) / 1000
            assert levels.middle(part, None).item() == pytest.approx((low + high) / 2000, abs=1e-12)
    assert [timestep(Range(2, 600, 999).middle(p, 1000)) for p in (0, 1)] == [700, 900]


def test_strata_of_timesteps_are_whole_numbers() -> None:
    """The draws and the middles are those of arithmetic with integers, and no rounding moves one."""
    ours, theirs = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    for strata in (1, 3, 4, 8, 20, 25, 32):
        for levels in (Range(strata), Range(strata, 200, 399), Range(strata, 600, 999), Range(strata, 100, 899)):
            count = levels.last - levels.first + 1
            for part in range(strata):
                u = torch.rand((), generator=theirs, dtype=torch.float64).item()
                wanted = levels.first + min(int((part + u) / strata * count), count - 1)
                assert timestep(levels.draw(part, ours, 1000)) == wanted
                wanted = levels.first + (2 * part + 1) * count // (2 * strata)
                assert timestep(levels.middle(part, 1000)) == wanted


def test_losses_are_those_of_the_formula_at_fixed_draws(tmp_path: Path) -> None:
    taken = probe(tmp_path)
    found = taken.losses()
    assert found.shape == (2, 4)
    for row, index in enumerate((0, 2)):
        picture, moments = taken.feed.pictures[index], taken.feed.encoded.latents(index)
        for part in range(4):
            g = generator(f"probe/7/{picture.sample.digest}/{part}")
            t = int((part + torch.rand((), generator=g, dtype=torch.float64).item()) / 4 * 1000)
            e, z = (torch.randn(moments["mean"].shape, generator=g) for _ in range(2))
            a = diffusion.alphas_cumprod()[t]
            x = a.sqrt() * (moments["mean"] + moments["std"] * z) + (1 - a).sqrt() * e
            answer = taken.feed.family.net(x.movedim(0, -1)).movedim(-1, 0)  # type: ignore[attr-defined]
            assert found[row, part].item() == pytest.approx((answer - e).square().mean().item(), rel=1e-5)


def test_measuring_again_or_in_other_batches_gives_the_same_and_draws_nothing(tmp_path: Path) -> None:
    first = probe(tmp_path)
    before = torch.get_rng_state()
    once = first.losses()
    assert torch.equal(once, first.losses()) and torch.equal(before, torch.get_rng_state())
    torch.testing.assert_close(probe(tmp_path, batch=1).losses(), once, rtol=1e-5, atol=1e-7)
    assert not torch.equal(probe(tmp_path, common=True).losses(), once)
    assert first.feed.family.net.weight.grad is None  # type: ignore[attr-defined]


# --- what follows --------------------------------------------------------------------------------------------------


def test_the_interval_is_scipys_at_the_level_of_few_pictures() -> None:
    # t at 97.5 % with n - 1 degrees of freedom: NIST/SEMATECH e-Handbook of Statistical Methods, table 1.3.6.7.2
    for count, t in ((5, 2.776), (12, 2.201), (40, 2.023)):
        values = np.random.default_rng(count).normal(0.3, 1, count)
        level = 1 - 2 * tail(count)
        reach = t * (count / (count - 1)) ** 0.5
        assert tail(count) == pytest.approx(0.5 * math.erfc(reach / 2**0.5), rel=2e-3)
        theirs = scipy.stats.bootstrap(
            (values,), np.mean, n_resamples=20000, method="percentile", confidence_level=level, rng=1
        ).confidence_interval
        mine = bootstrap(list(values))
        assert mine.mean == pytest.approx(values.mean())
        assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high), abs=0.2 if count == 5 else 0.08)
        assert bootstrap(list(values)) == mine != bootstrap(list(values), seed=1)
    assert bootstrap([1.0]).low == -np.inf and not bootstrap([1.0]).sure


def test_the_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        found = bootstrap(list(rng.normal(1, 1, 5)))
        hits += found.low <= 1 <= found.high
    assert hits / 300 > 0.9  # plain percentiles over five pictures: 0.83


def points(*losses: float, spread: float = 0.0) -> list[Evaluation]:
    offsets = [-2 * spread, -spread, 0.0, spread, 2 * spread]
    taken = [Evaluation(0, [1.0 + o for o in offsets], [1.0], "base")]
    return taken + [Evaluation(10 * i, [x + o for o in offsets], [x]) for i, x in enumerate(losses, 1)]


def test_the_best_is_the_lowest_and_the_evidence_separates_it_or_not() -> None:
    taken = points(0.9, 0.7, 0.8, spread=0.1)
    found = judge(taken)
    assert found is not None and best_of(taken) == found.best == taken[2] and found.last == taken[3]
    assert found.improvement.mean == pytest.approx(0.3) and found.gap.mean == pytest.approx(0.1) and found.separate
    noisy = [
        *taken[:3],
        Evaluation(30, [x + d for x, d in zip(taken[2].held, (0.3, -0.2, 0.2, -0.2, 0.1), strict=True)], [1.0]),
    ]
    close = judge(noisy)
    assert close is not None and close.gap.mean > 0 and not close.separate
    few = judge([replace(e, held=e.held[:3]) for e in taken])
    assert few is not None and not few.separate  # alike, but three pictures prove nothing
    assert judge(taken[:1]) is None and judge([replace(e, held=[]) for e in taken]) is None


def test_a_hair_lower_is_lower_and_of_equals_the_earliest_is_best() -> None:
    taken = points(0.9, 0.7003, 0.7, 0.7001, 0.7)
    assert best_of(taken) == taken[3] and taken[3].loss < taken[2].loss
    assert not stalled(taken, 3) and stalled(taken, 2)


def test_what_is_recorded_is_the_mean_over_every_noise_level(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the losses of every held-out picture and of those trained pictures that are measured."""
    taken, losses = [], Probe.losses

    def watched(self: Probe) -> torch.Tensor:
        taken.append(losses(self))
        return taken[-1]

    monkeypatch.setattr(Probe, "losses", watched)
    stopped(config_with(tmp_path, base, val_every=1), 1)
    outside, inside = taken[0].double(), taken[1].double()
    assert outside.shape[1] == 8 and inside.shape[1] == 4 and (outside > 0).all() and (inside > 0).all()
    record = json.loads((tmp_path / "out" / "heldout.json").read_text("utf-8"))["evaluations"][0]
    assert record["held"] == pytest.approx([sum(row) / 8 for row in outside.tolist()], rel=1e-5)
    assert record["train"] == pytest.approx([sum(row) / 4 for row in inside.tolist()], rel=1e-5)


def test_patience_counts_measurements_since_the_lowest() -> None:
    taken = points(0.9, 0.7, 0.8, 0.75, 0.72)
    assert [stalled(taken[: n + 1], 2) for n in range(6)] == [False, False, False, False, True, True]
    assert not stalled(taken, 4) and stalled(taken, 3)
    assert not stalled(points(0.9, 0.9, 0.8), 1)


# --- whole runs ----------------------------------------------------------------------------------------------------


def config_with(folder: Path, base: Path, **keys: object) -> Path:
    """A config of six steps on four pictures, four others held out."""
    data = tiny.write_pictures(folder / "data", 4)
    held = tiny.write_pictures(folder / "held", 4, size=(72, 64))
    return tiny.write_config(
        folder,
        base_model=base,
        train_data_dir=data,
        output_dir=folder / "out",
        epochs=3,
        **{"val_data_dir": held, "val_split": "null", "targets": tiny.SOME, **keys},
    )


def test_training_does_not_notice_that_it_is_measured(base: Path, tmp_path: Path, short: None) -> None:
    keys = {"lora_dropout": 0.3, "ema_decay": 0.9, "save_precision": "fp32"}
    config = config_with(tmp_path, base, val_every=1, **keys)
    assert main(["train", "--config", str(config)]) == 0
    unmeasured = tiny.write_config(
        tmp_path,
        base_model=base,
        train_data_dir=tmp_path / "data",
        output_dir=tmp_path / "off",
        epochs=3,
        val_split=0,
        targets=tiny.SOME,
        **keys,
    )
    assert main(["train", "--config", str(unmeasured)]) == 0
    a, b = load_file(tmp_path / "out" / "out.safetensors"), load_file(tmp_path / "off" / "off.safetensors")
    assert all(torch.equal(a[key], b[key]) for key in b) and a.keys() == b.keys()
    assert not (tmp_path / "off" / "heldout.json").exists()
    told = json.loads((tmp_path / "out" / "heldout.json").read_text())
    assert [e["step"] for e in told["evaluations"]] == [0, 1, 2, 3, 4, 5, 6]
    best = load_file(tmp_path / "out" / "out-best.safetensors")
    at = tmp_path / "out" / f"out-step{told['best']:06}.safetensors"
    if told["best"] == 6:
        at = tmp_path / "out" / "out.safetensors"
    if at.exists():
        assert all(torch.equal(best[key], value) for key, value in load_file(at).items())


def test_what_a_start_measured_that_was_killed_is_not_the_next_ones(base: Path, tmp_path: Path, short: None) -> None:
    """Killed before its first state, and begun again without measuring: neither its best LoRA nor its record stays."""
    out = tmp_path / "out"
    config = config_with(tmp_path, base, val_every=1, save_steps=9)
    out.mkdir()
    for name in ("out-best.safetensors", "heldout.json"):
        (out / name).write_bytes(b"of the start before")
    assert main(["train", "--config", str(config), "val_data_dir=null", "val_split=0", "val_every=null"]) == 0
    assert (out / "out.safetensors").exists()
    assert not (out / "out-best.safetensors").exists() and not (out / "heldout.json").exists()


def test_what_is_forecast_besides_training_is_what_is_computed(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every pass of the UNet is counted, by whether it learns, draws or measures. After the last step somebody moves
    pictures away, cuts one that was drawn, and adds files: what is there is measured and reported."""
    counts, drawing, told = Counter[str](), [False], list[dict[str, float]]()
    ask, generate, besides = Denoiser.__call__, StableDiffusion1.generate, overview.besides

    def counted(self: Any, x: Tensor, *rest: Any, **more: Any) -> Tensor:
        counts["trained" if torch.is_grad_enabled() else "drawn" if drawing[0] else "measured"] += len(x)
        return ask(self, x, *rest, **more)

    def drawn(self: Any, *given: Any) -> Any:
        drawing[0] = True
        try:
            return generate(self, *given)
        finally:
            drawing[0] = False

    def noted(*given: Any, **more: Any) -> dict[str, float]:
        told.append(besides(*given, **more))
        return told[-1]

    monkeypatch.setattr(Denoiser, "__call__", counted)
    monkeypatch.setattr(StableDiffusion1, "generate", drawn)

    def moved(*given: Any) -> Any:
        for i in (1, 2):
            (tmp_path / "data" / f"{i}.png").unlink()
        shown = tmp_path / "out" / "samples"
        (shown / "step000002-1.png").write_bytes((shown / "step000002-1.png").read_bytes()[:200])
        Image.new("RGB", (64, 64)).save(shown / "step1000000-1.png")
        (shown / "step-by-step-1.png").write_bytes(b"")
        return finish(*given)

    finish = story.finish
    monkeypatch.setattr(story, "finish", moved)
    monkeypatch.setattr(overview, "besides", noted)
    config = config_with(tmp_path, base, val_every=2, sample_every=2, report="full", trigger_word="picture")
    assert main(["train", "--config", str(config)]) == 0
    shares = told[0]
    passes = {
        what: counts["trained"] * STEP_COST / (1 - sum(shares.values())) * share for what, share in shares.items()
    }
    assert passes["previews"] + passes["report"] == pytest.approx(counts["drawn"]) and counts["drawn"]
    # Before the run, every second step of six, and in the end a stronger LoRA, but only where that may be better.
    assert passes["held-out loss"] * 4 / 5 == pytest.approx(counts["measured"]) and counts["measured"]
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "How strong" in page and "Copies?" in page and "besides training" not in page  # what was forecast is over
    steps = Counter(int(step) for step in re.findall(r"Step (\d+): ", page))
    assert steps.keys() == {2, 4, 6, 1_000_000} and 2 * steps[2] == steps[6]


def test_what_takes_less_is_named_where_it_can_take_less() -> None:
    shares = {"held-out loss": 0.1, "previews": 0.0, "report": 0.2}
    more = "sample_steps; report: full draws more"
    for report, mend in (("full", "report: short"), ("short", more), ("one", more)):
        told = overview.besides_row(shares, SimpleNamespace(report=report))  # type: ignore[arg-type]
        lines = f"held-out loss 10 % (less with val_every), report 20 % (less with {mend})"
        assert told == ("besides training", f"about 30 % of the time: {lines}")
    assert overview.besides_row({"report": 0.0}, SimpleNamespace(report="full"))[1] == "nothing"  # type: ignore[arg-type]


def test_a_finished_run_tells_no_forecast() -> None:
    rows = [("besides training", "about 45 % of the time: report 45 % (less with report: short)")]
    rows += [("precision", "bf16, LoRA fp32, VAE bf16 if its latents agree"), ("note", "x, VAE")]
    for kind in ("bf16", "fp32"):
        told = overview.afterwards(rows, f"the VAE makes latents in {kind}: of a test picture 0.6 % off")
        assert told == [("precision", f"bf16, LoRA fp32, the VAE makes latents in {kind}"), rows[2]]
        assert (chinese.translated(told[0][1]) or "").endswith(f"VAE 用 {kind}")
    assert overview.afterwards(rows, "") == [("precision", "bf16, LoRA fp32"), rows[2]]
    assert overview.vae_words("bf16", torch.device("cpu")) in rows[1][1]


def test_a_run_that_is_not_getting_better_stops_early_and_exactly(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], short: None
) -> None:
    """The rate is so high that the first measurement is the lowest; the same after an interruption in between."""
    keys = {"learning_rate": 0.9, "lr_schedule": "constant", "val_every": 1, "patience": 2, "save_precision": "fp32"}
    config = config_with(tmp_path, base, keep_last=1, targets="['*attn*']", **keys)
    assert main(["train", "--sure", "--config", str(config)]) == 0
    told = capsys.readouterr().out
    out = tmp_path / "out"
    found = json.loads((out / "heldout.json").read_text())
    losses = [sum(e["held"]) for e in found["evaluations"][1:]]
    assert losses.index(min(losses)) == len(losses) - 3 and len(losses) < 6
    assert f"stopping early at step {len(losses)}" in told
    assert found["best"] == len(losses) - 2
    assert (out / "out-best.safetensors").exists() and "warning: " not in told
    again = tmp_path / "again"
    stopped(config, len(losses) - 1, f"output_dir={again}")
    assert main(["train", "--sure", "--config", str(config), f"output_dir={again}", "--resume"]) == 0
    assert json.loads((again / "heldout.json").read_text())["evaluations"] == found["evaluations"]
    for name in ("{}.safetensors", "{}-best.safetensors"):
        a, b = load_file(out / name.format("out")), load_file(again / name.format("again"))
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert main(["train", "--sure", "--config", str(config), f"output_dir={again}", "--resume"]) == 0  # it stays ended
    shutil.rmtree(again)


def test_a_lora_that_harms_is_not_kept_as_the_best(tmp_path: Path) -> None:
    """The base is a candidate: where every checkpoint is worse, none is the best, and the end warns."""
    rows = [Evaluation(0, [0.3] * 4, [0.3] * 4, "base"), Evaluation(10, [0.5] * 4, [0.2] * 4)]
    state: Any = SimpleNamespace(step=10, evaluations=[asdict(row) for row in rows])
    held: Any = SimpleNamespace(on=True)
    keys: Any = {"seed": 1, "patience": None, "record": tmp_path, "curves": None, "sink": ignore}
    nothing: Any = None
    facts: Any = SimpleNamespace(samples="pictures")
    measuring = Measuring(held, nothing, None, state, facts, **keys)
    assert not measuring.at_best
    assert measuring.warning.startswith(
        "this LoRA is worse than the base: its held-out loss is 67 % higher at the best"
    )
    state.evaluations[1] = asdict(Evaluation(10, [0.2] * 4, [0.2] * 4))
    assert measuring.at_best and measuring.warning == ""


def test_patience_needs_pictures(base: Path, tmp_path: Path) -> None:
    config = config_with(tmp_path, base)
    loaded = load_config(config, ["val_data_dir=null", "patience=2"])
    with pytest.raises(UserError, match="no picture is held out"):
        split(loaded, scan(loaded.train_data_dir))
    none = ["val_data_dir=null", "patience=2", "val_split=0"]
    with pytest.raises(UserError, match="has no effect without held-out pictures or records"):
        load_config(config, none)
    assert load_config(config, [*none, f"val_file={config}"]).patience == 2
    with pytest.raises(UserError, match="lies in train_data_dir, so every picture of it would be trained"):
        load_config(config, [f"val_data_dir={loaded.train_data_dir}"])
    shutil.copytree(loaded.train_data_dir, tmp_path / "copies")
    copied = load_config(config, [f"val_data_dir={tmp_path / 'copies'}"])
    assert split(copied, scan(copied.train_data_dir), scan(tmp_path / "copies")).held_out == []


def test_what_a_run_does_besides_follows_from_its_length(base: Path, tmp_path: Path) -> None:
    """The service, and that all of it takes at most 15 % of the passes, as counted by hand."""
    config = config_with(tmp_path, base, sample_steps=10, save_steps=100, report="auto", sample_every="null")
    parts = stopped(config, 1)
    open_, found = load_config(config), []
    measured = replace(parts.held, looks_at_whole=True)  # as from ten epochs on
    for total in (6000, 1500, 700, 400, 300, 240, 180, 6):
        c, held = overview.settled(open_, parts.feed, measured, parts.samples, total)
        rounds = (total - 1) // c.sample_every if c.sample_every else 0
        found.append((-(-total // held.every), rounds, c.report, levels_of(held)))
        assert held.looks_at_whole == (c.report == "full")
        # Of two captions; strengths, and captions trained and held out.
        drawn = {"one": 2, "short": 4, "full": 4 + 2 * 3 + 2 + 2}[c.report]
        taken = passes(held, c, total) + 2 * 10 * (2 * rounds + drawn)
        assert taken / (taken + trained(c, total)) <= 0.15 or total == 6
    many, few = (8, 4), (4, 3)
    full = [(10, 59, "full", many), (6, 4, "full", many), (3, 1, "full", many)]
    short = [(3, 1, "short", many), (3, 0, "short", many), (3, 0, "short", few)]
    assert found == [*full, *short, (3, 0, "one", few), (3, 0, "one", few)]
    named = load_config(config, ["sample_prompts=[a, b, c]", "val_every=2"])  # somebody's prompts are all drawn
    c, held = overview.settled(named, parts.feed, measured, parts.samples, 6)
    assert (c.report, levels_of(held)) == ("short", many)
    wished = load_config(config, ["report=full", "sample_every=2", "val_every=1"])
    c, held = overview.settled(wished, parts.feed, measured, parts.samples, 6)
    assert (c, held.every) == (wished, 1)
    wished = load_config(config, ["report=full"])  # pictures that do not fit are part of it, however short the run
    c, held = overview.settled(wished, parts.feed, measured, parts.samples, 6)
    assert held.looks_at_whole and (c.sample_every, held.every) == (0, 2)
    often = load_config(config, ["sample_every=2"])  # somebody's wish takes nothing from the rest
    c, held = overview.settled(often, parts.feed, measured, parts.samples, 6000)
    assert (c.sample_every, c.report, held.every) == (2, "full", 600)


def test_a_run_that_gets_longer_is_measured_as_it_began(base: Path, tmp_path: Path) -> None:
    """Else its losses would be of other noise than the base's, which they are compared with."""
    config = config_with(tmp_path, base, lr_schedule="constant", report="auto", sample_every="null", seed=1)
    assert levels_of(stopped(config, 1).held) == (4, 3)
    longer = stopped(config, 3, "epochs=3000", resume=True)
    assert longer.held.every > 6 and levels_of(longer.held) == (4, 3)
    state = next((tmp_path / "out" / "state").glob("step-*/run.json"))
    longer.state.levels = []  # as states of before have it, which were measured at all
    assert '"levels": [' in state.read_text() and levels_of(as_before(longer.held, longer.state)) == (8, 4)


def test_the_base_is_a_candidate() -> None:
    base = Evaluation(0, [0.3, 0.3, 0.3, 0.3], [0.3] * 4, "base")
    worse = [Evaluation(s, [0.3 + s / 100] * 4, [0.2] * 4) for s in (10, 20)]
    verdict = judge([base, *worse])
    assert verdict is not None and verdict.worse and verdict.best.step == 10
    assert "no checkpoint is better than the base model" in words(verdict, [base, *worse])[1]
    better = [Evaluation(10, [0.2] * 4, [0.2] * 4)]
    verdict = judge([base, *better])
    assert verdict is not None and not verdict.worse and "the last step is the best" in words(verdict, [base, *better])
