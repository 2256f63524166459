"""Marks for what runs only on some devices or with the compiled operators."""

import pytest
import torch

from atss_core.layers.extension import COMPILED_DEVICES

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.cuda,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
]

needs_compiled = pytest.mark.skipif(not COMPILED_DEVICES, reason="the compiled operators are not in use")
