"""The table of families, and what a file or folder is by it."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, cast

from lora_scripts.config.prompt_line import PromptLine
from lora_scripts.data.buckets import STEPS
from lora_scripts.errors import UserError, raise_all
from lora_scripts.families import kinds
from lora_scripts.families.anima.facts import FACTS as ANIMA
from lora_scripts.families.causal_lm.facts import FACTS as CAUSAL_LM
from lora_scripts.families.chroma.facts import FACTS as CHROMA
from lora_scripts.families.facts import Drawing, Facts
from lora_scripts.families.flux1.facts import FACTS as FLUX1
from lora_scripts.families.flux2.facts import FACTS as FLUX2
from lora_scripts.families.flux2_dev.facts import FACTS as FLUX2_DEV
from lora_scripts.families.flux3.facts import FACTS as FLUX3
from lora_scripts.families.krea2.facts import FACTS as KREA2
from lora_scripts.families.qwen_image.facts import FACTS as QWEN_IMAGE
from lora_scripts.families.qwen_image21.facts import FACTS as QWEN_IMAGE21
from lora_scripts.families.sd1.facts import FACTS as SD1
from lora_scripts.families.sd1.facts import FACTS_2 as SD2
from lora_scripts.families.sd3.facts import FACTS as SD3
from lora_scripts.families.sdxl.facts import FACTS as SDXL
from lora_scripts.families.zimage.facts import FACTS as ZIMAGE
from lora_scripts.formats.gguf import read_gguf
from lora_scripts.formats.header import GGUF, Header, Kind, read_header, sniff
from lora_scripts.units import number_of

if TYPE_CHECKING:
    from lora_scripts.families.base import Family, LoadOptions, PictureFamily

FAMILIES: tuple[Facts, ...] = (
    CAUSAL_LM,
    KREA2,
    ANIMA,
    FLUX3,
    FLUX2_DEV,
    FLUX2,
    ZIMAGE,
    QWEN_IMAGE21,
    QWEN_IMAGE,
    SD3,
    CHROMA,
    FLUX1,
    SDXL,
    SD2,
    SD1,
)
"""In the order in which they are asked whether a file is theirs: the more particular first."""


def by_name(name: str) -> Facts:
    """The family that the code calls so."""
    return next(facts for facts in FAMILIES if facts.name == name)


def kind_of(shapes: kinds.Shapes, metadata: Mapping[str, str] | None = None) -> Kind:
    """What a file is, by its tensors' names and a few of their shapes."""
    answers = (facts.kind_of(shapes, metadata or {}) for facts in FAMILIES)
    return kinds.addition(shapes) or next((kind for kind in answers if kind), None) or kinds.other(shapes)


def identify(path: Path) -> Kind:
    """What a file, or a diffusers folder, is. UserError when it is missing, truncated or damaged."""
    if path.is_dir():
        answers = (facts.folder_kind(path) for facts in FAMILIES)
        return next((kind for kind in answers if kind), Kind("a folder without a model that is known here"))
    other = sniff(path)
    if other is GGUF:
        return _kind_of_gguf(read_gguf(path))
    return _kind_of_file(read_header(path)) if other is None else other


@functools.lru_cache(maxsize=16)
def _kind_of_file(head: Header) -> Kind:
    return kind_of(head.shapes, head.metadata)


def _kind_of_gguf(head: Header) -> Kind:
    """Of a family whose bases may be one; else what it says of itself."""
    answers = (facts.kind_of(head.shapes, head.metadata) for facts in FAMILIES if facts.gguf)
    named = head.metadata.get("general.architecture")
    other = Kind(f"a GGUF file (quantised) of the kind {ascii(named)[1:-1][:60]}", GGUF.mend) if named else GGUF
    return next((kind for kind in answers if kind), other)


def find(path: Path) -> Facts:
    """The family of a base that can be trained. UserError, saying what the file is, if it is of none."""
    kind = identify(path)
    return next((facts for facts in trainable() if facts.checkpoint is kind), None) or refuse(kind, path)


