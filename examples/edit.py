"""Draw a picture, record it as a template, then edit it inside a mask.

python examples/edit.py [URL] [PICTURE]
"""

import os
import sys

import numpy as np
from PIL import Image

from tessera_client import Client

URL = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("TESSERA_URL", "http://localhost:8000")
PICTURE = sys.argv[2] if len(sys.argv) > 2 else "edit.png"

with Client(URL) as client:
    before = client.generate(
        "a large red circle at the left on a blue background", seed=1, steps=10
    )

    # A mask is light where the picture may change. It covers the whole circle, with a margin.
    mask = np.zeros((before.image.height, before.image.width), np.uint8)
    mask[32:96, 8:72] = 255

    # A recording serves one scheduler and number of steps. Without it, the first sparse edit waits.
    recorded = client.register_template(before.image, steps=10)

    # The prompt describes the whole picture after the edit. The id stands for the image.
    after = client.edit(
        None,
        mask,
        "a large green square at the left on a blue background",
        template=recorded.template,
        mode="sparse",
        seed=5,
        steps=10,
    )

outside = mask < 128
assert np.array_equal(np.asarray(before.image)[outside], np.asarray(after.image)[outside])
Image.fromarray(np.hstack([before.image, after.image])).save(PICTURE)  # side by side
share = 100 * (after.info.mask_ratio or 0.0)
print(f"{PICTURE}: {share:.0f} % edited, {after.info.mode}, {after.info.total_ms:.0f} ms")
