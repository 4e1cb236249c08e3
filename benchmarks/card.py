"""A graphics card: seconds a step, memory, share of the card's rate; this project's ways and its peers', in turn.

    python benchmarks/card.py [--rows "sd15:1|sdxl:1|flux1:1=usual;compile"] [--peers DIR] [--rounds 5] [--out FOLDER]

Models of the true size with random weights, made on the card; bf16, rank 16 in the layers of attention and
feed-forward, AdamW, gradients clipped, the loss read at every step as all of these trainers do. Latents and texts are
ready in RAM. Arms of one row stand on the card together and take their steps in turn, but for models of 10 GB and more,
which come one after the other. It writes card.json and card.md.

The peers: the step of diffusers' example (its model as it comes, LoRA by peft), once as the script has it, LoRA in
float32 under autocast, and once all in bf16, with `compile_repeated_blocks` as a third; with --peers, what lies in DIR:
kohya's sd-scripts for Stable Diffusion 1.5 (see peers.py), OneTrainer and ai-toolkit (see peers_onetrainer.py and
peers_aitoolkit.py).
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import peers_aitoolkit
import peers_card
import peers_onetrainer
import peft
import torch
from counts import KLEIN_4B
from memory import SD15, library_unet
from peers import arms as peer_arms
from torch import Tensor, nn
from torch.nn import functional as F

from lora_scripts.adapters.inject import inject
from lora_scripts.adapters.layer import LoraLayer
from lora_scripts.adapters.masters import Masters
from lora_scripts.compute import attention
from lora_scripts.compute.memory import MemoryOptions
from lora_scripts.families.base import Batch, LoadOptions, Place
from lora_scripts.families.black_forest.flux2_model import ask as ask_flux2
from lora_scripts.families.flow import model as flow_model
from lora_scripts.families.flow.model import FlowFamily
from lora_scripts.families.flux1 import layout as flux1
from lora_scripts.families.flux1.check import FILES as FLUX1
from lora_scripts.families.flux1.facts import FACTS as FLUX1_FACTS
from lora_scripts.families.flux1.model import ask as ask_flux1
from lora_scripts.families.flux2.check import FILES as FLUX2
from lora_scripts.families.flux2.facts import FACTS as FLUX2_FACTS
from lora_scripts.families.sd.denoiser import Denoiser
from lora_scripts.families.sd.load import build_unet
from lora_scripts.families.sd.settings import Settings
from lora_scripts.families.sd1.model import StableDiffusion1
from lora_scripts.families.sdxl.layout import STANDARD as SDXL
from lora_scripts.families.sdxl.model import Sdxl
from lora_scripts.families.zimage import layout as zimage
from lora_scripts.families.zimage.check import FILES as ZIMAGE
from lora_scripts.families.zimage.facts import FACTS as ZIMAGE_FACTS
from lora_scripts.families.zimage.model import ask as ask_zimage
from lora_scripts.losses.diffusion import alphas_cumprod
from lora_scripts.losses.flow import Sigmas
from lora_scripts.train.loop import Hooks, LoopSettings, run_loop
from lora_scripts.train.optim import Rates
from lora_scripts.train.passes import LaunchedPasses, RecordedPasses
from lora_scripts.train.state import RunState

RANK, CARD = 16, torch.device("cuda")
Way = Callable[[int], list[float]]
"""Takes so many steps; gives their losses."""


def made(model: Any) -> Any:
    """A model on the meta device with random weights on the card, in bf16."""
    model = model.to(torch.bfloat16).to_empty(device=CARD).requires_grad_(False).eval()
    g = torch.Generator(CARD).manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.fill_(1.0) if "norm" in name and name.endswith(("weight", "scale")) else p.normal_(0, 0.02, generator=g)
    return model


@dataclass(frozen=True)
class Model:
    """One of the true size."""

    words: str
    family: str
    build: Callable[[], Any]
    """On the meta device."""
    made: Callable[[int, int], Batch]
    """(pictures, seed)"""
    wrap: Callable[[Any, LoadOptions], Any]
    """The model as a family that can be asked for a loss."""
    work: float
    """Floating point operations of one picture's step at least: those of its products and convolutions twice (forward,
    and back to the inputs alone), of its attention three times; counted by torch's flop counter on fake tensors, but
    attention's by hand (4 x places x tokens x width), as that counter knows only some of its kernels."""
    library: Callable[[], Any] | None = None
    """As diffusers has it, where ours is another."""
    large: bool = False
    """That its ways come one after the other, each with the card for itself; else they take their steps in turn."""

    def theirs(self) -> Any:
        """As diffusers has it."""
        return (self.library or self.build)()

    def batches(self, count: int) -> Iterator[Batch]:
        """Without end: a few, as a run reads them from memory, each time with other noise."""
        few, seed = [self.made(count, n) for n in range(4)], 0
        while True:
            generators = [torch.Generator().manual_seed(100 * seed + n) for n in range(count)]
            yield replace(few[seed % len(few)], generators=generators)
            seed += 1


