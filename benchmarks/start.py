"""From the start of the process to the end of its first step, everything cached: this project, and diffusers' script.

    python benchmarks/start.py --work FOLDER [--source NAME=SRC …] [--peers DIR --python PYTHON] [--rounds 5] [--step 1]

Stable Diffusion 1.5 of the true size with random weights in float32 (one file for this project, a diffusers folder for
the script), 16 pictures of 128 px, batch 4, bf16, rank 16, no previews, nothing held out; one thread. Both are written
to the work folder once. Each arm takes its turn in every round, in a process of its own that ends behind the step; one
more run of each before that fills caches, the system's among them.

This project is run as a person runs it, `lora-scripts train`, and watched from outside: CPU seconds of the process (all
threads, from the system's own account), seconds on the wall, and memory that is anonymous, when it tells of the step.
--source adds other checkouts' src, to compare with. The script is timed by `timed_training.py`, with LoRA on the layers
that this project trains; see `time_to_loss.py` for DIR and PYTHON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import median

from growth import ROOT

OURS, SCRIPT = "this project", "diffusers' script"
QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
Taken = Mapping[str, float]


def make(work: Path) -> None:
    """Base and pictures."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from safetensors.torch import save_file
    from styles import write
    from time_to_loss import make_base
    from transformers import CLIPTextConfig, CLIPTextModel

    from lora_scripts.demo import world
    from lora_scripts.families.sd1 import singlefile
    from lora_scripts.families.sd1.layout import Sd1Layout, text_config, unet_config, vae_config

    widths = {"unet_widths": (320, 640, 1280, 1280), "context_width": 768, "vae_widths": (128, 256, 512, 512)}
    text = {"text_width": 768, "text_layers": 12, "text_intermediate": 3072, "vocab": 49408, "positions": 77}
    layout = Sd1Layout(in_channels=4, out_channels=4, latent_channels=4, **widths, **text)  # type: ignore[arg-type]
    torch.manual_seed(0)
    models = (
        UNet2DConditionModel(**unet_config(layout)),
        AutoencoderKL(**vae_config(layout)),
        CLIPTextModel(CLIPTextConfig(**text_config(layout))),
    )
    file = work / "base.safetensors"
    save_file(singlefile.to_ldm(*(model.state_dict() for model in models)), file)
    make_base(work / "base", file)
    scenes = world.style_set("neon", 16, 1)
    for place, head in (("ours", "filename,prompt"), ("theirs", "file_name,text")):
        write(work / place, scenes, [world.caption(scene) for scene in scenes], 128)
        table = work / place / "metadata.csv"
        table.write_text(table.read_text("utf-8").replace("filename,prompt", head, 1), "utf-8")
    config = {
        "train_data_dir": work / "ours", "base_model": file, "output_dir": work / "lora", "resolution": 128,
        "batch_size": 4, "epochs": 2, "lora_rank": 16, "val_split": 0, "sample_every": 0, "report": "short",
        "precision": "bf16", "device": "cpu",
    }  # fmt: skip
    (work / "config.yaml").write_text("".join(f"{key}: {value}\n" for key, value in config.items()), "utf-8")


def ours(work: Path, number: int, source: Path, step: int) -> Taken:
    """Each checkout has a copy of the base of its own: whether it is still in the system's cache is its own doing."""
    base, out = work / f"base-{number}.safetensors", work / f"lora-{number}"
    if not base.exists():
        shutil.copy(work / "base.safetensors", base)
        time.sleep(3)  # what was written just now is not remembered
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "lora_scripts", "train", "--config", str(work / "config.yaml"), "--json"]
    command += [f"base_model={base}", f"output_dir={out}", f"cache_dir={work / f'cache-{number}'}"]
    begun = time.monotonic()
    child = subprocess.Popen(
        command, env=os.environ | QUIET | {"PYTHONPATH": str(source)}, cwd=work, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stderr is not None
    said = []
    try:
        for line in child.stderr:
            said.append(line)
            if '"stepped"' in line and json.loads(line)["step"] == step:
                return {"CPU s": cpu(child.pid), "wall s": time.monotonic() - begun, "MiB": anonymous(child.pid)}
    finally:
        child.kill()
        child.communicate()
    raise SystemExit("".join(said[-20:]))


def cpu(pid: int) -> float:
    """Seconds of all threads of a process (Linux; man proc_pid_stat, fields 14 and 15)."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def anonymous(pid: int) -> float:
    rows = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(row.split()[1]) / 1024 for row in rows if row.startswith("RssAnon"))


def script(work: Path, peers: Path, python: str, step: int) -> Taken:
    from time_to_loss import SCRIPT as PLACE

    shutil.rmtree(work / "peer", ignore_errors=True)
    told = {
        "pretrained_model_name_or_path": work / "base", "train_data_dir": work / "theirs", "output_dir": work / "peer",
        "cache_dir": work / "datasets", "resolution": 128, "rank": 16, "train_batch_size": 4, "max_train_steps": step,
        "learning_rate": 1e-4, "mixed_precision": "bf16", "dataloader_num_workers": 0, "checkpointing_steps": 1000,
    }  # fmt: skip
    tool, times = Path(__file__).with_name("timed_training.py"), work / "times.json"
    words = [f"--{name}={value}" for name, value in told.items()]
    command = [python, str(tool), "diffusers", str((peers / PLACE).absolute()), str(times), "same", "--", *words]
    begun = time.time()
    quiet = QUIET | {"HF_HOME": str(work / "hub")}
    subprocess.run(command, env=os.environ | quiet, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    taken = json.loads(times.read_text())
    return {"CPU s": taken["steps"][-1], "wall s": taken["clock"][-1] - begun}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--source", metavar="NAME=SRC", nargs="*", default=[])
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--step", type=int, default=1, help="told at the end of which; 3 for what memory stays at")
    o = parser.parse_args()
    work = o.work.absolute()
    if not (work / "config.yaml").exists():
        work.mkdir(parents=True, exist_ok=True)
        make(work)
    sources = {OURS: ROOT / "src"} | {name: Path(src) for name, _, src in (s.partition("=") for s in o.source)}
    arms = {
        name: partial(ours, work, number, src.absolute(), o.step) for number, (name, src) in enumerate(sources.items())
    }
    if o.peers:
        arms[SCRIPT] = partial(script, work, o.peers, o.python, o.step)
    rounds = [{name: arm() for name, arm in arms.items()} for _ in range(o.rounds + 1)][1:]
    for name in arms:
        for unit in rounds[0][name]:
            values = [r[name][unit] for r in rounds]
            ratios = [r[OURS][unit] / r[name][unit] for r in rounds]
            print(
                f"{name}: {median(values):.2f} {unit} ({min(values):.2f} to {max(values):.2f}); this project takes "
                f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) of it"
            )


if __name__ == "__main__":
    main()
