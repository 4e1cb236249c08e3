"""After the last step: the final file, its proof, the pictures with and without it, the report."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from lora_scripts.adapters.inject import remove
from lora_scripts.config.load import dump_config
from lora_scripts.data.image import load_rgb
from lora_scripts.formats import io
from lora_scripts.formats.hashes import model_hashes
from lora_scripts.generate import command
from lora_scripts.loras.on_model import apply, read_change
from lora_scripts.loras.words import embedding_file, read_words
from lora_scripts.report.data import Comparison, LoraFile, ReportData, StrengthRow
from lora_scripts.report.page import write_report
from lora_scripts.run import memorisation
from lora_scripts.run.previews import Preview, told_of, usual
from lora_scripts.run.proving import prove_export
from lora_scripts.run.table import plan_rows

if TYPE_CHECKING:
    from lora_scripts.run.story import Run

STRENGTHS = (0.0, 0.4, 0.8, 1.0)


def finish(run: Run) -> None:
    """Exports, proves that the file loads, and writes the report. UserError if the proof fails."""
    run.exporter.write(run.folder.final)
    proof = prove_export(run)
    print(proof, flush=True)
    run.held.conclude()
    report(run, proof)
    print(f"the LoRA: {run.folder.final}  (prompt: <lora:{run.folder.name}:0.8>)")
    for word in run.config.new_token:
        print(f"the word {word}: {embedding_file(run.folder.final, word)}  (into the WebUI's embeddings folder)")
    print(f"the report: {run.folder.path / 'report.html'}", flush=True)


def report(run: Run, proof: str) -> None:
    """Draws with the exported file, not with the weights in memory, and writes report.html."""
    remove(run.family.roots, run.layers)
    layers, words = apply(run.family, read_change(run.folder.final), 1.0), read_words(run.folder.final)

    def draw(preview: Preview, strength: float) -> Image.Image:
        for layer in layers.values():
            layer.strength = strength
        run.family.set_words(words if strength else {})  # the base knows no new words
        return run.family.generate(preview.prompt, preview.seed, preview.sampling)

    print("drawing the pictures of the report", flush=True)
    previews = run.previews[:4]
    prompts, seed = [p.prompt for p in previews], run.config.seed
    wanted = [(i, s) for i in range(len(previews)) for s in (STRENGTHS if i == 0 else (0.0, 1.0))]
    drawn = {(i, strength): draw(previews[i], strength) for i, strength in wanted}
    whole = {(p.prompt, p.seed): drawn[i, 1.0] for i, p in enumerate(previews)}
    for prompt in memorisation.captions(run, prompts):
        whole[prompt, seed] = draw(replace(usual(run.config), prompt=prompt), 1.0)
    copies = memorisation.nearest(run, whole)
    if copies is not None:
        print(copies.verdict, flush=True)
    # The file's effect at full strength is the last preview.
    file = command.lora_hash(run.folder.final)
    for i, preview in enumerate(previews):
        command.save(run.folder.sample(run.state.step, i + 1), drawn[i, 1.0], told_of(run, preview, file))
    data = ReportData(
        name=run.folder.name,
        lora=LoraFile(run.folder.final.name, run.folder.final.stat().st_size, model_hashes(run.folder.final).sha256),
        verification=proof,
        facts=[*plan_rows(run), ("finished", time.strftime("%Y-%m-%d %H:%M"))],
        comparisons=[Comparison(p.prompt, p.seed, drawn[i, 0.0], drawn[i, 1.0]) for i, p in enumerate(previews)],
        strengths=[StrengthRow(prompts[0], previews[0].seed, [(s, drawn[0, s]) for s in STRENGTHS])],
        previews=_previews(run, prompts),
        loss=list(enumerate(run.state.losses, 1)),
        learning_rate=_rates(run),
        held_out=run.held.curve(),
        advice=[str(one) for one in run.held.advice],
        nearest=copies,
        thumbnails=[(_thumbnail(s.path), s.caption) for s in run.samples[:12]],
        config_text=dump_config(run.config),
        versions={k: v for k, v in run.state.environment.items() if k not in ("device", "precision", "threads")},
    )
    write_report(run.folder.path / "report.html", data, io.write_text)


def _previews(run: Run, prompts: list[str]) -> list[tuple[int, list[tuple[str, Image.Image]]]]:
    """The pictures in samples/, by step; those of an earlier, interrupted start are there too."""
    steps = sorted({int(p.stem[4:].partition("-")[0]) for p in run.folder.samples.glob("step??????-*.png")})
    rows = []
    for step in steps:
        found = [(p, run.folder.sample(step, n)) for n, p in enumerate(prompts, 1)]
        rows.append((step, [(p, Image.open(path).convert("RGB")) for p, path in found if path.exists()]))
    most = 8
    return rows if len(rows) <= most else [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]


def _rates(run: Run) -> list[tuple[int, float]]:
    c = run.config
    return [(step + 1, c.learning_rate * run.rates.share(step, run.total)) for step in range(run.state.step)]


def _thumbnail(path: Path) -> Image.Image:
    image = load_rgb(path)
    image.thumbnail((256, 256))
    return image
