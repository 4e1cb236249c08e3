"""What a narrow flow model of the miniature world has besides its transformer: a VAE made from the bundled one, and a
Qwen3 that knows the words.
"""

from __future__ import annotations

import random
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from benchmarks.miniature.build_base import SLOTS, phrase
from diffusers import AutoencoderKL, AutoencoderKLFlux2
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Qwen3Config, Qwen3ForCausalLM

from lora_scripts.demo import world
from lora_scripts.families.base import LoadOptions
from lora_scripts.families.flow.autoencoder import Autoencoder
from lora_scripts.families.flow.reader import FILL, Reading
from lora_scripts.families.table import by_name, load_family

TEXT_WIDTH, SD_SCALING = 64, 0.18215

# --- the VAE ----------------------------------------------------------------------------------------------------------


def old_vae() -> AutoencoderKL:
    """The bundled base's."""
    base = Path(str(resources.files("lora_scripts.demo").joinpath("assets/base.safetensors")))
    family: Any = load_family(by_name("sd1"), base, LoadOptions(torch.device("cpu"), torch.float32))
    return family.vae


def widened(old: AutoencoderKL, kind: Autoencoder) -> Any:
    """A VAE of `kind` that decodes what `old`, of 4 channels, does, its latents repeated.

    Of 32 channels the layers around the latents hold the repeating, and its mean when decoding. Of 16, which has no
    such layers, the encoder's last convolution takes them over, and the decoder's first their weight: latents are moved
    so that no bias is left, for a bias would be missing in the border that the convolution adds.
    """
    times = kind.channels // 4
    into, bias = old.quant_conv.weight.data.flatten(1), old.quant_conv.bias.data
    back, back_bias = old.post_quant_conv.weight.data.flatten(1), old.post_quant_conv.bias.data
    rows = [*(list(range(4)) * times), *(list(range(4, 8)) * times)]  # means, then logarithms of variances
    state = dict(old.state_dict())
    widths = tuple(old.config.block_out_channels)
    vae = (AutoencoderKLFlux2 if kind.normed else AutoencoderKL)(**kind.config(widths))
    if kind.quant:
        state["encoder.conv_out.weight"] = wide(state["encoder.conv_out.weight"], 2 * kind.channels, 0)
        state["encoder.conv_out.bias"] = wide(state["encoder.conv_out.bias"], 2 * kind.channels, 0)
        state["decoder.conv_in.weight"] = wide(state["decoder.conv_in.weight"], kind.channels, 1)
        state["quant_conv.weight"] = wide(into[rows], 2 * kind.channels, 1)[..., None, None]
        state["quant_conv.bias"] = bias[rows]
        state["post_quant_conv.weight"] = wide(back.repeat(1, times) / times, kind.channels, 0)[..., None, None]
        state["post_quant_conv.bias"] = wide(back_bias, kind.channels, 0)
        state |= {name: tensor for name, tensor in vae.state_dict().items() if name.startswith("bn.")}
    else:
        size = SD_SCALING / kind.scaling
        turned = torch.einsum("oi,ichw->ochw", into, state["encoder.conv_out.weight"])
        moved = into @ state["encoder.conv_out.bias"] + bias
        moved[:4] = (moved[:4] + torch.linalg.solve(back, back_bias)) * size
        moved[4:] += 2 * torch.tensor(size).log()
        turned[:4] *= size
        state["encoder.conv_out.weight"], state["encoder.conv_out.bias"] = turned[rows], moved[rows]
        first = torch.einsum("oihw,ij->ojhw", state["decoder.conv_in.weight"], back) / size
        state["decoder.conv_in.weight"] = first.repeat(1, times, 1, 1) / times
        state = {name: tensor for name, tensor in state.items() if "quant_conv" not in name}
    vae.load_state_dict(state, strict=True)
    return vae.eval()


