"""Process groups: start and stop, rank and world size, sums and gathering."""

from __future__ import annotations

import atexit
import os
import re
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

# CPU tensors, such as detections, go through gloo: they neither wait for a GPU nor use its memory.
BACKENDS = {"cuda": "cpu:gloo,cuda:nccl"}
# How long a stalled process blocks the GPUs of the others.
TIMEOUT = timedelta(minutes=10)
# For barriers: the main process may evaluate a large dataset while the others wait on the CPU.
_BARRIER_TIMEOUT = timedelta(hours=2)
_barrier_group: Any = None


def start_process_group(device: torch.device) -> torch.device:
    """Join the job that a launcher such as torchrun describes in the environment, if there is one.

    The process leaves the job before the interpreter ends, also after an error.

    Args:
        device: of the configuration; CUDA communicates through NCCL, other devices through gloo.

    Returns:
        The device of this process: with several CUDA devices, the one of its local rank.

    Raises:
        ValueError: if this machine has fewer GPUs than processes.
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
            store = _fresh_store(rank)
        else:
            rank, size, store = -1, -1, None  # PyTorch reads the environment
        distributed.init_process_group(
            BACKENDS.get(device.type, "gloo"), timeout=TIMEOUT, store=store, rank=rank, world_size=size
        )
        atexit.register(_abandon_process_group)
        _barrier_group = distributed.new_group(backend="gloo", timeout=_BARRIER_TIMEOUT)
    return device


def _end_with_launcher() -> None:
    """Send SIGTERM to this process when torchrun dies; else it would keep its GPU and the lock of the run."""
    while os.getppid() == PARENT:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


def _fresh_store(rank: int, patience: float = 300.0) -> distributed.TCPStore:
    """Return a fresh rendezvous store for this restart attempt.

    The launcher's store serves all attempts, so it still holds the addresses of killed processes (PyTorch
    2.15). Therefore rank 0 opens a store and publishes its port in the launcher's. The port of an earlier
    attempt refuses the connection, and the other ranks look again, for ``patience`` seconds.

    Raises:
        OSError: if rank 0 does not open it.
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
            socket.create_connection((address, port), timeout=2).close()  # a failing TCPStore logs a lot
            own = distributed.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=10))
        except (OSError, distributed.DistError):
            time.sleep(0.2)
        else:
            own.set_timeout(timedelta(minutes=5))
            return own
    raise OSError(f"the first process of the job did not start within {patience:.0f} s; look for its error")


def choose_gpu(local_rank: int, num_gpus: int) -> torch.device:
    """Return the GPU of a local rank; CUDA_VISIBLE_DEVICES may give each process one GPU, number 0.

    Raises:
        ValueError: if there are fewer GPUs than processes.
    """
    if local_rank < num_gpus:
        return torch.device("cuda", local_rank)
    if num_gpus == 1 and "CUDA_VISIBLE_DEVICES" in os.environ:
        return torch.device("cuda", 0)
    raise ValueError(
        f"process {local_rank + 1} of this machine needs a GPU of its own, but there are {num_gpus}; start "
        f"at most {num_gpus} with --nproc_per_node"
    )


def stop_process_group() -> None:
    """Leave the job that ``start_process_group`` joined."""
    global _barrier_group
    if distributed.is_initialized():
        distributed.destroy_process_group()
        _barrier_group = None


def _abandon_process_group() -> None:
    """Leave the job after an error, or else gloo's threads may abort the process with status 134."""
    if (group := distributed.group.WORLD) is not None:
        with suppress(RuntimeError):  # so that NCCL does not wait for the other processes
            group.abort()
        with suppress(RuntimeError):  # the first error has been reported
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
    """Tell whether an error means that another process of the job has ended or stalls."""
    messages = "Connection (closed|reset) by peer|Broken pipe|remote process exited|Timed out waiting"
    return world_size() > 1 and isinstance(error, RuntimeError) and bool(re.search(messages, str(error)))


def share_buffers(module: nn.Module) -> None:
    """Copy the batch-norm statistics of rank 0 to all processes; other buffers never differ."""
    if world_size() > 1:
        for layer in module.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                for buffer in layer.buffers():
                    distributed.broadcast(buffer, src=0)


def barrier() -> None:
    """Wait for all processes, for up to two hours."""
    if world_size() > 1:
        distributed.all_reduce(torch.zeros(1), group=_barrier_group)


def sum_over_processes(value: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, without gradient."""
    total = value.detach().clone()
    if world_size() > 1:
        distributed.all_reduce(total)
    return total


def mean_over_processes(value: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes, without gradient."""
    return sum_over_processes(value) / world_size()


def disagree(number: int) -> bool:
    """Tell on all processes whether their numbers differ."""
    if world_size() == 1:
        return False
    extremes = torch.tensor([number, -number])
    distributed.all_reduce(extremes, distributed.ReduceOp.MAX)
    return int(extremes[0]) != -int(extremes[1])


def gather(value: Tensor) -> list[Tensor]:
    """Gather the CPU tensors of all processes, which may differ in length, on the main one; others get []."""
    if world_size() == 1:
        return [value]
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size())]
    distributed.all_gather(lengths, torch.tensor([len(value)]))
    padded = value.new_zeros(max(int(length) for length in lengths), *value.shape[1:])
    padded[: len(value)] = value
    gathered = [torch.empty_like(padded) for _ in lengths] if is_main() else []
    distributed.gather(padded, gathered or None)
    return [values[: int(length)] for values, length in zip(gathered, lengths, strict=False)]
