"""Fits the weights of check/weights.py on the tuning kinds of material.py, and on a folder of photographs.

python benchmarks/tune_sharpness.py --count 400 --photos FOLDER
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import defects
import numpy as np
from PIL import Image

from lora_scripts.check import sharpness

FEW = 0.015
"""The share of clean pictures that a judgement may call wrong on the tuning set."""
LOST = 0.025
"""The share of pictures out of focus that may be called enlarged, when both tests have found them."""
LABELS = ("clean", "soft", "blurred", "enlarged", "far enlarged")


def features(image: Image.Image) -> tuple[np.ndarray | None, np.ndarray | None]:
    grey = image.convert("L")
    scale = (grey.width * grey.height) ** 0.5 / sharpness.WORK
    native = sharpness.tiles(np.asarray(grey))
    small = grey
    if scale > 1:
        small = grey.resize((round(grey.width / scale), round(grey.height / scale)), Image.Resampling.LANCZOS)
    return sharpness.focus_features(sharpness.tiles(np.asarray(small)), min(scale, 1.0)), sharpness.detail_features(
        native
    )


def sample(job: tuple[int, Path | None]) -> list[tuple[str, np.ndarray | None, np.ndarray | None]]:
    """One picture clean, softer (1 px at 512 at most), out of focus, and enlarged twice: (label, features)."""
    number, path = job
    rng = np.random.default_rng([1, number])
    image = None if path is None else defects.photograph(path, rng)
    if image is None:
        _, image = defects.synthetic(rng, tuning=True)
    sigma = 2.0 if rng.random() < 0.3 else rng.uniform(2, 4)
    made = {
        "clean": image,
        "soft": defects.blurred(image, rng.uniform(0.5, 1.0), rng),
        "blurred": defects.blurred(image, sigma, rng),
        "enlarged": defects.enlarged(image, rng.uniform(2, 2.5), rng),
        "far enlarged": defects.enlarged(image, rng.uniform(2.5, 4), rng),
    }
    return [(k, *features(defects.opened(defects.encoded(v, rng)))) for k, v in made.items()]


def fit(rows: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Factors of a logistic regression, by Newton's method with a little shrinkage."""
    mean, spread = rows.mean(0), rows.std(0) + 1e-9
    z = np.c_[np.ones(len(rows)), (rows - mean) / spread]
    w = np.zeros(z.shape[1])
    shrink = np.diag(np.r_[1e-6, np.full(rows.shape[1], 2e-3 * len(rows))])
    for _ in range(60):
        p = 1 / (1 + np.exp(-z @ w))
        w -= np.linalg.solve(z.T @ (z * (p * (1 - p))[:, None]) + shrink, z.T @ (p - wrong) + shrink @ w)
    return w[1:] / spread


def judgement(
    name: str, x: np.ndarray, labels: np.ndarray, wrong: list[str], right: list[str], zero: tuple[list[str], float]
) -> None:
    """Fits and prints one row of check/weights.py. `zero` is (labels, the share of them that lies above 0)."""
    used = np.isin(labels, wrong + right)
    factors = fit(x[used], np.isin(labels[used], wrong).astype(float))
    bias = -float(np.quantile((x @ factors)[np.isin(labels, zero[0])], 1 - zero[1]))
    print(f"{name} = Weights({bias:.3f}, ({', '.join(f'{f:.3f}' for f in factors)}))")
    for label in LABELS:
        odds = bias + x[labels == label] @ factors
        print(f"  {label}: {len(odds)} judged, {(odds > 0).mean():.1%} found")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--count", type=int, default=400)
    options.add_argument("--photos", type=Path)
    given = options.parse_args()
    photos = defects.photographs(given.photos)
    jobs = [(i, photos[(i // 2) % len(photos)] if photos and i % 2 else None) for i in range(given.count)]
    with ProcessPoolExecutor(2) as pool:
        rows = [row for made in pool.map(sample, jobs, chunksize=4) for row in made]
    judged = [row for row in rows if row[1] is not None and row[2] is not None]
    labels = np.array([row[0] for row in judged])
    focus, detail = (np.stack([row[i] for row in judged]).astype(float) for i in (1, 2))
    # a soft picture is not out of focus, but may well lack detail: DETAIL has no opinion on it
    judgement(
        "FOCUS", focus, labels, ["blurred"], ["clean", "enlarged", "soft", "far enlarged"], (["clean", "enlarged"], FEW)
    )
    judgement("DETAIL", detail, labels, ["enlarged", "far enlarged"], ["clean"], (["clean"], FEW))
    judgement("NAME", np.c_[focus, detail], labels, ["blurred"], ["enlarged", "far enlarged"], (["blurred"], 1 - LOST))


if __name__ == "__main__":
    main()
