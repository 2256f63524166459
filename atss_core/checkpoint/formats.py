"""Read weight files without running their code: PyTorch, safetensors, and Caffe2 pickles of Detectron."""

from __future__ import annotations

import io
import json
import math
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from atss_core.checkpoint.download import how_to_get_again
from atss_core.utils.text import printable, shorten

# Files that are often found under the name of a checkpoint, by their first bytes.
_FOREIGN = (
    (re.compile(rb"(\xef\xbb\xbf)?\s*<"), "a web page; download the file from its direct link"),
    (re.compile(rb"version https://git-lfs"), "a pointer of Git LFS; run git lfs pull"),
    (re.compile(rb"\xff\xd8\xff|\x89PNG|GIF8|BM|RIFF"), "an image; name a .pth or .safetensors file"),
)
# PyTorch stores tensors uncompressed, and compressing trained weights saves little. A file that would grow by
# more than this factor is made to fill the memory.
_MAX_GROWTH = 10
_MAX_PICKLE = 1 << 24  # bytes of a pickle that are searched for foreign objects
_MAX_REASON = 200  # characters of a library's message, which a hostile file may make long
_PLAIN = re.compile(r"(torch|torch\._utils|torch\.storage|collections|_codecs|numpy[\w.]*) ")  # in pickles
# Messages of PyTorch and safetensors about a file whose end is missing.
_CUT_OFF = re.compile(
    r"zip archive|not a zip file|EOF|truncated|incomplete|too ?small|header ?length", re.IGNORECASE
)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint: ours, a published one, or a bare state dict, of PyTorch or safetensors.

    Returns:
        A dictionary with at least ``model``, a state dict without the prefix ``module.``. EMA weights, if
        any, are another one at ``ema``, ``model``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read or is no checkpoint.
    """
    _refuse_missing(path)
    content = _read_tensors(path)
    nested = content if isinstance(content, dict) else {}
    wrapper = next((key for key in ("model", "state_dict") if isinstance(nested.get(key), dict)), None)
    state = {**nested, "model": nested[wrapper]} if wrapper else {"model": content}
    names = state.get("class_names")
    if names is not None:
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise ValueError(
                f"{path}: expected class_names to be a list of text, got {printable(shorten(names))}. "
                f"Re-save it with the names of its classes, or without class_names"
            )
        state["class_names"] = list(names)
    for holder in (state, state.get("ema")):
        if isinstance(holder, dict) and "model" in holder:
            holder["model"] = _to_state_dict(holder["model"], path)
    return state


def to_safetensors(weights: Mapping[str, Tensor], class_names: Sequence[str] | None = None) -> bytes:
    """Return the content of a safetensors file with a state dict and, as metadata, class names."""
    # The format refuses tensors that share memory or are not contiguous.
    copies = {key: value.clone(memory_format=torch.contiguous_format) for key, value in weights.items()}
    return save(copies, {"class_names": json.dumps(list(class_names))} if class_names else None)


def _refuse_missing(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}; set MODEL.WEIGHT to an existing file")


def _read_tensors(path: Path) -> Any:
    """Read a file of PyTorch or safetensors, told apart by its first bytes.

    Raises:
        ValueError: if it cannot be read.
    """
    start = b""
    try:
        with open(path, "rb") as file:
            start = file.read(64)
            if _is_safetensors(start):
                return _read_safetensors(path)
            if start.startswith(b"PK"):
                _open_zip(file)
            file.seek(0)
            # NumPy scalars, which published checkpoints hold beside the weights, become Python numbers.
            # PyTorch gets no path, because it would go by the suffix.
            with (
                warnings.catch_warnings(),
                torch.serialization.safe_globals([(value, name) for name, value in _SCALARS.items()]),
            ):
                warnings.simplefilter("ignore")  # about tensors that are refused here anyway
                return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file may break a parser in any way
        raise ValueError(f"{path} {_explain(error, start, path)}") from error


def _is_safetensors(start: bytes) -> bool:
    """Tell whether the first bytes of a file are the length of a JSON header and that header."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 32


def _read_safetensors(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        state: dict[str, Any] = {"model": {key: file.get_tensor(key) for key in file.keys()}}  # noqa: SIM118
        text = (file.metadata() or {}).get("class_names", "[]")
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):  # metadata of other programs
        return state
    is_named = names and isinstance(names, list) and all(isinstance(name, str) for name in names)
    return state | ({"class_names": names} if is_named else {})


