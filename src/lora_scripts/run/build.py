"""What is trained: the base model of a config with adapters in it, and the optimizer over them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.amp import GradScaler

from lora_scripts.adapters.dora import DoraLayer
from lora_scripts.adapters.inject import assign, inject
from lora_scripts.adapters.layer import Adapter, LoraLayer
from lora_scripts.adapters.lycoris import KINDS, LycorisLayer
from lora_scripts.adapters.pissa import PissaLayer
from lora_scripts.adapters.together import share_down
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.compute.compiled import check_compiler
from lora_scripts.compute.device import DTYPES
from lora_scripts.compute.memory import TILE, MemoryOptions
from lora_scripts.config.schema import TrainConfig
from lora_scripts.config.types import TargetRule
from lora_scripts.errors import UserError, raise_all
from lora_scripts.families import table
from lora_scripts.families.base import CaptionEncoder, LoadOptions
from lora_scripts.families.facts import Facts
from lora_scripts.formats.gguf import packed_types
from lora_scripts.loras.on_model import check_fits, values_of
from lora_scripts.loras.reading import Change
from lora_scripts.loras.training_adapter import aided
from lora_scripts.loras.words import read_words
from lora_scripts.losses.diffusion import Objective
from lora_scripts.losses.flow import Sigmas
from lora_scripts.losses.noise import NoiseSettings, Timesteps
from lora_scripts.run.base_files import BaseFiles, file_digest, model_files
from lora_scripts.run.init_lora import Size, default_size, fit_all, read_adapter, size_of
from lora_scripts.run.parts import Model
from lora_scripts.run.pivotal import group_of, make_words
from lora_scripts.train.optim import Group, Rates, build_optimizer
from lora_scripts.train.passes import LaunchedPasses, Passes, RecordedPasses

DIGESTS = "digests.json"


def build_model(
    config: TrainConfig,
    device: torch.device,
    precision: str,
    initial: Mapping[str, Change],
    first: Callable[[CaptionEncoder], None] | None = None,
    cache: Path | None = None,
) -> Model:
    """Loads the base and puts the LoRA in, with the weights of `init_lora` if given. UserError for a mistake.

    `first`: as of `LoadOptions`; `cache`: a folder in which digests of files are remembered, and what was compiled.
    """
    aid = read_adapter(config)
    settings = table.settings(config.base_model, config.family_settings)
    memory = replace(memory_options(config, device), resting=True, cache=cache, encoding=encoding(precision, device))
    facts, record = table.find(config.base_model), cache and cache / DIGESTS
    files = BaseFiles(model_files(config, facts))  # seen before they are opened
    whole = config.vae is None
    read = files.begin(lambda key: facts.unread(key, whole), record=record, kind="" if whole else "its VAE unread")
    known, beside = partial(files.remembered, record), partial(file_digest, record=record)
    texts = config.text_encoder or ()
    options = LoadOptions(device, DTYPES[precision], config.vae, texts, first, memory, known, beside, settings)
    family = table.load_pictures(config.base_model, options)
    facts, rates = family.facts, config.text_encoder_rates(facts.text_roots)
    layers = family.trainable((facts.image_root, *rates))
    if initial:
        assert config.init_lora is not None
        check_fits(initial, family, config.init_lora)
    below = [*initial, *(aid.modules if aid is not None else ())]
    if any(path.partition(".")[0] in facts.text_roots for path in below):
        family.encode_text([""])  # awake: what is put in lies on its own numbers
    if aid is not None:  # under what is trained, whose paths are known by now
        family = aided(family, aid.modules, aid.path)
    image = assign([p for p in layers if p.startswith(facts.image_root + ".")], config.rules, facts.groups)
    text = [p for p in layers if p.partition(".")[0] in rates]
    rules = {**image, **dict.fromkeys(text, TargetRule(match="*"))}
    usual = default_size(config, initial)
    sizes = {path: size_of(config, weights, rules.get(path)) for path, weights in initial.items()}
    make = maker(config, rules, sizes, usual)
    if text:
        family.encode_text([""])  # onto the device: its LoRA, EMA and moments are made where it is
    injected = inject(family.roots, dict.fromkeys([*rules, *initial]), make, seed=config.seed)
    for layer in injected.values():
        layer.place(device)  # the frozen one may be in RAM
    share_down(injected, one_a_each(config, injected, rules, facts))
    resized = begin(injected, initial, sizes, rules)
    words = make_words(config, family, read_words(config.init_lora) if config.init_lora else {})
    groups = [*groups_of(config, injected, rules, rates), *group_of(config, words)]
    optimizer = build_optimizer(config.optimizer, groups, config.weight_decay)
    (rank, alpha), _ = Counter((layer.rank, layer.alpha) for layer in injected.values()).most_common(1)[0]
    of_aid, digest = aid.sha256 if aid else "", read().get(config.base_model, "")
    return Model(injected, optimizer, rank, alpha, digest, files, resized, words, of_aid, family=family)


def encoding(precision: str, device: torch.device) -> torch.dtype:
    """In which a VAE is to make latents. float16 would give some VAEs' NaN."""
    return torch.bfloat16 if precision == "bf16" and device.type in ("cpu", "cuda") else torch.float32


