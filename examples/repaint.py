"""Detect, mask, repaint: every box that a detector finds is drawn anew, enlarged, all at once.

python examples/repaint.py [URL] [PICTURE] [PHOTO]

With a photo, OpenCV's face detector finds the boxes. Without one the picture is drawn first, and
the boxes are those of its red shapes: the demo model knows no faces.
"""

import os
import sys

import cv2
import numpy as np
from PIL import Image

from tessera_client import Client

URL = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("TESSERA_URL", "http://localhost:8000")
PICTURE = sys.argv[2] if len(sys.argv) > 2 else "repaint.png"
PHOTO = sys.argv[3] if len(sys.argv) > 3 else None


def faces(image: Image.Image) -> list[list[int]]:
    """Boxes (x, y, width, height) of faces, by the cascade that comes with OpenCV."""
    cascade = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")
    return [
        [int(n) for n in box] for box in cascade.detectMultiScale(np.asarray(image.convert("L")))
    ]


def red_shapes(image: Image.Image) -> list[list[int]]:
    """Boxes of what is red, with a margin."""
    red, green, blue = np.asarray(image.convert("RGB"), np.int16).transpose(2, 0, 1)
    found = ((red > 120) & (green < 90) & (blue < 90)).astype(np.uint8)
    _, _, stats, _ = cv2.connectedComponentsWithStats(cv2.dilate(found, np.ones((9, 9), np.uint8)))
    return [[int(n) for n in box[:4]] for box in stats[1:] if box[4] >= 200]


with Client(URL) as client:
    if PHOTO:
        before = Image.open(PHOTO).convert("RGB")
        prompt = "a smiling face"
        boxes = faces(before)
    else:
        drawn = client.generate(
            "a large red circle at the left on a blue background", seed=1, steps=10
        )
        before, prompt = drawn.image, "a large green square in the center on a blue background"
        boxes = red_shapes(before)
    after = client.repaint(before, boxes, prompt, padding_mask_crop=8, seed=5, steps=10)

Image.fromarray(np.hstack([before, after.image])).save(PICTURE)  # side by side
print(f"{PICTURE}: {len(boxes)} boxes drawn anew: {boxes}")
