"""Triton with the baseline of `bench.baselines`: its model repository, requests to it, and the
search for its best batch size and queue delay.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.http as triton

from bench import trace, turns
from bench.replay import percentiles, replay, summary
from bench.senders import GUIDANCE, Things
from bench.server import DEMO_CHECKPOINT, ROOT, Server, plain_serving
from bench.trace import Asked
from bench.turns import Send, Up

CONTROLNETS = DEMO_CHECKPOINT.parent / "controlnets"


@dataclass(frozen=True)
class Batching:
    """How Triton batches a model's requests.

    Attributes:
        batch: requests in a batch at most; with 1 they are drawn one by one.
        delay_ms: how long the dynamic batcher waits for more of them.
    """

    batch: int
    delay_ms: int = 0

    @property
    def model(self) -> str:
        """The model's name."""
        return f"diffusers_{self.batch}_at_once_after_{self.delay_ms}_ms"


ALONE = Batching(1)
USUAL = Batching(8, 100)
"""Without a search."""
CANDIDATES = tuple(Batching(batch, delay) for batch in (2, 4, 8) for delay in (0, 100))
TUNING = 8
"""Requests that each of them gets."""
WARMING = 5
KINDS = (
    Asked(0, 1, 1),
    Asked(0, 1, 1, loras=(0,)),
    Asked(0, 1, 1, controls=(0,)),
    Asked(0, 1, 1, template=0, mask=0.2),
)
"""Drawn by each before it counts."""


@contextlib.contextmanager
def baseline(
    things: Things, folder: Path, threads: int, *batchings: Batching
) -> Iterator[dict[Batching, Up]]:
    """A server with a model for each way to batch, after a picture of each kind.

    Args:
        things: what the trace's ranks stand for.
        folder: of LoRAs and the log.
        threads: of torch, in each model.
        batchings: one or more.
    """
    with tempfile.TemporaryDirectory() as repository:
        for batching in batchings:
            write_repository(Path(repository), folder / "adapters", batching, threads=threads)
        log = folder / f"{batchings[0].model}.log"
        with plain_serving([Path(repository)], log) as server:
            ups = {batching: Up(server, sender(server, things, batching)) for batching in batchings}
            for up in ups.values():
                for asked in KINDS:
                    up.send(asked)
            yield ups


def write_repository(folder: Path, adapters: Path, batching: Batching, *, threads: int) -> None:
    """Add a model to a model repository.

    Args:
        folder: the repository.
        adapters: folder of LoRAs.
        batching: how it batches.
        threads: of torch.
    """
    version = folder / batching.model / "1"
    version.mkdir(parents=True)
    shutil.copy(ROOT / "bench" / "baseline_model.py", version / "model.py")
    parameters = {
        "checkpoint": DEMO_CHECKPOINT,
        "controlnets": CONTROLNETS,
        "adapters": adapters,
        "threads": threads,
    }
    lines = [
        f'parameters {{ key: "{k}" value: {{ string_value: "{v}" }} }}'
        for k, v in parameters.items()
    ]
    delay = f"max_queue_delay_microseconds: {1000 * batching.delay_ms}"
    lines.append(f"dynamic_batching {{ {delay} }}" if batching.batch > 1 else "")
    (folder / batching.model / "config.pbtxt").write_text(
        "\n".join([_CONFIG % batching.batch, *lines])
    )


_CONFIG = """backend: "python"
max_batch_size: %d
input [
  { name: "REQUEST", data_type: TYPE_STRING, dims: [ 1 ] },
  { name: "IMAGE", data_type: TYPE_UINT8, dims: [ -1, -1, 3 ], optional: true },
  { name: "MASK", data_type: TYPE_UINT8, dims: [ -1, -1 ], optional: true },
  { name: "HINT", data_type: TYPE_UINT8, dims: [ -1, -1, 3 ], optional: true }
]
output [ { name: "PICTURE", data_type: TYPE_UINT8, dims: [ -1, -1, 3 ] } ]
instance_group [ { count: 1, kind: KIND_CPU } ]"""


def sender(server: Server, things: Things, batching: Batching) -> Send:
    """Sends requests to one model; there is no INFO."""

    def send(asked: Asked) -> None:
        by_triton(server.http_port, batching.model, things, asked)

    return send


def by_triton(port: int, model: str, things: Things, asked: Asked) -> Any:
    """Have a model draw a request; returns the picture (h, w, 3).

    Raises:
        RuntimeError: it failed.
    """
    names = {"loras": things.loras, "controls": things.controls}
    request = {
        "prompt": things.prompt(asked.prompt),
        "steps": asked.steps,
        "seed": asked.seed,
        "guidance": GUIDANCE,
        **{field: [known[i] for i in getattr(asked, field)] for field, known in names.items()},
    }
    arrays: dict[str, Any] = {"REQUEST": np.array([json.dumps(request).encode()], object)}
    if asked.template is not None:
        arrays |= {"IMAGE": things.pictures[asked.template], "MASK": things.mask(asked.mask)}
    if asked.controls:
        arrays["HINT"] = np.asarray(things.hint)
    inputs = []
    for name, array in arrays.items():
        kind = "BYTES" if name == "REQUEST" else "UINT8"
        inputs.append(triton.InferInput(name, [1, *array.shape], kind))
        inputs[-1].set_data_from_numpy(array[None])
    client = triton.InferenceServerClient(f"localhost:{port}", network_timeout=900)
    with contextlib.closing(client):
        try:
            return client.infer(model, inputs).as_numpy("PICTURE")[0]
        except triton.InferenceServerException as error:
            raise RuntimeError(str(error)) from error


def tune(
    requests: Sequence[Asked], ups: Mapping[Batching, Up], share: float
) -> tuple[Batching, list[dict[str, Any]]]:
    """The best way to batch, and latencies of all.

    A few requests are sent at once to each, which loads LoRAs. Then each gets all of them, at a
    share of what the fastest drew before.
    """
    first = turns.at_once(requests[:WARMING])
    speeds = [summary(replay(first, up.send), 0.0)["pictures_per_s"] for up in ups.values()]
    timed = trace.at_rate(requests, share * max(speeds))
    figures = {one: percentiles(turns.latencies(replay(timed, up.send))) for one, up in ups.items()}
    return best_of(figures), [
        {**vars(one), "latency_s": latency} for one, latency in figures.items()
    ]


def best_of(figures: Mapping[Batching, Mapping[str, float]]) -> Batching:
    """The one with the least p95, and of equal ones the least mean. One without any has failed."""
    done = {one: latency for one, latency in figures.items() if latency}
    return min(done, key=lambda one: (done[one]["p95"], done[one]["mean"]))
