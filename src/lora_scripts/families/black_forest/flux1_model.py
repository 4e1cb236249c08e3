"""How a transformer with the blocks of FLUX.1 is asked, as by diffusers' `FluxPipeline` and `ChromaPipeline`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lora_scripts.families.flow.model import places
from lora_scripts.families.sd.latents import pack, unpack


def asked(transformer: Any, x: Tensor, states: Tensor, **more: Any) -> Tensor:
    """Its answer to latents [n, c, h, w] and states of texts [n, tokens, width], as the latents; `more`: whatever else
    it is told. All tokens of a text stand at one place, those of a picture where they are."""
    packed = pack(x)
    n, channels, height, width = packed.shape
    answer: Tensor = transformer(
        hidden_states=packed.flatten(2).transpose(1, 2),
        encoder_hidden_states=states,
        txt_ids=torch.zeros(states.shape[1], 3, device=x.device),
        img_ids=places(1, height, width, on=x.device),
        return_dict=False,
        **more,
    )[0]
    return unpack(answer.transpose(1, 2).reshape(n, channels, height, width))
