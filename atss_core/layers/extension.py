"""Which implementation of the operators runs: the compiled one, or torchvision's and PyTorch's own.

The compiled operators are ``csrc/``, built into ``atss_core._C`` when the package is installed, and
registered as ``torch.ops.atss``. They exist for the CPU and, if a CUDA toolkit was there to build them, for
CUDA. Where they do not exist, NMS and deformable convolution fall back on torchvision, focal loss and box
voting on PyTorch. ``ATSS_OPS=torchvision`` chooses that everywhere, to compare the two; ``ATSS_OPS=compiled``
insists on the compiled ones.
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
_HOW_TO_BUILD = "`make ext` builds it (INSTALL.md)"
_BUILD_AGAIN = "Build them again with `make ext`, or set ATSS_OPS=torchvision"


def _load() -> tuple[frozenset[str], str]:
    """Load the extension and return the device types that it serves, and why others or none."""
    wanted = os.environ.get("ATSS_OPS", "")
    if wanted not in ("", "compiled", "torchvision"):
        raise ValueError(f"ATSS_OPS must be compiled or torchvision, or not be set; got {wanted!r}")
    if wanted == "torchvision":
        return frozenset(), "ATSS_OPS=torchvision asks for it"
    if importlib.util.find_spec(_EXTENSION) is None:
        reason = f"{_EXTENSION} was not built; {_HOW_TO_BUILD}"
        if wanted == "compiled":
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
    """Tell whether the compiled operators serve tensors on this device."""
    return device.type in COMPILED_DEVICES and not _is_portable


@contextmanager
def portable_operators() -> Iterator[None]:
    """Use torchvision's and PyTorch's own operators within: what is traced there runs without these here."""
    global _is_portable
    before, _is_portable = _is_portable, True
    try:
        yield
    finally:
        _is_portable = before


def refuse_second_derivative(ctx: Any, *gradients: torch.Tensor) -> NoReturn:
    """Take the place of the derivative of a backward operator."""
    raise NotImplementedError(
        "the compiled operators have no second derivative (create_graph=True); ATSS_OPS=torchvision has the "
        "focal loss's"
    )


def ops_info() -> str:
    """Say in a line which operators run on each device that is there, and why."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    uses = [
        f"{'compiled' if device in COMPILED_DEVICES else 'torchvision'} on {device}" for device in devices
    ]
    complete = all(device in COMPILED_DEVICES for device in devices)
    return f"operators: {', '.join(uses)}" + ("" if complete else f" ({_WHY_NOT_ALL})")
