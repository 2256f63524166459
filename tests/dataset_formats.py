"""Write small datasets in COCO, VOC and YOLO format."""

import json
from xml.etree import ElementTree

import numpy as np
from PIL import Image

NAMES = ["cat", "dog"]
SIZE = (48, 64)
# File name without suffix -> objects (class, x, y, width, height) in pixels.
CONTENT = {
    "a": [(0, 4, 6, 30, 20), (1, 30, 10, 24, 30)],
    "b": [(1, 10, 10, 20, 20)],
    "c": [(0, 20, 12, 32, 32)],
    "d": [(0, 2, 2, 28, 36), (1, 36, 8, 20, 24)],
}


def write_images(folder, content=None, size=SIZE, suffix=".png"):
    """Write a noise image for each name."""
    for number, name in enumerate(content or CONTENT):
        noise = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        path = folder / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(path)


def coco_tree(content=None, names=NAMES, size=SIZE, suffix=".png"):
    """Return the content of a COCO file."""
    content = content or CONTENT
    images = [
        {"id": i, "file_name": f"{name}{suffix}", "height": size[0], "width": size[1]}
        for i, name in enumerate(content, start=1)
    ]
    objects = [(i, o) for i, boxes in enumerate(content.values(), start=1) for o in boxes]
    annotations = [
        {"id": n, "image_id": i, "category_id": label + 1, "bbox": list(box), "iscrowd": 0}
        for n, (i, (label, *box)) in enumerate(objects, start=1)
    ]
    categories = [{"id": label, "name": name} for label, name in enumerate(names, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco(folder, **options):
    """Write train.json, val.json and images; returns the dataset paths of both."""
    write_images(folder / "images", options.get("content"))
    for split in ("train", "val"):
        (folder / f"{split}.json").write_text(json.dumps(coco_tree(**options)), encoding="utf-8")
    return [f"{folder / split}.json@{folder / 'images'}" for split in ("train", "val")]


def voc_xml(stem, objects, names=NAMES, size=SIZE, suffix=".png"):
    """Return a VOC annotation as an element."""
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = f"{stem}{suffix}"
    sizes = ElementTree.SubElement(root, "size")
    for key, value in zip(("height", "width"), size, strict=True):
        ElementTree.SubElement(sizes, key).text = str(value)
    for label, x, y, width, height in objects:
        element = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(element, "name").text = names[label]
        ElementTree.SubElement(element, "difficult").text = "0"
        box = ElementTree.SubElement(element, "bndbox")
        corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + width, "ymax": y + height}
        for key, value in corners.items():
            ElementTree.SubElement(box, key).text = str(value)
    return root


def write_voc(folder, content=None, names=NAMES, image_folder="JPEGImages"):
    """Write a VOC folder with the splits train and val; returns the dataset paths of both."""
    content = content or CONTENT
    write_images(folder / image_folder, content)
    for stem, objects in content.items():
        path = folder / "Annotations" / f"{stem}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        ElementTree.ElementTree(voc_xml(stem, objects, names)).write(path, encoding="utf-8")
    splits = folder / "ImageSets" / "Main"
    splits.mkdir(parents=True)
    for split in ("train", "val"):
        (splits / f"{split}.txt").write_text("\n".join(content) + "\n", encoding="utf-8")
    return [f"{folder}@train", f"{folder}@val"]


def write_yolo(folder, content=None, names=NAMES, images="images/{split}"):
    """Write a YOLO folder with the splits train and val and data.yaml; returns the dataset paths of both."""
    height, width = SIZE
    for split in ("train", "val"):
        write_images(folder / images.format(split=split), content)
        labels = folder / images.format(split=split).replace("images", "labels")
        for stem, objects in (content or CONTENT).items():
            path = labels / f"{stem}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = [
                f"{label} {(x + w / 2) / width} {(y + h / 2) / height} {w / width} {h / height}"
                for label, x, y, w, h in objects
            ]
            path.write_text("\n".join(lines))
    splits = "".join(f"{split}: {images.format(split=split)}\n" for split in ("train", "val"))
    (folder / "data.yaml").write_text(f"path: .\n{splits}names: {json.dumps(names)}\n", encoding="utf-8")
    return [f"{folder}@train", f"{folder / 'data.yaml'}@val"]
