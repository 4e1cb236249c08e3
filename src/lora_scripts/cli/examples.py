"""Two whole commands for the end of every command's help: one line each, for any shell."""

from __future__ import annotations

_EXAMPLES = """
a config for the pictures of a style:
  lora-scripts new neon --data data/neon --base models/base.safetensors
one for a person, called by a word:
  lora-scripts new mia --data data/mia --base models/base.safetensors --for character --trigger mia
captions for the pictures of a style, with its word put first:
  lora-scripts label --input data/neon --for style --trigger neonpunk
change words in captions that are there:
  lora-scripts label --input data/neon --words-only --replace "car=vehicle"
look at a folder of pictures:
  lora-scripts check data/neon --resolution 512x768
look at what a config trains on, and mend it:
  lora-scripts check --config configs/cyberpunk.yaml --fix
what a training takes, before it runs:
  lora-scripts plan --config configs/cyberpunk.yaml
whether it would fit into 6 GB at another batch size:
  lora-scripts plan --config configs/cyberpunk.yaml --memory 6 batch_size=2
the learning rate that a config should have:
  lora-scripts tune --config configs/cyberpunk.yaml
which rank, each tried over half of the epochs:
  lora-scripts tune --config configs/cyberpunk.yaml --try lora_rank=8,16,32 --share 0.5
train as a config says, two keys changed:
  lora-scripts train --config configs/cyberpunk.yaml epochs=12 output_dir=output/neon
go on where it was stopped:
  lora-scripts train --config configs/cyberpunk.yaml --resume
one picture with a LoRA of the folder output:
  lora-scripts generate --base models/base.safetensors --prompt "a city at night <lora:neon:0.8>"
four seeds of every prompt of a file:
  lora-scripts generate --base models/base.safetensors --from-file prompts.txt --count 4 --output output/city.png
talk to a language model with two LoRAs on it:
  lora-scripts chat --base models/Qwen3-0.6B --lora output/reports/reports:0.8 --lora output/tone/tone:0.5
one question, with a system prompt:
  lora-scripts chat --base models/Qwen3-0.6B --system "Answer briefly." --message "What is a LoRA?"
what a LoRA has learned, on records that it was not trained on:
  lora-scripts evaluate --base models/Qwen3-0.6B --lora output/reports/reports --data data/reports-test.jsonl
the base alone, on a hundred of them:
  lora-scripts evaluate --base models/Qwen3-0.6B --data data/reports-test.jsonl --count 100
the checkpoints of a run against strengths:
  lora-scripts grid --checkpoints output/neon --strengths 0 0.5 0.8 1 --output output/neon-grid
two LoRAs on prompts of a file:
  lora-scripts grid --base models/base.safetensors --loras a.safetensors b.safetensors --prompts prompts.txt
a card with the pictures and measures of a grid:
  lora-scripts card output/neon/neon.safetensors --grid output/neon-grid --license mit
a card with the previews of its run, elsewhere:
  lora-scripts card neon.safetensors --report output/neon --output neon-card --base-model NAME/BASE
a style and a character as one file, exactly:
  lora-scripts combine style.safetensors:0.8 character.safetensors --output both.safetensors
only how they overlap, with weights to try:
  lora-scripts combine style.safetensors character.safetensors --report-only
a LoRA into a base model:
  lora-scripts merge neon.safetensors:0.8 --base base.safetensors --output merged.safetensors
two at once:
  lora-scripts merge a.safetensors:0.6 b.safetensors:0.4 --base base.safetensors --output ab.safetensors
out of the model again:
  lora-scripts unmerge neon.safetensors:0.8 --model merged.safetensors --output base2.safetensors
the same, compared with the base as it was:
  lora-scripts unmerge neon.safetensors:0.8 --model merged.safetensors --output b.safetensors --compare base.safetensors
what a fine-tuned model has beyond its base:
  lora-scripts extract --base base.safetensors --tuned tuned.safetensors --output tuned-lora.safetensors
as much rank as keeps 95 % of each layer, convolutions too:
  lora-scripts extract --base base.safetensors --tuned tuned.safetensors --output x.safetensors --energy 0.95 --conv
at most rank 8:
  lora-scripts resize neon.safetensors --rank 8 --output neon-8.safetensors
as much rank as keeps 95 % of each layer:
  lora-scripts resize neon.safetensors --energy 0.95 --output neon-small.safetensors
what a file is:
  lora-scripts inspect neon.safetensors
a table of a folder, for a program:
  lora-scripts inspect models/Lora --json
in every program that is known:
  lora-scripts verify neon.safetensors --base base.safetensors
a converted file against the original, in two of them:
  lora-scripts verify b.safetensors --reference a.safetensors --base base.safetensors --in diffusers ComfyUI
in diffusers' names, in half precision:
  lora-scripts convert neon.safetensors --to diffusers --dtype fp16
a plain LoRA of a DoRA:
  lora-scripts convert dora.safetensors --to kohya --bake-dora --base base.safetensors --rank 32
what a file says of itself:
  lora-scripts metadata neon.safetensors
set a title and take private things out, into another file:
  lora-scripts metadata neon.safetensors --set "modelspec.title=Neon nights" --private --output out.safetensors
train on the miniature world:
  lora-scripts demo
train a small language model to write reports:
  lora-scripts demo words
a script for bash, whose first line says where it goes:
  lora-scripts completion bash
the same for fish:
  lora-scripts completion fish
"""


def examples_of(command: str) -> list[tuple[str, str]]:
    """(what it is for, what to type) of each."""
    lines = _EXAMPLES.strip().splitlines()
    pairs = [(purpose.removesuffix(":"), typed.strip()) for purpose, typed in zip(lines[::2], lines[1::2], strict=True)]
    return [(purpose, typed) for purpose, typed in pairs if typed.split()[1] == command]
