"""The baseline's model repository, what its batches do, and what the report and its tables have."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from bench import report
from bench.baseline_server import (
    ALONE,
    CANDIDATES,
    CONTROLNETS,
    USUAL,
    Batching,
    best_of,
    write_repository,
)
from bench.baseline_tables import SIDES, ratio, scenarios
from bench.baselines import EQUAL, OWN, label_of, loads_of, report_of, run_of
from bench.lora_files import write_loras
from bench.replay import Outcome
from bench.server import DEMO_CHECKPOINT
from bench.trace import SCENARIOS, Asked
from tests.fakes import triton_python_backend_utils as pb_utils
from tests.fakes.triton_python_backend_utils import Request

PLAIN: dict[str, Any] = {"steps": 8, "guidance": 4.0, "loras": ["a"], "controls": []}


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module, with the fake backend."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", pb_utils)
    monkeypatch.delitem(sys.modules, "bench.baseline_model", raising=False)
    from bench import baseline_model

    yield baseline_model
    sys.modules.pop("bench.baseline_model", None)


@pytest.mark.parametrize("batching", [ALONE, USUAL, *CANDIDATES], ids=lambda one: one.model)
def test_triton_batches_as_it_is_told(batching: Batching, tmp_path: Path) -> None:
    write_repository(tmp_path, tmp_path / "adapters", batching, threads=2)
    config = model_config_pb2.ModelConfig()
    text_format.Parse((tmp_path / batching.model / "config.pbtxt").read_text(), config)
    assert config.max_batch_size == batching.batch
    assert config.HasField("dynamic_batching") == (batching.batch > 1)
    assert config.dynamic_batching.max_queue_delay_microseconds == 1000 * batching.delay_ms
    values = {name: value.string_value for name, value in config.parameters.items()}
    assert (values["checkpoint"], values["threads"]) == (str(DEMO_CHECKPOINT), "2")
    assert values["controlnets"] == str(CONTROLNETS)
    compile((tmp_path / batching.model / "1" / "model.py").read_text(), "model.py", "exec")


def test_candidates_are_models_of_their_own() -> None:
    assert len({one.model for one in (ALONE, *CANDIDATES)}) == 7


def test_equal_requests_share_a_pipeline_call(model: Any) -> None:
    picture = np.zeros((16, 16, 3), np.uint8)
    plain = PLAIN | {"prompt": "x", "seed": 1}
    assert model._key(plain) == model._key(plain | {"prompt": "y", "seed": 2})
    others: list[dict[str, object]] = [
        {"steps": 9},
        {"loras": []},
        {"controls": ["edges"]},
        {"IMAGE": picture},
    ]
    assert len({model._key(plain | other) for other in others} | {model._key(plain)}) == 5


def request(**values: Any) -> Request:
    content = json.dumps(PLAIN | {"prompt": "x", "seed": 1} | values)
    return Request(REQUEST=np.array([[content.encode()]], object))


def test_each_group_is_answered_when_it_is_drawn_and_alone_in_its_fault(model: Any) -> None:
    """The one with the LoRAs that are fused comes first, though it was sent last."""
    requests = [request(seed=1), request(loras=[], seed=2), request(seed=3), request(loras=["b"])]
    answered: list[list[bool]] = []

    class Drawn(model.TritonPythonModel):  # type: ignore[misc]
        _fused = ("b",)

        def _draw(self, group: Sequence[Mapping[str, Any]]) -> list[Any]:
            answered.append([one.sender.sent is not None for one in requests])
            if group[0]["loras"] == []:
                raise RuntimeError("no")
            return [np.full((8, 8, 3), each["seed"], np.uint8) for each in group]

    assert Drawn().execute(requests) is None
    assert answered == [
        [False, False, False, False],
        [False, False, False, True],
        [True, False, True, True],
    ]
    first, failed, third, _ = (one.sender.sent for one in requests)
    assert first is not None
    assert third is not None
    assert failed is not None
    assert failed.error is not None
    assert "no" in failed.error.message()
    for answer, seed in ((first, 1), (third, 3)):
        assert (answer.arrays()["PICTURE"] == seed).all()


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_a_picture_is_the_same_whatever_was_fused_before(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By diffusers itself; of three LoRAs, two stay loaded."""
    monkeypatch.setattr(model, "KEPT", 2)
    write_loras(tmp_path, ["a", "b", "c"], rank=2)
    parameters = {"checkpoint": DEMO_CHECKPOINT, "controlnets": CONTROLNETS, "threads": 1}
    values = {k: {"string_value": str(v)} for k, v in (parameters | {"adapters": tmp_path}).items()}
    baseline = model.TritonPythonModel()
    baseline.initialize({"model_config": json.dumps({"parameters": values})})

    def drawn(*loras: str) -> Any:
        given = PLAIN | {"prompt": "a red circle", "steps": 1, "seed": 1, "loras": list(loras)}
        return baseline._draw([given])[0].astype(int)

    sets: list[tuple[str, ...]] = [(), ("a",), ("a", "b"), ("c",)]
    first, second = ([drawn(*loras) for loras in order] for order in (sets, sets[::-1]))
    for one, other in zip(first, second[::-1], strict=True):
        assert abs(one - other).max() <= 1  # merged and taken out again in float32
    for one, other in itertools.combinations(first, 2):
        assert abs(one - other).max() > 10


