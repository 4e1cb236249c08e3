"""What the loop is fed: the right views, captions and randomness, the same however often it is stopped."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lora_scripts.data.cache import Cache
from lora_scripts.data.image import apply_view, load_rgb
from lora_scripts.data.scan import Sample, scan
from lora_scripts.errors import UserError
from lora_scripts.families.base import Batch
from lora_scripts.formats import io
from lora_scripts.losses.diffusion import Objective
from lora_scripts.losses.noise import Timesteps
from lora_scripts.train.feed import Feed, place_of
from lora_scripts.train.planned import plan_pictures
from toy import Toy, feed, samples


def quiet(what: str, done: int, total: int) -> None:
    pass


def filled(family: Toy, pictures: list[Sample], folder: Path, **keys: Any) -> Feed:
    made = feed(family, pictures, **keys)
    made.fill(Cache(folder / "cache", io.write_atomic), quiet)
    return made


def noise(batch: Batch) -> list[Tensor]:
    """One number from each generator, which are left where they stand."""
    return [torch.rand((), generator=g.clone_state()) for g in batch.generators]


def equal(left: Mapping[str, Tensor] | None, right: Mapping[str, Tensor] | None) -> bool:
    assert left is not None and right is not None
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def same(left: Batch, right: Batch) -> bool:
    texts = left.texts is right.texts is None or equal(left.texts, right.texts)
    return (
        (left.captions, left.names, noise(left)) == (right.captions, right.names, noise(right))
        and left.places is not None
        and right.places is not None
        and torch.equal(left.places, right.places)
        and left.quantiles is not None
        and right.quantiles is not None
        and torch.equal(left.quantiles, right.quantiles)
        and equal(left.latents, right.latents)
        and texts
    )


@pytest.mark.parametrize("accumulation", [1, 2])
def test_going_on_in_mid_epoch_gives_the_tail_of_an_unbroken_run(accumulation: int, tmp_path: Path) -> None:
    pictures = samples(tmp_path / "wide", 5) + samples(tmp_path / "tall", 4, (64, 96))
    keys = {"flip": True, "random_crop": True, "caption_dropout": 0.3, "shuffle_tags": True, "repeats": 2}
    made = filled(Toy(), pictures, tmp_path, accumulation=accumulation, **keys)
    per_epoch, total = made.steps_per_epoch, 3 * made.steps_per_epoch
    assert per_epoch == {1: 9, 2: 5}[accumulation]  # 5 batches of the wide and 4 of the tall pictures
    whole = list(made.steps(0, total))
    assert [epoch for epoch, _ in whole] == [e for e in range(3) for _ in range(per_epoch)]
    assert sum(len(b.latents["mean"]) for _, batches in whole for b in batches) == 3 * 9 * 2
    other = filled(Toy(), pictures, tmp_path, accumulation=accumulation, **keys)
    for first in (1, per_epoch - 1, per_epoch, per_epoch + 2, total - 1, total):
        tail = list(other.steps(first, total))
        assert len(tail) == total - first
        for (epoch, wanted), (again, got) in zip(whole[first:], tail, strict=True):
            assert epoch == again and len(wanted) == len(got) and all(map(same, wanted, got))
    draws = [float(n) for _, batches in whole for b in batches for n in noise(b)]
    assert len(set(draws)) == len(draws)  # never the same noise twice


def test_the_noise_levels_of_a_run_are_spread_evenly(tmp_path: Path) -> None:
    """Over batches, ends of epochs and pieces of batches: one run of the golden ratio's multiples."""
    pictures = samples(tmp_path / "wide", 5) + samples(tmp_path / "tall", 4, (64, 96))
    made = filled(Toy(), pictures, tmp_path, repeats=2)
    total = 3 * made.steps_per_epoch
    whole, parts = ([b for _, bs in made.steps(0, total, most) for b in bs] for most in (None, 1))
    levels, alone = (torch.cat([b.quantiles for b in batches if b.quantiles is not None]) for batches in (whole, parts))
    assert len(levels) == 3 * 18 and torch.equal(levels, alone)
    torch.testing.assert_close(levels.diff() % 1, torch.full_like(levels[1:], 0.6180339887498949), rtol=0, atol=1e-12)
    drawn = whole[0].draws(Objective(timesteps=Timesteps("sigmoid", first=200, last=699)), None).u
    wanted = 0.2 + 0.5 * torch.sigmoid(torch.special.ndtri(levels[: len(drawn)]))
    torch.testing.assert_close(drawn, wanted, rtol=0, atol=1e-12)
    drawn, own = whole[0].draws(Objective(timesteps=Timesteps("mode", mode_scale=0.5)), None).u, levels[: len(drawn)]
    torch.testing.assert_close(drawn, own + 0.5 * (own - torch.sin(torch.pi / 2 * own) ** 2), rtol=0, atol=1e-12)


