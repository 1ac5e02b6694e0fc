"""Three pictures at once with asyncio; they share the running batch.

python examples/sdk_async.py [URL] [PICTURE]
"""

import asyncio
import os
import sys

import numpy as np
from PIL import Image

from tessera_client import AsyncClient

URL = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("TESSERA_URL", "grpc://localhost:8001")
PICTURE = sys.argv[2] if len(sys.argv) > 2 else "sdk_async.png"
PROMPTS = (
    "a large red circle at the left on a blue background",
    "a large green square in the center on a striped white background",
    "a medium blue triangle at the right on a yellow background",
)


async def main() -> None:
    """Draw all prompts, one seed each. Cancelling a task cancels its job on the server."""
    async with AsyncClient(URL) as client:
        jobs = [client.generate(p, seed=n, steps=10) for n, p in enumerate(PROMPTS, start=1)]
        results = await asyncio.gather(*jobs)
    pictures = [np.asarray(result.image) for result in results]
    Image.fromarray(np.concatenate(pictures, axis=1)).save(PICTURE)  # side by side
    for result in results:
        print(f"{result.info.total_ms:.0f} ms, in batches of {result.info.mean_batch:.1f}")


asyncio.run(main())
