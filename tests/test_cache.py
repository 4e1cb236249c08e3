"""What is put comes back bit by bit; what is damaged does not come back at all."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lora_scripts.data.cache import FORMAT, Cache, cache_key
from lora_scripts.errors import UserError


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    def write(path: Path, data: bytes) -> None:
        path.write_bytes(data)

    return Cache(tmp_path / "cache", write)


KEY = cache_key("latents", 1)


def some() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "mean": torch.randn(4, 8, 6, generator=generator),
        "half": torch.randn(3, generator=generator).to(torch.bfloat16),
        "scalar": torch.tensor(7),
        "none": torch.zeros(0, 3),
        "mask": torch.tensor([True, False]),
    }


def test_round_trip(cache: Cache) -> None:
    assert cache.get(KEY) is None
    cache.put(KEY, some())
    back = cache.get(KEY)
    assert back is not None and set(back) == set(some())
    for name, tensor in some().items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor), name
    assert cache.get(cache_key("latents", 2)) is None
    assert set(load_file(cache.path(KEY))) == set(some()), "an ordinary safetensors file"


def test_views_shared_memory_and_gradients(cache: Cache) -> None:
    base = torch.arange(12.0).reshape(3, 4).requires_grad_()
    cache.put(KEY, {"t": base.T, "row": base[1], "again": base})
    back = cache.get(KEY)
    assert back is not None
    assert torch.equal(back["t"], base.detach().T) and torch.equal(back["row"], base.detach()[1])
    back["t"].zero_()
    assert base.sum() == 66


def test_every_damage_counts_as_absent_and_is_mended(cache: Cache) -> None:
    cache.put(KEY, some())
    path, good = cache.path(KEY), cache.path(KEY).read_bytes()
    for place in range(len(good)):  # one flipped bit, anywhere
        path.write_bytes(good[:place] + bytes([good[place] ^ (1 << place % 8)]) + good[place + 1 :])
        back = cache.get(KEY)
        # a flip in the padding of the header changes nothing; everything else must be noticed
        assert back is None or all(torch.equal(back[name], tensor) for name, tensor in some().items()), place
    for size in range(0, len(good), 7):
        path.write_bytes(good[:size])
        assert cache.get(KEY) is None, size
    for data in (b"", b"\0" * 500, b"<html>" * 40, good + b"x", b"\xff" * 8 + good[8:]):
        path.write_bytes(data)
        assert cache.get(KEY) is None
    cache.put(KEY, some())
    assert cache.get(KEY) is not None


def test_a_flipped_bit_in_a_tensor_is_noticed(cache: Cache) -> None:
    cache.put(KEY, some())
    path = cache.path(KEY)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    assert cache.get(KEY) is None


def test_an_entry_under_another_name_is_not_served(cache: Cache) -> None:
    other = cache_key("latents", 2)
    cache.put(KEY, some())
    cache.path(other).parent.mkdir(parents=True, exist_ok=True)
    cache.path(KEY).rename(cache.path(other))
    assert cache.get(other) is None


def test_a_file_without_our_digest_is_not_served(cache: Cache) -> None:
    from safetensors.torch import save

    cache.put(KEY, some())
    for metadata in (None, {"sha256": "0" * 64}):
        cache.path(KEY).write_bytes(save(some(), metadata=metadata))
        assert cache.get(KEY) is None


def test_keys_are_unambiguous() -> None:
    parts = [
        ("ab", "c"), ("a", "bc"), ("abc",), ("ab", "c", ""), (("ab", "c"),), ("ab", ("c",)), (),
        (1,), (1.0,), ("1",), (True,), (None,), ("None",), (0.1,), (0.1 + 2**-56,), (-0.0,), (0.0,), ((),), ("",),
        ("str:1:a",), ("a", "str:0:"), (10,), (1, 0), ("中",), ("\ud800",),
    ]  # fmt: skip
    for one, two in itertools.combinations(parts, 2):
        assert cache_key(*one) != cache_key(*two), (one, two)
    with pytest.raises(TypeError):
        cache_key([1])  # type: ignore[arg-type]


def test_a_key_worked_out_by_hand() -> None:
    """So that a change of the encoding, which would orphan every cache, does not go unnoticed."""
    pair = b"float:20:0x1.0000000000000p-1" + b"NoneType:4:None"
    parts = b"str:1:a" + b"int:1:1" + b"tuple:%d:" % len(pair) + pair
    whole = b"int:%d:%d" % (len(str(FORMAT)), FORMAT) + b"tuple:%d:" % len(parts) + parts
    assert cache_key("a", 1, (0.5, None)) == hashlib.sha256(b"tuple:%d:" % len(whole) + whole).hexdigest()


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    cache = Cache(tmp_path / "file", lambda path, data: None)
    with pytest.raises(UserError, match="cache folder cannot be made"):
        cache.put(KEY, some())
    with pytest.raises(UserError, match="cannot be read"):
        cache.get(KEY)


def test_works_with_the_real_writer(tmp_path: Path) -> None:
    from lora_scripts.formats.io import write_atomic

    cache = Cache(tmp_path / "deep" / "cache", write_atomic)
    cache.put(KEY, some())
    assert cache.get(KEY) is not None


def test_the_first_bytes_stay_in_memory_and_no_more(tmp_path: Path) -> None:
    from lora_scripts.formats.io import write_atomic

    keys, rows = [cache_key("row", n) for n in range(5)], [torch.full((25,), float(n)) for n in range(5)]
    cache = Cache(tmp_path, write_atomic, keep=299)  # two of 100 bytes, and no third
    for key, row in zip(keys, rows, strict=True):
        cache.put(key, {"x": row})
    assert cache.held == 200
    for key in keys:
        cache.path(key).write_bytes(b"damaged")
    assert [cache.get(key) is not None for key in keys] == [True, True, False, False, False]
    assert Cache(tmp_path, write_atomic, keep=0).get(keys[0]) is None
    small = Cache(tmp_path, write_atomic, keep=99)  # what does not fit ends it, also for what would fit behind
    small.put(keys[0], {"x": rows[0]})
    small.put(keys[1], {"x": rows[1][:5]})
    assert small.held == 0


def test_an_entry_is_looked_for_and_not_read(tmp_path: Path) -> None:
    """So that a start with many of them is short."""
    from lora_scripts.formats.io import write_atomic

    good, bad, none = (cache_key(name) for name in ("good", "bad", "none"))
    for key in (good, bad):
        Cache(tmp_path, write_atomic).put(key, some())
    Cache(tmp_path, write_atomic).path(bad).write_bytes(b"damaged")
    cache = Cache(tmp_path, write_atomic, keep=1 << 20)
    assert [cache.ready(key) for key in (good, bad, none)] == [True, True, False] and not cache.held
    assert cache.get(good) is not None and cache.held
    cache.path(good).unlink()
    assert cache.ready(good)  # it is in memory
    assert cache.get(bad) is None
    cache.drop(bad)  # found damaged when it was read
    cache.drop(none)
    looking = Cache(tmp_path, write_atomic)
    assert [looking.ready(key) for key in (good, bad, none)] == [False, False, False]
    assert looking.get(bad) is None and not looking.path(none).exists()
