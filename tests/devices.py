"""Marks for what runs only on some devices, or only with the compiled operators."""

import pytest
import torch

from atss_core.layers.extension import COMPILED_DEVICES

needs_compiled = pytest.mark.skipif(not COMPILED_DEVICES, reason="the compiled operators are not in use")

on_cuda = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
on_compiled_cuda = [
    *on_cuda,
    pytest.mark.skipif("cuda" not in COMPILED_DEVICES, reason="the operators are not compiled for CUDA"),
]

# Run a test on each device; with whatever operators it has, or only with compiled ones.
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_cuda)])
compiled_devices = pytest.mark.parametrize(
    "device",
    [pytest.param("cpu", marks=needs_compiled), pytest.param("cuda", marks=on_compiled_cuda)],
)
