"""A picture with the client of this repository: progress, a LoRA, errors.

python examples/sdk.py [URL] [PICTURE]
"""

import os
import sys

from tessera_client import Client, InvalidInput, JobStatus, Lora

URL = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("TESSERA_URL", "http://localhost:8000")
PICTURE = sys.argv[2] if len(sys.argv) > 2 else "sdk.png"


def show(status: JobStatus) -> None:
    """Called about ten times a second, from another thread."""
    print(f"{status.phase}, step {status.step} of {status.total}")


with Client(URL) as client:
    result = client.generate(
        "a large green square in the center on a striped white background",
        seed=3,
        steps=10,
        loras=[Lora("outline", 0.8)],
        on_progress=show,
    )
    try:
        client.generate("a large green square", loras=[Lora("outlined")])
    except InvalidInput as error:
        print(f"rejected: {error}")

result.image.save(PICTURE)
print(f"{PICTURE}: {result.info.total_ms:.0f} ms, {result.info.refit_ms:.0f} of them refits")
