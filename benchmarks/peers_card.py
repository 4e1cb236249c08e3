"""Steps of other trainers on a card, from checkouts that are given: `python benchmarks/card.py --peers DIR`.

DIR/OneTrainer: its own layers in 8 bits, LoRA and compiling of blocks, put together as its modelSetup does, with
checkpointing off. A step of its trainer: everything under autocast to bf16, gradients clipped at 1, torch's fused
AdamW, the loss read last; attention by diffusers' "native" way. It sets no channels_last, no TF32 for bf16 training, no
choice of cuDNN's algorithms. For a UNet its set-up compiles blocks only beside checkpointing, so there these arms are
better than what it offers.

DIR/ai-toolkit: its LoRASpecialNetwork, whose weights and products are in float32, whatever the model's are, no TF32, no
autocast; its own model of FLUX.2, whose queries, keys and values are one layer. A step of its trainer asks the card
whether the loss is finite before it goes back, and reads it last; AdamW is told to be fused, as its optimizer_params
can. Compiled: `compile`, `block_compile` and no `compile_dynamic`; for a UNet, whose blocks it does not find, the whole
model, as it then does. It quantises to save memory, and multiplies in bf16, so no arm does.

All train the same layers, but for that FLUX.2. What either checkout imports, takes no part in a step and is not
installed (parse; av, torchaudio, torchao, optimum.quanto) stands in as an empty module.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import re
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

Step = Callable[[], float]
Ask = Callable[[Any, Tensor, Tensor, dict[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Task:
    """What an arm trains; of card.py."""

    family: str
    count: int
    rank: int
    on: torch.device
    theirs: Callable[[], Any]
    """The model as diffusers has it, on the meta device."""
    made: Callable[[Any], Any]
    """It with random weights on the card, in bf16, frozen."""
    ends: Callable[[Any], list[str]]
    """Paths of its layers that get a LoRA."""
    asked: Callable[..., Callable[[], Tensor]]
    """(the model, how it is asked where not as diffusers') What gives the loss on the next batch."""


Make = Callable[[Task], Step]


def arms(folder: Path, family: str) -> Iterator[tuple[str, Make]]:
    """Name, and what makes a step, for each trainer that lies in `folder`."""
    if (place := folder / "OneTrainer").is_dir():
        half = torch.bfloat16
        yield "OneTrainer, int8 W8A8, blocks compiled", partial(onetrainer, place, True, torch.float32)
        yield "OneTrainer, int8 W8A8, blocks compiled, bf16 LoRA", partial(onetrainer, place, True, half)
        yield "OneTrainer, bf16, blocks compiled, bf16 LoRA", partial(onetrainer, place, False, half)
    if (place := folder / "ai-toolkit").is_dir():
        yield "ai-toolkit", partial(aitoolkit, place, False)
        yield (
            f"ai-toolkit, {'model' if family in ('sd1', 'sdxl') else 'blocks'} compiled",
            partial(aitoolkit, place, True),
        )


def update(loss: Tensor, parameters: list[Tensor], optimizer: torch.optim.Optimizer) -> float:
    """Back, clip, step; the loss is read when all else is given to the card."""
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


class Empty(types.ModuleType):
    """A module in which every name is a class without anything."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []
        self.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@contextmanager
def imports(place: Path, *stand_ins: str) -> Iterator[None]:
    """Within it modules are imported from a checkout, and empty ones stand for what is not installed; after it nothing
    else finds either."""
    added = []
    for name in stand_ins:
        parts = name.split(".")
        for whole in (".".join(parts[: n + 1]) for n in range(len(parts))):
            if whole not in sys.modules and importlib.util.find_spec(whole) is None:
                sys.modules[whole] = Empty(whole)
                added.append(whole)
    sys.path.insert(0, str(place))
    try:
        yield
    finally:
        sys.path.remove(str(place))
        for name in added:
            del sys.modules[name]


# --- OneTrainer -------------------------------------------------------------------------------------------------------

QUANTISED = {
    "sd1": "attentions",
    "sdxl": "attentions",
    "flux1": "transformer_block",
    "flux2": "transformer_block",
    "zimage": "layers",
}
"""Which linear layers are held in 8 bits: its preset "blocks" (for a UNet, which has none, that of its LoRA)."""


@cache
def parts_of_onetrainer(place: Path) -> tuple[types.SimpleNamespace, Any]:
    """Its modules, and its own remainder for torch's symbols. Importing it puts that into torch, a larger limit on
    compiling, and a line on the screen for each thing compiled: all is taken out again, for the arms of others."""
    from torch._dynamo.callback import callback_handler
    from torch.utils._sympy.functions import Mod

    starts, plain = list(callback_handler.start_callbacks), Mod.__dict__["eval"]
    names = {
        "checkpointing": "util.checkpointing_util",
        "quantization": "util.quantization_util",
        "lora": "module.LoRAModule",
        "autocast": "util.dtype_util",
        "config": "util.config.TrainConfig",
        "types": "util.enum.DataType",
    }
    limit = torch._dynamo.config.recompile_limit
    with imports(place, "parse"), torch._dynamo.config.patch(recompile_limit=limit):
        found = {key: importlib.import_module(f"modules.{name}") for key, name in names.items()}
    theirs = Mod.__dict__["eval"]
    Mod.eval = plain  # type: ignore[method-assign]
    callback_handler.start_callbacks[:] = starts
    return types.SimpleNamespace(**found), theirs


@contextmanager
def as_onetrainer_compiles(theirs: Any) -> Iterator[None]:
    from torch.utils._sympy.functions import Mod

    with torch._dynamo.config.patch(recompile_limit=8192), patch.object(Mod, "eval", theirs):
        yield


def onetrainer(place: Path, w8a8: bool, lora_type: torch.dtype, task: Task) -> Step:
    """As its setup_optimizations and setup_model do one after the other."""
    parts, remainder = parts_of_onetrainer(place)
    base, kind = task.made(task.theirs()), parts.types.DataType
    ends, config = task.ends(base), parts.config.TrainConfig.default_values()
    config.train_device, config.train_dtype, config.compile = task.on.type, kind.BFLOAT_16, True
    config.lora_rank, config.lora_alpha, config.layer_filter_regex = task.rank, float(task.rank), True
    config.unet.gradient_checkpointing = config.transformer.gradient_checkpointing = False
    if w8a8:
        config.quantization.layer_filter = QUANTISED[task.family]
        told = {"quantization": config.quantization, "copy_parameters": True, "keep_in_fp32_modules": []}
        parts.quantization.replace_linear_with_quantized_layers(base, kind.INT_W8A8, **told)
    enable = {
        "flux1": parts.checkpointing.enable_checkpointing_for_flux_transformer,
        "flux2": parts.checkpointing.enable_checkpointing_for_flux2_transformer,
        "zimage": parts.checkpointing.enable_checkpointing_for_z_image_transformer,
    }.get(task.family)
    if enable:
        enable(base, config, config.transformer)
    else:
        enable = parts.checkpointing.enable_checkpointing_for_basic_transformer_blocks
        enable(base, config, config.unet, supports_offloading=False)
    parts.quantization.quantize_layers(base, task.on, kind.BFLOAT_16, config)
    base.set_attention_backend("native")
    base.to(task.on)  # scales are made in RAM
    only = "^(" + "|".join(map(re.escape, ends)) + ")$"
    lora = parts.lora.LoRAModuleWrapper(base, "transformer", config, [only])
    lora.to(dtype=lora_type)
    lora.hook_to_module()
    base.requires_grad_(False).train()
    lora.requires_grad_(True)
    parameters = lora.parameters()
    assert len(parameters) == 2 * len(ends), (len(parameters), len(ends))
    optimizer = torch.optim.AdamW(parameters, lr=3e-4, foreach=False, fused=True)

    loss_of = task.asked(base)

    def step() -> float:
        with as_onetrainer_compiles(remainder):
            with parts.autocast.create_autocast_context(task.on, kind.BFLOAT_16, True):
                loss = loss_of()
            return update(loss, parameters, optimizer)

    return step


# --- ai-toolkit -------------------------------------------------------------------------------------------------------

BLOCKS = {
    "flux1": ("transformer_blocks", "single_transformer_blocks"),
    "flux2": ("double_blocks", "single_blocks"),
    "zimage": ("layers",),
}
"""Lists of what it compiles."""
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
    with imports(place, "torchvision"):
        model, sampling = (importlib.import_module(f"aitoolkit_flux2.{name}") for name in ("model", "sampling"))
    return types.SimpleNamespace(lora=lora, model=model, sampling=sampling)


def ask_flux2(sampling: Any, transformer: Any, x: Tensor, sigma: Tensor, texts: dict[str, Tensor]) -> Tensor:
    """As its Flux2Model does."""
    with torch.no_grad():
        states, states_at = sampling.batched_prc_txt(texts["states"])
        pixels, pixels_at = sampling.batched_prc_img(x)
    told = {"ctx": states, "ctx_ids": states_at, "timesteps": sigma.to(x.dtype), "guidance": torch.ones_like(sigma)}
    answer = transformer(x=pixels, x_ids=pixels_at, **told)
    return torch.cat(sampling.scatter_ids(answer, pixels_at)).squeeze(2)


def aitoolkit(place: Path, compiled: bool, task: Task) -> Step:
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
    lists = [getattr(base, name) for name in BLOCKS.get(task.family, ())] if compiled else []
    for blocks in lists:
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