def require_lora(path: Path, hint: str = "name the .safetensors of a LoRA") -> None:
    """UserError unless the file is a LoRA."""
    kind = identify(path)
    if kind is not kinds.LORA:
        words = kind.words if kind.words.startswith("not ") else f"{kind.words}, not a LoRA"
        raise UserError(f"this is {words}", file=path, hint=hint)


def trainable() -> tuple[Facts, ...]:
    """Those with a model, as people look for them: the oldest first."""
    return tuple(facts for facts in reversed(FAMILIES) if facts.model)


def bases() -> str:
    """ "give a checkpoint of …": what can be a base model."""
    first = trainable()[:3]
    names = ", ".join(facts.words for facts in first)
    return f"give a checkpoint of {names} or another family of docs/models.md, such as {first[0].example}"


def refuse(kind: Kind, path: Path) -> NoReturn:
    """Raises the one line that says what a file is, where a base was wanted, and what to do."""
    mend = kind.mend.format(base=bases()) if kind.mend else bases()
    raise UserError(f"this is {kind.words}", file=path, hint=mend)


class Changed(NamedTuple):
    """A layer of a LoRA file, before it is known what for."""

    names: Set[str]
    """That it may have."""
    rows: int
    columns: int
    """0 and 0: the file does not say."""


def of_lora(
    layers: Iterable[Changed], metadata: Mapping[str, str] | None = None, wanted: Facts | None = None
) -> Facts | None:
    """The family whose tables know the most of a LoRA's layers, in any naming; None if none knows one.

    Of families that know equally many (a file of a few layers) it is the one that the metadata names, then `wanted`,
    then the one whose published model has layers of just these sizes, then the one whose LoRAs are usually named so,
    then the oldest.
    """
    changed, told = list(layers), (metadata or {}).get("ss_base_model_version")
    said = None if told else (metadata or {}).get("modelspec.architecture")

    def fit(facts: Facts) -> tuple[int, bool, bool, int, int]:
        tables = facts.names()
        # Asked one by one: a table may know names without listing them.
        known = sum(any(tables.knows(name, own.rows, own.columns) for name in own.names) for own in changed)
        usual = sum(any(name in tables.usual for name in own.names) for own in changed)
        just = sum(any(tables.is_published(name, own.rows, own.columns) for name in own.names) for own in changed)
        lora = facts.lora
        words = {lora.base_version, lora.architecture, *(lora.of_v or ())}
        named = told in words or said in lora.architectures | words
        meant = named, facts is wanted
        sure = not tables.own or any(meant) or any(name in tables.own for own in changed for name in own.names)
        strange = any(
            own.names & tables.foreign or all(tables.is_foreign(name, own.columns) for name in own.names)
            for own in changed
        )
        known = 0 if not sure or strange or (tables.whole and known < len(changed)) else known
        return known, *meant, just, usual

    best = max(reversed(FAMILIES), key=fit)
    return best if fit(best)[0] else None


def least_pixels(path: Path) -> int:
    """How many a training picture must have, for a base."""
    facts = find(path)
    return round(facts.least_share * math.prod(facts.made_for(path)))


def caption_tokens(path: Path, clips: int) -> int | None:
    """How many tokens of a caption CLIP reads of a base; None where a language model reads them, which tells by itself
    what it cuts off. Of a base that is not there it is taken for CLIP, which reads `clips`."""
    try:
        return clips if "clip" in find(path).features else None
    except UserError:
        return clips


def bucket_steps(path: Path) -> tuple[int, int]:
    """As `Facts.bucket_steps`; the usual ones for a base that is not there."""
    try:
        return find(path).bucket_steps
    except UserError:
        return STEPS


def load_family(facts: Facts, path: Path, options: LoadOptions) -> Family:
    """Builds a family from its checkpoint; its module, and with it the heavy libraries, is imported only now."""
    family: Family = importlib.import_module(facts.model).load(path, options)
    return family


