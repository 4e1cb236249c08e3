"""When memory runs out: one line that says where, and what to lower."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from lora_scripts.compute.meter import ran_out
from lora_scripts.config.schema import TrainConfig
from lora_scripts.errors import UserError, raise_all
from lora_scripts.events import Note, Sink
from lora_scripts.run.configs import can_be_rounded, smaller_batches
from lora_scripts.train.encoded import Unfed
from lora_scripts.train.loop import Halfway, NoRoom
from lora_scripts.train.state import RunState

ELSEWHERE = "close what else needs memory"
OFFLOADED = 8
"""Blocks of the base that a card may leave in RAM without much waiting; every base has more."""


@contextmanager
def enough_memory(doing: str, hint: str) -> Iterator[None]:
    """Within it a lack of memory is a UserError: "memory ran out while …"."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        raise UserError(f"memory ran out while {doing}", hint=hint) from None


@contextmanager
def rescuing(
    save: Callable[[], None],
    saved: Callable[[], int],
    state: RunState,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    config: TrainConfig,
    *,
    texts: bool = False,
) -> Iterator[None]:
    """Within it a lack of memory is one UserError, after what was learnt until the last whole step is saved; likewise
    a picture that can neither be read from the cache nor be encoded again.

    `saved`: the step of the last state on the disk, 0 for none; `texts`: as of `lower`.
    """
    unfed: Unfed | None = None
    try:
        yield
        return
    except Unfed as error:
        unfed, whole = error, True
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        whole = not isinstance(error, Halfway)
        _release(error, optimizer)
    faults: list[UserError] = []
    if whole and state.step > saved():
        state.scaler = scaler.state_dict()
        try:
            save()
        except UserError as fault:
            faults.append(fault)
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error):
                raise
    told = f"; step {saved()} is saved" if saved() else ""
    if unfed is not None:
        mend = unfed.hint or ("go on with --resume" if saved() else None)
        raise_all([UserError(f"{unfed.message}{told}", file=unfed.file, hint=mend), *faults])
    card = torch.cuda.is_available() and config.device != "cpu"
    hint = lower(config, card=card, begun=saved() > 0, texts=texts)
    raise_all([UserError(f"memory ran out after step {state.step}{told}", hint=hint), *faults])


def adapting(
    run: Callable[[int | None], bool],
    config: TrainConfig,
    state: RunState,
    optimizer: torch.optim.Optimizer,
    sink: Sink,
) -> bool:
    """`run(most)`, which takes batches in pieces of at most `most` from `state.step` on, None: whole.

    With `on_oom: adapt` a step that memory does not suffice for is taken again in halves, and so are all that follow.
    The pictures of each step, and what is drawn for them, stay the same. It stands in the state: going on is exact.
    """
    while True:
        most = state.smaller[-1][1] if state.smaller else None
        try:
            return run(most)
        except NoRoom as error:
            now = most or config.batch_size
            if config.on_oom != "adapt" or now == 1:
                raise
            _release(error, optimizer)
        half = now - now // 2
        state.smaller.append([state.step, half])
        text = (
            f"memory ran out in step {state.step + 1}: from here on {_halves(half)}, accumulated, which learns the same"
        )
        sink(Note(f"note: {text}"))


def smaller_words(state: RunState) -> str:
    """For the table: how batches became smaller on the way; empty if they did not."""
    return "; ".join(f"from step {step + 1} on {_halves(most)}" for step, most in state.smaller)


def _halves(most: int) -> str:
    return f"batches come in pieces of at most {most}"


def _release(error: BaseException, optimizer: torch.optim.Optimizer) -> None:
    """Gives back what a step that ran out of memory held: what its frames hold, gradients, the reserve of torch."""
    for one in (error, error.__cause__):
        traceback.clear_frames(one.__traceback__ if one else None)
    optimizer.zero_grad(set_to_none=True)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def lower(config: TrainConfig, *, card: bool, begun: bool, texts: bool = False) -> str:
    """What to change so that a step needs less memory; for a run that has `begun`, first what it can go on with.

    `texts`: of a language model, whose blocks cannot be in RAM.
    """
    if begun and not config.gradient_checkpointing:
        return "go on with --resume gradient_checkpointing=true: the same LoRA with less memory, more slowly"
    if begun and config.batch_size > 1 and config.on_oom != "adapt":
        return "go on with --resume on_oom=adapt: half the batch and twice the accumulation, which learns the same"
    if begun and card and not config.offload_blocks and not texts:
        return f"go on with --resume offload_blocks={OFFLOADED}: the same LoRA with less memory, more slowly"
    changes = [] if config.gradient_checkpointing else ["gradient_checkpointing: true"]
    if (half := next(smaller_batches(config, config.batch_size), None)) is not None:
        changes.append(f"{' with '.join(f'{key}: {count}' for key, count in half.items())}, which learns the same")
    elif can_be_rounded(config):
        changes.append("base_precision: int8")
    else:
        changes.append("a smaller max_length" if texts else "a lower resolution")
    where = " and start in another output_dir" if begun else ""
    return f"write {' or '.join(changes)}{where}; lora-scripts plan finds what fits"
