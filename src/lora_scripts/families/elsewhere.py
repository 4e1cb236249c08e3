"""What other trainers call the families, and what they do with one of them alone."""

from __future__ import annotations

import re

from lora_scripts.families import table
from lora_scripts.families.facts import Facts

_WORDS = {
    "sd1": ("sd", "sd1", "sd15", "stablediffusion15"),
    "sd2": ("sd2", "v2", "stablediffusion20", "stablediffusion20base", "stablediffusion21", "stablediffusion21base"),
    "sdxl": ("sdxl", "xl", "stablediffusionxl10base"),
    "sd3": ("sd3", "sd35", "v3", "stablediffusion3", "stablediffusion35"),
    "flux1": ("flux", "flux1", "fluxdev1", "fluxkontext"),
    "flux2": ("flux2", "flux2klein", "flux2klein4b", "flux2klein9b"),
    "flux2_dev": ("flux2dev",),
    "chroma": ("chroma", "chroma1"),
    "qwen_image": ("qwen", "qwenimage", "qwenimageedit", "qwenimageeditplus"),
    "zimage": ("zimage", "zimageturbo"),
    "anima": ("anima",),
    "krea2": ("krea2",),
}
"""Family -> its names in kohya's scripts and modules, ai-toolkit's `arch` and `is_…`, OneTrainer's `model_type`, in
small letters, without anything but letters and digits."""
USUAL = "sd1"
"""What ai-toolkit and OneTrainer train where nobody says the kind."""
_NOT_HERE = re.compile(
    r"(wan|hunyuan|hv|fpack|framepack|kandinsky|hidream|ideogram|lumina|pixart|sana|stablecascade|wuerstchen|auraflow"
    r"|ernie|omnigen|flex|ssd|vega|ltx|nucleus|cogview|hidream)\w*|\w*(inpainting|edit\w*|fill\w*|depth|redux)"
)
_AROUND = re.compile(r"^(networks\.)?(lora|oft|is)_|_?train_network$|:.*$")


def by_their_word(word: str) -> Facts | None:
    """The family that another trainer calls so; None for a word that says nothing. LookupError for a model that is not
    trained here."""
    bare = re.sub(r"[^a-z0-9]", "", _AROUND.sub("", word.lower()))
    for name, words in _WORDS.items():
        if bare in words:
            return table.by_name(name)
    if _NOT_HERE.fullmatch(bare):
        raise LookupError(word)
    return None


_FIRST_EDIT = "the first Qwen-Image-Edit is shown pictures otherwise, and is not here: give 2511 or 2509"
VERSIONS_NOT_HERE = {("model_version", "edit"): _FIRST_EDIT, ("edit", "true"): _FIRST_EDIT}
"""(argument of musubi-tuner, its value in small letters) -> why what it names is not trained here."""
ALSO_BY_KOHYA = {"flux1": ("modulation",), "sd3": ("modulation",)}
"""Family -> groups of layers that kohya's network modules for it train besides attention and feed-forward layers."""
LEVELS_OF_KOHYA = {"flux1": ("sigma", 3.0), "chroma": ("sigma", 3.0), "anima": ("sigmoid", 1.0)}
"""Family -> what kohya's trainers have for timestep_sampling and discrete_flow_shift where nobody writes them."""
FUSED_BY_KOHYA = frozenset(("flux1", "chroma", "sd3", "flux2", "flux2_dev"))
"""Families whose q, k and v have one A in the LoRAs of kohya's and musubi's trainers."""
UNLIKE_OF_KOHYA = {"flux1": (("guidance_scale", 3.5), ("model_prediction_type", "sigma_scaled"))}
"""Family -> arguments of kohya's trainer whose default does what is not done here."""