def random_batch(shape: tuple[int, ...], texts: dict[str, tuple[int, ...]], count: int, seed: int) -> Batch:
    g = torch.Generator().manual_seed(seed)
    mean = torch.randn(count, *shape, generator=g)
    told = {name: torch.randn(count, *rest, generator=g) for name, rest in texts.items()}
    if "states" in told:
        told |= {"lengths": torch.full((count,), told["states"].shape[1])}
    side = 8 * shape[-1]
    places = Place((side, side), (0, 0), (side, side)).numbers().expand(count, -1)
    latents = {"mean": mean, "std": 0.1 * mean.abs()}
    return Batch(latents, [""] * count, told, [""] * count, [], places)


def unet_family(kind: Any, unet: Any, options: LoadOptions) -> Any:
    """A family of which the UNet alone is there: more takes no part in a step."""
    family = object.__new__(kind)
    family.device, family.dtype = options.device, options.dtype
    family.settings = Settings.of({})
    family.denoiser = Denoiser(unet, options.memory, options.device, options.dtype)
    return family


def flow_family(facts: Any, ask: Any, sigmas: Sigmas, patch: int, transformer: Any, options: LoadOptions) -> FlowFamily:
    lists = [child for child in transformer.children() if isinstance(child, nn.ModuleList)]
    blocks = [block for blocks in lists for block in blocks if len([*block.children()]) > 1]
    nothing: Any = None
    encoder: Any = SimpleNamespace(told=lambda captions, texts: texts)  # they are encoded
    way = flow_model.Way(blocks, (), 0, ask, sigmas, patch)
    return FlowFamily(facts, transformer, way, encoder, nothing, (1024, 1024), options)


MODELS = {
    "sd15": Model(
        "Stable Diffusion 1.5, 512 px",
        "sd1",
        lambda: build_unet(SD15.unet),
        partial(random_batch, (4, 64, 64), {"states": (77, 768)}),
        partial(unet_family, StableDiffusion1),
        1.73e12,
        lambda: library_unet(SD15.unet),
    ),
    "sdxl": Model(
        "SDXL, 1024 px",
        "sdxl",
        lambda: build_unet(SDXL.unet),
        partial(random_batch, (4, 128, 128), {"states": (77, 2048), "pooled": (1280,)}),
        partial(unet_family, Sdxl),
        14.3e12,
        lambda: library_unet(SDXL.unet),
        large=True,
    ),
    "zimage": Model(
        "Z-Image, 1024 px",
        "zimage",
        lambda: ZIMAGE.build(zimage.STANDARD),
        partial(random_batch, (16, 128, 128), {"states": (128, 2560)}),
        partial(flow_family, ZIMAGE_FACTS, ask_zimage, Sigmas(3.0), 2),
        122e12,
        large=True,
    ),
    "klein": Model(
        "FLUX.2 klein 4B, 1024 px",
        "flux2",
        lambda: FLUX2.build(KLEIN_4B),
        partial(random_batch, (128, 64, 64), {"states": (512, 7680)}),
        partial(flow_family, FLUX2_FACTS, ask_flux2, Sigmas(3.0), 1),
        76e12,
        large=True,
    ),
    "flux1": Model(
        "FLUX.1, 1024 px",
        "flux1",
        lambda: FLUX1.build(flux1.STANDARD),
        partial(random_batch, (16, 128, 128), {"states": (512, 4096), "pooled": (768,)}),
        partial(flow_family, FLUX1_FACTS, ask_flux1, Sigmas(3.0), 2),
        164e12,
        large=True,
    ),
}


