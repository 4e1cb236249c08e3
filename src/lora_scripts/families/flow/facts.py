"""What all families of flow are alike in, as facts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts.families.facts import USUAL, Coder, Drawing, Facts, Kept, LoraFacts, Recipe
from lora_scripts.families.flow.transformer import PART, Transformer
from lora_scripts.families.kinds import Shapes
from lora_scripts.formats.header import Kind

if TYPE_CHECKING:
    from lora_scripts.families.names import Base, Names

UNREAD_BY = frozenset({"A1111", "Forge", "InvokeAI", "SD.Next", "additional-networks", "kohya"})
"""As of `LoraFacts`."""
QWEN = Coder(508, 6919)
"""Qwen-Image's VAE, which others have, too."""


def flow_facts(
    name: str,
    files: Transformer[Any],
    *,
    example: str,
    mergeable: tuple[Kind, ...],
    kind_of: Callable[[Shapes, Mapping[str, str]], Kind | None],
    folder_kind: Callable[[Path], Kind | None],
    groups: Mapping[str, Callable[[str], bool]],
    lora: LoraFacts,
    recipes: Mapping[str, Recipe],
    drawn: Drawing | Callable[[Path], Drawing],
    kept: Mapping[int, Kept],
    negative: bool = True,
    fused: bool = False,
    least_share: float = 0.2,
    bucket_step: int = 32,
    vae_factor: int = 8,
    latent_channels: int = 16,
    size_step: int = 16,
    transparent: bool = False,
    references: int = 0,
    check_sight: Callable[[Path, Sequence[Path]], None] | None = None,
    coder: Coder = USUAL,
) -> Facts:
    """A family in the folder of that name, whose module `names` has `names()` and `base(layout)`.

    `mergeable`: what its bases are, and what else its LoRAs can be added to; `drawn`: how all its bases are drawn, or
    each; `negative`: whether a negative prompt counts; `fused`: whether the published file keeps some of its layers as
    one; `least_share`: by default it is trained from 512 x 512 on; the last ones: as of `Facts`.
    """
    room = f"lora_scripts.families.{name}"
    more = {"negative": negative, "fused": fused, "references": references}

    def names() -> Names:
        found: Names = import_module(f"{room}.names").names()
        return found

    def base(path: Path | None) -> Base:
        found: Base = import_module(f"{room}.names").base(None if path is None else files.layout_at(path))
        return found

    return Facts(
        name=name,
        words=files.words,
        example=example,
        checkpoint=mergeable[0],
        mergeable=frozenset(mergeable),
        model=f"{room}.model",
        features=frozenset({"pictures", "vae", "language", *filter(more.get, more)}),
        native_size=(files.side, files.side),
        made_for=files.made_for,
        least_share=least_share,
        bucket_step=bucket_step,
        vae_factor=vae_factor,
        latent_channels=latent_channels,
        groups=groups,
        image_root=PART,
        text_roots=(),
        recipes=recipes,
        drawn=(lambda path: drawn) if isinstance(drawn, Drawing) else drawn,
        lora=lora,
        kept=kept,
        coder=coder,
        names=names,
        kind_of=kind_of,
        folder_kind=folder_kind,
        told=files.told,
        check=files.check,
        weights=files.weights,
        parts={PART: ""},
        check_vae=files.check_vae,
        wrapped=lambda: {PART: ""},
        unread=files.unread,
        base=base,
        build=files.skeleton,
        gguf=True,
        size_step=size_step,
        transparent=transparent,
        references=references,
        check_sight=check_sight,
        check_text=files.check_text,
    )


def flow_lora(
    base_version: str,
    architecture: str,
    *,
    loader: str,
    civitai: str,
    tag: str,
    unread_by: frozenset[str] = UNREAD_BY,
) -> LoraFacts:
    """A LoRA in diffusers' names."""
    return LoraFacts(
        base_version,
        architecture,
        "https://github.com/huggingface/diffusers",
        unread_by=unread_by,
        loader=loader,
        civitai=civitai,
        hub_tags=(tag,),
    )
