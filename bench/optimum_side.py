"""One side of `bench.against_optimum`: a pipeline of optimum, in an environment that has none of
Tessera's packages. Run as a script.

    python bench/optimum_side.py onnxruntime|openvino CHECKPOINT THREADS

Exports the checkpoint, draws a picture, and writes a line of JSON with the versions. Then each line
of JSON on standard input asks for a picture: `prompt`, `steps`, `guidance`, `seed`, and `file` for
its pixels (h, w, 3) in numpy's form. The answer is a line with its `seconds`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

PACKAGES = ("optimum", "diffusers", "torch")


def onnxruntime(checkpoint: str, threads: int) -> Any:
    """With ONNX Runtime's engines."""
    options = import_module("onnxruntime").SessionOptions()
    options.intra_op_num_threads = threads
    pipeline = import_module("optimum.onnxruntime").ORTStableDiffusionPipeline
    return pipeline.from_pretrained(checkpoint, export=True, session_options=options)


def openvino(checkpoint: str, threads: int) -> Any:
    """With OpenVINO's, in float32, for latency and not for throughput."""
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    pipeline = import_module("optimum.intel").OVStableDiffusionPipeline
    return pipeline.from_pretrained(checkpoint, export=True, ov_config=settings)


KINDS: dict[str, tuple[Callable[[str, int], Any], tuple[str, ...]]] = {
    "onnxruntime": (onnxruntime, ("optimum-onnx", "onnxruntime")),
    "openvino": (openvino, ("optimum-intel", "openvino")),
}
"""How each is opened, and the packages that are its own."""


def main() -> None:
    """Open, and draw until standard input ends."""
    kind, checkpoint, threads = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    torch.set_num_threads(int(threads))
    opened, packages = KINDS[kind]
    pipeline = opened(checkpoint, int(threads))
    pipeline.set_progress_bar_config(disable=True)
    draw(pipeline, {"prompt": "", "steps": 2, "guidance": 2.0, "seed": 0})
    print(json.dumps({name: version(name) for name in (*PACKAGES, *packages)}), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        began = time.perf_counter()
        pixels = draw(pipeline, request)
        seconds = time.perf_counter() - began
        np.save(request["file"], pixels)
        print(json.dumps({"seconds": seconds}), file=answers)


def draw(pipeline: Any, request: dict[str, Any]) -> Any:
    """A picture (h, w, 3), uint8."""
    result = pipeline(
        request["prompt"],
        num_inference_steps=request["steps"],
        guidance_scale=request["guidance"],
        generator=torch.Generator("cpu").manual_seed(request["seed"]),
    )
    return np.asarray(result.images[0])


if __name__ == "__main__":
    main()
