"""What the metrics of a step cost: `python -m bench metrics-cost`.

Runs a light model in a tritonserver, which calls `StepMetrics` as `denoise` does, and measures
microseconds for a step. Prints their share of a tick of the demo bundle, too. Writes
`bench/results/metrics_cost.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import urllib.request
from pathlib import Path

from rich.console import Console

from bench import report
from bench.server import plain_serving

_CONFIG = """backend: "python"
max_batch_size: 1
input [ { name: "ROUNDS", data_type: TYPE_INT32, dims: [ 1 ] } ]
output [ { name: "MICROSECONDS", data_type: TYPE_FP32, dims: [ -1 ] } ]
instance_group [ { count: 1, kind: KIND_CPU } ]
"""
_CODE = """import time
from types import SimpleNamespace

import numpy as np
import triton_python_backend_utils as pb_utils

from tessera.triton.metrics import Metrics
from tessera.triton.step_metrics import StepMetrics

STEPS = 500
BURST = 20


class TritonPythonModel:
    def execute(self, requests):
        metrics = StepMetrics(Metrics())
        plan = SimpleNamespace(job_id="a")
        request = SimpleNamespace(
            plan=plan, goes_sparsely=False, side={}, controls_now=[], branches=2
        )
        answers = []
        for message in requests:
            rounds = int(message.inputs()[0].as_numpy().item())
            spent = []
            for _ in range(rounds + 1):
                began = time.perf_counter()
                for step in range(1, STEPS + 1):
                    metrics.call([request] * 8, 0.026)
                    if step % BURST == 0:
                        metrics.flush()
                spent.append(1e6 * (time.perf_counter() - began) / STEPS)
            array = np.array([spent[1:]], np.float32)
            tensor = pb_utils.Tensor("MICROSECONDS", array)
            answers.append(pb_utils.InferenceResponse([tensor]))
        return answers
"""

console = Console(highlight=False)


def measure(rounds: int) -> list[float]:
    """Microseconds of the metrics of a step, mean of 500, in each round."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "models" / "cost"
        (model / "1").mkdir(parents=True)
        (model / "config.pbtxt").write_text(_CONFIG)
        (model / "1" / "model.py").write_text(_CODE)
        with plain_serving([model.parent], Path(folder) / "log") as server:
            tensor = {"name": "ROUNDS", "datatype": "INT32", "shape": [1, 1], "data": [rounds]}
            body = json.dumps({"inputs": [tensor]}).encode()
            url = f"{server.http}/v2/models/cost/infer"
            with urllib.request.urlopen(urllib.request.Request(url, body)) as answer:
                spent: list[float] = json.load(answer)["outputs"][0]["data"]
                return spent


def main() -> None:
    """Measure, print, write the report."""
    parser = argparse.ArgumentParser(description="what the metrics of a step cost")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tick-ms", type=float, default=26.0, help="of a tick, for the share")
    parser.add_argument("--out", type=Path, help="another file for the report")
    options = parser.parse_args()
    machine = report.describe_machine(len(os.sched_getaffinity(0)))
    spent = measure(options.rounds)
    middle = statistics.median(spent)
    console.print(
        f"{middle:.0f} us a step ({min(spent):.0f} to {max(spent):.0f}), "
        f"{middle / options.tick_ms / 10:.2f} % of a tick of {options.tick_ms:g} ms"
    )
    results = {"us": [round(us, 2) for us in spent]}
    settings = report.settings_of(options)
    file = report.write("metrics_cost", settings, results, machine=machine, out=options.out)
    console.print(f"written: {file}")


if __name__ == "__main__":
    main()
