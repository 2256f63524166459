"""Build datasets and loaders from the configuration; the only file of this package that sees ``cfg``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from yacs.config import CfgNode

from atss_core.config import checked, is_given, override
from atss_core.config.catalog import find_dataset
from atss_core.data.datasets.dataset import ConcatDetectionDataset, DetectionDataset, describe_classes
from atss_core.data.loader import Batch, Sample, WatchedLoader, collate, init_worker
from atss_core.data.samplers import EvalBatchSampler, TrainBatchSampler
from atss_core.data.transforms import Compose, Normalize, RandomHorizontalFlip, Resize, Step, to_pixels
from atss_core.structures.pixel_format import PixelFormat


def build_transform(cfg: CfgNode, training: bool) -> Compose:
    """Build the transform from an image file to the batch, in the published order.

    Test-time augmentation resizes by itself and gets the pixels as they are.
    """
    cfg = checked(cfg)
    settings = cfg.INPUT
    if training:
        low, high = limits = tuple(settings.MIN_SIZE_RANGE_TRAIN)
        min_sizes = settings.MIN_SIZE_TRAIN if limits == (-1, -1) else range(low, high + 1)
        steps: list[Step] = [
            Resize(min_sizes, settings.MAX_SIZE_TRAIN),
            RandomHorizontalFlip(settings.HORIZONTAL_FLIP_PROB_TRAIN),
        ]
        return Compose(steps, _build_normalize(cfg))
    if cfg.TEST.BBOX_AUG.ENABLED:
        return Compose([], to_pixels)
    return build_test_transform(cfg, settings.MIN_SIZE_TEST, settings.MAX_SIZE_TEST)


def build_test_transform(cfg: CfgNode, min_size: int, max_size: int) -> Compose:
    """Build the transform of evaluation for a short side and the cap of the long side, in pixels."""
    return Compose([Resize([min_size], max_size)], _build_normalize(cfg))


def _build_normalize(cfg: CfgNode) -> Normalize:
    return Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD, cfg.INPUT.TO_BGR255)


def build_pixel_format(cfg: CfgNode) -> PixelFormat:
    """Return the pixel format of the network's input, to compare with that of pretrained weights."""
    settings = cfg.INPUT
    return PixelFormat(tuple(settings.PIXEL_MEAN), tuple(settings.PIXEL_STD), settings.TO_BGR255)


def pixel_limit(cfg: CfgNode) -> int:
    """Return the largest number of pixels of an image."""
    return int(cfg.INPUT.MAX_PIXELS)


def grey_bits(cfg: CfgNode) -> int:
    """Return the bits of grey values of more than 8 bits, 0 to take them from the file."""
    return int(cfg.INPUT.GREY_BITS)


def build_datasets(cfg: CfgNode, training: bool) -> list[DetectionDataset]:
    """Build the datasets of DATASETS.TRAIN or DATASETS.TEST, and check that the detector has their classes.

    Raises:
        ValueError: if the key is empty, two datasets have the same name, NUM_CLASSES was given and is not
            that of a dataset, or as ``DetectionDataset``.
        FileNotFoundError: if files are missing.
    """
    cfg = checked(cfg)
    names = cfg.DATASETS.TRAIN if training else cfg.DATASETS.TEST
    if not names:
        key = "DATASETS.TRAIN" if training else "DATASETS.TEST"
        raise ValueError(f"{key} must name at least one dataset, such as ('coco_2017_val',), got {names!r}")
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
    names = [dataset.name for dataset in datasets]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:  # their results would overwrite each other
        raise ValueError(
            f"DATASETS.TRAIN and DATASETS.TEST need datasets of different names, but {repeated[0]} is there "
            f"twice; name them with DATASETS.REGISTER"
        )
    for dataset in datasets:
        expected, got = dataset.num_classes + 1, cfg.MODEL.ATSS.NUM_CLASSES
        if is_given(cfg, "MODEL.ATSS.NUM_CLASSES") and expected != got:
            classes = describe_classes(dataset.class_names)
            raise ValueError(
                f"dataset {dataset.name} has {classes}, which needs MODEL.ATSS.NUM_CLASSES {expected}"
                f" (classes + background), but it is {got}; correct it, or leave it out"
            )
    return datasets


