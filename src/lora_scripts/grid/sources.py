"""What a grid is drawn from: checkpoints of runs, prompts, what a run's own config says. It needs no torch."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lora_scripts.config.load import load_config
from lora_scripts.config.prompt_line import TAG
from lora_scripts.config.schema import TrainConfig
from lora_scripts.config.values import at_home, model_fault
from lora_scripts.data.listing import list_data
from lora_scripts.data.references import listed
from lora_scripts.errors import UserError, raise_all
from lora_scripts.families.facts import Drawing
from lora_scripts.families.table import drawing
from lora_scripts.generate.known_by import file_hash
from lora_scripts.generate.prompts_file import PromptLine, preview_lines, read_prompts

_STEP = re.compile(r"-(?:step)?(\d{3,})$")


@dataclass(frozen=True, kw_only=True)
class GridOptions:
    """What `lora-scripts grid` was asked for; None and () are looked up in the run's config, and then are as the base
    is usually drawn with."""

    output: Path
    base: Path | None = None
    loras: tuple[Path, ...] = ()
    checkpoints: tuple[str, ...] = ()
    """Folders of runs, files, or patterns with *."""
    strengths: tuple[float, ...] = (0.0, 0.4, 0.8, 1.0)
    prompts: Path | None = None
    seeds: tuple[int, ...] = (42,)
    cfgs: tuple[float, ...] = ()
    negative_prompt: str | None = None
    steps: int | None = None
    size: tuple[int, int] | None = None
    scheduler: str | None = None
    vae: Path | None = None
    text_encoder: tuple[Path, ...] = ()
    """Of a base in separate files."""
    data: Path | None = None
    """Training pictures, to measure with."""
    measures: bool = True
    device: str = "auto"
    precision: str = "auto"
    prediction: Literal["epsilon", "v", "flow"] | None = None
    """What the base predicts; None: what its run's config, or the base itself, says."""
    zero_terminal_snr: bool | None = None
    clip_skip: int = 1


@dataclass(frozen=True)
class LoraSource:
    """A LoRA file, and its name on the axis."""

    path: Path
    label: str

    @property
    def run(self) -> str:
        """The name of its run, where it is a checkpoint."""
        return _STEP.sub("", self.path.stem)


@dataclass(frozen=True)
class Sources:
    """All that was asked for, with what a run's config added."""

    base: Path
    vae: Path | None
    text_encoder: tuple[Path, ...]
    loras: tuple[LoraSource | None, ...]
    """(None,) where only checkpoints are compared"""
    checkpoints: tuple[LoraSource | None, ...]
    prompts: tuple[PromptLine, ...]
    cfgs: tuple[float, ...]
    usual: Drawing
    """How the base is usually drawn with."""
    steps: int | None
    """What the option or, of the run's own base, the key says; None: neither, as `negative`."""
    negative: str | None
    size: tuple[int, int] | None
    data: Path | None
    prediction: Literal["epsilon", "v", "flow"] | None
    """None: what the base says of itself, as `zero_terminal_snr`."""
    zero_terminal_snr: bool | None
    clip_skip: int

    def how(self, line: PromptLine, cfg: float) -> Drawing:
        """How a prompt is drawn at a place of the axis."""
        return self.usual.asked(line, self.steps, cfg, self.negative)


def find_sources(options: GridOptions) -> Sources:
    """UserErrors for everything that is missing or wrong."""
    checkpoints = tuple(_checkpoints(options.checkpoints))
    if not checkpoints and not options.loras:
        raise UserError("there is no LoRA to draw", hint="name files with --loras, or a run with --checkpoints")
    config = _config(options, checkpoints)
    prompts = _prompts(options, config)
    base = options.base or (config.base_model if config else None)
    if base is None:
        raise UserError("there is no base to draw with", hint="name one with --base")
    faults = [
        UserError(f"{name}: {fault[0]}", hint=fault[1])
        for name, path, kind, folder in (
            ("--base", base, "checkpoint", True),
            ("--vae", options.vae, "VAE", True),
            *(("--text-encoder", path, "text encoder", True) for path in options.text_encoder),
            *(("--loras", path, "LoRA", False) for path in options.loras),
        )
        if path is not None and (fault := model_fault(path, kind=kind, folder=folder))
    ]
    raise_all(faults)
    # What stands beside a base counts for that base alone.
    own = config if config and base.resolve() == config.base_model.resolve() else None
    usual = drawing(base)
    return Sources(
        base=base,
        vae=options.vae or (own.vae if own else None),
        text_encoder=options.text_encoder or (own and own.text_encoder) or (),
        loras=tuple(_labelled(options.loras)) or (None,),
        checkpoints=checkpoints or (None,),
        prompts=prompts,
        cfgs=options.cfgs or (usual.cfg if own is None or own.sample_cfg is None else own.sample_cfg,),
        usual=usual,
        steps=options.steps or (own.sample_steps if own else None),
        negative=own.sample_negative if own and options.negative_prompt is None else options.negative_prompt,
        size=options.size or (config.effective_sample_size if config else None),
        data=options.data or (config.train_data_dir if config and config.train_data_dir.is_dir() else None),
        prediction=options.prediction or (own.prediction if own else None),
        zero_terminal_snr=options.zero_terminal_snr or (own.zero_terminal_snr if own else None),
        clip_skip=config.clip_skip if config and options.clip_skip == 1 else options.clip_skip,
    )


