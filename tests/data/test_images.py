import io
import os
import random
import socket
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from atss_core.data.images import (
    UnreadableImageError,
    describe_unused_range,
    has_ambiguous_orientation,
    image_size,
    read_image,
    to_rgb,
)

ORIENTATION = 0x0112


def exif(orientation):
    block = Image.Exif()
    block[ORIENTATION] = orientation
    block[0x011A] = 72.0  # a rational number, XResolution
    return block


def noise(height=30, width=40, mode="RGB"):
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def encode(image, format, **options):
    stream = io.BytesIO()
    image.save(stream, format=format, **options)
    return stream.getvalue()


# Orientation


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation, suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    options = {"webp": {"lossless": True}, "jpg": {"quality": 95}}.get(suffix, {})
    noise().resize((400, 300)).save(path, exif=exif(orientation), **options)
    with Image.open(path) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    upright, stored = read_image(path, apply_exif=True), read_image(path, apply_exif=False)
    assert np.array_equal(upright, expected)
    assert stored.size == (400, 300)
    assert np.abs(np.asarray(stored, float) - np.asarray(noise().resize((400, 300)))).mean() < 10
    assert image_size(path) == (upright.height, upright.width)
    assert has_ambiguous_orientation(path) == (orientation in (2, 3, 4))
    # Readers of EXIF data must not turn an upright image again.
    assert orientation == 1 or upright.getexif().get(ORIENTATION, 1) == 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_a_square_is_ambiguous(orientation, tmp_path):
    noise(20, 20).save(tmp_path / "a.jpg", exif=exif(orientation))
    assert has_ambiguous_orientation(tmp_path / "a.jpg") == (orientation > 1)


def test_orientation_is_read_from_damaged_exif_data(tmp_path):
    content = bytearray(encode(noise(), "JPEG", exif=exif(3)))
    content[content.index(b"Exif") + 31] = 7  # the rational number becomes bytes
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(TypeError), Image.open(tmp_path / "a.jpg") as image:
        ImageOps.exif_transpose(image)
    upright, stored = (read_image(tmp_path / "a.jpg", apply_exif=flag) for flag in (True, False))
    assert np.array_equal(upright, np.asarray(stored)[::-1, ::-1])


def move_exif_behind_pixels(content):
    """Return a PNG file with its eXIf chunk before the last one, as ExifTool writes it."""
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4], "big")
    return content[:start] + content[end:-12] + content[start:end] + content[-12:]


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("is_late", [False, True])
def test_headers_of_png_are_read_without_their_pixels(is_late, orientation, tmp_path, monkeypatch):
    content = encode(noise(), "PNG", exif=exif(orientation))
    path = tmp_path / "a.png"
    path.write_bytes(move_exif_behind_pixels(content) if is_late else content)
    with Image.open(path) as image:
        assert ("exif" in image.info) != is_late
        expected = ImageOps.exif_transpose(image)
    assert np.array_equal(read_image(path, apply_exif=True), expected)
    assert np.array_equal(read_image(path, apply_exif=False), noise())
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("decoded"))
    assert image_size(path) == (expected.height, expected.width)
    assert has_ambiguous_orientation(path) == (orientation == 3)


def test_orientation_of_png_in_a_text_profile(tmp_path):
    profile = exif(6).tobytes()
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", f"\nexif\n{len(profile):8}\n{profile.hex()}\n")
    noise().save(tmp_path / "a.png", pnginfo=text)
    assert image_size(tmp_path / "a.png") == (40, 30)
    assert read_image(tmp_path / "a.png", apply_exif=True).size == (30, 40)


def test_unreadable_exif_data_are_ignored(tmp_path):
    noise().save(tmp_path / "a.png", exif=b"Exif\0\0MM\0\x2b junk")
    assert np.array_equal(read_image(tmp_path / "a.png", apply_exif=True), noise())
    assert image_size(tmp_path / "a.png") == (30, 40)


def test_open_files_are_read_like_paths(tmp_path):
    content = encode(noise(), "PNG", exif=exif(6))
    (tmp_path / "a.png").write_bytes(content)
    expected = read_image(tmp_path / "a.png", apply_exif=True)
    assert np.array_equal(read_image(io.BytesIO(content), apply_exif=True), expected)
    with (tmp_path / "a.png").open("rb") as file:
        assert np.array_equal(read_image(file, apply_exif=True), expected)
    with pytest.raises(UnreadableImageError, match=r"^data in memory cannot be read as an image"):
        read_image(io.BytesIO(content[:200]), apply_exif=True)


