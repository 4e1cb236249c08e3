"""How a transformer with the blocks of FLUX.1 is asked, as by diffusers' `FluxPipeline` and `ChromaPipeline`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lora_scripts.families.flow.model import behind, places
from lora_scripts.families.sd.latents import pack, unpack


def asked(transformer: Any, x: Tensor, states: Tensor, beside: Sequence[Tensor] = (), **more: Any) -> Tensor:
    """Its answer to latents [n, c, h, w] and states of texts [n, tokens, width], as the latents; `beside`: latents of
    pictures to draw from, `more`: whatever else it is told. All tokens of a text stand at one place, those of a picture
    where they are, and of one to draw from a step behind it."""
    packed = [pack(one) for one in (x, *beside)]
    n, channels, height, width = packed[0].shape
    stand = [places(1, *one.shape[2:], on=x.device) for one in packed]
    for place in stand[1:]:
        place[:, 0] = 1
    tokens = [one.flatten(2).transpose(1, 2) for one in packed]
    answer: Tensor = transformer(
        hidden_states=behind(tokens[0], tokens[1:], 1),
        encoder_hidden_states=states,
        txt_ids=torch.zeros(states.shape[1], 3, device=x.device),
        img_ids=behind(stand[0], stand[1:]),
        return_dict=False,
        **more,
    )[0]
    return unpack(answer[:, : height * width].transpose(1, 2).reshape(n, channels, height, width))
