"""Looks at a data set, says what is wrong with it, and mends what can be mended."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lora_scripts.check import contradictions, fix
from lora_scripts.check.caption_findings import READ, caption_findings, missing
from lora_scripts.check.duplicates import quality
from lora_scripts.check.facts import PictureFacts
from lora_scripts.check.pictures import DUPLICATES, animated, look, picture_findings
from lora_scripts.check.shape import in_bucket, reference_shapes
from lora_scripts.check.verdict import check_command, ordered, summary
from lora_scripts.check.vocabulary import Captioned
from lora_scripts.data.buckets import STEPS, Size, bucket_sizes
from lora_scripts.data.captions import TornRow
from lora_scripts.data.findings import Finding
from lora_scripts.data.listing import Listing, list_data
from lora_scripts.data.references import References, reference_findings
from lora_scripts.data.scan import Sample
from lora_scripts.data.unquoted import told_once
from lora_scripts.errors import UserError
from lora_scripts.events import Note, Sink, ignore
from lora_scripts.formats import io
from lora_scripts.report.check_page import CheckData, ShownPicture, render

REMOVABLE = ("corrupt", "too_small", "odd_aspect", "blurred", "upscaled", "jpeg_blocks")
"""Kinds of findings that nothing mends but another picture, or none."""

OF_STYLES = frozenset(["captions_identical", "words_in_every_caption", "colour_cast"])
"""Kinds of findings that say nothing of an edit: its captions say what is done, and that may be the same each time."""


@dataclass(frozen=True)
class CheckOptions:
    """What is asked of a data set."""

    folder: Path
    metadata: Path | None
    resolution: Size
    allow_missing: bool
    words: Sequence[str]
    """What to type behind `lora-scripts check` to look again, for the advice to add --fix."""
    default_page: Path | None
    """None: beside the folder."""
    page: Path | None = None
    trigger: Sequence[str] = ()
    read: int | None = READ
    """As of `caption_findings`."""
    steps: tuple[int, int] = STEPS
    """Of what the sides of buckets are multiples, mostly and at least."""
    language: str = "auto"
    """Of the page."""
    fix: bool = False
    set_aside: tuple[str, ...] = ()
    """Kinds of findings, of `REMOVABLE`, whose pictures go into the side folder."""
    base: Path | None = None
    """A base that is asked what it can draw of some pictures' detail, and which captions fit which pictures."""
    vae: Path | None = None
    """In place of the base's own."""
    references: References | None = None
    """Of a set for a model that edits."""

    @property
    def buckets(self) -> list[Size]:
        return bucket_sizes(self.resolution, *self.steps)


@dataclass(frozen=True)
class Checked:
    """What was found in a data set, after the mending if that was asked for."""

    folder: Path
    pictures: int
    captioned: int
    """Pictures with a caption."""
    unread: int
    """Pictures whose caption cannot be read."""
    findings: tuple[Finding, ...]
    """The worst first."""
    mended: tuple[str, ...] | None
    """What was done, line by line; None if nothing was asked to be done."""
    mend: str
    """The command that mends what can be mended; empty if that is nothing, or done."""
    unmendable: Mapping[str, int]
    """Of pictures that only another one mends: kind of finding -> how many; empty as long as `mend` is not."""
    set_aside: str
    """The command that sets those aside; empty if there are none."""
    page: Path

    @property
    def errors(self) -> list[Finding]:
        """Those at which training would stop."""
        return [finding for finding in self.findings if finding.severity == "error"]


@dataclass(frozen=True)
class Examined:
    """A data set and all that was found in it."""

    listing: Listing
    facts: Mapping[str, PictureFacts]
    findings: list[Finding]
    """The worst first."""

    @property
    def captioned(self) -> int:
        """Pictures with a caption."""
        return sum(bool(self.listing.caption(name)) for name in self.listing.images)

    @property
    def unread(self) -> set[str]:
        """Pictures whose caption cannot be read: its row or its file is broken."""
        without = {*_without_caption(self.listing)}
        return {name for name in self.listing.images if not self.listing.caption(name)} - without


