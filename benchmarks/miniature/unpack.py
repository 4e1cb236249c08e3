"""Takes the miniature base apart, so that its training can go on: the opposite of `pack`.

python -m benchmarks.miniature.unpack BASE.safetensors WORK     to WORK/vae, text_encoder, and unet.pt at step 0
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.miniature import build_base, build_vae
from safetensors import safe_open

from lora_scripts.errors import UserError
from lora_scripts.families.sd.rows import shapes_in
from lora_scripts.families.sd.text import text_keys_like
from lora_scripts.families.sd1 import singlefile


def unpack(base: Path, work: Path) -> None:
    """Writes what `pack` reads, in float32. UserError where the file is no Stable Diffusion 1.x, or where one has
    begun to be trained in `work`.
    """
    if (work / "unet.pt").exists():
        raise UserError("a training has begun here", file=work / "unet.pt", hint="give another folder")
    with safe_open(base, "pt") as handle:
        layout = singlefile.layout_of(shapes_in(handle), file=base)
        unet, vae, text = singlefile.from_ldm(handle, layout, file=base)
        steps = int((handle.metadata() or {}).get("miniature.unet_steps", 0))
    whole, encoder = build_vae.new_vae(), build_base.new_text_encoder()
    whole.load_state_dict({name: tensor.float() for name, tensor in vae.items()})
    whole.save_pretrained(work / "vae")
    encoder.load_state_dict(text_keys_like({n: t.float() for n, t in text.items()}, encoder.state_dict()))
    encoder.save_pretrained(work / "text_encoder")
    build_base.Trainer(work / "unet.pt", unet, steps).save()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("work", type=Path)
    args = parser.parse_args()
    try:
        unpack(args.base, args.work)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
