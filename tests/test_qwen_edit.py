"""Qwen-Image-Edit, on a narrow random model: what it sees, against transformers' own tower and diffusers' pipeline."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import QwenImageEditPlusPipeline, QwenImageTransformer2DModel
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as edit_plus
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import flow_checks
import tiny
import tiny_flow
import tiny_qwen
from conftest import offline
from flow_checks import OPTIONS, PROMPTS
from lora_scripts.cli import main
from lora_scripts.config.load import load_config
from lora_scripts.data.image import apply_view, load_rgb
from lora_scripts.data.references import seen_beside
from lora_scripts.families.base import Batch, Sampling
from lora_scripts.families.qwen_image import layout, tower
from lora_scripts.families.qwen_image.check import CHECKPOINT
from lora_scripts.families.qwen_image.seeing import SeeingEncoder, patches
from lora_scripts.families.table import by_name, find, identify, load_family
from lora_scripts.losses.noise import Draws
from runs import faults, stopped

FACTS = by_name("qwen_image")
SIZES = ((64, 96), (96, 64))
PROMPT, SIGN = PROMPTS[0], "<|image_pad|>"


def picture(path: Path, size: tuple[int, int] = (64, 64), seed: int | None = None) -> Path:
    """Blocks of colours, another one for each name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list(path.stem.encode()) if seed is None else seed)
    small = Image.fromarray(rng.integers(0, 255, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8))
    small.resize(size, Image.Resampling.NEAREST).save(path)
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As of 2511: with its mark, and the parts beside it."""
    path = tiny_qwen.write_base(tmp_path_factory.mktemp("edit") / "edit.safetensors")
    return tiny_flow.write_transformer(path, {**load_file(path), layout.APART: torch.zeros(0)})


@pytest.fixture(scope="module")
def family(base: Path) -> Any:
    return load_family(FACTS, base, replace(OPTIONS, **tiny_qwen.beside(base.parent)))


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("references")
    return [picture(folder / f"{number}.png", size) for number, size in enumerate(SIZES)]


def shown(paths: list[Path]) -> list[torch.Tensor]:
    return seen_beside(paths, (64, 96), FACTS.bucket_steps)


class Theirs:
    """diffusers' pipeline, and what it should have asked of transformers."""

    def __init__(self, *, apart: bool) -> None:
        made, processor = tiny_qwen.models(), Qwen2VLImageProcessorPil()
        config = {**made.transformer.config, "zero_cond_t": apart, "_use_default_values": []}
        transformer = QwenImageTransformer2DModel.from_config(config).eval()
        assert transformer.zero_cond_t is apart
        transformer.load_state_dict(made.transformer.state_dict())
        self.text, self.tokenizer, self.processor = made.text, made.tokenizer, processor
        self.pipe = QwenImageEditPlusPipeline(
            tiny_qwen.scheduler(), made.vae, made.text, made.tokenizer, None, transformer
        )
        self.pipe.set_progress_bar_config(disable=True)

    @torch.no_grad()
    def states(self, prompt: str, images: list[Image.Image], *, places: bool = True) -> torch.Tensor:
        """[1, tokens, width]; without `places` transformers is not told which tokens are a picture's."""
        pipe = self.pipe
        sizes = [edit_plus.calculate_dimensions(384 * 384, one.width / one.height) for one in images]
        resized = [pipe.image_processor.resize(one, *size[::-1]) for one, size in zip(images, sizes, strict=True)]
        seen = self.processor(images=resized, return_tensors="pt")
        counts = seen["image_grid_thw"].prod(1) // 4
        words = [f"Picture {n}: <|vision_start|>{SIGN * c}<|vision_end|>" for n, c in enumerate(counts, 1)]
        text = pipe.prompt_template_encode.format("".join(words) + prompt)
        ids = self.tokenizer(text, return_tensors="pt")["input_ids"]
        kinds = (ids == self.text.config.image_token_id).int()
        out = self.text(ids, **seen, mm_token_type_ids=kinds if places else None, output_hidden_states=True)
        states: torch.Tensor = out.hidden_states[-1][:, pipe.prompt_template_encode_start_idx :]
        return states


@pytest.fixture(scope="module", params=[True, False], ids=["2511", "2509"])
def apart(request: pytest.FixtureRequest) -> bool:
    told: bool = request.param
    return told


