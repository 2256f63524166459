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
    """Saves and resumes one run: model, optimizer, schedule, iteration and random states.

    The file ``last_checkpoint`` names the newest checkpoint. Both are written under another name and renamed,
    so a run that is killed while saving leaves the previous checkpoint intact.

    Args:
        folder: OUTPUT_DIR of the run.
        model: without a parallel wrapper, so that its keys are the published ones.
        optimizer: as built from the configuration.
        scheduler: as built from the configuration.
        class_names: stored beside the weights, so that detections can be named without the dataset.
        scaler: loss scaler of float16.
        ema: EMA weights, which are evaluated and become ``model_best.pth``.
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
        ema: AveragedModel | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.model = model
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.class_names = class_names
        self.scaler = scaler
        self.ema = ema

    @property
    def eval_model(self) -> nn.Module:
        """Return the model to evaluate: that of the EMA weights, if there are any."""
        return self.model if self.ema is None else self.ema.module

    def save(self, name: str, iteration: int) -> None:
        """Write ``<folder>/<name>.pth``, the state after ``iteration`` iterations, and name it the newest.

        All processes receive the batch-norm statistics of the first, which are saved.

        Raises:
            ArithmeticError: if a weight is not finite; nothing is written then.
            OSError: if the file cannot be written; the previous checkpoint is intact then.
        """
        self.share_buffers()
        _check_finite(self.model, iteration)
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "iteration": iteration,
            "random": random_state(),
            "class_names": self.class_names,
        }
        if self.scaler is not None:
            state["scaler"] = self.scaler.state_dict()
        if self.ema is not None:
            num_updates = int(self.ema.n_averaged)
            state["ema"] = {"model": self.ema.module.state_dict(), "num_updates": num_updates}

        def write() -> None:
            self._write(state, name)
            _sync_folder(self.folder)  # the pointer must never reach the disk before what it names
            with atomic_write(self.folder / LAST_CHECKPOINT, "w") as file:
                file.write(f"{name}.pth")

        on_main_process(write)

    def save_best(self, iteration: int, value: float) -> None:
        """Write the evaluated weights to ``<folder>/model_best.pth``; only the main process calls this.

        Args:
            iteration: of the weights.
            value: of the metric that is the best so far.
        """
        state = {"model": self.eval_model.state_dict(), "iteration": iteration, "best": value}
        self._write({**state, "class_names": self.class_names}, "model_best")

    def share_buffers(self) -> None:
        """Give all processes the batch-norm statistics of the first, before an evaluation or a checkpoint."""
        dist.share_buffers(self.model)
        if self.ema is not None:
            dist.share_buffers(self.ema.module)

    def resume(self) -> int | None:
        """Restore the newest readable checkpoint and return its iteration, None if the folder has none.

        Learning rate, momentum and weight decay stay as they were built, so that a changed configuration
        takes effect.

        Raises:
            ValueError: if it does not fit the model or has no solver state, or the processes see different
                checkpoints.
        """
        on_main_process(lambda: remove_leftovers(self.folder))
        path, state = read_last_checkpoint(self.folder)
        if dist.disagree(-1 if path is None else _iteration(state)):
            raise ValueError(
                f"{self.folder}: expected the same checkpoint for all processes, got different ones. "
                f"OUTPUT_DIR must be a folder that all machines share"
            )
        if path is None:
            return None
        logger.info("Resuming from %s", path)
        missing = [key for key in ("optimizer", "iteration", "random") if key not in state]
        if missing:
            raise ValueError(
                f"{path} has no {', '.join(missing)}, so training cannot resume from it. {_REMEDY}"
            )
        if _iteration(state) < 0:
            raise ValueError(
                f"{path}: expected iteration to be a whole number from 0, got "
                f"{printable(shorten(state['iteration']))}. {_REMEDY}"
            )
        saved_names = state.get("class_names")
        if saved_names and saved_names != list(self.class_names):
            raise ValueError(
                f"{path} was trained on the classes {first_names(saved_names, 600)}, but the data has "
                f"{first_names(self.class_names, 600)}; restore the data, or set OUTPUT_DIR to an empty "
                f"folder"
            )
        load_weights_strictly(self.model, state["model"], str(path))
        try:
            self._restore_solver(state, path)
        except Exception as error:  # a damaged or foreign state may break it in any way
            reason = printable(" ".join(str(error).split())) or type(error).__name__
            raise ValueError(
                f"{path}: expected the solver state of a run of this configuration, got another or a damaged "
                f"one ({reason}). {_REMEDY}"
            ) from error
        return state["iteration"]

    def _restore_solver(self, state: dict[str, Any], path: Path) -> None:
        settings = [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        _check_optimizer(self.optimizer)
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(own)
        set_iteration(self.scheduler, state["iteration"])
        set_random_state(state["random"])
        if self.scaler is not None and state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            saved = state.get("ema")
            if saved is None:
                logger.info("The checkpoint has no EMA weights; they start from its weights")
                saved = {"model": state["model"], "num_updates": 0}
            load_weights_strictly(self.ema.module, saved["model"], f"the EMA weights of {path}")
            self.ema.n_averaged.fill_(saved["num_updates"])

    def _write(self, state: dict[str, Any], name: str) -> None:
        path = self.folder / f"{name}.pth"
        logger.info("Saving %s", path)
        with atomic_write(path) as file:
            torch.save(state, file)


def _check_optimizer(optimizer: Optimizer) -> None:
    """Raise ValueError for a restored state that PyTorch accepts unseen, but that no step could have left."""
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            is_whole = name == "step" or (value is not None and value.shape == parameter.shape)
            if value is not None and not (is_whole and torch.as_tensor(value).isfinite().all()):
                raise ValueError(f"{name} is not a finite tensor of the shape {tuple(parameter.shape)}")


def set_iteration(scheduler: LambdaLR, iteration: int) -> None:
    """Move a schedule, which depends on the iteration alone, to an iteration."""
    scheduler.last_epoch = iteration
    rates = [
        base * factor(iteration)
        for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates


def _check_finite(model: nn.Module, iteration: int) -> None:
    """Raise ArithmeticError if weights are NaN or infinite, naming the first of them."""
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
    folder either way. A lost pointer must not restart the run, which would overwrite its checkpoints.

    Returns:
        The file and its content; None and an empty dictionary if the folder has no checkpoint.

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
    if last in others and last.name != FINAL_CHECKPOINT:
        others = others[others.index(last) + 1 :]  # newer files than the one named belong to another run
    for path in others:
        try:
            state = read_checkpoint(path)
        except (OSError, ValueError) as error:
            logger.warning("%s", error)
        else:
            logger.warning("%s; resuming from the newest checkpoint that can be read, %s", problem, path)
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
            with suppress(OSError, ValueError):  # the next reader reports it
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
    with suppress(OSError):  # not possible on Windows and some network file systems
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def random_state() -> dict[str, Any]:
    """Return the states of all random generators, in types that ``weights_only`` loading accepts."""
    _, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore the result of ``random_state``."""
    random.setstate(state["python"])
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count() > 0:
        torch.cuda.set_rng_state_all(state["cuda"])
