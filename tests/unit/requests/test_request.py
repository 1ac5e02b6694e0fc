"""What is accepted in a request, what is not, and what is said about it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.contract import MAX_SEED, SCHEDULERS
from tessera.errors import InvalidInput
from tessera.requests.job_id import read_job_id
from tessera.requests.request import read_action, read_request
from tests.samples.requests import MANIFEST, inputs


def test_defaults_come_from_the_bundle() -> None:
    request = read_request(inputs(), MANIFEST)
    assert (request.steps, request.guidance, request.scheduler) == (20, 4.0, "euler")
    assert (request.width, request.height) == (128, 128)
    assert request.negative_prompt is None
    assert 0 <= request.seed <= MAX_SEED
    other = read_request(inputs(), MANIFEST)
    assert other.seed != request.seed
    assert other.job_id != request.job_id


@pytest.mark.parametrize("seed", [0, 1, MAX_SEED])
def test_every_seed_counts(seed: int) -> None:
    assert read_request(inputs(SEED=seed), MANIFEST).seed == seed


@pytest.mark.parametrize("guidance", [0.0, 1.0, 7.5, 100.0])
def test_guidance_range(guidance: float) -> None:
    assert read_request(inputs(GUIDANCE=guidance), MANIFEST).guidance == guidance


BAD = {
    "empty prompt": ({"PROMPT": ""}, "PROMPT is ''; accepted: 1 to 2000 characters"),
    "blank prompt": ({"PROMPT": " \n"}, "PROMPT is"),
    "long prompt": ({"PROMPT": "x" * 10_000}, r"\(10000 characters\).*at most 2000"),
    "long negative prompt": ({"NEGATIVE_PROMPT": "x" * 2001}, "NEGATIVE_PROMPT is .*at most 2000"),
    "prompt not UTF-8": ({"PROMPT": b"a\xff"}, "PROMPT is not UTF-8 at byte 1; accepted: at most"),
    "no steps": ({"STEPS": 0}, "STEPS is 0; accepted: an integer from 1 to 1000"),
    "negative steps": ({"STEPS": -5}, "STEPS is -5"),
    "many steps": ({"STEPS": 1001}, "STEPS is 1001; accepted: an integer from 1 to 1000"),
    "many steps of lcm": ({"STEPS": 51, "SCHEDULER": "lcm"}, "from 1 to 50 with SCHEDULER lcm"),
    "guidance NaN": ({"GUIDANCE": float("nan")}, "GUIDANCE is nan; accepted: a number from 0"),
    "guidance infinite": ({"GUIDANCE": float("inf")}, "GUIDANCE is inf"),
    "guidance negative": ({"GUIDANCE": -0.5}, "GUIDANCE is -0.5"),
    "width between": ({"WIDTH": 100}, "WIDTH is 100; accepted: a multiple of 8 from 64 to 256"),
    "width small": ({"WIDTH": 56}, "WIDTH is 56"),
    "height large": ({"HEIGHT": 264}, "HEIGHT is 264"),
    "height negative": ({"HEIGHT": -64}, "HEIGHT is -64"),
    "seed negative": (
        {"SEED": -1},
        "SEED is -1; accepted: an integer from 0 to 9223372036854775807",
    ),
    "scheduler": ({"SCHEDULER": "deis"}, "SCHEDULER is 'deis'; accepted: euler, dpmpp_2m, .* lms "),
    "job id empty": ({"JOB_ID": ""}, "JOB_ID is ''; accepted: 1 to 64 printable ASCII"),
    "job id long": ({"JOB_ID": "x" * 65}, "JOB_ID is"),
    "job id not ASCII": ({"JOB_ID": "jöb"}, "JOB_ID is"),
    "job id control": ({"JOB_ID": "a\x00"}, "JOB_ID is"),
}


@pytest.mark.parametrize(("values", "sentence"), BAD.values(), ids=BAD.keys())
def test_bad_values_are_named_with_what_is_accepted(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence) as caught:
        read_request(inputs(**values), MANIFEST)
    assert caught.value.status == "INVALID_ARG"
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("empty", [{"LORAS": "[]"}, {"CONTROLS": "[]"}], ids=["loras", "controls"])
def test_empty_lists_of_addons_are_fine(empty: dict[str, Any]) -> None:
    given = inputs(JOB_ID="j", SEED=1, **empty)
    assert read_request(given, MANIFEST) == read_request(inputs(JOB_ID="j", SEED=1), MANIFEST)


@given(
    steps=st.integers(-(2**31), 2**31 - 1),
    width=st.integers(-(2**31), 2**31 - 1),
    guidance=st.floats(width=32),
    scheduler=st.sampled_from([*SCHEDULERS, "", "nope"]),
)
def test_what_is_accepted_is_in_range(
    steps: int, width: int, guidance: float, scheduler: str
) -> None:
    values = {"STEPS": steps, "WIDTH": width, "GUIDANCE": guidance, "SCHEDULER": scheduler}
    try:
        request = read_request(inputs(**values), MANIFEST)
    except InvalidInput as error:
        assert error.field in values
        return
    assert 1 <= request.steps <= SCHEDULERS[request.scheduler].max_steps
    assert 64 <= request.width <= 256
    assert request.width % 8 == 0
    assert 0 <= request.guidance <= 100


def test_actions() -> None:
    assert read_action(inputs(ACTION="status"), ("status", "cancel")) == "status"
    with pytest.raises(InvalidInput, match="ACTION is 'stop'; accepted: status, cancel"):
        read_action(inputs(ACTION="stop"), ("status", "cancel"))


def test_a_job_id_may_be_left_out() -> None:
    assert read_job_id({}) == ""
    assert read_job_id(inputs(JOB_ID="my job/1")) == "my job/1"


INFINITE = "9" * 400


@pytest.mark.parametrize("name", ["PROMPT", "NEGATIVE_PROMPT"])
@pytest.mark.parametrize(
    "prompt", [f"((a:0):{INFINITE})", f"b ((a:0):{INFINITE}) (c:2)", f"(a:{INFINITE})", "(a:-11)"]
)
def test_a_part_whose_weight_is_no_accepted_number_is_refused(name: str, prompt: str) -> None:
    with pytest.raises(InvalidInput, match=f"^{name} has a part of weight"):
        read_request(inputs(**{name: prompt, "PROMPT_SYNTAX": "weighted"}), MANIFEST)
    assert read_request(inputs(**{name: "((a:0):10)", "PROMPT_SYNTAX": "weighted"}), MANIFEST)