# --- what it sees -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (96, 40), (1024, 768), (640, 1600)])
def test_a_picture_is_cut_into_the_patches_of_their_processor(size: tuple[int, int], tmp_path: Path) -> None:
    image = Image.open(picture(tmp_path / "a.png", size))
    pipe = Theirs(apart=True).pipe
    wide, high = edit_plus.calculate_dimensions(384 * 384, size[0] / size[1])
    want = Qwen2VLImageProcessorPil()(images=[pipe.image_processor.resize(image, high, wide)], return_tensors="pt")
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1
    rows, grid = patches(pixels)
    assert (1, *grid) == tuple(want["image_grid_thw"][0].tolist())
    assert torch.equal(rows, want["pixel_values"])


@torch.no_grad()
def test_captions_are_read_beside_pictures_as_the_model_was_made_to(family: Any, paths: list[Path]) -> None:
    """Their places along height and width count: without them, as diffusers asks a newer transformers, it is off."""
    theirs, images = Theirs(apart=True), [Image.open(path) for path in paths]
    for some in (images, images[:1]):
        ours = family.encode_text([PROMPT], shown(paths)[: len(some)])
        want = theirs.states(PROMPT, some)
        assert ours["states"].shape == want.shape and ours["lengths"].tolist() == [want.shape[1]]
        assert (ours["states"] - want).abs().max() < 1e-4 * want.abs().max()
        flat = theirs.states(PROMPT, some, places=False)
        assert (flat - want).abs().max() > 1e-2 * want.abs().max()


@torch.no_grad()
def test_a_caption_alone_is_read_alike_with_a_tower_and_without(base: Path, paths: list[Path]) -> None:
    family: Any = load_family(FACTS, base, replace(OPTIONS, **tiny_qwen.beside(base.parent)))
    alone = family.encode_text(PROMPTS)["states"]
    assert not hasattr(family.encoder._model, "visual")
    family.encode_text([PROMPT], shown(paths))
    assert hasattr(family.encoder._model, "visual")
    assert (family.encode_text(PROMPTS)["states"] - alone).abs().max() < 1e-5 * alone.abs().max()


def test_a_caption_that_holds_a_pictures_sign_is_read_without_it(family: Any, paths: list[Path]) -> None:
    """transformers would look for one more picture than there is."""
    one, two = (family.encode_text([f"a{sign} lamp"], shown(paths))["states"] for sign in (SIGN, ""))
    assert torch.equal(one, two)


def test_what_was_read_is_known_by_the_pictures_too(family: Any, paths: list[Path]) -> None:
    one, two = shown(paths)
    family.encoder.remember([PROMPT], [one])
    read = family.encoder._states_beside
    try:
        family.encoder._states_beside = lambda text, beside: torch.zeros(1, 256)
        kept, other = (family.encode_text([PROMPT], [beside])["lengths"].item() for beside in (one, two))
    finally:
        family.encoder._states_beside = read
    assert kept > 1 == other


# --- what is learnt, and what is drawn --------------------------------------------------------------------------------


@torch.no_grad()
def test_the_loss_is_that_of_the_picture_alone(base: Path, paths: list[Path], apart: bool, tmp_path: Path) -> None:
    """diffusers' transformer is asked by hand, with two references behind the noised picture, which have no noise."""
    family, theirs = _of(base, tmp_path, apart=apart), Theirs(apart=apart)
    g = torch.Generator().manual_seed(5)
    mean, noise = (torch.randn(1, 16, 8, 12, generator=g) for _ in range(2))
    references = [torch.randn(1, 16, high, wide, generator=g) for high, wide in ((12, 8), (8, 12))]
    latents = {"mean": mean, "std": torch.zeros_like(mean)} | {f"reference{n}": r for n, r in enumerate(references)}
    draws = Draws(torch.tensor([0.3]).double(), noise, torch.zeros_like(noise))
    batch = Batch(latents, [PROMPT], family.encode_text([PROMPT], shown(paths)), [""], [])
    sigma = family.objective.sigmas.at(draws.u, 24).float()
    x_t, pack = (1 - sigma) * mean + sigma * noise, theirs.pipe._pack_latents
    packed = [pack(one, 1, 16, *one.shape[2:]) for one in (x_t, *references)]
    answer = theirs.pipe.transformer(
        hidden_states=torch.cat(packed, 1),
        timestep=sigma,
        encoder_hidden_states=theirs.states(PROMPT, [Image.open(path) for path in paths]),
        img_shapes=[[(1, 4, 6), (1, 6, 4), (1, 4, 6)]],
        return_dict=False,
    )[0][:, :24]
    want = (pack(noise - mean, 1, 16, 8, 12) - answer).square().mean().item()
    assert abs(family.losses(batch, family.objective, draws).item() - want) < 1e-5 * want
    other = _of(base, tmp_path / "other", apart=not apart)
    assert abs(other.losses(batch, other.objective, draws).item() - want) > 1e-4 * want


