"""The baseline's model repository, and which requests of a batch share a pipeline call."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from bench.baselines import CONTROLNETS, MODEL, label_of_equal, report_of, write_repository
from bench.server import DEMO_CHECKPOINT
from bench.trace import SCENARIOS
from tests.fakes import triton_python_backend_utils as pb_utils


@pytest.mark.parametrize("batch", [1, 8])
def test_triton_batches_as_it_is_told(batch: int, tmp_path: Path) -> None:
    write_repository(tmp_path, threads=2, batch=batch)
    config = model_config_pb2.ModelConfig()
    text_format.Parse((tmp_path / MODEL / "config.pbtxt").read_text(), config)
    assert config.max_batch_size == batch
    assert config.HasField("dynamic_batching") == (batch > 1)
    values = {name: value.string_value for name, value in config.parameters.items()}
    assert (values["checkpoint"], values["threads"]) == (str(DEMO_CHECKPOINT), "2")
    assert values["controlnets"] == str(CONTROLNETS)
    compile((tmp_path / MODEL / "1" / "model.py").read_text(), "model.py", "exec")


def test_equal_requests_share_a_pipeline_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", pb_utils)
    from bench.baseline_model import _key

    picture = np.zeros((16, 16, 3), np.uint8)
    plain: dict[str, object] = {
        "steps": 8,
        "guidance": 4.0,
        "loras": ["a"],
        "controls": [],
        "prompt": "x",
        "seed": 1,
    }
    assert _key(plain) == _key(plain | {"prompt": "y", "seed": 2})
    others: list[dict[str, object]] = [
        {"steps": 9},
        {"loras": []},
        {"controls": ["edges"]},
        {"IMAGE": picture},
    ]
    assert len({_key(plain | other) for other in others} | {_key(plain)}) == 5


def test_scenarios_have_reports_of_their_own() -> None:
    assert [report_of(name) for name in SCENARIOS] == [
        "baselines_text",
        "baselines_add-ons",
        "baselines_edits",
        "baselines",
    ]


def test_equal_rates_are_told_apart_if_there_are_several() -> None:
    assert label_of_equal("Tessera", 0.8, [0.8]) == "Tessera, one rate for all"
    assert label_of_equal("Tessera", 0.8, [0.3, 0.8]) == "Tessera, one rate for all, 0.8"
