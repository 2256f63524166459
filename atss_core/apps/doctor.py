"""Report versions, devices, operators, files and extras, with a remedy for each that is missing or slow.

Runs where PyTorch does not load.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from atss_core import __version__
from atss_core.checkpoint.download import cache_root
from atss_core.config import get_cfg
from atss_core.config.catalog import DATASETS, find_dataset, shipped_configs
from atss_core.utils.extras import EXTRAS, has
from atss_core.visualization.video import import_cv2

torch: Any = None
try:
    torch = importlib.import_module("torch")
except (ImportError, OSError) as error:  # OSError: a shared library is missing
    _error = error

INSTALL = "https://pytorch.org/get-started/locally/"
REQUIRED = (
    *("torchvision", "numpy", "pillow", "jinja2", "pycocotools", "hotcoco", "pyyaml", "filelock"),
    *("safetensors", "yacs", "matplotlib", "tqdm", "opencv-python"),
)
# Loading the operators can end the process, so another process does it, with a small NMS on each device.
TRY_OPERATORS = """
import torch
from atss_core.layers import nms, ops_info
boxes = torch.tensor([[0.0, 0, 9, 9], [1, 1, 9, 9], [20, 20, 29, 29]])
scores = torch.tensor([0.9, 0.8, 0.7])
for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
    kept = nms(boxes.to(device), scores.to(device), 0.5).tolist()
    assert kept == [0, 2], f"NMS on {device} keeps {kept} instead of [0, 2]"
print(ops_info())
"""


class Finding(NamedTuple):
    """A line of the report: what there is, a remedy if it is missing or slow, and whether nothing works."""

    text: str
    remedy: str = ""
    is_fatal: bool = False


def examine() -> bool:
    """Print the report; returns whether all that is needed works."""
    sections = {
        "Versions": versions(),
        "Devices": devices(),
        "Operators": operators(),
        "Files": files(),
        "Extras": extras(),
    }
    is_sound = True
    for title, findings in sections.items():
        print(title)
        for finding in findings:
            print(f"  {'!' if finding.remedy else ' '} {finding.text}")
            if finding.remedy:
                print(f"      -> {finding.remedy}")
            is_sound &= not finding.is_fatal
    return is_sound


def versions() -> Iterator[Finding]:
    """Yield the versions of what decides results and speed."""
    yield Finding(f"atss {__version__}, Python {platform.python_version()}, {platform.platform()}")
    if torch is None:
        yield Finding(f"PyTorch does not load: {_error}", f"install it again: {INSTALL}", is_fatal=True)
    else:
        yield Finding(f"PyTorch {torch.__version__}, CUDA of this PyTorch: {torch.version.cuda or 'none'}")
    packages = {name: version_of(name) for name in REQUIRED}
    headless = version_of("opencv-python-headless")
    packages["opencv-python"] = packages["opencv-python"] or (headless and f"(headless) {headless}")
    yield Finding(", ".join(f"{name} {version}" for name, version in packages.items() if version))
    for name, version in packages.items():
        if version is None:
            yield Finding(f"no {name}", f"pip install {name}", is_fatal=True)
    try:
        import_cv2()
    except ValueError as error:
        yield Finding("OpenCV does not load, so videos and windows do not work", str(error))


def devices() -> Iterator[Finding]:
    """Yield what can compute, and what keeps a GPU from it."""
    if torch is None:
        yield Finding(f"CPU: {os.cpu_count()} cores")
        return
    yield Finding(f"CPU: {torch.get_num_threads()} threads of PyTorch, {os.cpu_count()} cores")
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        memory = gpu.total_memory / 2**30
        yield Finding(f"cuda:{index}: {gpu.name}, {memory:.0f} GiB, capability {gpu.major}.{gpu.minor}")
    if torch.backends.mps.is_available():
        yield Finding("mps: Apple's GPU")
    if torch.cuda.is_available():
        return
    if shutil.which("nvidia-smi") and torch.version.cuda is None:
        yield Finding(
            "there is an NVIDIA driver, but this PyTorch is built for CPUs",
            f"install a CUDA build of PyTorch: {INSTALL}",
        )
    elif shutil.which("nvidia-smi"):
        yield Finding(
            f"there is an NVIDIA driver, but PyTorch cannot use it with its CUDA {torch.version.cuda}",
            "see whether nvidia-smi lists a GPU and whether CUDA_VISIBLE_DEVICES hides it",
        )
    elif not torch.backends.mps.is_available():
        yield Finding("no GPU: training at full size wants one; the quick configurations are made for CPUs")


def operators() -> Iterator[Finding]:
    """Load the operators in another process and run one."""
    tried = subprocess.run([sys.executable, "-c", TRY_OPERATORS], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        error = tried.stderr.strip() or f"the process ended with status {tried.returncode}"
        remedy = "build them again with `make ext`, or set ATSS_OPS=torchvision"
        yield Finding(error.splitlines()[-1], remedy, is_fatal=True)
        return
    line = tried.stdout.strip().splitlines()[-1]
    is_slow = "torchvision" in line.split("(")[0]
    yield Finding(line, "slower; `make ext` builds the compiled ones (INSTALL.md)" if is_slow else "")


def files() -> Iterator[Finding]:
    """Yield where datasets, configurations and downloads are looked for."""
    yield Finding(f"configurations: {len(shipped_configs())} shipped")
    folder = get_cfg().DATASETS.DATA_DIR
    there = [name for name in DATASETS if find_dataset(name, folder).annotations.exists()]
    listed = ", ".join(there) or "none; any others go by their path"
    yield Finding(f"datasets known by name in {Path(folder).resolve()}: {listed}")
    cache = cache_root()
    parent = next(each for each in (cache, *cache.parents) if each.exists())
    is_writable = os.access(parent, os.W_OK)
    yield Finding(
        f"downloads: {cache}, {shutil.disk_usage(parent).free / 2**30:.0f} GiB free",
        "" if is_writable else "it cannot be written to: set ATSS_CACHE to a folder of yours",
    )


def extras() -> Iterator[Finding]:
    """Yield which optional packages there are."""
    for module, extra in EXTRAS.items():
        if has(module):
            yield Finding(f"{extra.package} {version_of(extra.package) or ''}: {extra.purpose}")
        else:
            yield Finding(f"no {extra.package}: {extra.purpose} (pip install {extra.package})")


def version_of(package: str) -> str | None:
    """Return the version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
