"""200,000 spoilt files and texts, by a generator that costs nothing: `python benchmarks/fuzz.py [EXAMPLES] [SEED]`.

Headers, LoRA files, captions, configs, overrides, pictures and prompts, in turn. Each is one that is right with pieces
cut out, put in, repeated or swapped, or made of odd parts; every answer must be ours: a line for a person, within 20 s
of the processor's time.
The tests have the same with Hypothesis, which finds smaller examples and takes longer (`tests/test_fuzz.py`).
"""

from __future__ import annotations

import importlib
import io
import json
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from lora_scripts.config.load import load_config
from lora_scripts.config.prompt_line import parse_line
from lora_scripts.data.captions import read_metadata, read_sidecar
from lora_scripts.data.image import decode_rgb
from lora_scripts.errors import UserError, UserErrors
from lora_scripts.families import table
from lora_scripts.families.clip import prompts
from lora_scripts.formats.header import read_header
from lora_scripts.formats.numbers import sound_digest
from lora_scripts.generate.prompt import parse_prompt
from lora_scripts.loras import file as loras

LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
KEYS = (
    "__metadata__", f"{LAYER}.alpha", f"{LAYER}.lora_up.weight", "model.embed_tokens.weight", "x", "", "\0", "größe",
    "model.diffusion_model.input_blocks.0.0.weight", "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
)  # fmt: skip
ODD = (
    0, 1, -1, 4, 70, 2**31, 2**63, 2**64, 1.5, float("nan"), float("inf"), "", "F32", None, True, [], {}, [[0]],
    "\ud800",
)  # fmt: skip
CSV = b'filename,prompt\na.png,"a cat, red"\nb.png,a dog\n'
JSONL = '{"file_name": "a.png", "text": "a cat"}\n{"file_name": "b.png", "text": "größe 猫"}\n'.encode()
CONFIG = b"""train_data_dir: data
base_model: b.safetensors
output_dir: out
learning_rate: 2e-4
resolution: [512, 768]
targets: [attention, {match: '*ff*', rank: 4}]
sample_prompts:
  - a cat --w 512
  - 'b'
"""
PIECES = (
    b"", b"\0", b"\xff\xfe", b"\n", b'"', b"'", b",", b"{", b"}", b"[", b"]", b": ", b"&a ", b"*a", b"!!x ", b"<<",
    b"\xe7\x8c", b"\xed\xa0\x80", b"9" * 40, b"-1", b"1e400", b".nan", b"\r", b"\t", b"# ", b"---\n", b"\xc2\x85",
)  # fmt: skip
LETTERS = "()[]:,<>lora \\.0123456789-\n\0éあ𝔸\u200b"


def edited(whole: bytes, chance: random.Random) -> bytes:
    """With a few pieces cut out, put in, changed or repeated."""
    data = bytearray(whole)
    for _ in range(chance.randint(1, 5)):
        at, length = chance.randint(0, len(data)), chance.choice((0, 0, 1, 1, 4, 30, 200))
        other = chance.randint(0, len(data))
        new = chance.choice(
            (chance.choice(PIECES), chance.randbytes(chance.randint(1, 12)), data[other : other + length])
        )
        data[at : at + length] = new
    return bytes(data)


def lora() -> bytes:
    rows: dict[str, list[int]] = {f"{LAYER}.lora_down.weight": [2, 4], f"{LAYER}.lora_up.weight": [4, 2]}
    header, at = {}, 0
    for key, shape in rows.items():
        header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + 32]}
        at += 32
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"\x3f" * at


