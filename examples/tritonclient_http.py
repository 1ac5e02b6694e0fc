"""A picture over HTTP with NVIDIA's tritonclient alone.

python examples/tritonclient_http.py [URL] [PICTURE]
"""

import json
import os
import sys

import numpy as np
import tritonclient.http as triton
from PIL import Image

URL = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("TESSERA_URL", "http://localhost:8000")
PICTURE = sys.argv[2] if len(sys.argv) > 2 else "tritonclient_http.png"


def tensor(name: str, datatype: str, array: np.ndarray) -> triton.InferInput:
    """An input; its array has a leading batch dimension of 1."""
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


prompt = "a large green square in the center on a striped white background"
loras = json.dumps([{"name": "outline", "weight": 0.8}])

# tritonclient takes host:port. Its default timeout of 60 s may be short for large pictures.
client = triton.InferenceServerClient(URL.removeprefix("http://"), network_timeout=300.0)
answer = client.infer(
    "generate",
    inputs=[
        tensor("PROMPT", "BYTES", np.array([[prompt.encode()]], object)),
        tensor("SEED", "INT64", np.array([[3]], np.int64)),
        tensor("STEPS", "INT32", np.array([[10]], np.int32)),
        tensor("GUIDANCE", "FP32", np.array([[4.0]], np.float32)),
        tensor("LORAS", "BYTES", np.array([[loras.encode()]], object)),
    ],
    timeout=300_000_000,  # microseconds in the server's queues
)
client.close()

Image.fromarray(answer.as_numpy("IMAGE")[0]).save(PICTURE)
info = json.loads(answer.as_numpy("INFO")[0, 0])
print(f"{PICTURE}: seed {info['seed']}, {info['steps']} steps, {info['total_ms']:.0f} ms")