def _open_zip(file: IO[bytes]) -> zipfile.ZipFile:
    """Open a zip file, but refuse one whose directory states sizes far above that of the file."""
    archive = zipfile.ZipFile(file)
    size, stated = file.seek(0, io.SEEK_END), sum(entry.file_size for entry in archive.infolist())
    if stated > _MAX_GROWTH * size:
        raise ValueError(f"its {size:,} bytes would grow to {stated:,} when unpacked")
    return archive


def _explain(error: Exception, start: bytes, path: Path) -> str:
    """Return what is wrong with a file that starts with ``start``, and the remedy."""
    # A message of PyTorch is a reason, or has one after a paragraph of advice.
    lines = str(error).rpartition("WeightsUnpickler error: ")[2].strip().splitlines()
    reason = printable(lines[0][:_MAX_REASON]) if lines else type(error).__name__
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    foreign = named[1] if named else _foreign_object(path)
    if "weights_only" in reason and not foreign:  # PyTorch advises to switch the protection off
        foreign = "a TorchScript archive" if "TorchScript" in reason else "what only code can read"
    if foreign:
        return (
            f"cannot be read as a checkpoint: it holds {foreign}, which is not a plain tensor or container; "
            f"re-save its state dict"
        )
    for pattern, kind in _FOREIGN:
        if pattern.match(start):
            return f"is no checkpoint, but {kind}"
    if start and not start.startswith((b"PK", b"\x80")) and not _is_safetensors(start):
        return f"is no checkpoint ({reason}); name a .pth or .safetensors file"
    remedy = how_to_get_again(path)
    if isinstance(error, EOFError) or _CUT_OFF.search(reason):
        remedy = f"it may be truncated: {remedy}, or go back to an earlier one"
    return f"cannot be read as a checkpoint ({reason}); {remedy}"


def _foreign_object(path: Path) -> str:
    """Return the first name in a pickle, alone or in a zip file, that is no tensor or container; else "".

    PyTorch names it for protocol 2 alone.
    """
    try:
        with open(path, "rb") as file:
            if zipfile.is_zipfile(file):
                archive = _open_zip(file)
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
    except Exception:  # a damaged or hostile file may break a parser in any way
        return ""
    return ""


def _to_state_dict(weights: Any, source: Path) -> dict[str, Tensor]:
    """Return plain tensors by name, without the prefix ``module.`` of a parallel wrapper."""
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
        if kind := _special_kind(value):
            raise ValueError(
                f"{source}: expected plain dense tensors, got {kind} tensor for {shorten(key)}. Re-save its "
                f"state dict with dense tensors"
            )
    state = {key.removeprefix("module."): value for key, value in weights.items()}
    if len(state) < len(weights):
        raise ValueError(
            f"{source}: expected each weight once, got some with and without the prefix module. of a "
            f"parallel wrapper. Re-save its state dict"
        )
    return state


def _special_kind(value: Tensor) -> str:
    """Return the kind of a tensor that does not hold all its numbers plainly, else ""."""
    kinds = {
        "a nested": value.is_nested,
        "a sparse": value.layout != torch.strided,
        "a quantized": value.is_quantized,
        "a meta": value.is_meta,
    }
    kind = next((kind for kind, is_so in kinds.items() if is_so), "")
    # Strides of 0 make a few numbers look like any number of them.
    if not kind and value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return "an expanded"
    return kind


def read_caffe2(path: Path) -> dict[str, Tensor]:
    """Read the float arrays of a Detectron ``.pkl`` by blob name.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds anything but arrays and plain containers, or no blobs.
    """
    _refuse_missing(path)
    try:
        content = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except Exception as error:  # a damaged or hostile file may break a parser in any way
        reason = printable(" ".join(str(error).split())[:_MAX_REASON]) or type(error).__name__
        raise ValueError(
            f"{path} cannot be read as Caffe2 weights: {reason}; {how_to_get_again(path)}"
        ) from error
    blobs = content.get("blobs", content) if isinstance(content, dict) else None
    arrays = {
        name: torch.from_numpy(value.numbers)
        for name, value in (blobs.items() if isinstance(blobs, dict) else ())
        if isinstance(name, str) and isinstance(value, _Array) and value.numbers.dtype.kind == "f"
    }
    if not arrays:
        raise ValueError(f"{path} holds no blobs; expected a dictionary of arrays by their Caffe2 names")
    return arrays


