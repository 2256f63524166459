"""Names of datasets, ImageNet weights and shipped configurations, and where to find them."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from atss_core.config.reading import check_regular, shorten

_MAX_NAME = 200  # bytes of the name of a dataset; file systems allow 255
_PACKAGE = Path(__file__).resolve().parents[1]
_CONFIG_FOLDERS = (_PACKAGE.parent / "configs", _PACKAGE / "configs")  # of a checkout, of an installed wheel


@dataclass(frozen=True)
class DatasetEntry:
    """Paths of a dataset, which ``data/datasets`` reads."""

    name: str  # used in messages and as the folder of its results
    images: Path | None  # image folder of a COCO file; None for VOC and YOLO, whose format defines it
    annotations: Path  # a COCO JSON file, the folder of a VOC or YOLO dataset, or a ``data.yaml``
    split: str = ""  # of a VOC or YOLO dataset, such as "train"; empty for all images
    class_names: tuple[str, ...] = ()  # in the order of the labels; empty if the dataset lists them


# name -> dataset path relative to DATASETS.DATA_DIR; see ``parse_dataset_path``
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
        for year, splits in (("2007", ("train", "val", "test")), ("2012", ("train", "val")))
        for split in splits
    },
    "shapes_train": "shapes/annotations/train.json@shapes/train",
    "shapes_val": "shapes/annotations/val.json@shapes/val",
}

# catalog://NAME -> URL of ImageNet weights in Detectron's Caffe2 format, published without checksums
WEIGHTS = {
    f"ImageNetPretrained/{name}": f"https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/{file}"
    for name, file in (
        ("MSRA/R-50", "MSRA/R-50.pkl"),
        ("MSRA/R-50-GN", "47261647/R-50-GN.pkl"),
        ("MSRA/R-101", "MSRA/R-101.pkl"),
        ("MSRA/R-101-GN", "47592356/R-101-GN.pkl"),
        ("FAIR/20171220/X-101-32x8d", "20171220/X-101-32x8d.pkl"),
        ("FAIR/20171220/X-101-64x4d", "20171220/X-101-64x4d.pkl"),
    )
}

# torchvision://NAME: the models of torchvision that are plain ResNet or ResNeXt backbones
TORCHVISION_BACKBONES = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
)

# timm://NAME.TAG -> URL of one of its files
TIMM_URL = "https://huggingface.co/timm/{name}/resolve/main/{file}"


def find_dataset(name: str, data_dir: str | Path, register: Mapping[str, str] | None = None) -> DatasetEntry:
    """Return the paths of a dataset.

    Args:
        name: a key of ``register`` or ``DATASETS``, or a dataset path; see ``parse_dataset_path``.
        data_dir: folder that the paths of ``DATASETS`` are relative to.
        register: name -> dataset path, from DATASETS.REGISTER.

    Raises:
        ValueError: if the name is unknown; the message lists the nearest names.
    """
    own = dict(register or {})
    if name in own:
        check_dataset_name(name, "DATASETS.REGISTER")
        return parse_dataset_path(own[name], name=name)
    if name in DATASETS:
        is_voc = name.startswith("voc_") and not name.endswith("cocostyle")
        class_names = VOC_CLASSES if is_voc else ()
        return parse_dataset_path(DATASETS[name], name=name, root=Path(data_dir), class_names=class_names)
    is_path = "@" in name or "/" in name or name.endswith((".json", ".yaml", ".yml"))
    if is_path or os.path.exists(os.path.expanduser(name)):
        return parse_dataset_path(name)
    raise ValueError(
        f"unknown dataset {shorten(name)}; {_nearest(name, {**DATASETS, **own})} For your own data give a "
        f"dataset path, such as path/to/train.json@path/to/images"
    )


def check_dataset_name(name: str, source: str) -> None:
    """Refuse a name of a dataset that cannot be the name of the folder of its results.

    Raises:
        ValueError: with ``source`` in front.
    """
    is_printable = name.isprintable() and bool(name.strip(" ."))
    if not is_printable or len(name.encode()) > _MAX_NAME or {"/", "\\"} & set(name):
        raise ValueError(
            f"{source}: the name of a dataset becomes that of a folder: expected at most {_MAX_NAME} "
            f"characters without / and \\, got {shorten(name)}; rename it"
        )


def parse_dataset_path(
    text: str, *, name: str = "", root: Path | None = None, class_names: tuple[str, ...] = ()
) -> DatasetEntry:
    """Parse a dataset path.

    Args:
        text: ``annotations.json@images`` for COCO (without ``@images``, images are next to the file),
            ``folder@split`` for VOC and YOLO, ``data.yaml@split`` for YOLO.
        name: of the dataset; by default the end of the path.
        root: folder that the paths are relative to, by default the current one.
        class_names: see ``DatasetEntry``.

    Raises:
        ValueError: if it has no path.
    """
    root = root or Path()
    annotations, suffix = _split_dataset_path(text, root)
    if not annotations:
        raise ValueError(
            f"{shorten(text)} is not a dataset path: expected annotations.json@images, folder@split or "
            f"data.yaml@split"
        )
    path = root / os.path.expanduser(annotations)
    if path.suffix.lower() == ".json":
        images = root / os.path.expanduser(suffix) if suffix else path.parent
        return DatasetEntry(name or _name_of(path, ""), images, path, class_names=class_names)
    return DatasetEntry(name or _name_of(path, suffix), None, path, suffix, class_names)


def _split_dataset_path(text: str, root: Path) -> tuple[str, str]:
    """Split at the "@" after the annotations, which may contain others."""
    if os.path.exists(root / os.path.expanduser(text)):
        return text, ""
    cuts = [i for i, letter in enumerate(text) if letter == "@"][::-1]
    for i in cuts:
        is_file = text[:i].lower().endswith((".json", ".yaml", ".yml"))
        if is_file or os.path.exists(root / os.path.expanduser(text[:i])):
            return text[:i], text[i + 1 :]
    return (text[: cuts[0]], text[cuts[0] + 1 :]) if cuts else (text, "")


def _name_of(path: Path, split: str) -> str:
    """Build a name from the last two names of a path, or from the last one and the split."""
    path = Path(os.path.abspath(path))  # without ".."
    suffix = path.suffix.lower()
    if suffix == ".json":
        names = [path.parent.name, path.stem]
    else:
        names = [path.parent.name if suffix in (".yaml", ".yml") else path.name, split]
    name = re.sub(r"[^\w.-]+", "_", "_".join(filter(None, names))).strip("_.")
    return name.encode()[-_MAX_NAME:].decode(errors="ignore").strip("_.") or "dataset"


def find_weights(name: str) -> str:
    """Return the URL of the ImageNet weights ``catalog://NAME``.

    Raises:
        ValueError: if the name is unknown; the message lists the nearest names.
    """
    if name not in WEIGHTS:
        raise ValueError(f"unknown weights catalog://{name}; {_nearest(name, WEIGHTS)}")
    return WEIGHTS[name]


def _nearest(name: str, names: dict) -> str:
    near = difflib.get_close_matches(name[:100], names, n=3, cutoff=0.6) or sorted(names)
    return f"did you mean {' or '.join(near)}?"


def find_config(file: str | Path) -> Path:
    """Return the path of a configuration file.

    Args:
        file: a path; or the name of a shipped configuration, such as "atss_R_50_FPN_1x"; or its path in the
            repository, "configs/atss/atss_R_50_FPN_1x.yaml", from any current folder.

    Raises:
        FileNotFoundError: if there is none; the message lists the nearest names.
        ValueError: if it is a folder, pipe or device.
    """
    path = Path(os.path.expanduser(file))
    if os.path.isfile(path):
        return path
    shipped = shipped_configs()
    stem = path.name.removesuffix(".yaml")
    config = shipped.get(stem)
    if config is not None and path.parts in ((stem,), (path.name,), ("configs", *config.parts[-2:])):
        return config
    if os.path.lexists(path):
        check_regular(path)
    near = difflib.get_close_matches(stem[:100], shipped, n=2)
    proposal = f"did you mean {' or '.join(near)}?" if near else "the shipped ones are in configs/"
    raise FileNotFoundError(f"no configuration file {file!s:.400}; {proposal}")


def shipped_configs() -> dict[str, Path]:
    """Return the shipped configurations by name."""
    folder = next((each for each in _CONFIG_FOLDERS if (each / "atss").is_dir()), None)
    return {} if folder is None else {path.stem: path for path in sorted(folder.glob("*/*.yaml"))}


# COCO's 80 categories in ascending order of their ids: label i is COCO_CLASSES[i - 1].
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

# Pascal VOC's 20 classes: label i is VOC_CLASSES[i - 1].
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