def _of(base: Path, folder: Path, *, apart: bool) -> Any:
    folder.mkdir(exist_ok=True)
    tensors = {key: tensor for key, tensor in load_file(base).items() if key != layout.APART}
    more = {layout.APART: torch.zeros(0)} if apart else {}
    path = tiny_flow.write_transformer(folder / "base.safetensors", {**tensors, **more})
    return load_family(FACTS, path, replace(OPTIONS, **tiny_qwen.beside(base.parent)))


@pytest.mark.parametrize("cfg", [1.0, 4.0])
@torch.no_grad()
def test_a_picture_from_references_is_the_pipelines(
    family: Any, paths: list[Path], cfg: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the same noise; the pipeline cuts pictures and numbers tokens by itself. It is given the states, as it reads
    them otherwise."""
    monkeypatch.setattr(edit_plus, "VAE_IMAGE_SIZE", 64 * 96)
    theirs, images = Theirs(apart=True), [Image.open(path).convert("RGB") for path in paths]
    said: list[torch.Tensor] = []
    hooks = [
        one.register_forward_hook(lambda module, given, answer: said.append(answer[0]))
        for one in (family.transformer, theirs.pipe.transformer)
    ]
    sampling = Sampling(3, cfg, "hello", (64, 96), references=shown(paths))
    ours = family.generate(PROMPT, 7, sampling)
    noise = torch.randn((1, 16, 12, 8), generator=torch.Generator().manual_seed(7))
    states = {"prompt_embeds": PROMPT, "negative_prompt_embeds": "hello"}
    want = theirs.pipe(
        image=images,
        latents=theirs.pipe._pack_latents(noise, *noise.shape),
        **{key: theirs.states(text, images) for key, text in states.items()},
        true_cfg_scale=cfg,
        height=96,
        width=64,
        num_inference_steps=3,
    ).images[0]
    flow_checks.alike(ours, want)
    mine, others = said[:3], said[3:]
    each = list(zip(others[1::2], others[::2], strict=True)) if cfg > 1 else [(one,) for one in others]
    for one, other in zip(mine, each, strict=True):
        off = (one - torch.cat(other)).abs().max()
        assert off < 1e-4 * one.abs().max()
    before = mine[0][-1:]
    family.generate(PROMPT, 7, replace(sampling, references=sampling.references[:1]))
    assert (said[-3][-1:, :24] - before[:, :24]).abs().max() > 100 * off
    for hook in hooks:
        hook.remove()


# --- files ------------------------------------------------------------------------------------------------------------


def test_an_edit_is_known(base: Path, tmp_path: Path) -> None:
    assert identify(base) == CHECKPOINT and layout.layout_of(tiny_shapes(base), base).apart
    plus = tiny_qwen.write_folder(tmp_path / "plus", pipeline="QwenImageEditPlusPipeline")
    assert identify(plus) == CHECKPOINT
    first = tiny_qwen.write_folder(tmp_path / "first", pipeline="QwenImageEditPipeline")
    assert identify(first).words == "the first Qwen-Image-Edit"
    assert "give Qwen-Image-Edit-2511 or -2509" in faults(lambda: find(first))


def tiny_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in load_file(path).items()}


@torch.no_grad()
def test_the_tower_of_a_folder_is_as_its_config_says(
    base: Path, family: Any, paths: list[Path], tmp_path: Path
) -> None:
    """The same numbers as of one file; other windows give others."""
    folder = tiny_qwen.write_folder(tmp_path / "plus", pipeline="QwenImageEditPlusPipeline")
    want = family.encode_text([PROMPT], shown(paths))["states"]

    def read() -> torch.Tensor:
        states: torch.Tensor = load_family(FACTS, folder, OPTIONS).encode_text([PROMPT], shown(paths))["states"]  # type: ignore[attr-defined]
        return states

    assert (read() - want).abs().max() < 1e-5 * want.abs().max()
    config = folder / "text_encoder" / "config.json"
    told = json.loads(config.read_text("utf-8"))
    told["vision_config"]["fullatt_block_indexes"] = [0, 1, 2, 3, 4, 5, 6]
    config.write_text(json.dumps(told), encoding="utf-8")
    assert (read() - want).abs().max() > 1e-3 * want.abs().max()


def test_the_rows_of_the_published_tower_are_its_parameters() -> None:
    """As transformers builds it from the published config: 677 million numbers."""
    config = Qwen2_5_VLVisionConfig(
        depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, out_hidden_size=3584, window_size=112
    )
    with torch.device("meta"):
        model = Qwen2_5_VisionTransformerPretrainedModel(config)
    made = tower.Tower(1280, 32, 3420, 16, 3584, 112, (7, 15, 23, 31), (16, 24, 24))
    table = {row.hf: row.shape for row in tower.rows(made)}
    assert table == {name: tuple(p.shape) for name, p in model.state_dict().items()}
    assert sum(math.prod(shape) for shape in table.values()) == 676_550_144


@torch.no_grad()
def test_a_tower_in_fp8_with_scales_is_read(base: Path, family: Any, paths: list[Path], tmp_path: Path) -> None:
    beside = tiny_qwen.beside(base.parent)
    text = Path(str(beside["text_encoder"][0]))  # type: ignore[index]
    tensors = load_file(text)
    for key in [k for k, v in tensors.items() if v.dim() == 2 and k.startswith("visual.blocks")]:
        scale = tensors[key].abs().max() / 448
        tensors[key] = (tensors[key] / scale).to(torch.float8_e4m3fn)
        tensors |= {f"{key.removesuffix('.weight')}.scale_weight": scale}
    save_file({**tensors, "scaled_fp8": torch.zeros(0)}, tmp_path / "fp8.safetensors")
    (tmp_path / "tokenizer.json").write_bytes((text.parent / "tokenizer.json").read_bytes())
    rounded: Any = {**beside, "text_encoder": [tmp_path / "fp8.safetensors"]}
    ours = load_family(FACTS, base, replace(OPTIONS, **rounded)).encode_text([PROMPT], shown(paths))["states"]  # type: ignore[attr-defined]
    want = family.encode_text([PROMPT], shown(paths))["states"]
    assert 0 < (ours - want).abs().max() < 0.2 * want.abs().max()


@pytest.mark.parametrize(
    ("part", "key", "value", "told"),
    [
        ("vision_config", "num_heads", 7, "num_heads is 7, of 160 channels"),
        ("vision_config", "num_heads", "two", "num_heads is 'two', and not a number"),
        ("vision_config", "fullatt_block_indexes", ["x"], "invalid literal"),
        ("text_config", "rope_parameters", {"mrope_section": [1, 2, 3]}, "mrope_section is [1, 2, 3]"),
        ("vision_config", None, [], ""),
    ],
)
def test_a_folder_whose_config_makes_no_sense_of_its_tower_says_so(
    part: str, key: str | None, value: object, told: str, tmp_path: Path
) -> None:
    """In a line with the file; a table that is empty says nothing."""
    folder = tiny_qwen.write_folder(tmp_path / "plus", pipeline="QwenImageEditPlusPipeline")
    config = folder / "text_encoder" / "config.json"
    said = json.loads(config.read_text("utf-8"))
    if key is None:
        said[part] = value
    else:
        said[part][key] = value
    config.write_text(json.dumps(said), encoding="utf-8")
    assert FACTS.check_sight is not None
    if not told:
        FACTS.check_sight(folder, ())
        return
    assert f"{config}: a value makes no sense ({told}" in faults(lambda: FACTS.check_sight(folder, ()))  # type: ignore[misc]


def test_a_text_encoder_that_cannot_see_says_so(base: Path, data: Path, tmp_path: Path, capsys: Any) -> None:
    """Before anything is loaded, and only where something is to be seen; a torn tower likewise."""
    beside = tiny_qwen.beside(base.parent)
    text = Path(str(beside["text_encoder"][0]))  # type: ignore[index]
    tensors = load_file(text)
    blind, torn = tmp_path / "blind" / "text.safetensors", tmp_path / "torn" / "text.safetensors"
    for path, gone in ((blind, "visual."), (torn, "visual.merger.ln_q")):
        path.parent.mkdir()
        save_file({k: v for k, v in tensors.items() if not k.startswith(gone)}, path)
        (path.parent / "tokenizer.json").write_bytes((text.parent / "tokenizer.json").read_bytes())
    wide = picture(tmp_path / "wide.png", (128, 64))
    flags = ["--base", str(base), "--vae", str(beside["vae"]), "--prompt", "a", "--steps", "1", "--size", "64"]
    for path, words in (
        (blind, "this text encoder has no vision tower"),
        (torn, "1 of 114 tensors of the vision tower are missing"),
    ):
        own = ["--text-encoder", str(path), "--output", str(tmp_path / "out.png")]
        assert main(["generate", *flags, *own, "--reference", str(wide)]) == 2
        assert words in capsys.readouterr().err
        with offline():
            assert main(["generate", *flags, *own]) == 0
        capsys.readouterr()
    before = tmp_path / "before"
    for path in data.glob("*.png"):
        picture(before / path.name)
    keys = {**beside, "text_encoder": [blind], "base_model": base, "train_data_dir": data, "reference_dir": before}
    assert main(["train", "--config", str(tiny.write_config(tmp_path, **keys, resolution=64))]) == 2
    assert "this text encoder has no vision tower" in capsys.readouterr().err


# --- a run ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures, and what they are made from: of one picture two."""
    folder = tmp_path_factory.mktemp("run")
    for number in range(5):
        picture(folder / "after" / f"{number}.png", (64, 64) if number < 3 else (128, 64))
        (folder / "after" / f"{number}.txt").write_text(f"make it night {number % 2}")
        for name in [f"{number}.jpg"] if number != 1 else ["1_1.png", "1_2.png"]:
            picture(folder / "before" / name, (96, 64) if number == 2 else (64, 64))
    return folder


def keys(place: Path, base: Path, output: Path, **more: object) -> dict[str, object]:
    own = {"train_data_dir": place / "after", "reference_dir": place / "before", "output_dir": output}
    few = {"targets": "['*.0.attn*']", "sample_every": 2, "batch_size": 2, "resolution": 64, "val_split": 0.2}
    how = {"flip": True, "caption_dropout": 0.3, "sample_steps": 2, "sample_cfg": 2.0}
    return {"base_model": base, **tiny_qwen.beside(base.parent), **own, **few, **how, **more}


def final(output: Path) -> bytes:
    return next(output.glob("*.safetensors")).read_bytes()


def test_a_run_asks_its_text_encoder_once_and_goes_on_exactly(
    place: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is trained, measured and drawn is read before the transformer comes: mirrored pictures, those without
    their captions, previews and their negative prompts; then the encoder is never loaded again."""
    built: list[str] = []
    build = SeeingEncoder._build

    def told(self: SeeingEncoder) -> Any:
        built.append("built")
        return build(self)

    monkeypatch.setattr(SeeingEncoder, "_build", told)
    one, two = tmp_path / "one", tmp_path / "again" / "one"
    config = tiny.write_config(tmp_path, **keys(place, base, one))
    with offline():
        stopped(config, 2)
        assert built == ["built"]
        assert main(["train", "--config", str(config), "--resume"]) == 0
        assert main(["train", "--config", str(config), f"output_dir={two}"]) == 0
    assert final(one) == final(two) and len(built) == 3  # once in each of the three


def test_references_are_seen_by_the_text_encoder(place: Path, base: Path, tmp_path: Path) -> None:
    """One caption beside two pictures is asked twice, and has two places in the cache."""
    from lora_scripts.run.dataset import planned
    from lora_scripts.run.preflight import preflight
    from lora_scripts.train.asked import all_said

    config = load_config(tiny.write_config(tmp_path, **keys(place, base, tmp_path / "out", val_split=0)))
    samples = preflight(config, resume=None).samples.trained
    asked = all_said(planned(config, FACTS.bucket_steps, samples), sees=True, dropped=True)
    # Five pictures, each as it is and mirrored, each with its caption and without.
    assert len(asked) == 5 * 2 * 2 == len({one.key("f") for one in asked})
    assert [len(one.beside) for one in asked].count(2) == 4
    blind = all_said(planned(config, FACTS.bucket_steps, samples), sees=False, dropped=True)
    assert {one.caption for one in blind} == {"make it night 0", "make it night 1", ""} and len(blind) == 3


def test_tags_that_are_shuffled_are_read_beside_the_references_of_each(
    place: Path, base: Path, family: Any, tmp_path: Path
) -> None:
    """No cache has them: they are read in the step, those together that are shown the same."""
    from lora_scripts.run.dataset import build_feed
    from lora_scripts.run.preflight import preflight

    config = load_config(tiny.write_config(tmp_path, **keys(place, base, tmp_path / "out", val_split=0)))
    feed = build_feed(config, family, preflight(config, resume=None).samples.trained, [])
    rows = [(1, 0, "night, red"), (2, 1, "red, night"), (1, 1, "night, red"), (1, 0, "red")]
    told = feed.texts_of(rows)
    assert told is not None
    for (picture, view, caption), states, length in zip(rows, told["states"], told["lengths"], strict=True):
        beside = [apply_view(load_rgb(one.sample.path), one.views[view]) for one in feed.pictures[picture].references]
        assert torch.equal(states[:length], family.encode_text([caption], beside)["states"][0])
