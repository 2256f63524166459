"""Selection of the operators: compiled, or torchvision's and PyTorch's.

The compiled operators (``csrc/``, built into ``atss_core._C`` at installation) are registered as
``torch.ops.atss`` for the CPU and, if built with a CUDA toolkit, for CUDA. Without them, NMS and deformable
convolution fall back to torchvision, focal loss and box voting to PyTorch. ``ATSS_OPS=torchvision`` forces
the fallback, to compare the two; ``ATSS_OPS=compiled`` requires the compiled operators.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch

logger = logging.getLogger(__name__)

_EXTENSION = "atss_core._C"
_BUILD_AGAIN = "Build them again with `make ext`, or set ATSS_OPS=torchvision"


def _load() -> tuple[frozenset[str], str]:
    """Load the extension; return its device types, and the reason why others are missing."""
    choice = os.environ.get("ATSS_OPS", "")
    if choice not in ("", "compiled", "torchvision"):
        raise ValueError(f"ATSS_OPS must be compiled or torchvision, or not be set; got {choice!r}")
    if choice == "torchvision":
        return frozenset(), "ATSS_OPS=torchvision asks for it"
    if importlib.util.find_spec(_EXTENSION) is None:
        reason = f"{_EXTENSION} was not built; `make ext` builds it (INSTALL.md)"
        if choice == "compiled":
            raise ImportError(f"ATSS_OPS=compiled, but {reason}")
        if os.environ.get("LOCAL_RANK", "0") == "0":
            logger.warning("torchvision's operators are used: %s", reason)
        return frozenset(), reason
    try:
        extension = importlib.import_module(_EXTENSION)
    except ImportError as error:
        raise ImportError(
            f"the compiled operators do not load: {error}. Were they built with another PyTorch or Python "
            f"than this one ({torch.__version__})? {_BUILD_AGAIN}"
        ) from error
    if extension.torch_version != torch.__version__:
        raise ImportError(
            f"the compiled operators were built with PyTorch {extension.torch_version}, this is "
            f"{torch.__version__}. {_BUILD_AGAIN}"
        )
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    devices = {key.lower() for key in ("CPU", "CUDA") if has_kernel("atss::nms", key)}
    return frozenset(devices), f"{_EXTENSION} was built without CUDA; INSTALL.md tells how to build it with"


COMPILED_DEVICES, _WHY_NOT_ALL = _load()


_is_portable = False


def is_compiled(device: torch.device) -> bool:
    """Tell whether the compiled operators are used for tensors on this device."""
    return device.type in COMPILED_DEVICES and not _is_portable


@contextmanager
def portable_operators() -> Iterator[None]:
    """Use torchvision's and PyTorch's operators in this context, so that traced graphs need no extension."""
    global _is_portable
    before, _is_portable = _is_portable, True
    try:
        yield
    finally:
        _is_portable = before


def refuse_second_derivative(ctx: Any, *gradients: torch.Tensor) -> NoReturn:
    """Raise NotImplementedError; registered as the derivative of the backward operators."""
    raise NotImplementedError(
        "the compiled operators have no second derivative (create_graph=True); ATSS_OPS=torchvision has the "
        "focal loss's"
    )


def ops_info() -> str:
    """Return one line: which operators run on each available device, and why."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    uses = [f"{'compiled' if d in COMPILED_DEVICES else 'torchvision'} on {d}" for d in devices]
    reason = "" if COMPILED_DEVICES.issuperset(devices) else f" ({_WHY_NOT_ALL})"
    return f"operators: {', '.join(uses)}{reason}"
