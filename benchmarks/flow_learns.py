"""That a LoRA on models of flow learns: the demo's neon style on a narrow Z-Image or FLUX.2 klein of its world.

    python -m benchmarks.miniature.build_flow WORK --family zimage       # once: the narrow base
    python -m benchmarks.flow_learns WORK --family zimage [--count 50]   # trains the LoRA, prints the table

The base is a diffusers folder of the published topology, with a Qwen3 as text encoder. The LoRA is trained by
`lora-scripts train` on the demo's 50 pictures, with the keys of the family's template in `configs/`, but for its paths
and the size of the pictures; with `--demo` by the demo's keys, but for those that a model of flow does not know.
`demo.evaluate` prints how many pictures of the base, and of the LoRA at 1.0, show the object, colour, ground and sky
asked for, and the style, and writes the contact sheet WORK/FAMILY_NAME.png.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.sdxl_learns import DEMO, train

TEMPLATES = {"zimage": "zimage_style.yaml", "flux2": "flux2_klein_style.yaml"}
UNKNOWN = ("min_snr_gamma:", "text_encoder:", "vae:")
"""What is left out: keys for models that predict noise or v, and of parts, which lie in the base's folder."""
CFG = 4
"""The templates have 4 and 5."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--family", choices=("zimage", "flux2"), required=True)
    parser.add_argument("--name", default="neon", help="of the LoRA's folder")
    parser.add_argument("--count", type=int, default=50, help="pictures of each (default 50)")
    parser.add_argument("--demo", action="store_true", help="the demo's keys, not the template's")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="laid over the config")
    args = parser.parse_intermixed_args()
    base, out = args.work / args.family, args.work / f"{args.family}_{args.name}"
    config = DEMO if args.demo else Path(__file__).parents[1] / "configs" / TEMPLATES[args.family]
    size = [] if args.demo else ["resolution=128"]
    lora = train(args.work / "data", base, out, [*size, *args.overrides], UNKNOWN, config)
    command = [sys.executable, "-m", "lora_scripts.demo.evaluate", base, "--lora", lora, "--cfg", CFG]
    sheet = args.work / f"{out.name}.png"
    return subprocess.call([*map(str, command), "--count", str(args.count), "--grid", str(sheet)])


if __name__ == "__main__":
    sys.exit(main())
