"""python train.py --config configs/cyberpunk.yaml [key=value …]: `lora-scripts train …` without installing it."""

import sys
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036  (a checkout can be started with any Python)
    sys.exit("error: Python 3.11 or newer is needed; this is " + sys.version.split()[0])

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from lora_scripts.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
