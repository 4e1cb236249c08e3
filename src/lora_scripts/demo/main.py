"""`lora-scripts demo`: a LoRA of the neon style on the bundled miniature world, from raw pictures to report."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from lora_scripts import run
from lora_scripts.config.load import load_config
from lora_scripts.demo import world
from lora_scripts.errors import raise_all
from lora_scripts.formats import io
from lora_scripts.generate.prompts_file import preview_lines
from lora_scripts.label.base import MINIATURE
from lora_scripts.label.command import LabelOptions, label


def run_demo(output: Path, overrides: Sequence[str] = ()) -> None:
    """Draws pictures, labels them, copies the base and trains as configs/demo.yaml says, all in `output`."""
    data, base = output / "data", output / "base.safetensors"
    config_path, result = output / "demo.yaml", output / "neon"
    if (result / "report.html").exists():
        print(f"the demo has run already; its report: {result / 'report.html'}\nremove {output} to run it again")
        return
    print(f"drawing 50 pictures of the neon style into {data}", flush=True)
    world.write_pictures(data, world.training_scenes())
    print(f"labelling them, as lora-scripts label --input {data} --model {MINIATURE} does", flush=True)
    raise_all(label(LabelOptions(input=data, model=MINIATURE)).faults)
    print("training a LoRA on the pictures and their captions", flush=True)
    assets = resources.files("lora_scripts.demo").joinpath("assets")
    io.write_atomic(base, assets.joinpath("base.safetensors").read_bytes())
    config_path.write_bytes(assets.joinpath("demo.yaml").read_bytes())
    paths = {
        "train_data_dir": data,
        "metadata_path": data / "metadata.csv",
        "base_model": base,
        "output_dir": result,
    }
    moved = [key + "='" + str(path).replace("'", "''") + "'" for key, path in paths.items()]
    config = load_config(config_path, [*moved, *overrides])
    run.train(config, resume=(result / "state").exists())
    last = preview_lines(config.sample_prompts)[-1].prompt
    print(
        f"\ntry it: lora-scripts generate --base {base} --lora-dir {output} --cfg 4 --seed 43 "
        f'--prompt "{last} <lora:{result.name}:1.0>" --output {output / "picture.png"}'
    )
