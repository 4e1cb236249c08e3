"""What a report shows, as plain values; `page.render` turns it into one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a word of this file is asked for before anything heavy may be loaded
    from PIL.Image import Image

    from lora_scripts.data.trigger import Trigger

COMPARED, PREVIEWS, THUMBNAILS = 4, 8, 12
"""At most, on the page of a run: prompts that are drawn in the end, steps of previews, pictures that were trained,"""
THUMBNAIL = 256
"""and the pixels of such a picture's longer side."""
UNMEASURED = 1.0
"""The strength to write where none was measured: that of the training."""


@dataclass(frozen=True)
class Comparison:
    """One prompt and seed, without the LoRA and with it."""

    prompt: str
    seed: int
    before: Image
    after: Image
    made_from: Sequence[Image] = ()
    """The first of what it is drawn from, two at most."""


@dataclass(frozen=True)
class StrengthRow:
    """One prompt and seed at several strengths, weakest first."""

    prompt: str
    seed: int
    cells: Sequence[tuple[float, Image]]


@dataclass(frozen=True)
class LoraFile:
    """The exported file, as a person finds it."""

    name: str
    """File name, for example "cyberpunk_lora.safetensors"."""
    size: int
    """Bytes."""
    sha256: str
    """Of the whole file, 64 lower-case hexadecimal digits."""

    @property
    def stem(self) -> str:
        """The name to write in a prompt."""
        return self.name.removesuffix(".safetensors")

    @property
    def auto_v2(self) -> str:
        """The short hash that WebUIs and model sites show."""
        return self.sha256[:10]


@dataclass(frozen=True)
class HeldOutCurve:
    """What was measured while the run went on."""

    held: Sequence[tuple[int, float]]
    """Step and loss of the held-out pictures; empty without any."""
    train: Sequence[tuple[int, float]]
    """The same of some training pictures."""
    words: Sequence[str]
    """The verdict."""
    samples: str = "pictures"
    """What was trained, in the plural."""


@dataclass(frozen=True)
class NearPair:
    """A picture drawn with the LoRA and the training picture nearest to it."""

    drawn: Image
    train: Image
    name: str
    """Of the training picture."""
    note: str
    """Prompt and distance."""


@dataclass(frozen=True)
class Nearest:
    """Whether the LoRA draws copies."""

    verdict: str
    pairs: Sequence[NearPair]
    """The closest first."""


@dataclass(frozen=True)
class Strength:
    """What was measured of pictures at several strengths."""

    best: float
    """The strength to write."""
    words: str
    """The same in words, and why."""
    reason: str
    """Why, for a card."""
    rows: Sequence[tuple[str, str]]
    """Strength and what its pictures show."""


@dataclass(frozen=True)
class Kept:
    """What the LoRA does to prompts that do not call it."""

    words: str
    touched: bool
    """That it changes them more than it should."""
    pairs: Sequence[Comparison]


@dataclass(frozen=True)
class ReportData:
    """Everything on the page, in the order of a run; empty parts are left out of the page."""

    name: str
    lora: LoraFile
    verification: str
    """The closing line of the check of the exported file: "verified: 192 of 192 modules, largest difference 3e-8"."""
    unread_by: Sequence[str] = ()
    """Programs that do not read such a file, as a LoKr: how to use it there is left out."""
    edit_node: str = ""
    """ComfyUI's node that shows the text encoder what is drawn from, too."""
    base: str = ""
    """The model that it was trained on, as its config names it,"""
    pipeline: str = ""
    """and diffusers' class that opens it as one file; empty for none."""
    language: str = "auto"
    """In which the page opens: en, zh, or the browser's."""
    warning: str = ""
    """Why it is better not to use the LoRA; stands at the top, in place of how to use it."""
    trigger: Trigger | None = None
    """What calls the LoRA in a prompt."""
    facts: Sequence[tuple[str, str]] = ()
    """Label and value: images, steps, parameters, precision, device, time."""
    comparisons: Sequence[Comparison] = ()
    strengths: Sequence[StrengthRow] = ()
    strength: Strength | None = None
    kept: Kept | None = None
    previews: Sequence[tuple[int, Sequence[tuple[str, Image | None]]]] = ()
    """Step, and for each preview, always in one order, its prompt and its picture at that step; None: it is gone."""
    loss: Sequence[tuple[int, float]] = ()
    """Step and loss, by rising step."""
    learning_rate: Sequence[tuple[int, float]] = ()
    held_out: HeldOutCurve | None = None
    advice: Sequence[str] = ()
    nearest: Nearest | None = None
    thumbnails: Sequence[tuple[Image, str]] = ()
    """Training images and captions; the first `THUMBNAILS` are shown."""
    config_text: str = ""
    """The resolved configuration, as YAML."""
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def line_strength(self) -> float:
        """What the line to copy says: the measured one, or that of the training."""
        return self.strength.best if self.strength else UNMEASURED
