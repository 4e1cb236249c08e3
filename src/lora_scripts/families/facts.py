"""What a family is, as plain facts that need no torch: for config checks, for names in files, for messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from lora_scripts.config.prompt_line import PromptLine
from lora_scripts.families.kinds import Shapes
from lora_scripts.formats.header import Header, Kind

if TYPE_CHECKING:
    from torch import nn

    from lora_scripts.families.names import Base, Names, Share

T = TypeVar("T")


class Weight(NamedTuple):
    """Where one layer's weight stands in a single file."""

    key: str
    share: Share | None = None
    """Which of its rows, where it is the weight of several layers."""
    swapped: bool = False
    """Whether its two halves stand the other way round there."""


class FolderWeight(NamedTuple):
    """Where one layer's weight stands in a folder."""

    file: str
    """Inside the folder, with /."""
    key: str
    flipped: bool = False
    """Whether it lies [in, out] there."""


class Setting(NamedTuple):
    """A key of a config to begin with."""

    key: str
    value: str
    """As it is written in YAML."""
    why: str


class Drawing(NamedTuple):
    """How pictures of a base are usually drawn; by default as those of Stable Diffusion are."""

    steps: int = 20
    cfg: float = 7.0
    negative: str = ""
    steps_why: str = "of previews"
    cfg_why: str = "closeness of previews to the prompt"

    def asked(self, line: PromptLine, steps: int | None, cfg: float | None, negative: str | None) -> Drawing:
        """With what somebody says in place of it, None being nothing said: a prompt's own line, then options or keys.
        At cfg 1 a negative prompt is not read, and the usual one is left out."""
        steps, cfg = _first(line.steps, steps, self.steps), _first(line.cfg, cfg, self.cfg)
        negative = _first(line.negative, negative, "" if cfg == 1 else self.negative)
        return self._replace(steps=steps, cfg=cfg, negative=negative)

    def settings(self) -> tuple[Setting, ...]:
        """The keys of a config that say it; none where it is the default."""
        if self == Drawing():
            return ()
        told = [
            Setting("sample_cfg", f"{self.cfg:g}", self.cfg_why),
            Setting("sample_steps", f"{self.steps}", self.steps_why),
        ]
        return (*told, *([Setting("sample_negative", f'"{self.negative}"', "of previews")] if self.negative else []))


def _first(*said: T | None) -> T:
    return next(one for one in said if one is not None)


class Kept(NamedTuple):
    """MiB that a picture of the size that a base is made for leaves for the way back, with LoRA of rank 16 in attention
    and feed-forward layers, bf16; by `benchmarks/counts.py`."""

    whole: int
    again: int
    """With `gradient_checkpointing`."""


class Coder(NamedTuple):
    """What a VAE takes while it draws; by default Stable Diffusion's, which most have with other latents."""

    weights: int = 335
    """MB, in float32,"""
    pixel: int = 3073
    """and bytes for each pixel at once, at most, as counted."""


USUAL = Coder()


@dataclass(frozen=True)
class Recipe:
    """A config to begin with, for one purpose."""

    seen: int
    """About how many pictures are looked at in the whole run, each as often as it comes."""
    settings: tuple[Setting, ...]
    prompts: tuple[str, ...]
    """Of previews; the word that calls the LoRA goes in front."""


@dataclass(frozen=True)
class LoraFacts:
    """What a LoRA file says of the model that it is for."""

    base_version: str
    """kohya's `ss_base_model_version`."""
    architecture: str
    """Of ModelSpec."""
    implementation: str
    """Of ModelSpec: whose layer names the file follows."""
    v2: bool = False
    """kohya's `ss_v2`."""
    of_v: tuple[str, str] | None = None
    """`base_version` and `architecture` for a base that answers with v, where that has its own."""
    folder: bool = False
    """That they are PEFT's folders, and not single files."""
    unread_by: frozenset[str] = frozenset()
    """Programs of `loras.verify` that know no such models, or whose rules for them are not stated there."""
    loader: str = "StableDiffusionLoraLoaderMixin"
    """The class in diffusers.loaders that reads the family's LoRAs."""
    pipeline: str = ""
    """The class in diffusers that opens a base in one file, whole; empty where none does."""
    webui: str = "Unknown"
    """What A1111's WebUI calls the family in NAME.json."""
    civitai: str = "Other"
    """What civitai calls it."""
    edit_node: str = ""
    """ComfyUI's node that shows the text encoder what is drawn from, of a family whose text encoder sees it."""
    hub_tags: tuple[str, ...] = ()
    """Of a model card on Hugging Face."""
    architectures: frozenset[str] = frozenset()
    """What other trainers write in place of `architecture`."""


