"""The server with the engine that is checked, with torch (eager) and with ONNX Runtime on the same
bundle, one after the other: the same picture from each, latencies, edits, and changes of LoRA.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.gpu.sparse import square
from bench.gpu.timing import milliseconds
from bench.server import serving
from bench.tensorrt.options import Options, options
from tessera.manifest import read_manifest
from tessera_client import Client, Lora, Result

PROMPT = "a large red circle at the left on a blue background"
REFERENCE = "onnxruntime"
EAGER = "torch"
START_S = 900.0
REQUEST_S = 900
SHORT = 4
"""Steps of the pictures that are compared: ONNX Runtime draws them on the CPU."""
RATIO = 0.2
"""Of the mask of edits."""
LARGEST_MEAN = 8.0
"""Accepted mean difference of a picture from ONNX Runtime's, in steps of 256. Half precision drifts
with every step; a wrong network is tens of steps apart.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """A row for each figure; an engine that does not serve does not stop the next."""
    chosen = options(arguments)
    pictures: dict[str, Any] = {}
    for kind in dict.fromkeys((chosen.engine, EAGER, REFERENCE)):
        chosen.attempt(f"serve {kind}", partial(_serve, chosen, kind, pictures))
    for kind in (k for k in pictures if k != REFERENCE):
        chosen.attempt(f"compare {kind}", partial(_compare, chosen, kind, pictures))
    return chosen.status()


def _serve(chosen: Options, kind: str, pictures: dict[str, Any]) -> None:
    log = chosen.work / "logs" / f"{chosen.bundle}-{kind}" / "log"
    log.parent.mkdir(parents=True, exist_ok=True)
    flags = [f"--engine={kind}", f"--start-timeout={START_S:.0f}"]
    flags += ["--threads=1"] if chosen.tiny else []
    began = time.monotonic()
    try:
        with serving(chosen.folder, log, *flags, seconds=START_S) as server:
            chosen.report.add(engine=kind, what="start", s=time.monotonic() - began)
            with Client(server.http, timeout=REQUEST_S) as client:
                session = Session(chosen, kind, client)
                pictures[kind] = session.picture(SHORT, seed=7)
                # On a GPU machine ONNX Runtime is the reference only: it draws on the CPU.
                if kind != REFERENCE or chosen.engine == REFERENCE:
                    session.run()
    finally:
        print(f"the last lines of the server with {kind}:")
        print("\n".join(log.read_text(errors="replace").splitlines()[-40:]))


class Session:
    """A client of a server with one kind of engine."""

    def __init__(self, chosen: Options, kind: str, client: Client) -> None:
        self._chosen, self._kind, self._client = chosen, kind, client
        self._defaults = read_manifest(chosen.folder).defaults
        self._rounds = 1 if chosen.tiny else 7
        self._steps = SHORT if chosen.tiny else self._defaults.steps

    def run(self) -> None:
        """Every figure of this engine."""
        kind = self._kind
        for part in (self._latency, self._edits, self._loras):
            self._chosen.attempt(f"{part.__name__[1:]} with {kind}", part)

    def picture(self, steps: int, *, seed: int = 1, **more: Any) -> Any:
        """A picture as an array."""
        return np.asarray(self._draw(steps, seed, **more).image)

    def _draw(self, steps: int, seed: int = 1, **more: Any) -> Result:
        more = {"scheduler": "euler", **more}
        return self._client.generate(PROMPT, steps=steps, seed=seed, **more)

    def _latency(self) -> None:
        self._draw(self._steps)
        results: list[Result] = []
        times = [
            milliseconds(lambda: results.append(self._draw(self._steps)))
            for _ in range(self._rounds)
        ]
        step = statistics.median(r.info.denoise_ms / r.info.steps for r in results)
        self._add("picture", times, note=f"{self._steps} steps of {step:.1f} ms")

    def _edits(self) -> None:
        picture = self._draw(SHORT).image
        side = min(picture.size)
        mask = np.zeros((picture.height, picture.width), np.uint8)
        mask[:side, :side] = 255 * square(side, RATIO)
        self._edit_in("dense", picture, mask)
        self._client.register_template(picture, steps=self._steps, scheduler="euler")
        self._edit_in("sparse", picture, mask)

    def _edit_in(self, mode: str, picture: Image.Image, mask: Any) -> None:
        def edit() -> Any:
            more: dict[str, Any] = {"steps": self._steps, "scheduler": "euler", "mode": mode}
            return self._client.edit(picture, mask, PROMPT, seed=1, **more)

        edited = np.asarray(edit().image)
        kept = mask < 128
        if not np.array_equal(edited[kept], np.asarray(picture)[kept]):
            raise RuntimeError(f"a {mode} edit changes pixels outside the mask")
        self._add(f"{mode} edit of {RATIO}", [milliseconds(edit) for _ in range(self._rounds)])

    def _loras(self) -> None:
        """A, B, A: the third picture has to be the first one."""
        names = sorted(path.stem for path in (self._chosen.folder / "adapters").glob("*"))[:2]
        if len(names) < 2:
            return
        a, b = ([Lora(name)] for name in names)
        times, drawn = list[float](), list[Result]()
        for use in (a, b, a):
            times.append(milliseconds(lambda: drawn.append(self._draw(SHORT, loras=use))))  # noqa: B023 - called at once
        first, other, again = (np.asarray(result.image) for result in drawn)
        self._add(f"picture with {names[0]}, {names[1]}, {names[0]}", times, note=f"{SHORT} steps")
        if not np.array_equal(first, again):
            raise RuntimeError(f"{names[0]} after {names[1]} is another picture than before it")
        if np.array_equal(first, other):
            raise RuntimeError(f"{names[0]} and {names[1]} make the same picture")

    def _add(self, what: str, times: Sequence[float], *, note: str = "") -> None:
        self._chosen.report.add(
            engine=self._kind,
            what=what,
            s=statistics.median(times) / 1e3,
            least=min(times) / 1e3,
            most=max(times) / 1e3,
            note=note,
        )


def _compare(chosen: Options, kind: str, pictures: dict[str, Any]) -> None:
    apart = np.abs(pictures[kind].astype(int) - pictures[REFERENCE])
    note = f"{SHORT} steps: mean {apart.mean():.2f}, largest {apart.max()} of 255"
    chosen.report.add(engine=kind, what=f"against {REFERENCE}", note=note)
    folder = Path(chosen.work) / "pictures"
    folder.mkdir(exist_ok=True)
    for name in (kind, REFERENCE):
        Image.fromarray(pictures[name]).save(folder / f"{chosen.bundle}-{name}.png")
    if apart.mean() > LARGEST_MEAN:
        raise RuntimeError(f"the picture is {apart.mean():.1f} from {REFERENCE}'s on average")


if __name__ == "__main__":
    sys.exit(main())
