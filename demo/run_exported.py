"""Detect objects with a file of ``atss export``: needs numpy, Pillow and what runs the file, nothing else.

python run_exported.py model.onnx|model.xml|model.pt2 image.jpg [drawn.png]
"""

import importlib
import io
import json
import os
import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# EXIF orientation -> what turns the stored pixels upright
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def find_font(size=14):
    """Return a font with more letters than Pillow's own, where the system has one."""
    for name in ("NotoSansCJK-Regular.ttc", "msyh.ttc", "Arial Unicode.ttf", "DejaVuSans.ttf", "arial.ttf"):
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def load(path):
    """Return a function that runs the file, and what the file says about itself."""
    if path.endswith(".onnx"):
        session = importlib.import_module("onnxruntime").InferenceSession(path)
        about = session.get_modelmeta().custom_metadata_map["atss"]
        return lambda pixels, sizes: session.run(None, {"images": pixels, "image_sizes": sizes}), about
    if path.endswith(".xml"):
        core = importlib.import_module("openvino").Core()
        model = core.read_model(path)
        run = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda *arrays: run(list(arrays)).to_tuple(), model.get_rt_info(["atss"]).value
    importlib.import_module("torchvision")  # has operators that the file calls
    torch, extra = importlib.import_module("torch"), {"atss": ""}
    module = torch.export.load(path, extra_files=extra).module()
    return lambda *arrays: [t.numpy() for t in module(*map(torch.from_numpy, arrays))], extra["atss"]


def read(path, grey_bits=0):
    """Return an image upright and as 8-bit RGB, by the rules of training (docs/own-data.md)."""
    image = Image.open(path)
    try:
        turn = TURNS.get(image.getexif().get(0x0112))
    except Exception:  # damaged EXIF data
        turn = None
    if image.format == "TIFF":  # which Pillow turns by itself
        turn = None
    if image.mode[0] in "IF":  # grey of more than 8 bits
        values = np.asarray(image)
        low, high = values.min(), values.max()
        has_range = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
        bits = grey_bits or (getattr(image, "tag_v2", {}).get(258, (16,))[0] if has_range else 0)
        if bits and low >= 0 and high < np.inf:
            upper = values // 2.0 ** (bits - 8) if image.mode == "F" else values >> (bits - 8)
            values = np.minimum(upper, 255)
        elif not bits and image.mode == "I" and low >= 0 and high <= 255:
            pass
        elif not bits and image.mode == "F" and low >= -1e-3 and high <= 1 + 1e-3:
            values = (values.clip(0, 1) * 255).round()
        else:
            sys.exit(f"{path}: expected grey values from 0, floats in 0..1, got {low}..{high}. Convert it.")
        image = Image.fromarray(values.astype(np.uint8))
    image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def main(path, image_path, drawn=None):
    """Print what is in an image, and draw it."""
    inputs = [file for file in (path, image_path) if os.path.exists(file)]
    if drawn and os.path.exists(drawn) and any(os.path.samefile(drawn, file) for file in inputs):
        print(f"error: {drawn} would be overwritten, but it is an input. Give another file.", file=sys.stderr)
        sys.exit(2)
    run, about = load(path)
    about = json.loads(about)
    image = read(image_path, about.get("grey_bits", 0))
    short, long = sorted(image.size)
    side = min(about["min_size"], max(round(about["max_size"] * short / long), 1))
    long_side = min(int(side * long / short), about["max_size"] + 16)
    width, height = (side if length == short else long_side for length in image.size)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1)[None])  # RGB, uint8
    boxes, scores, labels, counts = run(pixels, np.array([[height, width]]))
    scale = np.array([image.width / width, image.height / height] * 2)
    for box, score, label in zip(boxes[0] * scale, scores[0], labels[0][: counts[0]], strict=False):
        if score >= 0.5:
            name = about["class_names"][label - 1]
            print(f"{name} {score:.3f} at {box.round(1).tolist()}")
            ImageDraw.Draw(image).rectangle(box.tolist(), outline="red", width=2)
            ImageDraw.Draw(image).text(box[:2].tolist(), f"{name} {score:.2f}", fill="red", font=find_font())
    if drawn:
        try:
            content = io.BytesIO()  # writing a JPEG, Pillow would not notice that the disk is full
            image.save(content, Image.registered_extensions()[os.path.splitext(drawn)[1].lower()])
            with open(drawn, "wb") as file:
                file.write(content.getbuffer())
        except (OSError, KeyError) as error:
            sys.exit(f"error: cannot write {drawn} ({error}). It needs room and a name such as a.png.")


if __name__ == "__main__":
    Image.MAX_IMAGE_PIXELS = None  # you choose what you open
    sys.stdout.reconfigure(errors="backslashreplace")  # names that the console cannot show
    main(*sys.argv[1:])
