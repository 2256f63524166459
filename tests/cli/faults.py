"""Datasets with one defect each, and the phrases that both the check and training must report."""

import json
import os
import shutil
from xml.etree import ElementTree

from PIL import Image

from tests.dataset_formats import voc_xml, write_coco, write_voc, write_yolo

# Each function spoils a dataset and may return overrides that go with it.


def edit(file, change):
    """Rewrite a JSON file."""
    tree = json.loads(file.read_text())
    changed = change(tree)
    file.write_text(json.dumps(tree if changed is None else changed))


def in_json(change):
    return lambda folder: edit(folder / "train.json", change)


def in_annotation(**values):
    return in_json(lambda tree: tree["annotations"][1].update(values))


def replace(file, old, new, count=1):
    def spoil(folder):
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new, count))

    return spoil


def write_over(file, content):
    return lambda folder: (folder / file).write_bytes(content)


def remove(*files):
    def spoil(folder):
        for file in files:
            path = folder / file
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def shrink(folder):
    Image.new("RGB", (30, 30)).save(folder / "images" / "a.png")


def turn(image):
    """Mark an image as upside down."""

    def spoil(folder):
        exif = Image.Exif()
        exif[0x0112] = 3
        Image.open(folder / image).save(folder / image, exif=exif)

    return spoil


def put_pipe(folder):
    (folder / "images" / "a.png").unlink()
    os.mkfifo(folder / "images" / "a.png")


def truncate(folder):
    file = folder / "images" / "a.png"
    file.write_bytes(file.read_bytes()[:500])


