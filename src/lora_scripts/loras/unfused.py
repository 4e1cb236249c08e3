"""The tensors of a LoRA as plain ones of our layers: a LoRA for each where the published layout keeps several layers as
one (the way back is `kohya.joined`), with the halves as in the model, and without cores. Nothing here touches files.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lora_scripts.adapters import lycoris
from lora_scripts.adapters.weights import halved
from lora_scripts.errors import UserError
from lora_scripts.families.names import Names, Share
from lora_scripts.loras import naming
from lora_scripts.loras.naming import ALPHA, CORE, DORA, DOWN, UP


def without_cores(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same with two matrices for each convolution of a LoCon with a Tucker core: its down, 1 × 1, goes into the
    core [rank, rank, k, k] behind it. float32. A core that fits no down stays."""
    result = dict(tensors)
    for key in [key for key in tensors if key.endswith(f".{CORE}")]:
        at, core = key.removesuffix(CORE) + DOWN, tensors[key].float()
        down = tensors.get(at)
        if down is None or core.dim() != 4 or down.shape != (core.shape[1], *down.shape[1:2], 1, 1):
            continue
        result[at] = torch.einsum("mrij,rc->mcij", core, down.float().flatten(1))
        del result[key]
    return result


def unfused(tensors: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """The same with a LoRA for each of the layers that the published layout keeps as one: A is every one's, and B is
    cut into theirs; and with the halves of B as in the model, where that has them the other way round. So it is done
    with what else has the layer's rows: see `_of_rows`. Exact. What has no such form stays under its key.
    """
    result: dict[str, Tensor] = {}
    modules: dict[str, dict[str, Tensor]] = {}
    ends: dict[str, dict[str, str]] = {}
    for key, tensor in tensors.items():
        stem, leaf = naming.split(key)
        if leaf and (stem in names.fused or stem in names.turned):
            modules.setdefault(stem, {})[leaf] = tensor
            ends.setdefault(stem, {})[leaf] = key.removeprefix(stem)
        else:
            result[key] = tensor
    for stem, leaves in modules.items():
        if stem in names.turned:
            parts = {names.cut(stem, names.turned[stem]): _turned_back(leaves)}
        else:
            parts = {names.cut(stem, path): _part_of(leaves, share) for path, share in names.fused[stem].items()}
        for name, part in parts.items():
            own, at = (leaves, stem) if part is None else (part, name)
            result |= {at + ends[stem][leaf]: tensor.contiguous() for leaf, tensor in own.items()}
    return result


def _of_rows(leaves: Mapping[str, Tensor], parts: int) -> list[str]:
    """The leaves that are cut into so many equal parts where the layer's rows are: B, and the lengths of a DoRA that
    has one for each output; of a LoHa both first factors, of a LoKr the first one, each row of which stands for several
    of the layer. None where that cannot be."""
    if "hada_w1_a" in leaves and "hada_t1" not in leaves:
        found = ["hada_w1_a", "hada_w2_a"]
    else:
        found = [leaf for leaf in (UP, "lokr_w1", "lokr_w1_a") if leaf in leaves]
    if DORA in leaves:
        found = [UP, DORA] if UP in leaves and leaves[UP].shape[:1] == (leaves[DORA].numel(),) else []
    whole = all(leaf in leaves and leaves[leaf].dim() and len(leaves[leaf]) % parts == 0 for leaf in found)
    return found if whole else []


def _turned_back(leaves: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Of a layer of `Names.turned`, where it is one of those; None: it is not, or has no halves."""
    own = _of_rows(leaves, 2)
    if not own or not (halved(leaves[UP], leaves[DOWN]) if UP in own and DOWN in leaves else _twice_as_high(leaves)):
        return None
    return {**leaves, **{leaf: torch.cat(leaves[leaf].chunk(2)[::-1]) for leaf in own}}


def _twice_as_high(leaves: Mapping[str, Tensor]) -> bool:
    """Of a LoHa or LoKr whose factors fit each other."""
    try:
        lycoris.check("", leaves)
    except UserError:
        return False
    rows, columns = lycoris.shape_of(leaves)
    return columns is not None and rows == 2 * columns


def _part_of(leaves: Mapping[str, Tensor], share: Share) -> dict[str, Tensor] | None:
    """What of a LoRA belongs to some rows of its layer, without the ranks that change none of them: where a file was
    made of several LoRAs, each gets its own back, and one that changes nothing is none. None: it cannot be shared out.
    """
    own = _of_rows(leaves, share.of)
    if not own:
        return None
    part = {**leaves, **{leaf: leaves[leaf][share.rows(len(leaves[leaf]))] for leaf in own}}
    down, up = leaves.get(DOWN), leaves.get(UP)
    if own != [UP] or up is None or down is None or up.dim() != 2 or down.dim() != 2 or len(down) != up.shape[1]:
        return part
    used = part[UP].float().any(0)
    if used.all() or not up.float().any():
        return part
    if not used.any():
        return {}
    if ALPHA in leaves:
        part[ALPHA] = leaves[ALPHA].float() * (used.sum() / len(used))
    return {**part, DOWN: down[used], UP: part[UP][:, used]}
