"""Tables of a model file: a row for every parameter, and by it from the published single file to the built model and
back. A key that stands in no row is a fault, and so is a row without a key. Nothing here reads or writes files.

An `fp8_scaled` file (ComfyUI's convention) keeps a layer's weight in float8, and beside it what it is multiplied with,
`<layer>.scale_weight` (`<layer>.weight_scale` from late 2025 on): one number for the whole weight or one for each of
its rows. What else stands there (the inputs' scale, a word on the format) concerns only how products are computed; but
of int8 codes the word on the format says whether they were turned, see `formats.comfy`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from lora_scripts.errors import UserError, raise_all
from lora_scripts.families.names import Share
from lora_scripts.formats.comfy import BESIDE, turn_back, turned_together

if TYPE_CHECKING:
    import torch
    from torch import Tensor

INCOMPLETE = "the file is incomplete; get the original one"
Shapes = Mapping[str, Sequence[int]]
"""Of a file's tensors, by key."""

_SCALES = (".scale_weight", ".weight_scale")
_BESIDE_SCALES = (".scale_input", ".input_scale", ".comfy_quant")
_SCHEDULE_BUFFERS = {
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2", "lvlb_weights", "logvar",
    "scale_factor", "global_step",
}  # fmt: skip
_SPARE_PREFIXES = ("model_ema.", "first_stage_model.loss.", "first_stage_model.model_ema.", "embedding_manager.")


