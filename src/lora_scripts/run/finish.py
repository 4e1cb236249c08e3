"""After the last step: the final file, its proof, the pictures with and without it, the report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image
from torch import Tensor

from lora_scripts.adapters.inject import remove
from lora_scripts.config.load import dump_config
from lora_scripts.config.schema import TrainConfig
from lora_scripts.data.buckets import View
from lora_scripts.data.image import apply_view, load_rgb
from lora_scripts.data.scan import Sample
from lora_scripts.data.trigger import Trigger
from lora_scripts.events import Note, Saved, Sink
from lora_scripts.families.base import PictureFamily
from lora_scripts.formats import io
from lora_scripts.formats.hashes import model_hashes
from lora_scripts.generate.command import lora_hash, save
from lora_scripts.loras import file as loras
from lora_scripts.loras.on_model import apply
from lora_scripts.loras.words import read_words
from lora_scripts.report.data import Comparison, LoraFile, Nearest, NearPair, ReportData, StrengthRow
from lora_scripts.report.page import write_report
from lora_scripts.run.heldout import Measuring
from lora_scripts.run.parts import Model
from lora_scripts.run.previews import Preview, infotext, usual
from lora_scripts.run.run_folder import RunFolder
from lora_scripts.train import memorised
from lora_scripts.train.feed import Feed
from lora_scripts.train.optim import Rates
from lora_scripts.train.state import RunState

STRENGTHS = (0.0, 0.4, 0.8, 1.0)
MORE = 4
"""Pictures that are drawn for copies alone: captions of held-out pictures, or of the data set where there are none."""
SHOWN = 3
"""The closest pairs, side by side."""


@dataclass(frozen=True)
class Drawn:
    """The pictures of a report."""

    by_strength: dict[tuple[int, float], Image.Image]
    """(number of the preview, strength) -> picture"""
    whole: dict[tuple[str, int], Image.Image]
    """(prompt, seed) -> picture at full strength, for the look for copies"""


def report_pictures(
    config: TrainConfig, model: Model, previews: Sequence[Preview], prompts: Sequence[str], lora: Path
) -> Drawn:
    """Draws with the exported file, not with the weights in memory; `prompts`: for copies alone.

    The layers that were trained are taken off, for good.
    """
    family = model.family
    remove(family.roots, model.layers)
    layers, words = apply(family, loras.read(lora).modules, 1.0), read_words(lora)

    def draw(preview: Preview, strength: float) -> Image.Image:
        for layer in layers.values():
            layer.strength = strength
        family.set_words(words if strength else {})  # the base knows no new words
        return family.generate(preview.prompt, preview.seed, preview.sampling)

    wanted = [(i, s) for i in range(len(previews)) for s in (STRENGTHS if i == 0 else (0.0, 1.0))]
    by_strength = {(i, strength): draw(previews[i], strength) for i, strength in wanted}
    whole = {(p.prompt, p.seed): by_strength[i, 1.0] for i, p in enumerate(previews)}
    for prompt in prompts:
        whole[prompt, config.seed] = draw(replace(usual(config), prompt=prompt), 1.0)
    return Drawn(by_strength, whole)


def copy_prompts(held_out: Sequence[Sample], samples: Sequence[Sample], drawn: Sequence[str]) -> list[str]:
    """What to draw for copies besides the prompts in `drawn`."""
    usable = [s.caption for s in (*held_out, *samples) if s.caption and s.caption not in drawn]
    return list(dict.fromkeys(usable))[:MORE]


def save_last_previews(
    folder: RunFolder,
    config: TrainConfig,
    family: PictureFamily,
    previews: Sequence[Preview],
    drawn: Drawn,
    step: int,
    sink: Sink,
) -> None:
    """The file's effect at full strength is the last preview."""
    autov3 = lora_hash(folder.final)
    for i, preview in enumerate(previews):
        path = folder.sample(step, i + 1)
        save(path, drawn.by_strength[i, 1.0], infotext(config, family, preview, autov3))
        sink(Saved("preview", path, step))


