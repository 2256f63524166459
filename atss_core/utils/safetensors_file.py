"""Checkpoints as ``.safetensors``: tensors, and the names of the classes as metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor


def read_safetensors(path: Path) -> dict[str, Any]:
    """Read a file as a checkpoint with ``model`` and, if it has them, ``class_names``.

    Raises:
        ValueError: if it is no such file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            state: dict[str, Any] = {"model": {key: file.get_tensor(key) for key in file.keys()}}  # noqa: SIM118
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    if "class_names" in metadata:
        state["class_names"] = json.loads(metadata["class_names"])
    return state


def to_safetensors(weights: Mapping[str, Tensor], class_names: Sequence[str] | None = None) -> bytes:
    """Return the content of a file with a state dict."""
    # The format refuses tensors that share memory or are not contiguous.
    copies = {key: value.clone(memory_format=torch.contiguous_format) for key, value in weights.items()}
    return save(copies, {"class_names": json.dumps(list(class_names))} if class_names else None)
