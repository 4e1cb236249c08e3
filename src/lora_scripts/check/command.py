"""`lora-scripts check`: looks at a data set, says what is wrong with it, and mends what can be mended."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_scripts.check import contradictions, fix
from lora_scripts.check.captions import caption_findings, missing
from lora_scripts.check.duplicates import quality
from lora_scripts.check.facts import PictureFacts
from lora_scripts.check.pictures import DUPLICATES, look, picture_findings
from lora_scripts.check.shape import in_bucket
from lora_scripts.check.verdict import check_command, counted, lines, ordered
from lora_scripts.check.vocabulary import Captioned
from lora_scripts.data.buckets import Size, bucket_sizes
from lora_scripts.data.findings import Finding
from lora_scripts.data.scan import Listing, list_data
from lora_scripts.errors import UserError
from lora_scripts.formats import io
from lora_scripts.report.check_page import CheckData, ShownPicture, write_check_page


@dataclass(frozen=True)
class CheckOptions:
    """What `lora-scripts check` is asked."""

    folder: Path
    metadata: Path | None
    resolution: Size
    allow_missing: bool
    words: Sequence[str]
    """What to type behind `lora-scripts check` to look again, for the advice to add --fix."""
    default_page: Path | None
    """None: beside the folder."""
    page: Path | None = None
    trigger: str | None = None
    fix: bool = False


@dataclass(frozen=True)
class Looked:
    """A data set and all that was found in it."""

    listing: Listing
    facts: Mapping[str, PictureFacts]
    findings: list[Finding]
    """The worst first."""


def check_data(options: CheckOptions) -> None:
    """Prints the verdict, writes the page, mends if asked to. UserError if training would stop, after all is told."""
    page = options.page or options.default_page or fix.beside(options.folder, "-check.html")
    if Path(os.path.abspath(page)).is_relative_to(os.path.abspath(options.folder)):
        raise UserError(
            "the page would lie among the pictures", file=page, hint="choose a path outside of their folder"
        )
    listing = list_data(options.folder, options.metadata, allow_missing_captions=True)
    facts = {one.name: one for one in look(listing.images, tell=_tell)}
    looked = _judge(options, listing, facts)
    done: list[str] = []
    if options.fix:
        mend = fix.plan(options.folder, listing, surplus(looked))
        done = fix.apply(mend, options.folder) or ["nothing to mend without asking"]
        if mend:
            listing = list_data(options.folder, options.metadata, allow_missing_captions=True)
            looked = _judge(options, listing, {name: facts[name] for name in listing.images})
    _tell_verdict(options, looked, done)
    io.make_folder(page.parent)
    write_check_page(page, _page(options, looked, done), io.write_text)
    print(f"the page: {page}", flush=True)
    errors = [finding for finding in looked.findings if finding.severity == "error"]
    if errors:
        raise UserError(f"training would stop at {counted(errors)}", file=options.folder, hint="mend them first")


def _tell(done: int, total: int) -> None:
    if sys.stdout.isatty():
        print(f"\rlooking at pictures {done}/{total} ", end="\n" if done == total else "", flush=True)


# --- finding ----------------------------------------------------------------------------------------------------------


def _judge(options: CheckOptions, listing: Listing, facts: Mapping[str, PictureFacts]) -> Looked:
    captions = {name: _captioned(listing, name) for name in listing.images}
    findings = [
        *_source_faults(options.folder, listing),
        *picture_findings(list(facts.values()), options.resolution),
        *missing(_without_caption(listing), allowed=options.allow_missing),
        *caption_findings(list(captions.values()), trigger=options.trigger),
    ]
    clusters = fix.merged(finding.files for finding in findings if finding.kind in DUPLICATES)
    alike = [set(cluster) for cluster in clusters]
    findings = [  # that copies of a picture have its caption is no second fault
        finding
        for finding in findings
        if not (finding.kind == "captions_identical" and any(one.issuperset(finding.files) for one in alike))
    ]
    findings += contradictions.between(clusters, captions)
    return Looked(listing, facts, ordered(findings))


def _captioned(listing: Listing, name: str) -> Captioned:
    said = next(iter(listing.said.get(name, ())), None)
    return Captioned(name, said.text, said.source) if said else Captioned(name, "")


def _source_faults(folder: Path, listing: Listing) -> list[Finding]:
    """Every fault of the caption files and of the folder, with its place."""
    names = {path: name for name, path in listing.images.items()}
    findings = []
    for fault in listing.faults:
        path = Path(fault.file) if fault.file is not None else folder
        files = (names[path],) if path in names else ()
        source = None if files else f"{_within(path, folder)}:{fault.line}" if fault.line else _within(path, folder)
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


def surplus(looked: Looked) -> list[str]:
    """Every picture that a better one of its cluster stands for: one with a caption, or else with more detail."""

    def worth(name: str) -> tuple[object, ...]:
        return bool(looked.listing.caption(name)), quality(looked.facts[name])

    clusters = fix.merged(finding.files for finding in looked.findings if finding.kind in DUPLICATES)
    out = []
    for cluster in clusters:
        best = max(cluster, key=worth)
        out += [name for name in cluster if name != best]
    return out


# --- telling ----------------------------------------------------------------------------------------------------------


def _verdict(looked: Looked) -> str:
    captioned = sum(bool(looked.listing.caption(name)) for name in looked.listing.images)
    return f"{len(looked.listing.images)} pictures, {captioned} with a caption: {counted(looked.findings)}"


def _tell_verdict(options: CheckOptions, looked: Looked, done: Sequence[str]) -> None:
    for line in done:
        print(line)
    print(f"{options.folder}: {_verdict(looked)}")
    for line in lines(looked.findings):
        print(f"  {line}")
    if not options.fix and _mendable(options, looked):
        print(f"to mend what can be mended without losing anything: {check_command([*options.words, '--fix'])}")


def _mendable(options: CheckOptions, looked: Looked) -> bool:
    return bool(fix.plan(options.folder, looked.listing, surplus(looked)))


def _page(options: CheckOptions, looked: Looked, done: Sequence[str]) -> CheckData:
    buckets = bucket_sizes(options.resolution)
    shown = [_shown(name, one, looked.listing.caption(name), buckets) for name, one in looked.facts.items()]
    used = {picture.bucket for picture in shown if picture.bucket}
    rows = [
        ("pictures", str(len(shown))),
        ("captions", str(sum(bool(picture.caption) for picture in shown))),
        ("resolution", "{} × {}".format(*options.resolution)),
        ("buckets", str(len(used))),
        ("folder", str(options.folder)),
    ]
    command = "" if options.fix or not _mendable(options, looked) else check_command([*options.words, "--fix"])
    name = Path(os.path.abspath(options.folder)).name
    return CheckData(name, _verdict(looked), rows, looked.findings, shown, done, command)


def _shown(name: str, one: PictureFacts, caption: str, buckets: Sequence[Size]) -> ShownPicture:
    if one.problem is not None:
        return ShownPicture(name, one.size if one.readable else None, one.thumbnail, caption)
    bucket, _, kept = in_bucket(one.size, buckets)
    return ShownPicture(name, one.size, one.thumbnail, caption, bucket, kept)
