"""Two pictures at once over gRPC with NVIDIA's tritonclient alone, and a request that is rejected.

python examples/tritonclient_grpc.py [URL] [PICTURE]
"""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tritonclient.grpc as triton
from PIL import Image
from tritonclient.utils import InferenceServerException

URL = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("TESSERA_URL", "grpc://localhost:8001")
PICTURE = sys.argv[2] if len(sys.argv) > 2 else "tritonclient_grpc.png"
PROMPTS = (
    "a large green square in the center on a striped white background",
    "a medium blue triangle at the right on a yellow background",
)


def tensor(name: str, datatype: str, array: np.ndarray) -> triton.InferInput:
    """An input; its array has a leading batch dimension of 1."""
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def draw(client: triton.InferenceServerClient, prompt: str, steps: int) -> triton.InferResult:
    """The answer of `generate`; seed 3."""
    inputs = [
        tensor("PROMPT", "BYTES", np.array([[prompt.encode()]], object)),
        tensor("SEED", "INT64", np.array([[3]], np.int64)),
        tensor("STEPS", "INT32", np.array([[steps]], np.int32)),
    ]
    return client.infer("generate", inputs, client_timeout=300.0)


# Pictures may be larger than gRPC's default of 4 MB for one message.
options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
with triton.InferenceServerClient(URL.removeprefix("grpc://"), channel_args=options) as client:
    with ThreadPoolExecutor() as pool:  # both requests share the running batch
        answers = list(pool.map(lambda prompt: draw(client, prompt, 10), PROMPTS))
    try:
        draw(client, PROMPTS[0], 0)
    except InferenceServerException as error:
        print(f"rejected with {error.status()}: {error.message()}")

pictures = [answer.as_numpy("IMAGE")[0] for answer in answers]
Image.fromarray(np.concatenate(pictures, axis=1)).save(PICTURE)  # side by side
for answer in answers:
    info = json.loads(answer.as_numpy("INFO")[0, 0])
    print(f"{info['total_ms']:.0f} ms, in batches of {info['mean_batch']:.1f}")