# Values of more than 8 bits


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_grey_values_keep_their_upper_8_bits_for_any_maximum(suffix, bits, tmp_path):
    grey = np.asarray(noise(mode="L")).copy()
    rest = np.random.default_rng(1).integers(0, 2 ** (bits - 8), grey.shape, dtype=np.uint16)
    values = (grey.astype(np.uint16) << (bits - 8)) + rest
    path = tmp_path / f"a.{suffix}"
    for hottest in (0, 2**bits - 1, 65535):
        grey[0, 0], values[0, 0] = min(hottest >> (bits - 8), 255), hottest
        Image.fromarray(values).save(path)
        rgb = np.asarray(read_image(path, apply_exif=True, grey_bits=bits))
        assert np.array_equal(rgb, np.repeat(grey[..., None], 3, axis=2))
        plain = np.asarray(read_image(path, apply_exif=True))
        assert np.array_equal(plain[..., 0], values >> 8)


@pytest.mark.parametrize(
    ("values", "bits", "expected"),
    [
        (np.float32([[0, 0.5, 1, 0.2]]), 0, [0, 128, 255, 51]),
        (np.float32([[-0.0005, 0.5, 1.0005, 0.2]]), 0, [0, 128, 255, 51]),  # as interpolation leaves it
        (np.float32([[0, 127.6, 255, 3000]]), 8, [0, 127, 255, 255]),
        (np.float32([[0, 2048, 4095, 16]]), 12, [0, 128, 255, 1]),
        (np.int32([[0, 255, 3, 4]]), 0, [0, 255, 3, 4]),
        (np.int32([[0, 2048, 4095, 70000]]), 12, [0, 128, 255, 255]),
        (np.int32([[0, 1 << 23, (1 << 24) - 1, 0]]), 24, [0, 128, 255, 0]),
        (np.int32([[0, 1 << 30, (1 << 31) - 1, 0]]), 32, [0, 64, 127, 0]),
        (np.uint16([[0, 255, 256, 65535]]), 0, [0, 0, 1, 255]),
        (np.uint16([[0, 255, 256, 65535]]), 32, [0, 0, 0, 0]),
    ],
)
def test_other_ranges(values, bits, expected, tmp_path):
    Image.fromarray(values).save(tmp_path / "a.tif")
    for image in (
        read_image(tmp_path / "a.tif", apply_exif=True, grey_bits=bits),
        to_rgb(Image.fromarray(values), bits),
    ):
        assert np.asarray(image)[0, :, 0].tolist() == expected


