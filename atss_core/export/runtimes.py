"""Run exported files as their users do: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision  # noqa: F401  (registers the operators of packages)

from atss_core.export.description import KEY, Description
from atss_core.export.graph import DETECTIONS, INPUTS
from atss_core.utils.extras import require

Arrays = list[np.ndarray]

# Takes images (N, 3, H, W) and image_sizes (N, 2), returns the outputs in their order.
Runner = Callable[[np.ndarray, np.ndarray], Arrays]


def load(path: Path, num_threads: int) -> tuple[Runner, Description]:
    """Open an exported file on the CPU, in float32.

    Raises:
        ValueError: if it is no exported file of this package, or its runtime is not installed.
        FileNotFoundError: if it is not there.
    """
    if path.suffix not in _LOADERS:
        raise ValueError(f"expected a file that ends in {', '.join(_LOADERS)}, got {path}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no exported model {path}")
    return _LOADERS[path.suffix](path, num_threads)


def _load_onnx(path: Path, num_threads: int) -> tuple[Runner, Description]:
    onnxruntime = require("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(*arrays: np.ndarray) -> Arrays:
        return session.run(None, dict(zip(INPUTS, arrays, strict=True)))

    return run, _description(path, session.get_modelmeta().custom_metadata_map.get(KEY))


def _load_openvino(path: Path, num_threads: int) -> tuple[Runner, Description]:
    core = require("openvino").Core()
    model = core.read_model(path)
    text = model.get_rt_info([KEY]).value if model.has_rt_info([KEY]) else None
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": num_threads}
    compiled = core.compile_model(model, "CPU", settings)

    def run(*arrays: np.ndarray) -> Arrays:
        return list(compiled(dict(zip(INPUTS, arrays, strict=True))).to_tuple())

    return run, _description(path, text)


def _load_torch(path: Path, num_threads: int) -> tuple[Runner, Description]:
    extra = {KEY: ""}
    module = torch.export.load(path, extra_files=extra).module()

    def run(*arrays: np.ndarray) -> Arrays:
        with torch.inference_mode():
            return [tensor.numpy() for tensor in module(*map(torch.from_numpy, arrays))]

    return run, _description(path, extra[KEY])


_LOADERS = {".onnx": _load_onnx, ".xml": _load_openvino, ".pt2": _load_torch}


def _description(path: Path, text: str | None) -> Description:
    if not text:
        raise ValueError(f"{path} was not written by atss export: it has no description {KEY!r}")
    return Description.from_json(text)


def is_nms_inside(outputs: Arrays) -> bool:
    """Tell detections from candidates."""
    return len(outputs) == len(DETECTIONS)
