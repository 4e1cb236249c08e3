"""What the layers of a model are called in its own files and in the LoRA formats that people exchange: the form of the
tables that every family has. Torch is not needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

_BLOCKS = tuple(
    f"{start}transformer_blocks"
    for start in ("^", "^transformer.", "^diffusion_model.", "^lycoris_", "^lora_transformer_")
)
# What a LoRA is for whose layers no family's tables name: (marks anywhere in "^" and a key, in words); tried from the
# top.
_FOREIGN = (
    (("double_blocks", "single_blocks", "single_transformer_blocks"), "FLUX"),
    (("joint_blocks", *_BLOCKS), "a diffusion transformer that is not known here"),
    (("lora_te2_", "text_encoder_2."), "a model with several text encoders"),
    (("model.layers.", "transformer.h."), "a language model"),
)
_ASKED = ("diffusion_model.", "lora_unet_")
"""What stems of the published layout begin with that ComfyUI asks a file for."""
_OLD_ATTENTION = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out.0": "to_out"}
_OLD_TEXT = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


class Share(NamedTuple):
    """Which rows of a matrix are one layer's, where the published layout keeps several layers as one."""

    start: int
    stop: int
    of: int
    """From part `start` up to `stop` of so many equal parts, whatever the width."""

    def rows(self, length: int) -> slice:
        """Of a matrix with so many."""
        return slice(length * self.start // self.of, length * self.stop // self.of)


THIRDS = (Share(0, 1, 3), Share(1, 2, 3), Share(2, 3, 3))
"""q, k and v as one."""


@dataclass(frozen=True)
class Names:
    """One family's names; every table goes from our module path ("unet.…", "text_encoder.…") to a stem: what stands
    before `.lora_down.weight` and the like.
    """

    family: str
    words: str
    kohya: Mapping[str, str]
    original: Mapping[str, str]
    """With the published checkpoint's block names."""
    diffusers: Mapping[str, str]
    others: Mapping[str, str] = field(default_factory=dict)
    """Stem -> our path, the other way round: what some trainers write and some programs read. Read here, not
    written."""
    fused: Mapping[str, Mapping[str, Share]] = field(default_factory=dict)
    """Stem -> our paths of the layers that the published layout keeps as one, each with its rows: their LoRA has one A,
    and a B that is theirs one after the other. Written where it is the `kohya` stem of each of them."""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Our path, or a stem of `fused` -> [rows, columns] of the published model's weight, where a relative has the same
    names for layers of another proportion. A narrower model has the same proportions; (): of a layer whose shape tells
    nothing, as it reads or writes what is as wide in other models."""
    whole: bool = False
    """That a file with a layer that no table knows is of another model: one that has the same names for more blocks."""
    own: frozenset[str] = frozenset()
    """Stems that tell this model from others, known here or not, which have the rest of its stems, too: without one of
    them a file is of this family only where its metadata or who reads it says so. Empty: any stem will do."""
    foreign: frozenset[str] = frozenset()
    """Stems that only other models have, of layers like some here: a file with one is of none of this family's."""
    foreign_widths: frozenset[int] = frozenset()
    """Columns that layers of the same names have in other models only; of layers that read a model's width, not those
    that read the inside of its MLP."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """What stems begin with of a text encoder that takes no LoRA here -> what it is called."""
    turned: Mapping[str, str] = field(default_factory=dict)
    """Stem -> our path of a layer that in some models has its two halves the other way round in the published layout:
    in those in which it has just twice as many rows as columns."""
    untrained: Mapping[str, str] = field(default_factory=dict)
    """Our path -> kohya's stem, of layers that only other trainers train: written where a file has them."""
    unasked: frozenset[str] = frozenset()
    """Our paths of layers that ComfyUI asks for under names of the published layout alone, which ours are not."""
    unheard: frozenset[str] = frozenset()
    """Stems of `fused` that begin as those that ComfyUI asks for, and are none."""
    form: Literal["kohya", "diffusers"] = "kohya"
    """The names that our own files have: those that the most programs read right."""

    @cached_property
    def together(self) -> tuple[tuple[str, ...], ...]:
        """Our paths of the layers that the published layout keeps as one, in the order of their rows."""
        return tuple(dict.fromkeys(tuple(shares) for shares in self.fused.values()))

    @cached_property
    def paths(self) -> dict[str, str]:
        """Stem -> our path, of every stem that may stand for a layer in a file of any naming and age."""
        result = dict(self.others)
        for path, stem in self.diffusers.items():
            # A text encoder's layers with and without `text_model.`, which transformers 5.6 dropped; those of a UNet
            # that was saved alone; and those of lycoris-lora's own wrapper around it.
            unet, _, inner = stem.partition(".")
            alone = (inner, f"lycoris_{inner.replace('.', '_')}") if unet == "unet" else ()
            result |= dict.fromkeys((stem, path, *alone, *_old_stems(stem)), path)
        for table in (self.original, self.kohya, self.untrained):
            result |= {stem: path for path, stem in table.items() if stem not in self.fused}
        result |= {self.cut(stem, path): path for stem, shares in self.fused.items() for path in shares}
        return result | {self.cut(stem, path): path for stem, path in self.turned.items()}

    def cut(self, stem: str, path: str) -> str:
        """What a layer that is taken out of a stem of `fused` or `turned` is called: as in our own files, or, where
        nothing stands before that stem and ComfyUI passes it over, by a name that no program asks for."""
        asked = stem.startswith(_ASKED) and stem not in self.unheard
        return self.written[path] if asked else f"{stem}[{path.rpartition('.')[2]}]"

    def knows(self, stem: str, rows: int, columns: int) -> bool:
        """Whether a stem may stand for a layer of so many rows and columns; 0: it is not known how many."""
        published = self._published(stem)
        fits = not (rows and columns and published) or rows * published[1] == columns * published[0]
        return fits and stem in self.stems

    def is_published(self, stem: str, rows: int, columns: int) -> bool:
        """Whether a stem stands for a layer of just so many rows and columns, of models whose shapes are told."""
        return self._published(stem) == (rows, columns)

    def is_foreign(self, stem: str, columns: int) -> bool:
        """Whether a layer of so many columns is another model's, if the stem is its name."""
        published = self._published(stem)
        inner = published is not None and (not published or published[1] > published[0])
        return columns in self.foreign_widths and not inner

    def _published(self, stem: str) -> tuple[int, ...] | None:
        return self.shapes.get(stem if stem in self.fused else self.paths.get(stem, ""))

    @cached_property
    def stems(self) -> frozenset[str]:
        """The keys of `paths`, what is cut or turned on the way to them, and what PEFT has, whose adapters are each for
        one part and do not name it."""
        inner = (stem.partition(".")[2] for names in self.diffusers.items() for stem in names)
        return frozenset((*self.paths, *self.fused, *self.turned, *inner))

    @cached_property
    def usual(self) -> Set[str]:
        """The stems that the family's files usually have."""
        return frozenset(self.written.values())

    @property
    def in_kohyas(self) -> dict[str, str]:
        """Our path -> kohya's stem, of every layer that a file may bring."""
        return {**self.kohya, **self.untrained}

    @property
    def written(self) -> Mapping[str, str]:
        """The table of our own files: our path -> stem."""
        return self.kohya if self.form == "kohya" else self.diffusers

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """The parts of the model that a LoRA may change: the first words of our paths."""
        return tuple(dict.fromkeys(path.partition(".")[0] for path in self.diffusers))


def _old_stems(stem: str) -> Iterator[str]:
    """The attention processors of diffusers before 0.20, with and without the part's name in front."""
    parent, _, leaf = stem.rpartition(".self_attn.")
    if leaf in _OLD_TEXT:
        yield f"{parent}.self_attn.{_OLD_TEXT[leaf]}"
    for attention in (".attn1.", ".attn2."):
        parent, found, leaf = stem.rpartition(attention)
        if found:
            old = f"{parent}{attention}processor.{_OLD_ATTENTION[leaf]}"
            yield from (old, old.removeprefix("unet."))


def foreign_model(keys: Iterable[str]) -> str | None:
    """The model of a LoRA that no family's tables know, in words; None where nothing gives it away."""
    keys = list(keys)
    return next((words for marks, words in _FOREIGN if any(mark in f"^{key}" for key in keys for mark in marks)), None)


@dataclass(frozen=True)
class Layer:
    """One linear or convolution layer of the base."""

    path: str
    """Ours: "unet.…", "text_encoder.…"."""
    hf: str
    """As diffusers and (published) transformers name it, without the part."""
    ldm: str
    """As the published checkpoint names it, without the part's prefix."""
    kohya: str
    """As kohya's tools name it; "" of a layer that they do not train."""
    shape: tuple[int, ...]
    """Of the weight; () where no base was given."""
    asked: tuple[str, ...] = ()
    """Of a diffusion transformer: the stems under which ComfyUI asks a file for it."""
    swapped: bool = False
    """That its halves stand the other way round in the published file."""
    clip: str = ""
    """What ComfyUI calls its text encoder; "": "clip_l", or "clip_g" of the second."""

    @property
    def unet(self) -> bool:
        return self.path.startswith("unet.")

    @property
    def transformer(self) -> bool:
        """Whether it is in a diffusion transformer."""
        return self.path.startswith("transformer.")

    @property
    def encoder(self) -> int:
        """Which of the model's text encoders it is in, counted from 1; 0: none."""
        if self.unet or self.transformer:
            return 0
        number = self.path.partition(".")[0].rpartition("_")[2]
        return int(number) if number.isdecimal() else 1

    @property
    def native(self) -> tuple[str, ...]:
        """Stems with the published block names and their dots, which ComfyUI reads and OneTrainer writes; of text
        encoders with and without `text_model.`, which transformers 5.6 dropped.
        """
        if self.unet:
            return f"diffusion_model.{self.ldm}", self.ldm
        prefix = f"text_encoders.{self.comfy}.transformer"
        return f"{prefix}.{self.hf}", f"{prefix}.{self.hf.removeprefix('text_model.')}"

    @property
    def comfy(self) -> str:
        """What ComfyUI calls the text encoder that it is in."""
        return self.clip or ("clip_l" if self.encoder == 1 else "clip_g")

    @property
    def hf_flat(self) -> str:
        return self.hf.replace(".", "_")

    @property
    def ldm_flat(self) -> str:
        return self.ldm.replace(".", "_")


def flat(prefix: str, name: str) -> str:
    """A layer's name as kohya's tools and LyCORIS write it behind their `prefix`."""
    return prefix + name.replace(".", "_")


@dataclass(frozen=True)
class Base:
    """The layers that a LoRA could change."""

    layers: tuple[Layer, ...]
    context_width: int
    """Of the text embedding that cross-attention reads; 0 where no base was given."""

    def part(self, name: str) -> Base:
        """The layers of one part of the model."""
        return Base(tuple(layer for layer in self.layers if layer.path.startswith(name + ".")), self.context_width)