def check_data(options: CheckOptions, sink: Sink = ignore) -> Checked:
    """Looks at every picture and caption, mends if asked to, and writes the page.

    UserError if there is nothing to look at, or the page would lie among the pictures.
    """
    page = options.page or options.default_page or fix.beside(options.folder, "-check.html")
    if Path(os.path.abspath(page)).is_relative_to(os.path.abspath(options.folder)):
        raise UserError(
            "the page would lie among the pictures", file=page, hint="choose a path outside of their folder"
        )
    listing = list_data(options.folder, options.metadata, allow_missing_captions=True)
    recoded: list[str] = []
    if options.fix and (others := fix.foreign(listing)):
        recoded = fix.write_as_utf8(others)
        listing = list_data(options.folder, options.metadata, allow_missing_captions=True)
    facts = {one.name: one for one in look(listing.images, sink=sink)}
    examined = _examine(options, listing, facts)
    told = _by_base(options, listing, sink)
    mended: tuple[str, ...] | None = None
    if options.fix or options.set_aside:
        mend = fix.plan(options.folder, listing, _going(options, examined), captions=options.fix)
        mended = (*recoded, *fix.apply(mend, options.folder))
        if mend:
            listing = list_data(options.folder, options.metadata, allow_missing_captions=True)
            examined = _examine(options, listing, {name: facts[name] for name in listing.images})
    mendable = not options.fix and (
        fix.foreign(examined.listing) or fix.plan(options.folder, examined.listing, surplus(examined))
    )
    examined = replace(examined, findings=ordered([*examined.findings, *told]))
    removable = {} if mendable else _removable(examined)
    if set().union(*removable.values()).issuperset(examined.listing.images):
        removable = {}  # that would be all of them, as those of a set that is smaller than the resolution
    unmendable = {kind: len(names) for kind, names in removable.items()}
    checked = Checked(
        folder=options.folder,
        pictures=len(examined.listing.images),
        captioned=examined.captioned,
        unread=len(examined.unread),
        findings=tuple(examined.findings),
        mended=mended,
        mend=check_command([*options.words, "--fix"]) if mendable else "",
        unmendable=unmendable,
        set_aside=check_command([*options.words, "--set-aside", *unmendable]) if unmendable else "",
        page=page,
    )
    io.make_folder(page.parent)
    io.write_text(page, render(_page(options, examined, checked)))
    return checked


def _by_base(options: CheckOptions, listing: Listing, sink: Sink) -> list[Finding]:
    """What a base says of the set; loads it. UserError for a file that is no base of pictures."""
    if options.base is None:
        return []
    import torch

    from lora_scripts.check import with_base
    from lora_scripts.compute.device import DTYPES, choose_device, choose_precision
    from lora_scripts.families.base import CaptionEncoder, LoadOptions
    from lora_scripts.families.table import load_pictures

    sink(
        Note(f"loading {options.base.name} to see what it can draw, and whether pictures and captions belong together")
    )
    captions = {name: text for name in listing.images if (text := listing.caption(name))}
    device = choose_device("auto")
    dtype = torch.float32 if device.type == "cpu" else DTYPES[choose_precision("auto", device)]

    def encode(encoder: CaptionEncoder) -> None:
        encoder.remember(list(captions.values()))

    family = load_pictures(options.base, LoadOptions(device, dtype, options.vae, first=encode))
    undrawable = with_base.undrawable(family, listing.images, options.resolution, sink)
    if options.references is not None:
        return undrawable  # a caption that says what is done fits every picture
    exchanged = with_base.captions_exchanged(family, listing.images, captions, sink)
    wrong = {name for finding in exchanged for name in finding.files}  # one word for a picture is enough
    strays = with_base.unlike(family, listing.images, captions, sink)
    return [*undrawable, *exchanged, *(finding for finding in strays if wrong.isdisjoint(finding.files))]


# --- finding ----------------------------------------------------------------------------------------------------------


def _examine(options: CheckOptions, listing: Listing, facts: Mapping[str, PictureFacts]) -> Examined:
    captions = {name: _captioned(listing, name) for name in listing.images}
    findings = [
        *_source_faults(options.folder, listing),
        *listing.notes,
        *animated(listing.images),
        *picture_findings(list(facts.values()), options.buckets),
        *missing(_without_caption(listing), allowed=options.allow_missing),
        *caption_findings(list(captions.values()), trigger=options.trigger, read=options.read),
    ]
    clusters = fix.merged(finding.files for finding in findings if finding.kind in DUPLICATES)
    alike = [set(cluster) for cluster in clusters]
    findings = [  # that copies of a picture have its caption is no second fault
        finding
        for finding in findings
        if not (finding.kind == "captions_identical" and any(one.issuperset(finding.files) for one in alike))
    ]
    findings += contradictions.between(clusters, captions)
    if options.references is not None:
        findings = [finding for finding in findings if finding.kind not in OF_STYLES]
        readable = {name: one for name, one in facts.items() if one.problem is None}
        samples = [Sample(listing.images[name], name, "", *one.size, one.sha256) for name, one in readable.items()]
        told, samples = reference_findings(options.references, samples)
        findings += [*told, *reference_shapes(samples, options.buckets)]
    return Examined(listing, facts, ordered(findings))


