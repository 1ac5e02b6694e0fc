"""The model repository says what the contract says, and its parts fit together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

import tessera
from tessera import contract
from tessera.contract.limits import DEFAULT_PRIORITY, PRIORITIES
from tessera.requests.framing import GEOMETRY
from tessera_gateway.settings import GatewaySettings

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = ROOT / "model_repository"
MODELS = sorted(p.name for p in REPOSITORY.iterdir())


def config(name: str) -> Any:
    text = (REPOSITORY / name / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def specs(tensors: Any) -> list[contract.TensorSpec]:
    names = model_config_pb2.DataType.Name
    return [
        contract.TensorSpec(
            t.name,
            {"TYPE_STRING": "BYTES"}.get(names(t.data_type), names(t.data_type)[5:]),
            tuple(t.dims),
            getattr(t, "optional", False),
        )
        for t in tensors
    ]


@pytest.mark.parametrize("name", contract.MODELS)
def test_public_models_take_and_give_what_the_contract_says(name: str) -> None:
    assert specs(config(name).input) == list(contract.MODELS[name].inputs)
    assert specs(config(name).output) == list(contract.MODELS[name].outputs)


ENSEMBLES = [name for name in MODELS if config(name).platform == "ensemble"]


def test_encode_takes_what_edit_takes_and_a_generation_has_no_mask() -> None:
    encode, edit = specs(config("encode").input), specs(config("edit").input)
    assert [t for t in edit if t.name not in GEOMETRY] == encode


@pytest.mark.parametrize("name", ENSEMBLES)
def test_every_tensor_of_an_ensemble_has_a_source_and_a_sink(name: str) -> None:
    ensemble = config(name)
    known = {t.name: t for t in ensemble.input}
    used = set[str]()
    for step in ensemble.ensemble_scheduling.step:
        member = config(step.model_name)
        inputs, outputs = ({t.name: t for t in side} for side in (member.input, member.output))
        assert {n for n, t in inputs.items() if not t.optional} <= set(step.input_map)
        assert set(step.input_map) <= set(inputs)
        used |= set(step.input_map.values())
        assert set(step.output_map) <= set(outputs)
        for inner, outer in step.input_map.items():
            assert known[outer].data_type == inputs[inner].data_type
            assert list(known[outer].dims) == list(inputs[inner].dims)
        known |= {outer: outputs[inner] for inner, outer in step.output_map.items()}
    assert {t.name for t in ensemble.output} <= set(known)
    assert {t.name for t in ensemble.input} <= used
    both = {t.name for t in ensemble.input} & {t.name for t in ensemble.output}
    assert not both, "Triton would answer with the input"


@pytest.mark.parametrize("name", ENSEMBLES)
def test_an_ensembles_batch_is_not_larger_than_its_members(name: str) -> None:
    ensemble = config(name)
    for step in ensemble.ensemble_scheduling.step:
        assert config(step.model_name).max_batch_size >= ensemble.max_batch_size


@pytest.mark.parametrize("name", ENSEMBLES)
def test_no_sequence_model_is_a_member_of_an_ensemble(name: str) -> None:
    members = {step.model_name for step in config(name).ensemble_scheduling.step}
    assert not [m for m in members if config(m).HasField("sequence_batching")]


def test_denoise_has_room_for_whatever_render_and_edit_hold() -> None:
    """More than it has slots: for requests that wait for ControlNets, or for a slot."""
    holding = {name: config(name).instance_group for name in ("render", "edit")}
    processes = {name: sum(g.count for g in groups) for name, groups in holding.items()}
    denoise = config("denoise")
    assert processes["render"] == int(denoise.parameters["slots"].string_value) + 4
    assert denoise.max_batch_size == processes["render"] + processes["edit"]
    assert denoise.max_batch_size == denoise.sequence_batching.oldest.max_candidate_sequences
    assert denoise.sequence_batching.iterative_sequence


def test_render_hands_denoise_its_inputs_and_one_more() -> None:
    render, denoise = specs(config("render").input), specs(config("denoise").input)
    assert denoise[: len(render)] == render
    assert [t.name for t in denoise[len(render) :]] == ["QUEUED_TICK"]
    assert specs(config("render").output) == specs(config("denoise").output)


@pytest.mark.parametrize("name", ["edit", "render"])
def test_a_request_leaves_the_queues_when_its_timeout_is_over(name: str) -> None:
    policy = config(name).dynamic_batching.default_queue_policy
    assert policy.allow_timeout_override
    assert policy.default_timeout_microseconds >= 24 * 3600e6, "longer ones are cut to that"
    assert policy.timeout_action == model_config_pb2.ModelQueuePolicy.REJECT


def test_edits_that_are_not_on_the_board_yet_are_few() -> None:
    """Nothing counts the memory of their bodies."""
    edits = config("edit").dynamic_batching.default_queue_policy.max_queue_size
    assert edits * GatewaySettings.max_body <= 2.1e9


@pytest.mark.parametrize("name", MODELS)
def test_model_files_only_re_export(name: str) -> None:
    path = REPOSITORY / name / "1" / "model.py"
    if config(name).platform == "ensemble":
        assert not path.exists()
        return
    text = path.read_text()
    assert f"from tessera.triton.{name} import TritonPythonModel" in text
    assert len(text.splitlines()) <= 10


def test_the_version_is_said_once_and_everywhere_the_same() -> None:
    assert f'version = "{tessera.__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert f"## [{tessera.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("name", ["render", "edit"])
def test_every_queue_knows_the_priorities(name: str) -> None:
    batching = config(name).dynamic_batching
    assert batching.priority_levels == PRIORITIES
    assert batching.default_priority_level == DEFAULT_PRIORITY
