"""From the configuration to data sets and loaders; the only file of this package that sees ``cfg``."""

from __future__ import annotations

import logging
import os
import signal
import sys
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from threading import Thread
from types import TracebackType

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from yacs.config import CfgNode

from atss_core.config import checked, is_given, override
from atss_core.config.catalog import find_dataset
from atss_core.data.batch import Batch, Sample, collate
from atss_core.data.dataset import DetectionDataset
from atss_core.data.loader import WatchedLoader
from atss_core.data.samplers import EvalBatchSampler, SampleKey, TrainBatchSampler
from atss_core.data.transforms import Compose, Normalize, RandomHorizontalFlip, Resize, Step, to_pixels
from atss_core.structures.pixel_format import PixelFormat

logger = logging.getLogger(__name__)


class JoinedDataset(Dataset[Sample]):
    """Several data sets of the same classes, one after the other.

    Args:
        datasets: at least one.

    Raises:
        ValueError: if their classes differ.
    """

    def __init__(self, datasets: Sequence[DetectionDataset]) -> None:
        first = datasets[0]
        for other in datasets[1:]:
            if other.class_names != first.class_names:
                raise ValueError(
                    "data sets that are trained on together must have the same classes in the same order of"
                    f" ids, but {first.name} has {_listed(first.class_names)} and {other.name} has"
                    f" {_listed(other.class_names)}; correct DATASETS.TRAIN"
                )
        self.datasets = list(datasets)
        self.name = "+".join(dataset.name for dataset in datasets)
        self.class_names = first.class_names
        self.num_classes = first.num_classes
        self.aspect_ratios = np.concatenate([dataset.aspect_ratios for dataset in datasets])
        self._ends = list(accumulate(len(dataset) for dataset in datasets))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, key: int | SampleKey) -> Sample:
        index, seed = key if isinstance(key, SampleKey) else (key, 0)
        which = bisect_right(self._ends, index)
        start = self._ends[which - 1] if which else 0
        return self.datasets[which][SampleKey(index - start, seed)]


def build_transform(cfg: CfgNode, training: bool) -> Compose:
    """Build what happens to an image between its file and the batch, in the published order.

    Multi-scale testing resizes for itself and gets the pixels as they are.
    """
    cfg = checked(cfg)
    if training:
        steps: list[Step] = [
            Resize(_train_sizes(cfg), cfg.INPUT.MAX_SIZE_TRAIN),
            RandomHorizontalFlip(cfg.INPUT.HORIZONTAL_FLIP_PROB_TRAIN),
        ]
        return Compose(steps, build_normalize(cfg))
    if cfg.TEST.BBOX_AUG.ENABLED:
        return Compose([], to_pixels)
    return build_test_transform(cfg, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)


def build_test_transform(cfg: CfgNode, min_size: int, max_size: int) -> Compose:
    """Build the way from an image to the network at a short side, with a cap of the long one, in pixels."""
    return Compose([Resize([min_size], max_size)], build_normalize(cfg))


def build_normalize(cfg: CfgNode) -> Normalize:
    """Build what makes a normalised tensor of an image."""
    settings = cfg.INPUT
    return Normalize(mean=settings.PIXEL_MEAN, std=settings.PIXEL_STD, to_bgr255=settings.TO_BGR255)


def build_pixel_format(cfg: CfgNode) -> PixelFormat:
    """Return what the network gets its pixels in, to compare with what weights were trained on."""
    settings = cfg.INPUT
    return PixelFormat(tuple(settings.PIXEL_MEAN), tuple(settings.PIXEL_STD), settings.TO_BGR255)


def pixel_limit(cfg: CfgNode) -> int:
    """Return how many pixels per image may have."""
    return int(cfg.INPUT.MAX_PIXELS)


def grey_bits(cfg: CfgNode) -> int:
    """Return how many bits grey values of more than 8 have, 0 for those of the file."""
    return int(cfg.INPUT.GREY_BITS)


