"""Whether a file or folder is an Anima, told from headers and configs alone, and what its files are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_scripts.errors import UserError
from lora_scripts.families.anima import layout
from lora_scripts.families.anima.layout import ADAPTER, AdapterLayout, AnimaLayout
from lora_scripts.families.flow import llm, token_files
from lora_scripts.families.flow.film import QWEN_VAE
from lora_scripts.families.flow.llm import QWEN3, Source
from lora_scripts.families.flow.pieces import Pieces, as_built
from lora_scripts.families.flow.places import own_or_shipped, require_signs
from lora_scripts.families.flow.token_files import shipped, tokens_in
from lora_scripts.families.flow.transformer import PREFIXES, Transformer, class_of, stripped
from lora_scripts.families.kinds import Shapes
from lora_scripts.families.sd.check import read_config
from lora_scripts.families.sd.rows import Row
from lora_scripts.families.sd.whole import Part, check_part, weights_of
from lora_scripts.formats.header import Kind

CHECKPOINT = Kind("an Anima checkpoint")
COSMOS = Kind("a Cosmos-Predict2 checkpoint", "give an Anima, which has an adapter (llm_adapter) besides")
_LANGUAGE = replace(QWEN3, file="qwen_3_06b_base.safetensors")
_CONDITIONER = Part(
    "text_conditioner",
    "adapter",
    "diffusion_pytorch_model",
    layout.ADAPTER_CONFIG,
    lambda config: layout.adapter_rows(layout.adapter_from(config)),
)


@dataclass(frozen=True)
class Texts:
    """All that reads texts, on the disk, whole."""

    model: Source
    """The language model."""
    t5: Path
    """The tokenizer.json of T5, whose tokens the adapter fills."""
    files: tuple[Path, ...]
    """With the adapter's weights."""
    table: tuple[Row, ...]
    """Its parameters."""
    layout: AdapterLayout

    def pieces(self) -> Pieces:
        return Pieces(self.files, PREFIXES, gguf=lambda key: key)


class AnimaFiles(Transformer[AnimaLayout]):
    """Has the adapter besides: in the single file, or a folder of the folder."""

    def more(self, shapes: Shapes, path: Path) -> list[Row]:
        return layout.adapter_rows(layout.adapter_of(shapes, path))

    def check(self, path: Path, vae: bool) -> None:
        super().check(path, vae)
        if path.is_dir():
            check_part(path / _CONDITIONER.name, _CONDITIONER)

    def find_text(self, path: Path, given: Sequence[Path]) -> Any:
        """A `Texts`. UserErrors where something of it is not whole, or not that of the base."""
        if path.is_dir():
            folder = path / _CONDITIONER.name
            check_part(folder, _CONDITIONER)
            adapter = layout.adapter_from(read_config(folder) or {})
            files, table = weights_of(folder, _CONDITIONER.stem), as_built(layout.adapter_rows(adapter))
        else:
            adapter = layout.adapter_of(self.require_file(path).shapes, path)
            files, table = [path], layout.adapter_rows(adapter)
        if adapter.out != self.layout_at(path).text_width:
            text = f"its adapter gives states of width {adapter.out}, which its transformer does not read"
            raise UserError(text, file=path, hint="get the original file")
        model = llm.find(_LANGUAGE, path, given, adapter.source, ())
        return Texts(model, _t5(model.path, path, adapter), tuple(files), tuple(table), adapter)


def _complete(model: Any) -> None:
    """Else it fills the channel that says where a film is filled up by a library that is none of ours; see `ask`."""
    model.register_to_config(concat_padding_mask=False)


FILES = AnimaFiles(
    words="Anima",
    model="CosmosTransformer3DModel",
    layout_of=layout.layout_of,
    layout_from=layout.layout_from,
    config_of=layout.config_of,
    config_keys=layout.CONFIG,
    rows=layout.rows,
    text=lambda own, path, given: None,  # `AnimaFiles.find_text` does it
    vae=QWEN_VAE,
    complete=_complete,
    side=layout.SIDE,
    unused=("accum_", "pos_embedder.", "logvar.", f"{ADAPTER}rotary_emb."),
)


def _t5(text: Path, base: Path, adapter: AdapterLayout) -> Path:
    """A tokenizer.json of T5, else the one that ships. UserError where there is none, or one with more tokens than the
    adapter knows."""
    own = text if text.is_dir() else text.parent
    folders = [own / "t5_tokenizer", own.parent / "t5_tokenizer", *([base / "t5_tokenizer"] if base.is_dir() else [])]
    places = [own / "t5_tokenizer.json", *(folder / "tokenizer.json" for folder in folders)]
    found = next((place for place in places if place.is_file()), None)
    found = own_or_shipped(found, shipped(token_files.T5, adapter.tokens), ("</s>",))
    if found is None:
        hint = "copy tokenizer.json of T5 (folder t5_tokenizer of the model's page) beside it as t5_tokenizer.json"
        raise UserError("there is no t5_tokenizer.json beside this text encoder", file=text, hint=hint)
    require_signs(found, ("</s>",), "t5_tokenizer")
    count = tokens_in(found)
    if not 0 < count <= adapter.tokens:
        hint = "copy the one from the model's page (folder t5_tokenizer)"
        raise UserError(f"has {count} tokens, the adapter knows {adapter.tokens}", file=found, hint=hint)
    return found


def kind_of(shapes: Shapes, metadata: Mapping[str, str]) -> Kind | None:
    """What a single file is: its marks are the modulations of its blocks' parts, and the adapter."""
    keys = {stripped(key) for key in shapes}
    if not {"x_embedder.proj.1.weight", "blocks.0.adaln_modulation_cross_attn.1.weight"} <= keys:
        return None
    return CHECKPOINT if f"{ADAPTER}embed.weight" in keys else COSMOS


def folder_kind(path: Path) -> Kind | None:
    """What a diffusers folder is, by its transformer's config and whether there is an adapter."""
    if class_of(path) != FILES.model:
        return None
    return CHECKPOINT if (path / _CONDITIONER.name).is_dir() else COSMOS
