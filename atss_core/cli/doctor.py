"""Tell what is here, what is missing, and what to do about it: versions, devices, operators, data, extras."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from atss_core import __version__
from atss_core.checkpoint.download import cache_root
from atss_core.cli.parser import CommandParser
from atss_core.config import get_cfg
from atss_core.config.catalog import DATASETS, find_dataset
from atss_core.config.shipped import shipped_configs
from atss_core.utils.extras import EXTRAS, has

EXAMPLE = """
atss doctor
"""

REQUIRED = ("torchvision", "numpy", "pillow", "pycocotools", "matplotlib", "yacs", "safetensors")
# Loading the operators can end the process, so another one does it, with a small NMS on each device.
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
    """A line of the report.

    Attributes:
        text: what there is.
        remedy: what to do where something is missing or slow; empty if all is well.
        is_fatal: whether nothing works without the remedy.
    """

    text: str
    remedy: str = ""
    is_fatal: bool = False


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with command-line words, by default those of this process.

    Ends the process with status 1 if something is broken.
    """
    CommandParser("atss doctor", __doc__, EXAMPLE).parse_args(argv)
    sections = {
        "Versions": versions(),
        "Devices": devices(),
        "Operators": operators(),
        "Files": files(),
        "Extras": extras(),
    }
    is_broken = False
    for title, findings in sections.items():
        print(title)
        for finding in findings:
            print(f"  {'!' if finding.remedy else ' '} {finding.text}")
            if finding.remedy:
                print(f"      -> {finding.remedy}")
            is_broken |= finding.is_fatal
    if is_broken:
        sys.exit(1)


def versions() -> Iterator[Finding]:
    """Tell the versions of what decides results and speed."""
    yield Finding(f"atss {__version__}, Python {platform.python_version()}, {platform.platform()}")
    yield Finding(f"PyTorch {torch.__version__}, CUDA of this PyTorch: {torch.version.cuda or 'none'}")
    found = {name: version_of(name) for name in REQUIRED}
    yield Finding(", ".join(f"{name} {version}" for name, version in found.items() if version))
    for name, version in found.items():
        if version is None:
            yield Finding(f"no {name}", f"pip install {name}", is_fatal=True)


def devices() -> Iterator[Finding]:
    """Tell what can compute, and what keeps a GPU from it."""
    yield Finding(f"CPU: {torch.get_num_threads()} threads of PyTorch, {os.cpu_count()} cores")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        yield Finding(
            f"cuda:{index}: {properties.name}, {memory:.0f} GiB, "
            f"capability {properties.major}.{properties.minor}"
        )
    if torch.backends.mps.is_available():
        yield Finding("mps: Apple's GPU")
    if torch.cuda.is_available():
        return
    if shutil.which("nvidia-smi") and torch.version.cuda is None:
        yield Finding(
            "there is an NVIDIA driver, but this PyTorch is built for CPUs",
            "install a CUDA build of PyTorch: https://pytorch.org/get-started/locally/",
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
        reason = (tried.stderr.strip() or f"the process ended with status {tried.returncode}").splitlines()[
            -1
        ]
        yield Finding(reason, "build them again with `make ext`, or set ATSS_OPS=torchvision", is_fatal=True)
        return
    line = tried.stdout.strip().splitlines()[-1]
    is_slow = "torchvision" in line.split("(")[0]
    yield Finding(line, "slower; `make ext` builds the compiled ones (INSTALL.md)" if is_slow else "")


def files() -> Iterator[Finding]:
    """Tell where data sets, configurations and downloads are looked for."""
    yield Finding(f"configurations: {len(shipped_configs())} shipped")
    folder = get_cfg().DATASETS.DATA_DIR
    there = [name for name in DATASETS if find_dataset(name, folder).annotations.exists()]
    where = f"in {Path(folder).resolve()}"
    yield Finding(
        f"data sets known by name {where}: {', '.join(there) or 'none; any others go by their place'}"
    )
    cache = cache_root()
    parent = next(each for each in (cache, *cache.parents) if each.exists())
    is_writable = os.access(parent, os.W_OK)
    free = shutil.disk_usage(parent).free / 2**30
    yield Finding(
        f"downloads: {cache}, {free:.0f} GiB free",
        "" if is_writable else "it cannot be written to: set ATSS_CACHE to a folder of yours",
    )


def extras() -> Iterator[Finding]:
    """Tell which optional packages there are."""
    for module, extra in EXTRAS.items():
        state = f"{extra.package} {version_of(extra.package) or ''}" if has(module) else f"no {extra.package}"
        how = "" if has(module) else f" (pip install {extra.package})"
        yield Finding(f"{state}: {extra.purpose}{how}")


def version_of(package: str) -> str | None:
    """Return the version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