class Row(NamedTuple):
    """One parameter: its key in the published file, its key in diffusers or transformers, its shape in the file."""

    ldm: str
    hf: str
    shape: tuple[int, ...]
    share: Share | None = None
    """Which of the rows of the file's tensor it is, where several layers are one; `shape` is without the others."""
    transposed: bool = False
    """That the model has the matrix the other way round."""
    flat: bool = False
    """That it is a 1 x 1 convolution in the file, and a matrix in the model; a file may have the matrix, too."""
    swapped: bool = False
    """That its two halves stand the other way round in the model."""
    lines: int = 0
    """Of how many lines the model's matrix is that the file has as one; 0: it is the same in both."""
    heads: int = 0
    """Of how many heads its rows are, of each of which the file has the two halves in turn (llama.cpp's order); 0: they
    lie as in the model."""

    @property
    def file_shape(self) -> tuple[int, ...]:
        """Of the file's whole tensor."""
        if self.share is None:
            return self.shape
        start, stop, of = self.share
        return (self.shape[0] * of // (stop - start), *self.shape[1:])

    @property
    def model_shape(self) -> tuple[int, ...]:
        """Of the parameter in the model."""
        if self.transposed:
            return self.shape[::-1]
        if self.lines:
            return (self.lines, self.shape[0] // self.lines)
        return self.shape[:2] if self.flat else self.shape


def both(ldm: str, hf: str, weight: tuple[int, ...], *, flat: bool = False) -> Iterator[Row]:
    """A layer with a weight and a bias; the bias is as long as the weight's first axis."""
    yield Row(ldm + ".weight", hf + ".weight", weight, flat=flat)
    yield Row(ldm + ".bias", hf + ".bias", weight[:1])


def under(prefix: str, rows: Iterable[Row]) -> list[Row]:
    """The rows with a prefix before each key of the file."""
    return [row._replace(ldm=prefix + row.ldm) for row in rows]


class _Slice(Protocol):
    def get_shape(self) -> list[int]: ...


class Handle(Protocol):
    """What `safetensors.safe_open` gives."""

    def keys(self) -> Collection[str]: ...
    def get_tensor(self, name: str) -> Tensor: ...
    def get_slice(self, name: str) -> _Slice: ...


def shapes_in(handle: Handle) -> dict[str, list[int]]:
    """The shape of every tensor."""
    return {key: handle.get_slice(key).get_shape() for key in handle.keys()}  # noqa: SIM118  it is no mapping


def is_spare(key: str) -> bool:
    """Whether any checkpoint may hold this key unused: EMA copies, schedule buffers, the VAE's loss, what stands beside
    the scales of an fp8 file.
    """
    return (
        key in _SCHEDULE_BUFFERS
        or key.startswith(_SPARE_PREFIXES)
        or key.endswith((*_BESIDE_SCALES, ".scaled_fp8"))
        or key == "scaled_fp8"
    )


def size_of(shapes: Shapes, key: str, axis: int, file: Path | None) -> int:
    """One width, or UserError when the tensor that tells it is not there."""
    shape = shapes.get(key)
    if shape is None or len(shape) <= axis:
        raise UserError(f"the tensor {key} is missing", file=file, hint=INCOMPLETE)
    return shape[axis]


def count_of(keys: Iterable[str], prefix: str) -> int:
    """How many layers there are, by the largest number that stands behind the prefix; 0 when there is none."""
    numbers = [key.removeprefix(prefix).partition(".")[0] for key in keys if key.startswith(prefix)]
    return max((int(number) + 1 for number in numbers if number.isdecimal()), default=0)


def check_rows(
    shapes: Shapes,
    parts: Mapping[str, Sequence[Row]],
    unknown: Collection[str],
    *,
    file: Path | None,
    names: Mapping[str, str] | None = None,
    plain: str,
) -> None:
    """UserError, all faults at once, when a tensor is missing, has a wrong shape, or has no row.

    `parts`: what a part is called -> its rows. `unknown`: the keys that must stand in some row. `names`: key as
    published -> key in the file. `plain`: what to do about a file that is not as published.
    """
    names = names or {key: key for key in shapes}
    left, errors = set(unknown), []
    for part, rows in parts.items():
        missing = [key for key in dict.fromkeys(row.ldm for row in rows) if key not in names]
        if missing:
            few = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
            text = f"{len(missing)} of {len({row.ldm for row in rows})} tensors of the {part} are missing: {few}"
            errors.append(UserError(text, file=file, hint=INCOMPLETE))
        for row in rows:
            if row.ldm not in names or (row.share and row.share.start):  # the first speaks for all
                continue
            shape, wanted = tuple(shapes[names[row.ldm]]), row.file_shape
            if shape != wanted and not (row.flat and shape == wanted[:2]):
                errors.append(
                    UserError(f"{row.ldm} has shape {list(shape)}, not {list(wanted)}", file=file, hint=plain)
                )
            scale = scale_key(names[row.ldm], shapes)
            if scale is not None:
                left.discard(scale)
                errors += _scale_faults(scale, shapes, wanted, file)
        left -= {names[row.ldm] for row in rows if row.ldm in names}
    if left:
        text = f"{len(left)} unknown tensors, first {ascii(min(left))[1:-1][:119]}"
        errors.append(UserError(text, file=file, hint=plain))
    raise_all(errors[:10])


def scale_key(key: str, keys: Collection[str]) -> str | None:
    """The key of the number that a weight is multiplied with; None when there is none."""
    if not key.endswith(".weight"):
        return None
    stem = key.removesuffix(".weight")
    return next((stem + end for end in _SCALES if stem + end in keys), None)


def _scale_faults(scale: str, shapes: Shapes, weight: Sequence[int], file: Path | None) -> list[UserError]:
    shape = tuple(shapes[scale])
    by_row = (weight[0], *[1] * (len(weight) - 1))
    if shape in ((), (1,), by_row, (weight[0],)):
        return []
    text = f"{scale} has shape {list(shape)}: neither one scale for the weight nor one for each of its rows"
    return [UserError(text, file=file, hint="give the fp32, fp16, bf16 or fp8_scaled version")]


def from_rows(
    handle: Handle, rows: Sequence[Row], names: Mapping[str, str] | None = None, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """A state dict in the model's keys, checked before by `check_rows`.

    The tensors are in the file's own dtype and stay memory-mapped; but one with a scale is made whole in float32, and
    rounded once to `dtype` if there is one.
    """
    import torch

    keys = set(handle.keys())
    state = {}
    for row in rows:
        key = names[row.ldm] if names else row.ldm
        tensor, scale = handle.get_tensor(key), scale_key(key, keys)
        if scale is not None:
            from lora_scripts.compute.quantised import scaled

            rounded = tensor
            tensor = scaled(rounded, handle.get_tensor(scale))
            if rounded.dtype == torch.int8 and (beside := key.removesuffix(".weight") + BESIDE) in keys:
                size = turned_together(handle.get_tensor(beside).numpy().tobytes())
                tensor = turn_back(tensor, size) if size else tensor
            tensor = tensor if dtype is None else tensor.to(dtype)
        state[row.hf] = as_model(tensor, row)
    return state


def as_model(tensor: Tensor, row: Row) -> Tensor:
    """The parameter of a row, of the file's whole tensor."""
    import torch

    if row.share is not None:
        tensor = tensor[row.share.rows(len(tensor))]
    if row.swapped:
        return torch.cat(tensor.chunk(2)[::-1])
    if row.heads:
        return tensor.unflatten(0, (row.heads, -1, 2)).transpose(1, 2).flatten(0, 2)
    if row.transposed:
        return tensor.T.contiguous()
    return tensor.reshape(row.model_shape) if row.flat or row.lines else tensor


def to_rows(rows: Sequence[Row], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published file's tensors from a whole state dict; the inverse of `from_rows`.

    ValueError for a missing or unknown key and for a wrong shape: it is ours to give whole models.
    """
    import torch

    odd = {row.hf for row in rows} ^ set(state)
    if odd:
        raise ValueError(f"{len(odd)} keys missing or unknown, first {min(odd)}")
    tensors: dict[str, Tensor] = {}
    for row in rows:
        tensor = _as_file(state[row.hf], row)
        if row.share and row.share.start:  # they stand in order, so those before are there
            tensor = torch.cat((tensors[row.ldm], tensor))
        tensors[row.ldm] = tensor
    return tensors


def _as_file(tensor: Tensor, row: Row) -> Tensor:
    if tuple(tensor.shape) != row.model_shape:
        raise ValueError(f"{row.hf} has shape {tuple(tensor.shape)}, not {row.model_shape}")
    if row.swapped:
        import torch

        return torch.cat(tensor.chunk(2)[::-1])
    return tensor.T.contiguous() if row.transposed else tensor.reshape(row.shape)
