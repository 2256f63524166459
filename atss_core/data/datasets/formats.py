"""Read a data set of any layout: COCO, VOC or YOLO."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atss_core.config.catalog import DatasetEntry
from atss_core.data.datasets.coco import check_tree, read_coco_json
from atss_core.data.datasets.voc import is_voc, read_voc
from atss_core.data.datasets.yolo import is_yolo, read_yolo

LAYOUTS = (
    "a COCO file (train.json@images), a VOC folder (Annotations, JPEGImages; folder@trainval) or a YOLO"
    " folder (images, labels, data.yaml; folder@train)"
)


@dataclass(frozen=True)
class Source:
    """A data set as its files tell it.

    Attributes:
        layout: "COCO", "VOC" or "YOLO".
        path: what was read, for messages.
        images: the folder that the names of images start from.
        tree: in the form of a COCO file: images, annotations, categories. An image that cannot be read has
            the reason as "unreadable".
        is_upright: whether the annotations are for the images turned as their EXIF data says.
        warnings: what is odd about the files, a line each.
    """

    layout: str
    path: Path
    images: Path
    tree: dict[str, Any]
    is_upright: bool = False
    warnings: tuple[str, ...] = ()


def read_source(entry: DatasetEntry) -> Source:
    """Read a data set; what layout it has is seen from its files.

    Raises:
        FileNotFoundError: if something is missing.
        ValueError: if there is no known layout, or a file is faulty.
    """
    path = entry.annotations
    if entry.images is not None:
        tree = read_coco_json(entry.name, path)
        _check_folder(entry.images, entry.name, path)
        return Source("COCO", path, entry.images, tree)
    if not path.exists():
        raise FileNotFoundError(
            f"data set {entry.name} needs {path}, which does not exist; correct the path, or set"
            " DATASETS.DATA_DIR to the folder that holds the data sets"
        )
    if path.is_dir() and is_voc(path, entry.split):
        tree, images, warnings = read_voc(path, entry.split, entry.class_names)
        source = Source("VOC", path, images, tree, warnings=tuple(warnings))
    elif is_yolo(path):
        tree, images, warnings = read_yolo(path, entry.split)
        source = Source("YOLO", path, images, tree, is_upright=True, warnings=tuple(warnings))
    else:
        raise ValueError(f"{path} is not a data set; expected {LAYOUTS}")
    check_tree(source.tree, path)
    return source


def _check_folder(folder: Path, name: str, annotations: Path) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"data set {name} needs the folder {folder} with the images of {annotations}, which does not"
            " exist; set DATASETS.DATA_DIR to the folder that holds the data sets, or link yours into it"
        )
