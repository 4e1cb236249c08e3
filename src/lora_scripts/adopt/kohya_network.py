"""`network_module` and `network_args` of kohya's trainers: which kind of LoRA, how large, on which layers.

`networks/lora.py`, its sisters and the arguments that LyCORIS takes.
"""

from __future__ import annotations

import re

from lora_scripts.adopt import turns
from lora_scripts.adopt.found import Found
from lora_scripts.adopt.sizes import MOST, put_rank
from lora_scripts.adopt.turns import count, flag, number, some, text
from lora_scripts.config.types import TargetRule
from lora_scripts.errors import UserError

DIM = 4
"""Their rank where none is written."""


_ALGOS = {"lora": "lora", "locon": "lora", "loha": "loha", "lokr": "lokr", "diag-oft": "oft", "oft": "oft"}


def carry_network(found: Found) -> None:
    """The kind of LoRA, its size and its layers."""
    module = found.take("network_module", text, "networks.lora")
    options: dict[str, object] = found.take("network_args", turns.names, {})
    found.shown = {**found.shown, **{f"network_args.{key}": f"network_args {key}" for key in options}}
    found.values.update({f"network_args.{key}": value for key, value in options.items()})
    adapter, of_lycoris = "lora", module.startswith("lycoris")
    if of_lycoris:
        algo = found.take("network_args.algo", text, "lora").casefold()
        if algo not in _ALGOS:
            mend = "write algo=lora, loha, lokr or oft there, or begin with lora-scripts new without --from"
            found.faults.append(
                UserError(f"algo={algo} is not trained here", file=found.file, line=found.line("algo"), hint=mend)
            )
            return
        adapter = _ALGOS[algo]
        if found.take("network_args.dora_wd", flag, False) and adapter == "lora":
            adapter = "dora"
    elif re.search(r"networks\.(oft\w*|loha|lokr)$", module):
        adapter = module.rpartition(".")[2][:4].rstrip("_")
        adapter = "oft" if adapter.startswith("oft") else adapter
    elif not re.fullmatch(r"networks\.lora(_(?!fa$)\w+)?", module):
        found.leave("network_module", "is not here; a plain LoRA stands in its place")
    found.base_words = (*found.base_words, module)
    if adapter != "lora":
        found.put("adapter", adapter, "network_module", *(["network_args.algo"] if options.get("algo") else []))
    put_rank(found, "network_dim", "network_alpha", rank=DIM, alpha=1.0, written=adapter != "oft")
    _convolutions(found, of_lycoris=of_lycoris)
    ratio = found.take("network_args.loraplus_lr_ratio", some(number), None)
    if ratio:
        found.put("lora_plus_ratio", ratio, "network_args.loraplus_lr_ratio")
    dropout = found.take("network_args.dropout", some(number), None)
    if dropout:
        found.put("lora_dropout", dropout, "network_args.dropout")
    for key, value in list(found.values.items()):
        if (
            key.startswith("network_args.")
            and key not in found.taken
            and str(value).lower() not in ("false", "0", "none")
        ):
            found.leave(key, _NETWORK_ARGS.get(key.partition(".")[2], "is not here"))


_NETWORK_ARGS = {
    **dict.fromkeys(
        ("rank_dropout", "module_dropout"), "lora_dropout drops inputs of a LoRA; other dropouts are not here"
    ),
    **dict.fromkeys(
        ("block_dims", "block_alphas"), "targets can give blocks a rank of their own: {match: OUT03, rank: 4}"
    ),
    **dict.fromkeys(
        ("down_lr_weight", "mid_lr_weight", "up_lr_weight", "network_reg_lrs"),
        "targets can give blocks a rate of their own: {match: OUT03, lr: 1e-4}",
    ),
    **dict.fromkeys(
        ("train_blocks", "exclude_patterns", "include_patterns"), "targets names the layers by pattern here"
    ),
    **dict.fromkeys(
        ("loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio"), "lora_plus_ratio counts for all parts"
    ),
    "factor": "lokr chooses the factor from the layer's widths here",
    "preset": "targets names the layers; written are attention, feed_forward and conv",
    "split_qkv": "q, k and v have an A each here unless fused_qkv is written",
}


def _convolutions(found: Found, *, of_lycoris: bool) -> None:
    """Convolutions of 3 x 3: LyCORIS trains them at the rank of the rest unless a preset says other things."""
    size = found.take("network_args.conv_dim", some(count), None)
    alpha = found.take("network_args.conv_alpha", some(number), None)
    rank = found.puts["lora_rank"].value if "lora_rank" in found.puts else 16
    preset = str(found.values.get("network_args.preset", "full"))
    if of_lycoris and preset in ("full", "None", ""):
        found.taken.add("network_args.preset")
        size = size or int(str(rank))
    if not size:
        return
    rule = TargetRule.model_construct(match="conv", rank=min(size, MOST), alpha=(alpha or 1.0) * min(size, MOST) / size)
    both = ("network_args.conv_dim", "network_args.conv_alpha")
    note = "" if any(map(found.has, both)) else "their default with LyCORIS: convolutions, too"
    found.put("targets", ["attention", "feed_forward", rule], *both, note=note)
    if size > MOST:
        found.leave("network_args.conv_dim", "128 is the most here; alpha is made smaller with it")
