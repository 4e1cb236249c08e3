"""ai-toolkit's steps on a card, from its checkout: `python benchmarks/card.py --peers DIR`, in DIR/ai-toolkit.

Its LoRASpecialNetwork, whose weights and products are in float32, whatever the model's are, no TF32, no autocast; its
own model of FLUX.2, whose queries, keys and values are one layer. A step of its trainer asks the card whether the loss
is finite before it goes back, and reads it last; AdamW is told to be fused, as its optimizer_params can. Compiled:
`compile`, `block_compile` and no `compile_dynamic`; for a UNet, whose blocks it does not find, the whole model, as it
then does. In 8 bits: its convrot8, which turns what comes in by a Hadamard matrix, multiplies int8 by int8 forward and
makes the weight whole for a product in bf16 on the way back; it has that for transformers alone, and its other kinds
of storage save memory, not time.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from peers_card import Make, Step, Task, imports, update
from torch import Tensor


def arms(place: Path, family: str) -> Iterator[tuple[str, Make]]:
    """Name, and what makes a step."""
    yield "ai-toolkit", partial(aitoolkit, place, False, False)
    if family in BLOCKS:
        yield "ai-toolkit, blocks compiled", partial(aitoolkit, place, True, False)
        yield "ai-toolkit, int8 W8A8, blocks compiled", partial(aitoolkit, place, True, True)
    else:
        yield "ai-toolkit, model compiled", partial(aitoolkit, place, True, False)


BLOCKS = {
    "flux1": ("transformer_blocks", "single_transformer_blocks"),
    "flux2": ("double_blocks", "single_blocks"),
    "zimage": ("layers",),
}
"""Lists of what it compiles, and puts in 8 bits."""
CLASSES = {"flux1": "FluxTransformer2DModel", "flux2": "Flux2", "zimage": "ZImageTransformer2DModel"}
"""In which it looks for layers; in a UNet in each transformer."""


@cache
def parts_of_aitoolkit(place: Path) -> types.SimpleNamespace:
    importlib.import_module("diffusers.loaders.peft")  # it, too, asks for torchao: before something stands in for it
    source = types.ModuleType("aitoolkit_flux2")  # its package imports every model that it knows
    source.__path__ = [str(place / "extensions_built_in/diffusion_models/flux2/src")]
    sys.modules[source.__name__] = source
    with imports(
        place, "optimum.quanto", "torchao.quantization.quant_primitives", "torchao.dtypes", "torchaudio", "av"
    ):
        lora = importlib.import_module("toolkit.lora_special")
        quantized = importlib.import_module("toolkit.util.ostris_quant")
        quantized.get_ostris_quantizer("convrot8")  # imports every kind that it knows
        convrot = importlib.import_module("toolkit.util.convrot_quant")
    with imports(place, "torchvision"):
        model, sampling = (importlib.import_module(f"aitoolkit_flux2.{name}") for name in ("model", "sampling"))
    return types.SimpleNamespace(lora=lora, quantized=quantized, convrot=convrot, model=model, sampling=sampling)


def ask_flux2(sampling: Any, transformer: Any, x: Tensor, sigma: Tensor, texts: dict[str, Tensor]) -> Tensor:
    """As its Flux2Model does."""
    with torch.no_grad():
        states, states_at = sampling.batched_prc_txt(texts["states"])
        pixels, pixels_at = sampling.batched_prc_img(x)
    told = {"ctx": states, "ctx_ids": states_at, "timesteps": sigma.to(x.dtype), "guidance": torch.ones_like(sigma)}
    answer = transformer(x=pixels, x_ids=pixels_at, **told)
    return torch.cat(sampling.scatter_ids(answer, pixels_at)).squeeze(2)


def aitoolkit(place: Path, compiled: bool, w8a8: bool, task: Task) -> Step:
    """As its BaseSDTrainProcess sets up and its SDTrainer steps."""
    parts = parts_of_aitoolkit(place)
    told: dict[str, Any] = {"transformer_only": task.family == "flux2"}
    told |= {"is_sdxl": task.family == "sdxl", "is_flux": task.family == "flux1"}
    if task.family in ("flux2", "zimage"):
        told |= {"is_transformer": True, "target_lin_modules": [CLASSES[task.family]]}
    if task.family == "flux2":
        with torch.device("meta"):
            base = parts.model.Flux2(parts.model.Klein4BParams())
        base, ask = task.made(base), partial(ask_flux2, parts.sampling)
        count = 8 * len(base.double_blocks) + 2 * len(base.single_blocks)
    else:
        base, ask = task.made(task.theirs()), None
        told |= {"only_if_contains": (ends := task.ends(base))}
        count = len(ends)
    lists = [getattr(base, name) for name in BLOCKS.get(task.family, ())]
    if w8a8:
        quantizer = parts.quantized.get_ostris_quantizer("convrot8")
        for layer in [layer for blocks in lists for layer in blocks.modules() if isinstance(layer, torch.nn.Linear)]:
            parts.quantized.convert_linear_to_ostris(layer, quantizer)  # but for those that it refuses
        parts.convrot._int8_gemm_supported(task.on)  # its first samples, before all compiling, find out
    size = {"lora_dim": task.rank, "alpha": task.rank, "train_text_encoder": False}
    network = parts.lora.LoRASpecialNetwork([], base, **size, **told)
    network.force_to(task.on, dtype=torch.float32)
    network._update_torch_multiplier()
    network.apply_to([], base, False, True)
    network.prepare_grad_etc([], base)
    groups = network.prepare_optimizer_params(1e-4, 1e-4, 1e-4)
    optimizer = torch.optim.AdamW(groups, lr=1e-4, eps=1e-6, fused=True)
    parameters = [p for group in groups for p in group["params"]]
    assert len(parameters) == 2 * count, (len(parameters), count)
    for blocks in lists if compiled else ():
        for n, block in enumerate(blocks):
            blocks[n] = torch.compile(block, dynamic=False)
    if compiled and not lists:
        base = torch.compile(base, dynamic=False)
    loss_of = task.asked(base, ask)

    def step() -> float:
        network.multiplier = [1.0] * task.count
        with network, as_aitoolkit_compiles(sum(map(len, lists))):
            loss = loss_of()
            if not torch.isfinite(loss):
                raise FloatingPointError("the loss is not finite")
            return update(loss, parameters, optimizer)

    return step


@contextmanager
def as_aitoolkit_compiles(blocks: int) -> Iterator[None]:
    limit = max(2 * blocks, torch._dynamo.config.recompile_limit)
    analysis = torch._inductor.config.patch({"triton.coalesce_tiling_analysis": False})  # for a fault of torch 2.9
    with torch._dynamo.config.patch(recompile_limit=limit), analysis:
        yield