def _config(options: GridOptions, checkpoints: tuple[LoraSource, ...]) -> TrainConfig | None:
    """Of the first run that was named; what its config has wrong by now counts only if it is needed."""
    folders = dict.fromkeys(
        [
            *(c.path.parent for c in checkpoints),
            *(p.parent for p in options.loras),
            *(p.parent.parent for p in options.loras),
        ]
    )
    path = next((folder / "config.yaml" for folder in folders if (folder / "config.yaml").is_file()), None)
    if path is None:
        return None
    try:
        return load_config(path)
    except UserError:
        if options.base is None or options.prompts is None:
            raise
        return None


def _prompts(options: GridOptions, config: TrainConfig | None) -> tuple[PromptLine, ...]:
    if options.prompts is not None:
        path, faults, lines = options.prompts, [], []
        for line in read_prompts(path):
            try:
                lines.append(_fitting(line, path))
            except UserError as error:
                faults.append(error)
        raise_all(faults)
        return tuple(dict.fromkeys(lines))
    lines = preview_lines(config.sample_prompts) or _captions(config) if config else []
    if not lines:
        raise UserError(
            "there are no prompts to draw", hint="write them into a file, one a line: --prompts prompts.txt"
        )
    return tuple(dict.fromkeys(replace(line, seed=None, cfg=None) for line in lines))  # seeds and cfgs are axes


def _captions(config: TrainConfig) -> list[PromptLine]:
    """Two of the data set with what their pictures are made from, as the previews of a run without prompts are; none
    where it has gone."""
    try:
        listing = list_data(config.train_data_dir, config.metadata_path, allow_missing_captions=True)
        said = {name: caption for name in listing.images if (caption := listing.caption(name))}
        made_from = listed(list(said), config.reference_dir) if config.reference_dir else {}
    except UserError:
        return []
    lines = (PromptLine(caption, references=made_from.get(name, ())) for name, caption in said.items())
    return list(dict.fromkeys(lines))[:2]


def _checkpoints(words: Sequence[str]) -> list[LoraSource]:
    """Those of each word; of one run by their steps, of several with its name."""
    files = list(dict.fromkeys(file for word in words for file in _checkpoint_files(word)))
    named = _labelled(files)
    if len({(one.path.parent, one.run) for one in named}) == 1 and len(named) > 1:
        named = [replace(one, label=_checkpoint_label(one.path)) for one in named]
    return _once(named)


def _checkpoint_files(word: str) -> list[Path]:
    """Of a run's folder, a pattern or a file: the earliest first, the file without a step last. UserError for none."""
    path = at_home(word)
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
    elif set("*?[") & set(word):
        files = sorted(Path(p) for p in glob.glob(str(path)) if p.endswith(".safetensors"))
    else:
        if fault := model_fault(path, kind="LoRA", folder=False):
            raise UserError(f"--checkpoints: {fault[0]}", hint=fault[1])
        files = [path]
    if not files:
        raise UserError("--checkpoints: there is no .safetensors file", file=path, hint="name the folder of a run")
    final = max((_step(file) or 0 for file in files), default=0) + 1
    return sorted(files, key=lambda file: (final if _step(file) is None else _step(file), file.name))


def _once(checkpoints: list[LoraSource]) -> list[LoraSource]:
    """The same bytes under two names, as the best step that is the last, are one checkpoint with both names."""
    kept: dict[str, LoraSource] = {}
    for one in checkpoints:
        digest = file_hash(one.path)
        first, *others = sorted([*filter(None, [kept.get(digest)]), one], key=lambda source: len(source.path.stem))
        kept[digest] = replace(first, label=" = ".join([first.label, *(other.label for other in others)]))
    return list(kept.values())


def _step(path: Path) -> int | None:
    match = _STEP.search(path.stem)
    return int(match[1]) if match else None


def _checkpoint_label(path: Path) -> str:
    step = _step(path)
    return "final" if step is None else f"step {step}"


def _labelled(paths: Sequence[Path]) -> list[LoraSource]:
    """By the file's name; where two are alike, with as many folders as tell them apart."""
    paths = list(dict.fromkeys(paths))
    return [LoraSource(path, _label(path, paths)) for path in paths]


def _label(path: Path, paths: Sequence[Path]) -> str:
    names = [one.absolute().with_suffix("").parts for one in paths]
    own = path.absolute().with_suffix("").parts
    count = next((n for n in range(1, len(own)) if [name[-n:] for name in names].count(own[-n:]) == 1), len(own))
    return "/".join(own[-count:])


def _fitting(line: PromptLine, file: Path) -> PromptLine:
    """A line of the prompts' file; UserError for what the grid's axes say."""
    if line.seed is not None or line.cfg is not None:
        word = "--d" if line.seed is not None else "--l"
        raise UserError(
            f"{word} in {line.prompt!r}: seeds and cfgs are axes of the grid", file=file, hint="use --seeds and --cfgs"
        )
    if TAG.search(line.prompt):
        raise UserError(
            f"{line.prompt!r} calls a LoRA, but the grid puts them on itself", file=file, hint="use --loras"
        )
    return line
