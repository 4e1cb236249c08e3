"""Samplers by name, pictures to begin with, batches, files of prompts, what a PNG tells, LoRAs on, off and merged."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from PIL import Image

import tiny
from conftest import offline
from lora_scripts.adapters.layer import lora_shapes
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.cli import main
from lora_scripts.errors import UserError
from lora_scripts.families.base import Sampling
from lora_scripts.families.clip.tokenizer import clip_tokenizer
from lora_scripts.families.samplers import SAMPLERS, build, find_sampler, sample, steps_done
from lora_scripts.families.sd.steps import SCHEDULE
from lora_scripts.families.sd1.names import sd1
from lora_scripts.formats import io
from lora_scripts.formats.hashes import model_hashes, sha256_of
from lora_scripts.generate import known_by
from lora_scripts.generate.png import infotext
from lora_scripts.generate.prompt import by_name, find_lora, parse_prompt
from lora_scripts.loras import kohya
from lora_scripts.loras.stack import LoraStack, Worn
from lora_scripts.losses.diffusion import schedule
from runs import faults

SMALL = Sampling(steps=3, cfg=3.0, size=(64, 64))


@pytest.fixture(scope="module")
def loras(family: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`all` in every layer, `some` in a few, `dora` a DoRA in some of the same."""
    folder = tmp_path_factory.mktemp("loras")
    for name, rank in (("all", 2), ("some", 3), ("dora", 2)):
        g, weights = torch.Generator().manual_seed(rank), {}
        for path, layer in family.trainable().items():
            if name == "all" or ".up_blocks.1." in path or "mlp" in path:
                down, up = lora_shapes(layer, rank)
                a, b = torch.randn(down, generator=g) / down[1] ** 0.5, 0.05 * torch.randn(up, generator=g)
                length = None
                if name == "dora":
                    length = layer.weight.square().transpose(0, 1).flatten(1).sum(1).sqrt() * 1.2
                    length = length.view(1, -1, *[1] * (layer.weight.dim() - 2))
                weights[path] = LoraWeights(a, b, 1.0, length)
        io.save_safetensors(folder / f"{name}.safetensors", kohya.to_kohya(weights, sd1().kohya, dtype=torch.float32))
    return folder


# --- samplers ---------------------------------------------------------------------------------------------------------

MEAN, SPREAD = 2.5, 0.5