def wide(x: Tensor, size: int, dim: int) -> Tensor:
    """Zeros behind, up to `size` along `dim`."""
    shape = list(x.shape)
    shape[dim] = size - shape[dim]
    return torch.cat([x, x.new_zeros(shape)], dim)


def raw_latents(mean: Tensor, std: Tensor, old: AutoencoderKL, kind: Autoencoder) -> tuple[Tensor, Tensor]:
    """Of latents of the old VAE those that the widened one gives, not yet normalised."""
    times = kind.channels // 4
    if not kind.quant:
        size = SD_SCALING / kind.scaling
        shift = torch.linalg.solve(old.post_quant_conv.weight.data.flatten(1), old.post_quant_conv.bias.data)
        mean, std = (mean + shift[:, None, None]) * size, std * size
    return mean.repeat(1, times, 1, 1), std.repeat(1, times, 1, 1)


# --- the text encoder -------------------------------------------------------------------------------------------------


def new_tokenizer(reading: Reading) -> Tokenizer:
    """Byte pairs of the grammar, with the signs of the template."""
    signs = [FILL, "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=signs, initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    rng = random.Random("words")
    texts = [phrase(key, rng)[0] for key in world.all_keys()]
    made.train_from_iterator([*texts, *[reading.before + reading.after] * 50], trainer)
    return made


def train_text(reading: Reading, layers: int, tokens: Tokenizer, steps: int, batch: int = 24) -> Qwen3ForCausalLM:
    """From the end of a sentence on, every state of each layer that is read tells what the sentence says."""
    torch.manual_seed(1)
    config = Qwen3Config(
        vocab_size=tokens.get_vocab_size(),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,
    )
    model, taps = Qwen3ForCausalLM(config), reading.taps(layers)
    heads = nn.ModuleList(nn.Linear(TEXT_WIDTH, len(slot) + 1) for _ in taps for slot in SLOTS)
    optimizer = torch.optim.AdamW([*model.parameters(), *heads.parameters()], lr=0.0, weight_decay=0.0, fused=True)
    fill, keys = tokens.token_to_id(FILL), world.all_keys()
    behind = len(tokens.encode(reading.after, add_special_tokens=False).ids)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 50) * (1 - step / steps)
        rng = random.Random(f"flow text/{step}")
        phrases = [phrase(rng.choice(keys), rng) for _ in range(batch)]
        texts = [reading.before + text + reading.after for text, _ in phrases]
        ids = [tokens.encode(text, add_special_tokens=False).ids for text in texts]
        most = max(map(len, ids))
        # What fills up is far away, as well.
        far = [rng.randrange(most, reading.most) for _ in range(4)]
        places = torch.tensor([*range(most), *far])
        mask = torch.tensor([[1] * len(row) + [0] * (most - len(row) + len(far)) for row in ids])
        padded = torch.tensor([row + [fill] * (most - len(row) + len(far)) for row in ids])
        out = model.model(
            input_ids=padded,
            attention_mask=mask,
            position_ids=places.expand(batch, -1),
            output_hidden_states=True,
            use_cache=False,
        )
        said = torch.tensor([slots for _, slots in phrases])
        wanted = torch.where(said < 0, torch.tensor([len(slot) for slot in SLOTS]), said)
        last = len(places) if reading.filled else 0
        at = torch.tensor([[rng.randrange(len(row) - behind, max(len(row), last)) for _ in range(3)] for row in ids])
        losses = []
        for n, tap in enumerate(taps):
            states = out.hidden_states[tap].gather(1, at[..., None].expand(-1, -1, TEXT_WIDTH))
            for i in range(len(SLOTS)):
                scores = heads[n * len(SLOTS) + i](F.rms_norm(states, (TEXT_WIDTH,)))
                losses.append(F.cross_entropy(scores.flatten(0, 1), wanted[:, i].repeat_interleave(3)))
        loss = torch.stack(losses).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 49:
            print(f"text step {step + 1}/{steps} loss {loss / len(taps):.4f}", flush=True)
    return model