class _Dtype:
    """Stands for ``numpy.dtype``, which accepts any state, even one that turns numbers into pointers."""

    def __init__(self, code: str, *_: object) -> None:
        if not re.fullmatch(r"f[248]|[iu][1248]|b1", code):
            raise pickle.UnpicklingError(f"it has numbers of type {code!r}")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple) -> None:
        """Keep the byte order alone."""
        if state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"it has numbers in the order {state[1]!r}")
        self.order = state[1]


class _Array:
    """Stands for ``numpy.ndarray``; holds no numbers until its state arrives."""

    numbers: np.ndarray = np.zeros(0, dtype=bool)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, data = state
        self.numbers = _to_numbers(data, dtype, shape, "F" if is_fortran else "C")


def _to_numbers(data: object, dtype: object, shape: tuple[int, ...], order: str = "C") -> np.ndarray:
    """Return an array in native byte order, made from bytes or, in Python 2, a string."""
    if not isinstance(data, (bytes, bytearray, str)):  # bytes(n) of a number would reserve n bytes
        raise pickle.UnpicklingError(f"it has a {type(data).__name__} for the numbers of an array")
    if not isinstance(dtype, _Dtype):
        raise pickle.UnpicklingError("it has an array without a type")
    content = data.encode("latin1") if isinstance(data, str) else bytes(data)
    stored = np.dtype(dtype.order + dtype.code)
    if min(shape, default=0) < 0 or math.prod(shape) * stored.itemsize != len(content):
        raise pickle.UnpicklingError(f"it has {len(content)} bytes for an array of shape {shape}")
    numbers = np.frombuffer(content, stored).reshape(shape, order="F" if order == "F" else "C")
    return numbers.astype(dtype.code)


def _from_buffer(data: bytes, dtype: _Dtype, shape: tuple, order: str, axes: tuple | None = None) -> _Array:
    """Return an array of protocol 5."""
    array, numbers = _Array(), _to_numbers(data, dtype, shape, order)
    array.numbers = numbers if axes is None else np.ascontiguousarray(numbers.transpose(axes))
    return array


def _to_scalar(dtype: _Dtype, data: bytes | str) -> Any:
    return _to_numbers(data, dtype, ()).item()


# Substitutes for the names of scalars and arrays in pickles; NumPy 2 moved its modules.
_CORES = ("numpy.core", "numpy._core")
_SCALARS: dict[str, Callable] = {
    "numpy.dtype": _Dtype,
    **{f"{core}.multiarray.scalar": _to_scalar for core in _CORES},
}
_ALLOWED: dict[str, Callable] = {
    **_SCALARS,
    "numpy.ndarray": _Array,
    **{f"{core}.multiarray._reconstruct": _Array for core in _CORES},
    **{f"{core}.numeric._frombuffer": _from_buffer for core in _CORES},
    "_codecs.encode": lambda text, encoding: text.encode("latin1"),  # bytes in old protocols
    "__builtin__.bytes": lambda: b"",  # and empty ones
}


def _load_bytes(unpickler: Any) -> None:
    """Read bytes without reserving memory for whatever number of them a file claims to have."""
    unpickler.append(unpickler.read(int.from_bytes(unpickler.read(8), "little")))


def _load_build(unpickler: Any) -> None:
    """Set the state of arrays and their types alone, and never change the functions above."""
    if not isinstance(unpickler.stack[-2], (_Dtype, _Array)):
        raise pickle.UnpicklingError("it changes an object that is not an array")
    pickle._Unpickler.load_build(unpickler)  # type: ignore[attr-defined]


# The unpickler in C reserves memory for whatever number of memos a file claims to have.
class _ArrayUnpickler(pickle._Unpickler):
    """Unpickles arrays and plain containers, and refuses everything else."""

    dispatch = {  # noqa: RUF012
        **pickle._Unpickler.dispatch,
        pickle.BYTEARRAY8[0]: _load_bytes,
        pickle.BUILD[0]: _load_build,
    }

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _ALLOWED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is not an array")
        return _ALLOWED[f"{module}.{name}"]