def test_every_view_is_fed_and_is_what_was_encoded(tmp_path: Path) -> None:
    pictures = samples(tmp_path / "data", 1)
    made = filled(Toy(), pictures, tmp_path, flip=True, random_crop=True, batch_size=1)
    (picture,) = made.pictures
    row = [made.encoded.latents(0, n) for n in range(8)]
    assert len(picture.views) == 8
    plain, mirrored = row[0]["mean"], row[1]["mean"]
    torch.testing.assert_close(mirrored, plain.flip(-1))  # the 8 x 8 means of the mirrored picture
    seen = Counter()
    for _, (batch,) in made.steps(0, 200):
        (number,) = (n for n, view in enumerate(row) if torch.equal(view["mean"], batch.latents["mean"][0]))
        assert torch.equal(batch.latents["std"][0], row[number]["std"])
        seen[number] += 1
    assert len(seen) == 8 and min(seen.values()) > 10
    without = filled(Toy(), pictures, tmp_path, batch_size=1)
    assert len(without.pictures[0].views) == 1 and torch.equal(without.encoded.latents(0)["mean"], plain)


def test_no_caption_means_the_empty_captions_states(tmp_path: Path) -> None:
    toy = Toy()
    made = filled(toy, samples(tmp_path / "data"), tmp_path, caption_dropout=0.4)
    batches = [b for _, (b,) in made.steps(0, 300)]
    captions = [c for b in batches for c in b.captions]
    assert 0.3 < captions.count("") / len(captions) < 0.5
    for batch in batches[:20]:
        assert torch.equal(batch.texts["states"], toy.encode_text(batch.captions)["states"])
    assert not any("" in b.captions for _, (b,) in filled(toy, samples(tmp_path / "data"), tmp_path).steps(0, 30))


def test_shuffled_tags_get_their_own_states(tmp_path: Path) -> None:
    toy = Toy()
    made = filled(toy, samples(tmp_path / "data"), tmp_path, shuffle_tags=True, keep_tags=2)
    captions = []
    for _, (batch,) in made.steps(0, 30):
        assert torch.equal(batch.texts["states"], Toy().encode_text(batch.captions)["states"])
        captions += batch.captions
    assert len(set(captions)) > 20
    assert all(c.split(", ")[1] == "b" and sorted(c.split(", ")[1:]) == list("bcdef") for c in captions)
    untouched = filled(toy, samples(tmp_path / "data"), tmp_path)
    assert {c for _, (b,) in untouched.steps(0, 30) for c in b.captions} == {f"a{i}, b, c, d, e, f" for i in range(5)}


def test_a_trained_text_encoder_gets_captions_and_no_states(tmp_path: Path) -> None:
    toy = Toy()
    made = filled(toy, samples(tmp_path / "data"), tmp_path, cache_text=False)
    assert all(b.texts is None and all(b.captions) for _, (b,) in made.steps(0, 3))
    assert set(toy.encoded) == {"picture"}


def test_what_is_cached_is_not_computed_again_and_is_the_same(tmp_path: Path) -> None:
    toy, pictures = Toy(), samples(tmp_path / "data")
    first = filled(toy, pictures, tmp_path, flip=True)
    assert toy.encoded.count("picture") == 10 and len(toy.encoded) == 10 + 6
    toy.encoded.clear()
    second = filled(toy, pictures, tmp_path, flip=True)
    assert toy.encoded == []
    for a, b in zip(first.steps(0, 5), second.steps(0, 5), strict=True):
        assert all(map(same, a[1], b[1]))


@pytest.mark.parametrize("changed", ["picture", "resolution", "vae"])
def test_changed_pictures_resolutions_and_vaes_are_encoded_anew(changed: str, tmp_path: Path) -> None:
    toy, pictures = Toy(), samples(tmp_path / "data")
    (tmp_path / "data" / "metadata.csv").write_text("filename,prompt\n" + "".join(f"{i}.png,x{i}\n" for i in range(5)))
    before = filled(toy, scan(tmp_path / "data"), tmp_path)
    toy.encoded.clear()
    keys: dict[str, Any] = {}
    if changed == "picture":
        Image.open(tmp_path / "data" / "2.png").transpose(Image.Transpose.ROTATE_180).save(tmp_path / "data" / "2.png")
    elif changed == "resolution":
        keys["resolution"] = (128, 64)
    else:
        toy.vae = "another vae"
    after = filled(toy, scan(tmp_path / "data"), tmp_path, **keys)
    fresh = filled(toy, scan(tmp_path / "data"), tmp_path / "elsewhere", **keys)
    assert toy.encoded.count("picture") == {"picture": 1, "resolution": 5, "vae": 5}[changed] + 5
    assert len(pictures) == 5
    for i in range(5):
        old, new = before.encoded.latents(i)["mean"], after.encoded.latents(i)["mean"]
        assert torch.equal(new, fresh.encoded.latents(i)["mean"])
        assert torch.equal(old, new) == (changed == "picture" and i != 2)


