"""LoRAs of models that edit: what a picture is made from, in data, step, previews and commands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch
from diffusers import Flux2KleinPipeline, Flux2Pipeline, FluxKontextPipeline
from PIL import Image
from safetensors.torch import load_file

import flow_checks
import tiny
import tiny_flux1
import tiny_flux2
import tiny_flux2_dev
from conftest import offline
from lora_scripts.check.command import CheckOptions, check_data
from lora_scripts.check.quick import quick_findings
from lora_scripts.cli import main
from lora_scripts.config.prompt_line import parse_line
from lora_scripts.data.references import References, seen_beside, with_references
from lora_scripts.data.scan import Sample
from lora_scripts.events import ignore
from lora_scripts.families.base import Batch, LoadOptions, Sampling
from lora_scripts.families.table import by_name, load_family
from lora_scripts.grid.sources import GridOptions, find_sources
from lora_scripts.losses.noise import Draws
from lora_scripts.plan import worker
from lora_scripts.plan.command import stage_of
from lora_scripts.report import chinese
from lora_scripts.run import stepping
from lora_scripts.run.configs import dump_config, load_config
from lora_scripts.run.preflight import preflight
from lora_scripts.run.previews import line_of
from lora_scripts.train.planned import plan_pictures
from runs import faults, stopped

PROMPT = flow_checks.PROMPTS[0]


# --- which picture is made from which ---------------------------------------------------------------------------------


def picture(path: Path, size: tuple[int, int] = (64, 64)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    g = torch.Generator().manual_seed(sum(map(ord, path.name)))
    small = torch.randint(0, 256, (4, 4, 3), generator=g, dtype=torch.uint8)
    Image.fromarray(small.numpy()).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def sample(name: str, size: tuple[int, int] = (64, 64)) -> Sample:
    return Sample(Path(name), name, "make it night", *size, digest=name)


def test_each_has_what_bears_its_name(tmp_path: Path) -> None:
    for name in ("a.png", "b/C.jpg", "d_10.png", "d_2.png", "e.webp", "e_1.png", "f_1.png", "é_1.png"):
        picture(tmp_path / name)
    samples = [sample(name) for name in ("a.jpg", "b/c.png", "d.png", "e.png", "f_1.png", "e\u0301.png".upper())]
    notes: list[Any] = []
    found = with_references(samples, References(tmp_path, 2), notes=notes)
    assert [[one.name for one in each.references] for each in found] == [
        ["a.png"],
        ["b/C.jpg"],
        ["d_2.png", "d_10.png"],
        ["e.webp"],
        ["f_1.png"],
        ["é_1.png"],
    ]
    assert found[0].references[0].digest and found[0].references[0].width == 64
    assert [note.message for note in notes] == ["1 not read: the reference of no picture (e_1.png)"]


def test_faults_are_told_together(tmp_path: Path) -> None:
    for name in ("b_1.png", "b_2.png"):
        picture(tmp_path / name)
    told = faults(lambda: with_references([sample("a.png"), sample("b.png")], References(tmp_path, 1), notes=[]))
    assert "a.png: has no reference" in told and "b.png: has 2 references, and this base takes 1" in told


def test_held_out_pictures_have_theirs_in_the_same_folder(tmp_path: Path) -> None:
    """They are no strangers there, and what bears a held-out picture's name is not another's second reference."""
    for name in ("a_1.png", "a_2.png", "b.png", "c_1.png", "nobody.png"):
        picture(tmp_path / name)
    notes: list[Any] = []
    also = {name: Path(name) for name in ("a_2.png", "b.jpg", "c.png")}
    (found,) = with_references([sample("a.png")], References(tmp_path, 4, also), notes=notes)
    assert [one.name for one in found.references] == ["a_1.png"]
    assert [note.message for note in notes] == ["1 not read: the reference of no picture (nobody.png)"]


def test_captions_beside_references_are_not_read(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00of another program")
    (tmp_path / "metadata.csv").write_text("file;words\n1;2\n")
    (found,) = with_references([sample("a.png")], References(tmp_path, 1), notes=[])
    assert [one.caption for one in found.references] == [""]


def test_a_reference_in_another_folder_is_named(tmp_path: Path) -> None:
    """Where only one side has folders in folders, as kohya's 10_name."""
    near = picture(tmp_path / "a.jpg")
    told = faults(lambda: with_references([sample("10_x/a.png")], References(tmp_path, 1), notes=[]))
    assert f"{near.as_posix()} has its name: put that at {(tmp_path / '10_x' / 'a.jpg').as_posix()}" in told


