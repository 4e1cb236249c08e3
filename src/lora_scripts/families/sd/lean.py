"""Blocks of a diffusers UNet whose weights are frozen: as published, but less is kept for the backward pass."""

from __future__ import annotations

from typing import Any

from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock, FeedForward
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional as F

from lora_scripts.adapters.layer import alike
from lora_scripts.adapters.products import Front, freeze_convolution
from lora_scripts.compute.activations import Geglu, Normed, norm_silu
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

    def forward(self, hidden_states: Tensor, *args: Any, front: Front | None = None, **kwargs: Any) -> Tensor:
        gate, _, last = self.net
        (inner,) = alike(hidden_states, [gate.proj], front)
        (out,) = alike(inner, [last], Geglu())
        return out


class LeanTransformer(BasicTransformerBlock):
    """A transformer block that keeps the inputs of its norms, and not what they give."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        if attention_mask is not None or encoder_attention_mask is not None:
            given = hidden_states, attention_mask, encoder_hidden_states, encoder_attention_mask
            other: Tensor = super().forward(*given, *args, **kwargs)
            return other
        x = hidden_states
        x = x + _read(self.attn1, x, x, Normed(self.norm1))
        x = x + _read(self.attn2, x, encoder_hidden_states, Normed(self.norm2))
        out: Tensor = x + self.ff(x, front=Normed(self.norm3))
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
        return _read(attn, hidden_states, hidden_states if encoder_hidden_states is None else encoder_hidden_states)


def _read(attn: Attention, x: Tensor, told: Tensor | None, front: Front | None = None) -> Tensor:
    """The attention of front(x) to itself, where `told` is x, or to what is told."""
    if told is None or told is x:
        projected = alike(x, [attn.to_q, attn.to_k, attn.to_v], front)
    else:
        projected = [*alike(x, [attn.to_q], front), *alike(told, [attn.to_k, attn.to_v])]
    q, k, v = (y.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for y in projected)
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
    for module in unet.modules():
        if type(module) is BasicTransformerBlock and _usual(module):
            module.__class__ = LeanTransformer
    unet.set_attn_processor(Attend())


def _plain(block: ResnetBlock2D) -> bool:
    still = block.dropout.p == 0 and block.upsample is None and block.downsample is None
    usual = block.time_embedding_norm == "default" and not block.skip_time_act and block.output_scale_factor == 1
    return still and usual and isinstance(block.nonlinearity, nn.SiLU)


def _gated(block: FeedForward) -> bool:
    return len(block.net) == 3 and isinstance(block.net[0], GEGLU) and block.net[1].p == 0


def _usual(block: BasicTransformerBlock) -> bool:
    """Whether it is as in SD: attention to itself, attention to the text, a gated feed-forward layer."""
    if block.norm_type != "layer_norm" or block.pos_embed is not None or block.only_cross_attention:
        return False
    norms, reads = (block.norm1, block.norm2, block.norm3), (block.attn1, block.attn2)
    affine = all(isinstance(norm, nn.LayerNorm) and norm.weight is not None for norm in norms)
    known = all(attn is not None and _published(attn) for attn in reads) and isinstance(block.ff, LeanFeedForward)
    return affine and known


def _published(attn: Attention) -> bool:
    """Whether it is as in SD: nothing but four products and the softmax."""
    extra = (attn.group_norm, attn.spatial_norm, attn.norm_q, attn.norm_k, attn.norm_cross)
    still = attn.to_out[1].p == 0 and not attn.residual_connection and attn.rescale_output_factor == 1
    return still and not any(extra)
