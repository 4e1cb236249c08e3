"""Pictures that are unlike the others, by descriptions made by hand; by a base: in test_exchanged.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lora_scripts.families import strays


def by_hand(description: np.ndarray) -> np.ndarray:
    """How much farther each is than the others by one description, one picture and number at a time."""

    def robust(values: np.ndarray) -> np.ndarray:
        off = values - np.median(values)
        return np.clip(off / (1.4826 * float(np.median(np.abs(off)))), -10, 10)

    scaled = np.stack([robust(column) for column in description.T], 1)
    middle, near = [], []
    for one in scaled:
        distances = sorted(float(np.sqrt(np.mean((one - other) ** 2))) for other in scaled)
        middle.append(distances[len(scaled) // 2])
        near.append(np.mean(distances[1:4]))
    return np.log([np.sqrt(m * n) for m, n in zip(middle / np.median(middle), near / np.median(near), strict=True)])


def rare_by_hand(palettes: np.ndarray) -> np.ndarray:
    """How rare the colours of each are, one cube at a time."""
    cubes = palettes.reshape(-1, 6, 6, 6)
    rare = np.zeros(len(cubes))
    for r, g, b in np.ndindex(6, 6, 6):
        near = cubes[:, max(0, r - 1) : r + 2, max(0, g - 1) : g + 2, max(0, b - 1) : b + 2].sum((1, 2, 3))
        having = max(1, sum(min(1, share / 0.01) for share in near)) / len(cubes)
        rare -= cubes[:, r, g, b] * np.log(having)
    return rare


def palettes(count: int, *, seed: int = 0, unlike: tuple[int, ...] = ()) -> torch.Tensor:
    """Dark colours, and bright ones of those that are `unlike`."""
    pixels = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) - 1
    pixels[list(unlike)] *= -1
    return torch.stack([strays.palette(one) for one in pixels])


def descriptions(count: int, *, seed: int = 0, unlike: tuple[int, ...] = (), by: float = 4) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    made = [torch.randn(count, width, generator=g) for width in (40, 12, 8, 16)]
    for i in unlike:
        for one in made:
            one[i] += by * torch.randn(one.shape[1], generator=g)
    return [*made, palettes(count, seed=seed)]


def test_the_distance_is_that_of_the_formula() -> None:
    made = [*descriptions(15, unlike=(3,))[:-1], palettes(15, unlike=(3, 5))]
    *others, colours = (one.double().numpy() for one in made)
    rare = rare_by_hand(colours)
    wanted = sum(map(by_hand, others)) / 4 + 0.3 * (rare - np.median(rare))
    np.testing.assert_allclose(strays.apart(made).numpy(), wanted, atol=1e-9)


def test_the_palette_counts_pixels_by_colour() -> None:
    pixels = np.random.default_rng(0).uniform(-1, 1, (3, 16, 12)).astype(np.float32)
    pixels[:, 0, :2] = np.array([[-1, 1]] * 3)  # black and white are counted, too
    edges = [np.linspace(-1, 1, 7)] * 3
    wanted = np.histogramdd(pixels.reshape(3, -1).T, edges)[0] / (16 * 12)
    np.testing.assert_allclose(strays.palette(torch.from_numpy(pixels)).numpy(), wanted.ravel(), atol=1e-7)


def test_how_a_picture_is_drawn_is_its_laplacian_pyramid() -> None:
    """Numbers by numpy: means of 2 x 2, and what they leave of the picture."""
    pixels = np.random.default_rng(0).uniform(-1, 1, (3, 64, 32)).astype(np.float32)
    red, green, blue = pixels.astype(np.float64)
    level, wanted = np.stack([(red + green + blue) / 3, red - green, (red + green) / 2 - blue]), []
    for _ in range(2):  # 64 x 32, 32 x 16; 16 x 8 is the least
        coarse = level.reshape(3, level.shape[1] // 2, 2, level.shape[2] // 2, 2).mean((2, 4))
        details = level - np.kron(coarse, np.ones((1, 2, 2)))
        wanted += [*np.log((details**2).mean((1, 2)))]
        wanted += [np.log(1 + (details[0] ** 4).mean() / (details[0] ** 2).mean() ** 2)]
        level = coarse
    np.testing.assert_allclose(strays.drawn(torch.from_numpy(pixels)).numpy(), wanted, rtol=1e-5, atol=1e-5)
    assert torch.isfinite(strays.drawn(torch.zeros(3, 30, 17))).all()  # nothing drawn, and odd sides


def test_a_picture_of_lines_among_smooth_ones_is_named() -> None:
    coarse = torch.rand(16, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    smooth = torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bicubic")
    smooth[5, :, torch.arange(64) % 4 < 2] *= -1
    drawn, colours = (torch.stack([look(one) for one in smooth]) for look in (strays.drawn, strays.palette))
    assert strays.strays([*[drawn] * 4, colours]) == [5]


def test_strays_are_named_and_others_are_not() -> None:
    assert sorted(strays.strays(descriptions(20, unlike=(4, 17)))) == [4, 17]
    assert all(strays.strays(descriptions(20, seed=seed)) == [] for seed in range(10))
    assert strays.strays(descriptions(strays.LEAST - 1, unlike=(4,))) == []  # too few to say
    assert strays.strays([*[torch.ones(20, 5)] * 4, palettes(20)]) == []


def test_what_is_a_little_apart_is_named_beside_what_is_clearly_so() -> None:
    made = descriptions(20, unlike=(4, 17))
    for one in made[:-1]:
        one[4] = one.median(0).values + 0.45 * (one[4] - one.median(0).values)
    far = strays.apart(made)
    assert strays.FURTHER < far[4] < strays.FIRST < far[17]
    assert strays.strays(made) == [17, 4]
    assert strays.strays([one[[i for i in range(20) if i != 17]] for one in made]) == []


def test_other_colours_make_a_stray_of_a_picture_that_is_a_little_apart() -> None:
    made = descriptions(20, unlike=(4,), by=1.3)
    assert strays.strays(made) == []
    assert strays.strays([*made[:-1], palettes(20, unlike=(4,))]) == [4]


def test_more_than_a_share_of_a_set_are_no_strays(monkeypatch: pytest.MonkeyPatch) -> None:
    made = descriptions(20, unlike=(4, 17))
    monkeypatch.setattr(strays, "SHARE", 0.05)
    assert strays.strays(made) == []
