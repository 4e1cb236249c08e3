"""python tools/auto_label.py --input data/cyberpunk_train …: `lora-scripts label …` without installing it."""

import sys
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036  (a checkout can be started with any Python)
    sys.exit("error: Python 3.11 or newer is needed; this is " + sys.version.split()[0])

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from lora_scripts.cli import main

if __name__ == "__main__":
    sys.exit(main(["label", *sys.argv[1:]]))
