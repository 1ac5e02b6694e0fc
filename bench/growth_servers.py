"""Growth that shows on a server only: LoRA files, installed ControlNets, size of the picture.

See `bench.growth`.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from bench.server import DEMO_BUNDLE, Server, serving
from bench.soak.watch import look
from tessera_client import Client, Control, Lora

PROMPT = "a red circle"
SIZE_TURNS = 5
Samples = dict[str, list[float]]


def timed(samples: Samples, what: str, call: Callable[..., object], *given: Any) -> None:
    """Append the seconds of a call."""
    began = time.perf_counter()
    call(*given)
    samples[what].append(time.perf_counter() - began)


def memory(samples: Samples, when: str, server: Server) -> None:
    """Append the megabytes that all processes of a server have. Pages that several share count
    once.
    """
    samples[f"memory {when}, MB"].append(round(look(server).memory / 1e6, 1))


def of_loras(count: int, samples: Samples) -> None:
    """Seconds and memory of a server with so many LoRA files."""
    with tempfile.TemporaryDirectory() as name:
        folder = many_loras(Path(name) / "adapters", count)
        began = time.monotonic()
        with serving(DEMO_BUNDLE, Path(name) / "log", f"--adapters={folder}") as server:
            samples["start"].append(time.monotonic() - began)
            memory(samples, "after the start", server)
            with Client(server.grpc, timeout=300) as client:

                def picture(*loras: str) -> Callable[[], object]:
                    used = [Lora(lora) for lora in loras]
                    return lambda: client.generate(PROMPT, steps=2, seed=1, loras=used)

                timed(samples, "picture", picture())
                timed(samples, "first use of a LoRA", picture("style-00001"))
                timed(samples, "second use", picture("style-00001"))
                timed(samples, "first list", client.adapters)
                timed(samples, "second list", client.adapters)
            memory(samples, "at the end", server)


def many_loras(folder: Path, count: int) -> Path:
    """Make a folder with links to the demo's LoRAs."""
    sources = sorted((DEMO_BUNDLE / "adapters").glob("*.safetensors"))
    folder.mkdir()
    for index in range(count):
        (folder / f"style-{index:05}.safetensors").symlink_to(sources[index % len(sources)])
    return folder


def of_controls(count: int, samples: Samples) -> None:
    """Seconds and memory of a server whose bundle has so many ControlNets."""
    with tempfile.TemporaryDirectory() as name:
        bundle, names = many_controls(Path(name) / "bundle", count)
        hint, began = Image.new("RGB", (128, 128)), time.monotonic()
        with serving(bundle, Path(name) / "log") as server:
            samples["start"].append(time.monotonic() - began)
            memory(samples, "after the start", server)
            with Client(server.grpc, timeout=300) as client:

                def picture(*controls: str) -> Callable[[], object]:
                    used = [Control(control, hint) for control in controls]
                    return lambda: client.generate(PROMPT, steps=2, seed=1, controls=used)

                timed(samples, "picture", picture())
                timed(samples, "first use of a ControlNet", picture(names[-1]))
                timed(samples, "second use", picture(names[-1]))
                timed(samples, "description of the bundle", client.bundle)
            memory(samples, "at the end", server)


def many_controls(folder: Path, count: int) -> tuple[Path, list[str]]:
    """Make a bundle like the demo, whose ControlNets all have the files of the demo's first; the
    names of the ControlNets.
    """
    folder.mkdir()
    for path in DEMO_BUNDLE.iterdir():
        if path.name != "bundle.json":
            (folder / path.name).symlink_to(path)
    content = json.loads((DEMO_BUNDLE / "bundle.json").read_text())
    graphs = content["graphs"]
    one, hint = (graphs[f"controlnet_edges{kind}"] for kind in ("", "_hint"))
    graphs = {name: graph for name, graph in graphs.items() if not name.startswith("controlnet_")}
    names = [f"style-{index:03}" for index in range(count)]
    for name in names:
        graphs |= {f"controlnet_{name}": one, f"controlnet_{name}_hint": hint}
    (folder / "bundle.json").write_text(json.dumps(content | {"graphs": graphs}))
    return folder, names


def of_sizes(sides: Sequence[int], samples: dict[int, Samples]) -> None:
    """Seconds of pictures of these sides, by their number of pixels, in turns. Memory is that after
    the first picture of a size and of all smaller ones.

    Args:
        sides: in pixels, in ascending order.
        samples: by number of pixels.
    """
    with (
        tempfile.TemporaryDirectory() as name,
        serving(DEMO_BUNDLE, Path(name) / "log") as server,
        Client(server.grpc, timeout=300) as client,
    ):
        for turn in range(SIZE_TURNS + 1):
            for side in sides:
                began = time.perf_counter()
                client.generate(PROMPT, steps=4, seed=turn, width=side, height=side)
                if turn:
                    samples[side * side]["picture"].append(time.perf_counter() - began)
                else:  # engines prepare for a size with its first picture
                    memory(samples[side * side], "up to this size", server)
