"""Blocks of a model that keep less: computed again in the backward pass, or brought to the card only for their turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lora_scripts.compute.compiled import compile_blocks, forward_of
from lora_scripts.compute.device import numbered
from lora_scripts.compute.quantised import Storage, quantise_layers, restore
from lora_scripts.errors import UserError

TILE = 512
"""Pixels along a side of the tiles that a VAE works in, if told to: the size that SD's was trained at."""


COMPILED = "compiled"
"""Of the cache's folders, that for what was compiled."""
PIECE = 1 << 18
"""Numbers that are cast at a time: they stay in the CPU's own memory in between."""
ASKED = 1 << 30
"""Bytes that a card keeps free for what a text encoder computes of one text."""


@dataclass(frozen=True)
class MemoryOptions:
    """What is done so that less memory is needed."""

    checkpointing: bool = False
    storage: Storage | None = None
    """Of the frozen weights in the blocks; None: the precision of the rest."""
    offloaded: int = 0
    """Blocks that live in RAM."""
    vae_tiling: bool = False
    encoding: torch.dtype = torch.float32
    """In which a VAE makes latents, where they then agree with those in float32."""
    resting: bool = False
    """VAE and text encoders are in RAM only while they are asked."""
    compiled: bool = False
    """Each block as one compiled function."""
    cache: Path | None = None
    """A folder on the disk in which what was compiled is kept."""


def blocks_of(unet: Any) -> list[nn.Module]:
    """Residual blocks, transformers, down- and upsamplers of a diffusers UNet, in the order in which they are run."""
    found: list[nn.Module] = []
    for level in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        for pair in zip_longest(level.resnets, getattr(level, "attentions", ())):
            found += [block for block in pair if block is not None]
        found += [*(getattr(level, "downsamplers", None) or ()), *(getattr(level, "upsamplers", None) or ())]
    return found


def layers_of(transformer: nn.Module) -> list[nn.Module]:
    """Of a transformer, in the order in which they are run: the longest list of modules in it."""
    lists = [module for module in transformer.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=len, default=[]))


def around(block: nn.Module, before: Callable[[], None] | None = None) -> None:
    """From now on a pass with gradients keeps only the block's input and computes the rest again in the backward pass.

    `before` is called ahead of each computation, the repeated one too. Random numbers are drawn as the first time, so
    dropout has the same masks (Chen et al. 2016).
    """
    # In the instance, not as a module around it: paths, and with them the names of everything inside, stay.
    block.forward = partial(_call, block, before)


def _call(block: nn.Module, before: Callable[[], None] | None, *args: Any, **kwargs: Any) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        if before is not None:
            before()
        return forward_of(block, *args, **kwargs)

    if torch.is_grad_enabled():
        # What is recorded draws nothing, and a card's generator cannot be asked for its state meanwhile.
        draws = not (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())
        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=draws, **kwargs)
    return run(*args, **kwargs)


# --- blocks in RAM ----------------------------------------------------------------------------------------------------


class Copies(Protocol):
    """Tensors on their way to the card."""

    def arrived(self) -> list[Tensor]:
        """The copies, once whatever is computed next may read them."""
        ...


class Mover(Protocol):
    """Where tensors live, and how they are brought."""

    def home(self, tensor: Tensor) -> Tensor:
        """The tensor as it lies in RAM."""
        ...

    def begin(self, tensors: Sequence[Tensor]) -> Copies:
        """Starts to copy to the card."""
        ...

    def turn(self) -> None:
        """Called when a block's turn begins, before others are brought: may wait, so that not too many are there."""
        ...


class CudaMover:
    """Pinned memory, and a stream of its own for the copies."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)
        self._last: torch.cuda.Event | None = None

    def home(self, tensor: Tensor) -> Tensor:
        return tensor.cpu().pin_memory()

    def begin(self, tensors: Sequence[Tensor]) -> Copies:
        with torch.cuda.stream(self.stream):
            copies = [t.to(self.device, non_blocking=True) for t in tensors]
            done = torch.cuda.Event()
            done.record(self.stream)
        return _CudaCopies(copies, done)

    def turn(self) -> None:
        # Python runs ahead of the card. Were it to bring block after block, they would all be there at once: so it
        # waits until the card has begun with the block before this one.
        if self._last is not None:
            self._last.synchronize()
        self._last = torch.cuda.Event()
        self._last.record(torch.cuda.current_stream(self.device))


class PlainMover:
    """From where tensors lie anyway: takes no RAM, and waits for each copy. For what is done once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def home(self, tensor: Tensor) -> Tensor:
        return tensor

    def begin(self, tensors: Sequence[Tensor]) -> Copies:
        return _Arrived([t.to(self.device) for t in tensors])

    def turn(self) -> None:
        pass


