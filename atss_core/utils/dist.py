"""Process groups: start one, ask for rank and size, average and gather."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import threading
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn

from atss_core import PARENT

# What goes through the CPU, such as detections and "all done", never waits for a GPU nor takes its memory.
BACKENDS = {"cuda": "cpu:gloo,cuda:nccl"}
# A process that stalls holds the GPUs of all others for so long.
TIMEOUT = timedelta(minutes=10)
# Only at a barrier, where the main process evaluates a large data set or writes, and others wait on the CPU.
BARRIER_TIMEOUT = timedelta(hours=2)

_barrier_group: Any = None


def start_process_group(device: torch.device) -> torch.device:
    """Join the job that a launcher describes in the environment, if there is one.

    Args:
        device: what the configuration asks for. CUDA talks through NCCL, anything else through gloo.

    Whatever ends this process, it leaves the job before the interpreter ends.

    Returns:
        The device of this process: with several on CUDA, the one of its local rank.

    Raises:
        ValueError: if there are fewer GPUs than processes on this machine.
    """
    global _barrier_group
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=_end_with_launcher, daemon=True).start()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if device.type == "cuda":
            device = choose_gpu(local_rank(), torch.cuda.device_count())
            torch.cuda.set_device(device)
        restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
        if restarts and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            store = store_of_this_attempt(rank)
        else:
            rank, size, store = -1, -1, None  # all in the environment
        distributed.init_process_group(
            BACKENDS.get(device.type, "gloo"), timeout=TIMEOUT, store=store, rank=rank, world_size=size
        )
        atexit.register(_abandon_process_group)
        _barrier_group = distributed.new_group(backend="gloo", timeout=BARRIER_TIMEOUT)
    return device


def _end_with_launcher() -> None:
    """Send SIGTERM to this process once torchrun has died.

    Nothing else would end it, and it would hold the folder of the run and its GPU against the next start.
    """
    while os.getppid() == PARENT:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


def store_of_this_attempt(rank: int, patience: float = 300.0) -> distributed.TCPStore:
    """Return a store for the processes to find each other in, which those of earlier attempts never saw.

    The launcher's own store serves all attempts of a job that it may restart, so the addresses of killed
    processes are still in it (PyTorch 2.15). The first process therefore opens a store of its own and leaves
    its port in the launcher's; a port of an earlier attempt leads nowhere, and the others look again.

    Args:
        rank: of this process.
        patience: seconds to look for the first process.

    Raises:
        OSError: if it does not come.
    """
    address = os.environ["MASTER_ADDR"]
    launcher = distributed.TCPStore(address, int(os.environ["MASTER_PORT"]), is_master=False)
    if rank == 0:
        own = distributed.TCPStore(address, 0, is_master=True, wait_for_workers=False)
        launcher.set("atss/port", str(own.port))
        return own
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        port = int(launcher.get("atss/port"))
        try:
            socket.create_connection((address, port), timeout=2).close()  # fails without PyTorch's long log
            own = distributed.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=10))
        except (OSError, distributed.DistError):
            time.sleep(0.2)
        else:
            own.set_timeout(timedelta(minutes=5))
            return own
    raise OSError(f"the first process of the job did not come within {patience:.0f} s; look for its error")


def choose_gpu(process: int, num_gpus: int) -> torch.device:
    """Return the GPU of the process with this local rank.

    A process that sees a single GPU takes that, if it was given to it alone by CUDA_VISIBLE_DEVICES.

    Raises:
        ValueError: if there are fewer GPUs than processes.
    """
    if process < num_gpus:
        return torch.device("cuda", process)
    if num_gpus == 1 and "CUDA_VISIBLE_DEVICES" in os.environ:
        return torch.device("cuda", 0)
    raise ValueError(
        f"process {process + 1} of this machine needs a GPU of its own, but there are {num_gpus}; start at "
        f"most {num_gpus} with --nproc_per_node"
    )


def stop_process_group() -> None:
    """Leave the job that ``start_process_group`` joined."""
    global _barrier_group
    if distributed.is_initialized():
        distributed.destroy_process_group()
        _barrier_group = None


def _abandon_process_group() -> None:
    """Leave the job after an error, without which the threads of gloo may end the process with status 134."""
    if (group := distributed.group.WORLD) is not None:
        with suppress(RuntimeError):  # NCCL would wait for the other processes
            group.abort()
        with suppress(RuntimeError):  # the error has been told
            stop_process_group()


def rank() -> int:
    """Return the rank of this process, 0 without a process group."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def local_rank() -> int:
    """Return the rank of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """Return the number of processes, 1 without a process group."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_main() -> bool:
    """Tell whether this process writes files and logs."""
    return rank() == 0


def is_lost_connection(error: BaseException) -> bool:
    """Tell whether an error means that another process of the job has ended, or stalls."""
    words = (
        *("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited"),
        "Timed out waiting",
    )
    return world_size() > 1 and isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def share_buffers(module: nn.Module) -> None:
    """Give all processes the batch-norm statistics of the first; other buffers never differ."""
    if world_size() > 1:
        for layer in module.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                for buffer in layer.buffers():
                    distributed.broadcast(buffer, src=0)


def barrier() -> None:
    """Wait for all processes, long enough for the main one to evaluate."""
    if world_size() > 1:
        distributed.all_reduce(torch.zeros(1), group=_barrier_group)


def sum_over_processes(value: Tensor) -> Tensor:
    """Add a tensor without gradient over all processes; each gets the same result."""
    total = value.detach().clone()
    if world_size() > 1:
        distributed.all_reduce(total)
    return total


def mean_over_processes(value: Tensor) -> Tensor:
    """Average a tensor without gradient over all processes; each gets the same result."""
    return sum_over_processes(value) / world_size()


def disagree(number: int) -> bool:
    """Tell whether the processes have different numbers; each gets the same answer."""
    if world_size() == 1:
        return False
    extremes = torch.tensor([number, -number])
    distributed.all_reduce(extremes, distributed.ReduceOp.MAX)
    return int(extremes[0]) != -int(extremes[1])


def gather(value: Tensor) -> list[Tensor]:
    """Gather a tensor of every process on the main process; the others get an empty list.

    Args:
        value: on the CPU; its first dimension may differ between the processes, the others not.
    """
    if world_size() == 1:
        return [value]
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size())]
    distributed.all_gather(lengths, torch.tensor([len(value)]))
    padded = value.new_zeros(max(int(length) for length in lengths), *value.shape[1:])
    padded[: len(value)] = value
    parts = [torch.empty_like(padded) for _ in lengths] if is_main() else None
    distributed.gather(padded, parts)
    return [part[: int(length)] for part, length in zip(parts or [], lengths, strict=bool(parts))]