@dataclass(frozen=True)
class Facts:
    """One family. Everything that differs from family to family, and is no computation, is asked here."""

    name: str
    """As the code calls it."""
    words: str
    """As people call it."""
    example: str
    """The file name of a well-known base."""
    checkpoint: Kind
    """What its bases are."""
    published: tuple[str, str] | None = field(default=None, kw_only=True)
    """A base to begin with: its name on the hub, and its size in words."""
    mergeable: frozenset[Kind]
    """Checkpoints that its LoRAs can be added to; `checkpoint` among them."""
    model: str
    """The module with `load(path, options) -> Family`."""
    features: frozenset[str]
    """What the keys of a config may need; see `config.needs`."""
    native_size: tuple[int, int]
    """(width, height) in pixels of the pictures that its bases are usually made for."""
    made_for: Callable[[Path], tuple[int, int]]
    """The same of one base, file or folder."""
    least_share: float
    """Of the pixels that a base was made for, how many a training picture has at least: of fewer it learns wrongly."""
    bucket_step: int
    """Sides of training pictures are multiples of this, in pixels."""
    vae_factor: int
    """Pixels that a latent stands for, along each side."""
    latent_channels: int
    groups: Mapping[str, Callable[[str], bool]]
    """Names for sets of layers, for the config's `targets`: our module path -> whether it belongs."""
    image_root: str
    """The part that LoRA goes into by default: the first word of a path."""
    text_roots: tuple[str, ...]
    """The parts that LoRA goes into with `train_text_encoder`."""
    small_kernels: bool = field(default=False, kw_only=True)
    """Whether a fast card computes its kernels, at small batches, sooner than Python launches them."""
    recipes: Mapping[str, Recipe]
    """Purpose -> settings to begin with, for `lora-scripts new`."""
    drawn: Callable[[Path], Drawing] = field(default=lambda path: Drawing(), kw_only=True)
    """How one base, file or folder, is usually drawn with."""
    kept: Mapping[int, Kept] = field(default_factory=dict, kw_only=True)
    """What a step keeps of a picture, by millions of numbers in the UNet or transformer, of the published widths."""
    coder: Coder = field(default=USUAL, kw_only=True)
    lora: LoraFacts
    names: Callable[[], Names]
    """The tables of its layers' names in LoRA files."""
    kind_of: Callable[[Shapes, Mapping[str, str]], Kind | None]
    """What a single file is, by its tensors' shapes and its metadata; None: nothing of this family."""
    folder_kind: Callable[[Path], Kind | None]
    """What a diffusers folder is, by its configs; None: nothing of this family."""
    told: Callable[[Path], Mapping[str, Any]]
    """What a base says of itself, by keys of the config: {"prediction": "v"}."""
    guessed: Callable[[Path], str] = field(default=lambda path: "", kw_only=True)
    """How `told` knows what a base answers with that does not say; "" where it says, or where there is one answer."""
    check: Callable[[Path, bool], None]
    """A base, file or folder, from its header and configs alone; with False it need not hold a VAE. UserErrors with
    every fault."""
    check_vae: Callable[[Path], Header | None]
    """A separate VAE, file or folder. UserErrors with every fault."""
    weights: Callable[[Header, Path], Mapping[str, Weight]]
    """Our module path -> where its weight stands in a single file: of all layers of the file, also those that no LoRA
    file has a name for."""
    parts: Mapping[str, str]
    """The parts that a LoRA may change, each a folder of a diffusers folder -> what their keys begin with there and our
    paths do not."""
    wrapped: Callable[[], Mapping[str, str]]
    """Those parts -> what their layers' paths begin with in the installed libraries' models, and ours do not."""
    base: Callable[[Path | None], Base]
    """The layers of a base that a LoRA could change; of None the published model's, without shapes."""
    build: Callable[[Path], dict[str, nn.Module]]
    """The parts of a base by name, their weights not set: only for looking at what a loader puts onto them."""
    unread: Callable[[str, bool], bool] = lambda key, vae: False
    """Whether a tensor of a single file, by its key, is one that nobody reads, such as a copy of an average; with False
    its VAE is not read either."""

    gguf: bool = False
    """Whether its bases may be GGUF files, too."""

    folder_weights: Callable[[Path], Mapping[str, FolderWeight]] | None = None
    """Our module path -> where its weight stands in a folder, where that is not laid out by `parts`."""
    folder_files: Callable[[Path], Sequence[str]] = lambda path: ()
    """All files of weights of such a folder, also those that none of these layers is in."""

    text_encoder: Callable[[Path, str | None, str, int], Any] | None = None
    """(base, chat template, train_on, max_length) -> a `families.texts.TextEncoder`, without loading the model."""
    has_template: Callable[[Path], bool] = lambda path: True
    """Whether a base has a chat template, so that conversations can be written for it."""

    transparent: bool = False
    """Whether its VAE takes and gives pictures with transparency."""

    references: int = 0
    """How many pictures its model can be shown beside a prompt, to draw from them."""
    check_sight: Callable[[Path, Sequence[Path]], None] | None = None
    """As `check_text`, of a family whose text encoder is shown them, too: of what it sees with."""

    size_step: int = 8
    """Sides of pictures, drawn or trained on, are multiples of this at least, in pixels."""

    check_text: Callable[[Path, Sequence[Path]], None] | None = None
    """(base, what the config's `text_encoder` names) of a family whose text encoder may lie elsewhere. UserErrors with
    every fault of what is to be read, or with the key that brings what is missing."""

    text_weights: Callable[[Path, Path], Mapping[str, str]] | None = None
    """(base in one file, file of its text encoder that takes LoRA) -> our module path -> the key of its weight there.
    UserErrors for another file."""

    beside_merged: Callable[[Path, Sequence[Path]], Mapping[str, bytes]] | None = None
    """(base, LoRAs) -> files by name that a folder with the LoRAs merged in has in place of the base's, or besides."""

    @property
    def bucket_steps(self) -> tuple[int, int]:
        """Of what the sides of training pictures are multiples: mostly, and at small resolutions at least."""
        return self.bucket_step, self.size_step

    @property
    def sees(self) -> bool:
        """Whether its text encoder is shown what is drawn from, too."""
        return self.check_sight is not None

    def inside_text(self, path: str) -> bool:
        """Whether a layer belongs to a text encoder."""
        return path.partition(".")[0] in self.text_roots
