"""What can be known to be wrong before torch is imported: the output folder, the data set, the model files."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from PIL import Image

from lora_scripts.check import duplicates
from lora_scripts.check.align import GRID
from lora_scripts.check.facts import PictureFacts
from lora_scripts.check.quick import quick_findings
from lora_scripts.check.verdict import check_command, lines, shortened
from lora_scripts.config.schema import TrainConfig
from lora_scripts.data.captions import tags_of
from lora_scripts.data.findings import Finding
from lora_scripts.data.image import load_rgb
from lora_scripts.data.listing import list_data
from lora_scripts.data.loader import check_numbered
from lora_scripts.data.masks import require_masks
from lora_scripts.data.references import References, require_readable, with_references
from lora_scripts.data.scan import Sample, scan
from lora_scripts.data.seen import Seen
from lora_scripts.data.split import FEWEST, hold_out, share_of
from lora_scripts.data.trigger import calling, holds, label_command
from lora_scripts.errors import Faults, UserError, raise_all
from lora_scripts.events import Note, Sink, ignore
from lora_scripts.families import table
from lora_scripts.families.facts import Facts
from lora_scripts.formats.gguf import packed_types
from lora_scripts.generate.prompts_file import PromptLine, preview_lines
from lora_scripts.generate.unread import tell_unread
from lora_scripts.run.configs import cache_of
from lora_scripts.run.pivotal import check_new_words
from lora_scripts.run.run_folder import RunFolder

HELD_OUT = "held out/"
"""In the names of pictures of `val_data_dir`, to tell them from the others."""
MOST = 4
"""Lines about the data set before a training, besides the one that names the whole check."""


@dataclass(frozen=True)
class Ready:
    """What a run can begin with."""

    folder: RunFolder
    scanned: list[Sample]
    """All of the data set, in its order."""
    samples: Split
    notes: Sequence[Finding] = ()
    """On files beside them that are not read."""


def preflight(config: TrainConfig, *, resume: bool | None, sink: Sink = ignore) -> Ready:
    """The output folder and the samples of a run; UserErrors with every fault of them and of the model files.

    `resume` None: whatever lies in the output folder is no fault.
    """
    folder = RunFolder(config.output_dir, config.name)
    faults, notes = Faults(), list[Finding]()
    attempt, seen = faults.attempt, Seen(cache_of(config, folder.path) / "pictures.json")
    if resume is not None:
        attempt(lambda: _folder(folder, resume=resume))
    attempt(lambda: _base(config))
    attempt(lambda: _vae(config))
    attempt(lambda: _text_encoder(config))
    attempt(lambda: _sizes(config))
    attempt(lambda: _initial(config))
    attempt(lambda: _prompts(config))
    samples, apart = _pictures(config, faults, seen, notes)
    attempt(lambda: check_new_words(config, samples))
    attempt(lambda: check_trigger(config, samples))
    if config.folder_repeats and samples:
        attempt(lambda: check_numbered(s.name for s in samples))
    raise_all(faults)
    parted = split(config, samples, apart, sink, seen)
    if config.mask_alpha or config.mask_dir is not None:
        require_masks(parted.trained, config.mask_dir)
    trained, held_out = (list(map(_bare, some)) for some in (parted.trained, parted.held_out))
    return Ready(folder, list(map(_bare, samples)), Split(trained, held_out, seen), notes)


def _pictures(
    config: TrainConfig, faults: Faults, seen: Seen, notes: list[Finding]
) -> tuple[list[Sample], list[Sample]]:
    """The pictures, and those of `val_data_dir`, with their references, all of which lie in one folder."""
    look = partial(scan, allow_missing_captions=config.allow_missing_captions, seen=seen)
    where, beside, small = config.train_data_dir, config.val_data_dir, GRID if config.val_split != 0 else 0
    samples = faults.attempt(lambda: look(where, config.metadata_path, small=small, notes=notes)) or []
    apart = (faults.attempt(lambda: look(beside)) if beside is not None else None) or []
    facts = _family(config)
    if config.reference_dir is None or facts is None:
        return samples, apart
    asked, both = References(config.reference_dir, facts.references), [*samples, *apart]
    both = faults.attempt(lambda: with_references(both, asked, seen=seen, notes=notes)) or both
    return both[: len(samples)], both[len(samples) :]


def _bare(sample: Sample) -> Sample:
    return replace(sample, small=b"") if sample.small else sample


def tell_quick(config: TrainConfig, samples: Sequence[Sample], words: Sequence[str], sink: Sink) -> None:
    """Tells in at most five lines what can be told of the data set in no time; `words`: what the whole check needs."""
    steps, read = table.bucket_steps(config.base_model), table.caption_tokens(config.base_model, config.caption_tokens)
    found = lines(quick_findings(samples, config.size, steps, read))
    for line in found[:MOST]:
        sink(Note(f"data {line}"))
    more = f"{len(found) - MOST} more; " if len(found) > MOST else "" if found else "nothing wrong at first sight; "
    sink(Note(f"data: {more}to look closer, with pictures: {check_command(words)}"))


def check_trigger(config: TrainConfig, samples: Sequence[Sample]) -> None:
    """UserErrors for each `trigger_word` that stands in no caption, and so calls nothing, and for a `preserve_weight`
    where nothing does."""
    trigger = calling(config.named_words, [s.caption for s in samples])
    if config.preserve_weight and samples and trigger is None:
        text = "preserve_weight: the captions have no word in common that calls the LoRA, without which the base stays"
        raise UserError(text, hint="name one with trigger_word, and write it into the captions")
    if trigger and any(map(trigger.stands_in, config.preserved_words)):
        text = f"preserve_word: {trigger.phrase} calls the LoRA, and would stand there again"
        raise UserError(text, hint="write what it is without that word, or leave preserve_word out")
    idle = [word for word in config.named_words if not any(holds(s.caption, word) for s in samples)]
    if not config.trigger_word or not samples or not idle:
        return
    listing = list_data(config.train_data_dir, config.metadata_path, allow_missing_captions=True)
    commands = {word: label_command(config.train_data_dir, listing, word) for word in idle}
    raise_all(
        [
            UserError(f"trigger_word: no caption holds {word}", hint=f"write it there: {command}")
            for word, command in commands.items()
        ]
    )


def tell_trigger(config: TrainConfig, samples: Sequence[Sample], sink: Sink) -> None:
    """What calls the LoRA, where captions or previews lack it."""
    trigger = calling(config.named_words, [s.caption for s in samples])
    if trigger is None:
        return
    if config.trigger_word and trigger.captions < trigger.of:
        lacking = [s.name for s in samples if not trigger.stands_in(s.caption)]
        told = f"the trigger word {trigger.phrase} stands in {trigger.agreement} captions"
        sink(Note(f"note: {told}; not in {shortened(', '.join(lacking))}"))
    lines = preview_lines(config.sample_prompts)
    without_it = [line for line in lines if not trigger.stands_in(line.prompt)]
    if lines and len(without_it) == len(lines) and not config.new_token:
        text = f"note: {trigger.agreement} captions have {trigger.phrase}, which calls the LoRA, and no preview has it"
        sink(Note(f"{text}; put it into sample_prompts"))


def tell_idle(config: TrainConfig, samples: Sequence[Sample], sink: Sink) -> None:
    """What the config asks for and does nothing, by the prompts and the captions that there are."""
    c, facts = config, table.find(config.base_model)
    usual, asked = facts.drawn(c.base_model), (c.sample_steps, c.sample_cfg, c.sample_negative)
    lines = preview_lines(c.sample_prompts) or [PromptLine("")]
    tell_unread(facts, [(line.prompt, usual.asked(line, *asked)) for line in lines], sink)
    most = max((len(tags_of(sample.caption)) for sample in samples), default=0) - c.keep_tags
    keys = {"shuffle_tags": c.shuffle_tags and most < 2, "tag_dropout": c.tag_dropout and most < 1}
    if c.reference_dir and preview_lines(c.sample_prompts) and not any(line.references for line in lines):
        sink(Note("note: no prompt of sample_prompts has --ref FILE, so that previews are drawn from words alone"))
    if idle := " and ".join(key for key, value in keys.items() if value):
        behind = f"behind keep_tags: {c.keep_tags}" if most + c.keep_tags > 1 else "between commas"
        sink(Note(f"note: {idle} change{'' if ' ' in idle else 's'} no caption: none has several parts {behind}"))


def _folder(folder: RunFolder, *, resume: bool) -> None:
    folder.require_free()  # first: a run that has just begun has nothing to resume yet
    folder.check(resume=resume)


def _base(config: TrainConfig) -> None:
    (width, height), facts = config.size, table.find(config.base_model)
    facts.check(config.base_model, config.vae is None)
    if config.base_precision != "auto" and (kinds := packed_types(config.base_model)):
        text = f"base_precision {config.base_precision}: this base is quantised as it is ({', '.join(kinds)})"
        raise UserError(text, file=config.base_model, hint="leave base_precision out; it is kept so in memory")
    if config.compile and packed_types(config.base_model):
        raise UserError("compile cannot be with a GGUF base", file=config.base_model, hint="leave compile out")
    if width * height < table.least_pixels(config.base_model):
        usual = facts.made_for(config.base_model)
        wanted = str(usual[0]) if usual[0] == usual[1] else str(list(usual))
        text = f"resolution {width} x {height} is too small: this base was made for {usual[0]} x {usual[1]}"
        raise UserError(text, file=config.base_model, hint=f"write resolution: {wanted}")


def _vae(config: TrainConfig) -> None:
    if config.vae is not None:
        table.find(config.base_model).check_vae(config.vae)


def _family(config: TrainConfig) -> Facts | None:
    """None where the base is none, which `_base` tells."""
    try:
        return table.find(config.base_model)
    except UserError:
        return None


def _text_encoder(config: TrainConfig) -> None:
    facts = _family(config)
    if facts is None or facts.check_text is None:
        return
    try:
        facts.check(config.base_model, False)
    except UserError:
        return  # told by `_base`
    facts.check_text(config.base_model, config.text_encoder or ())
    shown = [1] if config.reference_dir else [len(line.references) for line in preview_lines(config.sample_prompts)]
    table.require_sight(facts, config.base_model, config.text_encoder or (), shown)


def _prompts(config: TrainConfig) -> None:
    lines, facts = preview_lines(config.sample_prompts), _family(config)
    if facts is not None:
        table.require_negative(facts, [line.negative for line in lines])
        table.require_references(facts, lines)
    require_readable(path for line in lines for path in line.references)


def _sizes(config: TrainConfig) -> None:
    """Of the pictures that are trained on, and of previews where they have a size of their own."""
    facts, given = _family(config), {"resolution": config.size}
    step = facts.size_step if facts else 1
    if config.sample_size is not None:
        given["sample_size"] = config.effective_sample_size
    faults = []
    for key, (width, height) in given.items():
        if width % step or height % step:
            text = f"{key} {width} x {height}: sides must be multiples of {step} for this base"
            near = [_near(width, step), _near(height, step)]
            faults.append(UserError(text, hint=f"write {key}: {near[0] if near[0] == near[1] else near}"))
    raise_all(faults)


def _near(side: int, step: int) -> int:
    return max(step, round(side / step) * step)


def _initial(config: TrainConfig) -> None:
    if config.init_lora is not None:
        table.require_lora(config.init_lora, "give a LoRA as init_lora")
    if config.training_adapter is not None:
        table.require_lora(config.training_adapter, "give a LoRA as training_adapter")


# --- held out ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """The samples of a run."""

    trained: list[Sample]
    held_out: list[Sample]
    seen: Seen | None = None
    """What was found in the pictures, to be kept for the next start."""


def split(
    config: TrainConfig,
    samples: Sequence[Sample],
    apart: Sequence[Sample] = (),
    sink: Sink = ignore,
    seen: Seen | None = None,
) -> Split:
    """Holds some of the samples out, or takes those of `val_data_dir`, `apart`; never a copy of another picture.

    UserError where `patience` has nothing to go by.
    """
    known = partial(seen.copies, find=copies) if seen else copies
    if config.val_data_dir is not None:
        others = [replace(s, name=f"{HELD_OUT}{s.name}") for s in apart]
        double = known([*samples, *others])
        trained, held = list(samples), [s for s in others if s.name not in double]
        if len(held) < len(others):
            count = len(others) - len(held)
            sink(Note(f"note: {count} pictures of val_data_dir are there twice, or trained, and left out"))
    else:
        wanted = share_of(len(samples), config.val_split)
        trained, held = hold_out(samples, wanted, config.seed, known(samples) if wanted else ())
    if config.patience is not None and not held:
        hint = "add val_split: 0.2, or val_data_dir, or leave patience out"
        raise UserError(f"patience: no picture is held out (of fewer than {FEWEST} none is by itself)", hint=hint)
    return Split(trained, held)


def copies(samples: Sequence[Sample]) -> set[str]:
    """Names of pictures that are the same as another, nearly the same, or its mirror image."""

    def facts(sample: Sample) -> PictureFacts:
        grid = sample.small or _small(sample.path)
        size, digest = (sample.width, sample.height), sample.digest
        return PictureFacts(sample.name, digest, 0, "", size=size, pixels=digest, grid=grid)

    with ThreadPoolExecutor(4) as pool:
        alike = duplicates.find(list(pool.map(facts, samples)))
    return {name for cluster in (*alike.exact, *alike.near, *alike.mirrored) for name in cluster}


def _small(path: Path) -> bytes:
    return load_rgb(path).resize((GRID, GRID), Image.Resampling.BOX).tobytes()
