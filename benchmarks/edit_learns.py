"""That a LoRA learns to edit: a narrow FLUX.2 klein, which was never shown a reference, turns scenes into neon.

    python -m benchmarks.miniature.build_flow WORK --family flux2       # once: the narrow base
    python -m benchmarks.edit_learns WORK [--count 50] [key=value …]    # trains the LoRA, prints the table

Every caption is the same words, so that what is to be drawn can be seen in the reference alone: a plain scene beside
its neon one. The keys are those of `configs/flux2_klein_edit.yaml`, but for paths and the size of the pictures. Then
other scenes are drawn: with the LoRA and their reference, with the LoRA and none, and by the base with the reference;
`demo.evaluate` counts what the judge finds in them, and WORK/edit.png shows the first eight. Last it is counted how
many are, pixel by pixel, nearer to the neon picture of their own scene than to that of any other: by chance one.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lora_scripts.cli import main as lora_scripts
from lora_scripts.data.references import seen_beside
from lora_scripts.demo import world
from lora_scripts.demo.evaluate import SIDE, Judged, table
from lora_scripts.demo.judge import Judge
from lora_scripts.families.base import LoadOptions, PictureFamily, Sampling
from lora_scripts.families.table import load_pictures
from lora_scripts.formats.io import save_png
from lora_scripts.loras import file as loras
from lora_scripts.loras import on_model

CAPTION = "turn it into neon"
TEMPLATE = Path(__file__).parents[1] / "configs" / "flux2_klein_edit.yaml"
ELSEWHERE = ("text_encoder:", "vae:")
"""Lines of the template that are not for a base that lies in one folder."""


def write_pairs(folder: Path, count: int, seed: int = 11) -> None:
    """`count` scenes: before/ plain, after/ neon, each with the caption."""
    (folder / "after").mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(itertools.islice(world.scenes(seed), count)):
        for name, style in (("before", "plain"), ("after", "neon")):
            save_png(folder / name / f"{number:03}.png", world.draw(styled(scene, style), SIDE))
        (folder / "after" / f"{number:03}.txt").write_text(CAPTION + "\n", encoding="utf-8")


def styled(scene: world.Scene, style: str) -> world.Scene:
    return world.Scene(**{**vars(scene), "style": style})


def train(work: Path, pictures: int, overrides: list[str]) -> Path:
    """The LoRA, trained once."""
    data, out = work / f"pairs{pictures}", work / "edit"
    if not data.exists():
        write_pairs(data, pictures)
    if not (out / "report.html").exists():
        lines = TEMPLATE.read_text("utf-8").splitlines()
        config = work / "edit.yaml"
        config.write_text("\n".join(line for line in lines if not line.startswith(ELSEWHERE)), encoding="utf-8")
        paths = {"base_model": work / "flux2", "train_data_dir": data / "after", "reference_dir": data / "before"}
        words = [f"{key}={path}" for key, path in {**paths, "output_dir": out}.items()]
        resume = ["--resume"] if (out / "state").exists() else []
        if lora_scripts(["train", "--config", str(config), *resume, *words, f"resolution={SIDE}", *overrides]):
            raise SystemExit(2)
    return out / "edit.safetensors"


@torch.no_grad()
def drawn(family: PictureFamily, judge: Judge, work: Path, scenes: list[world.Scene], *, shown: bool) -> list[Judged]:
    """Each scene as neon, from its plain picture if `shown`; the i-th from seed i."""
    out = []
    for seed, scene in enumerate(scenes):
        path = work / "shown" / f"{seed:03}.png"
        save_png(path, world.draw(styled(scene, "plain"), SIDE))
        references = seen_beside([path], (SIDE, SIDE), family.facts.bucket_steps) if shown else []
        image = family.generate(CAPTION, seed, Sampling(28, 4.0, "", (SIDE, SIDE), references=references))
        out.append(Judged(styled(scene, "neon"), image, judge.read([image])[0]))
    return out


def nearest_to_their_own(found: list[Judged]) -> int:
    """How many pictures have the least mean square, at a quarter of the size, from their own scene's neon one."""

    def small(image: Image.Image) -> Tensor:
        return torch.from_numpy(np.asarray(image.resize((SIDE // 4, SIDE // 4), Image.Resampling.BOX), np.float32))

    ours, wanted = (
        torch.stack([small(one) for one in some])
        for some in ([j.image for j in found], [world.draw(j.asked, SIDE) for j in found])
    )
    off = (ours[:, None] - wanted[None]).square().mean((2, 3, 4))
    return int((off.argmin(1) == torch.arange(len(found))).sum())


def sheet(scenes: list[world.Scene], columns: dict[str, list[Judged]]) -> Image.Image:
    """Rows of the first eight: what is shown, what each column drew, the edit itself."""
    rows = [
        [world.draw(styled(scene, "plain"), SIDE) for scene in scenes],
        *([judged.image for judged in found] for found in columns.values()),
        [world.draw(styled(scene, "neon"), SIDE) for scene in scenes],
    ]
    whole = Image.new("RGB", (8 * (SIDE + 4), len(rows) * (SIDE + 4)), "white")
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures[:8]):
            whole.paste(picture, (column * (SIDE + 4), row * (SIDE + 4)))
    return whole


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--pictures", type=int, default=300, help="pairs to train on (default 300)")
    parser.add_argument("--count", type=int, default=50, help="pictures of each column (default 50)")
    parser.add_argument("--seed", type=int, default=1000, help="of the scenes that are drawn (default 1000)")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="laid over the template")
    args = parser.parse_intermixed_args()
    lora = train(args.work, args.pictures, args.overrides)
    family = load_pictures(args.work / "flux2", LoadOptions(torch.device("cpu"), torch.float32))
    known = {scene.key for scene in itertools.islice(world.scenes(11), args.pictures)}
    scenes = [scene for scene in itertools.islice(world.scenes(args.seed), 20 * args.count) if scene.key not in known]
    judge, scenes = Judge.load(), scenes[: args.count]
    columns = {"base, shown": drawn(family, judge, args.work, scenes, shown=True)}
    on_model.apply(family, loras.read(lora).weights, 1.0)
    columns["LoRA, not shown"] = drawn(family, judge, args.work, scenes, shown=False)
    columns["LoRA, shown"] = drawn(family, judge, args.work, scenes, shown=True)
    print(table(columns))
    for name, found in columns.items():
        print(f"nearest to its own scene in neon, {name}: {nearest_to_their_own(found)} of {len(found)}")
    save_png(args.work / "edit.png", sheet(scenes, columns))
    return 0


if __name__ == "__main__":
    sys.exit(main())
