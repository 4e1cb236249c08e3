"""The UNet: frozen, in the precision of the run, with LoRA layers that come from outside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

from lora_scripts.compute import memory
from lora_scripts.compute.memory import MemoryOptions

_BLOCKS = ("down_blocks.", "mid_block.", "up_blocks.")
_NARROW = 16
"""Channels of a head below which a CPU's fused attention is slower than plain products, up to `_FEW` places."""
_FEW = 1024


class Denoiser:
    """A UNet on its device, stored and kept as the memory options say."""

    def __init__(
        self, unet: UNet2DConditionModel, options: MemoryOptions, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.unet, self.device, self.dtype = unet.requires_grad_(False).eval(), device, dtype
        memory.place(self.unet, options, device, dtype)
        if device.type == "cpu":
            self.unet.to(memory_format=torch.channels_last)
        heads = unet.config.attention_head_dim  # diffusers' name for the number of heads
        first = heads if isinstance(heads, int) else heads[0]
        self._narrow = device.type == "cpu" and unet.config.block_out_channels[0] // first <= _NARROW
        self._plain_attention = False

    def trainable(self) -> Iterator[tuple[str, nn.Module]]:
        """(path, layer) inside the blocks: all that the consumers of LoRA files know."""
        for name, module in self.unet.named_modules():
            if name.startswith(_BLOCKS) and isinstance(module, nn.Linear | nn.Conv2d):
                yield name, module

    def __call__(self, x_t: Tensor, t: Tensor, states: Tensor, added: Mapping[str, Tensor] | None = None) -> Tensor:
        """The answer [n, c, h, w] to noised latents, timesteps [n] and text states [n, tokens, width]; `added`: what
        goes to the time embedding besides."""
        # A CPU's fused kernel is made for wide heads: at 8 wide, plain products took 0.6 of its time (256 tokens).
        plain = self._narrow and x_t.shape[-1] * x_t.shape[-2] <= _FEW
        if plain != self._plain_attention:
            self._plain_attention = plain
            self.unet.set_attn_processor(AttnProcessor() if plain else AttnProcessor2_0())
        layout = torch.channels_last if self.device.type == "cpu" else torch.contiguous_format
        x_t = x_t.to(self.dtype).contiguous(memory_format=layout)
        states = states.to(self.device, self.dtype)
        more = {"added_cond_kwargs": dict(added)} if added else {}
        answer: Tensor = self.unet(x_t, t, states, return_dict=False, **more)[0]
        return answer
