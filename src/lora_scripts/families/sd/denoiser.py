"""The UNet: frozen, in the precision of the run, with LoRA layers that come from outside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_scripts.adapters.products import freeze_convolution
from lora_scripts.compute import memory
from lora_scripts.compute.memory import MemoryOptions
from lora_scripts.families.sd.network import Unet

_BLOCKS = ("down_blocks.", "mid_block.", "up_blocks.")


class Denoiser:
    """A UNet on its device, stored and kept as the memory options say.

    It is one of ours, or diffusers' UNet2DConditionModel, which keeps more for the backward pass: of a folder whose
    topology no table knows.
    """

    def __init__(self, unet: Any, options: MemoryOptions, device: torch.device, dtype: torch.dtype) -> None:
        self.unet, self.device, self.dtype = unet.requires_grad_(False).eval(), device, dtype
        # A card's convolutions are quickest so, too; but the library's norms there know the other way alone, and turn
        # what they read: compiled ones do not.
        last = device.type == "cpu" or options.compiled
        self.layout = torch.channels_last if last else torch.contiguous_format
        memory.place(self.unet, options, device, dtype, layout=self.layout)
        for module in self.unet.modules() if isinstance(unet, Unet) else ():
            if type(module) is nn.Conv2d:
                freeze_convolution(module)

    def trainable(self) -> Iterator[tuple[str, nn.Module]]:
        """(path, layer) inside the blocks: all that the consumers of LoRA files know."""
        for name, module in self.unet.named_modules():
            if name.startswith(_BLOCKS) and isinstance(module, nn.Linear | nn.Conv2d):
                yield name, module

    def __call__(self, x_t: Tensor, t: Tensor, states: Tensor, added: Mapping[str, Tensor] | None = None) -> Tensor:
        """The answer [n, c, h, w] to noised latents, timesteps [n] and text states [n, tokens, width]; `added`: what
        goes to the time embedding besides."""
        x_t = x_t.to(self.dtype).contiguous(memory_format=self.layout)
        states = states.to(self.device, self.dtype)
        if not isinstance(self.unet, Unet):
            more = {"added_cond_kwargs": dict(added)} if added else {}
            theirs: Tensor = self.unet(x_t, t, states, return_dict=False, **more)[0]
            return theirs
        answer: Tensor = self.unet(x_t, t, states, added)
        return answer
