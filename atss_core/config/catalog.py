"""Data sets and ImageNet weights: names, and where they are."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from atss_core.config.reading import shorten

# Bytes of the name of a data set; file systems take 255.
_MAX_NAME = 200


@dataclass(frozen=True)
class DatasetEntry:
    """Where a data set is; ``data/formats.py`` reads it.

    Attributes:
        name: for messages and for the folder of its results.
        images: the folder with the images of a COCO file; None where the layout tells it (VOC, YOLO).
        annotations: a COCO JSON file, the folder of a VOC or YOLO data set, or a ``data.yaml``.
        split: the part of a VOC or YOLO data set, such as "train"; empty for all of it.
        class_names: the classes in the order of their labels; empty if the data set tells them.
    """

    name: str
    images: Path | None
    annotations: Path
    split: str = ""
    class_names: tuple[str, ...] = ()


# name -> place under DATASETS.DATA_DIR, in the form that ``parse_place`` reads
DATASETS = {
    "coco_2017_train": "coco/annotations/instances_train2017.json@coco/train2017",
    "coco_2017_val": "coco/annotations/instances_val2017.json@coco/val2017",
    "coco_2017_test_dev": "coco/annotations/image_info_test-dev2017.json@coco/test2017",
    "coco_2014_train": "coco/annotations/instances_train2014.json@coco/train2014",
    "coco_2014_val": "coco/annotations/instances_val2014.json@coco/val2014",
    "coco_2014_minival": "coco/annotations/instances_minival2014.json@coco/val2014",
    "coco_2014_valminusminival": "coco/annotations/instances_valminusminival2014.json@coco/val2014",
    "coco_test-dev": "coco/annotations/image_info_test-dev2017.json@coco/test2017",
    **{
        f"voc_{year}_{split}": f"voc/VOC{year}@{split}"
        for year in ("2007", "2012")
        for split in ("train", "val", "trainval", "test")
    },
    **{
        f"voc_{year}_{split}_cocostyle": (
            f"voc/VOC{year}/Annotations/pascal_{split}{year}.json@voc/VOC{year}/JPEGImages"
        )
        for year, split in (
            *(("2007", "train"), ("2007", "val"), ("2007", "test")),
            *(("2012", "train"), ("2012", "val")),
        )
    },
    "shapes_train": "shapes/annotations/train.json@shapes/train",
    "shapes_val": "shapes/annotations/val.json@shapes/val",
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

# torchvision://NAME: the models of torchvision that are plain ResNet or ResNeXt backbones
TORCHVISION_BACKBONES = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
)

# timm://NAME.TAG -> URL of one of its files
TIMM_URL = "https://huggingface.co/timm/{name}/resolve/main/{file}"


def find_dataset(name: str, data_dir: str | Path, register: Mapping[str, str] | None = None) -> DatasetEntry:
    """Return where a data set is.

    Args:
        name: a key of ``register`` or ``DATASETS``, or a place itself; see ``parse_place``.
        data_dir: the folder that the paths of ``DATASETS`` start from.
        register: name -> place, of the user.

    Raises:
        ValueError: if it is neither; the nearest names are listed.
    """
    own = dict(register or {})
    if name in own:
        check_dataset_name(name, "DATASETS.REGISTER")
        return parse_place(own[name], name=name)
    if name in DATASETS:
        is_voc = name.startswith("voc_") and not name.endswith("cocostyle")
        return parse_place(
            DATASETS[name], name=name, root=Path(data_dir), class_names=VOC_CLASSES if is_voc else ()
        )
    looks_like_path = "@" in name or "/" in name or name.endswith((".json", ".yaml", ".yml"))
    if looks_like_path or os.path.exists(os.path.expanduser(name)):
        return parse_place(name)
    raise ValueError(
        f"unknown data set {shorten(name)}; {_nearest(name, {**DATASETS, **own})} For your own data give "
        f"its place, such as path/to/train.json@path/to/images"
    )


def check_dataset_name(name: str, source: str) -> None:
    """Refuse a name that cannot be the name of a folder, which the results of the data set get.

    Raises:
        ValueError: beginning with ``source``.
    """
    is_printable = name.isprintable() and bool(name.strip(" ."))
    if is_printable and len(name.encode()) <= _MAX_NAME and not {"/", "\\"} & set(name):
        return
    raise ValueError(
        f"{source}: the name of a data set becomes that of a folder: expected at most {_MAX_NAME} characters "
        f"without / and \\, got {shorten(name)}; rename it"
    )


def parse_place(
    place: str, *, name: str = "", root: Path | None = None, class_names: tuple[str, ...] = ()
) -> DatasetEntry:
    """Read where a data set is.

    Args:
        place: ``annotations.json@images`` for COCO (without ``@images`` they are beside the file),
            ``folder@split`` for VOC and YOLO, ``data.yaml@split`` for YOLO.
        name: of the data set; by default made of the last parts of the path.
        root: what the paths start from, by default the current folder.
        class_names: see ``DatasetEntry``.

    Raises:
        ValueError: if there is no path in it.
    """
    text, part = _split_place(place, root or Path())
    if not text:
        raise ValueError(
            f"{shorten(place)} is not the place of a data set: expected annotations.json@images, "
            f"folder@split or data.yaml@split"
        )
    path = (root or Path()) / os.path.expanduser(text)
    if path.suffix.lower() == ".json":
        images = (root or Path()) / os.path.expanduser(part) if part else path.parent
        return DatasetEntry(name or _name_of(path, ""), images, path, class_names=class_names)
    return DatasetEntry(name or _name_of(path, part), None, path, part, class_names)


def _split_place(place: str, root: Path) -> tuple[str, str]:
    """Split at the "@" behind a path; a path may have some of its own."""
    if os.path.exists(root / os.path.expanduser(place)):
        return place, ""
    cuts = [i for i, letter in enumerate(place) if letter == "@"][::-1]
    for i in cuts:
        path = place[:i]
        is_file = path.lower().endswith((".json", ".yaml", ".yml"))
        if is_file or os.path.exists(root / os.path.expanduser(path)):
            return path, place[i + 1 :]
    return (place[: cuts[0]], place[cuts[0] + 1 :]) if cuts else (place, "")


def _name_of(path: Path, split: str) -> str:
    """Make a name of the last two parts of a path, or of the last and the split."""
    path = Path(os.path.abspath(path))  # without ".."
    suffix = path.suffix.lower()
    if suffix == ".json":
        parts = [path.parent.name, path.stem]
    else:
        parts = [path.parent.name if suffix in (".yaml", ".yml") else path.name, split]
    name = re.sub(r"[^\w.-]+", "_", "_".join(filter(None, parts))).strip("_.")
    return name.encode()[-_MAX_NAME:].decode(errors="ignore").strip("_.") or "dataset"


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
    near = difflib.get_close_matches(name[:100], names, n=3, cutoff=0.6) or sorted(names)
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

# Names of Pascal VOC's 20 classes: label i is VOC_CLASSES[i - 1].
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