def build_datasets(cfg: CfgNode, training: bool) -> list[DetectionDataset]:
    """Build the data sets of DATASETS.TRAIN or DATASETS.TEST, and check that the detector has their classes.

    Raises:
        ValueError: if the key is empty, or as ``DetectionDataset`` and ``check_num_classes``.
        FileNotFoundError: if files are missing.
    """
    cfg = checked(cfg)
    names = cfg.DATASETS.TRAIN if training else cfg.DATASETS.TEST
    if not names:
        key = "DATASETS.TRAIN" if training else "DATASETS.TEST"
        raise ValueError(f"{key} must name at least one data set, such as ('coco_2017_val',), got {names!r}")
    datasets = [
        DetectionDataset(
            find_dataset(name, cfg.DATASETS.DATA_DIR, cfg.DATASETS.REGISTER),
            transform=build_transform(cfg, training),
            training=training,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            skip_corrupt=cfg.DATALOADER.SKIP_CORRUPT,
            max_pixels=pixel_limit(cfg),
            grey_bits=grey_bits(cfg),
        )
        for name in names
    ]
    check_names([dataset.name for dataset in datasets])
    for dataset in datasets:
        check_num_classes(dataset, cfg)
    return datasets


def fill_num_classes(cfg: CfgNode, class_names: Sequence[str]) -> CfgNode:
    """Return the configuration with MODEL.ATSS.NUM_CLASSES for these classes, unless it was given."""
    if is_given(cfg, "MODEL.ATSS.NUM_CLASSES"):
        return cfg
    return override(cfg, "MODEL.ATSS.NUM_CLASSES", len(class_names) + 1)


def check_names(names: Sequence[str]) -> None:
    """Refuse data sets of one name, whose results would overwrite each other's."""
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(
            f"DATASETS.TRAIN and DATASETS.TEST need data sets of different names, but {repeated[0]} is there "
            f"twice; name them with DATASETS.REGISTER"
        )


def check_num_classes(dataset: DetectionDataset, cfg: CfgNode) -> None:
    """Check that the detector has as many classes as the data set, if the configuration gives their number.

    Raises:
        ValueError: if it has not.
    """
    wanted, found = dataset.num_classes + 1, cfg.MODEL.ATSS.NUM_CLASSES
    if is_given(cfg, "MODEL.ATSS.NUM_CLASSES") and wanted != found:
        raise ValueError(
            f"data set {dataset.name} has {_listed(dataset.class_names)}, which needs MODEL.ATSS.NUM_CLASSES"
            f" {wanted} (classes + background), but it is {found}; correct it, or leave it out"
        )


def check_same_classes(dataset: DetectionDataset, class_names: Sequence[str], whose: str) -> None:
    """Check that a data set has certain classes, in the same order of labels.

    Args:
        dataset: to be tested on.
        class_names: what the detector has learned.
        whose: where these names are from, for the message.

    Raises:
        ValueError: if its classes are others.
    """
    if list(class_names) != dataset.class_names:
        raise ValueError(
            f"data set {dataset.name} must have the classes of {whose}, in the same order of ids, "
            f"{_listed(class_names)}, but has {_listed(dataset.class_names)}; correct its categories, or "
            f"for VOC list the classes in a file classes.txt in both folders"
        )


def build_collate(cfg: CfgNode) -> Callable[[Sequence[Sample]], Batch]:
    """Build what pads samples to a batch."""
    return partial(collate, size_divisibility=cfg.DATALOADER.SIZE_DIVISIBILITY)


def build_train_dataset(cfg: CfgNode) -> JoinedDataset:
    """Build the training set of all names in DATASETS.TRAIN; raises as ``build_datasets``."""
    return JoinedDataset(build_datasets(cfg, training=True))


