"""`lora-scripts check`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts.cli.options import argument, base_of, file_of, size
from lora_scripts.config.values import at_home
from lora_scripts.data.texts.records import holds_records
from lora_scripts.errors import UserError
from lora_scripts.events import Sink
from lora_scripts.units import typed

if TYPE_CHECKING:
    from lora_scripts.check.command import Checked
    from lora_scripts.check.texts.command import TextChecked, TextCheckOptions
    from lora_scripts.config.schema import TrainConfig
    from lora_scripts.data.references import References

HELP = "look at a data set: what is wrong with it, and the mend"
OVERRIDES = True
_OF_CONFIG = Path()
"""In place of a path that is not written."""


def add(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", metavar="FILE", type=Path, help="the YAML file of the training; or give a folder of pictures")
    text = "a folder of pictures; or, with --config, keys laid over it: resolution=768"
    add("overrides", metavar="DATA_DIR | key=value", nargs="*", default=[], help=text)
    add("--resolution", metavar="WxH", type=size, help="of a bare folder, for its buckets (default: 512)")
    add("--trigger", metavar="TEXT", help="the word that calls the LoRA (default: guessed from how captions begin)")
    text = "the page (default: check.html in output_dir, or DATA_DIR-check.html beside the folder)"
    add("--output", metavar="FILE", type=file_of(".html"), help=text)
    text = "put the pictures with these findings beside the folder: corrupt, too_small, blurred … (see the page)"
    add("--set-aside", metavar="KIND", nargs="+", type=argument(_kind), default=[], help=text)
    text = (
        "load this base: can it draw the pictures' detail, are there strays, exchanged captions? with --config its "
        "own; of a bare file of records: count in its tokens"
    )
    add("--base", metavar="FILE", nargs="?", type=Path, const=_OF_CONFIG, help=text)
    add("--fix", action="store_true", help="set duplicates aside and correct captions; backups stay, pictures too")


def _kind(text: str) -> str:
    from lora_scripts.check.command import REMOVABLE

    if text not in REMOVABLE:
        raise ValueError(f"must be of {', '.join(REMOVABLE)}")
    return text


def call(options: argparse.Namespace, sink: Sink) -> Checked | TextChecked:
    """Looks at a data set before an evening is spent on it: tells a verdict and writes one HTML page with every
    finding. Exit code 0 if training can start, warnings or not, and 2 if it would stop."""
    if options.trigger is not None and not options.trigger.strip():
        raise UserError("--trigger is an empty text", hint="leave it out, or name the word")
    if (texts := _texts(options, sink)) is not None:
        from lora_scripts.check.texts.command import check_texts

        return check_texts(texts, sink)
    from lora_scripts.families import table

    target = _config(options, sink) if options.config else _folder(options)
    if options.base is not None and options.base is not _OF_CONFIG:
        target["base"] = base_of(at_home(str(options.base)), sink)
        target["read"] = table.caption_tokens(target["base"], target["read"])
        target["steps"] = table.bucket_steps(target["base"])
    from lora_scripts.check.command import CheckOptions, check_data

    asked = CheckOptions(**target, page=options.output, fix=options.fix, set_aside=tuple(options.set_aside))
    return check_data(asked, sink)


def words(checked: Checked | TextChecked) -> Iterator[str]:
    """What was mended, the verdict, a line for each kind of finding, and what to do."""
    from lora_scripts.check.command import Checked
    from lora_scripts.check.verdict import lines, summary

    if not isinstance(checked, Checked):
        from lora_scripts.check.texts import command as texts

        yield f"{checked.source}: {texts.summary(checked)}"
        yield from (f"  {line}" for line in lines(checked.findings))
        yield f"the page: {checked.page}"
        return
    if checked.mended is not None:
        yield from checked.mended or ["nothing to mend without asking"]
    yield f"{checked.folder}: {summary(checked.pictures, checked.captioned, checked.findings, checked.unread)}"
    yield from (f"  {line}" for line in lines(checked.findings))
    if checked.mend:
        yield f"to mend what can be mended without losing anything: {checked.mend}"
    if checked.set_aside:
        pictures = ", ".join(f"{kind.replace('_', ' ')} ({count})" for kind, count in checked.unmendable.items())
        yield f"replace these pictures, or set them aside, {pictures}: {checked.set_aside}"
    yield f"the page: {checked.page}"


def faults(checked: Checked | TextChecked) -> list[UserError]:
    """That training would stop."""
    from lora_scripts.check.verdict import counted

    if not checked.errors:
        return []
    where = checked.source if hasattr(checked, "source") else checked.folder
    return [UserError(f"training would stop at {counted(checked.errors)}", file=where, hint="mend them first")]


def _texts(options: argparse.Namespace, sink: Sink) -> TextCheckOptions | None:
    """What is asked, if it is about records of a language model: by the base of a config, or by what lies there."""
    from lora_scripts.check.texts.command import TextCheckOptions

    if options.config and options.resolution:
        return None  # a mistake with pictures and texts alike
    if options.config:
        from lora_scripts import run
        from lora_scripts.config import load
        from lora_scripts.families import download
        from lora_scripts.run.configs import load_config

        config = load.load_config(options.config, options.overrides)
        if not download.place(config.base_model).exists() and not holds_records(config.records):
            return None  # pictures, for whose look the base is not downloaded
        config = load_config(options.config, options.overrides, sink)
        if not run.of_texts(config):
            return None
        asked = TextCheckOptions(
            config.records,
            config.held_out_records,
            config.base_model,
            config.chat_template,
            config.max_length,
            config.train_on,
            config.long_records == "cut",
            options.output or config.output_dir / "check.html",
            config.language,
        )
    else:
        source = at_home(options.overrides[0]) if len(options.overrides) == 1 else None
        if source is None or not holds_records(source):
            return None
        if source.is_file() and source.stem.lower() == "metadata" and not holds_records(source.parent):
            hint = f"give their folder: {typed(['lora-scripts', 'check', source.parent.as_posix()])}"
            raise UserError("holds captions of pictures, not records", file=source, hint=hint)
        asked = TextCheckOptions(source, base=options.base, page=options.output)
    if options.base is not None and (options.config or options.base is _OF_CONFIG):
        what = (
            "does nothing more of records: the base of the config is asked" if options.config else "needs a folder here"
        )
        raise UserError(f"--base {what}", hint="leave it out")
    unused = [name for name in ("resolution", "trigger", "set_aside", "fix") if getattr(options, name)]
    if unused:
        word = "--" + unused[0].replace("_", "-")
        raise UserError(f"{word} is for pictures, and these are texts", hint="leave it out")
    return asked


def _config(options: argparse.Namespace, sink: Sink) -> dict[str, Any]:
    from lora_scripts.config import load
    from lora_scripts.families import download, table
    from lora_scripts.run.configs import load_config

    if options.resolution:
        width, height = options.resolution
        raise UserError("--resolution has no effect with --config", hint=f"write resolution=[{width},{height}]")
    asked = options.base is _OF_CONFIG
    # Without --base nothing is downloaded.
    config = (
        load_config(options.config, options.overrides, sink)
        if asked
        else load.load_config(options.config, options.overrides)
    )
    base = download.place(config.base_model)
    return {
        "trigger": (options.trigger,) if options.trigger else config.named_words,
        "language": config.language,
        "read": table.caption_tokens(base, config.caption_tokens),
        "steps": table.bucket_steps(base),
        "folder": config.train_data_dir,
        "metadata": config.metadata_path,
        "resolution": config.size,
        "allow_missing": config.allow_missing_captions,
        "default_page": config.output_dir / "check.html",
        "words": ("--config", str(options.config), *options.overrides),
        "base": config.base_model if asked else None,
        "vae": config.vae,
        "references": _references(config, base),
    }


def _references(config: TrainConfig, base: Path) -> References | None:
    from lora_scripts.data.listing import list_data
    from lora_scripts.data.references import References
    from lora_scripts.families import table

    if config.reference_dir is None:
        return None
    try:
        most = table.find(base).references
    except UserError:  # no base is there yet
        most = 1000
    also = list_data(config.val_data_dir, captions=False).images if config.val_data_dir is not None else {}
    return References(config.reference_dir, most, also)


def _folder(options: argparse.Namespace) -> dict[str, Any]:
    from lora_scripts.check.caption_findings import READ

    if len(options.overrides) != 1:
        hint = "write lora-scripts check --config FILE, or lora-scripts check DATA_DIR"
        raise UserError(
            "give one folder of pictures, or a config" if options.overrides else "nothing to look at", hint=hint
        )
    if options.base is _OF_CONFIG:
        raise UserError("--base needs a file here", hint="write --base models/base.safetensors")
    folder = at_home(options.overrides[0])
    width, height = size = options.resolution or (512, 512)
    asked = [] if size == (512, 512) else ["--resolution", f"{width}x{height}"]
    return {
        "trigger": (options.trigger,) if options.trigger else (),
        "read": READ,
        "folder": folder,
        "metadata": None,
        "resolution": size,
        "allow_missing": False,
        "default_page": None,
        "words": (str(folder), *asked),
    }
