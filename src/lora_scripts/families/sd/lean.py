"""Blocks of a diffusers UNet whose weights are frozen: as published, but less is kept for the backward pass."""

from __future__ import annotations

from typing import Any

from diffusers.models.activations import GEGLU
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional as F

from lora_scripts.adapters.layer import LoraLayer
from lora_scripts.adapters.products import freeze_convolution, keep_input
from lora_scripts.compute.activations import Geglu, norm_silu
from lora_scripts.compute.attention import attend


class LeanResnet(ResnetBlock2D):
    """A residual block that keeps the inputs of its norms and nothing else; made by `make_lean`."""

    def forward(self, input_tensor: Tensor, temb: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
        hidden = self.conv1(norm_silu(input_tensor, self.norm1))
        if temb is not None:
            hidden = hidden + self.time_emb_proj(F.silu(temb))[:, :, None, None]
        hidden = self.conv2(norm_silu(hidden, self.norm2))
        if self.conv_shortcut is not None:
            input_tensor = self.conv_shortcut(input_tensor)
        return input_tensor + hidden


class LeanFeedForward(FeedForward):
    """A gated feed-forward layer that keeps what its first product gives, and not the gated half of it."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        gate, _, last = self.net
        inner = gate.proj(hidden_states)
        if isinstance(last, LoraLayer):
            return last(inner, front=Geglu)
        out: Tensor = last(keep_input(inner, Geglu))
        return out


class Attend:
    """A processor of diffusers: the published formula, by the kernel that `compute.attention` chooses."""

    def __init__(self) -> None:
        self._usual = AttnProcessor2_0()

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        if attention_mask is not None or not _published(attn):
            given = hidden_states, encoder_hidden_states, attention_mask, temb
            other: Tensor = self._usual(attn, *given)
            return other
        told = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer, x in ((attn.to_q, hidden_states), (attn.to_k, told), (attn.to_v, told))
        )
        out: Tensor = attn.to_out[0](attend(q, k, v).transpose(1, 2).flatten(2))
        return out


def make_lean(unet: Any) -> None:
    """In place, in every block that is of the published kind: paths, names and parents stay as they are."""
    for module in unet.modules():
        if type(module) is nn.Conv2d:
            freeze_convolution(module)
        elif type(module) is ResnetBlock2D and _plain(module):
            module.__class__ = LeanResnet
        elif type(module) is FeedForward and _gated(module):
            module.__class__ = LeanFeedForward
    unet.set_attn_processor(Attend())


def _plain(block: ResnetBlock2D) -> bool:
    still = block.dropout.p == 0 and block.upsample is None and block.downsample is None
    usual = block.time_embedding_norm == "default" and not block.skip_time_act and block.output_scale_factor == 1
    return still and usual and isinstance(block.nonlinearity, nn.SiLU)


def _gated(block: FeedForward) -> bool:
    return len(block.net) == 3 and isinstance(block.net[0], GEGLU) and block.net[1].p == 0


def _published(attn: Attention) -> bool:
    """Whether it is as in SD: nothing but four products and the softmax."""
    extra = (attn.group_norm, attn.spatial_norm, attn.norm_q, attn.norm_k, attn.norm_cross)
    still = attn.to_out[1].p == 0 and not attn.residual_connection and attn.rescale_output_factor == 1
    return still and not any(extra)