def test_paths_in_a_line_of_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In quotes, from the home folder, with spaces and in Chinese: no shell has read them."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    path = picture(tmp_path / "my \u8857\u9053.png")
    for said in (f"--ref {path}", f'--ref "{path}"', f"--ref='{path}' --w 64", f"--ref ~/{path.name}"):
        assert parse_line(f"make it night {said}").references == (path,)
    assert "--ref names no picture" in faults(lambda: parse_line("a --ref"))
    assert f"{tmp_path}: a folder, not a picture" in faults(lambda: parse_line(f"a --ref {tmp_path}"))


def test_a_reference_is_seen_as_its_picture_is(tmp_path: Path) -> None:
    """Of the same shape it is cut and mirrored alike at any size, of another it has its own, with as many pixels."""
    same, other = sample("a", (256, 128)), sample("b", (100, 300))
    whole = replace(sample("c", (512, 256)), references=(same, other))
    planned = plan_pictures([sample("d"), whole], (128, 128), (32, 16), flip=True, random_crop=True, seed=3)[1]
    one, two = planned.references
    assert [(v.bucket, v.scaled, v.left, v.top, v.flip) for v in one.views] == [
        (v.bucket, v.scaled, v.left, v.top, v.flip) for v in planned.views
    ]
    assert [v.flip for v in two.views] == [v.flip for v in planned.views] and two.bucket == (80, 192)
    assert planned.shape == ((176, 80), (176, 80), (80, 192))


def test_the_check_tells_what_is_wrong_with_them(tmp_path: Path) -> None:
    """And not what is wrong with a style: that all captions are the same words."""
    for number in range(5):
        picture(tmp_path / "after" / f"{number}.png")
        (tmp_path / "after" / f"{number}.txt").write_text("make it night")
    for name in ("0.jpg", "1_1.png", "1_2.png", "1_3.png", "2.jpg", "9.jpg"):
        picture(tmp_path / "before" / name)
    (tmp_path / "before" / "4.png").write_bytes((tmp_path / "after" / "4.png").read_bytes())
    picture(tmp_path / "before" / "0.jpg", (4000, 40))
    options = CheckOptions(tmp_path / "after", None, (64, 64), False, (), tmp_path / "page.html")
    kinds = {finding.kind for finding in check_data(options).findings}
    assert "captions_identical" in kinds and "reference" not in kinds
    found = check_data(replace(options, references=References(tmp_path / "before", 2))).findings
    assert "captions_identical" not in {finding.kind for finding in found}
    (odd,) = (finding for finding in found if finding.kind == "odd_reference")  # of 40 x 40 / (96 / 40) px of 4000 x 40
    assert (
        odd.files == ("0.png",)
        and "0.jpg is an odd shape, 4000 x 40 px: the bucket 96 x 40 cuts 98 % away" in odd.message
    )
    assert chinese.translated(odd.message)
    samples = [replace(sample("a.png"), references=(sample("b.png"), sample("c.png", (4000, 40))))]
    assert [one.kind for one in quick_findings(samples, (64, 64))] == ["odd_reference"]  # as before each training
    told = [(finding.files, finding.message) for finding in found if finding.kind in ("reference", "not_read")]
    assert sorted(told) == [
        ((), "1 not read: the reference of no picture (9.jpg)"),
        (("1.png",), "has 3 references, and this base takes 2"),
        (("3.png",), "has no reference"),
        (("4.png",), "is its own reference: there is nothing to learn"),
    ]


