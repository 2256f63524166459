"""ImageNet weights in the Caffe2 layout of Detectron: a pickle of arrays by blob name."""

from __future__ import annotations

import math
import pickle
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atss_core.checkpoint.download import how_to_get_again
from atss_core.utils.text import printable

MAX_REASON = 200  # characters of what a hostile file may make long

_RENAMES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^conv1_gn_", "stem.bn1_"),
        (r"^conv1_", "stem.conv1_"),
        (r"^res_conv1_bn_", "stem.bn1_"),
        (r"^res(\d)_(\d+)_", lambda m: f"layer{int(m[1]) - 1}.{m[2]}."),
        (r"branch1_[bg]n_", "downsample.1_"),
        (r"branch1_", "downsample.0_"),
        (r"branch2([abc])_[bg]n_", lambda m: f"bn{'abc'.index(m[1]) + 1}_"),
        (r"branch2([abc])_", lambda m: f"conv{'abc'.index(m[1]) + 1}_"),
        (r"_(w|s)$", ".weight"),
        (r"_b$", ".bias"),
    )
]


def backbone_key(blob: str) -> str:
    """Translate a Caffe2 blob name, such as ``res3_0_branch2b_bn_s``, to a key of the body."""
    for pattern, replacement in _RENAMES:
        blob = pattern.sub(replacement, blob)
    return blob


def read_caffe2(path: Path) -> dict[str, Tensor]:
    """Read the arrays of a Detectron ``.pkl`` without running what it may contain.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds anything but arrays and plain containers, or no blobs.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}; set MODEL.WEIGHT to an existing file")
    try:
        content = _ArrayUnpickler(BytesIO(path.read_bytes()), encoding="latin1").load()
    except Exception as error:  # bytes that someone else wrote may break a parser in any way
        reason = printable(" ".join(str(error).split())[:MAX_REASON]) or type(error).__name__
        raise ValueError(
            f"{path} cannot be read as Caffe2 weights: {reason}; {how_to_get_again(path)}"
        ) from error
    blobs = content.get("blobs", content) if isinstance(content, dict) else None
    arrays = {
        name: torch.from_numpy(value.array)
        for name, value in (blobs.items() if isinstance(blobs, dict) else ())
        if isinstance(name, str) and isinstance(value, PickledArray) and value.array.dtype.kind == "f"
    }
    if not arrays:
        raise ValueError(f"{path} holds no blobs; expected a dictionary of arrays by their Caffe2 names")
    return arrays


class PickledDtype:
    """What a pickle says about a type of numbers.

    NumPy's own dtype believes any state that a pickle gives it, also one that makes it take numbers for
    addresses. This and the classes below take its place, and none hands out NumPy's.
    """

    def __init__(self, code: str, *_: object) -> None:
        if not re.fullmatch(r"f[248]|[iu][1248]|b1", code):
            raise pickle.UnpicklingError(f"it has numbers of type {code!r}")
        self.code = code
        self.order = "="

    def __setstate__(self, state: tuple) -> None:
        """Keep the order of the bytes alone."""
        if state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"it has numbers in the order {state[1]!r}")
        self.order = state[1]

    def read(self, shape: tuple[int, ...], data: bytes | bytearray | str, order: str) -> np.ndarray:
        """Return numbers in the order of this machine.

        Args:
            shape: of the array.
            data: as many bytes as that takes; a string from Python 2.
            order: ``"C"`` or ``"F"``.
        """
        if not isinstance(data, (bytes, bytearray, str)):  # bytes(n) of a number are n bytes of memory
            raise pickle.UnpicklingError(f"it has a {type(data).__name__} for the numbers of an array")
        numbers = data.encode("latin1") if isinstance(data, str) else bytes(data)
        dtype = np.dtype(self.order + self.code)
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(numbers):
            raise pickle.UnpicklingError(f"it has {len(numbers)} bytes for an array of shape {shape}")
        return (
            np.frombuffer(numbers, dtype).reshape(shape, order="F" if order == "F" else "C").astype(self.code)
        )


class PickledArray:
    """An array in a pickle, none of numbers until its state arrives."""

    array: np.ndarray = np.zeros(0, dtype=bool)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: tuple) -> None:
        """Take the numbers."""
        _, shape, dtype, is_fortran, data = state
        self.array = _own(dtype).read(shape, data, "F" if is_fortran else "C")


class PickledBuffer(PickledArray):
    """An array as protocol 5 writes it, with its numbers at once."""

    def __init__(
        self, data: bytes, dtype: PickledDtype, shape: tuple, order: str, axes: tuple | None = None
    ) -> None:
        array = _own(dtype).read(shape, data, order)
        self.array = array if axes is None else np.ascontiguousarray(array.transpose(axes))


class PickledScalar:
    """A number of NumPy in a pickle: making one gives Python's own number."""

    def __new__(cls, dtype: PickledDtype, data: bytes | str) -> Any:
        """Return the number."""
        return _own(dtype).read((), data, "C").item()

    def __setstate__(self, state: object) -> None:
        """Refuse to be changed; there is never an object of this class."""
        raise pickle.UnpicklingError("it changes a number")


def _own(dtype: object) -> PickledDtype:
    if not isinstance(dtype, PickledDtype):
        raise pickle.UnpicklingError("it has an array without a type")
    return dtype


# What stands for the names that numbers and arrays have in pickles; NumPy 2 moved its modules.
NUMBERS: dict[str, type] = {
    "numpy.dtype": PickledDtype,
    "numpy.core.multiarray.scalar": PickledScalar,
    "numpy._core.multiarray.scalar": PickledScalar,
}
ARRAYS: dict[str, type] = NUMBERS | {
    "numpy.ndarray": PickledArray,
    "numpy.core.multiarray._reconstruct": PickledArray,
    "numpy._core.multiarray._reconstruct": PickledArray,
    "numpy.core.numeric._frombuffer": PickledBuffer,
    "numpy._core.numeric._frombuffer": PickledBuffer,
}


def _load_bytes(unpickler: Any) -> None:
    """Read bytes, where Python would reserve memory for whatever number of them a file claims to have."""
    unpickler.append(unpickler.read(int.from_bytes(unpickler.read(8), "little")))


# The one in C reserves memory for whatever number of memos a file claims to have.
class _ArrayUnpickler(pickle._Unpickler):
    """Unpickle arrays and plain containers, and refuse everything else."""

    dispatch = {**pickle._Unpickler.dispatch, pickle.BYTEARRAY8[0]: _load_bytes}  # noqa: RUF012

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" in ARRAYS:
            return ARRAYS[f"{module}.{name}"]
        if (module, name) == ("_codecs", "encode"):
            return lambda text, encoding: text.encode("latin1")  # what bytes are in old protocols
        if (module, name) == ("__builtin__", "bytes"):
            return lambda: b""  # and what no bytes are
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is not an array")
