"""Each model's process imports only what it needs: the start of a server is mostly imports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FAKES = Path(__file__).resolve().parents[2] / "fakes"
HEAVY = (
    "torch",
    "torch._dynamo",
    "diffusers",
    "diffusers.models",
    "diffusers.pipelines",
    "transformers",
    "accelerate",
    "peft",
    "tokenizers",
    "onnx",
    "onnxruntime",
    "tensorrt",
    "cv2",
    "scipy",
)
LIGHT: set[str] = set()
ALLOWED: dict[str, set[str]] = {
    "adapters": LIGHT,
    "controlnet": {"torch"},
    "decode": {"torch"},
    "denoise": {"torch", "diffusers", "onnx"},
    "edit": LIGHT,
    "encode": {"torch", "tokenizers"},
    "jobs": LIGHT,
    "render": LIGHT,
    "serving": LIGHT,
    "templates": LIGHT,
}
ENGINE = {"torch", "onnx", "onnxruntime"}
"""What opening ONNX Runtime's engine adds."""


def imported(code: str) -> set[str]:
    """Which of `HEAVY` a fresh Python has after running code."""
    path = ":".join([str(FAKES), *filter(None, sys.path)])
    code += f"\nimport sys, json; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": path}
    )
    assert ended.returncode == 0, ended.stderr
    return set(json.loads(ended.stdout.splitlines()[-1]))


@pytest.mark.parametrize("model", ALLOWED)
def test_a_model_imports_what_it_needs(model: str) -> None:
    assert imported(f"import tessera.triton.{model}") == ALLOWED[model]


def test_every_model_is_in_the_list() -> None:
    here = Path(__file__).resolve().parents[3] / "python_backend" / "tessera" / "triton"
    assert {p.stem for p in here.glob("*.py")} - {
        "__init__",
        "controls",
        "ending",
        "handing",
        "metrics",
        "pb",
        "step_metrics",
    } == set(ALLOWED)


def test_opening_an_engine_needs_no_networks() -> None:
    assert imported("import tessera.engines.onnxruntime") == ENGINE


def test_the_launcher_is_light() -> None:
    assert imported("import tessera.serve.cli") == LIGHT


def test_loras_are_read_without_networks() -> None:
    """The first list of LoRAs, and `encode`'s and `denoise`'s adapters."""
    for module in ("overview", "text", "switch"):
        found = imported(f"import tessera.adapters.{module}")
        assert found <= {"torch", "diffusers", "onnx"}, module


def test_diffusers_is_imported_by_one_thread_of_templates_at_a_time() -> None:
    """Else the other one may get a module without its classes, and keep it."""
    done = imported(
        "import builtins, contextlib, threading\n"
        "from tessera.triton.templates import TritonPythonModel\n"
        "model, plain, held = TritonPythonModel(), builtins.__import__, set()\n"
        "model._importing = threading.Lock()\n"
        "def watched(name, *more, **options):\n"
        "    held.update([model._importing.locked()] if name == 'diffusers' else [])\n"
        "    return plain(name, *more, **options)\n"
        "builtins.__import__ = watched\n"
        "with contextlib.suppress(AttributeError):  # it has no bundle\n"
        "    model._recorder\n"
        "assert held == {True}, held"
    )
    assert "diffusers" in done