@dataclass(frozen=True)
class _Arrived:
    copies: list[Tensor]

    def arrived(self) -> list[Tensor]:
        return self.copies


@dataclass(frozen=True)
class _CudaCopies:
    copies: list[Tensor]
    done: torch.cuda.Event

    def arrived(self) -> list[Tensor]:
        current = torch.cuda.current_stream(self.copies[0].device)
        current.wait_event(self.done)
        for copy in self.copies:
            copy.record_stream(current)  # its memory is not given away while the computation still reads it
        return self.copies


@dataclass(frozen=True)
class Slot:
    """Where a tensor stands in a module."""

    owner: MutableMapping[str, Any]
    name: str

    @property
    def tensor(self) -> Tensor:
        found = self.owner[self.name]
        assert found is not None
        return found

    def put(self, tensor: Tensor) -> None:
        # Another object in its place: what autograd kept of the one before stays where it was.
        parameter = isinstance(self.tensor, nn.Parameter) and not isinstance(tensor, nn.Parameter)
        self.owner[self.name] = nn.Parameter(tensor, requires_grad=False) if parameter else tensor


@dataclass
class Offloader:
    """Keeps frozen blocks in RAM; the one whose turn it is, and the next, are on the card.

    A block goes through `around`, so a pass keeps its input alone, and in the backward pass the block comes again.
    """

    blocks: Sequence[nn.Module]
    """In the order in which they are run."""
    mover: Mover
    _slots: list[list[Slot]] = field(default_factory=list)
    _homes: list[list[Tensor]] = field(default_factory=list)
    _coming: dict[int, Copies] = field(default_factory=dict)
    _there: set[int] = field(default_factory=set)
    _last: int = -1

    def __post_init__(self) -> None:
        """Takes every tensor that the blocks have now home. Adapters that come later stay on the card."""
        for number, block in enumerate(self.blocks):
            slots = [s for module in block.modules() for s in _slots(module)]
            self._slots.append(slots)
            self._homes.append([_like(self.mover.home(s.tensor), s.tensor) for s in slots])
            self._send(number)
            around(block, partial(self._turn, number))

    def _turn(self, number: int) -> None:
        """The block's computation begins."""
        following = self._next(number)
        for other in {*self._there, *self._coming} - {number, following}:
            self._send(other)
        self.mover.turn()
        self._begin(number)
        if number not in self._there:
            for slot, copy in zip(self._slots[number], self._coming.pop(number).arrived(), strict=True):
                slot.put(copy)
            self._there.add(number)
        self._begin(following)
        self._last = number

    def _next(self, number: int) -> int:
        """Up in the forward pass, down in the backward pass, which begins with the block that was the last."""
        top = len(self.blocks) - 1
        if number == top:
            return max(0, top - 1) if torch.is_grad_enabled() else 0
        if number == 0 or number > self._last:
            return number + 1
        return number - 1

    def _begin(self, number: int) -> None:
        if number not in self._there and number not in self._coming:
            self._coming[number] = self.mover.begin(self._homes[number])

    def _send(self, number: int) -> None:
        """Nothing is copied: frozen weights are at home as they were."""
        self._coming.pop(number, None)
        self._there.discard(number)
        for slot, home in zip(self._slots[number], self._homes[number], strict=True):
            slot.put(home)


def _slots(module: nn.Module) -> Iterable[Slot]:
    for owner in (module._parameters, module._buffers):
        yield from (Slot(owner, name) for name, tensor in owner.items() if tensor is not None)


def _like(home: Tensor, tensor: Tensor) -> Tensor:
    return nn.Parameter(home, requires_grad=False) if isinstance(tensor, nn.Parameter) else home


def offload(blocks: Sequence[nn.Module], count: int, mover: Mover) -> Offloader:
    """Sends the `count` largest of the blocks home. UserError if there are not so many."""
    if count > len(blocks):
        raise UserError(f"offload_blocks {count}: this model has {len(blocks)} blocks", hint=f"{len(blocks)} at most")
    sizes = [sum(s.tensor.nbytes for module in block.modules() for s in _slots(module)) for block in blocks]
    largest = sorted(range(len(blocks)), key=lambda n: -sizes[n])[:count]
    return Offloader([blocks[n] for n in sorted(largest)], mover)


