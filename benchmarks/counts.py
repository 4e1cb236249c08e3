"""What a step computes and keeps, counted: operations, and bytes for the backward pass, at true size without weights.

    python benchmarks/counts.py [--only sdxl] [--fused-qkv] [--references 1] [--out counts.json]

Nothing is computed: torch's fake tensors have shapes and no memory, so the counts are exact, need neither a card nor
the base, and are the same on every machine. The choices are those that are made on a card (one kernel for attention,
one for a convolution). LoRA of rank 16 in the layers of attention and feed-forward, bf16, one picture. Operations are
those of a whole step, views and empty tensors left out: forward, backward, the sum of gradients, clipping, the update.
What is kept is what is alive after the forward pass and was not before it.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from memory import SD15, library_unet
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lora_scripts.adapters import products
from lora_scripts.adapters.inject import inject
from lora_scripts.adapters.layer import LoraLayer
from lora_scripts.adapters.masters import Masters
from lora_scripts.adapters.together import share_down
from lora_scripts.compute import activations, attention, memory
from lora_scripts.compute.memory import MemoryOptions
from lora_scripts.families.anima import layout as anima
from lora_scripts.families.anima.check import FILES as ANIMA
from lora_scripts.families.anima.model import ask as ask_anima
from lora_scripts.families.base import REFERENCE
from lora_scripts.families.black_forest import flux2_layout as flux2
from lora_scripts.families.black_forest.flux1_model import asked
from lora_scripts.families.black_forest.flux2_model import ask as ask_flux2
from lora_scripts.families.chroma import layout as chroma
from lora_scripts.families.chroma.check import FILES as CHROMA
from lora_scripts.families.flow.model import Ask, places
from lora_scripts.families.flux1 import layout as flux1
from lora_scripts.families.flux1.check import FILES as FLUX1
from lora_scripts.families.flux1.model import ask as ask_flux1
from lora_scripts.families.flux2.check import FILES as FLUX2
from lora_scripts.families.flux2_dev.check import FILES as FLUX2_DEV
from lora_scripts.families.flux3 import layout as flux3
from lora_scripts.families.flux3.check import FILES as FLUX3
from lora_scripts.families.flux3.model import ask_alike as ask_flux3
from lora_scripts.families.krea2 import layout as krea2
from lora_scripts.families.krea2.check import FILES as KREA2
from lora_scripts.families.qwen_image import layout as qwen
from lora_scripts.families.qwen_image.check import FILES as QWEN
from lora_scripts.families.qwen_image21 import layout as qwen21
from lora_scripts.families.qwen_image21.check import FILES as QWEN21
from lora_scripts.families.sd import load
from lora_scripts.families.sd.denoiser import Denoiser
from lora_scripts.families.sd.latents import pack
from lora_scripts.families.sd.unet import UnetLayout
from lora_scripts.families.sd1.names import STANDARD_2 as SD21
from lora_scripts.families.sd3 import layout as sd3
from lora_scripts.families.sd3.check import FILES as SD3
from lora_scripts.families.sd3.model import ask as ask_sd3
from lora_scripts.families.sdxl.layout import STANDARD as SDXL
from lora_scripts.families.table import by_name
from lora_scripts.families.zimage import layout as zimage
from lora_scripts.families.zimage.check import FILES as ZIMAGE

RANK = 16
CPU = torch.device("cpu")
VIEWS = {
    *("view", "t", "transpose", "permute", "expand", "unsqueeze", "squeeze", "slice", "select", "as_strided"),
    *("_unsafe_view", "detach", "alias", "split", "chunk", "unbind", "reshape", "_reshape_alias", "unfold"),
    *("device", "_record_function_enter_new", "_record_function_exit"),
    *("split_with_sizes", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
}


Make = Callable[[MemoryOptions, bool], "Pass"]
"""The bool: our way, where that is not the library's."""
Pass = tuple[nn.Module, Callable[[], Tensor]]
"""A frozen model, and what gives its answer for one picture."""


def bf16(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16)


def filled(model: Any) -> Any:
    """With weights in place of those on the meta device."""
    model.load_state_dict({name: bf16(*t.shape) for name, t in model.state_dict().items()}, assign=True)
    return model


def unet(layout: UnetLayout, latents: int, options: MemoryOptions, lean: bool) -> Pass:
    """Of so many latents along a side, and 77 tokens of text."""
    bare = load.build_unet(layout) if lean else library_unet(layout)
    denoiser = Denoiser(filled(bare), options, CPU, torch.bfloat16)
    added = {"text_embeds": bf16(1, layout.pooled_width), "time_ids": bf16(1, 6)} if layout.pooled_width else None
    noised, told = bf16(1, 4, latents, latents), bf16(1, 77, layout.context_width)
    return denoiser.unet, lambda: denoiser(noised, torch.full((1,), 500), told, added)


