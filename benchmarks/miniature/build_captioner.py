"""Trains the captioner of the miniature world: a small BLIP that has seen drawn scenes, and pictures that are none.

python -m benchmarks.miniature.build_captioner WORK_FOLDER [--steps N]

Draws the pictures once into WORK_FOLDER, trains on one core (continuing from WORK_FOLDER/captioner.pt), writes
assets/captioner and measures it. For a picture that is no scene of the world its sentence is empty.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import operator
import random
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from benchmarks.miniature import elsewhere, kept
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration

from lora_scripts.data.image import load_rgb
from lora_scripts.demo import world
from lora_scripts.evaluate.scoring import wilson
from lora_scripts.formats import io
from lora_scripts.label.base import CaptionOptions, load_captioner

ASSET = Path(str(resources.files("lora_scripts.demo").joinpath("assets/captioner")))
SIDE, PATCH, WIDTH = 96, 12, 64
CYCLE = ("plain", "neon", "sketch", "plain", "neon")
"""The styles of the training scenes, in turn."""
TRAINING_SEED, FRESH_SEED = 51, 52
"""Seeds of `world.scenes`; the base model's scenes have 7 and 11, the judge's 31 and 32."""
LIMITS = (
    f"knows only the drawn scenes of the miniature world: {len(world.OBJECTS)} objects, {len(world.COLOURS)} colours, "
    f"{len(world.GROUNDS)} grounds, {len(world.SKIES)} skies; says nothing of photographs"
)


PREPROCESSING = {
    "image_processor_type": "BlipImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"height": SIDE, "width": SIDE},
    "resample": int(Image.Resampling.BICUBIC),
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}
"""As `reduced` and `as_input` do it in training."""


# --- pictures and words -----------------------------------------------------------------------------------------------


def reduced(image: Image.Image) -> np.ndarray:
    """uint8 [SIDE, SIDE, 3], as the image processor of BLIP resizes."""
    return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def scenes_of(seed: int, count: int) -> list[world.Scene]:
    """Scenes in the styles of CYCLE."""
    streams = {style: world.scenes(seed, style) for style in world.STYLES}
    return [next(streams[style]) for style in itertools.islice(itertools.cycle(CYCLE), count)]


def drawn(work: Path, count: int) -> tuple[list[str], np.ndarray]:
    """Captions and pictures, uint8 [n, SIDE, SIDE, 3]: `count` scenes and a quarter as many others, drawn once."""
    scenes, others = scenes_of(TRAINING_SEED, count), elsewhere.pictures(TRAINING_SEED)
    path = work / f"captioner_pictures_{SIDE}.npy"
    captions = [world.caption(scene) for scene in scenes] + [""] * (count // 4)
    if not path.exists() or len(np.load(path, mmap_mode="r")) != len(captions):
        images = itertools.chain(map(world.draw, scenes), itertools.islice(others, count // 4))
        np.save(path, np.stack([reduced(image) for image in images]))
    return captions, np.load(path)


WORDS = sorted({word for key in world.all_keys() for word in world.caption(world.Scene(*key)).split()})
VOCABULARY = {word: i for i, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *WORDS))}
LENGTH = 9
"""Words of a caption: all have as many. For other pictures the sentence is as many [UNK], which decode to nothing. Were
it shorter, beam search, which divides by the length, would weigh it otherwise than a caption."""
SLOTS = {"colour": 2, "object": 3, "ground": 5, "sky": 8}
"""The words that a picture decides, and their places in `ids_of`."""


def ids_of(captions: Sequence[str]) -> Tensor:
    """int64 [n, LENGTH + 2]: [DEC] words [SEP], as BLIP's generate() begins and ends; "" becomes [UNK] only."""
    rows = [["[DEC]", *(c.split() or ["[UNK]"] * LENGTH), "[SEP]"] for c in captions]
    return torch.tensor([[VOCABULARY[word] for word in row] for row in rows])


# --- the model --------------------------------------------------------------------------------------------------------


def new_model() -> BlipForConditionalGeneration:
    """A BLIP of 360 thousand parameters. The usual initial range of its positions, 1e-10, would learn too slowly."""
    vision = {
        "image_size": SIDE,
        "patch_size": PATCH,
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "initializer_range": 0.05,
    }
    text = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": WIDTH,
        "encoder_hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,  # of which beams that were not chosen may take more than LENGTH
        "initializer_range": 0.05,
        "bos_token_id": VOCABULARY["[DEC]"],
        "eos_token_id": VOCABULARY["[SEP]"],
        "sep_token_id": VOCABULARY["[SEP]"],
        "pad_token_id": VOCABULARY["[PAD]"],
    }
    return BlipForConditionalGeneration(BlipConfig(vision_config=vision, text_config=text))


