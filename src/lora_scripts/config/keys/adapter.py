"""What is trained: layers, size, start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from lora_scripts.config.types import ConfigPath, Count, CountOrZero, Fault, Keys, Rates, Targets, no_effect

LYCORIS = ("loha", "lokr", "oft")


class AdapterKeys(Keys):
    """What is trained: layers, size, start."""

    TITLE: ClassVar[str] = "LoRA"
    NEEDS: ClassVar[Mapping[str, str]] = {
        "train_text_encoder": "text_encoder",
        "training_adapter": "pictures",
        "fused_qkv": "fused",
    }

    adapter: Literal["lora", "dora", "pissa", "loha", "lokr", "oft"] = "lora"
    """The form of the change. lora is read everywhere; dora trains lengths apart; the rest are for experiments."""
    lora_rank: Annotated[int, Field(ge=1, le=128)] = 16
    """The size of the LoRA: 8 for a person or a thing, 12 to 16 for a style, at most 128."""
    lora_alpha: Annotated[float, Field(gt=0, le=1024)] | None = None
    """The LoRA's strength is alpha / rank. Without it, alpha is the rank."""
    rank_stabilised: bool = False
    """Strength alpha / sqrt(rank) (rsLoRA, arXiv:2312.03732), so that high ranks learn as fast as low ones."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of the LoRA's inputs dropped in each step."""
    targets: Targets = ("attention", "feed_forward")
    """Which layers are trained: attention, feed_forward, conv, blocks such as OUT03, or patterns with *; or rules like
    {match: OUT03, rank: 4, alpha: 4, lr: 1e-4}, the last that matches a layer being its own."""
    lora_plus_ratio: Annotated[float, Field(ge=1, le=100)] = 1.0
    """LoRA+ (arXiv:2402.12354): how much faster B is trained than A; 16 is usual, with a lower learning_rate."""
    fused_qkv: bool = False
    """One A for the layers that the base's published file keeps as one (q, k and v, in some blocks an MLP with them),
    and a B for each, as the LoRAs of kohya's tools have it: fewer numbers, in that layout at the same rank."""
    train_text_encoder: bool = False
    """Train the text encoder too."""
    text_encoder_lr: Rates | None = None
    """The text encoder's learning rate. Without it, a quarter of learning_rate. Of a base with two text encoders a list
    can give each its own, [5e-5, 2e-5], and 0 leaves one as it is. Only with train_text_encoder."""
    text_encoder_start: CountOrZero = 0
    """The step in which the training of the text encoder begins. Only with train_text_encoder."""
    text_encoder_stop: Count | None = None
    """The step in which it ends. Without it, never. Only with train_text_encoder."""
    init_lora: ConfigPath | None = None
    """An earlier LoRA (.safetensors) to start from, of the kind that adapter names. Its rank is taken over, unless
    lora_rank is written: then it gets fresh directions beside those it has, or is cut to the best of that rank; a LoHa,
    LoKr or OFT stays as large as it is."""
    training_adapter: ConfigPath | None = None
    """A LoRA that is on, and frozen, while training alone, not in previews and not in the file: for a base that was
    distilled to few steps (a turbo), which unlearns them otherwise."""

    @classmethod
    def idle(cls, values: Mapping[str, Any]) -> Iterator[Fault]:
        rates = values.get("text_encoder_lr")
        if isinstance(rates, list | tuple) and not any(rates):
            yield "text_encoder_lr", "trains no text encoder", "leave train_text_encoder out"
        for key in ("text_encoder_lr", "text_encoder_start", "text_encoder_stop"):
            if values.get(key) and values.get("train_text_encoder") is False:
                yield no_effect(key, "train_text_encoder", "train_text_encoder: true")
        start, stop = values.get("text_encoder_start"), values.get("text_encoder_stop")
        if isinstance(start, int) and isinstance(stop, int) and stop <= start:
            yield "text_encoder_stop", f"is not after text_encoder_start: {start}", "write a later step"
        adapter = values.get("adapter")
        if adapter in LYCORIS:
            if find_spec("lycoris") is None:
                yield "adapter", f"{adapter} needs the package lycoris-lora", "install it: pip install lycoris-lora"
            for key, idle in (("lora_dropout", 0.0), ("lora_plus_ratio", 1.0)):
                if values.get(key) not in (None, idle):
                    yield key, f"has no effect with adapter: {adapter}", f"leave {key} out"
        if adapter in ("dora", "pissa", *LYCORIS) and values.get("fused_qkv") is True:
            yield "fused_qkv", f"cannot be with adapter: {adapter}: only a plain LoRA has one A", "write adapter: lora"
        if adapter == "pissa" and values.get("lora_plus_ratio") not in (None, 1.0):
            yield "lora_plus_ratio", "has no effect with adapter: pissa, whose A and B begin alike", "leave it out"
        if adapter == "oft":
            for key in ("lora_alpha", "rank_stabilised"):
                if values.get(key):
                    yield (
                        key,
                        "has no effect with adapter: oft, which turns weights and has no strength",
                        "leave it out",
                    )
        if adapter in ("dora", "pissa") and values.get("training_adapter") is not None:
            fault = f"cannot lie under adapter: {adapter}, which begins with the base's own weights"
            yield "training_adapter", fault, "write adapter: lora"
        if adapter == "pissa" and values.get("init_lora") is not None:
            yield (
                "init_lora",
                "cannot be with adapter: pissa, which begins with the base's own weights",
                "leave one of them out",
            )
        if values.get("rank_stabilised") is True and values.get("init_lora") is not None:
            yield "rank_stabilised", "has no effect with init_lora, whose strength is kept", "leave it out"