def pictures() -> list[bytes]:
    found, image = [], Image.linear_gradient("L").resize((24, 16)).convert("RGB")
    for kind, more in (("PNG", {}), ("JPEG", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("GIF", {}), ("TIFF", {})):
        buffer = io.BytesIO()
        image.save(buffer, kind, **more)
        found.append(buffer.getvalue())
    return found


def _header(chance: random.Random) -> bytes:
    def entry() -> Any:
        if chance.random() < 0.2:
            return chance.choice(ODD)
        right = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
        for key in chance.sample(sorted(right), chance.randint(0, 2)):
            right[key] = chance.choice((chance.choice(ODD), [chance.choice(ODD) for _ in range(chance.randint(0, 4))]))
        return right

    text = json.dumps({chance.choice(KEYS): entry() for _ in range(chance.randint(0, 4))}).encode()
    off = chance.choice((0, 0, 0, 1, -1, 1 << 40))
    return max(0, len(text) + off).to_bytes(8, "little") + text + bytes(chance.choice((0, 3, 16, 64)))


def kinds(folder: Path) -> dict[str, Callable[[random.Random], object]]:
    """What is asked of each kind of example."""
    model, config, whole, images = folder / "x.safetensors", folder / "c.yaml", lora(), pictures()

    def looks(data: bytes, *how: Callable[[Path], object]) -> None:
        model.write_bytes(data)
        for look in how:
            ours(lambda look=look: look(model))

    def captions(chance: random.Random) -> None:
        data = edited(chance.choice((CSV, JSONL)), chance)
        for name in ("metadata.csv", "metadata.jsonl"):
            faults = list[UserError]()
            (folder / name).write_bytes(data)
            read_metadata(folder / name, faults)
            assert all(is_a_line(fault) and fault.file == folder / name for fault in faults)
        (folder / "a.txt").write_bytes(data)
        ours(lambda: read_sidecar(folder / "a.txt"))

    def configs(chance: random.Random) -> None:
        config.write_bytes(edited(CONFIG, chance))
        ours(lambda: load_config(config))

    def overrides(chance: random.Random) -> None:
        config.write_bytes(CONFIG)
        word = edited(chance.choice((b"epochs=3", b"learning_rate=1e-4", b"resolution=[1,2]")), chance)
        ours(lambda: load_config(config, [word.decode("utf-8", "replace")]))

    def prompt(chance: random.Random) -> None:
        text = "".join(chance.choices(LETTERS, k=chance.randint(0, 60)))
        ours(lambda: parse_prompt(text))
        ours(lambda: parse_line(text))
        assert all(len(chunk.ids) == 77 for chunk in prompts.chunks(prompts.weighted(text)))

    return {
        "headers": lambda c: looks(
            _header(c), read_header, sound_digest, table.identify, table.find, table.require_lora
        ),
        "LoRA files": lambda c: looks(edited(whole, c), sound_digest, table.identify, loras.read),
        "captions": captions,
        "configs": configs,
        "overrides": overrides,
        "pictures": lambda c: ours(lambda: decode_rgb(edited(c.choice(images), c), Path("x.png"))),
        "prompts": prompt,
    }


def ours(act: Callable[[], object]) -> None:
    """Lets our errors pass, each of which must be a line for a person."""
    try:
        act()
    except UserErrors as errors:
        assert errors.errors and all(is_a_line(error) for error in errors.errors)
    except UserError as error:
        assert is_a_line(error)


def is_a_line(error: UserError) -> bool:
    text = str(error)
    return bool(text.strip()) and "\n" not in text and "Traceback" not in text


def main(examples: int, seed: int) -> int:
    done, bad, begun = Counter[str](), list[str](), time.monotonic()
    warnings.simplefilter("ignore")  # Pillow's, of pictures that it reads all the same
    importlib.import_module("torch")  # by the first LoRA file, and not within its time
    timed = hasattr(signal, "setitimer")
    if timed:
        signal.signal(signal.SIGPROF, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as folder:
        acts = kinds(Path(folder))
        for number in range(examples):
            name = list(acts)[number % len(acts)]
            if timed:
                signal.setitimer(signal.ITIMER_PROF, 20)
            try:
                acts[name](random.Random(f"{seed}/{number}"))
            except BaseException:
                bad.append(f"{name}, number {number}: {traceback.format_exc()}")
                print(bad[-1], flush=True)
            done[name] += 1
            if (number + 1) % 5000 == 0 or number + 1 == examples:
                seconds = time.monotonic() - begun
                print(f"{number + 1} in {seconds:.0f} s, {len(bad)} raised what is not ours", flush=True)
    print(", ".join(f"{name}: {count}" for name, count in done.items()))
    return 1 if bad else 0


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    sys.exit(main(given[0] if given else 200_000, given[1] if len(given) > 1 else 0))