def settings(path: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of a config for a family: those that are given, else what the base says of itself."""
    told = find(path).told(path)
    return {**told, **{key: value for key, value in given.items() if value is not None}}


def settings_asked(path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """As `settings`, of a command's options. UserError for a schedule that the base does not end in, as of a config."""
    made_with = settings(path, options)
    if options["zero_terminal_snr"] and (kind := made_with["prediction"]) != "v":
        hint = "leave it out" + (", or add --prediction v" if kind == "epsilon" else "")
        raise UserError(f"--zero-terminal-snr cannot be with a base that predicts {kind}", hint=hint)
    return made_with


def drawing(path: Path) -> Drawing:
    """How a base is usually drawn with, where neither a key nor an option says otherwise."""
    return find(path).drawn(path)


def require_pictures(path: Path) -> Facts:
    """The family of a base that draws pictures. UserError for a base of another kind, saying what it is for."""
    facts = find(path)
    if "pictures" not in facts.features:
        hint = "lora-scripts chat answers with it, --from-file a file of prompts; evaluate measures it"
        raise UserError(f"this is {facts.checkpoint.words}, which draws no pictures", file=path, hint=hint)
    return facts


def require_texts(path: Path) -> Facts:
    """The family of a base that answers. UserError for a base of another kind, or UserErrors with what it lacks to be a
    language model."""
    try:
        facts = find(path)
    except UserError:
        for own in trainable():
            if "texts" in own.features:
                own.check(path, False)
        raise
    if "texts" not in facts.features:
        text = f"this is {facts.checkpoint.words}, which answers nothing"
        raise UserError(text, file=path, hint="give the folder of a language model")
    return facts


def require_negative(facts: Facts, texts: Iterable[str | None]) -> None:
    """UserError where a negative prompt is among the texts and the family reads none."""
    text = next((text for text in texts if text), None)
    if text and "negative" not in facts.features:
        words = f"{facts.words} reads no negative prompt, and would be drawn without {text!r}"
        raise UserError(words, hint="leave the negative prompt out")


def require_references(facts: Facts, lines: Iterable[PromptLine]) -> None:
    """UserErrors for the prompts that are to be drawn from more pictures than the family takes."""
    editing = ", ".join(one.words for one in trainable() if one.references)
    hint = "leave some out" if facts.references else f"leave them out, or give a base that edits: {editing}"
    faults = []
    for line in lines:
        if (count := len(line.references)) > facts.references:
            text = f"{number_of(count, 'reference')}: {facts.words} takes {facts.references or 'none'}"
            named = f"{line.prompt!r}: " if line.prompt and line.file is None else ""
            faults.append(UserError(named + text, file=line.file, line=line.line, hint=hint))
    raise_all(faults)


def require_sight(facts: Facts, base: Path, text_encoder: Sequence[Path], counts: Iterable[int]) -> None:
    """UserErrors where pictures are to be drawn from, the family's text encoder sees them, and it lacks what with."""
    if facts.check_sight is not None and any(counts):
        facts.check_sight(base, text_encoder)


def require_drawn(facts: Facts, sizes: Iterable[tuple[int, int]], clip_skip: int) -> None:
    """UserErrors for sizes (width, height) of which the family draws nothing, and for layers that it does not count."""
    step, faults = facts.size_step, []
    for wide, high in dict.fromkeys(sizes):
        if wide % step or high % step:
            text = f"size {wide}x{high}: sides must be multiples of {step} for {facts.words}"
            faults.append(UserError(text, hint="choose another size"))
    if clip_skip > 1 and "clip" not in facts.features:
        faults.append(UserError(f"--clip-skip does nothing with {facts.words}", hint="leave it out"))
    raise_all(faults)


def load_pictures(path: Path, options: LoadOptions) -> PictureFamily:
    """The family of a base that draws pictures. UserError for a base of another kind."""
    return cast("PictureFamily", load_family(require_pictures(path), path, options))
