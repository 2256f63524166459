"""Files of tensors: PyTorch's, and ``.safetensors`` with the names of the classes as metadata."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from atss_core.utils.caffe2 import NUMBERS
from atss_core.utils.download import how_to_get_again

# What is often found under the name of a checkpoint, by its first bytes.
_FOREIGN = (
    (re.compile(rb"(\xef\xbb\xbf)?\s*<"), "a web page; download the file from its direct link"),
    (re.compile(rb"version https://git-lfs"), "a pointer of Git LFS; run git lfs pull"),
    (re.compile(rb"\xff\xd8\xff|\x89PNG|GIF8|BM|RIFF"), "a picture; name a .pth or .safetensors file"),
)

# How PyTorch and safetensors say that the end of a file is missing.
_CUT_OFF = re.compile(r"zip archive|EOF|truncated|incomplete|too ?small|header ?length", re.IGNORECASE)


def read_tensor_file(path: Path) -> Any:
    """Read a file that PyTorch or safetensors wrote, told apart by their first bytes, without running code.

    Raises:
        ValueError: if it cannot be read.
    """
    start = b""
    try:
        with open(path, "rb") as file:
            start = file.read(64)
            if is_safetensors(start):
                return read_safetensors(path)
            file.seek(0)
            # NumPy's numbers, which published checkpoints have beside the weights, become Python's. PyTorch
            # gets no path, because it would go by the suffix.
            with torch.serialization.safe_globals([(number, name) for name, number in NUMBERS.items()]):
                return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that someone else wrote may break a parser in any way
        raise ValueError(f"{path} {explain(error, start, how_to_get_again(path))}") from error


def is_safetensors(start: bytes) -> bool:
    """Tell whether a file that starts so has the length of a JSON header and that header."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 32


def explain(error: Exception, start: bytes, remedy: str) -> str:
    """Return what is wrong with a file and what to do, to go after its name.

    Args:
        error: what reading it raised.
        start: the first bytes of the file.
        remedy: how to get the file again.
    """
    # The message of PyTorch has a reason after a paragraph of advice, or is the reason.
    lines = str(error).rpartition("WeightsUnpickler error: ")[2].strip().splitlines()
    reason = lines[0] if lines else type(error).__name__
    if found := re.search(r"GLOBAL ([\w.]+)", reason):
        return (
            f"cannot be read as a checkpoint: it holds {found[1]}, which is not a plain tensor or container; "
            f"re-save its state dict"
        )
    for pattern, kind in _FOREIGN:
        if pattern.match(start):
            return f"is no checkpoint, but {kind}"
    if start and not start.startswith((b"PK", b"\x80")) and not is_safetensors(start):
        return f"is no checkpoint ({reason}); name a .pth or .safetensors file"
    if isinstance(error, EOFError) or _CUT_OFF.search(reason):
        return (
            f"cannot be read as a checkpoint ({reason}); it may be truncated: {remedy}, or go back to an "
            f"earlier one"
        )
    return f"cannot be read as a checkpoint ({reason}); {remedy}"


def read_safetensors(path: Path) -> dict[str, Any]:
    """Read a file as a checkpoint with ``model`` and, if it has them, ``class_names``."""
    with safe_open(path, framework="pt") as file:
        state: dict[str, Any] = {"model": {key: file.get_tensor(key) for key in file.keys()}}  # noqa: SIM118
        names = class_names_of(file.metadata() or {})
    return state | ({"class_names": names} if names else {})


def class_names_of(metadata: Mapping[str, str]) -> list[str]:
    """Return the names that ``to_safetensors`` wrote; none if there are none or someone else wrote others."""
    try:
        names = json.loads(metadata.get("class_names", "[]"))
    except ValueError:
        return []
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []


def to_state_dict(weights: Any, source: Path) -> dict[str, Tensor]:
    """Return weights without the prefix ``module.`` that a parallel wrapper gave them.

    Raises:
        ValueError: naming the first entry that is no tensor by its name.
    """
    if not isinstance(weights, dict) or not weights:
        raise ValueError(
            f"{source} holds no weights; expected tensors by name, alone or as 'model' or 'state_dict'"
        )
    for key, value in weights.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{source} holds no state dict: expected tensors by name, but {key!r} is a "
                f"{type(value).__name__}; re-save its state dict"
            )
    return {key.removeprefix("module."): value for key, value in weights.items()}


def to_safetensors(weights: Mapping[str, Tensor], class_names: Sequence[str] | None = None) -> bytes:
    """Return the content of a file with a state dict."""
    # The format refuses tensors that share memory or are not contiguous.
    copies = {key: value.clone(memory_format=torch.contiguous_format) for key, value in weights.items()}
    return save(copies, {"class_names": json.dumps(list(class_names))} if class_names else None)
