"""Read a dataset in Pascal VOC format into the tree of a COCO file."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from atss_core.data.datasets.coco import summarize
from atss_core.data.folders import files_below
from atss_core.data.images import SUFFIXES, UnreadableImageError, image_size, list_images
from atss_core.utils.files import read_text
from atss_core.utils.logging import progress
from atss_core.utils.text import shorten

_IMAGE_FOLDERS = ("JPEGImages", "images", "Images")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_YES = ("1", "true", "yes")  # values of "difficult"; many tools leave "Unspecified" there


def is_voc(folder: Path, split: str) -> bool:
    """Return whether a folder has the structure of VOC, or XML files beside the images."""
    return (folder / "Annotations").is_dir() or _has_xml(folder) or _has_xml(folder / split)


def _has_xml(folder: Path) -> bool:
    return any(folder.glob("*.[xX][mM][lL]"))


def read_voc(
    folder: Path, split: str, class_names: Sequence[str] = ()
) -> tuple[dict[str, Any], Path, list[str]]:
    """Read ``Annotations/*.xml`` and ``ImageSets/Main/<split>.txt``, or XML files beside the images.

    Corners are inclusive and count from 1, as in VOC. Difficult objects become crowds: training skips them,
    and in evaluation they count neither as hits nor as misses. If no file of the split has annotations, as in
    VOC's test sets of later years, the tree has none. Without a list of the split, images that have no XML
    file are read as well and have no objects.

    Args:
        folder: contains ``Annotations`` and ``JPEGImages``, or images and XML files, which may also be in a
            folder for each split.
        split: the subset to read; empty for all annotations.
        class_names: the classes in the order of their labels. If empty, the lines of ``classes.txt`` in the
            folder, and without that file the names in all annotations, sorted.

    Returns:
        The tree, the folder of the images, and warnings about the files.

    Raises:
        FileNotFoundError: if the split, the folder of images or an annotation file is missing.
        ValueError: if an annotation file is faulty.
    """
    annotation_folder = folder / "Annotations"
    has_folders = annotation_folder.is_dir()
    if has_folders:
        image_folders = [folder / name for name in _IMAGE_FOLDERS if (folder / name).is_dir()]
        if not image_folders:
            raise FileNotFoundError(
                f"{folder} has Annotations as a VOC dataset does, but no folder"
                f" {' or '.join(_IMAGE_FOLDERS)} with the images"
            )
        image_folder = image_folders[0]
    else:
        annotation_folder = image_folder = folder / split
        if not _has_xml(image_folder):
            raise FileNotFoundError(
                f"VOC dataset {folder} has no split {split!r}: no *.xml in {image_folder}"
            )
    xml_files = _xml_below(annotation_folder)
    present = {_stem(file.relative_to(annotation_folder)): file for file in xml_files}
    stems = _read_split(folder, split) if has_folders and split else list(present)
    if not stems:
        raise ValueError(f"{annotation_folder} has no *.xml files; expected one for each image")
    files = [present.get(stem, annotation_folder / f"{stem}.xml") for stem in stems]
    image_files = list_images(image_folder)
    # Of "a.jpg" and "a.png", the first by name is taken.
    listing = {_stem(image): image.as_posix() for image in reversed(image_files)}
    # A test set may have no annotations at all, but then its images must be there.
    is_annotated = any(os.path.isfile(file) for file in files) or not listing.keys() >= set(stems)
    roots = [
        _parse(file) if is_annotated else ElementTree.Element("annotation")
        for file in progress(files, f"reading {folder.name}")
    ]
    names = list(class_names) or read_class_file(folder / "classes.txt")
    names = names or _names_in(annotation_folder if has_folders else folder)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (stem, file, root) in enumerate(zip(stems, files, roots, strict=True), start=1):
        name = listing.get(stem) or (root.findtext("filename") or f"{stem}.jpg").strip()
        image = {"id": image_id, "file_name": name, **_size_of(root, image_folder / name)}
        images.append(image)
        if "unreadable" in image:
            continue
        for number, element in enumerate(root.findall("object"), start=1):
            known = {"id": len(annotations) + 1, "image_id": image_id}
            annotations.append({**known, **_read_object(element, names, f"{file}: object {number}")})
    categories = [{"id": label, "name": name} for label, name in enumerate(names, start=1)]
    warnings = []
    if not (has_folders and split):  # there is no list of the split
        annotated = {*stems, *(_stem(Path(image["file_name"])) for image in images)}
        without_xml = [image.as_posix() for image in image_files if _stem(image) not in annotated]
        for image_id, name in enumerate(without_xml, start=len(images) + 1):
            images.append({"id": image_id, "file_name": name, **size_or_error(image_folder / name)})
        if without_xml:
            warnings.append(
                f"{len(without_xml)} image(s) have no XML file and count as empty: {summarize(without_xml)}"
            )
    return {"images": images, "annotations": annotations, "categories": categories}, image_folder, warnings


def _stem(path: Path) -> str:
    return path.with_suffix("").as_posix()


def read_class_file(file: Path) -> list[str]:
    """Return the lines of a file of class names; nothing if there is no such file."""
    if not os.path.isfile(file):
        return []
    return [line.strip() for line in read_text(file).splitlines() if line.strip()]


def size_or_error(image: Path) -> dict[str, Any]:
    """Return height and width of an image; 1 x 1 pixels and the reason as "unreadable" if it is that."""
    try:
        height, width = image_size(image)
    except UnreadableImageError as error:
        return {"height": 1, "width": 1, "unreadable": str(error)}
    return {"height": height, "width": width}


def _read_split(folder: Path, split: str) -> list[str]:
    """Return the names of a split's files, without suffix."""
    file = folder / "ImageSets" / "Main" / f"{split}.txt"
    if not os.path.isfile(file):
        others = sorted(other.stem for other in file.parent.glob("*.txt"))
        raise FileNotFoundError(
            f"VOC dataset {folder} has no split {split!r}: there is no {file}; "
            + (f"the splits are {', '.join(others[:20])}" if others else f"without @{split} all is read")
        )
    lines = read_class_file(file)
    is_named = bool(lines) and os.path.isfile(folder / "Annotations" / f"{lines[0]}.xml")
    if lines and not is_named and all(re.search(r"\s-?[01]$", line) for line in lines):
        raise ValueError(
            f"{file} has a second column, {shorten(lines[0])}, as VOC's lists for single classes; expected a"
            " list of names alone, such as train.txt"
        )
    endings = (*SUFFIXES, ".xml")
    stems = [line.rpartition(".")[0] if line.lower().endswith(endings) else line for line in lines]
    if not stems:
        raise ValueError(f"{file} is empty; expected the name of an image in each line")
    repeated = [stem for stem, count in Counter(stems).items() if count > 1]
    if repeated:
        raise ValueError(f"{file} lists {summarize(repeated[:1])} more than once; remove the repeated lines")
    return stems


def _xml_below(folder: Path) -> list[Path]:
    return sorted(file for file in files_below(folder) if file.suffix.lower() == ".xml")


def _parse(file: Path) -> ElementTree.Element:
    if not os.path.isfile(file):
        raise FileNotFoundError(f"there is no annotation file {file!s:.400}, though its split lists it")
    try:
        root = ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the latter for unknown encodings
        raise ValueError(f"{file} is not valid XML: {error}; it may be incomplete, fetch it again") from error
    if root.tag != "annotation":
        raise ValueError(
            f"{file} is not a VOC annotation: expected the element annotation, got {shorten(root.tag)}"
        )
    return root


def _names_in(folder: Path) -> list[str]:
    """Return the class names in all annotations, so that every split has the same."""
    files = progress(_xml_below(folder), f"classes of {folder.name}")
    objects = (element for file in files for element in _parse(file).findall("object"))
    names = {(element.findtext("name") or "").strip() for element in objects} - {""}
    if not names:
        raise ValueError(f"no file of {folder} has an object; expected <object><name>...")
    return sorted(names)


def _size_of(root: ElementTree.Element, image: Path) -> dict[str, Any]:
    """Return height and width in pixels; those of the image file if the annotation has none."""
    try:
        height, width = (int(root.findtext(f"size/{side}") or 0) for side in ("height", "width"))
    except ValueError:
        height = width = 0
    return {"height": height, "width": width} if height > 0 and width > 0 else size_or_error(image)


def _read_object(element: ElementTree.Element, names: Sequence[str], location: str) -> dict[str, Any]:
    """Return category, box (x, y, width, height) and difficult flag in the form of COCO."""
    name = (element.findtext("name") or "").strip()
    if name not in names:
        raise ValueError(
            f"{location} has the name {shorten(name)}, which is none of the {len(names)} classes"
            f" ({summarize(names)}); correct it, or the list of classes"
        )
    texts = [element.findtext(f"bndbox/{corner}") for corner in _CORNERS]
    try:
        left, top, right, bottom = (float(text or "") for text in texts)
    except ValueError:
        left = top = right = bottom = math.nan
    if not all(map(math.isfinite, (left, top, right, bottom))):
        raise ValueError(
            f"{location} ({summarize([name])}) needs a bndbox with {', '.join(_CORNERS)},"
            f" got {shorten(texts)}"
        )
    # Corners are inclusive, so a box of one column is one pixel wide; COCO counts from 0.
    return {
        "category_id": names.index(name) + 1,
        "bbox": [left - 1, top - 1, right + 1 - left, bottom + 1 - top],
        "iscrowd": int((element.findtext("difficult") or "").strip().lower() in _YES),
    }