def maker(
    config: TrainConfig,
    rules: Mapping[str, TargetRule],
    sizes: Mapping[str, Size],
    usual: Size,
    dora: type[LoraLayer] = DoraLayer,
) -> Callable[[str, nn.Module], Adapter]:
    """How a layer is wrapped: the adapter of the config at the rank and alpha of its rule, or of `init_lora`.

    `dora`: which kind of DoRA the programs that will read the file have.
    """

    def make(path: str, layer: nn.Module) -> Adapter:
        rule, dropout = rules.get(path), config.lora_dropout if path in rules else 0.0
        rank, alpha = usual.rank, usual.alpha
        if path in sizes:
            rank, alpha = sizes[path].rank, sizes[path].alpha
        elif rule is not None and (rule.rank or rule.alpha):
            # A rank of its own keeps the scale, unless alpha is given too.
            own = rule.rank or rank
            rank, alpha = own, rule.alpha or alpha / rank * own
        if config.rank_stabilised and path not in sizes:
            # alpha / sqrt(rank) (Kalajdzievski 2023), written as the alpha that any reader divides by the rank
            alpha = alpha * math.sqrt(rank)
        if path in sizes and (leaves := sizes[path].leaves) is not None:
            begun = LycorisLayer.of_leaves(layer, leaves)
            begun.rank, begun.alpha = rank, alpha
            return begun
        if config.adapter in KINDS:
            return LycorisLayer(layer, config.adapter, rank, alpha)
        kinds: dict[str, type[LoraLayer]] = {"lora": LoraLayer, "dora": dora, "pissa": PissaLayer}
        made = kinds[config.adapter](layer, rank, alpha, dropout)
        # Of a layer with one output ComfyUI takes a length for each input for the one of its output.
        one_row = isinstance(made, DoraLayer) and made.frozen.weight.shape[0] == 1
        return LoraLayer(layer, rank, alpha, dropout) if one_row else made

    return make


def one_a_each(
    config: TrainConfig, layers: Mapping[str, Adapter], rules: Mapping[str, TargetRule], facts: Facts
) -> list[list[str]]:
    """With `fused_qkv` the paths of the trained layers that are one in the published file. UserError where there are no
    two of one, or two of different sizes."""
    if not config.fused_qkv:
        return []
    trained = [[path for path in group if path in rules] for group in facts.names().together]
    found = [paths for paths in trained if len(paths) > 1]
    if not found:
        text = "fused_qkv has no effect: of the layers that would have one A, targets train one at most"
        raise UserError(text, hint="leave it out")
    for paths in found:
        if len({(layers[path].rank, layers[path].alpha) for path in paths}) > 1:
            text = f"fused_qkv: {paths[0]} and its neighbours have different ranks or alphas"
            raise UserError(text, hint="give them the same, or leave fused_qkv out")
    return found


def groups_of(
    config: TrainConfig, layers: Mapping[str, Adapter], rules: Mapping[str, TargetRule], text: Mapping[str, float]
) -> Iterable[Group]:
    """One group for each learning rate: those of the text encoders, those of `targets`, and LoRA+'s of B.

    `text`: part -> rate, of the text encoders that are trained.
    """
    rates: dict[tuple[str, float], list[str]] = {}
    for path, rule in rules.items():
        part = path.partition(".")[0]
        rates.setdefault((part, text.get(part) or rule.lr or config.learning_rate), []).append(path)
    several = Counter(part for part, _ in rates)
    for (part, rate), paths in rates.items():
        label = f"{part} {rate:g}" if several[part] > 1 else part
        late = [p for path in paths for p in layers[path].late()] if config.lora_plus_ratio != 1 else []
        ids = {id(p) for p in late}
        window = (config.text_encoder_start, config.text_encoder_stop) if part in text else (0, None)
        every = {id(p): p for path in paths for p in layers[path].values().values()}  # an A may be that of several
        early = [p for key, p in every.items() if key not in ids]
        yield Group(label, early, rate, *window)
        if late:  # Hayou et al. 2024: B needs a higher rate than A
            yield Group(f"{label} B", late, rate * config.lora_plus_ratio, *window)


