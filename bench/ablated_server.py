"""`tessera-serve` with one of its mechanisms taken out, for `bench.ablations`.

    python -m bench.ablated_server ABLATION BUNDLE [options of tessera-serve]

Serves a copy of the model repository whose `denoise` is one of `bench.ablated_models`. So the
product has no options for what nobody should choose.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from bench.server import ROOT
from tessera.serve import cli, launch
from tessera.serve.tritonserver import model_repository

_MODEL = """import sys

sys.path.insert(0, {root!r})

from bench.ablated_models import ABLATIONS

TritonPythonModel = ABLATIONS[{name!r}]()
"""


def write_repository(folder: Path, name: str) -> Path:
    """A model repository whose `denoise` lacks what an ablation takes out."""
    repository = folder / "model_repository"
    shutil.copytree(model_repository(), repository)
    model = repository / "denoise" / "1" / "model.py"
    model.write_text(_MODEL.format(root=str(ROOT), name=name))
    return repository


def main() -> None:
    """Serve until a signal ends it."""
    name = sys.argv.pop(1)
    with tempfile.TemporaryDirectory() as folder:
        repository = write_repository(Path(folder), name)
        launch.model_repository = lambda: repository  # type: ignore[attr-defined]
        cli.main()


if __name__ == "__main__":
    main()
