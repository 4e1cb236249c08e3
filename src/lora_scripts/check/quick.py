"""What sizes, digests and captions tell: the part of the check that every training does by itself, in no time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from lora_scripts.check.caption_findings import READ, identical, missing, nonsense, truncated
from lora_scripts.check.shape import reference_shapes, shape_findings
from lora_scripts.check.vocabulary import Captioned
from lora_scripts.data.buckets import STEPS, Size, bucket_sizes
from lora_scripts.data.findings import Finding
from lora_scripts.data.scan import Sample


def quick_findings(
    samples: Sequence[Sample], resolution: Size, steps: tuple[int, int] = STEPS, read: int | None = READ
) -> list[Finding]:
    """What can be told of pictures that `scan` has read, without opening one again; the worst first. `steps`: of what
    the sides of buckets are multiples, mostly and at least; `read`: as of `caption_findings`."""
    captions = [Captioned(sample.name, sample.caption) for sample in samples if sample.caption]
    return [
        *nonsense(captions),
        *_same_files(samples),
        *_shapes(samples, buckets := bucket_sizes(resolution, *steps)),
        *reference_shapes(samples, buckets),
        *truncated(captions, read),
        *(identical(captions) if not any(sample.references for sample in samples) else []),
        *missing([sample.name for sample in samples if not sample.caption], allowed=True),
    ]


def _same_files(samples: Sequence[Sample]) -> list[Finding]:
    groups: dict[str, list[str]] = {}
    for sample in samples:
        groups.setdefault(sample.digest, []).append(sample.name)
    mend = "keep one of them"
    return [
        Finding("exact_duplicate", "warning", tuple(names), f"{len(names)} pictures are one file", mend)
        for names in groups.values()
        if len(names) > 1
    ]


def _shapes(samples: Sequence[Sample], buckets: Sequence[Size]) -> list[Finding]:
    of = cache(lambda size: [f for f in shape_findings("", size, buckets) if f.severity != "note"])  # sizes are few
    return [replace(f, files=(sample.name,)) for sample in samples for f in of((sample.width, sample.height))]