def test_bits_of_a_12_bit_tiff_are_read(tmp_path):
    packed = int("".join(f"{value:012b}" for value in (0, 16, 2048, 4095)), 2).to_bytes(6, "big")
    tags = {256: 4, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 6}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    header = b"II*\0" + struct.pack("<I", 14) + packed + struct.pack("<H", len(tags))
    (tmp_path / "a.tif").write_bytes(header + entries + bytes(4))
    image = read_image(tmp_path / "a.tif", apply_exif=True)
    assert np.asarray(image)[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("values", [[[-5, 1000]], [[0, float("nan")]], [[0, float("inf")]], [[-0.5, 0.5]]])
@pytest.mark.parametrize("bits", [0, 12])
def test_invalid_values_are_refused(values, bits, tmp_path):
    Image.fromarray(np.float32(values)).save(tmp_path / "a.tif")
    with pytest.raises(UnreadableImageError, match=r"a\.tif .*expected grey values .*onvert it to 8 bits"):
        read_image(tmp_path / "a.tif", apply_exif=True, grey_bits=bits)


@pytest.mark.parametrize("values", [np.float32([[0, 1.1]]), np.float32([[0, 4095]]), np.int32([[0, 4095]])])
def test_values_of_unknown_range_need_grey_bits(values, tmp_path):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(
        UnreadableImageError, match=r"or integers in 0\.\.255, got 0\.\..*Set INPUT\.GREY_BITS"
    ):
        read_image(tmp_path / "a.tif", apply_exif=True)


@pytest.mark.parametrize(
    ("largest", "used", "camera"),
    [(200, 8, 8), (1000, 10, 10), (2000, 11, 12), (4095, 12, 12), (16383, 14, 14)],
)
def test_unused_range_is_described_despite_a_hot_pixel(largest, used, camera):
    values = np.linspace(0, largest, 10_000).astype(np.uint16).reshape(100, 100)
    values[0, 0] = 65535
    message = describe_unused_range([to_rgb(Image.fromarray(values // 8)), to_rgb(Image.fromarray(values))])
    assert message.startswith(f"grey values of 16 bits use {used} and are dark: if the camera has {camera} ")
    assert f"set INPUT.GREY_BITS {camera}," in message
    assert describe_unused_range([to_rgb(Image.fromarray(values), camera)]) is None


def test_used_range_is_not_described():
    values = np.linspace(0, 17_000, 10_000).astype(np.uint16).reshape(100, 100)
    assert (
        describe_unused_range([to_rgb(Image.fromarray(values // 100)), to_rgb(Image.fromarray(values))])
        is None
    )
    assert describe_unused_range([to_rgb(Image.fromarray(np.zeros((9, 9), np.float32))), noise()]) is None
    assert describe_unused_range([]) is None


# Files that are no images


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pipe", "got a pipe"),
        ("device", "got a device"),
        ("socket", "got a socket"),
        ("folder", "got a folder"),
        ("loop", r"there is no image .*a\.jpg \(Too many levels of symbolic links\)$"),
        ("nothing", r"there is no image .*a\.jpg$"),
        ("empty", "cannot be read as an image"),
    ],
)
def test_only_regular_files_are_opened(kind, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # paths of sockets must be short
    path = tmp_path / "a.jpg"
    with socket.socket(socket.AF_UNIX) as server:
        {
            "pipe": lambda: os.mkfifo(path),
            "device": lambda: path.symlink_to("/dev/zero"),
            "socket": lambda: server.bind("a.jpg"),
            "folder": path.mkdir,
            "loop": lambda: path.symlink_to(path),
            "nothing": lambda: None,
            "empty": path.touch,
        }[kind]()
        for read in (lambda: read_image(path, apply_exif=True), lambda: image_size(path)):
            with pytest.raises(UnreadableImageError, match=message):
                read()


@pytest.mark.parametrize(
    ("format", "mode"),
    [
        ("JPEG", "RGB"),
        ("PNG", "RGB"),
        ("PNG", "P"),
        ("TIFF", "RGB"),
        ("TIFF", "F"),
        ("WEBP", "RGB"),
        ("BMP", "RGB"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of Pillow, about damaged files
def test_damaged_files_raise_unreadable_image_error(format, mode, tmp_path):
    options = {} if format == "BMP" else {"exif": exif(6)}
    sound = encode(noise(mode=mode), format, **options)
    path, rng = tmp_path / "a.jpg", random.Random(0)
    errors = []
    for _ in range(150):
        content = bytearray(sound)
        for _ in range(rng.choice((1, 2, 8))):
            content[rng.randrange(min(len(content), 300))] = rng.choice((0, 255, rng.randrange(256)))
        if rng.random() < 0.3:
            del content[rng.randrange(len(content)) :]
        path.write_bytes(content)
        for read in (lambda: read_image(path, apply_exif=True, max_pixels=10**6), lambda: image_size(path)):
            try:
                read()
            except UnreadableImageError as error:
                errors.append(str(error))
    assert 10 < len(errors) < 290
    assert not any("\n" in error for error in errors)


# The limit of pixels


def test_limit_of_pixels(tmp_path):
    noise().save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", apply_exif=True, max_pixels=1200).size == (40, 30)
    message = r"a\.png: expected at most 1199 pixels \(INPUT\.MAX_PIXELS\), got 40x30\. Cut it into tiles"
    with pytest.raises(UnreadableImageError, match=message):
        read_image(tmp_path / "a.png", apply_exif=True, max_pixels=1199)


def test_header_of_a_huge_image_is_refused_before_its_pixels_are_read(tmp_path):
    content = bytearray(encode(noise(), "PNG"))
    content[16:24] = struct.pack(">II", 60_000, 60_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "a.png").write_bytes(content)
    assert image_size(tmp_path / "a.png") == (60_000, 60_000)
    with pytest.raises(UnreadableImageError, match=r"INPUT\.MAX_PIXELS.*60000x60000"):
        read_image(tmp_path / "a.png", apply_exif=True)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_pillows_limit_stays_for_other_code(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)  # which warns from here, and refuses from 1400 on
    path = tmp_path / f"a.{suffix}"
    noise(60, 80).save(path)

    def read(_):
        return read_image(path, apply_exif=True).size, image_size(path)

    with warnings.catch_warnings(), ThreadPoolExecutor(4) as pool:
        warnings.simplefilter("error")
        assert set(pool.map(read, range(40))) == {((80, 60), (60, 80))}
    with pytest.raises(UnreadableImageError):
        read_image(tmp_path / "none.png", apply_exif=True)
    assert Image.MAX_IMAGE_PIXELS == 700


def test_long_names_are_shortened_in_errors(tmp_path):
    with pytest.raises(UnreadableImageError, match=r"there is no image .*x") as error:
        read_image(tmp_path / ("x" * 5000), apply_exif=True)
    assert len(str(error.value)) < 1200
