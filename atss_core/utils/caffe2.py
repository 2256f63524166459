"""ImageNet weights in the Caffe2 layout of Detectron: a pickle of arrays by blob name."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# What a .pkl of arrays may refer to; anything else in it is refused. The module of the two functions
# has moved between versions of NumPy, so they are taken from what pickles use.
_REBUILD_ARRAY, _REBUILD_SCALAR = np.array(0).__reduce__()[0], np.float32(0).__reduce__()[0]
_HARMLESS = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _REBUILD_ARRAY,
    ("numpy._core.multiarray", "_reconstruct"): _REBUILD_ARRAY,
    ("numpy.core.multiarray", "scalar"): _REBUILD_SCALAR,
    ("numpy._core.multiarray", "scalar"): _REBUILD_SCALAR,
}

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


def body_key(blob: str) -> str:
    """Translate a Caffe2 blob name, such as ``res3_0_branch2b_bn_s``, to a key of the body."""
    for pattern, replacement in _RENAMES:
        blob = pattern.sub(replacement, blob)
    return blob


def read_caffe2(path: Path) -> dict[str, Tensor]:
    """Read the arrays of a Detectron ``.pkl`` without running what it may contain.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds anything but arrays and plain containers.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}; set MODEL.WEIGHT to an existing file")
    try:
        with open(path, "rb") as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as Caffe2 weights: {error}") from error
    blobs = content.get("blobs", content) if isinstance(content, dict) else None
    if not isinstance(blobs, dict):
        raise ValueError(f"{path} holds no Caffe2 blobs, but a {type(content).__name__}")
    return {
        str(name): torch.from_numpy(value.copy())
        for name, value in blobs.items()
        if isinstance(value, np.ndarray) and value.dtype.kind == "f"
    }


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickle arrays and plain containers, and refuse everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _HARMLESS:
            return _HARMLESS[module, name]
        if (module, name) == ("_codecs", "encode"):
            return lambda text, encoding: text.encode(encoding)
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is not an array")