COCO_DEFECTS = {
    "no file": (remove("train.json"), ["annotation file", "train.json, which does not exist"]),
    "half a file": (
        lambda folder: (folder / "train.json").write_text((folder / "train.json").read_text()[:300]),
        ["train.json is not valid JSON", "line 1"],
    ),
    "not text": (write_over("train.json", b"\xff\xfe\x00{"), ["train.json is not", "fetch it again"]),
    "a list": (in_json(lambda tree: [1, 2]), ["must hold a COCO dictionary, got list"]),
    "no images": (in_json(lambda tree: tree.pop("images") and tree), ['expected a list "images"']),
    "no categories": (in_json(lambda tree: tree["categories"].clear()), ['expected a list "categories"']),
    "image id twice": (
        in_json(lambda tree: tree["images"][1].update(id=1)),
        ["image id must be unique", "1"],
    ),
    "category id twice": (
        in_json(lambda tree: tree["categories"][1].update(id=1)),
        ["category id must be unique"],
    ),
    "category name twice": (
        in_json(lambda tree: tree["categories"][1].update(name="cat")),
        ["every category needs a name of its own", "cat"],
    ),
    "annotation id twice": (
        in_annotation(id=1),
        ["1 annotation(s) have the id of another", "number them anew"],
    ),
    "no file name": (
        in_json(lambda tree: tree["images"][2].pop("file_name") and None),
        ['image 3 needs a "file_name"'],
    ),
    "no size": (in_json(lambda tree: tree["images"][2].update(width=0)), ["image 3 must have at least 1x1"]),
    "size as text": (in_json(lambda tree: tree["images"][2].update(width="64")), ['whole number as "width"']),
    "unknown image": (in_annotation(image_id=99), ["annotation 2 has image_id 99"]),
    "unknown category": (in_annotation(category_id=99), ["annotation 2 has category_id 99"]),
    "NaN box": (
        in_annotation(bbox=[1, float("nan"), 5, 5]),
        ["annotation 2 must have 4 finite numbers", "nan"],
    ),
    "three numbers": (
        in_annotation(bbox=[1, 5, 5]),
        ["annotation 2 must have 4 finite numbers", "[1, 5, 5]"],
    ),
    "no area": (in_annotation(bbox=[1, 5, 0, 5]), ["1 box(es) have a width or height of 0", "2 in a.png"]),
    "outside": (in_annotation(bbox=[99, 5, 9, 5]), ["1 box(es) lie wholly outside their image", "a.png"]),
    "reaching out": (in_annotation(bbox=[50, 5, 30, 30]), ["1 box(es) reach out of their image", "a.png"]),
    "one pixel": (in_annotation(bbox=[5, 5, 1, 30]), ["1 box(es) are at most one pixel wide", "a.png"]),
    "box twice": (
        in_json(lambda tree: tree["annotations"].append({**tree["annotations"][0], "id": 50})),
        ["1 box(es) repeat another", "50 in a.png"],
    ),
    "no object": (
        in_json(lambda tree: tree.update(annotations=[])),
        ["train.json: no image has an object to learn from"],
    ),
    "class without objects": (
        in_json(lambda tree: [a.update(category_id=1) for a in tree["annotations"]] and None),
        ["1 of 2 classes have no object: dog"],
    ),
    "crowd as text": (in_annotation(iscrowd="0"), ['annotation 2 must have 0 or 1 as "iscrowd"', "'0'"]),
    "huge id": (in_annotation(id=2**70), ['a "id" of the annotations is too large']),
    "tiny objects": (
        in_annotation(bbox=[5, 5, 3, 3]),
        ["1 object(s), 16.7%, are far from every anchor size"],
    ),
    "no image": (remove("images/a.png"), ["1 of 4 images are not in", "images: a.png; restore"]),
    "no folder": (remove("images"), ["needs the folder", "images with the images of"]),
    "half an image": (truncate, ["a.png cannot be read as an image"]),
    "text for an image": (write_over("images/a.png", b"hello"), ["a.png cannot be read as an image"]),
    "pipe for an image": (put_pipe, ["a.png cannot be read as an image", "got a pipe"]),
    "too large": (
        lambda folder: ["INPUT.MAX_PIXELS", "3071"],
        ["4 of 4 images have more than 3071 pixels, the first 64x48: a.png", "raise INPUT.MAX_PIXELS"],
    ),
    "turned in place": (
        turn("images/a.png"),
        ["1 of 4 sampled images are turned or flipped", "a.png; look at the boxes that atss check"],
    ),
    "other size": (shrink, ["a.png is 30x30 pixels", "annotations of image 1 are for 64x48"]),
    "listed twice": (
        in_json(lambda tree: tree["images"][1].update(file_name="a.png")),
        ["1 image(s) are listed more than once: a.png"],
    ),
    "class count": (
        lambda folder: ["MODEL.ATSS.NUM_CLASSES", "81"],
        ["2 classes (cat, dog), which needs MODEL.ATSS.NUM_CLASSES 3", "it is 81"],
    ),
    "other classes in the test set": (
        lambda folder: edit(folder / "val.json", lambda t: t["categories"][1].update(name="wolf")),
        ["must have the classes of", "2 classes (cat, dog), but has 2 classes (cat, wolf)"],
    ),
}
VOC_DEFECTS = {
    "not XML": (
        write_over("Annotations/a.xml", b"<annotation><object>"),
        ["a.xml is not valid XML", "line 1"],
    ),
    "another XML": (
        write_over("Annotations/a.xml", b"<html></html>"),
        ["a.xml is not a VOC annotation", "html"],
    ),
    "no corner": (
        replace("Annotations/a.xml", "<xmin>5</xmin>", ""),
        ["a.xml: object 1 (cat) needs a bndbox with xmin"],
    ),
    "corner is text": (replace("Annotations/a.xml", ">5<", ">five<"), ["a.xml: object 1 (cat)", "'five'"]),
    "corners swapped": (
        lambda folder: ElementTree.ElementTree(voc_xml("a", [(0, 30, 6, -20, 20), (1, 2, 2, 30, 30)])).write(
            folder / "Annotations" / "a.xml"
        ),
        ["1 box(es) have a width or height of 0 or less", "1 in a.png"],
    ),
    "unknown class": (
        write_over("classes.txt", b"cat\nwolf\n"),
        ["has the name 'dog', which is none of the 2 classes (cat, wolf)"],
    ),
    "no split": (
        remove("ImageSets/Main/train.txt"),
        ["has no split 'train'", "train.txt; the splits are val"],
    ),
    "empty split": (write_over("ImageSets/Main/train.txt", b"\n"), ["train.txt is empty"]),
    "split lists a file twice": (
        write_over("ImageSets/Main/train.txt", b"a\nb\na\n"),
        ["train.txt lists a more than once"],
    ),
    "no annotation": (
        remove("Annotations/b.xml"),
        ["there is no annotation file", "b.xml, though its split lists"],
    ),
    "list of one class": (
        write_over("ImageSets/Main/train.txt", b"a  1\nb -1\n"),
        ["train.txt has a second column, 'a  1'", "expected a list of names alone"],
    ),
    "list of other names": (
        write_over("ImageSets/Main/train.txt", b"x\ny\n"),
        ["there is no annotation file", "x.xml"],
    ),
    "odd encoding": (
        write_over("Annotations/a.xml", b'<?xml version="1.0" encoding="klingon"?><annotation/>'),
        ["a.xml is not valid XML", "klingon"],
    ),
    "turned in place": (
        turn("JPEGImages/a.png"),
        ["1 of 4 sampled images are turned or flipped", "a.png"],
    ),
    "too large": (
        lambda folder: ["INPUT.MAX_PIXELS", "3000"],
        ["4 of 4 images have more than 3000 pixels", "raise INPUT.MAX_PIXELS"],
    ),
    "no images": (remove("JPEGImages"), ["no folder JPEGImages or images"]),
    "not a dataset": (remove("Annotations"), ["is not a dataset; expected a COCO file"]),
}
YOLO_DEFECTS = {
    "class too high": (
        write_over("labels/train/a.txt", b"2 0.5 0.5 0.2 0.2"),
        ["a.txt, line 1: class 2 is not one of the 2 classes, which count from 0 to 1"],
    ),
    "pixels": (
        write_over("labels/train/a.txt", b"0 0.5 0.5 0.2 0.2\n1 32 24 10 10"),
        ["a.txt, line 2: boxes are fractions of the sides", "'1 32 24 10 10'"],
    ),
    "four numbers": (
        write_over("labels/train/a.txt", b"1 0.5 0.5 0.5"),
        ["a.txt, line 1: expected class x y width height", "'1 0.5 0.5 0.5'"],
    ),
    "words": (
        write_over("labels/train/a.txt", b"cat 0.5 0.5 0.5 0.5"),
        ["a.txt, line 1: expected class x y"],
    ),
    "no names": (replace("data.yaml", "names", "nombres"), ["does not name its classes", "classes.txt"]),
    "wrong count": (replace("data.yaml", "names", "nc: 3\nnames"), ["nc is 3, but names has 2 classes"]),
    "gap in names": (
        replace("data.yaml", '["cat", "dog"]', "{0: cat, 2: dog}"),
        ["must be 0, 1, 2, ..., got [0, 2]"],
    ),
    "name twice": (replace("data.yaml", "dog", "cat"), ["every category needs a name of its own", "cat"]),
    "no labels": (remove("labels"), ["none of 4 images has a label file", "labels/train/a.txt"]),
    "no split": (remove("images/train"), ["has no images for 'train'", "there is no", "images/train"]),
    "half an image": (
        lambda folder: (folder / "images/train/a.png").write_bytes(b"hello"),
        ["1 of 4 images cannot be read", "images/train/a.png", "SKIP_CORRUPT"],
    ),
    "too large": (
        lambda folder: ["INPUT.MAX_PIXELS", "3000"],
        ["4 of 4 images have more than 3000 pixels", "raise INPUT.MAX_PIXELS"],
    ),
    "label without image": (
        remove("images/train/a.png"),
        ["1 label file(s) have no image", "labels/train/a.txt; restore the images"],
    ),
    "image without label": (
        remove("labels/train/a.txt"),
        ["1 image(s) have no label file and count as empty: a.png"],
    ),
    "one label for two": (
        lambda folder: shutil.copy(folder / "images/train/a.png", folder / "images/train/a.bmp"),
        ["1 label file(s) belong to several images of one name: a.txt"],
    ),
    "other encoding": (
        lambda folder: (folder / "labels/train/a.txt").write_text("0 .5 .5 .2 .2", encoding="utf-16"),
        ["a.txt is not UTF-8 text", "save it as UTF-8"],
    ),
    "class that YAML misreads": (
        replace("data.yaml", '["cat", "dog"]', "[yes, no]"),
        ["YAML reads the class name True as no text; put it in quotes"],
    ),
    "split misspelt": (
        replace("data.yaml", "train: images/train", "train: images/trian"),
        ["has no images for 'train'", "images/trian"],
    ),
    "not YAML": (write_over("data.yaml", b"names: [cat"), ["data.yaml is not valid YAML"]),
}
CASES = [
    *((write_coco, name, *case) for name, case in COCO_DEFECTS.items()),
    *((write_voc, name, *case) for name, case in VOC_DEFECTS.items()),
    *((write_yolo, name, *case) for name, case in YOLO_DEFECTS.items()),
]