@pytest.mark.parametrize("changed", ["caption", "text encoder"])
def test_changed_captions_and_text_encoders_are_encoded_anew(changed: str, tmp_path: Path) -> None:
    toy, pictures = Toy(), samples(tmp_path / "data")
    filled(toy, pictures, tmp_path)
    toy.encoded.clear()
    if changed == "caption":
        pictures[2] = dataclasses.replace(pictures[2], caption="new words")
    else:
        toy.text = "another text encoder"
    after = filled(toy, pictures, tmp_path)
    assert toy.encoded == (["new words"] if changed == "caption" else [*(p.caption for p in pictures), ""])
    for one in after.encoded.asked:
        assert torch.equal(after.encoded.told([one])["states"], toy.encode_text([one.caption])["states"])


def test_the_real_vae_and_text_encoder_through_the_cache(family: Any, data: Path, tmp_path: Path) -> None:
    """Mirror images are encoded from mirrored pixels, and batches of shuffled captions are as single ones."""
    found = scan(data)[:2]
    made = feed(family, found, flip=True, shuffle_tags=True, batch_size=2)
    made.fill(Cache(tmp_path / "cache", io.write_atomic), quiet)
    pixels = torch.stack([torch.tensor(list(Image.open(s.path).convert("RGB").get_flattened_data())) for s in found])
    upright = pixels.view(2, 64, 64, 3).movedim(-1, 1) / 127.5 - 1
    for number, image in ((0, upright), (1, upright.flip(-1))):
        with torch.no_grad():
            posterior = family.vae.encode(image).latent_dist
        for i in range(2):
            torch.testing.assert_close(
                made.encoded.latents(i, number)["mean"], 0.18215 * posterior.mean[i], rtol=1e-4, atol=1e-5
            )
            torch.testing.assert_close(
                made.encoded.latents(i, number)["std"], 0.18215 * posterior.std[i], rtol=1e-4, atol=1e-5
            )
    _, (batch,) = next(made.steps(0, 1))
    for caption, states in zip(batch.captions, batch.texts["states"], strict=True):
        torch.testing.assert_close(states, family.encode_text([caption])["states"][0], rtol=1e-4, atol=1e-5)


def test_all_views_of_a_data_set_are_planned_by_their_numbers(tmp_path: Path) -> None:
    """A crop's place depends on the picture's number, so that two pictures of one size are not cut alike."""
    planned = plan_pictures(samples(tmp_path, 2), (64, 64), (8, 8), flip=False, random_crop=True, seed=1)
    assert planned[0].bucket == planned[1].bucket
    assert planned[0].views[0] == planned[1].views[0] and planned[0].views[1:] != planned[1].views[1:]


def test_a_picture_that_changes_before_it_is_encoded_is_told_and_the_cache_stays_clean(tmp_path: Path) -> None:
    """Its latents would lie under the digest of the one before, and be trained by whoever puts that back."""
    pictures, family = samples(tmp_path / "data", 3), Toy()
    before = pictures[1].path.read_bytes()
    Image.open(pictures[2].path).save(pictures[1].path)
    with pytest.raises(UserError, match=r"1\.png: has changed since this start looked at it; start again"):
        filled(family, pictures, tmp_path)
    pictures[1].path.write_bytes(before)
    right = filled(family, pictures, tmp_path).encoded.latents(1)
    assert equal(right, filled(Toy(), pictures, tmp_path / "afresh").encoded.latents(1))
    assert family.encoded.count("picture") == 3  # one before the mistake, two after it


def test_a_picture_whose_latents_are_no_numbers_is_named_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A VAE in half precision does that to some; a shared cache would hand it on to every run."""
    pictures, encode = samples(tmp_path / "data", 3), Toy.encode_image

    def broken(self: Toy, pixels: np.ndarray) -> dict[str, torch.Tensor]:
        found, number = encode(self, pixels), self.encoded.count("picture")
        return (
            {name: tensor.index_fill(0, torch.tensor([0]), torch.nan) for name, tensor in found.items()}
            if number == 2
            else found
        )

    with monkeypatch.context() as patch:
        patch.setattr(Toy, "encode_image", broken)
        with pytest.raises(UserError, match=r"1\.png: the VAE makes numbers of it that are not finite"):
            filled(Toy(), pictures, tmp_path)
    again = Toy()
    filled(again, pictures, tmp_path)
    assert again.encoded.count("picture") == 2  # the one before it was kept, itself it was not


def test_a_view_lies_where_it_is_seen(tmp_path: Path) -> None:
    """Cut at the place that is told out of the resized picture, mirrored first where the view is, it is the view."""
    (picture,) = plan_pictures(samples(tmp_path, 1), (64, 64), (8, 8), flip=True, random_crop=True, seed=1)
    image = load_rgb(picture.sample.path)
    assert picture.views[3].flip and len({place_of(picture.sample, view).corner for view in picture.views}) > 4
    for view in picture.views:
        place = place_of(picture.sample, view)
        assert place.size == image.size and place.target == view.bucket
        whole = image.resize(view.scaled, Image.Resampling.LANCZOS)
        whole = whole.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view.flip else whole
        (left, top), (width, height) = place.corner, place.target
        cut = np.asarray(whole.crop((left, top, left + width, top + height)), np.float32) / 127.5 - 1
        assert np.array_equal(cut.transpose(2, 0, 1), apply_view(image, view))