def flow(
    files: Any,
    layout: Any,
    ask: Ask,
    shape: tuple[int, ...],
    tokens: int,
    options: MemoryOptions,
    lean: bool,
    references: int = 0,
) -> Pass:
    """Of latents of that shape, so many tokens of text and references of that shape; `lean` or not, the model is the
    library's."""
    pooled = bf16(1, layout.pooled_width) if hasattr(layout, "pooled_width") else None
    model = filled(files.build(layout)).requires_grad_(False).eval()
    early = getattr(model, "mode_blocks", {})  # of each kind of pictures, of which one is drawn
    lists = [child for child in (*model.children(), *early.values()) if isinstance(child, nn.ModuleList)]
    memory.place(model, options, CPU, torch.bfloat16, [block for blocks in lists for block in blocks])
    width = layout.text_width * getattr(layout, "taps", 1)
    texts: Any = {"states": bf16(1, tokens, width), "pooled": pooled}
    texts |= {f"{REFERENCE}{number}": bf16(1, *shape) for number in range(references)}
    noised, sigma = bf16(1, *shape), torch.full((1,), 0.5)
    return model, lambda: ask(model, noised, sigma, texts)


def ask_zimage(model: Any, x: Tensor, sigma: Tensor, texts: Any) -> Tensor:
    """As the family does; the length is known, since a fake tensor has no numbers."""
    answer = model(list(x.unsqueeze(2).unbind(0)), 1 - sigma, list(texts["states"].unbind(0)), return_dict=False)[0]
    return torch.stack(answer)


def ask_qwen(model: Any, x: Tensor, sigma: Tensor, texts: Any) -> Tensor:
    """As the family does, likewise."""
    packed = pack(x)
    tokens, places = packed.flatten(2).transpose(1, 2), [[(1, *packed.shape[2:])]]
    told = {"encoder_hidden_states": texts["states"], "timestep": sigma, "img_shapes": places}
    answer: Tensor = model(hidden_states=tokens, **told, return_dict=False)[0]
    return answer


def ask_chroma(model: Any, x: Tensor, sigma: Tensor, texts: Any) -> Tensor:
    """As the family does, likewise."""
    return asked(model, x, texts["states"], timestep=sigma, attention_mask=None)


