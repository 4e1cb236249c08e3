"""What the loss of a language model takes: all logits at once, and in chunks.

python -m benchmarks.language_loss [--tokens 2048] [--vocabulary 151936] [--width 1024]

Each way in a process of its own: the largest memory over that of the model and its input, and the time of one loss with
its gradient. The output layer is frozen, as with a LoRA.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

import torch
from torch.nn import functional as F

from lora_scripts.losses.language import cross_entropy


def measure(way: str, tokens: int, vocabulary: int, width: int) -> None:
    """Prints megabytes and seconds."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    head = torch.nn.Linear(width, vocabulary, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    hidden = torch.randn(tokens, width, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(vocabulary, (tokens,))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    if way == "whole":
        loss = F.cross_entropy(head(hidden).float(), targets, reduction="sum")
    else:
        loss, _ = cross_entropy(hidden, targets, head)
    loss.backward()
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{way:10} {peak:8.0f} MB {time.perf_counter() - start:6.1f} s   loss {loss.item() / tokens:.6f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--way", choices=["whole", "chunks"], help="only this one, in this process")
    args = parser.parse_args()
    if args.way:
        measure(args.way, args.tokens, args.vocabulary, args.width)
    else:
        for way in ("whole", "chunks"):
            subprocess.run([sys.executable, *sys.argv, "--way", way], check=True)
