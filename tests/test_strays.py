"""Pictures that are unlike the others, by descriptions made by hand; by a base: in test_exchanged.py."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from lora_scripts.compute.memory import TILE, MemoryOptions
from lora_scripts.families import strays
from lora_scripts.families.sd.latents import LatentCoder


def by_hand(description: np.ndarray) -> np.ndarray:
    """How much farther each is than the others by one description, one picture and number at a time."""

    off = [column - np.median(column) for column in description.T]
    squares = [(1.4826 * float(np.median(np.abs(column)))) ** 2 for column in off]
    usual = float(np.median(squares))
    scaled = np.stack(
        [np.clip(column / np.sqrt((s + usual) / 2), -10, 10) for column, s in zip(off, squares, strict=True)], 1
    )
    middle, near = [], []
    for one in scaled:
        distances = sorted(float(np.sqrt(np.mean((one - other) ** 2))) for other in scaled)
        middle.append(distances[len(scaled) // 2])
        near.append(np.mean(distances[1:4]))
    return np.log([np.sqrt(m * n) for m, n in zip(middle / np.median(middle), near / np.median(near), strict=True)])


def descriptions(count: int, *, seed: int = 0, unlike: tuple[int, ...] = (), by: float = 4) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    made = [torch.randn(count, width, generator=g) for width in (40, 12, 30, 16)]
    for i in unlike:
        for one in made:
            one[i] += by * torch.randn(one.shape[1], generator=g)
    return made


def test_the_distance_is_that_of_the_formula() -> None:
    made = descriptions(15, unlike=(3,))
    made[1] *= torch.logspace(-1, 1, 12)  # numbers that vary more than others, and less
    each = [np.exp(by_hand(one.double().numpy())) for one in made]
    assert max(one.max() for one in each) > 3.02  # else nothing is seen of where it ends
    wanted = np.log(sum(np.minimum(one, np.exp(1.1)) for one in each) / 4)
    np.testing.assert_allclose(strays.apart(made).numpy(), wanted, atol=1e-9)


def test_far_by_one_description_alone_is_no_stray() -> None:
    """The only picture without one of few colours: by that it is six times as far, else like the others."""
    for seed in range(10):
        made = descriptions(20, seed=seed)
        made[2][7] += 12 * made[2][7].sign()
        far = by_hand(made[2].double().numpy())
        assert far.argmax() == 7 and far[7] > 1.6 and strays.strays(made) == []


def bands_by_hand(level: np.ndarray) -> list[np.ndarray]:
    """[c, h, w] -> what means of 2 x 2 leave of it, and of these, and what is left."""
    found = []
    for _ in range(2):
        coarse = level.reshape(len(level), level.shape[1] // 2, 2, level.shape[2] // 2, 2).mean((2, 4))
        found.append(level - np.kron(coarse, np.ones((1, 2, 2))))
        level = coarse
    return [*found, level]


def test_what_the_base_misses_is_described_from_fine_to_coarse() -> None:
    missed = np.random.default_rng(0).normal(0.5, 1, size=(4, 16, 24))
    missed[3] += 2 * missed[0]
    strong, together = [], []
    for band in bands_by_hand(missed):
        strong += [*np.log((band**2).mean((1, 2)))]
        flat = band.reshape(4, -1)
        together += [*np.log(flat.std(1)), *np.corrcoef(flat)[np.triu_indices(4, 1)]]
    here = torch.from_numpy(missed)[None]
    np.testing.assert_allclose(strays.strength(here)[0].numpy(), strong, rtol=1e-6)
    np.testing.assert_allclose(strays.texture(here)[0].numpy(), together, rtol=1e-6, atol=1e-9)
    assert torch.isfinite(strays.texture(torch.zeros(1, 4, 5, 3))).all()  # nothing missed, and odd sides


def pyramid_by_hand(pixels: np.ndarray) -> list[np.ndarray]:
    """By numpy, down to 8 px: means of 2 x 2, and what they leave of the picture."""
    red, green, blue = pixels.astype(np.float64)
    level, found = np.stack([(red + green + blue) / 3, red - green, (red + green) / 2 - blue]), []
    while min(level.shape[1:]) > 8:
        coarse = level.reshape(3, level.shape[1] // 2, 2, level.shape[2] // 2, 2).mean((2, 4))
        found.append(level - np.kron(coarse, np.ones((1, 2, 2))))
        level = coarse
    return found


def test_how_a_picture_is_drawn_is_its_laplacian_pyramid() -> None:
    pixels, wanted = np.random.default_rng(0).uniform(-1, 1, (3, 64, 32)).astype(np.float32), []
    for details in pyramid_by_hand(pixels):
        wanted += [*np.log((details**2).mean((1, 2)))]
        wanted += [np.log(1 + (details[0] ** 4).mean() / (details[0] ** 2).mean() ** 2)]
    assert len(wanted) == 2 * 4
    np.testing.assert_allclose(strays.drawn(strays.details(torch.from_numpy(pixels))), wanted, rtol=1e-5, atol=1e-5)


def test_how_sharp_it_is_is_told_place_by_place() -> None:
    """Of 16 x 16 places, by numpy; the coarsest level has a pixel for each."""
    rng = np.random.default_rng(0)
    pixels = (rng.uniform(-1, 1, (3, 64, 64)) * np.linspace(0.05, 1, 64)).astype(np.float32)
    strong, wanted = [], []
    for details in pyramid_by_hand(pixels):
        one = len(details[0]) // 16
        strong.append(np.log((details**2).sum(0).reshape(16, one, 16, one).mean((1, 3))).ravel())
    wanted = [np.log(one.std(ddof=1)) for one in strong]
    for fine, coarse in ((strong[0], strong[1]), (strong[1], strong[2])):
        off = np.sort(fine - coarse)
        wanted += [off.mean(), np.log(off.std(ddof=1)), np.corrcoef(fine, coarse)[0, 1]]
        wanted += [np.interp(q * 255, np.arange(256), off) for q in (0.1, 0.5, 0.9)]
    got = strays.sharpness(strays.details(torch.from_numpy(pixels)))
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_a_picture_of_any_size_is_described_and_an_empty_one() -> None:
    for sides in ((30, 17), (9, 40), (128, 64)):
        levels = strays.details(torch.zeros(3, *sides))
        assert torch.isfinite(strays.drawn(levels)).all() and torch.isfinite(strays.sharpness(levels)).all()


def smooth(count: int, *, size: int = 64) -> torch.Tensor:
    coarse = torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")


def test_a_picture_of_lines_among_smooth_ones_is_named() -> None:
    pictures = smooth(16)
    pictures[5, :, torch.arange(64) % 4 < 2] *= -1
    levels = [strays.details(one) for one in pictures]
    for describe in (strays.drawn, strays.sharpness):
        assert strays.strays([torch.stack([describe(one) for one in levels])] * 4) == [5]


def test_a_picture_that_is_sharp_in_one_half_alone_is_named() -> None:
    """By its sharpness, whatever its contrast is: each has its own, and by that alone another is the farthest."""
    hard = smooth(16, size=128).mul(4).round().div(4)
    hard *= torch.linspace(0.2, 1, 16)[torch.randperm(16, generator=torch.Generator().manual_seed(0)), None, None, None]
    soft = torch.nn.functional.avg_pool2d(hard[5:6], 9, 1, 4, count_include_pad=False)
    hard[5, :, :64] = soft[0, :, :64]
    levels = [strays.details(one) for one in hard]
    assert strays.strays([torch.stack([strays.sharpness(one) for one in levels])] * 4) == [5]
    assert strays.apart([torch.stack([strays.drawn(one) for one in levels])]).argmax() != 5


def test_pictures_are_described_one_by_one_whatever_their_number(family: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = list(torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    called: list[int] = []
    monkeypatch.setattr(strays, "at_a_time", lambda latents: 2)
    made = strays.described(family, pictures, ["a red car"] * 3, lambda: called.append(1) is None)
    assert made is not None and len(called) == strays.steps(family, pictures) == 2
    alone = strays.described(family, pictures[2:], ["a red car"], lambda: True)
    assert alone is not None
    for whole, one in zip(made, alone, strict=True):
        torch.testing.assert_close(whole[2:], one, rtol=1e-3, atol=1e-3)
    levels = strays.details(pictures[0])
    assert torch.equal(made[2][0], strays.drawn(levels)) and torch.equal(made[3][0], strays.sharpness(levels))
    assert strays.described(family, pictures, ["a red car"] * 3, lambda: False) is None


def test_each_picture_is_encoded_once(family: Any) -> None:
    """But the first, whose latents tell how many go together. The mean that comes with the maps is `encode_image`'s."""
    pictures, passes = list(torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1), list[int]()
    mean, maps = family.image_features(pictures[0][None])
    assert torch.equal(mean, family.encode_image(pictures[0][None])["mean"]) and len(maps) == 4
    hook = family.coder.vae.encoder.register_forward_hook(lambda *_: passes.append(1))
    try:
        strays.described(family, pictures, ["a red car"] * 3, lambda: True)
    finally:
        hook.remove()
    assert len(passes) == len(pictures) + 1