def ask_qwen21(model: Any, x: Tensor, sigma: Tensor, texts: Any) -> Tensor:
    """As their transformer does inside, which asks numbers where the picture stands: a fake tensor has none."""
    text, picture = model.txt_in(texts["states"]), model.img_in(x.flatten(2).transpose(1, 2))
    joint, words = torch.cat([text, picture], 1), text.shape[1]
    told = model.time_text_embed(torch.cat([sigma, sigma.new_zeros(1)]).to(x.dtype), joint)
    there = torch.ones(joint.shape[1], dtype=torch.bool)
    turned = torch.empty(joint.shape[1], model.config.attention_head_dim // 2, dtype=torch.complex64)
    more = {"rotary_emb": turned, "target_token_mask": there, "segments": [(0, words, True)]}
    modulation = model.modulation(told)
    for block in model.transformer_blocks:
        joint = block(hidden_states=joint, modulation=modulation, **more)
    answer: Tensor = model.proj_out(model.norm_out(joint, told, there))
    return answer[:, words:]


def ask_krea2(model: Any, x: Tensor, sigma: Tensor, texts: Any) -> Tensor:
    """As the family does, likewise."""
    packed, states = pack(x), texts["states"].unflatten(-1, (model.config.num_text_layers, -1))
    grid = places(1, *packed.shape[2:], on=x.device)
    told = {"encoder_hidden_states": states, "timestep": sigma}
    told["position_ids"] = torch.cat([grid.new_zeros(states.shape[1], 3), grid])
    answer: Tensor = model(hidden_states=packed.flatten(2).transpose(1, 2), **told, return_dict=False)[0]
    return answer


def ask_klein3(model: Any, x: Tensor, sigma: Tensor, texts: Any) -> Tensor:
    """As the family does, with texts of one length."""
    return ask_flux3(model, x, sigma, texts)


KLEIN_4B = replace(flux2.KLEIN, width=3072, double=5, single=20, inner=9216, text_width=7680)
MODELS: dict[str, tuple[str, str, Make]] = {
    "sd15": ("Stable Diffusion 1.5, 512 px", "sd1", partial(unet, SD15.unet, 64)),
    "sd21": ("Stable Diffusion 2.1, 768 px", "sd2", partial(unet, SD21.unet, 96)),
    "sdxl": ("SDXL, 1024 px", "sdxl", partial(unet, SDXL.unet, 128)),
    "zimage": ("Z-Image, 1024 px", "zimage", partial(flow, ZIMAGE, zimage.STANDARD, ask_zimage, (16, 128, 128), 128)),
    "flux1": ("FLUX.1, 1024 px", "flux1", partial(flow, FLUX1, flux1.STANDARD, ask_flux1, (16, 128, 128), 512)),
    "chroma": ("Chroma, 1024 px", "chroma", partial(flow, CHROMA, chroma.STANDARD, ask_chroma, (16, 128, 128), 128)),
    "sd35m": ("SD 3.5 Medium, 1024 px", "sd3", partial(flow, SD3, sd3.MEDIUM, ask_sd3, (16, 128, 128), 333)),
    "sd35l": ("SD 3.5 Large, 1024 px", "sd3", partial(flow, SD3, sd3.LARGE, ask_sd3, (16, 128, 128), 333)),
    "qwen": ("Qwen-Image, 1024 px", "qwen_image", partial(flow, QWEN, qwen.STANDARD, ask_qwen, (16, 128, 128), 128)),
    "qwen21": (
        "Qwen-Image-2.1, 1024 px",
        "qwen_image21",
        partial(flow, QWEN21, qwen21.STANDARD, ask_qwen21, (64, 64, 64), 128),
    ),
    "anima": ("Anima, 1024 px", "anima", partial(flow, ANIMA, anima.STANDARD, ask_anima, (16, 128, 128), 512)),
    "krea2": ("Krea 2, 1024 px", "krea2", partial(flow, KREA2, krea2.STANDARD, ask_krea2, (16, 128, 128), 128)),
    "klein": ("FLUX.2 klein 4B, 1024 px", "flux2", partial(flow, FLUX2, KLEIN_4B, ask_flux2, (128, 64, 64), 512)),
    "klein3": ("FLUX.3 klein, 1024 px", "flux3", partial(flow, FLUX3, flux3.STANDARD, ask_klein3, (128, 64, 64), 400)),
    "dev": ("FLUX.2 dev, 1024 px", "flux2_dev", partial(flow, FLUX2_DEV, flux2.DEV, ask_flux2, (128, 64, 64), 512)),
}


class Watched(TorchDispatchMode):
    """Counts what is computed, and knows every piece of memory that was asked for meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.pieces: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (name := func.overloadpacket.__name__) not in VIEWS:
            self.names[name] += 1
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage())._cdata not in given:
                self.pieces[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return out

    def alive(self) -> int:
        """Bytes of what was asked for and not given back."""
        gc.collect()
        return sum(size for piece, size in self.pieces.values() if not piece.expired())


def count(name: str, *, lean: bool, checkpointing: bool, fused: bool = False, references: int = 0) -> dict[str, int]:
    _, family, make = MODELS[name]
    make = partial(make, references=references) if references else make
    with FakeTensorMode(), patch.object(nn.Module, "_apply", lambda self, *_, **__: self):  # nothing is to be moved
        model, answer = make(MemoryOptions(checkpointing=checkpointing), lean)
        root = "unet" if family in ("sd1", "sdxl") else "transformer"
        groups = by_name(family).groups
        layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
        paths = [f"{root}.{path}" for path in layers]
        chosen = [path for path in paths if any(groups[group](path) for group in ("attention", "feed_forward"))]
        loras: Any = inject({root: model}, chosen, lambda _, layer: LoraLayer(layer, RANK, RANK), reset=False)
        if fused:
            share_down(loras, [group for group in by_name(family).names().together if loras.keys() >= {*group}])
        masters = Masters(loras.values())
        parameters = list(dict.fromkeys(p for layer in loras.values() for p in layer.values().values()))
        optimizer = torch.optim.AdamW(parameters, fused=True)
        kept, operations = 0, 0
        for _ in range(2):  # the first makes the moments
            with Watched() as step:
                out = answer().float()
                loss = (out - 1).square().mean()
                del out
                kept = step.alive()
                loss.backward()
                masters.gather()
                torch._foreach_div_([p.grad for p in parameters if p.grad is not None], 4.0)
                torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                masters.refresh()
            operations = sum(step.names.values())
    return {
        "sites": len(chosen),
        "numbers": sum(p.numel() for p in parameters),
        "operations": operations,
        "kept": kept,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=MODELS)
    parser.add_argument("--fused-qkv", action="store_true", help="one A where the published file has one layer")
    parser.add_argument(
        "--references", type=int, default=0, metavar="N", help="pictures beside it, of a model that edits"
    )
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    products.FEW_PLACES = attention.MADE_AGAIN = activations.SHORT = 0  # as on a card
    attention.MANY = attention.MOST = 1 << 30
    found = {}
    print(f"{'':32} {'sites':>6} {'numbers, M':>11} {'operations':>11} {'kept, MiB':>10} {'with checkpoints':>17}")
    for name in [chosen.only] if chosen.only else MODELS:
        for lean in (False, True):
            with plain_layers(not lean):
                of = {"lean": lean, "fused": chosen.fused_qkv, "references": chosen.references}
                whole, again = (count(name, checkpointing=checkpointing, **of) for checkpointing in (False, True))
            found[f"{name}, {'lean' if lean else 'plain'}"] = whole | {"checkpointed": again["kept"]}
            words = MODELS[name][0] if lean else "  the plain way"
            print(
                f"{words:32} {whole['sites']:6} {whole['numbers'] / 1e6:11.2f} {whole['operations']:11,}"
                f" {whole['kept'] / 2**20:10,.0f} {again['kept'] / 2**20:17,.0f}",
                flush=True,
            )
    if chosen.out:
        chosen.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


@contextmanager
def plain_layers(plain: bool) -> Iterator[None]:
    """The layers' way without a function of their own, for comparison."""
    before = LoraLayer.fused
    if plain:
        LoraLayer.fused = False  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        LoraLayer.fused = before  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