def test_the_least_p95_is_best() -> None:
    figures = {
        Batching(2): {"p95": 2.0, "mean": 1.0},
        Batching(4): {"p95": 1.0, "mean": 0.9},
        Batching(8): {"p95": 1.0, "mean": 0.8},
        Batching(8, 10): {},
    }
    assert best_of(figures) == Batching(8)


def test_loads_are_shares_of_the_own_or_of_the_slowest_capacity() -> None:
    assert loads_of({"a": 4.0, "b": 2.0}, [0.5], [0.5, 0.25]) == {
        (OWN, 0.5): {"a": 2.0, "b": 1.0},
        (EQUAL, 0.5): {"a": 1.0, "b": 1.0},
        (EQUAL, 0.25): {"a": 0.5, "b": 0.5},
    }
    every = itertools.product("ab", (OWN, EQUAL), (0.3, 0.8))
    assert len({label_of({"side": a, "load": b, "share": c}) for a, b, c in every}) == 8


def run(*rounds: Sequence[float], edit: float = 1.0) -> dict[str, Any]:
    """A side's, of so long requests in each round and an edit."""
    outcomes = [
        [
            *(Outcome(Asked(0.0, 8, 1), s) for s in found),
            Outcome(Asked(0.0, 8, 1, template=0), edit),
        ]
        for found in rounds
    ]
    return run_of("a", (OWN, 0.8), 1.0, outcomes, 3.0)


def test_a_run_has_every_latency_and_ratios_have_those_of_rounds() -> None:
    ours, theirs = run([2.0, 1.0], [4.0]), run([3.0], [10.0, 5.0], edit=2.5)
    assert ours["latencies"] == [[2.0, 1.0, 1.0], [4.0, 1.0]]
    assert ours["kinds"]["plain"]["p95_of_rounds"] == [2.0, 4.0]
    assert ratio(theirs, ours) == "2.50 (1.50-2.50)"
    assert ratio(theirs, ours, edits=True) == "2.50 (2.50-2.50)"
    assert ratio(ours, ours) == "1"
    assert ratio(theirs, None) == "-"


def test_a_failure_is_in_the_report() -> None:
    lost = [[Outcome(Asked(0.0, 8, 1), 1.0), Outcome(Asked(0.0, 8, 2), 9.0, None, "lost")]]
    found = run_of("a", (OWN, 0.8), 1.0, lost, 3.0)
    assert (found["latencies"], found["errors"]) == ([[1.0, None]], ["lost"])
    assert found["summary"]["failed"] == 1


def test_scenarios_have_reports_of_their_own() -> None:
    assert [report_of(name) for name in SCENARIOS] == [
        "baselines_text",
        "baselines_add-ons",
        "baselines_edits",
        "baselines",
    ]


def test_a_scenario_has_a_row_for_each_load_with_the_tails_of_all_sides(tmp_path: Path) -> None:
    loads = [(load, share) for load in (OWN, EQUAL) for share in (0.3, 0.95)]
    runs = [
        {
            "side": side,
            "load": load,
            "share": share,
            "summary": {"latency_s": {"p95": number + 1.0}, "good": share},
        }
        for load, share in loads
        for number, side in enumerate(SIDES)
        if (side, load, share) != (SIDES[-1], *loads[-1])
    ]
    results = {"capacity": dict.fromkeys(SIDES, 2.0), "runs": runs}
    with report.elsewhere(tmp_path):
        report.write(report_of("edits"), {}, results, machine={})
        rows = [
            [cell.strip() for cell in line.split("|")[1:-1]] for line in scenarios().split("\n")
        ]
    assert rows[0] == ["scenario", "load: share of capacity", *SIDES]
    assert rows[2][0] == "`python -m bench baselines-text` has not been run on a quiet machine yet."
    assert rows[4] == ["**edits**", "pictures/s, all at once", *["2.00"] * 4]
    tails = ["1.00 s, 30 %", "2.00 s (2.00), 30 %", "3.00 s (3.00), 30 %", "4.00 s (4.00), 30 %"]
    assert rows[5] == ["", "0.3 of its own", *tails]
    assert [row[1] for row in rows[6:]] == [
        "0.95 of its own",
        "0.3 of the slowest one's",
        "0.95 of the slowest one's",
    ]
    assert rows[-1][-1] == "not measured"