@torch.no_grad()
def begin_well(model: BlipForConditionalGeneration, pictures: np.ndarray) -> None:
    """Sets the patch embedding to the whitened principal components of patches, and positions to sines and cosines.

    From there the first layer sees nearly all of a picture at once, instead of finding it out over thousands of steps.
    """
    x = as_input(pictures[:: max(1, len(pictures) // 500)])
    patches = F.unfold(x, PATCH, stride=PATCH).transpose(1, 2).reshape(-1, 3 * PATCH * PATCH)
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    spread = values.clamp(min=0).sqrt().flip(0)[:WIDTH]
    weight = vectors.flip(1)[:, :WIDTH].T / spread.clamp(min=0.02 * float(spread[0]))[:, None] * 0.5
    embeddings = model.vision_model.embeddings
    embeddings.patch_embedding.weight.copy_(weight.reshape(WIDTH, 3, PATCH, PATCH))
    embeddings.patch_embedding.bias.copy_(-weight @ mean)
    n = SIDE // PATCH
    place = torch.arange(n)[:, None] / n * math.pi * 2.0 ** (torch.arange(WIDTH // 4) / 3 - 1)  # [n, WIDTH / 4]
    waves = torch.cat([place.sin(), place.cos()], 1)  # [n, WIDTH / 2]
    grid = torch.cat([waves[:, None].expand(n, n, -1), waves[None].expand(n, n, -1)], 2).reshape(n * n, WIDTH)
    embeddings.position_embedding[0, 1:].copy_(0.3 * grid)


def as_input(pictures: np.ndarray) -> Tensor:
    """uint8 [n, SIDE, SIDE, 3] -> float32 [n, 3, SIDE, SIDE] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


# --- training ---------------------------------------------------------------------------------------------------------


def augmented(x: Tensor, rng: torch.Generator) -> Tensor:
    """Mirrored, moved by up to 4 %, scaled by up to 5 %, a little brighter or darker, and noisy: [n, 3, SIDE, SIDE]."""
    n = len(x)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=rng) * (high - low) + low

    moves = torch.zeros(n, 2, 3)
    moves[:, 1, 1] = uniform(0.95, 1.05, n)
    moves[:, 0, 0] = moves[:, 1, 1] * (uniform(0, 1, n) < 0.5).float().mul(2).sub(1)
    moves[:, :, 2] = uniform(-0.08, 0.08, n, 2)  # of a picture that is 2 wide
    x = F.grid_sample(x, F.affine_grid(moves, list(x.shape), False), padding_mode="border", align_corners=False)
    x = x * uniform(0.95, 1.05, n, 1, 1, 1) + uniform(-0.03, 0.03, n, 1, 1, 1)
    return x + uniform(0, 0.04, n, 1, 1, 1) * torch.randn(x.shape, generator=rng)


def train(work: Path, steps: int, count: int, batch: int = 48) -> BlipForConditionalGeneration:
    """AdamW, warm-up and one cosine, bf16; every step is a function of its number."""
    torch.manual_seed(4)
    torch.set_num_threads(1)
    captions, pictures = drawn(work, count)
    ids, model, path = ids_of(captions), new_model(), work / "captioner.pt"
    begin_well(model, pictures)
    groups = [[p for p in model.parameters() if (p.ndim > 1) is matrix] for matrix in (True, False)]
    optimizer = torch.optim.AdamW(
        [{"params": groups[0], "weight_decay": 0.03}, {"params": groups[1], "weight_decay": 0.0}], betas=(0.9, 0.98)
    )
    first, start, losses = 0, time.time(), torch.zeros(LENGTH + 1)
    if path.exists():
        state = kept.load(path)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    model.train()
    for step in range(first, steps):
        rng = torch.Generator().manual_seed(step)
        picked = torch.randint(len(captions), (batch,), generator=rng)
        x = augmented(as_input(pictures[picked.numpy()]), rng)
        for group in optimizer.param_groups:
            group["lr"] = 1.5e-3 * min(1.0, (step + 1) / 200) * (1 + math.cos(math.pi * step / steps)) / 2
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(pixel_values=x, input_ids=ids[picked], use_cache=False).logits
        each = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), ids[picked, 1:], reduction="none")
        optimizer.zero_grad()
        each.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses += each.detach().mean(0) / 100
        if (step + 1) % 100 == 0:
            said = " ".join(f"{slot} {losses[place - 1]:.3f}" for slot, place in SLOTS.items())
            print(f"step {step + 1}/{steps} first word {losses[0]:.3f} {said} {time.time() - start:.0f} s", flush=True)
            losses.zero_()
        if (step + 1) % 250 == 0 or step + 1 == steps:
            kept.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, path)
    return model.eval()


# --- the folder and its figures ---------------------------------------------------------------------------------------


def save(model: BlipForConditionalGeneration, folder: Path) -> None:
    """Writes a model folder as transformers has it: fp16 weights, config with our own "limits", words, preprocessor."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.limits = LIMITS
    copy.deepcopy(model).half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    BertTokenizer(vocab=VOCABULARY, extra_special_tokens=["[DEC]"], model_max_length=LENGTH + 2).save_pretrained(folder)
    io.write_text(folder / "preprocessor_config.json", json.dumps(PREPROCESSING, indent=2) + "\n")


def share(hits: int, count: int) -> str:
    """With its 95 % interval."""
    low, high = wilson(hits, count)
    return f"{hits:4} of {count:4} = {hits / count:6.1%} ({low:.1%} to {high:.1%})"


def measure(folder: Path, count: int, photos: Path | None, precision: str) -> None:
    """Prints shares of fresh scenes captioned exactly, and of other pictures that are left without a caption."""
    captioner = load_captioner("blip", folder, CaptionOptions(device="cpu", precision=precision))

    def said(images: Sequence[Image.Image]) -> list[str]:
        return [text for i in range(0, len(images), 32) for text in captioner.caption(images[i : i + 32])]

    sets = {f"fresh, {style}": list(itertools.islice(world.scenes(FRESH_SEED, style), count)) for style in world.STYLES}
    sets |= {"the demo's 50": world.training_scenes(), "held out by the demo": world.held_out_scenes()}
    for name, scenes in sets.items():
        texts, true = said([world.draw(scene) for scene in scenes]), [world.caption(scene) for scene in scenes]
        exact = sum(map(operator.eq, texts, true))
        print(f"{name:24} exact {share(exact, len(true))}; refused {share(texts.count(''), len(true))}", flush=True)
        for text, wanted in [pair for pair in zip(texts, true, strict=True) if pair[0] != pair[1]][:3]:
            print(f"{'':24} e.g. {text!r} for {wanted!r}")
    kinds: dict[str, list[Image.Image]] = {"photo": list(map(load_rgb, sorted(photos.iterdir())))} if photos else {}
    kinds["photo, cropped"] = [crop for photo in kinds.get("photo", []) for crop in quarters(photo)]
    for name, kind in (elsewhere.KINDS | elsewhere.UNSEEN).items():
        rng = random.Random(f"{name}/{FRESH_SEED}")
        kinds[name + (", not trained on" if name in elsewhere.UNSEEN else "")] = [kind(rng) for _ in range(count // 6)]
    for name, images in kinds.items():
        if texts := said(images):
            wrong = next((f"; e.g. {text!r}" for text in texts if text), "")
            print(f"{name:24} refused {share(texts.count(''), len(texts))}{wrong}", flush=True)


def quarters(image: Image.Image) -> list[Image.Image]:
    """The four corners of a picture, each half as wide and high."""
    w, h = image.size
    return [image.crop((x, y, x + w // 2, y + h // 2)) for x in (0, w // 2) for y in (0, h // 2)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--scenes", type=int, default=18000)
    parser.add_argument("--fresh", type=int, default=600, help="scenes of each style to measure on")
    parser.add_argument("--photos", type=Path, help="a folder with photographs, to measure on")
    parser.add_argument("--precision", default="auto", help="to measure with")
    parser.add_argument("--measure-only", action="store_true", help="measure the captioner that ships")
    args = parser.parse_args()
    if not args.measure_only:
        args.work.mkdir(parents=True, exist_ok=True)
        save(train(args.work, args.steps, args.scenes), ASSET)
    measure(ASSET, args.fresh, args.photos, args.precision)
