"""`lora-scripts generate`."""

from __future__ import annotations

import hashlib
from pathlib import Path

from PIL.PngImagePlugin import PngInfo

from lora_scripts.errors import UserError, raise_all
from lora_scripts.formats import io
from lora_scripts.generate.prompt import GenerateOptions, LoraCall, find_lora, parse_prompt


def generate_pictures(options: GenerateOptions) -> None:
    """Draws `options.count` pictures, seed by seed, as numbered PNGs. Mistakes are told before a model is loaded."""
    prompt, calls = parse_prompt(options.prompt)
    files = _find(calls, options.lora_dir)
    if options.size and any(side % 8 for side in options.size):
        raise UserError(f"--size {options.size[0]}x{options.size[1]}: sides must be multiples of 8")

    from lora_scripts.families.base import LoadOptions, Sampling, find_family, load_family
    from lora_scripts.generate.apply import apply, check_fits, read_lora
    from lora_scripts.train.device import DTYPES, choose_device, choose_precision

    device = choose_device(options.device)
    precision = choose_precision(options.precision, device)
    weights = [read_lora(path) for path in files]
    family = load_family(find_family(options.base), options.base, LoadOptions(device, DTYPES[precision], options.vae))
    family.prediction = options.prediction
    for path, lora in zip(files, weights, strict=True):
        check_fits(lora, family, path)
    for call, lora in zip(calls, weights, strict=True):
        apply(family, lora, call.weight)
    size = options.size or family.native_size
    sampling = Sampling(options.steps, options.cfg, options.negative_prompt, size)
    for number in range(options.count):
        image = family.generate(prompt, options.seed + number, sampling)
        path = _numbered(options.output, number, options.count)
        info = PngInfo()
        info.add_text("parameters", parameters(options, number, size, calls, files))
        io.save_png(path, image, info)
        print(path)


def _find(calls: list[LoraCall], folder: Path) -> list[Path]:
    files, faults = [], []
    for call in calls:
        try:
            files.append(find_lora(call.name, folder))
        except UserError as e:
            faults.append(e)
    raise_all(faults)
    return files


def _numbered(path: Path, number: int, count: int) -> Path:
    return path if count == 1 else path.with_name(f"{path.stem}-{number + 1}{path.suffix}")


def parameters(
    options: GenerateOptions, number: int, size: tuple[int, int], calls: list[LoraCall], files: list[Path]
) -> str:
    """The text that A1111 keeps in its PNGs and reads in "PNG Info"."""
    rows = {
        "Steps": options.steps,
        "Sampler": "DPM++ 2M",
        "Schedule type": "Karras",
        "CFG scale": f"{options.cfg:g}",
        "Seed": options.seed + number,
        "Size": f"{size[0]}x{size[1]}",
        "Model": options.base.stem,
    }
    if calls:
        hashes = (
            f"{c.name}: {hashlib.sha256(f.read_bytes()).hexdigest()[:12]}" for c, f in zip(calls, files, strict=True)
        )
        rows["Lora hashes"] = f'"{", ".join(hashes)}"'
    negative = f"\nNegative prompt: {options.negative_prompt}" if options.negative_prompt else ""
    return f"{options.prompt}{negative}\n" + ", ".join(f"{key}: {value}" for key, value in rows.items())