def nearest_copies(
    family: PictureFamily, feed: Feed, held: Feed, drawn: Mapping[tuple[str, int], Image.Image]
) -> Nearest | None:
    """Whether pictures by (prompt, seed) are copies of those trained; None where there is too little to compare."""
    pictures = [(i, p) for i, p in enumerate(feed.pictures) if not p.of_class]
    if len(pictures) < 2 or not drawn:
        return None
    train = memorised.features([feed.latents[i][0]["mean"] for i, _ in pictures])
    outside = memorised.features([row[0]["mean"] for row in held.latents]) if held.latents else None
    mine = memorised.features([_encoded(family, image) for image in drawn.values()])
    pairs, keys, shown = memorised.pairs(mine, train, outside), list(drawn), []
    for pair in pairs[:SHOWN]:
        prompt, seed = keys[pair.drawn]
        sample = pictures[pair.train][1].sample
        note = f"{prompt} · seed {seed} · distance {pair.distance:.2f}"
        if pair.outside is not None:
            note += f", to the nearest held-out picture {pair.outside:.2f}"
        shown.append(NearPair(drawn[keys[pair.drawn]], _thumbnail(sample.path, 512), sample.name, note))
    return Nearest(memorised.verdict(pairs), shown)


def _encoded(family: PictureFamily, image: Image.Image) -> Tensor:
    """The mean of its latents, [c, h, w]."""
    size = image.size
    return family.encode_image(apply_view(image, View(size, size, 0, 0, flip=False))[None])["mean"][0]


def report(
    path: Path,
    folder: RunFolder,
    config: TrainConfig,
    *,
    proof: str,
    rows: Sequence[tuple[str, str]],
    previews: Sequence[Preview],
    drawn: Drawn,
    state: RunState,
    rates: Rates,
    measuring: Measuring,
    copies: Nearest | None,
    samples: Sequence[Sample],
    trigger: Trigger | None,
) -> None:
    """Writes report.html."""
    lora, cells = folder.final, drawn.by_strength
    data = ReportData(
        name=folder.name,
        lora=LoraFile(lora.name, lora.stat().st_size, model_hashes(lora).sha256),
        verification=proof,
        warning=measuring.warning,
        trigger=trigger,
        facts=[*rows, ("finished", time.strftime("%Y-%m-%d %H:%M"))],
        comparisons=[Comparison(p.prompt, p.seed, cells[i, 0.0], cells[i, 1.0]) for i, p in enumerate(previews)],
        strengths=[StrengthRow(previews[0].prompt, previews[0].seed, [(s, cells[0, s]) for s in STRENGTHS])],
        previews=_previews(folder, [p.prompt for p in previews]),
        loss=list(enumerate(state.losses, 1)),
        learning_rate=[(s + 1, config.learning_rate * rates.share(s, state.total)) for s in range(state.step)],
        held_out=measuring.curve(),
        advice=[str(one) for one in measuring.advice],
        nearest=copies,
        thumbnails=[(_thumbnail(s.path, 256), s.caption) for s in samples[:12]],
        config_text=dump_config(config),
        versions={k: v for k, v in state.environment.items() if k not in ("device", "precision", "threads")},
    )
    write_report(path, data, io.write_text)


def _previews(folder: RunFolder, prompts: Sequence[str]) -> list[tuple[int, list[tuple[str, Image.Image]]]]:
    """The pictures in samples/, by step; those of an earlier, interrupted start are there too."""
    steps = sorted({int(p.stem[4:].partition("-")[0]) for p in folder.samples.glob("step??????-*.png")})
    rows = []
    for step in steps:
        paths = [(prompt, folder.sample(step, n)) for n, prompt in enumerate(prompts, 1)]
        rows.append((step, [(prompt, Image.open(p).convert("RGB")) for prompt, p in paths if p.exists()]))
    most = 8
    return rows if len(rows) <= most else [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]


def _thumbnail(path: Path, side: int) -> Image.Image:
    image = load_rgb(path)
    image.thumbnail((side, side))
    return image


def tell_copies(copies: Nearest | None, sink: Sink) -> None:
    """The verdict, where there is one."""
    if copies is not None:
        sink(Note(copies.verdict))
