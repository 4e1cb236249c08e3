"""The files of a family of flow: a transformer in one published file or a diffusers folder, the text encoder and the
VAE in files of their own or in that folder. What differs is handed in as data and as the functions of a layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from lora_scripts.errors import UserError
from lora_scripts.families.facts import Weight
from lora_scripts.families.flow.pieces import (
    Pieces,
    as_built,
    lend_scaled,
    require_floats,
    require_package,
    take_blocks,
)
from lora_scripts.families.kinds import Shapes
from lora_scripts.families.library import of_diffusers
from lora_scripts.families.sd.check import index_of, native_size, read_config, refuse_scales
from lora_scripts.families.sd.component import configured, require_kinds
from lora_scripts.families.sd.rows import Row, check_rows, is_spare
from lora_scripts.families.sd.whole import Part, check_parts, weights_of
from lora_scripts.formats.gguf import read_model
from lora_scripts.formats.header import Header

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lora_scripts.families.sd.latents import Normal

L = TypeVar("L")
"""What tells one transformer of the family from another: its widths and depths."""
PART = "transformer"
"""What our paths begin with."""
PREFIXES = ("model.diffusion_model.net.", "model.diffusion_model.", "diffusion_model.", "net.")
"""What keys begin with in some single files."""
_OTHERS = ("vae.", "text_encoders.", "first_stage_model.", "cond_stage_model.")
"""Of a file with everything in it, what is read from files of its own."""


class Vae(Protocol):
    """What a family says of its VAE: `autoencoder.Autoencoder`, `film.FilmAutoencoder` or one of its own."""

    @property
    def file(self) -> str:
        """As people know it."""
        ...

    def part(self) -> Part: ...
    def check(self, path: Path, words: str) -> Header | None: ...
    def load(self, path: Path, words: str) -> Any: ...
    def normal(self, vae: Any) -> Normal: ...


@dataclass(frozen=True)
class Transformer(Generic[L]):
    """What a family says of its files. Everything but `load` and `build` works without torch."""

    words: str
    """What people call the family."""
    model: str
    """The class of diffusers."""
    layout_of: Callable[[Shapes, Path | None], L]
    """Of a single file, its keys without prefix."""
    layout_from: Callable[[Mapping[str, Any]], L]
    """Of a diffusers folder's config."""
    config_of: Callable[[L], dict[str, Any]]
    """The arguments of `model`."""
    config_keys: tuple[str, ...]
    """What a folder's config must say."""
    rows: Callable[[L], list[Row]]
    """Every parameter."""
    text: Callable[[L, Path, Sequence[Path]], Any]
    """(layout, base, what `text_encoder` names) -> where the text encoder lies. UserErrors where it is not whole, or
    not that of the base."""
    vae: Vae
    side: int
    """Pixels along the sides of a square picture, as the base was made for."""
    unused: tuple[str, ...] = ()
    """What keys of the transformer begin with that published files hold and nobody reads."""
    complete: Callable[[Any], None] = lambda model: None
    """Computes numbers of a built model that stand in no file."""

    @property
    def part(self) -> Part:
        """Of a diffusers folder."""
        table = lambda config: self.rows(self.layout_from(config))  # noqa: E731
        return Part("transformer", "transformer", "diffusion_pytorch_model", self.config_keys, table)

    def require_file(self, path: Path) -> Pieces:
        """A whole transformer in the published layout; UserErrors for anything else, all faults at once."""
        pieces = Pieces([path], PREFIXES, gguf=lambda key: key)
        table = [*self.rows(self.layout_of(pieces.shapes, path)), *self.more(pieces.shapes, path)]
        pieces.widen(table)
        unknown = [key for key in pieces.keys() if not self._is_tolerated(key)]  # noqa: SIM118  it is no mapping
        plain = f"this is not a plain {self.words}; get the original file"
        check_rows(pieces.shapes, {"transformer": table}, unknown, file=path, plain=plain)
        require_floats(pieces, {pieces.key_in_file(row.ldm) for row in table})
        return pieces

    def more(self, shapes: Shapes, path: Path) -> list[Row]:
        """Parameters of other models that a single file holds and somebody reads."""
        return []

    def _is_tolerated(self, key: str) -> bool:
        return is_spare(key) or key.startswith((*_OTHERS, *self.unused)) or key.endswith("._extra_state")

    def layout_at(self, path: Path) -> L:
        """The widths of a base, file or folder. UserErrors when it is broken."""
        if path.is_file():
            return self.layout_of(self.require_file(path).shapes, path)
        check_parts(path, [self.part], self.words)
        with configured(path / "transformer") as config:
            return self.layout_from(config)

    # --- as `Facts` asks ---------------------------------------------------------------------------------------------

    def told(self, path: Path) -> dict[str, Any]:
        return {"prediction": "flow", "zero_terminal_snr": False}

    def made_for(self, path: Path) -> tuple[int, int]:
        """(width, height) in pixels, as the file's metadata or the folder's VAE says."""
        if path.is_file():
            return native_size(read_model(path).metadata, (self.side, self.side))
        side = (read_config(path / "vae") or {}).get("sample_size")
        return (side, side) if isinstance(side, int) else (self.side, self.side)

    def weights(self, header: Header, path: Path) -> dict[str, Weight]:
        """Every linear layer."""
        refuse_scales(path, header)
        keys, table = {stripped(key): key for key in header.tensors}, self.rows(self.layout_at(path))
        return {f"{PART}.{stem(r.hf)}": Weight(keys[r.ldm], r.share, r.swapped) for r in linear(table)}

    def unread(self, key: str, vae: bool) -> bool:
        return self._is_tolerated(stripped(key))

    def check(self, path: Path, vae: bool) -> None:
        if path.is_dir():
            check_parts(path, [self.part, *([self.vae.part()] if vae else [])], self.words)
            return
        require_package(self.require_file(path))
        if vae:
            hint = f"add vae: the file {self.vae.file}, or a folder with a VAE"
            raise UserError("this file holds no VAE that is read", file=path, hint=hint)

    def check_vae(self, path: Path) -> Header | None:
        return self.vae.check(path, self.words)

    def check_text(self, path: Path, text_encoder: Sequence[Path]) -> None:
        self.find_text(path, text_encoder)

    def skeleton(self, path: Path) -> dict[str, nn.Module]:
        # Memory that nothing is written to costs nothing.
        return {PART: self.build(self.layout_at(path)).to_empty(device="cpu")}

    # --- to be loaded ------------------------------------------------------------------------------------------------

    def find_text(self, path: Path, given: Sequence[Path]) -> Any:
        """As `text`."""
        return self.text(self.layout_at(path), path, given)

    def load(self, path: Path, dtype: torch.dtype, *, lent: bool = False) -> Any:
        """The transformer with its weights in the file's own precision, memory-mapped; those that have a scale are made
        whole in `dtype`, with `lent` only when they are restored; those of layers that a GGUF file has in blocks stay
        so."""
        from lora_scripts.families.sd.rows import from_rows

        if path.is_file():
            pieces = self.require_file(path)
            layout = self.layout_of(pieces.shapes, path)
            model = self.build(layout)
            blocks, left = take_blocks(model, pieces, self.rows(layout), lambda key: dtype)
            scaled, left = lend_scaled(model, pieces, left, dtype) if lent else ({}, left)
            return _filled(model, {**blocks, **scaled, **from_rows(pieces, left, dtype=dtype)})
        with configured(path / "transformer") as config:
            layout = self.layout_from(config)
            pieces = Pieces(weights_of(path / "transformer", self.part.stem))
            return self.build(layout, from_rows(pieces, as_built(self.rows(layout)), dtype=dtype), config)

    def build(
        self, layout: L, state: dict[str, torch.Tensor] | None = None, config: dict[str, Any] | None = None
    ) -> Any:
        """The transformer of a layout with a state dict's weights or, without one, on the meta device.

        `config`: a folder's own, in whose words the model is built.
        """
        import torch

        kind = of_diffusers(self.model)
        if config is not None:
            require_kinds(config, kind)
        with torch.device("meta"):
            model = kind(**self.config_of(layout)) if config is None else kind.from_config(config)
        self.complete(model)
        return model if state is None else _filled(model, state)


def _filled(model: Any, state: Mapping[str, torch.Tensor]) -> Any:
    model.load_state_dict(state, strict=True, assign=True)
    return model


def linear(table: Iterable[Row]) -> Iterator[Row]:
    """Those of linear layers."""
    return (row for row in table if row.hf.endswith(".weight") and len(row.shape) == 2)


def stem(key: str) -> str:
    """A layer's name, of its weight's."""
    return key.removesuffix(".weight")


def stripped(key: str) -> str:
    """A key without the prefix that some files have."""
    prefix = next((start for start in PREFIXES if key.startswith(start)), "")
    return key.removeprefix(prefix)


def class_of(folder: Path) -> str:
    """What the transformer of a diffusers folder is called in diffusers: by its config, or, where that is damaged or
    missing, by the folder's index, so that what is wrong can be told; "" for no such folder.
    """
    config = read_config(folder / "transformer")
    if config is not None:
        return str(config.get("_class_name", ""))
    entry = index_of(folder).get("transformer")
    return str(entry[1]) if isinstance(entry, list) and len(entry) == 2 else ""


def named_turbo(path: Path) -> bool:
    """Whether a base is called a turbo, where nothing in it tells it from one that was not distilled to few steps."""
    return "turbo" in path.stem.lower()
