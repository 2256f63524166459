"""Environment of a run: device, seeds, memory, versions."""

from __future__ import annotations

import os
import platform
import random
import re
from pathlib import Path

import numpy as np
import torch
import torchvision

from atss_core.utils.text import shorten


def choose_device(name: str) -> torch.device:
    """Return the device of MODEL.DEVICE: a PyTorch device, or "auto" for CUDA, else MPS, else the CPU.

    Raises:
        ValueError: if the device is unknown or not available; the message names the remedy.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, is_available in available.items() if is_available)
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"MODEL.DEVICE must be auto, cpu, cuda, cuda:N or mps, got {shorten(name)}"
        ) from error
    if not available.get(device.type, False):
        raise ValueError(
            f"MODEL.DEVICE is {name!r}, but PyTorch {torch.__version__} finds no such device; "
            f"use MODEL.DEVICE auto or cpu, or check the driver and that this PyTorch was built for it"
        )
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise ValueError(f"MODEL.DEVICE is {name!r}, but there are {torch.cuda.device_count()} CUDA devices")
    return device


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def use_deterministic_algorithms() -> None:
    """Make PyTorch use algorithms that give the same bits in every run, or raise if there is none."""
    # cuBLAS reads this when it starts; without it PyTorch refuses matrix products.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)


def peak_memory(device: torch.device) -> float | None:
    """Return the peak memory in MiB: of PyTorch on CUDA, else of the process, which only Linux reports."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    kibibytes = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
    return int(kibibytes[1]) / 2**10 if kibibytes else None


def environment_report(device: torch.device) -> str:
    """Return one line with the versions and hardware that determine speed and rounding."""
    lines = [
        f"Python {platform.python_version()}, PyTorch {torch.__version__}, "
        f"torchvision {torchvision.__version__}",
        f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} CPU threads",
    ]
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        lines.append(f"{name}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
    return "; ".join([*lines, f"device: {device}"])
