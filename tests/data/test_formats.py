"""Datasets in COCO, VOC and YOLO format."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from atss_core.config.catalog import DATASETS, VOC_CLASSES, find_dataset, parse_dataset_path
from atss_core.data import DetectionDataset
from atss_core.data.transforms import Compose, Normalize, Resize
from tests.dataset_formats import CONTENT, coco_tree, write_coco, write_images, write_voc, write_yolo

UNUSUAL_NAMES = {
    "sub folder/dröm 1": CONTENT["a"],
    "sub folder/deeper/猫": CONTENT["b"],
    "no object": [],
    "dots.in.name": CONTENT["d"],
}
WRITERS = {"COCO": write_coco, "VOC": write_voc, "YOLO": write_yolo}


def open_dataset(path, training=False, **options):
    transform = Compose([Resize([48], 64)], Normalize([0, 0, 0], [1, 1, 1], True))
    return DetectionDataset(parse_dataset_path(path), transform=transform, training=training, **options)


@pytest.mark.parametrize("content", [CONTENT, UNUSUAL_NAMES], ids=["plain", "unusual"])
@pytest.mark.parametrize("format", WRITERS)
def test_all_formats_give_the_same_objects(format, content, tmp_path):
    for path in WRITERS[format](tmp_path / "my data", content=content, names=["große Katze", "dog"]):
        dataset = open_dataset(path)
        assert dataset.format == format
        assert dataset.class_names in (["große Katze", "dog"], ["dog", "große Katze"])
        assert not dataset.warnings
        objects_by_image = {}
        for index in range(len(dataset)):
            sample = dataset[index]
            assert sample.image.shape == (3, 48, 64)
            names = [dataset.class_names[label - 1] for label in dataset.target(index).labels]
            stem = dataset.image_path(index).relative_to(dataset.folder).with_suffix("").as_posix()
            boxes = dataset.target(index).boxes.round().int().tolist()
            key = stem.split("/", 2)[-1] if format == "YOLO" else stem
            objects_by_image[key] = list(zip(names, boxes, strict=True))
        expected = {
            name: [(["große Katze", "dog"][k], [x, y, x + w - 1, y + h - 1]) for k, x, y, w, h in objects]
            for name, objects in content.items()
        }
        assert objects_by_image == expected


def test_single_class(tmp_path):
    content = {name: [(0, *box) for _, *box in objects] for name, objects in CONTENT.items()}
    for format, write in WRITERS.items():
        dataset = open_dataset(write(tmp_path / format, content=content, names=["cell"])[0], training=True)
        assert dataset.class_names == ["cell"]
        assert dataset.target(0).labels.tolist() == [1, 1]


def test_images_beside_the_coco_file_need_no_folder(tmp_path):
    write_coco(tmp_path)
    write_images(tmp_path)
    dataset = open_dataset(str(tmp_path / "train.json"))
    assert dataset.folder == tmp_path
    assert dataset[0].image is not None


# VOC


def test_voc_without_split_reads_all_annotations(tmp_path):
    write_voc(tmp_path)
    assert len(open_dataset(str(tmp_path))) == len(CONTENT)


def test_voc_difficult_objects_are_crowds(tmp_path):
    write_voc(tmp_path)
    file = tmp_path / "Annotations" / "a.xml"
    file.write_text(file.read_text().replace("<difficult>0", "<difficult>1", 1))
    dataset = open_dataset(f"{tmp_path}@train")
    assert dataset.annotations.is_crowd.tolist() == [True, False, False, False, False, False]
    assert len(dataset.target(0)) == 1


@pytest.mark.parametrize(
    ("value", "is_difficult"),
    [(w, True) for w in ("1", " 1\n", "true", "True", "YES")]
    + [(w, False) for w in ("0", "", " ", "Unspecified", "unspecified", "false", "No", "None", "-1")],
)
def test_voc_values_of_difficult(value, is_difficult, tmp_path):
    write_voc(tmp_path)
    file = tmp_path / "Annotations" / "a.xml"
    file.write_text(file.read_text().replace("<difficult>0<", f"<difficult>{value}<", 1))
    dataset = open_dataset(f"{tmp_path}@train")
    assert dataset.annotations.is_crowd.tolist() == [is_difficult, *[False] * 5]
    assert len(dataset.target(0)) == 2 - is_difficult


@pytest.mark.parametrize("structure", ["folders", "beside"])
def test_voc_images_without_xml_are_empty_with_a_warning(structure, tmp_path):
    write_voc(tmp_path / "voc")
    folder, images = tmp_path / "voc", tmp_path / "voc" / "JPEGImages"
    if structure == "beside":
        shutil.copytree(folder / "Annotations", images, dirs_exist_ok=True)
        folder = images
    Image.open(images / "d.png").save(images / "d.webp")  # belongs to d.xml as well
    (images / "b.png").rename(images / "renamed.png")  # named only by <filename> of b.xml
    xml = next(tmp_path.rglob("JPEGImages/b.xml" if structure == "beside" else "Annotations/b.xml"))
    xml.write_text(xml.read_text().replace("b.png", "renamed.png"))
    write_images(images, {"lone": [], "sub/lone": []}, size=(20, 30))
    dataset = open_dataset(str(folder))
    names = [dataset.image_info(i)["file_name"] for i in range(len(dataset))]
    assert names == ["a.png", "renamed.png", "c.png", "d.png", "lone.png", "sub/lone.png"]
    assert [len(dataset.target(i)) for i in range(len(dataset))] == [2, 1, 1, 2, 0, 0]
    assert dataset.image_sizes.tolist() == [[48, 64]] * 4 + [[20, 30]] * 2
    assert dataset.warnings == ("2 image(s) have no XML file and count as empty: lone.png, sub/lone.png",)
    assert len(open_dataset(str(folder), training=True)) == 4


def test_voc_split_reads_only_listed_images(tmp_path):
    write_voc(tmp_path)
    write_images(tmp_path / "JPEGImages", {"lone": []})
    assert len(open_dataset(f"{tmp_path}@train")) == 4


BOMB = "".join(f'<!ENTITY e{i + 1} "{f"&e{i};" * 10}">' for i in range(12))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            f'<!DOCTYPE a [<!ENTITY e0 "x">{BOMB}]><annotation>&e12;</annotation>',
            "is not valid XML: limit on",
        ),
        (f'<!DOCTYPE a [<!ENTITY e "{"x" * 90_000}">]><annotation>{"&e;" * 5000}</annotation>', "limit on"),
        ('<!DOCTYPE a [<!ENTITY e SYSTEM "{}">]><annotation>&e;</annotation>', "undefined entity &e;"),
        ("<annotation><object>" * 100_000, "is not valid XML: no element found"),
        (f"<{'x' * 10_000}/>", "is not a VOC annotation: expected the element annotation, got 'xxx"),
        (
            f"<annotation><object><name>{'x' * 10_000}</name></object></annotation>",
            "name 'xxx.*none of the 2",
        ),
        (
            "<annotation><object><name>cat</name><bndbox>"
            + "".join(f"<{c}>{'x' * 10_000}</{c}>" for c in ("xmin", "ymin", "xmax", "ymax"))
            + "</bndbox></object></annotation>",
            r"needs a bndbox with .*, got \['xxx",
        ),
    ],
    ids=["billion laughs", "one large entity", "external", "deep", "long tag", "long name", "long corners"],
)
def test_hostile_xml_gives_a_short_error(content, message, tmp_path):
    write_voc(tmp_path)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    secret = tmp_path / "secret.txt"
    secret.write_text("SECRET")
    (tmp_path / "Annotations" / "a.xml").write_text(content.replace("{}", secret.as_uri()))
    with pytest.raises(ValueError, match=rf"a\.xml.*{message}") as error:
        open_dataset(f"{tmp_path}@train")
    assert len(str(error.value)) < 1000
    assert "\n" not in str(error.value)
    assert "SECRET" not in str(error.value)


def test_deep_valid_xml_is_read(tmp_path):
    write_voc(tmp_path)
    file = tmp_path / "Annotations" / "a.xml"
    deep = "<part>" * 50_000 + "</part>" * 50_000
    file.write_text(file.read_text().replace("<object>", f"<object>{deep}"))
    assert len(open_dataset(f"{tmp_path}@train").target(0)) == 2


# Links to folders


@pytest.mark.parametrize("format", ["VOC", "YOLO"])
def test_linked_folders_are_read_without_loops(format, tmp_path):
    content = {f"cam2/{name}": objects for name, objects in CONTENT.items()}
    WRITERS[format](tmp_path / "data", content={**CONTENT, **content})
    folders = {"VOC": ("Annotations", "JPEGImages"), "YOLO": ("images/train",)}[format]
    for folder in folders:
        real = tmp_path / "elsewhere" / folder
        real.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(tmp_path / "data" / folder / "cam2", real)
        (tmp_path / "data" / folder / "cam2").symlink_to(real)
        (real / "loop").symlink_to(tmp_path / "data" / folder)
        (tmp_path / "data" / folder / "cam3").symlink_to(real)  # a second name of cam2 is no second copy
        (tmp_path / "data" / folder / "itself").symlink_to("itself")
    path = {"VOC": tmp_path / "data", "YOLO": f"{tmp_path / 'data'}@train"}[format]
    dataset = open_dataset(str(path))
    counts = {dataset.image_path(i): len(dataset.target(i)) for i in range(len(dataset))}
    parent = tmp_path / "data" / folders[-1]
    assert counts == {
        parent / f"{name}.png": len(objects) for name, objects in {**CONTENT, **content}.items()
    }
    assert not dataset.warnings


def test_voc_size_missing_in_the_annotation_comes_from_the_image(tmp_path):
    write_voc(tmp_path)
    file = tmp_path / "Annotations" / "a.xml"
    file.write_text(file.read_text().replace("<width>64", "<width>0"))
    assert open_dataset(f"{tmp_path}@train").image_sizes.tolist() == [[48, 64]] * len(CONTENT)


def test_voc_images_have_any_suffix(tmp_path):
    write_voc(tmp_path, image_folder="images")
    Image.open(tmp_path / "images" / "b.png").save(tmp_path / "images" / "b.jpeg")
    (tmp_path / "images" / "b.png").unlink()
    assert open_dataset(f"{tmp_path}@train").image_info(1)["file_name"] == "b.jpeg"


def test_voc_class_file_sets_the_order(tmp_path):
    write_voc(tmp_path)
    (tmp_path / "classes.txt").write_text("dog\ncat\nbird\n")
    dataset = open_dataset(f"{tmp_path}@train")
    assert dataset.class_names == ["dog", "cat", "bird"]
    assert dataset.target(0).labels.tolist() == [2, 1]


def test_voc_split_without_annotations_can_be_evaluated(tmp_path):
    write_voc(tmp_path)
    write_images(tmp_path / "JPEGImages", {"new": []})
    (tmp_path / "ImageSets" / "Main" / "test.txt").write_text("new\n")
    dataset = open_dataset(f"{tmp_path}@test")
    assert not dataset.has_annotations
    assert dataset.image_sizes.tolist() == [[48, 64]]
    assert dataset.class_names == ["cat", "dog"]


def test_published_voc_names_have_the_classes_of_voc(tmp_path):
    write_voc(tmp_path / "voc" / "VOC2007")
    entry = find_dataset("voc_2007_train", tmp_path)
    assert entry.class_names == VOC_CLASSES == tuple(sorted(VOC_CLASSES))
    dataset = DetectionDataset(entry, transform=Compose([], Normalize([0] * 3, [1] * 3, True)), training=True)
    assert dataset.num_classes == 20
    assert dataset.target(0).labels.tolist() == [8, 12]
    published = {f"voc_{y}_{s}" for y in (2007, 2012) for s in ("train", "val", "test")}
    published |= {f"{name}_cocostyle" for name in published} - {"voc_2012_test_cocostyle"}
    assert published <= DATASETS.keys()


# YOLO


def test_yolo_folder_structures(tmp_path):
    for name, images in {"split first": "{split}/images", "flat": "images"}.items():
        write_yolo(tmp_path / name, images=images)
    assert len(open_dataset(f"{tmp_path / 'split first'}@train")) == len(CONTENT)
    (tmp_path / "flat" / "data.yaml").unlink()
    (tmp_path / "flat" / "classes.txt").write_text("cat\ndog\n")
    flat = open_dataset(str(tmp_path / "flat"))
    assert [len(flat.target(i)) for i in range(len(flat))] == [2, 1, 1, 2]


def test_yolo_names_by_number_and_list_of_images(tmp_path):
    write_yolo(tmp_path)
    (tmp_path / "some.txt").write_text("images/train/b.png\nimages/train/a.png\n")
    (tmp_path / "data.yaml").write_text("train: some.txt\nnames: {1: dog, 0: cat}\nnc: 2\n")
    dataset = open_dataset(f"{tmp_path / 'data.yaml'}@train")
    assert dataset.class_names == ["cat", "dog"]
    assert [len(dataset.target(i)) for i in range(2)] == [1, 2]
    assert not dataset.warnings  # labels of images that the list leaves out are no fault


def test_yolo_paths_of_another_machine_are_resolved(tmp_path):
    write_yolo(tmp_path, images="{split}/images")
    (tmp_path / "data.yaml").write_text(
        "path: /content/cells\ntrain: ../train/images\nval: /content/cells/val/images\n"
        'names: {"0": cat, "1": dog}\n'
    )
    for split in ("train", "val"):
        assert len(open_dataset(f"{tmp_path}@{split}").target(0)) == 2


def test_yolo_labels_beside_listed_images(tmp_path):
    write_yolo(tmp_path, images="images")
    (tmp_path / "images").rename(tmp_path / "obj_train_data")
    for file in (tmp_path / "labels").iterdir():
        file.rename(tmp_path / "obj_train_data" / file.name)
    (tmp_path / "labels").rmdir()
    (tmp_path / "data.yaml").unlink()
    (tmp_path / "obj.names").write_text("cat\r\ndog\r\n")
    (tmp_path / "train.txt").write_text("data/obj_train_data/a.png\r\ndata/obj_train_data/b.png\r\n")
    dataset = open_dataset(f"{tmp_path}@train")
    assert dataset.class_names == ["cat", "dog"]
    assert [len(dataset.target(i)) for i in range(len(dataset))] == [2, 1]


def test_yolo_wrong_split_path_falls_back_to_no_other_split(tmp_path):
    write_yolo(tmp_path)
    for wrong in ("../valid/images", "images/trian", "trian"):
        (tmp_path / "data.yaml").write_text(f"train: {wrong}\nnames: [cat, dog]\n")
        with pytest.raises(FileNotFoundError, match="has no images for 'train'"):
            open_dataset(f"{tmp_path}@train")


def test_yolo_with_splits_requires_one(tmp_path):
    write_yolo(tmp_path)
    with pytest.raises(ValueError, match=r"has the splits train, val: say which, such as .*@train"):
        open_dataset(str(tmp_path))


def test_yolo_key_points_after_the_box(tmp_path):
    write_yolo(tmp_path)
    with (tmp_path / "data.yaml").open("a") as file:
        file.write("kpt_shape: [2, 2]\n")
    (tmp_path / "labels" / "train" / "a.txt").write_text("0 .5 .5 .25 .5 .45 .45 .9 .9\n")
    assert open_dataset(f"{tmp_path}@train").target(0).boxes.tolist() == [[24, 12, 39, 35]]


def pose_line(x, y, dimensions, visibility, rng):
    """Return a box of a tenth of the image around (x, y) with four points in it, the last not labelled."""
    points = [(*(np.array([x, y]) + rng.uniform(-0.04, 0.04, 2)), visibility) for _ in range(3)]
    rows = [point[:dimensions] for point in (*points, (0, 0, 0))]
    return " ".join(map(str, [0, x, y, 0.1, 0.1, *(value for row in rows for value in row)]))


def write_pose(folder, dimensions, description="", visibility=2):
    write_yolo(folder)
    with (folder / "data.yaml").open("a") as file:
        file.write(description)
    rng = np.random.default_rng(0)
    for file in (folder / "labels" / "train").iterdir():
        centers = rng.uniform(0.1, 0.9, (5, 2))
        file.write_text("\n".join(pose_line(*center, dimensions, visibility, rng) for center in centers))
    return f"{folder}@train"


@pytest.mark.parametrize(("dimensions", "visibility"), [(2, 2), (3, 2), (3, 1)])
def test_yolo_poses_are_distinguished_from_polygons_or_refused(dimensions, visibility, tmp_path):
    dataset = open_dataset(write_pose(tmp_path / "given", dimensions, f"kpt_shape: [4, {dimensions}]\n"))
    assert dataset.annotations.boxes[:, 2:] == pytest.approx(np.tile([6.4, 4.8], (20, 1)))
    with pytest.raises(ValueError, match=r"kpt_shape: \[.*2 or 3\] in .*data\.yaml($|, or kpt_shape: null)"):
        open_dataset(write_pose(tmp_path / "not given", dimensions, visibility=visibility))
    with pytest.raises(ValueError, match=r"line 1: expected .* or 10 values of kpt_shape more, got '0 "):
        open_dataset(write_pose(tmp_path / "other", dimensions, "kpt_shape: [5, 2]\n"))


def test_yolo_null_kpt_shape_makes_poses_polygons(tmp_path):
    dataset = open_dataset(write_pose(tmp_path, 2, "kpt_shape: null\n"))
    assert dataset.annotations.boxes[:, :2].tolist() == [[0, 0]] * 20  # the point (0, 0) belongs to them


@pytest.mark.parametrize("shape", ["17", "[17]", "[17, 4]", "[0, 2]", "[a, 2]", "[true, 2]"])
def test_yolo_kpt_shape_is_checked(shape, tmp_path):
    with pytest.raises(ValueError, match=r"kpt_shape: expected \[number of points, 2 or 3\], or null"):
        open_dataset(write_pose(tmp_path, 2, f"kpt_shape: {shape}\n"))


@pytest.mark.parametrize("corners", ["four", "any"])
def test_yolo_polygons_are_not_read_as_poses(corners, tmp_path):
    write_yolo(tmp_path)
    rng = np.random.default_rng(0)
    expected = []
    for file in sorted((tmp_path / "labels" / "train").iterdir()):
        polygons = []
        for _ in range(20):
            count = 4 if corners == "four" else int(rng.integers(3, 9))
            polygons.append(rng.uniform(0.05, 0.95, 2) + rng.uniform(-0.04, 0.04, (count, 2)))
        file.write_text("\n".join(f"1 {' '.join(map(str, p.ravel()))}" for p in polygons))
        expected += [[*p.min(0) * (64, 48), *np.ptp(p, axis=0) * (64, 48)] for p in polygons]
    assert open_dataset(f"{tmp_path}@train").annotations.boxes == pytest.approx(np.array(expected))


SHAPES = {  # around (0, 0), of a size of about 1
    "triangles": lambda rng: np.array([[-0.5, 0.5], [0.1, -0.5], [0.5, 0.4]]),
    "rectangles": lambda rng: np.array([[-0.5, -0.3], [0.5, -0.3], [0.5, 0.3], [-0.5, 0.3]]),
    "diamonds": lambda rng: np.array([[0, -0.5], [0.5, 0], [0, 0.5], [-0.5, 0]]),
    "octagons": lambda rng: ring(np.arange(8) / 8) * rng.uniform(0.3, 0.5, (8, 1)),
    "contours": lambda rng: ring(np.arange(300) / 300) * 0.5,
}


def ring(turns):
    return np.stack([np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)], axis=-1)


@pytest.mark.parametrize("names", ["data.yaml", "dataset.yaml", "classes.txt"])
@pytest.mark.parametrize("shape", SHAPES)
def test_yolo_polygons_that_look_like_poses_give_a_warning(shape, names, tmp_path):
    """Objects in the upper left half: the second point is a box that is large enough for the others."""
    write_yolo(tmp_path)
    (tmp_path / "data.yaml").rename(tmp_path / names)
    if names == "classes.txt":
        (tmp_path / names).write_text("cat\ndog\n")
    rng = np.random.default_rng(0)
    polygons = []
    for file in sorted((tmp_path / "labels" / "train").iterdir()):
        drawn = [rng.uniform(0.3, 0.5, 2) + 0.1 * np.roll(SHAPES[shape](rng), i, axis=0) for i in range(8)]
        file.write_text("\n".join(f"1 {' '.join(map(str, p.ravel()))}" for p in drawn))
        polygons += drawn
    dataset = open_dataset(f"{tmp_path}@train")
    expected = [[*p.min(0) * (64, 48), *np.ptp(p, axis=0) * (64, 48)] for p in polygons]
    assert dataset.annotations.boxes == pytest.approx(np.array(expected))
    warnings = [line for line in dataset.warnings if "kpt_shape" in line]
    if shape == "contours":  # longer than any pose
        assert not warnings
        return
    (line,) = warnings
    location = f"in a new file {tmp_path}/data.yaml" if names == "classes.txt" else f"in {tmp_path / names}"
    assert "are taken as polygons; if they are poses, say kpt_shape: [number of points, 2 or 3] in" in line
    assert line.endswith(location)
    with (tmp_path / ("data.yaml" if names == "classes.txt" else names)).open("a") as file:
        file.write("kpt_shape: null\n")  # and the remedy works
    assert not open_dataset(f"{tmp_path}@train").warnings


def test_yolo_remedies_name_the_description_file(tmp_path):
    path = write_pose(tmp_path, 2)
    (tmp_path / "data.yaml").unlink()
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(ValueError, match=rf"or 3\] in a new file {re.escape(str(tmp_path))}/data\.yaml, or"):
        open_dataset(path)
    (tmp_path / "data.yaml").write_text("kpt_shape: [4, 2]\n")
    assert len(open_dataset(path).annotations) == 20
    (tmp_path / "data.yaml").rename(tmp_path / "dataset.yaml")
    (tmp_path / "dataset.yaml").write_text("{}")
    (tmp_path / "labels" / "train" / "a.txt").write_text("0 .5 .5 .2 .2 .5\n")
    with pytest.raises(ValueError, match=rf"2 or 3\] in {re.escape(str(tmp_path))}/dataset\.yaml$"):
        open_dataset(path)
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"names: \[\.\.\.\] in {re.escape(str(tmp_path))}/dataset\.yaml,"
    ):
        open_dataset(path)


def test_yolo_paths_expand_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write_yolo(tmp_path / "home" / "data")
    names = sorted((tmp_path / "home" / "data" / "images" / "train").iterdir())
    (tmp_path / "list.txt").write_text("".join(f"~/data/images/train/{n.name}\n" for n in names))
    for train in ("~/data/images/train", "[~/data/images/train]", "list.txt", f"{tmp_path}/list.txt"):
        (tmp_path / "data.yaml").write_text(f"train: {train}\nval: ~/data/images/val\nnames: [cat, dog]\n")
        dataset = open_dataset(f"{tmp_path}/data.yaml@train")
        assert [dataset.image_path(i) for i in range(len(dataset))] == names
        assert len(open_dataset(f"{tmp_path}/data.yaml@val")) > 0
        assert len(dataset.annotations) > 0


def test_long_yolo_lines_in_errors_are_shortened(tmp_path):
    write_yolo(tmp_path)
    (tmp_path / "labels" / "train" / "a.txt").write_text("0 " + "9 " * 10_000)
    with pytest.raises(ValueError, match=r"a\.txt, line 1: boxes are fractions") as error:
        open_dataset(f"{tmp_path}@train")
    assert len(str(error.value)) < 500


def test_yolo_without_labels_can_be_evaluated(tmp_path):
    write_yolo(tmp_path)
    shutil.rmtree(tmp_path / "labels")
    assert not open_dataset(f"{tmp_path}@val").has_annotations
    with pytest.raises(ValueError, match=r"no image has an object.*none of 4 images has a label file"):
        open_dataset(f"{tmp_path}@train", training=True)


def test_yolo_unreadable_image_can_be_skipped(tmp_path):
    write_yolo(tmp_path)
    (tmp_path / "images" / "train" / "a.png").write_bytes(b"hello")
    dataset = open_dataset(f"{tmp_path}@train", skip_corrupt=True)
    assert dataset[0].image is None
    assert "a.png cannot be read" in dataset[0].skipped[0]
    assert len(open_dataset(f"{tmp_path}@train", training=True)) == len(CONTENT) - 1


@pytest.mark.parametrize("orientation", range(2, 9))
def test_yolo_images_are_turned_upright(orientation, tmp_path):
    write_yolo(tmp_path)
    path = tmp_path / "images" / "train" / "a.png"
    square = Image.open(path).resize((40, 40))
    exif = Image.Exif()
    exif[0x0112] = orientation
    square.save(path, exif=exif)
    loaded = open_dataset(f"{tmp_path}@train").load_image(0)
    assert loaded.tobytes() == ImageOps.exif_transpose(Image.open(path)).tobytes()


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_voc_images_are_turned_upright_where_their_size_fits_either_way(orientation, tmp_path):
    write_voc(tmp_path)
    path = tmp_path / "JPEGImages" / "a.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(path).save(path, exif=exif)
    loaded = open_dataset(f"{tmp_path}@train").load_image(0)
    assert loaded.tobytes() == ImageOps.exif_transpose(Image.open(path)).tobytes()
    assert loaded.tobytes() != Image.open(path).tobytes()


@pytest.mark.parametrize("orientation", [6, 8])
def test_voc_image_without_a_stated_size_is_upright(orientation, tmp_path):
    write_voc(tmp_path)
    file = tmp_path / "Annotations" / "a.xml"
    file.write_text(file.read_text().replace("<height>48</height>", "<height>0</height>"))
    path = tmp_path / "JPEGImages" / "a.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(path).save(path, exif=exif)
    dataset = open_dataset(f"{tmp_path}@train")
    assert dataset.image_sizes[0].tolist() == [64, 48]
    assert dataset.load_image(0).tobytes() == ImageOps.exif_transpose(Image.open(path)).tobytes()


def test_voc_xml_beside_the_images(tmp_path):
    write_voc(tmp_path / "plain")
    for split in ("train", "val"):
        shutil.copytree(tmp_path / "plain" / "Annotations", tmp_path / "flat" / split)
        write_images(tmp_path / "flat" / split)
    assert len(open_dataset(f"{tmp_path / 'flat'}@val")) == len(CONTENT)
    write_images(tmp_path / "flat" / "val", {"lone": []})
    assert open_dataset(f"{tmp_path / 'flat'}@val").warnings == (
        "1 image(s) have no XML file and count as empty: lone.png",
    )
    dataset = open_dataset(str(tmp_path / "flat" / "train"))
    assert (dataset.format, len(dataset), dataset.class_names) == ("VOC", len(CONTENT), ["cat", "dog"])


def test_voc_list_with_suffixes(tmp_path):
    write_voc(tmp_path)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a.png\r\nb.xml\r\n")
    assert [len(open_dataset(f"{tmp_path}@train").target(i)) for i in range(2)] == [2, 1]


def test_placeholder_class_of_an_export_is_left_out(tmp_path):
    tree = coco_tree(names=["cat", "dog"])
    tree["categories"] = [
        {"id": 0, "name": "cat", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "cat"},
        {"id": 2, "name": "dog", "supercategory": "cat"},
    ]
    write_images(tmp_path)
    (tmp_path / "_annotations.coco.json").write_text(json.dumps(tree))
    assert open_dataset(str(tmp_path / "_annotations.coco.json")).class_names == ["cat", "dog"]


def test_path_may_contain_the_separator(tmp_path):
    folder = tmp_path / "user@host"
    paths = write_coco(folder)
    assert len(open_dataset(paths[0])) == len(CONTENT)
    write_images(folder)
    assert len(open_dataset(str(folder / "train.json"))) == len(CONTENT)
    assert len(open_dataset(write_voc(folder / "voc")[0])) == len(CONTENT)


def test_yolo_polygon_becomes_the_box_around_it(tmp_path):
    write_yolo(tmp_path)
    (tmp_path / "labels" / "train" / "a.txt").write_text("1 0.25 0.5 0.5 0.25 0.75 0.5 0.5 1.0\n")
    target = open_dataset(f"{tmp_path}@train").target(0)
    assert target.boxes.tolist() == [[16, 12, 47, 47]]
    assert target.labels.tolist() == [2]


def test_yolo_missing_label_file_means_no_object(tmp_path):
    write_yolo(tmp_path)
    (tmp_path / "labels" / "train" / "a.txt").unlink()
    assert len(open_dataset(f"{tmp_path}@train", training=True)) == len(CONTENT) - 1
    kept = open_dataset(f"{tmp_path}@train", training=True, filter_empty=False)
    assert len(kept) == len(CONTENT)
    assert len(kept.target(0)) == 0


def test_yolo_boxes_belong_to_the_upright_image(tmp_path):
    write_yolo(tmp_path)
    path = tmp_path / "images" / "train" / "a.png"
    image = Image.open(path)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(path, exif=exif)
    dataset = open_dataset(f"{tmp_path}@train")
    assert dataset.image_sizes[0].tolist() == [64, 48]
    assert dataset.load_image(0).size == (48, 64)


# Dataset paths


@pytest.mark.parametrize(
    ("path", "images", "annotations", "split", "name"),
    [
        ("x/train.json@x/pics", "x/pics", "x/train.json", "", "x_train"),
        ("x/train.json", "x", "x/train.json", "", "x_train"),
        ("x/cells@val", None, "x/cells", "val", "cells_val"),
        ("x/my cells/data.yaml@train", None, "x/my cells/data.yaml", "train", "my_cells_train"),
        ("me@home/cells@val", None, "me@home/cells", "val", "cells_val"),
    ],
)
def test_dataset_path(path, images, annotations, split, name):
    entry = parse_dataset_path(path)
    assert (entry.images and entry.images.as_posix(), entry.annotations.as_posix()) == (images, annotations)
    assert (entry.split, entry.name) == (split, name)


def test_registered_name_resolves_and_is_suggested(tmp_path):
    paths = {"cells_train": f"{tmp_path}@train"}
    assert find_dataset("cells_train", "datasets", paths).name == "cells_train"
    with pytest.raises(ValueError, match="did you mean cells_train"):
        find_dataset("cell_train", "datasets", paths)


def test_empty_images_train_as_background(tmp_path):
    paths = write_coco(tmp_path, content=UNUSUAL_NAMES)
    assert len(open_dataset(paths[0], training=True)) == 3
    dataset = open_dataset(paths[0], training=True, filter_empty=False)
    sample = dataset[2]
    assert len(sample.target) == 0
    assert torch.isfinite(sample.image).all()


def test_voc_files_may_end_in_upper_case(tmp_path):
    path, _ = write_voc(tmp_path / "voc")
    before = open_dataset(path).coco_dict["annotations"]
    for file in (tmp_path / "voc" / "Annotations").glob("*.xml"):
        file.rename(file.with_suffix(".XML"))
    assert before
    assert open_dataset(path).coco_dict["annotations"] == before


@pytest.mark.parametrize("format", ["VOC", "YOLO"])
def test_names_too_long_for_a_file_are_missing_files(format, tmp_path):
    path, _ = WRITERS[format](tmp_path / "data")
    long = "x" * 5000
    if format == "VOC":
        (tmp_path / "data" / "ImageSets" / "Main" / "train.txt").write_text(f"{long}\n")
    else:
        description = tmp_path / "data" / "data.yaml"
        description.write_text(re.sub("(?m)^train: .*", f"train: {long}", description.read_text()))
        assert long in description.read_text()
        path = f"{description}@train"
    with pytest.raises((FileNotFoundError, ValueError), match="there is no") as error:
        open_dataset(path)
    assert len(str(error.value)) < 2000