def _captioned(listing: Listing, name: str) -> Captioned:
    said = next(iter(listing.said.get(name, ())), None)
    return Captioned(name, said.text, said.source) if said else Captioned(name, "")


def _source_faults(folder: Path, listing: Listing) -> list[Finding]:
    """Every fault of the caption files and of the folder, with its place and the pictures that it is about."""
    names = {path: name for name, path in listing.images.items()}
    at: dict[tuple[str, int | None], list[str]] = {}
    for name, sources in listing.said.items():
        for said in sources:
            at.setdefault((str(said.file), said.line), []).append(name)
    torn = [fault for fault in listing.faults if isinstance(fault, TornRow)]
    findings = []
    for fault in told_once(listing.faults):
        path = Path(fault.file) if fault.file is not None else folder
        alike = [fault] if fault in listing.faults else [row for row in torn if row.file == fault.file]
        rows = [name for row in alike for name in at.get((str(row.file), row.line), ())]
        files = (names[path],) if path in names else tuple(dict.fromkeys(rows))
        place = _within(path, folder) + (f":{fault.line}" if fault.line else "")
        source = None if path in names else place
        mend = fault.hint or "correct it"
        findings.append(Finding("caption_file", "error", files, fault.message, mend, None, source))
    return findings


def _within(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.as_posix()


def _without_caption(listing: Listing) -> list[str]:
    """Pictures that no source names, or whose caption is empty; not those whose caption could not be read."""
    broken = {(fault.file, fault.line) for fault in listing.faults}
    return [
        name
        for name in listing.images
        if not any(said.text or (said.file, said.line) in broken for said in listing.said.get(name, ()))
        and not (listing.lost and name not in listing.said)
        and not (name in listing.said and not listing.said[name])
    ]


# --- mending ----------------------------------------------------------------------------------------------------------


def surplus(examined: Examined) -> list[str]:
    """Every picture that a better one of its cluster stands for: one with a caption, or with more detail. A caption
    that cannot be read is one: whoever wrote it can mend it."""
    unread = examined.unread

    def worth(name: str) -> tuple[object, ...]:
        return name in unread or bool(examined.listing.caption(name)), quality(examined.facts[name])

    clusters = fix.merged(finding.files for finding in examined.findings if finding.kind in DUPLICATES)
    others: list[str] = []
    for cluster in clusters:
        best = max(cluster, key=worth)
        others += [name for name in cluster if name != best]
    return others


def _removable(examined: Examined) -> dict[str, list[str]]:
    """Kind of `REMOVABLE` -> the pictures with an error or a warning of it."""
    pictures: dict[str, list[str]] = {}
    for finding in examined.findings:
        if finding.kind in REMOVABLE and finding.severity != "note":
            pictures.setdefault(finding.kind, []).extend(finding.files)
    return pictures


def _going(options: CheckOptions, examined: Examined) -> list[str]:
    """The pictures to set aside. UserError if that were all of them."""
    removable = _removable(examined)
    names = {name for kind in options.set_aside for name in removable.get(kind, ())}
    if names.issuperset(examined.listing.images):
        raise UserError("no picture would be left", file=options.folder, hint="name fewer kinds")
    return sorted(names.union(surplus(examined) if options.fix else ()))


# --- the page ---------------------------------------------------------------------------------------------------------


def _page(options: CheckOptions, examined: Examined, checked: Checked) -> CheckData:
    pictures = [
        replace(_shown(name, one, examined.listing.caption(name), options.buckets), unread=name in examined.unread)
        for name, one in examined.facts.items()
    ]
    rows = [
        ("pictures", str(len(pictures))),
        ("captions", str(sum(bool(picture.caption) for picture in pictures))),
        ("resolution", "{} × {}".format(*options.resolution)),
        ("buckets", str(len({picture.bucket for picture in pictures if picture.bucket}))),
        ("folder", str(options.folder)),
    ]
    return CheckData(
        name=Path(os.path.abspath(options.folder)).name,
        verdict=summary(checked.pictures, checked.captioned, checked.findings, checked.unread),
        facts=rows,
        language=options.language,
        findings=checked.findings,
        pictures=pictures,
        mended=checked.mended,
        command=checked.mend,
        set_aside=checked.set_aside,
    )


def _shown(name: str, one: PictureFacts, caption: str, buckets: Sequence[Size]) -> ShownPicture:
    if one.problem is not None:
        return ShownPicture(name, one.size if one.readable else None, one.thumbnail, caption)
    bucket, _, inside = in_bucket(one.size, buckets)
    return ShownPicture(name, one.size, one.thumbnail, caption, bucket, inside)
