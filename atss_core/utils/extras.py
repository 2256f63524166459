"""Optional packages, and how to install them."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import NamedTuple


class Extra(NamedTuple):
    """An optional package."""

    package: str  # name for pip
    extra: str  # of pyproject.toml
    purpose: str


# import name -> package
EXTRAS = {
    "onnx": Extra("onnx", "export", "export to ONNX"),
    "onnxscript": Extra("onnxscript", "export", "export to ONNX"),
    "onnxruntime": Extra("onnxruntime", "export", "running and checking ONNX files"),
    "openvino": Extra("openvino", "export", "export to OpenVINO"),
    "supervision": Extra("supervision", "supervision", "detections as supervision.Detections"),
    "tensorboard": Extra("tensorboard", "tensorboard", "curves of a training in TensorBoard"),
    "faster_coco_eval": Extra("faster-coco-eval", "fast", "faster COCO metrics"),
}


def has(module: str) -> bool:
    """Tell whether a package is installed, without importing it."""
    return importlib.util.find_spec(module) is not None


def require(module: str) -> ModuleType:
    """Import an optional package of ``EXTRAS`` or one of its modules, such as "onnxruntime.quantization".

    Raises:
        ValueError: if it is not installed; the message contains the command that installs it.
    """
    name = module.split(".", 1)[0]
    if not has(name):
        extra = EXTRAS[name]
        raise ValueError(
            f"{extra.purpose} needs {extra.package}, which is not installed: pip install {extra.package}, or "
            f"pip install -e '.[{extra.extra}]' in the checkout"
        )
    return importlib.import_module(module)