def place(
    unet: Any,
    options: MemoryOptions,
    device: torch.device,
    dtype: torch.dtype,
    blocks: Sequence[nn.Module] | None = None,
    layout: torch.memory_format = torch.contiguous_format,
    idle: Sequence[nn.Module] = (),
) -> None:
    """Brings a model in RAM to its device and type, storing and keeping no more than it is told to.

    `blocks`: of a model that is no UNet, in the order in which they are run. `layout`: of its convolutions. `idle`:
    modules that are never run, and stay in RAM.
    """
    blocks = blocks_of(unet) if blocks is None else blocks
    if options.storage is not None:  # from the file's own numbers, and before the card sees them
        quantise_layers(unet, blocks, options.storage, dtype)
    for layer in unet.modules():
        restore(layer)
    _cast(unet, dtype, layout)
    away = offload(blocks, options.offloaded, CudaMover(device)).blocks if options.offloaded else ()
    _rest_to(unet, [*away, *idle], device)
    inside = {id(module) for block in away for module in block.modules()}
    if options.compiled:
        kept = options.cache and options.cache / COMPILED
        compile_blocks([part for block in blocks for part in pieces_of(block)], kept)
    if options.checkpointing:
        for block in blocks:
            if id(block) not in inside:
                for part in pieces_of(block):
                    around(part)


def bring(model: nn.Module, device: torch.device, room: int | None = None) -> None:
    """Brings a frozen model that is only asked to its device: whole if it fits there, else its blocks (of the longest
    list in it) each for its turn.

    `room`: bytes that are free there; None: those of a card; others are taken to suffice.
    """
    if room is None and device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        allowed = torch.cuda.get_per_process_memory_fraction(numbered(device)) * total  # where a plan is told how much
        room = round(min(free + torch.cuda.memory_reserved(device), allowed)) - torch.cuda.memory_allocated(device)
    tensors = {id(s.tensor): s.tensor.nbytes for module in model.modules() for s in _slots(module)}
    if room is None or sum(tensors.values()) + ASKED <= room:
        model.to(device)
        return
    blocks = layers_of(model)
    Offloader(blocks, PlainMover(device))
    _rest_to(model, blocks, device)


def _rest_to(model: nn.Module, away: Iterable[nn.Module], device: torch.device) -> None:
    inside = {id(module) for block in away for module in block.modules()}
    for module in model.modules():
        if id(module) not in inside:
            module._apply(lambda t: t.to(device), recurse=False)


def _cast(model: Any, dtype: torch.dtype, layout: torch.memory_format) -> None:
    """To a type. What its library keeps in float32, such as the scales of norms around 0, stays that precise."""
    words = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    whole = {name: p.detach().float() for name, p in model.named_parameters() if words & set(name.split("."))}
    model._apply(lambda t: cast(t, dtype, layout) if t.is_floating_point() else t)
    for name, numbers in whole.items():
        model.get_parameter(name).data = numbers


def cast(t: Tensor, dtype: torch.dtype, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    """A tensor in a type, and one of four dimensions in a layout: the numbers of `to`.

    On a CPU it goes piece by piece where that is quicker, since torch has each of two steps by vectors, and the one
    that is both not: from float16 to bfloat16 by float32 (half of the time or less), to a type before a layout (0.7).
    """
    layout = layout if t.ndim == 4 else torch.contiguous_format
    halves = (t.dtype, dtype) == (torch.float16, torch.bfloat16)
    turned = t.dtype != dtype and not t.is_contiguous(memory_format=layout)
    if t.device.type != "cpu" or t.ndim == 0 or not (halves or turned):
        return t.to(dtype, memory_format=layout) if t.ndim == 4 else t.to(dtype)
    out = torch.empty(t.shape, dtype=dtype, memory_format=layout)
    between = torch.float32 if halves else dtype
    rows = max(1, PIECE // max(1, t[:1].numel()))
    for begin in range(0, len(t), rows):
        out[begin : begin + rows] = t[begin : begin + rows].to(between)
    return out


def pieces_of(block: Any) -> Sequence[nn.Module]:
    """What is computed again, or compiled, at a time: of a deep transformer a block, else all that they keep is
    there at once (for ten of 1280 channels, one picture at 1024 px: 727 MiB measured on the CPU; a tenth for one)."""
    inner = getattr(block, "transformer_blocks", ())
    return list(inner) if len(inner) > 1 else [block]