def build_train_loader(
    cfg: CfgNode, dataset: JoinedDataset, start_iter: int = 0, rank: int = 0, world_size: int = 1
) -> DataLoader[Sample]:
    """Build the loader of the batches from iteration ``start_iter`` to SOLVER.MAX_ITER.

    Args:
        cfg: the configuration.
        dataset: the training set.
        start_iter: iterations already trained.
        rank: of this process.
        world_size: number of processes, which share SOLVER.IMS_PER_BATCH.

    Returns:
        A loader of ``Batch``, SOLVER.GRAD_ACCUM_STEPS of them an iteration; its ``dataset`` has
        ``class_names``.
    """
    sampler = TrainBatchSampler(
        _aspect_groups(cfg, dataset),
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        num_iters=cfg.SOLVER.MAX_ITER,
        start_iter=start_iter,
        seed=cfg.SEED,
        rank=rank,
        world_size=world_size,
        num_parts=cfg.SOLVER.GRAD_ACCUM_STEPS,
    )
    return _build_loader(cfg, dataset, sampler)


def build_test_loaders(
    cfg: CfgNode, rank: int = 0, world_size: int = 1, datasets: Sequence[DetectionDataset] | None = None
) -> list[DataLoader[Sample]]:
    """Build a loader of ``Batch`` for each ``DetectionDataset`` of DATASETS.TEST, which is its ``dataset``.

    Args:
        cfg: the configuration.
        rank: of this process.
        world_size: number of processes, which share TEST.IMS_PER_BATCH, at least one image each.
        datasets: those of DATASETS.TEST if they are open already.

    Raises:
        ValueError: as ``build_datasets``.
    """
    share = max(cfg.TEST.IMS_PER_BATCH // world_size, 1)  # each image is tested once in any case
    if cfg.TEST.BBOX_AUG.ENABLED:
        share = 1  # it looks at one image at a time in any case, and so do the loader and the progress bar
    loaders = []
    for dataset in build_datasets(cfg, training=False) if datasets is None else datasets:
        sampler = EvalBatchSampler(_aspect_groups(cfg, dataset), share, rank=rank, world_size=world_size)
        loaders.append(_build_loader(cfg, dataset, sampler))
    return loaders


def _build_loader(cfg: CfgNode, dataset: Dataset[Sample], sampler: Sampler) -> DataLoader[Sample]:
    cfg = checked(cfg)
    return WatchedLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=build_collate(cfg),
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_init_worker,
        # The workers' own seeds follow from this one, and the global generator is left alone. No sample
        # depends on them: augmentation is seeded by the sampler.
        generator=torch.Generator().manual_seed(cfg.SEED),
    )


def _init_worker(worker: int) -> None:
    """Let only the main process end a worker; clusters send SIGTERM to all, and the main one saves first."""
    sys.excepthook = _log_exception
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        Thread(target=_wait_for_termination, daemon=True).start()


def _log_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Keep off the console what a worker that lives meets when the main process ends because another died."""
    logger.debug("Error beside the loading of images", exc_info=(kind, error, trace))


def _wait_for_termination() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        logger.debug("Worker %d leaves SIGTERM to its main process", os.getpid())
    os._exit(0)


def _aspect_groups(cfg: CfgNode, dataset: DetectionDataset | JoinedDataset) -> list[int]:
    """Return the aspect group of each image: 0 wide, 1 tall or square."""
    if not cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        return [0] * len(dataset)
    return (dataset.aspect_ratios >= 1).astype(int).tolist()


def _train_sizes(cfg: CfgNode) -> Sequence[int]:
    """Return the short sides in pixels that training chooses from."""
    limits = cfg.INPUT.MIN_SIZE_RANGE_TRAIN
    if tuple(limits) == (-1, -1):
        return cfg.INPUT.MIN_SIZE_TRAIN
    return range(limits[0], limits[1] + 1)


def _listed(class_names: Sequence[str]) -> str:
    """Describe classes: their number and the first three names."""
    shown = ", ".join(class_names[:3])
    noun = "class" if len(class_names) == 1 else "classes"
    return f"{len(class_names)} {noun} ({shown}{', ...' if len(class_names) > 3 else ''})"
