"""A picture and an edit of it through the gateway, with OpenAI's own package.

    python openai_images.py [http://localhost:8080] [picture.png]

The picture on the left is drawn with previews; the one on the right is edited where the mask is
transparent.
"""

from __future__ import annotations

import base64
import io
import sys

from openai import OpenAI
from PIL import Image, ImageDraw

URL = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8080"
FILE = sys.argv[2] if len(sys.argv) > 2 else "out.png"


def picture(data: str) -> Image.Image:
    """What an answer has in base64."""
    return Image.open(io.BytesIO(base64.b64decode(data)))


def png(image: Image.Image) -> bytes:
    """A picture as a file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


# A gateway with --keys wants one of its keys here.
client = OpenAI(base_url=f"{URL}/v1", api_key="none")

stream = client.images.generate(
    prompt="a large red circle at the left on a blue background",
    size="128x128",
    stream=True,
    partial_images=2,
    extra_body={"tessera": {"seed": 1, "steps": 10}},
)
for event in stream:
    if event.type == "image_generation.completed":
        before = picture(event.b64_json)
    else:
        print(f"preview {event.partial_image_index}")

mask = Image.new("RGBA", before.size, "black")
ImageDraw.Draw(mask).rectangle((8, 32, 71, 95), fill=(0, 0, 0, 0))
edited = client.images.edit(
    image=png(before),
    mask=png(mask),
    prompt="a large green square in the center on a striped white background",
    extra_body={"tessera": {"seed": 4, "steps": 10}},
)
after = picture(edited.data[0].b64_json)

both = Image.new("RGB", (2 * before.width, before.height))
both.paste(before, (0, 0))
both.paste(after, (before.width, 0))
both.save(FILE)
print(f"{FILE}: {edited.usage.output_tokens} image tokens, seed {edited.data[0].tessera['seed']}")
