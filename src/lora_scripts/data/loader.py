"""Batches, and what is drawn for each image: functions of (seed, epoch, position, index), never of a state.

So resuming in mid-epoch is exact, and nothing depends on how many workers or how much history there is.
`random.Random(text)` hashes its text with SHA-512 and is the same on every platform.
"""

from __future__ import annotations

import random
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from lora_scripts.data.captions import tags_of
from lora_scripts.errors import UserError, raise_all
from lora_scripts.units import listed

MOST = 1_000_000
"""Repeats that the name of a folder may ask for."""
_NUMBERED = re.compile(r"(\d+)_")
_BESIDE = frozenset(["reg", "regularization", "log", "logs", "model", "models", "output"])
"""What kohya's users put beside `img`, in lower case: pictures of the class, curves, and results with their samples."""


@dataclass(frozen=True)
class Draw:
    """What chance decides for one image at one place of an epoch."""

    variant: int
    """Which of the cached views: 0 ... variants - 1."""
    drop_caption: bool
    """Train this image with an empty caption."""


def repeats_of(name: str) -> int:
    """How often a picture is seen by its name, a Posix path relative to the data folder: the number that the first
    folder's name begins with; 1 where it begins with none.

    That is where sd-scripts looks: at the folders in the data folder, for a number before the first `_`.
    """
    folder, slash, _ = name.partition("/")
    found = _NUMBERED.match(folder) if slash else None
    return int(found[1]) if found else 1


def numbered(names: Iterable[str]) -> dict[str, int]:
    """The folders of pictures that say how often, by name: "10_name" -> 10."""
    firsts = dict.fromkeys(name.partition("/")[0] for name in names if "/" in name)
    return {folder: repeats_of(f"{folder}/") for folder in firsts if _NUMBERED.match(folder)}


def folder_above(names: Iterable[str]) -> tuple[str, list[str]] | None:
    """Of the folder that holds those of kohya's trainers: the one to train ("img", in which all are "10_name") and the
    others with pictures ("reg", "model"); None for any other folder."""
    inside: dict[str, list[str]] = {}
    for name in names:
        first, slash, rest = name.partition("/")
        inside.setdefault(first if slash else "", []).append(rest)
    others = sorted(first for first in inside if first.lower() in _BESIDE)
    mains = [first for first in inside if first not in others]
    if len(mains) != 1 or not mains[0] or _NUMBERED.match(mains[0]):
        return None
    all_numbered = all(_NUMBERED.match(rest.rpartition("/")[0]) for rest in inside[mains[0]])
    return (mains[0], others) if all_numbered else None


def check_numbered(names: Iterable[str], *, any_needed: bool = True) -> None:
    """UserErrors of `folder_repeats: true` where no folder says how often (if `any_needed`), and of all that say never
    or too often."""
    found = numbered(names)
    if any_needed and not found:
        mend = "rename the folders in train_data_dir, or leave folder_repeats out"
        raise UserError("folder_repeats: no folder of pictures is named like 10_name", hint=mend)
    text = "folder_repeats: {} says that its pictures are seen {} times; it must be 1 to {}"
    wrong = [text.format(folder, count, MOST) for folder, count in found.items() if not 1 <= count <= MOST]
    raise_all([UserError(one, hint="rename the folder, or move it away from the others") for one in wrong])


def folders_in_words(found: Mapping[str, int]) -> str:
    """ "10_name, 3_other", and how many more."""
    return listed(list(found), 3)


def epoch_batches(
    buckets: Sequence[Hashable], *, batch_size: int, repeats: Sequence[int], seed: int, epoch: int
) -> list[list[int]]:
    """The batches of an epoch, as lists of image indices; `buckets[i]` is the bucket of image i.

    A pure function of its arguments. Each batch is of one bucket, image i comes exactly `repeats[i]` times, what is
    left over in a bucket forms a smaller batch. Within a bucket images come at even distances, so that all that come
    equally often come once before one comes again; and the batches of all buckets are mixed.
    """
    rng = random.Random(f"order/{seed}/{epoch}")
    members: dict[Hashable, list[int]] = {}
    for index, bucket in enumerate(buckets):
        members.setdefault(bucket, []).append(index)
    batches: list[list[int]] = []
    for indices in members.values():  # in the order of first appearance: hashes of strings differ between runs
        places = [((turn + rng.random()) / repeats[i], i) for i in indices for turn in range(repeats[i])]
        queue = [index for _, index in sorted(places)]
        batches += [queue[start : start + batch_size] for start in range(0, len(queue), batch_size)]
    rng.shuffle(batches)
    return batches


def pieces(batch: Sequence[int], most: int | None) -> Iterator[Sequence[int]]:
    """The batch in its order, in pieces of at most `most` images; None: whole."""
    size = most or len(batch)
    return (batch[start : start + size] for start in range(0, len(batch), size))


def draw(seed: int, epoch: int, position: int, index: int, *, variants: int, caption_dropout: float) -> Draw:
    """The view and the caption's fate for image `index` at `position` of the epoch.

    Both numbers are always drawn, so that changing the dropout leaves the views as they were, and the other way round.
    """
    rng = random.Random(f"draw/{seed}/{epoch}/{position}/{index}")
    variant, drop = rng.random(), rng.random()
    return Draw(variant=int(variant * variants), drop_caption=drop < caption_dropout)


GOLDEN = (5**0.5 - 1) / 2


def quantile(seed: int, number: int) -> float:
    """What share of all noise levels, 0 … 1, is below that of the `number`-th picture that a run sees.

    Of independent draws some steps in a row would have low levels, others high ones, and the loss and its gradient
    swing with them. So a start that chance decides is followed by multiples of the golden ratio (a Kronecker
    sequence): of any few pictures in a row the levels are spread evenly, and all are met alike often. Kingma et al.
    2021 ("Variational Diffusion Models", appendix I.1) do the same within a batch.
    """
    return (random.Random(f"levels/{seed}").random() + number * GOLDEN) % 1.0


def caption_for(caption: str, *, shuffle: bool, keep: int, rng_key: str, dropout: float = 0.0) -> str:
    """The caption with its comma-separated tags shuffled behind the first `keep`, and each of them left out with
    probability `dropout`; unchanged without either.

    `rng_key` names the occasion, for example "seed/epoch/position/index": equal keys give equal orders.
    """
    if not shuffle and not dropout:
        return caption
    tags = tags_of(caption)
    rest = tags[keep:]
    if shuffle:
        random.Random(f"tags/{rng_key}").shuffle(rest)
    if dropout:
        rng = random.Random(f"tag dropout/{rng_key}")
        rest = [tag for tag in rest if rng.random() >= dropout]
    return ", ".join(tags[:keep] + rest)
