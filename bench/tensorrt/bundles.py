"""Makes a bundle as a user would, with `tessera-build`: the demo's, or one of a checkpoint with
random weights in a published configuration.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.gpu import networks
from bench.random_bundle import pipeline_of, write_random_bundle
from bench.tensorrt.options import DEMO, Options, options
from tessera.manifest import read_manifest

BUILD = (sys.executable, "-c", "from tessera_build.cli import main; main()")
STEPS = 30


def main(arguments: Sequence[str] | None = None) -> int:
    """A row for what was made and how long it took."""
    chosen = options(arguments)
    chosen.work.mkdir(parents=True, exist_ok=True)
    chosen.attempt("bundle", lambda: _bundle(chosen))
    return chosen.status()


def _bundle(chosen: Options) -> None:
    began = time.monotonic()
    if chosen.bundle == DEMO:
        _run("demo", "--out", str(chosen.folder))
    elif not (chosen.folder / "bundle.json").exists():
        with tempfile.TemporaryDirectory(dir=chosen.work) as name:
            checkpoint = random_checkpoint(chosen, Path(name))
            _run("bundle", str(checkpoint), "--out", str(chosen.folder), f"--steps={STEPS}")
    manifest = read_manifest(chosen.folder)
    size = sum(entry.bytes for entry in manifest.files.values())
    note = f"{manifest.variant}, {len(manifest.graphs)} graphs, {size / 1e9:.2f} GB"
    chosen.report.add(what="bundle", s=time.monotonic() - began, note=note)


def random_checkpoint(chosen: Options, folder: Path) -> Path:
    """Write a diffusers checkpoint with random weights; returns its folder."""
    size = networks.TINY_SIZE if chosen.tiny else networks.SIZES[chosen.bundle]
    configs = networks.configs(chosen.bundle, tiny=chosen.tiny)
    weights, checkpoint = folder / "weights", folder / "checkpoint"
    write_random_bundle(weights, chosen.bundle, configs, max_size=size)
    pipeline_of(weights).save_pretrained(checkpoint)
    shutil.rmtree(weights)
    return checkpoint


def _run(*words: str) -> None:
    done = subprocess.run([*BUILD, *words], capture_output=True, text=True)
    print(done.stdout + done.stderr)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RuntimeError(f"tessera-build {words[0]} ended with {done.returncode}: {last}")


if __name__ == "__main__":
    sys.exit(main())