def test_a_coder_of_tiles_sees_the_whole_picture(family: Any) -> None:
    """And goes on in tiles."""
    coder = family.coder
    tiled = LatentCoder(copy.deepcopy(coder.vae), coder.normal, coder.device, MemoryOptions(vae_tiling=True))
    wide = torch.rand(1, 3, 64, TILE + 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    before = tiled.encode(wide)["mean"]
    mean, maps = coder.features(wide)
    got = tiled.features(wide)
    assert torch.equal(got[0], mean) and all(map(torch.equal, got[1], maps)) and len(maps) == 4
    assert torch.equal(tiled.encode(wide)["mean"], before) and not torch.equal(before, mean)


def test_strays_are_named_and_others_are_not() -> None:
    assert sorted(strays.strays(descriptions(20, unlike=(4, 17)))) == [4, 17]
    assert all(strays.strays(descriptions(20, seed=seed)) == [] for seed in range(10))
    assert strays.strays(descriptions(strays.LEAST - 1, unlike=(4,))) == []  # too few to say
    assert strays.strays([torch.ones(20, 5)] * 4) == []


def test_what_is_a_little_apart_is_named_beside_what_is_clearly_so() -> None:
    made = descriptions(20, unlike=(4, 17))
    for one in made:
        one[4] = one.median(0).values + 0.52 * (one[4] - one.median(0).values)
    far = strays.apart(made)
    assert strays.FURTHER < far[4] < strays.FIRST < far[17]
    assert strays.strays(made) == [17, 4]
    assert strays.strays([one[[i for i in range(20) if i != 17]] for one in made]) == []


def test_more_than_a_share_of_a_set_are_no_strays(monkeypatch: pytest.MonkeyPatch) -> None:
    made = descriptions(20, unlike=(4, 17))
    monkeypatch.setattr(strays, "SHARE", 0.05)
    assert strays.strays(made) == []