def rates_of(config: TrainConfig) -> Rates:
    """The learning rate over the run, as the keys say."""
    return Rates(config.effective_lr_schedule, config.warmup_steps, config.lr_cycles, config.lr_power)


def begin(
    layers: Mapping[str, Adapter],
    initial: Mapping[str, Change],
    sizes: Mapping[str, Size],
    rules: Mapping[str, TargetRule],
) -> str:
    """Gives the layers the weights of `init_lora`; those that it alone has are applied as they are, and not trained.
    What became of its ranks, in words."""
    begun, resized = fit_all(initial, sizes, lambda path: layers[path].values()["down"].detach().cpu())
    for path, change in begun.items():
        layers[path].load(values_of(change) if isinstance(change, LoraWeights) else change)
    for path, layer in layers.items():
        for p in layer.values().values():
            p.requires_grad_(path in rules)
    return resized


def objective_of(c: TrainConfig, base: Objective) -> Objective:
    """Every key of the group "Objective", as the losses take it, of a base that was made with `base`."""
    own = base.sigmas if c.timestep_shift is None else Sigmas()
    return replace(
        base,
        sigmas=own,
        min_snr_gamma=c.min_snr_gamma,
        debiased=c.debiased_estimation,
        weighting=c.loss_weighting,
        measure=c.loss,
        huber_delta=c.huber_delta,
        noise=NoiseSettings(
            c.noise_offset, c.multires_noise_iterations, c.multires_noise_discount, c.input_perturbation
        ),
        timesteps=Timesteps(
            c.timestep_sampling,
            c.timestep_mean,
            c.timestep_std,
            c.timestep_mode_scale,
            c.timestep_shift or 1.0,
            c.timestep_min,
            c.timestep_max,
        ),
    )


def passes_of(c: TrainConfig, model: Model, objective: Objective, scaler: GradScaler, *, cached: bool) -> Passes:
    """How batches are computed: recorded and played, where that is quicker and possible, else kernel by kernel.

    `cached`: whether captions come encoded.
    """
    family = model.family
    recorded = (
        family.device.type == "cuda"
        and c.cuda_graphs == "auto"
        and family.facts.small_kernels
        and cached
        and not (c.lora_dropout or c.offload_blocks or model.words)
        and c.base_precision != "nf4"
        and model.masters.holds(model.trained)
    )
    kind = RecordedPasses if recorded else LaunchedPasses
    return kind(family, objective, scaler, model.masters, model.off)


def memory_options(config: TrainConfig, device: torch.device) -> MemoryOptions:
    """Every key of the groups "Memory" and "Speed", for a device. UserErrors for what does nothing on it, or cannot."""
    faults = []
    if config.offload_blocks and device.type != "cuda":
        where = "the CPU" if device.type == "cpu" else device.type
        faults.append(UserError(f"offload_blocks has no effect on {where}", hint="leave offload_blocks out"))
    if config.base_precision in ("fp8", "nf4", "w8a8") and device.type == "mps":
        text = f"base_precision {config.base_precision} is not known to Apple's chip"
        faults.append(UserError(text, hint="write base_precision: int8"))
    if config.compile:
        try:
            check_compiler(device)
        except UserError as fault:
            faults.append(fault)
    raise_all(faults)
    storage = None if config.base_precision == "auto" else config.base_precision
    return MemoryOptions(
        config.gradient_checkpointing, storage, config.offload_blocks, config.vae_tiling, compiled=config.compile
    )


def check_tiles(config: TrainConfig, buckets: Iterable[tuple[int, int]]) -> None:
    """UserError where `vae_tiling` would do nothing: no picture that is trained or drawn is as large."""
    longest = max(max(size) for size in [*buckets, config.effective_sample_size])
    if config.vae_tiling and longest <= TILE:
        text = f"vae_tiling has no effect: no picture that is trained or drawn has a side over {TILE} pixels"
        raise UserError(text, hint="leave vae_tiling out")


def memory_words(config: TrainConfig) -> str:
    """For the table: what is done; empty if nothing."""
    parts = []
    if config.gradient_checkpointing:
        parts.append("blocks computed again in the backward pass")
    if config.base_precision != "auto":
        parts.append(f"base stored as {config.base_precision}")
    if kinds := packed_types(config.base_model):
        parts.append(f"base stored as its GGUF has it ({', '.join(kinds)})")
    if config.offload_blocks:
        parts.append(f"{config.offload_blocks} blocks in RAM")
    if config.vae_tiling:
        parts.append("pictures in tiles")
    if config.compile:
        parts.append("blocks compiled")
    return ", ".join(parts)