def sites(model: Any, root: str, groups: Any) -> list[str]:
    """Paths of the layers of attention and feed-forward."""
    paths = [path for path, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    return [p for p in paths if any(groups[group](f"{root}.{p}") for group in ("attention", "feed_forward"))]


# --- this project -----------------------------------------------------------------------------------------------------


class PlainLayer(LoraLayer):
    """The layer as it was: two products beside the frozen one, each remembered by autograd."""

    fused = False  # type: ignore[assignment]


def project(model: Model, count: int, *, tape: bool, plain: bool = False, **memory: Any) -> Way:
    """By `train.loop`. `tape`: recorded and played."""
    from lora_scripts.families.table import by_name

    facts = by_name(model.family)
    base = made(model.theirs() if plain else model.build())
    chosen = sites(base, facts.image_root, facts.groups)
    family = model.wrap(base, LoadOptions(CARD, torch.bfloat16, memory=MemoryOptions(**memory)))
    kind = PlainLayer if plain else LoraLayer
    roots = {facts.image_root: base}
    layers: Any = inject(
        roots, [f"{facts.image_root}.{path}" for path in chosen], lambda _, layer: kind(layer, RANK, float(RANK))
    )
    for layer in layers.values():
        layer.place(CARD)
    masters = Masters(layers.values())
    parameters = [p for layer in layers.values() for p in layer.values().values()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    optimizer.register_step_post_hook(lambda *_: masters.refresh())
    scaler = torch.amp.GradScaler("cuda", enabled=False)
    go: Any = (RecordedPasses if tape else LaunchedPasses)(family, family.objective, scaler, masters)

    for group in optimizer.param_groups:
        group["peak"] = group["lr"]
    state, batches = RunState(0, 0, {}, {}, {}), model.batches(count)
    hooks = Hooks(lambda _: None, lambda: None, lambda: None, lambda: False)

    def steps(first: int, total: int) -> Iterator[tuple[int, list[Any]]]:
        return go.ahead((0, [next(batches)]) for _ in range(first, total))  # type: ignore[no-any-return]

    def run(more: int) -> list[float]:
        settings = LoopSettings(state.step + more, Rates("constant"), 1.0, 0, 10**9, 0)
        run_loop(go, steps, optimizer, scaler, settings, state, hooks)
        if go.fault:
            raise RuntimeError(f"not recorded: {go.fault}")
        if tape and state.step == 3:  # how much of a step is the card's
            for one in go.recorded._tapes.values():
                print(f"    {replayed(one.graph):.1f} ms are computed in a recorded pass", flush=True)
        return state.losses[-more:]

    return run


def replayed(graph: torch.cuda.CUDAGraph) -> float:
    """Milliseconds of one playing, of five in a row."""
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(5):
        graph.replay()
    torch.cuda.synchronize()
    return 200 * (time.perf_counter() - begun)


# --- diffusers' example -----------------------------------------------------------------------------------------------


def example(model: Model, count: int, *, half: bool, compiled: bool = False, checkpointing: bool = False) -> Way:
    """`half`: the LoRA in bf16, too; else in float32, under autocast, as the script has it."""
    from lora_scripts.families.table import by_name

    facts = by_name(model.family)
    base = made(model.theirs())
    if checkpointing:
        base.enable_gradient_checkpointing()
        base.train()
    ends = sites(base, facts.image_root, facts.groups)
    base.add_adapter(peft.LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=ends))
    parameters = [p.requires_grad_() for name, p in base.named_parameters() if "lora_" in name]
    assert len(parameters) == 2 * len(ends), (len(parameters), len(ends))
    for p in parameters:
        p.data = p.data.to(torch.bfloat16 if half else torch.float32)
    if compiled:
        torch._dynamo.config.recompile_limit = 256
        base.compile_repeated_blocks(fullgraph=True)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    loss_of = asked(model, count, base)

    def step() -> float:
        with torch.autocast(CARD.type, torch.bfloat16, enabled=not half):
            loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return lambda more: [step() for _ in range(more)]


def asked(model: Model, count: int, base: Any, ask: Any = None) -> Callable[[], Tensor]:
    """What gives the loss of diffusers' model on the next batch, or of another one, that is asked so."""
    signal, batches = alphas_cumprod().to(CARD), model.batches(count)
    nothing: Any = None
    if model.family not in ("sd1", "sdxl"):
        ask = ask or model.wrap.args[1]  # type: ignore[attr-defined]

    def answer(noised: Tensor, batch: Batch, times: Tensor) -> Tensor:
        texts = {name: t.to(CARD, torch.bfloat16) for name, t in (batch.texts or {}).items() if name != "lengths"}
        if model.family in ("sd1", "sdxl"):
            added = nothing
            if model.family == "sdxl":
                assert batch.places is not None
                added = {"text_embeds": texts["pooled"], "time_ids": batch.places.to(CARD)}
            out: Tensor = base(noised, times, texts["states"], added_cond_kwargs=added).sample
            return out
        assert batch.texts is not None
        out = ask(base, noised, times.float() / 1000, texts | {"lengths": batch.texts["lengths"]})
        return out

    def loss() -> Tensor:
        batch = next(batches)
        latents = batch.latents["mean"].to(CARD, torch.bfloat16)
        noise, times = torch.randn_like(latents), torch.randint(0, 1000, (count,), device=CARD)
        level = signal[times].view(-1, 1, 1, 1).to(latents)
        noised = level.sqrt() * latents + (1 - level).sqrt() * noise
        return F.mse_loss(answer(noised, batch, times).float(), noise.float())

    return loss


def peer(make: peers_card.Make, model: Model, count: int) -> Way:
    """Of peers_card.py."""
    from lora_scripts.families.table import by_name

    facts = by_name(model.family)
    ends = partial(sites, root=facts.image_root, groups=facts.groups)
    task = peers_card.Task(model.family, count, RANK, CARD, model.theirs, made, ends, partial(asked, model, count))
    step = make(task)
    return lambda more: [step() for _ in range(more)]


def kohya(make: Any, model: Model, count: int) -> Way:
    """Of peers.py."""
    batches = model.batches(count)
    step, _ = make(lambda _: next(batches))
    return lambda more: [step(n) for n in range(more)]


def arms(model: Model, count: int, peers: Path | None) -> Iterator[tuple[str, Callable[[], Way]]]:
    """Name, and what makes its step, of every way that a row can be taken."""
    small = model.family in ("sd1", "sdxl")
    yield "diffusers' example as it comes", partial(example, model, count, half=False)
    yield "diffusers' example, all bf16", partial(example, model, count, half=True)
    yield "diffusers' example, blocks compiled", partial(example, model, count, half=True, compiled=True)
    if peers and model.family == "sd1":
        for name, make in peer_arms(peers, RANK, CARD):
            yield name, partial(kohya, make, model, count)
    others: list[tuple[str, peers_card.Make]] = []
    if peers and (place := peers / "OneTrainer").is_dir():
        others += peers_onetrainer.arms(place)
    if peers and (place := peers / "ai-toolkit").is_dir():
        others += peers_aitoolkit.arms(place, model.family)
    for name, theirs in others:
        yield name, partial(peer, theirs, model, count)
    yield "plain", partial(project, model, count, tape=False, plain=True)
    yield "usual", partial(project, model, count, tape=small)
    yield "usual, torch's attention", partial(by_torch, partial(project, model, count, tape=small))
    yield "usual, convolutions tried", partial(tried, partial(project, model, count, tape=small))
    yield "unrecorded", partial(project, model, count, tape=False)
    yield "compile", partial(project, model, count, tape=small, compiled=True)
    yield "compile, w8a8", partial(project, model, count, tape=small, compiled=True, storage="w8a8")
    yield "w8a8", partial(project, model, count, tape=small, storage="w8a8")
    yield "checkpointing", partial(project, model, count, tape=False, checkpointing=True)
    yield "checkpointing, compile", partial(project, model, count, tape=False, checkpointing=True, compiled=True)
    yield "diffusers' example, checkpointing", partial(example, model, count, half=True, checkpointing=True)
    yield "fp8, checkpointing", partial(project, model, count, tape=False, storage="fp8", checkpointing=True)


@dataclass
class Taken:
    """What an arm did."""

    name: str
    first: float = 0.0
    """Seconds to the end of its third step: building, compiling, recording."""
    seconds: list[float] = None  # type: ignore[assignment]
    """Of a step, one number a round."""
    losses: list[float] = None  # type: ignore[assignment]
    allocated: int = 0
    reserved: int = 0
    fault: str = ""


def by_torch(make: Callable[[], Way]) -> Way:
    """A way with the kernels of attention that torch takes of itself."""

    def act(what: Callable[[], Any]) -> Any:
        with patch.object(attention, "cudnn_first", lambda device: False):
            return what()

    way = act(make)
    return lambda more: act(lambda: way(more))  # type: ignore[no-any-return]


def tried(make: Callable[[], Way]) -> Way:
    """A way with cuDNN's algorithms for convolutions tried, in place of guessed."""

    def act(what: Callable[[], Any]) -> Any:
        torch.backends.cudnn.benchmark = True
        try:
            return what()
        finally:
            torch.backends.cudnn.benchmark = False

    way = act(make)
    return lambda more: act(lambda: way(more))  # type: ignore[no-any-return]


def begin(name: str, make: Callable[[], Way]) -> tuple[Taken, Way | None]:
    taken, begun = Taken(name, seconds=[], losses=[]), time.perf_counter()
    try:
        step = make()
        taken.losses = step(3)
    except Exception as error:
        taken.fault = f"{type(error).__name__}: {str(error)[:300]}"
        return taken, None
    torch.cuda.synchronize()
    taken.first = time.perf_counter() - begun
    return taken, step


def go_round(taken: Taken, step: Way, count: int) -> None:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    taken.losses += step(count)
    torch.cuda.synchronize()
    taken.seconds.append((time.perf_counter() - begun) / count)
    taken.allocated, taken.reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()


def free() -> None:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


def row(key: str, count: int, chosen: list[str], peers: Path | None, rounds: int, steps: int) -> list[Taken]:
    """All arms of one row."""
    model, found = MODELS[key], []
    running: list[tuple[Taken, Way]] = []
    for name, make in arms(model, count, peers):
        if chosen and name not in chosen:
            continue
        held = torch.cuda.memory_allocated()
        taken, step = begin(name, make)
        found.append(taken)
        print(f"  {key} {count} {name}: {taken.first:.1f} s to the third step {taken.fault}", flush=True)
        if step is None:
            free()
        elif model.large:
            for _ in range(rounds):
                go_round(taken, step, steps)
            taken.allocated -= held
            del step
            free()
        else:
            running.append((taken, step))
    for _ in range(rounds):
        for taken, step in running:
            go_round(taken, step, steps)
    running.clear()
    free()
    return found


def alone(key: str, count: int, name: str, peers: Path | None) -> tuple[int, int]:
    """(allocated, reserved) at most, of an arm with the card for itself."""
    for other, make in arms(MODELS[key], count, peers):
        if other == name:
            free()
            taken, step = begin(name, make)
            if step is not None:
                go_round(taken, step, 3)
            del step
            free()
            return taken.allocated, taken.reserved
    return 0, 0


def rate() -> float:
    """Operations a second of a large matrix product in bf16, of random numbers."""
    a, b = (torch.randn(8192, 8192, device=CARD, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(13):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        a @ b
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return 2 * 8192**3 / median(times[3:])


def page(about: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    lines = [", ".join(f"{key} {value}" for key, value in about.items()), ""]
    lines += [
        "| model, batch | | ms a step (least to most) | pictures a second | of the card's rate | GiB at most"
        " | s to the third step |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        if r["fault"]:
            lines.append(f"| {r['words']}, {r['batch']} | {r['name']} | {r['fault']} | | | | |")
            continue
        least, usual, most = (1000 * f(r["seconds"]) for f in (min, median, max))
        share = r["work"] * r["batch"] / median(r["seconds"]) / about["rate"] if r["work"] else float("nan")
        memory = f"{r['allocated'] / 2**30:.2f} ({r['reserved'] / 2**30:.2f} reserved)" if r["allocated"] else ""
        lines.append(
            f"| {r['words']}, {r['batch']} | {r['name']} | {usual:.1f} ({least:.1f} to {most:.1f}) |"
            f" {1000 * r['batch'] / usual:.2f} | {share:.0%} | {memory} | {r['first']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="sd15:1|sd15:4|sd15:16|sdxl:1", help="model:batch or model:batch=way;way")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="of a round")
    parser.add_argument("--memory", action="store_true", help="measure each arm's memory alone, too")
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--out", type=Path, default=Path())
    o = parser.parse_args()
    # torch settles its own order of attention's kernels at the first one; a context that sets another, entered before,
    # would put back one that it never had.
    one = torch.ones(1, 1, 1, 64, device=CARD, dtype=torch.bfloat16)
    F.scaled_dot_product_attention(one, one, one)
    about: dict[str, Any] = {"card": torch.cuda.get_device_name(), "rate": rate()}
    about |= {package: version(package) for package in ("torch", "diffusers", "peft", "transformers")}
    rows: list[dict[str, Any]] = []
    for entry in o.rows.split("|"):
        which, _, names = entry.partition("=")
        key, _, count = which.partition(":")
        chosen = [name.strip() for name in names.split(";") if name.strip()]
        for taken in row(key, int(count), chosen, o.peers, o.rounds, o.steps):
            if o.memory and not taken.fault and not MODELS[key].large:
                taken.allocated, taken.reserved = alone(key, int(count), taken.name, o.peers)
            rows.append({"words": MODELS[key].words, "batch": int(count), "work": MODELS[key].work, **vars(taken)})
            if not MODELS[key].large and not o.memory:
                rows[-1]["allocated"] = 0  # others stood beside it
        o.out.mkdir(parents=True, exist_ok=True)
        (o.out / "card.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
        (o.out / "card.md").write_text(page(about, rows))
    print(page(about, rows))


if __name__ == "__main__":
    main()
