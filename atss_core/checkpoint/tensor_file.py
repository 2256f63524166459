"""Files of tensors: PyTorch's, and ``.safetensors`` with the names of the classes as metadata."""

from __future__ import annotations

import io
import json
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from atss_core.checkpoint.caffe2 import NUMBERS
from atss_core.checkpoint.download import how_to_get_again
from atss_core.utils.text import printable, shorten

# What is often found under the name of a checkpoint, by its first bytes.
_FOREIGN = (
    (re.compile(rb"(\xef\xbb\xbf)?\s*<"), "a web page; download the file from its direct link"),
    (re.compile(rb"version https://git-lfs"), "a pointer of Git LFS; run git lfs pull"),
    (re.compile(rb"\xff\xd8\xff|\x89PNG|GIF8|BM|RIFF"), "an image; name a .pth or .safetensors file"),
)

# PyTorch stores tensors uncompressed, and packing trained weights saves little. A file that would grow more
# than this many times is made to fill the memory.
_MAX_GROWTH = 10
_MAX_PICKLE = 1 << 24  # bytes of a pickle that are searched for what it holds
_MAX_REASON = 200  # characters of the message of a library

# What pickles of tensors refer to.
_PLAIN = re.compile(r"(torch|torch\._utils|torch\.storage|collections|_codecs|numpy[\w.]*) ")

# How PyTorch and safetensors say that the end of a file is missing.
_CUT_OFF = re.compile(
    r"zip archive|not a zip file|EOF|truncated|incomplete|too ?small|header ?length", re.IGNORECASE
)


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
            if start.startswith(b"PK"):
                _check_growth(file)
            file.seek(0)
            # NumPy's numbers, which published checkpoints have beside the weights, become Python's. PyTorch
            # gets no path, because it would go by the suffix.
            with (
                warnings.catch_warnings(),
                torch.serialization.safe_globals([(number, name) for name, number in NUMBERS.items()]),
            ):
                warnings.simplefilter("ignore")  # of what is refused here anyway
                return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that someone else wrote may break a parser in any way
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        foreign = named[1] if named else _foreign_object(path)
        raise ValueError(f"{path} {explain(error, start, how_to_get_again(path), foreign)}") from error


def is_safetensors(start: bytes) -> bool:
    """Tell whether a file that starts so has the length of a JSON header and that header."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 32


def _check_growth(file: IO[bytes]) -> zipfile.ZipFile:
    """Open a zip file, but refuse one whose directory states sizes far above that of the file."""
    archive = zipfile.ZipFile(file)
    size, stated = file.seek(0, io.SEEK_END), sum(entry.file_size for entry in archive.infolist())
    if stated > _MAX_GROWTH * size:
        raise ValueError(f"its {size:,} bytes would grow to {stated:,} when unpacked")
    return archive


def _foreign_object(path: Path) -> str:
    """Return what a pickle, alone or in a zip file, refers to that is no tensor or container.

    PyTorch tells it of protocol 2 alone. Nothing is run. Empty if it refers to nothing else.
    """
    try:
        with open(path, "rb") as file:
            if zipfile.is_zipfile(file):
                archive = _check_growth(file)
                content = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
            else:
                file.seek(0)
                content = file.read(_MAX_PICKLE)
        texts, stream = [""], io.BytesIO(content)
        while stream.tell() < len(content):  # old files have several pickles
            for operation, value, _ in pickletools.genops(stream):
                is_name = operation.name in ("GLOBAL", "INST", "STACK_GLOBAL")
                name = " ".join(texts[-2:]) if operation.name == "STACK_GLOBAL" else str(value)
                if is_name and not _PLAIN.match(name):
                    return printable(name.replace(" ", ".")[:_MAX_REASON])
                if isinstance(value, str):
                    texts.append(value)
    except Exception:  # bytes that someone else wrote may break a parser in any way
        return ""
    return ""


def explain(error: Exception, start: bytes, remedy: str, foreign: str = "") -> str:
    """Return what is wrong with a file and what to do, to go after its name.

    Args:
        error: what reading it raised.
        start: the first bytes of the file.
        remedy: how to get the file again.
        foreign: the object that it holds, if it is no tensor or container.
    """
    # The message of PyTorch has a reason after a paragraph of advice, or is the reason.
    lines = str(error).rpartition("WeightsUnpickler error: ")[2].strip().splitlines()
    reason = printable(lines[0][:_MAX_REASON]) if lines else type(error).__name__
    if "weights_only" in reason:  # the advice is to switch the protection off
        foreign = foreign or (
            "a TorchScript archive" if "TorchScript" in reason else "what only code can read"
        )
    if foreign:
        return (
            f"cannot be read as a checkpoint: it holds {foreign}, which is not a plain tensor or container; "
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
    except (ValueError, RecursionError):
        return []
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []


def to_state_dict(weights: Any, source: Path) -> dict[str, Tensor]:
    """Return weights without the prefix ``module.`` that a parallel wrapper gave them.

    Raises:
        ValueError: naming the first entry that is no tensor by its name, or one that is sparse, quantized or
            not in the file as a whole.
    """
    if not isinstance(weights, dict) or not weights:
        raise ValueError(
            f"{source} holds no weights; expected tensors by name, alone or as 'model' or 'state_dict'"
        )
    for key, value in weights.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{source} holds no state dict: expected tensors by name, but {shorten(key)} is "
                f"a {type(value).__name__}; re-save its state dict"
            )
        if kind := _odd_kind(value):
            raise ValueError(
                f"{source}: expected plain dense tensors, got {kind} for {shorten(key)}. Re-save its state "
                f"dict with dense tensors"
            )
    state = {key.removeprefix("module."): value for key, value in weights.items()}
    if len(state) < len(weights):
        raise ValueError(
            f"{source}: expected each weight once, got some with and without the prefix module. of a "
            f"parallel wrapper. Re-save its state dict"
        )
    return state


def _odd_kind(value: Tensor) -> str:
    """Return of which kind a tensor is that does not hold all its numbers plainly, empty if it does."""
    kinds = {
        "a nested tensor": value.is_nested,
        "a sparse tensor": value.layout != torch.strided,
        "a quantized tensor": value.is_quantized,
        "a tensor without numbers": value.is_meta,
    }
    if any(kinds.values()):
        return next(kind for kind, is_so in kinds.items() if is_so)
    # Strides of 0 make a few numbers look like any number of them.
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return "an expanded tensor"
    return ""


def to_safetensors(weights: Mapping[str, Tensor], class_names: Sequence[str] | None = None) -> bytes:
    """Return the content of a file with a state dict."""
    # The format refuses tensors that share memory or are not contiguous.
    copies = {key: value.clone(memory_format=torch.contiguous_format) for key, value in weights.items()}
    return save(copies, {"class_names": json.dumps(list(class_names))} if class_names else None)