def fill_num_classes(cfg: CfgNode, class_names: Sequence[str]) -> CfgNode:
    """Return the configuration with MODEL.ATSS.NUM_CLASSES for these classes, unless it was given."""
    if is_given(cfg, "MODEL.ATSS.NUM_CLASSES"):
        return cfg
    return override(cfg, "MODEL.ATSS.NUM_CLASSES", len(class_names) + 1)


def check_same_classes(dataset: DetectionDataset, class_names: Sequence[str], source: str) -> None:
    """Raise ValueError if a dataset has other classes, or another order of labels, than ``source``."""
    if list(class_names) != dataset.class_names:
        raise ValueError(
            f"dataset {dataset.name} must have the classes of {source}, in the same order of ids, "
            f"{describe_classes(class_names)}, but has {describe_classes(dataset.class_names)}; correct its "
            f"categories, or for VOC list the classes in a file classes.txt in both folders"
        )


def build_collate(cfg: CfgNode) -> Callable[[Sequence[Sample]], Batch]:
    """Build the function that pads samples to a batch."""
    return partial(collate, size_divisibility=cfg.DATALOADER.SIZE_DIVISIBILITY)


def build_train_dataset(cfg: CfgNode) -> ConcatDetectionDataset:
    """Build the training set of all names in DATASETS.TRAIN; raises as ``build_datasets``."""
    return ConcatDetectionDataset(build_datasets(cfg, training=True))


def build_train_loader(
    cfg: CfgNode, dataset: ConcatDetectionDataset, start_iter: int = 0, rank: int = 0, world_size: int = 1
) -> DataLoader[Sample]:
    """Build the loader of the batches from iteration ``start_iter`` to SOLVER.MAX_ITER.

    It gives SOLVER.GRAD_ACCUM_STEPS objects ``Batch`` per iteration; the processes share IMS_PER_BATCH.
    """
    sampler = TrainBatchSampler(
        _aspect_groups(cfg, dataset),
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        num_iters=cfg.SOLVER.MAX_ITER,
        start_iter=start_iter,
        seed=cfg.SEED,
        rank=rank,
        world_size=world_size,
        num_micro_batches=cfg.SOLVER.GRAD_ACCUM_STEPS,
    )
    return _build_loader(cfg, dataset, sampler)


def build_test_loaders(
    cfg: CfgNode, rank: int = 0, world_size: int = 1, datasets: Sequence[DetectionDataset] | None = None
) -> list[DataLoader[Sample]]:
    """Build a loader of ``Batch`` for each ``DetectionDataset`` of DATASETS.TEST, or of those given.

    The processes share TEST.IMS_PER_BATCH, at least one image each. Raises as ``build_datasets``.
    """
    batch_size = max(cfg.TEST.IMS_PER_BATCH // world_size, 1)  # each image comes once in any case
    if cfg.TEST.BBOX_AUG.ENABLED:
        batch_size = 1  # test-time augmentation processes single images; keeps the progress bar in step
    loaders = []
    for dataset in build_datasets(cfg, training=False) if datasets is None else datasets:
        sampler = EvalBatchSampler(_aspect_groups(cfg, dataset), batch_size, rank=rank, world_size=world_size)
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
        worker_init_fn=init_worker,
        # The workers' own seeds follow from this one, and the global generator is left alone. No sample
        # depends on them: augmentation is seeded by the sampler.
        generator=torch.Generator().manual_seed(cfg.SEED),
    )


def _aspect_groups(cfg: CfgNode, dataset: DetectionDataset | ConcatDetectionDataset) -> list[int]:
    """Return the aspect group of each image: 0 wide, 1 tall or square."""
    if not cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        return [0] * len(dataset)
    return (dataset.aspect_ratios >= 1).astype(int).tolist()
