"""Save and resume a training run."""

from __future__ import annotations

import logging
import os
import random
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from atss_core.checkpoint.formats import read_checkpoint
from atss_core.checkpoint.weights import first_names, load_weights_strictly
from atss_core.utils import dist
from atss_core.utils.files import atomic_write, on_main_process, read_text, remove_leftovers
from atss_core.utils.text import printable, shorten

logger = logging.getLogger(__name__)

LAST_CHECKPOINT = "last_checkpoint"
FINAL_CHECKPOINT = "model_final.pth"
_REMEDY = (
    "Restore an earlier checkpoint or, to start from the weights of this one, set MODEL.WEIGHT to it and "
    "OUTPUT_DIR to an empty folder"
)


class Checkpointer:
    """Checkpoints of one run: model, optimizer, iteration and random states.

    The file ``last_checkpoint`` in the folder names the newest one. Both are written under another name
    and renamed, so a run that is killed while saving leaves the previous checkpoint intact.

    Args:
        folder: where checkpoints are.
        model: without a parallel wrapper, so that its keys are the published ones.
        optimizer: restored on resume.
        scheduler: restored on resume.
        class_names: stored beside the weights, so that detections can be named without the data set.
        scaler: of the loss in float16; restored on resume.
        average: averaged weights, which are what ``model_best.pth`` holds; restored on resume.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizer: Optimizer,
        scheduler: LambdaLR,
        class_names: list[str],
        *,
        scaler: torch.amp.GradScaler | None = None,
        average: AveragedModel | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.model = model
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.class_names = class_names
        self.scaler = scaler
        self.average = average

    @property
    def tested_model(self) -> nn.Module:
        """Return the model that is tested: the average of the weights, if there is one."""
        return self.model if self.average is None else self.average.module

    def save(self, name: str, iteration: int) -> None:
        """Write ``<folder>/<name>.pth``, the state after ``iteration`` iterations, and point to it.

        With several processes all get the batch-norm statistics of the first, which are those that are saved.

        Raises:
            ArithmeticError: if a weight is not finite; nothing is written then.
            OSError: if the file cannot be written; the previous checkpoint is intact then.
        """
        self.share_buffers()
        check_finite(self.model, iteration)
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "iteration": iteration,
            "random": random_state(),
            "class_names": self.class_names,
        }
        if self.scaler is not None:
            state["scaler"] = self.scaler.state_dict()
        if self.average is not None:
            num_updates = int(self.average.n_averaged)
            state["ema"] = {"model": self.average.module.state_dict(), "num_updates": num_updates}

        def write() -> None:
            self._write(state, name)
            _sync_folder(self.folder)  # the pointer must never reach the disk before what it names
            with atomic_write(self.folder / LAST_CHECKPOINT, "w") as file:
                file.write(f"{name}.pth")

        on_main_process(write)

    def save_best(self, iteration: int, value: float) -> None:
        """Write the weights that are tested to ``<folder>/model_best.pth``; only the main process calls this.

        Args:
            iteration: of the weights.
            value: of the metric that they are the best by.
        """
        state = {"model": self.tested_model.state_dict(), "iteration": iteration, "best": value}
        self._write({**state, "class_names": self.class_names}, "model_best")

    def share_buffers(self) -> None:
        """Give all processes the batch-norm statistics of the first, as before every test and checkpoint."""
        dist.share_buffers(self.model)
        if self.average is not None:
            dist.share_buffers(self.average.module)

    def resume(self) -> int | None:
        """Restore the newest checkpoint of the folder that can be read.

        Learning rate, momentum and weight decay are those of the optimizer and scheduler as they were built,
        so a changed configuration counts from here on.

        Returns:
            Its iteration, or None if the folder has none.

        Raises:
            ValueError: if it does not fit the model or has no solver state, or the processes find different
                ones.
        """
        on_main_process(lambda: remove_leftovers(self.folder))
        path, state = read_last_checkpoint(self.folder)
        if dist.disagree(-1 if path is None else _iteration(state)):
            raise ValueError(
                f"the processes find different checkpoints in {self.folder}; OUTPUT_DIR must be a folder "
                f"that all machines share"
            )
        if path is None:
            return None
        logger.info("Resuming from %s", path)
        missing = [key for key in ("optimizer", "iteration", "random") if key not in state]
        if missing:
            raise ValueError(
                f"{path} has no {', '.join(missing)}, so training cannot go on from it; to start from its "
                f"weights, set MODEL.WEIGHT to it and OUTPUT_DIR to an empty folder"
            )
        if _iteration(state) < 0:
            raise ValueError(
                f"{path}: expected iteration to be a whole number from 0, got "
                f"{printable(shorten(state['iteration']))}. {_REMEDY}"
            )
        learned = state.get("class_names")
        if learned and learned != list(self.class_names):
            raise ValueError(
                f"{path} was trained on the classes {first_names(learned, 600)}, but the data has "
                f"{first_names(self.class_names, 600)}; restore the data, or set OUTPUT_DIR to an empty "
                f"folder"
            )
        load_weights_strictly(self.model, state["model"], str(path))
        try:
            self._restore_solver(state, path)
        except Exception as error:  # what someone else wrote or a disk damaged may break it in any way
            reason = printable(" ".join(str(error).split())) or type(error).__name__
            raise ValueError(
                f"{path}: expected the solver state of a run of this configuration, got another or a damaged "
                f"one ({reason}). {_REMEDY}"
            ) from error
        return state["iteration"]

    def _restore_solver(self, state: dict[str, Any], path: Path) -> None:
        """Restore optimizer, schedule, random generators, loss scale and EMA weights."""
        settings = [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        check_optimizer(self.optimizer)
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(own)
        set_iteration(self.scheduler, state["iteration"])
        set_random_state(state["random"])
        if self.scaler is not None and state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self._resume_ema(state.get("ema"), path)

    def _resume_ema(self, saved: dict[str, Any] | None, path: Path) -> None:
        assert self.average is not None
        if saved is None:
            logger.info("The checkpoint has no averaged weights; the average starts from its weights")
            saved = {"model": self.model.state_dict(), "num_updates": 0}
        load_weights_strictly(self.average.module, saved["model"], f"the EMA weights of {path}")
        self.average.n_averaged.fill_(saved["num_updates"])

    def _write(self, state: dict[str, Any], name: str) -> None:
        path = self.folder / f"{name}.pth"
        logger.info("Saving %s", path)
        with atomic_write(path) as file:
            torch.save(state, file)


def check_optimizer(optimizer: Optimizer) -> None:
    """Refuse a restored state that PyTorch takes without a look, but that no step could have left.

    Raises:
        ValueError: naming the first value that is no finite tensor of the shape of its parameter.
    """
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            is_whole = name == "step" or (value is not None and value.shape == parameter.shape)
            if value is not None and not (is_whole and torch.as_tensor(value).isfinite().all()):
                raise ValueError(f"{name} is not a finite tensor of the shape {tuple(parameter.shape)}")


def set_iteration(scheduler: LambdaLR, iteration: int) -> None:
    """Move a schedule, which is a function of the iteration alone, to an iteration."""
    scheduler.last_epoch = iteration
    rates = [
        base * factor(iteration)
        for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates


def check_finite(model: nn.Module, iteration: int) -> None:
    """Refuse a model with weights that are NaN or infinite.

    Raises:
        ArithmeticError: naming the first of them.
    """
    state = model.state_dict().items()
    broken = [key for key, value in state if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise ArithmeticError(
            f"{len(broken)} weights are not finite after iteration {iteration}, first {broken[0]}; nothing "
            f"was saved since the last checkpoint. Lower SOLVER.BASE_LR"
        )


def last_checkpoint(folder: Path) -> Path | None:
    """Return the file that ``read_last_checkpoint`` reads."""
    return read_last_checkpoint(folder)[0]


def read_last_checkpoint(folder: Path) -> tuple[Path | None, dict[str, Any]]:
    """Read the checkpoint that ``last_checkpoint`` names or, where that fails, the newest that can be read.

    Published runs wrote a path into ``last_checkpoint``, ours a file name; the name is looked up in the
    folder either way. A lost pointer must not start the run anew, which would overwrite its checkpoints.

    Returns:
        The file and its content; None and nothing if the folder has no checkpoint.

    Raises:
        ValueError: if there are checkpoints or the file that names one, but none can be read.
    """
    pointer = Path(folder) / LAST_CHECKPOINT
    last, problem = None, f"{pointer} is not there"
    if os.path.lexists(pointer):
        try:
            name = Path(read_text(pointer).strip()).name
            last = pointer.parent / name
            if not os.path.isfile(last):  # not Path.is_file, which raises for a name that is too long
                raise ValueError(f"{pointer} names {printable(name)[:200] or 'nothing'}, which is not there")
            return last, read_checkpoint(last)
        except (OSError, ValueError) as error:
            problem = str(error)
    others = _by_iteration(pointer.parent)
    if (
        last in others and last.name != FINAL_CHECKPOINT
    ):  # what was written after a checkpoint that is only damaged is of another run
        others = others[others.index(last) + 1 :]
    for path in others:
        try:
            state = read_checkpoint(path)
        except (OSError, ValueError) as error:
            logger.warning("%s", error)
        else:
            logger.warning("%s; going on from the newest checkpoint that can be read, %s", problem, path)
            return path, state
    if not others and not os.path.lexists(pointer):
        return None, {}
    raise ValueError(
        f"{problem}; no other checkpoint of {folder} can be read. Restore one, or set OUTPUT_DIR to an empty "
        f"folder"
    )


def _by_iteration(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder that hold a solver state, newest first."""
    iterations = {}
    for path in folder.glob("model_*.pth"):
        if path.name == FINAL_CHECKPOINT:
            iterations[path] = -1
            with suppress(OSError, ValueError):  # who reads it next tells why it cannot be read
                iterations[path] = _iteration(read_checkpoint(path))
        elif match := re.fullmatch(r"model_(\d+)\.pth", path.name):
            iterations[path] = int(match[1])
    return sorted(iterations, key=lambda path: iterations[path], reverse=True)


def _iteration(state: dict[str, Any]) -> int:
    """Return the iteration of a checkpoint, -1 if it holds none."""
    iteration = state.get("iteration")
    return iteration if type(iteration) is int and 0 <= iteration < 1 << 53 else -1


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    with suppress(OSError):  # Windows opens no folders, and some network file systems do not flush them
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def random_state() -> dict[str, Any]:
    """Return the states of all random generators, of types that load without unpickling code."""
    _, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore what ``random_state`` returned."""
    random.setstate(state["python"])
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count() > 0:
        torch.cuda.set_rng_state_all(state["cuda"])