def gaussian(prediction: str, zero: bool) -> Any:
    """The exact answer of a model for latents that are normal numbers of this mean and spread; t may be a fraction."""
    levels = schedule(prediction, zero_terminal_snr=zero)  # type: ignore[arg-type]
    ratio = (levels.noise.double() / levels.signal.double().clamp(min=2.0**-12)).numpy()

    def answer(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if prediction == "flow":
            noise = float(t) / 1000
            signal = 1 - noise
        else:
            sigma = float(np.interp(float(t), np.arange(1000), ratio))
            signal, noise = 1 / (1 + sigma**2) ** 0.5, sigma / (1 + sigma**2) ** 0.5
        x0 = (SPREAD**2 * signal * x.double() + noise**2 * MEAN) / (SPREAD**2 * signal**2 + noise**2)
        e = (x.double() - signal * x0) / max(noise, 1e-12)
        return {"epsilon": e, "v": signal * e - noise * x0, "flow": e - x0}[prediction].float()

    return answer


@pytest.mark.parametrize("kind", ["epsilon", "v", "v zero"])
@pytest.mark.parametrize("name", [sampler.name for sampler in SAMPLERS])
def test_every_sampler_draws_from_the_distribution_that_the_model_knows(name: str, kind: str) -> None:
    """Mean and spread of what comes out, against those that the model's exact answers are for. With a terminal SNR of
    zero the mean, far from 0, is met exactly (Lin et al. 2023); without, a little of it is lost."""
    prediction, zero = kind.split()[0], kind.endswith("zero")
    sampler = find_sampler(name)
    scheduler = build(sampler, prediction, zero_terminal_snr=zero, schedule=SCHEDULE)  # type: ignore[arg-type]
    generators = [torch.Generator().manual_seed(i) for i in range(4)]
    noise = torch.stack([torch.randn(4, 32, 32, generator=g) for g in generators])
    drawn = sample(scheduler, sampler, 40, noise, generators, gaussian(prediction, zero))
    lost = 0.02 if zero else 0.05
    assert abs(drawn.mean().item() - MEAN) < lost * MEAN
    # LCM takes each step's guess for the picture, so that only its last noise is left of the spread.
    assert name == "LCM" or abs(drawn.std().item() - SPREAD) < 0.13 * SPREAD


def test_flow_is_sampled_by_euler_alone() -> None:
    sampler = find_sampler(None, "flow")
    generators = [torch.Generator().manual_seed(0)]
    noise = torch.randn(1, 4, 32, 32, generator=generators[0])
    scheduler = build(sampler, "flow", zero_terminal_snr=False, schedule=SCHEDULE)
    drawn = sample(scheduler, sampler, 40, noise, generators, gaussian("flow", False))
    assert abs(drawn.mean().item() - MEAN) < 0.05 and abs(drawn.std().item() - SPREAD) < 0.05
    with pytest.raises(UserError, match="cannot sample a base that predicts flow; use Euler"):
        find_sampler("DDIM", "flow")


@pytest.mark.parametrize(
    ("written", "name"),
    [("euler_a", "Euler a"), ("EULER A", "Euler a"), ("dpm++-2m-karras", "DPM++ 2M Karras"), ("ddim", "DDIM")],
)
def test_samplers_are_found_as_people_write_them(written: str, name: str) -> None:
    assert find_sampler(written).name == name


def test_an_unknown_sampler_brings_the_nearest() -> None:
    with pytest.raises(UserError, match=r"did you mean 'DPM\+\+ 2M SDE Karras'\? There are DPM\+\+ 2M Karras, "):
        find_sampler("DPM++ SDE Karras")
    with pytest.raises(UserError, match="takes at most 50 steps"):
        find_sampler("LCM", steps=51)
    assert find_sampler(None).webui == ("DPM++ 2M", "Karras") and find_sampler("UniPC").webui == ("UniPC", "Automatic")
    assert find_sampler("DPM++ 2M").webui == ("DPM++ 2M", "Uniform")  # "Automatic" would be Karras there


def pipeline(kind: Any) -> Any:
    unet, vae, text = tiny.models()
    schedule = {k: v for k, v in SCHEDULE.items() if k.startswith("beta")}
    parts = {"tokenizer": clip_tokenizer(), "scheduler": EulerAncestralDiscreteScheduler(**schedule)}
    pipe = kind(
        vae, text, unet=unet, safety_checker=None, feature_extractor=None, requires_safety_checker=False, **parts
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def difference(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max())


@torch.no_grad()
def test_euler_a_and_a_picture_to_begin_with_are_as_in_diffusers(family: Any) -> None:
    asked = {"num_inference_steps": 5, "guidance_scale": 3.0, "generator": torch.Generator().manual_seed(3)}
    theirs = pipeline(StableDiffusionPipeline)("a house", width=64, height=64, **asked).images[0]
    ours = family.generate("a house", 3, Sampling(5, 3.0, "", (64, 64), "euler_a"))
    assert difference(ours, theirs) <= 2

    # From other seeds this random model blows rounding up to two steps of 255, whoever computes it.
    start = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    latents = family.encode_image(start[None])["mean"]
    asked["generator"] = torch.Generator().manual_seed(5)
    theirs = pipeline(StableDiffusionImg2ImgPipeline)("a house", image=latents, strength=0.6, **asked).images[0]
    ours = family.generate("a house", 5, Sampling(5, 3.0, "", (64, 64), "euler_a", start=start, denoise=0.6))
    assert difference(ours, theirs) <= 2


@pytest.mark.parametrize("name", [sampler.name for sampler in SAMPLERS])
def test_less_denoising_leaves_more_of_the_picture(name: str) -> None:
    """With exact answers: a picture keeps most of what it was at 0.1, less at 0.4, nothing at 1."""
    sampler, g = find_sampler(name), torch.Generator().manual_seed(0)
    start = torch.randn(4, 16, 16, generator=g) * SPREAD + MEAN

    def left(denoise: float) -> float:
        scheduler = build(sampler, "epsilon", zero_terminal_snr=False, schedule=SCHEDULE)
        noise = torch.randn(1, 4, 16, 16, generator=g)
        drawn = sample(scheduler, sampler, 20, noise, [g], gaussian("epsilon", False), start=start, denoise=denoise)
        return torch.corrcoef(torch.stack([drawn.flatten(), start.flatten()]))[0, 1].item()

    little, more, all_of_it = left(0.1), left(0.4), left(1.0)
    assert little > 0.65 and more < little - 0.2 and all_of_it < 0.3


def test_steps_of_a_denoising_strength_do_not_fall_to_rounding() -> None:
    assert [steps_done(100, x) for x in (0.29, 0.57, 0.58, 1.0)] == [29, 57, 58, 100]
    assert steps_done(20, 0.6) == 12 and steps_done(5, 0.1) == 0


def test_the_family_samples_v_and_zero_terminal_snr_with_the_named_sampler(family: Any) -> None:
    drawn, plain = [], family.settings
    for prediction, zero in (("epsilon", False), ("v", False), ("v", True)):
        family.settings = replace(plain, prediction=prediction, zero_terminal_snr=zero)
        try:
            drawn.append(np.asarray(family.generate("a house", 1, Sampling(3, 1.0, "", (64, 64), "Euler a"))))
        finally:
            family.settings = plain
    assert all(not np.array_equal(one, other) for one, other in itertools.pairwise(drawn))


@pytest.mark.parametrize("name", ["Euler a", "DPM++ 2M SDE Karras", "LCM", "DPM++ 2M Karras"])
def test_a_picture_does_not_depend_on_its_batch(family: Any, name: str) -> None:
    sampling = Sampling(3, 3.0, "ugly", (64, 64), name)
    together = family.draw("a house", [5, 6, 7], sampling)
    alone = [family.generate("a house", seed, sampling) for seed in (5, 6, 7)]
    assert max(difference(a, b) for a, b in zip(alone, together, strict=True)) <= 1
    assert difference(together[0], together[1]) > 20


# --- LoRAs on, off and merged -----------------------------------------------------------------------------------------


def contents(family: Any) -> dict[str, bytes]:
    return {
        f"{root}.{name}": bytes(io.tensor_bytes(tensor))
        for root, part in family.roots.items()
        for name, tensor in part.state_dict().items()
    }


@pytest.fixture
def stacks(family: Any) -> Iterator[list[LoraStack]]:
    made: list[LoraStack] = []
    yield made
    for stack in made:
        stack.take_off()


@pytest.mark.parametrize("merged", [False, True])
def test_taking_a_lora_off_gives_back_the_base_bit_for_bit(
    family: Any, loras: Path, stacks: list[LoraStack], merged: bool
) -> None:
    before, plain = contents(family), family.generate("a house", 1, SMALL)
    layouts = {name: p.stride() for name, p in family.unet.named_parameters()}
    stacks.append(stack := LoraStack(family, merged=merged))
    one, two = loras / "all.safetensors", loras / "some.safetensors"
    drawn = []
    for wanted in ([Worn(one, 0.8, 0.8)], [Worn(one, 0.8, 0.8), Worn(two, -0.5, 1.5)], [Worn(two, 0, 1.0)], []):
        stack.wear(wanted)
        drawn.append(family.generate("a house", 1, SMALL))
        if merged:
            assert {name: p.stride() for name, p in family.unet.named_parameters()} == layouts
    assert contents(family) == before
    assert np.array_equal(drawn[-1], plain)
    assert all(difference(a, b) > 0 for a, b in itertools.pairwise(drawn))


@pytest.mark.parametrize(
    "wanted",
    [
        [("all", 0.8, 0.8)],
        [("all", 0.8, 0.3), ("some", -0.7, 1.2)],
        [("some", 1.0, 1.0), ("dora", 0.7, 0.5)],
        [("dora", 0.7, 0.5), ("all", 0.4, 0.0)],
    ],
)
def test_merged_pictures_are_those_of_loras_beside_the_weights(
    family: Any, loras: Path, stacks: list[LoraStack], wanted: list[tuple[str, float, float]]
) -> None:
    worn = [Worn(loras / f"{name}.safetensors", unet, text) for name, unet, text in wanted]
    drawn = []
    for merged in (False, True):
        stacks.append(stack := LoraStack(family, merged=merged))
        stack.wear(worn)
        drawn.append(family.generate("a house", 1, SMALL))
        stack.take_off()
    assert difference(*drawn) <= 1
    assert difference(drawn[0], family.generate("a house", 1, SMALL)) > 5


def test_the_two_strengths_go_to_unet_and_text_encoder(family: Any, loras: Path, stacks: list[LoraStack]) -> None:
    """Against files that hold the layers of one part alone."""
    tensors = io_load(loras / "all.safetensors")
    for part, prefix in (("unet", "lora_unet_"), ("text", "lora_te_")):
        kept = {key: value for key, value in tensors.items() if key.startswith(prefix)}
        io.save_safetensors(loras / f"only_{part}.safetensors", kept)
    stacks.append(stack := LoraStack(family))
    stack.wear([Worn(loras / "all.safetensors", 0.8, -0.4)])
    both = family.generate("a house", 1, SMALL)
    stack.wear([Worn(loras / "only_unet.safetensors", 0.8, 9.0), Worn(loras / "only_text.safetensors", 9.0, -0.4)])
    assert difference(both, family.generate("a house", 1, SMALL)) == 0


def io_load(path: Path) -> dict[str, torch.Tensor]:
    import safetensors.torch

    return safetensors.torch.load_file(path)


# --- the command line -------------------------------------------------------------------------------------------------


def read_infotext(text: str) -> dict[str, str]:
    """As the WebUI's documentation has it: the last line is pairs "Key: value", a value in quotes is JSON, what stands
    above is the prompt, from "Negative prompt:" on the negative one; WxH is two numbers."""
    *above, last = text.strip().split("\n")
    pairs = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last)
    assert len(pairs) >= 3
    found: dict[str, str] = {}
    prompts: dict[str, list[str]] = {"Prompt": [], "Negative prompt": []}
    where = "Prompt"
    for line in above:
        if line.startswith("Negative prompt:"):
            where, line = "Negative prompt", line.removeprefix("Negative prompt:").strip()
        prompts[where].append(line)
    found |= {key: "\n".join(lines) for key, lines in prompts.items()}
    for key, value in pairs:
        value = json.loads(value) if value.startswith('"') else value
        if size := re.fullmatch(r"(\d+)x(\d+)", value):
            found[f"{key}-1"], found[f"{key}-2"] = size[1], size[2]
        else:
            found[key] = value
    return found


def call(base: Path, loras: Path, output: Path, *more: str) -> int:
    argv = ["generate", "--base", str(base), "--lora-dir", str(loras), "--output", str(output)]
    settings = ["--steps", "2", "--precision", "fp32", "--device", "cpu", "--cfg", "3"]
    with offline():
        return main([*argv, *settings, *more])


def test_the_webui_reads_all_parameters_back(base: Path, loras: Path, tmp_path: Path) -> None:
    picture = tmp_path / "in.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned: 96 x 64 as stored, 64 x 96 as seen
    Image.linear_gradient("L").resize((97, 66)).convert("RGB").save(picture, exif=exif)
    prompt = 'a "house", 夜: <lora:all:0.8:0.5> by night, <lora:some:-0.25>'
    words = ["--prompt", prompt, "--negative-prompt", "ugly, text: none", "--seed", "7", "--scheduler", "euler_a"]
    more = ["--image", str(picture), "--denoise", "0.6", "--clip-skip", "1"]
    assert call(base, loras, tmp_path / "a.png", *words, *more) == 0
    image = Image.open(tmp_path / "a.png")
    assert image.size == (64, 96)
    told = read_infotext(image.text["parameters"])
    hashes = {n: model_hashes(loras / f"{n}.safetensors").sshs_model_hash[:12] for n in ("all", "some")}
    assert (
        {key: told[key] for key in told if key != "Version"}
        == {
            "Prompt": prompt.replace(":0.8:0.5>", ":unet=0.8:te=0.5>"),  # bare, it takes them the other way round
            "Negative prompt": "ugly, text: none",
            "Steps": "2",
            "Sampler": "Euler a",
            "Schedule type": "Automatic",
            "CFG scale": "3",
            "Seed": "7",
            "Size-1": "64",
            "Size-2": "96",
            "Model hash": model_hashes(base).sha256[:10],
            "Model": "base",
            "Denoising strength": "0.6",
            "Lora hashes": f"all: {hashes['all']}, some: {hashes['some']}",
        }
    )
    assert told["Version"].startswith("lora-scripts ")


def test_strengths_by_name_are_the_same_call() -> None:
    for tag in ("<lora:a>", "<lora:a:0.8>", "<lora:a:0.8:0.5>", "<lora: a : -1 : .25 >", "<lora:a:unet=1:te=0>"):
        text = f"a house, {tag} by night"
        assert parse_prompt(by_name(text)) == parse_prompt(text)
    assert by_name("<lora:a:0.8:0.5> b") == "<lora:a:unet=0.8:te=0.5> b"
    assert by_name("<lora:a:0.8> b") == "<lora:a:0.8> b"


def test_the_hash_of_a_base_is_made_once_beside_other_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, readings, both = tmp_path / "base.safetensors", list[Path](), threading.Barrier(2, timeout=60)
    file.write_bytes(b"numbers")

    def slow(path: Path) -> str:
        both.wait()
        readings.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(known_by, "sha256_of", slow)
    known_by.begin(file)
    known_by.begin(file)
    known_by.begin(tmp_path)  # a folder has none
    both.wait()
    assert known_by.model_hash(file) == hashlib.sha256(b"numbers").hexdigest()[:10] and readings == [file]
    assert known_by.model_hash(tmp_path) is None
    file.write_bytes(b"other numbers")
    monkeypatch.setattr(known_by, "sha256_of", sha256_of)
    assert known_by.file_hash(file) == hashlib.sha256(b"other numbers").hexdigest()
    file.write_bytes(b"numbers that nobody can read")
    monkeypatch.setattr(known_by, "sha256_of", lambda path: sha256_of(path / "away"))
    with pytest.raises(UserError, match="cannot be read"):
        known_by.model_hash(file)


def test_odd_values_survive_the_text() -> None:
    rows = {"Steps": 1, "Model": 'a, "b": \\ c', "Sampler": "Euler a", "Absent": None, "Note": "x\ny"}
    told = read_infotext(infotext("a\nb", "c\nd", rows))
    assert told["Model"] == 'a, "b": \\ c' and told["Note"] == "x\ny" and "Absent" not in told
    assert told["Prompt"] == "a\nb" and told["Negative prompt"] == "c\nd"


def test_a_file_of_prompts_is_drawn_line_by_line(base: Path, loras: Path, tmp_path: Path) -> None:
    """Each picture is the one that its line's words would draw alone: LoRAs come and go without a trace."""
    file = tmp_path / "prompts.txt"
    lines = ["a house", "a house <lora:all:0.8> --n ugly --d 9 --s 3 --l 2", "# no", "a house --w 64 --h 128"]
    file.write_text("\n".join(lines), encoding="utf-8")
    assert call(base, loras, tmp_path / "p.png", "--from-file", str(file), "--count", "2", "--batch", "2") == 0
    drawn = [Image.open(tmp_path / f"p-{n}.png") for n in range(1, 7)]
    assert [image.size for image in drawn] == [(64, 64)] * 4 + [(64, 128)] * 2
    assert call(base, loras, tmp_path / "a.png", "--prompt", "a house") == 0
    words = ["--prompt", "a house <lora:all:0.8>", "--negative-prompt", "ugly", "--seed", "9"]
    assert call(base, loras, tmp_path / "b.png", *words, "--steps", "3", "--cfg", "2", "--merged") == 0
    assert difference(drawn[0], Image.open(tmp_path / "a.png")) <= 1
    assert difference(drawn[2], Image.open(tmp_path / "b.png")) <= 1
    assert difference(drawn[0], drawn[2]) > 5
    told = read_infotext(drawn[3].text["parameters"])
    assert (told["Seed"], told["Steps"], told["CFG scale"], told["Negative prompt"]) == ("10", "3", "2", "ugly")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ([], "give one of --prompt and --from-file"),
        (["--prompt", "a", "--from-file", "p.txt"], "give one of --prompt and --from-file"),
        (["--prompt", "a", "--denoise", "0.5"], "--denoise does nothing without --image"),
        (["--prompt", "a", "--batch", "2"], "--batch 2: there is no more than --count 1 of a prompt"),
        (["--prompt", "a", "--merged"], "--merged does nothing without a LoRA"),
        (["--prompt", "a", "--scheduler", "Euller"], "scheduler 'Euller' is not known; did you mean 'Euler'?"),
        (["--prompt", "a", "--image", "none.png"], "none.png: "),
        (["--prompt", "a", "--image", "in.png", "--denoise", "0.1"], "--denoise 0.1 of 2 steps is none"),
        (["--from-file", "p.txt"], "p.txt:2: unknown option --q"),
    ],
)
def test_mistakes_are_told_before_the_base_is_opened(
    base: Path,
    tmp_path: Path,
    never_loaded: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base.safetensors").write_bytes(base.read_bytes())
    Path("p.txt").write_text("a\nb --q 1\n")
    Image.new("RGB", (64, 64)).save("in.png")
    assert call(Path("base.safetensors"), tmp_path, tmp_path / "a.png", *more) == 2
    assert capsys.readouterr().err.startswith(f"error: {told}")


def test_trials_of_tune_are_named_last(tmp_path: Path) -> None:
    for name in [*(f"mine/tune/x/rate-{n}/rate-{n}" for n in range(9)), "mine/zebra"]:
        path = tmp_path / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert "; there is zebra, rate-0, " in faults(lambda: find_lora("nothing", tmp_path))
    assert find_lora("rate-3", tmp_path).stem == "rate-3"
