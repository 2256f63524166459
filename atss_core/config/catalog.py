"""Names of data sets and ImageNet weights, and where they are."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DatasetEntry:
    """A data set in the COCO layout.

    Attributes:
        name: the name used in DATASETS.TRAIN and DATASETS.TEST.
        images: the folder with the pictures.
        annotations: the JSON file.
    """

    name: str
    images: Path
    annotations: Path


# name -> (folder of pictures, annotation file), both under DATASETS.DATA_DIR
DATASETS = {
    "coco_2017_train": ("coco/train2017", "coco/annotations/instances_train2017.json"),
    "coco_2017_val": ("coco/val2017", "coco/annotations/instances_val2017.json"),
    "coco_2017_test_dev": ("coco/test2017", "coco/annotations/image_info_test-dev2017.json"),
    "coco_2014_train": ("coco/train2014", "coco/annotations/instances_train2014.json"),
    "coco_2014_val": ("coco/val2014", "coco/annotations/instances_val2014.json"),
    "coco_2014_minival": ("coco/val2014", "coco/annotations/instances_minival2014.json"),
    "coco_2014_valminusminival": ("coco/val2014", "coco/annotations/instances_valminusminival2014.json"),
    "coco_test-dev": ("coco/test2017", "coco/annotations/image_info_test-dev2017.json"),
    "shapes_train": ("shapes/train", "shapes/annotations/train.json"),
    "shapes_val": ("shapes/val", "shapes/annotations/val.json"),
}

_IMAGENET_ROOT = "https://dl.fbaipublicfiles.com/detectron/"

# catalog://NAME -> URL of ImageNet weights in the Caffe2 layout of Detectron. Their publisher gives no sums.
WEIGHTS = {
    "ImageNetPretrained/MSRA/R-50": _IMAGENET_ROOT + "ImageNetPretrained/MSRA/R-50.pkl",
    "ImageNetPretrained/MSRA/R-50-GN": _IMAGENET_ROOT + "ImageNetPretrained/47261647/R-50-GN.pkl",
    "ImageNetPretrained/MSRA/R-101": _IMAGENET_ROOT + "ImageNetPretrained/MSRA/R-101.pkl",
    "ImageNetPretrained/MSRA/R-101-GN": _IMAGENET_ROOT + "ImageNetPretrained/47592356/R-101-GN.pkl",
    "ImageNetPretrained/FAIR/20171220/X-101-32x8d": (
        _IMAGENET_ROOT + "ImageNetPretrained/20171220/X-101-32x8d.pkl"
    ),
    "ImageNetPretrained/FAIR/20171220/X-101-64x4d": (
        _IMAGENET_ROOT + "ImageNetPretrained/20171220/X-101-64x4d.pkl"
    ),
}

# torchvision://NAME: the models of torchvision that are plain ResNet or ResNeXt bodies
TORCHVISION_BODIES = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
)

# timm://NAME.TAG -> URL of one of its files
TIMM_URL = "https://huggingface.co/timm/{name}/resolve/main/{file}"


def find_dataset(name: str, data_dir: str | Path) -> DatasetEntry:
    """Return the paths of a data set.

    Args:
        name: a key of ``DATASETS``.
        data_dir: the folder that the paths start from.

    Raises:
        ValueError: if there is no such name; the nearest names are listed.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; {_nearest(name, DATASETS)}")
    images, annotations = DATASETS[name]
    return DatasetEntry(name, Path(data_dir) / images, Path(data_dir) / annotations)


def find_weights(name: str) -> str:
    """Return the URL of ImageNet weights.

    Args:
        name: a key of ``WEIGHTS``, without ``catalog://``.

    Raises:
        ValueError: if there is no such name; the nearest names are listed.
    """
    if name not in WEIGHTS:
        raise ValueError(f"unknown weights catalog://{name}; {_nearest(name, WEIGHTS)}")
    return WEIGHTS[name]


def _nearest(name: str, names: dict) -> str:
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6) or sorted(names)
    return f"did you mean {' or '.join(near)}?"


# Names of COCO's 80 categories by rising id: label i is COCO_CLASSES[i - 1].
COCO_CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase",
    "frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard",
    "surfboard", "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl",
    "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake",
    "chair", "couch", "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote",
    "keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock",
    "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
