"""Process groups: start one, ask for rank and size, average and gather."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, distributed, nn


def start_process_group(device: torch.device) -> torch.device:
    """Join the job that a launcher describes in the environment, if there is one.

    Args:
        device: what the configuration asks for. CUDA talks through NCCL, anything else through gloo.

    Returns:
        The device of this process: with several on CUDA, the one of its local rank.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(device)
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def stop_process_group() -> None:
    """Leave the job that ``start_process_group`` joined."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def rank() -> int:
    """Return the rank of this process, 0 without a process group."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes, 1 without a process group."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_main() -> bool:
    """Tell whether this process writes files and logs."""
    return rank() == 0


def is_local_main() -> bool:
    """Tell whether this process does what has to be done once on each machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def share_buffers(module: nn.Module) -> None:
    """Give all processes the buffers of the first, such as batch-norm statistics."""
    if world_size() > 1:
        for buffer in module.buffers():
            distributed.broadcast(buffer, src=0)


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        distributed.barrier()


def mean_over_processes(value: Tensor) -> Tensor:
    """Average a tensor without gradient over all processes; each gets the same result."""
    if world_size() == 1:
        return value
    total = value.detach().clone()
    distributed.all_reduce(total)
    return total / world_size()


def gather_objects(value: Any) -> list[Any]:
    """Gather one picklable object of every process on the main process; the others get an empty list."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size() if is_main() else []
    distributed.gather_object(value, gathered if is_main() else None)
    return gathered
