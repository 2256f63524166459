"""Images and boxes, from files to batches."""

from atss_core.data.build import (
    build_collate,
    build_datasets,
    build_pixel_format,
    build_test_loaders,
    build_test_transform,
    build_train_dataset,
    build_train_loader,
    build_transform,
    check_same_classes,
    fill_num_classes,
    grey_bits,
    pixel_limit,
)
from atss_core.data.datasets.dataset import ConcatDetectionDataset, DetectionDataset
from atss_core.data.datasets.shapes import write_shapes
from atss_core.data.images import UnreadableImageError, read_image, to_rgb
from atss_core.data.loader import Batch, Sample, collate
from atss_core.data.samplers import EvalBatchSampler
from atss_core.data.transforms import resize_size

__all__ = [
    "Batch",
    "ConcatDetectionDataset",
    "DetectionDataset",
    "EvalBatchSampler",
    "Sample",
    "UnreadableImageError",
    "build_collate",
    "build_datasets",
    "build_pixel_format",
    "build_test_loaders",
    "build_test_transform",
    "build_train_dataset",
    "build_train_loader",
    "build_transform",
    "check_same_classes",
    "collate",
    "fill_num_classes",
    "grey_bits",
    "pixel_limit",
    "read_image",
    "resize_size",
    "to_rgb",
    "write_shapes",
]
