"""Pictures that are unlike the others, by descriptions made by hand; by a base: in test_exchanged.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lora_scripts.families import strays


def by_hand(description: np.ndarray) -> np.ndarray:
    """`apart` of one description, one picture and number at a time."""

    def robust(values: np.ndarray, least: float) -> np.ndarray:
        off = values - np.median(values)
        return off / max(1.4826 * float(np.median(np.abs(off))), least)

    scaled = np.stack([np.clip(robust(column, 1e-6), -10, 10) for column in description.T], 1)
    far = []
    for one in scaled:
        distances = sorted(float(np.sqrt(np.mean((one - other) ** 2))) for other in scaled)
        far.append(np.log(distances[len(scaled) // 2]))
    return robust(np.array(far), 0.2)


def descriptions(count: int, *, seed: int = 0, unlike: tuple[int, ...] = ()) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    made = [torch.randn(count, width, generator=g) for width in (40, 12, 8)]
    for i in unlike:
        for one in made:
            one[i] += 4 * torch.randn(one.shape[1], generator=g)
    return made


def test_the_distance_is_that_of_the_formula() -> None:
    made = descriptions(15, unlike=(3,))
    wanted = np.mean([by_hand(one.double().numpy()) for one in made], 0)
    np.testing.assert_allclose(strays.apart(made).numpy(), wanted, atol=1e-9)


def test_strays_are_named_and_others_are_not() -> None:
    assert sorted(strays.strays(descriptions(20, unlike=(4, 17)))) == [4, 17]
    assert all(strays.strays(descriptions(20, seed=seed)) == [] for seed in range(10))
    assert strays.strays(descriptions(strays.LEAST - 1, unlike=(4,))) == []  # too few to say
    assert strays.strays([torch.ones(20, 5)] * 3) == []


def test_more_than_a_share_of_a_set_are_no_strays(monkeypatch: pytest.MonkeyPatch) -> None:
    made = descriptions(20, unlike=(4, 17))
    monkeypatch.setattr(strays, "SHARE", 0.05)
    assert strays.strays(made) == []
