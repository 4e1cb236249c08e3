"""`lora-scripts label`."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.chinese.terminal import AsItIs
from lora_scripts.cli.options import add_device, argument, default, number, path
from lora_scripts.config.values import at_home
from lora_scripts.errors import UserError, raise_all
from lora_scripts.events import Sink
from lora_scripts.units import number_of

if TYPE_CHECKING:
    from lora_scripts.label.command import Labelled, Reworded
    from lora_scripts.label.repair import Repaired

HELP = "write captions for a folder of pictures"
WORDS = ("words_only", "trigger", "prefix", "append", "replace", "remove", "blacklist", "whitelist", "max_tokens")
SHOWN = 3
"""So many changed captions are shown as examples."""


def _pair(text: str) -> tuple[str, str]:
    old, equals, new = (part.strip() for part in text.partition("="))
    if not (old and equals and new):
        raise ValueError('must be like "car=vehicle" (to take words out there is --remove)')
    return old, new


def add(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--input", metavar="DIR", type=path, required=True, help="the folder with the pictures; subfolders count")
    text = "a .csv or .jsonl file; txt or caption for a file beside each picture; or a folder for .txt files"
    add("--output", metavar="FILE", help=default("DIR/metadata.csv", text))
    add("--overwrite", action="store_true", help="make captions anew that are there already")
    text = "no captioner: each picture gets the prompt that it was drawn with, from its file"
    add("--from-prompts", action="store_true", help=text)
    text = "no captioner: put quotes around captions with commas in the .csv file; the file as it was stays"
    add("--repair", action="store_true", help=text)
    text = "no captioner: change the words of the captions that are there"
    add("--words-only", action="store_true", help=text)
    add_device(parser)
    _add_captioner(parser.add_argument_group("captioner"))
    _add_words(parser.add_argument_group("words"))


def _add_captioner(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    text = "a model's folder, its name on the hub, or miniature (the demo's world only)"
    add("--model", metavar="MODEL", help=default("Salesforce/blip-image-captioning-base", text))
    add("--captioner", metavar="NAME", help="blip, blip2, florence2, qwen-vl, llava or wd (default: as the model says)")
    add("--instruction", metavar="TEXT", help="what to write, for captioners that take an instruction")
    add("--threshold", metavar="X", type=number(float, 0, 1), help="WD taggers, general tags (default: 0.35)")
    text = "WD taggers, names of characters (default: 0.85)"
    add("--character-threshold", metavar="X", type=number(float, 0, 1), help=text)
    add("--batch-size", metavar="N", type=number(int, 1, 256), help=default("4", "pictures at once"))


def _add_words(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    text = "leave out what the LoRA shall learn by itself: a style's or a character's own words"
    add("--for", dest="purpose", choices=("style", "character"), help=text)
    add("--trigger", metavar="WORD", default="", help="put first in every caption")
    add("--prefix", metavar="TEXT", default="", help="put before every caption, behind the trigger")
    add("--append", metavar="TEXT", default="", help="put last in every caption")
    text = "write b for a, whole words; may be given again"
    add("--replace", metavar="a=b", type=argument(_pair), action="append", default=[], help=text)
    add("--remove", metavar="WORDS", action="append", default=[], help="take words or a tag out; may be given again")
    add("--blacklist", metavar="LIST", help='as --remove for many: "hat, red shoes", or a text file of them')
    add("--whitelist", metavar="LIST", help="keep only these tags: as --blacklist")
    text = "shorten captions to N tokens of CLIP, at a word or tag (CLIP reads 75)"
    add("--max-tokens", metavar="N", type=number(int, 1, 2000), help=text)


def call(options: argparse.Namespace, sink: Sink) -> Labelled | Reworded | Repaired:
    """Writes a caption for every picture that has none; what a person has written stays."""
    from lora_scripts.label.wording import WordRules

    rules = WordRules(
        purpose=options.purpose,
        replace=tuple(options.replace),
        remove=(*options.remove, *_words(options.blacklist)),
        whitelist=_words(options.whitelist),
        trigger=options.trigger,
        prefix=options.prefix,
        append=options.append,
        max_tokens=options.max_tokens,
    )
    from lora_scripts.label import command

    if options.repair:
        _refuse_captioner(options, "--repair", ("overwrite", "from_prompts", *WORDS))
        from lora_scripts.label.repair import repair

        return repair(options.input, options.output, sink)
    if options.words_only:
        if not rules:
            raise UserError("--words-only needs to know what to do", hint="give --trigger, --replace, --for or others")
        _refuse_captioner(options, "--words-only", ("overwrite", "from_prompts"))
        return command.reword(options.input, options.output, rules, sink)
    if options.from_prompts:
        _refuse_captioner(options, "--from-prompts")
    from lora_scripts.label.base import CaptionOptions

    plain = CaptionOptions()
    captions = CaptionOptions(
        device=options.device,
        precision=options.precision,
        instruction=options.instruction,
        general_threshold=_or(options.threshold, plain.general_threshold),
        character_threshold=_or(options.character_threshold, plain.character_threshold),
    )
    asked = command.LabelOptions(
        input=options.input,
        output=options.output,
        model=options.model,
        captioner=options.captioner,
        captions=captions,
        rules=rules,
        batch_size=options.batch_size or command.LabelOptions.batch_size,
        overwrite=options.overwrite,
        from_prompts=options.from_prompts,
    )
    return command.label(asked, sink)


def words(result: Labelled | Reworded | Repaired) -> Iterator[str]:
    """How many captions were written or changed, some examples, and what was left alone."""
    from lora_scripts.label.command import Reworded
    from lora_scripts.label.repair import Repaired

    if isinstance(result, Repaired):
        for row in result.rows[:SHOWN]:
            place = f"line {row.line}: "
            yield AsItIs(f"{place}{row.before}\n{'→ '.rjust(len(place))}{row.after}")
        yield f"quotes put around {number_of(len(result.rows), 'caption')} in {result.path}"
        return
    if isinstance(result, Reworded):
        for change in result.changes[:SHOWN]:
            yield AsItIs(f"{change.name}: {change.before}\n{' ' * len(change.name)}→ {change.after}")
        yield f"{len(result.changes)} of {result.captions} captions changed in {result.path}"
    elif result.asked:
        has = "has" if result.captioned == 1 else "have"
        share = f"{result.captioned} of {number_of(result.pictures, 'picture')} {has} one now"
        yield f"{number_of(result.written, 'caption')} written to {result.path}; {share}"
    else:
        yield (
            "the picture has a caption already; --overwrite makes it anew"
            if result.pictures == 1
            else f"all {result.pictures} pictures have captions already; --overwrite makes them anew"
        )
    if result.elsewhere:
        example = next(iter(result.elsewhere.values()))
        mend = _output_for(result.elsewhere.values()) if isinstance(result, Reworded) else ""
        yield f"captions in other files, such as {example}, are not touched: {len(result.elsewhere)}{mend}"


def _output_for(sources: Iterable[str]) -> str:
    """What changes those of them that lie beside pictures, in the files that most have."""
    from lora_scripts.data.findings import SIDECAR_SUFFIXES

    counts = Counter(suffix for source in sources if (suffix := Path(source).suffix.lower()) in SIDECAR_SUFFIXES)
    return "".join(f"; to change the {suffix} files: --output {suffix[1:]}" for suffix, _ in counts.most_common(1))


def faults(result: Labelled | Reworded | Repaired) -> list[UserError]:
    """Pictures that have no caption, or one that was left as it is; those of one cause in one line."""
    groups: dict[tuple[str, str | None], list[UserError]] = {}
    for fault in getattr(result, "faults", ()):
        cause = re.sub('"[^"]*"', '"…"', fault.message)
        groups.setdefault((cause, fault.hint), []).append(fault)
    return [_together(cause, group) for (cause, _), group in groups.items()]


def _together(cause: str, group: Sequence[UserError]) -> UserError:
    if len(group) == 1:
        return group[0]
    from lora_scripts.check.verdict import few

    names = few([Path(str(fault.file)).name for fault in group])
    return UserError(f"{len(group)} pictures ({names}): {cause}", hint=group[0].hint)


def _refuse_captioner(options: argparse.Namespace, reason: str, others: Sequence[str] = ()) -> None:
    """UserErrors for options that do nothing without a captioner, and for those of `others` that are given."""
    given = [name for name in ("model", "captioner", "instruction") if getattr(options, name)]
    given += [n for n in ("threshold", "character_threshold", "batch_size") if getattr(options, n) is not None]
    given += [name for name in ("device", "precision") if getattr(options, name) != "auto"]
    given += [name for name in others if getattr(options, name)]
    raise_all(
        [
            UserError(f"--{name.replace('_', '-')} does nothing with {reason}", hint="leave one of them out")
            for name in given
        ]
    )


def _or(value: float | None, plain: float) -> float:
    return plain if value is None else value


def _words(text: str | None) -> tuple[str, ...]:
    """From "a, b c", or from a text file with one on each line or commas between."""
    if text is None:
        return ()
    from lora_scripts.utf8 import read_text

    file = Path(text)
    if "," not in text and file.suffix == ".txt":
        file = at_home(text)
        text = read_text(file).replace("\n", ",")
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    if not words:
        raise UserError("a list of words is empty", file=file, hint='write words with commas: "hat, red shoes"')
    return words
