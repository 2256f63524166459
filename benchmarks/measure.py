"""Time and memory of functions, measured side by side."""

import argparse
import statistics
import time

import torch
from torch.profiler import ProfilerActivity, profile


def device_and_repeats(description):
    """Read ``--device`` and ``--repeats`` and settle the CPU threads, for all benchmarks alike."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    return torch.device(arguments.device), arguments.repeats


def seconds(function, device):
    """Seconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def medians(functions, device, repeats):
    """Return the median seconds of each function; they take turns, so that all meet the same disturbances."""
    for function in functions:
        function()
    times = [[seconds(function, device) for function in functions] for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def peak_memory(function, device):
    """Bytes that ``function`` takes at its peak beyond what is there before."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    now = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak
