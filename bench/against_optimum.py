"""Pictures against optimum's pipelines around ONNX Runtime and around OpenVINO.

    python3.11 -m venv out/optimum
    out/optimum/bin/pip install "optimum-onnx[onnxruntime]" "optimum-intel[openvino]" diffusers
    python -m bench optimum [--turns 15]

They want other versions than Tessera's, so they have an environment of their own. Each side draws
the same checkpoint's picture in turns, with the same seed: Tessera through Triton over HTTP, the
others in a process of their own (`bench/optimum_side.py`), without a server. These are stopped
(SIGSTOP) while it is not their turn: idle threads of their runtimes spin, which takes the cores
from the others. Writes `bench/results/optimum.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from safetensors.torch import load_file, save_file

from bench import report
from bench.latency import GUIDANCE, PROMPT, scaling
from bench.markdown import NOT_YET, if_measured, markdown, ms, spread
from bench.sampled import quartiles_of
from bench.server import DEMO_BUNDLE, DEMO_CHECKPOINT, ROOT, serving
from bench.turns import in_turn
from tessera_client import Client

TESSERA = "Tessera, over HTTP"
SIDES = {"optimum, ONNX Runtime": "onnxruntime", "optimum, OpenVINO": "openvino"}
FOLDER = ROOT / "out" / "bench-optimum"
PYTHON = ROOT / "out" / "optimum" / "bin" / "python"
WARM = 2
"""Pictures of each side that do not count."""
Draw = Callable[[int], tuple[float, Any]]
"""Seed -> milliseconds and the picture (h, w, 3)."""
console = Console(highlight=False)


def main() -> None:
    """Measure, print the table, write the report."""
    parser = argparse.ArgumentParser(description="pictures against optimum's pipelines")
    parser.add_argument("--python", type=Path, default=PYTHON, help="of such an environment")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=report.path_of("optimum"))
    options = parser.parse_args()
    machine = report.describe_machine(options.threads) | {"scaling": scaling(options.threads)}
    FOLDER.mkdir(parents=True, exist_ok=True)
    versions: dict[str, Any] = {}
    checkpoint = older(DEMO_CHECKPOINT, FOLDER / "checkpoint")
    with contextlib.ExitStack() as stack:
        sides = {TESSERA: stack.enter_context(_tessera(options.steps, options.threads))}
        for name, kind in SIDES.items():
            # -I: without this folder on its path, whose modules have names of others
            line = [options.python, "-I", ROOT / "bench" / "optimum_side.py", kind]
            sides[name], versions[name] = stack.enter_context(
                side([*line, checkpoint, options.threads], options.steps)
            )
        found = measured(sides, options.turns)
    results = {"versions": versions, **found}
    settings = {"turns": options.turns, "steps": options.steps, "guidance": GUIDANCE}
    file = report.write("optimum", settings, results, machine=machine, out=options.out)
    console.print(_table(results))
    console.print(f"written: {file}")


def measured(sides: dict[str, Draw], turns: int) -> dict[str, Any]:
    """Milliseconds of each side's pictures, and how far those of the last turn are from Tessera's,
    of 255.
    """
    samples: dict[str, list[float]] = {name: [] for name in sides}
    pictures: dict[str, Any] = {}
    for number in track(range(turns + WARM), description="pictures", console=console):
        for name in in_turn(list(sides), number):
            took, pictures[name] = sides[name](number)
            samples[name].append(round(took, 2))
    ours = pictures[TESSERA].astype(np.int16)
    return {
        "samples_ms": {name: of[WARM:] for name, of in samples.items()},
        "largest_difference": {
            name: int(np.abs(ours - picture).max())
            for name, picture in pictures.items()
            if name != TESSERA
        },
    }


def older(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint as transformers 4 reads it: a tokenizer of two files, and a text encoder whose
    tensors have `text_model.` in their names. Without that it would be random weights, with a
    warning. The rest is links.

    Args:
        checkpoint: a folder in diffusers' form, whose tokenizer has one file.
        folder: is emptied.
    """
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "tokenizer").mkdir(parents=True)
    for path in checkpoint.iterdir():
        if path.name not in ("tokenizer", "text_encoder"):
            (folder / path.name).symlink_to(path.resolve())
    model = json.loads((checkpoint / "tokenizer" / "tokenizer.json").read_text())["model"]
    merges = "\n".join(["#version: 0.2", *map(" ".join, model["merges"]), ""])
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "tokenizer" / "merges.txt").write_text(merges)
    config = json.loads((checkpoint / "tokenizer" / "tokenizer_config.json").read_text())
    del config["backend"]
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "text_encoder").mkdir()
    own = checkpoint / "text_encoder"
    tensors = load_file(own / "model.safetensors")
    save_file(
        {f"text_model.{name}": tensor for name, tensor in tensors.items()},
        folder / "text_encoder" / "model.safetensors",
        metadata={"format": "pt"},
    )
    shutil.copy(own / "config.json", folder / "text_encoder")
    return folder


@contextlib.contextmanager
def _tessera(steps: int, threads: int) -> Iterator[Draw]:
    with (
        serving(DEMO_BUNDLE, FOLDER / "log", f"--threads={threads}") as server,
        Client(server.http, timeout=300) as client,
    ):

        def draw(seed: int) -> tuple[float, Any]:
            began = time.perf_counter()
            result = client.generate(PROMPT, seed=seed, steps=steps, guidance=GUIDANCE)
            return 1e3 * (time.perf_counter() - began), np.asarray(result.image)

        yield draw


@contextlib.contextmanager
def side(line: Sequence[Any], steps: int) -> Iterator[tuple[Draw, dict[str, str]]]:
    """A process of `bench/optimum_side.py`, when it has drawn its first picture, and its versions.

    Raises:
        RuntimeError: it ended.
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen([str(part) for part in line], **pipes) as process,  # type: ignore[call-overload]
    ):
        file = Path(folder) / "picture.npy"
        request = {"prompt": PROMPT, "steps": steps, "guidance": GUIDANCE, "file": str(file)}

        def answer() -> dict[str, Any]:
            text = process.stdout.readline()
            if not text:
                raise RuntimeError(f"{line} ended with status {process.wait()}")
            return dict(json.loads(text))

        def draw(seed: int) -> tuple[float, Any]:
            process.send_signal(signal.SIGCONT)
            print(json.dumps({**request, "seed": seed}), file=process.stdin, flush=True)
            seconds: float = answer()["seconds"]
            process.send_signal(signal.SIGSTOP)
            return 1e3 * seconds, np.load(file)

        versions = answer()
        process.send_signal(signal.SIGSTOP)
        try:
            yield draw, versions
        finally:
            process.send_signal(signal.SIGCONT)
            process.stdin.close()


def table() -> str:
    """Each side's picture."""
    if (content := if_measured("optimum")) is None:
        return NOT_YET.format("optimum")
    return _table(content["results"])


def _table(results: dict[str, Any]) -> str:
    ours = results["samples_ms"][TESSERA]
    rows = [[TESSERA, ms(quartiles_of(ours)[1]), "", "", ""]]
    for name, versions in results["versions"].items():
        theirs = results["samples_ms"][name]
        ratios = quartiles_of([a / b for a, b in zip(ours, theirs, strict=True)])
        rows.append(
            [
                name,
                ms(quartiles_of(theirs)[1]),
                spread(ratios, 2),
                str(results["largest_difference"][name]),
                ", ".join(f"{package} {version}" for package, version in versions.items()),
            ]
        )
    head = ("side", "a picture", "Tessera / it", "largest difference, of 255", "versions")
    return markdown(head, rows)