def test_those_of_held_out_pictures_are_checked_too(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Missing, too many, unreadable: `check` and `train` tell each, beside what is wrong with those of the others."""
    after, held, before = (tmp_path / name for name in ("after", "held", "before"))
    for path in [*(after / f"{n}.png" for n in range(2)), *(held / f"{n}.png" for n in range(2, 5))]:
        picture(path).with_suffix(".txt").write_text("make it night")
    for name in ("1.png", "3.png", *(f"4_{n}.png" for n in range(5))):
        picture(before / name)
    (before / "3.png").write_bytes(b"")
    own = {"train_data_dir": after, "val_data_dir": held, "val_split": "null", "reference_dir": before}
    config = tiny.write_config(tmp_path, **keys(place, tmp_path / "out", **own))
    told = {
        after / "0.png": "has no reference",
        held / "2.png": "has no reference",
        held / "4.png": "has 5 references, and this base takes 4",
        before / "3.png": "the file is empty (0 bytes)",
    }
    assert main(["train", "--config", str(config)]) == 2
    lines = capsys.readouterr().err.splitlines()
    wanted = [f"error: {path}: {text}" for path, text in told.items()]
    assert sorted(line.partition(";")[0] for line in lines) == sorted(wanted)
    assert main(["check", "--config", str(config), "--json"]) == 2
    findings = json.loads(capsys.readouterr().out)["findings"]
    said = [finding for finding in findings if finding["kind"] == "reference"]
    assert {(after / one["files"][0] if one["files"] else Path(one["source"])): one["message"] for one in said} == told


# --- what the model is told -------------------------------------------------------------------------------------------


def kontext() -> FluxKontextPipeline:
    pipe: FluxKontextPipeline = tiny_flux1.pipeline_of(FluxKontextPipeline, tiny_flux1.models())
    return pipe


def of_kontext(pipe: Any, images: list[Image.Image], noise: torch.Tensor, **asked: Any) -> Any:
    packed = pipe._pack_latents(noise, 1, 16, *noise.shape[2:])
    given = {"image": images[0], "latents": packed, "_auto_resize": False, "max_area": 64 * 96, **asked}
    return pipe(prompt=PROMPT, max_sequence_length=512, **given).images[0]


def of_flux2(pipe: Any, images: list[Image.Image], noise: torch.Tensor, **asked: Any) -> Any:
    return pipe(prompt=PROMPT, image=images, latents=noise, **asked).images[0]


def answers(transformer: Any) -> list[torch.Tensor]:
    """What it says from now on, of all tokens."""
    said: list[torch.Tensor] = []
    transformer.register_forward_hook(lambda module, given, answer: said.append(answer[0]))
    return said


Pipe = Callable[[], Any]
CASES: dict[str, tuple[str, ModuleType, Pipe, Callable[..., Any], list[tuple[int, int]]]] = {
    "klein": (
        "flux2",
        tiny_flux2,
        lambda: flow_checks.pipeline_of(Flux2KleinPipeline, tiny_flux2.models(), tiny_flux2.scheduler()),
        of_flux2,
        [(64, 96), (96, 64)],
    ),
    "dev": (
        "flux2_dev",
        tiny_flux2_dev,
        lambda: flow_checks.pipeline_of(Flux2Pipeline, tiny_flux2_dev.models(), tiny_flux2_dev.scheduler()),
        of_flux2,
        [(64, 96)],
    ),
    "kontext": ("flux1", tiny_flux1, kontext, of_kontext, [(96, 64)]),
}


def loaded(name: str, made: ModuleType, folder: Path) -> Any:
    options = replace(LoadOptions(torch.device("cpu"), torch.float32), **made.beside(folder))
    return load_family(by_name(name), made.write_base(folder / "base.safetensors"), options)


@pytest.mark.parametrize("name", CASES)
def test_a_picture_from_references_is_the_pipelines(name: str, tmp_path: Path) -> None:
    """From the same noise, by diffusers' own pipelines, which cut pictures and number their tokens by themselves."""
    facts, made, pipe, draw, sizes = CASES[name]
    family = loaded(facts, made, tmp_path)
    paths = [picture(tmp_path / f"{number}.png", size) for number, size in enumerate(sizes)]
    shown = seen_beside(paths, (64, 96), family.facts.bucket_steps)
    assert [tuple(pixels.shape[1:]) for pixels in shown] == [(high, wide) for wide, high in sizes]
    sampling = Sampling(steps=4, size=(64, 96), cfg=1.0, references=shown)
    said = answers(family.transformer)
    ours = family.generate(PROMPT, 7, sampling)
    channels, factor = family.way.channels, family.facts.vae_factor
    noise = torch.randn((1, channels, 96 // factor, 64 // factor), generator=torch.Generator().manual_seed(7))
    asked = {"height": 96, "width": 64, "num_inference_steps": 4, "guidance_scale": 1.0}
    images = [Image.open(path).convert("RGB") for path in paths]
    theirs = pipe()
    wanted = answers(theirs.transformer)
    flow_checks.alike(ours, draw(theirs, images, noise, **asked))
    family.generate(PROMPT, 7, replace(sampling, references=()))
    assert len(said) == 8 and len(wanted) == 4
    for one, other, want in zip(said[:4], said[4:], wanted, strict=True):  # a narrow model shows little in a picture
        own = want[:, : other.shape[1]]
        torch.testing.assert_close(one, want, rtol=1e-4, atol=1e-5)
        assert (other - own).abs().max() > 100 * (one[:, : other.shape[1]] - own).abs().max()


@torch.no_grad()
def test_the_loss_is_that_of_the_picture_alone(tmp_path: Path) -> None:
    """klein's own transformer is asked by hand, with a reference behind the noised picture: ten steps behind it in
    time, never noised, and no part of the loss."""
    family, theirs = loaded("flux2", tiny_flux2, tmp_path), CASES["klein"][2]()
    g = torch.Generator().manual_seed(5)
    mean, noise = (torch.randn(1, 128, 4, 6, generator=g) for _ in range(2))
    reference = torch.randn(1, 128, 6, 4, generator=g)
    latents = {"mean": mean, "std": torch.zeros_like(mean), "reference0": reference}
    draws = Draws(torch.tensor([0.3]).double(), noise, torch.zeros_like(noise))
    batch = Batch(latents, [PROMPT], family.encode_text([PROMPT]), [""], [])
    sigma = family.objective.sigmas.at(draws.u, 24).float()
    x_t = (1 - sigma) * mean + sigma * noise
    states, text_ids = theirs.encode_prompt([PROMPT])
    ids = [[10, row, column, 0] for row in range(6) for column in range(4)]
    answer = theirs.transformer(
        hidden_states=torch.cat([theirs._pack_latents(x_t), theirs._pack_latents(reference)], 1),
        timestep=sigma,
        guidance=None,
        encoder_hidden_states=states,
        txt_ids=text_ids,
        img_ids=torch.cat([theirs._prepare_latent_ids(x_t), torch.tensor([ids])], 1),
        return_dict=False,
    )[0][:, :24]
    left = theirs._pack_latents(noise - mean) - answer
    missed = theirs._pack_latents(family.missed(batch, family.objective, draws))
    assert (missed - left).abs().max() < 2e-6
    loss, want = family.losses(batch, family.objective, draws).item(), left.square().mean().item()
    assert abs(loss - want) < 1e-5 * want


def test_guidance_sees_the_references_too(tmp_path: Path) -> None:
    """With a negative prompt both questions of a step are shown them, as by diffusers' pipeline of klein."""
    facts, made, pipe, _, _ = CASES["klein"]
    family, theirs = loaded(facts, made, tmp_path), pipe()
    path = picture(tmp_path / "0.png", (96, 64))
    shown = seen_beside([path], (64, 96), family.facts.bucket_steps)
    said = answers(family.transformer)
    ours = family.generate(PROMPT, 7, Sampling(3, 4.0, "blurry, grey", (64, 96), references=shown))
    factor = family.facts.vae_factor
    noise = torch.randn((1, 128, 96 // factor, 64 // factor), generator=torch.Generator().manual_seed(7))
    asked = {"height": 96, "width": 64, "num_inference_steps": 3, "guidance_scale": 4.0}
    negative, _ = theirs.encode_prompt("blurry, grey")
    image = Image.open(path).convert("RGB")
    wanted = answers(theirs.transformer)
    want = theirs(prompt=PROMPT, image=image, latents=noise, negative_prompt_embeds=negative, **asked).images[0]
    flow_checks.alike(ours, want)
    for one, prompted, led_away in zip(said, wanted[::2], wanted[1::2], strict=True):
        torch.testing.assert_close(one, torch.cat([led_away, prompted]), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_losses_of_two_pictures_with_their_own_references(tmp_path: Path) -> None:
    """Kontext's own transformer is asked by hand for both at once: a step behind them, each beside its own."""
    family, theirs = loaded("flux1", tiny_flux1, tmp_path), kontext()
    g = torch.Generator().manual_seed(6)
    mean, noise = (torch.randn(2, 16, 8, 12, generator=g) for _ in range(2))
    reference, prompts = torch.randn(2, 16, 12, 8, generator=g), flow_checks.PROMPTS[:2]
    latents = {"mean": mean, "std": torch.zeros_like(mean), "reference0": reference}
    draws = Draws(torch.tensor([0.2, 0.7]).double(), noise, torch.zeros_like(noise))
    batch = Batch(latents, list(prompts), family.encode_text(prompts), ["", ""], [])
    sigma = family.objective.sigmas.at(draws.u, 24).float()
    level = sigma[:, None, None, None]
    x_t = (1 - level) * mean + level * noise
    states, pooled, text_ids = theirs.encode_prompt(list(prompts), None, max_sequence_length=512)
    behind = theirs._prepare_latent_image_ids(2, 6, 4, "cpu", torch.float32)
    behind[:, 0] = 1
    packed = [theirs._pack_latents(one, 2, 16, *one.shape[2:]) for one in (x_t, reference, noise - mean)]
    answer = theirs.transformer(
        hidden_states=torch.cat(packed[:2], 1),
        timestep=sigma,
        guidance=torch.ones(2) if theirs.transformer.config.guidance_embeds else None,
        pooled_projections=pooled,
        encoder_hidden_states=states,
        txt_ids=text_ids,
        img_ids=torch.cat([theirs._prepare_latent_image_ids(2, 4, 6, "cpu", torch.float32), behind]),
        return_dict=False,
    )[0][:, :24]
    want = (packed[2] - answer).square().mean((1, 2))
    torch.testing.assert_close(family.losses(batch, family.objective, draws).float(), want, rtol=1e-5, atol=0)
    swapped = replace(batch, latents={**latents, "reference0": reference.flip(0)})
    assert (family.losses(swapped, family.objective, draws).float() - want).abs().min() > 1e-5 * want.max()


# --- a run ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, five pictures of two shapes, and what they are made from: one of each, of one picture two."""
    folder = tmp_path_factory.mktemp("edit")
    tiny_flux2.write_base(folder / "base.safetensors")
    for number in range(5):
        size = (64, 64) if number < 3 else (128, 64)
        picture(folder / "after" / f"{number}.png", size)
        (folder / "after" / f"{number}.txt").write_text("make it night")
        names = [f"{number}.jpg"] if number != 1 else ["1_1.png", "1_2.png"]
        for name in names:
            picture(folder / "before" / name, (96, 64) if number == 2 else size)
    return folder


def keys(place: Path, output: Path, **more: object) -> dict[str, object]:
    own = {"train_data_dir": place / "after", "reference_dir": place / "before", "output_dir": output}
    few = {"targets": "['*.0.attn*']", "sample_every": 2, "batch_size": 2, "resolution": 64, "val_split": 0.2}
    return {"base_model": place / "base.safetensors", **tiny_flux2.beside(place), **own, **few, **more}


def final(output: Path) -> bytes:
    return next(output.glob("*.safetensors")).read_bytes()


def test_a_run_that_stopped_goes_on_exactly(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = tmp_path / "one", tmp_path / "again" / "one"
    config = tiny.write_config(tmp_path, **keys(place, one, flip=True, mask_dir=place / "before", val_split=0))
    assert main(["train", "--config", str(config)]) == 2  # two pictures of a name are no mask of it
    capsys.readouterr()
    config = tiny.write_config(tmp_path, **keys(place, one, flip=True))
    with offline():
        stopped(config, 2)
        assert main(["train", "--config", str(config), "--resume"]) == 0
        page = (one / "report.html").read_text("utf-8")
        assert "Made from: make it night" in page and chinese.translated(f"a reference of {place / 'before'}")
        assert "a reference of" in capsys.readouterr().out
        assert main(["train", "--config", str(config), f"output_dir={two}"]) == 0
    assert final(one) == final(two)
    picture(place / "before" / "1_2.png", (64, 80))
    assert main(["train", "--config", str(config), "--resume"]) == 2
    assert "reference 2 of 1.png" in capsys.readouterr().err
    picture(place / "before" / "1_2.png")


def test_what_is_learnt_comes_from_the_references(place: Path, tmp_path: Path) -> None:
    """Other ones give another LoRA; without the folder it is another again."""
    other = tmp_path / "before"
    other.mkdir()
    for path in (place / "before").iterdir():
        Image.open(path).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(other / path.name)
    made = []
    for number, given in enumerate((place / "before", other, "null")):
        output = tmp_path / str(number)
        config = tiny.write_config(tmp_path, **keys(place, output, reference_dir=given, epochs=1, report="one"))
        with offline():
            assert main(["train", "--config", str(config)]) == 0
        made.append(load_file(next(output.glob("*.safetensors"))))
    for one, two in ((0, 1), (0, 2), (1, 2)):
        assert any(not torch.equal(made[one][key], made[two][key]) for key in made[0])


def test_val_data_dir_has_its_references_in_the_same_folder(place: Path, tmp_path: Path) -> None:
    """And neither half's are strangers to the other."""
    for number in range(5):
        half = tmp_path / ("held" if number > 2 else "after")
        half.mkdir(exist_ok=True)
        for name in (f"{number}.png", f"{number}.txt"):
            shutil.copyfile(place / "after" / name, half / name)
    own = {"train_data_dir": tmp_path / "after", "val_data_dir": tmp_path / "held", "val_split": 0.1}
    asked = keys(place, tmp_path / "out", **own)
    del asked["val_split"]
    ready = preflight(load_config(tiny.write_config(tmp_path, **asked)), resume=None)
    halves = (ready.samples.trained, ready.samples.held_out)
    assert [[one.name for s in half for one in s.references] for half in halves] == [
        ["0.jpg", "1_1.png", "1_2.png", "2.jpg"],
        ["3.jpg", "4.jpg"],
    ]
    assert not ready.notes


def test_a_plan_knows_the_references(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They go with the samples into the process that rehearses."""
    config = load_config(tiny.write_config(tmp_path, **keys(place, tmp_path / "out")))
    asked, scratch = preflight(config, resume=None).samples, tmp_path / "scratch"
    given: list[Any] = []
    monkeypatch.setattr(worker, "Rehearsal", lambda config, samples, *rest: given.append(samples) or mock.Mock())
    also = json.loads(json.dumps(stage_of(asked, scratch, 0, ignore).also))
    told = config.model_dump(mode="json", exclude_unset=True)
    task = {"config": told, "scratch": str(scratch), "memory": 0, "profile": False, **also}
    worker.rehearse(task, lambda values: None)
    assert given[0].trained == asked.trained and given[0].held_out == asked.held_out
    assert [len(one.references) for one in asked.trained].count(1) >= 3


def test_a_reference_that_goes_during_a_run_costs_no_lora(place: Path, tmp_path: Path, capsys: Any) -> None:
    """Its preview says which file it misses, and so does the report, which --resume makes once it is back."""
    before = Path(shutil.copytree(place / "before", tmp_path / "before"))
    gone, kept = before / "0.jpg", (before / "0.jpg").read_bytes()
    output, train_steps = tmp_path / "out", stepping.train_steps
    config = tiny.write_config(
        tmp_path, **keys(place, output, reference_dir=before, val_split=0, epochs=1, batch_size=1)
    )

    def losing(parts: Any, *given: Any, **more: Any) -> bool:
        made = parts.feed.steps

        def steps(*asked: Any) -> Any:
            for number, step in enumerate(made(*asked)):
                if number == 3:
                    gone.unlink()
                yield step

        parts.feed.steps = steps
        return train_steps(parts, *given, **more)

    with offline(), mock.patch.object(stepping, "train_steps", losing):
        assert main(["train", "--config", str(config)]) == 2
    said = capsys.readouterr()
    assert f"preview 1 of step 4 failed ({gone}: no such file); the training goes on" in said.out + said.err
    assert f"{gone}: no such file; {(output / 'out.safetensors').as_posix()} is finished" in said.err
    learnt = final(output)
    gone.write_bytes(kept)
    with offline():
        assert main(["train", "--config", str(config), "--resume"]) == 0
    assert final(output) == learnt and (output / "report.html").exists()


def test_a_grid_draws_from_the_references_of_the_run(place: Path, tmp_path: Path) -> None:
    """Where the run names no prompts, as its previews."""
    config = load_config(tiny.write_config(tmp_path, **keys(place, tmp_path / "out")))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.yaml").write_text(dump_config(config))
    (tmp_path / "out" / "out.safetensors").write_bytes(b"")
    found = find_sources(GridOptions(output=tmp_path / "g", checkpoints=(str(tmp_path / "out"),))).prompts
    samples = preflight(config, resume=None).scanned
    assert list(found) == list(map(line_of, samples[:2])) and [len(one.references) for one in found] == [1, 2]


def test_generate_draws_from_a_reference(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of its shape, with the base's pixels, where no size is asked for; a line of a file names its own."""
    wide = picture(tmp_path / "wide.png", (128, 64))
    flags = ["--base", str(place / "base.safetensors"), "--steps", "1", "--lora-dir", str(tmp_path)]
    beside = tiny_flux2.beside(place)
    flags += ["--vae", str(beside["vae"]), "--text-encoder", *map(str, beside["text_encoder"])]
    lines = tmp_path / "prompts.txt"
    lines.write_text(f"hello --w 128 --h 64 --ref {wide}\nhello --w 128 --h 64\n")
    out = tmp_path / "out.png"
    with offline():
        assert main(["generate", *flags, "--from-file", str(lines), "--output", str(out)]) == 0
    one, two = (Image.open(tmp_path / f"out-{n}.png") for n in (1, 2))
    assert one.tobytes() != two.tobytes()
    assert "wide.png" in one.info["parameters"] and "wide.png" not in two.info["parameters"]
    capsys.readouterr()
    assert main(["generate", *flags, "--prompt", "a", "--reference", *[str(wide)] * 5]) == 2
    assert "5 references: FLUX.2 klein takes 4" in capsys.readouterr().err
    lines.write_text(f"hello\nmake it night {f'--ref {wide} ' * 5}\n")
    assert main(["generate", *flags, "--from-file", str(lines)]) == 2
    assert f"{lines}:2: 5 references: FLUX.2 klein takes 4; leave some out" in capsys.readouterr().err
    lines.write_text("hello --ref nowhere.png\n")
    assert main(["generate", *flags, "--from-file", str(lines)]) == 2
    assert "prompts.txt:1: --ref nowhere.png: no such picture" in capsys.readouterr().err


def test_a_preview_from_too_many_is_named(place: Path, tmp_path: Path) -> None:
    shown = picture(tmp_path / "wide.png", (128, 64)).as_posix()
    prompts = f"['hello --ref {shown}', 'make it night {f'--ref {shown} ' * 5}']"
    config = load_config(tiny.write_config(tmp_path, **keys(place, tmp_path / "out", sample_prompts=prompts)))
    told = faults(lambda: preflight(config, resume=None))
    assert told == "'make it night': 5 references: FLUX.2 klein takes 4; leave some out"


def test_a_base_that_does_not_edit_says_so(base: Path, data: Path, tmp_path: Path, capsys: Any) -> None:
    before = picture(tmp_path / "b" / "0.png").parent
    config = tiny.write_config(tmp_path, base_model=base, train_data_dir=data, reference_dir=before)
    assert main(["train", "--config", str(config)]) == 2
    assert "reference_dir: is for models that edit pictures" in capsys.readouterr().err
    wide = picture(tmp_path / "wide.png", (128, 64))
    assert main(["generate", "--base", str(base), "--prompt", "a", "--reference", str(wide)]) == 2
    assert (
        "1 reference: Stable Diffusion 1.x takes none; leave them out, or give a base that edits: FLUX"
        in capsys.readouterr().err
    )
