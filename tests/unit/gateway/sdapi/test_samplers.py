"""Samplers and schedulers by their names in front ends."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tessera.contract import SCHEDULERS
from tessera_gateway.errors import ApiError
from tessera_gateway.sdapi.samplers import names_of, samplers, scheduler_of, schedulers

USUAL = "dpmpp_2m_karras"
"""Of the bundle."""
READ = [
    (None, None, None),
    ("", "automatic", None),
    ("Automatic", None, None),
    (None, "Karras", "dpmpp_2m_karras"),
    ("", "Exponential", "dpmpp_2m_exponential"),
    ("Automatic", "normal", "dpmpp_2m"),
    ("Euler", None, "euler"),
    ("Euler a", "Automatic", "euler_ancestral"),
    ("k_euler_a", "automatic", "euler_ancestral"),
    ("DDIM", "normal", "ddim"),
    ("UniPC", "Uniform", "unipc"),
    ("LCM", "simple", "lcm"),
    ("DPM++ 2M", None, "dpmpp_2m_karras"),
    ("DPM++ 2M", "Automatic", "dpmpp_2m_karras"),
    ("DPM++ 2M", "Uniform", "dpmpp_2m"),
    ("DPM++ 2M", "Karras", "dpmpp_2m_karras"),
    ("DPM++ 2M Karras", None, "dpmpp_2m_karras"),
    ("dpm++ 2m karras", "Automatic", "dpmpp_2m_karras"),
    ("DPM++ SDE Karras", None, "dpmpp_sde_karras"),
    ("DPM++ 2M SDE", "Automatic", "dpmpp_2m_sde_exponential"),
    ("DPM++ 2M SDE Exponential", None, "dpmpp_2m_sde_exponential"),
    ("DPM2", None, "kdpm2_karras"),
    ("Heun", None, "heun"),
    ("Euler", "SGM Uniform", "euler_trailing"),
    ("k_lms", "Beta", "lms_beta"),
    ("PLMS", None, "pndm"),
    ("TCD", None, "tcd"),
]


@pytest.mark.parametrize(("sampler", "scheduler", "ours"), READ)
def test_names(sampler: str | None, scheduler: str | None, ours: str | None) -> None:
    assert scheduler_of(sampler, scheduler, SCHEDULERS, USUAL) == ours


@pytest.mark.parametrize(
    ("sampler", "scheduler", "sentence"),
    [
        ("DPM fast", None, "sampler_name is 'DPM fast'; accepted: DPM++ 2M, DPM++ SDE, DPM"),
        ("DDIM", "Karras", "scheduler is 'Karras'; accepted: automatic, uniform, sgm_uniform with"),
        (None, "polyexponential", "scheduler is 'polyexponential'; accepted: automatic, uniform"),
        ("Automatic", "x", "scheduler is 'x'; accepted: automatic, uniform, karras"),
        ("DDIM Karras", None, "scheduler is 'DDIM Karras'; accepted: automatic, uniform, sgm_"),
        (
            "Euler",
            "polyexponential",
            "scheduler is 'polyexponential'; accepted: automatic, uniform, karras",
        ),
    ],
)
def test_what_is_not_here(sampler: str | None, scheduler: str | None, sentence: str) -> None:
    with pytest.raises(ApiError) as caught:
        scheduler_of(sampler, scheduler, SCHEDULERS, USUAL)
    assert sentence in str(caught.value)


def test_the_usual_sampler_may_not_go_with_a_scheduler() -> None:
    with pytest.raises(ApiError, match=r"scheduler is 'Karras'; accepted: automatic, .* with DDIM"):
        scheduler_of(None, "Karras", SCHEDULERS, "ddim")


def test_a_bundle_may_have_fewer() -> None:
    """Networks of Karras et al. have their own samplers, which are for no others."""
    edm = [name for name, spec in SCHEDULERS.items() if spec.edm]
    assert [each["name"] for each in samplers(edm)] == ["EDM Euler", "EDM DPM++ 2M"]
    usual = [name for name in SCHEDULERS if name not in edm]
    assert not {"EDM Euler", "EDM DPM++ 2M"} & {each["name"] for each in samplers(usual)}
    with pytest.raises(ApiError, match="sampler_name is 'Euler'; accepted: EDM Euler, EDM DPM"):
        scheduler_of("Euler", None, edm, USUAL)
    assert scheduler_of("DPM++ 2M", None, ["dpmpp_2m"], USUAL) == "dpmpp_2m"
    with pytest.raises(ApiError, match=r"accepted: automatic, uniform with DPM\+\+ 2M"):
        scheduler_of("DPM++ 2M", "Karras", ["dpmpp_2m"], USUAL)


@pytest.mark.parametrize("ours", SCHEDULERS)
def test_every_scheduler_has_names_that_lead_to_it(ours: str) -> None:
    sampler, scheduler = names_of(ours)
    assert scheduler_of(sampler, scheduler, SCHEDULERS, USUAL) == ours


def test_all_of_the_lists_can_be_chosen() -> None:
    for sampler in samplers(SCHEDULERS):
        for name in (sampler["name"], *sampler["aliases"]):
            assert scheduler_of(name, "automatic", SCHEDULERS, USUAL)
    for scheduler in schedulers():
        for name in (scheduler["name"], scheduler["label"], *scheduler["aliases"]):
            assert scheduler_of("DPM++ 2M", name, SCHEDULERS, USUAL)


PAGE = Path(__file__).resolve().parents[4] / "docs" / "user" / "sdapi.md"
ROW = re.compile(r"^\| ([\w+ ]+?) \| `(\w+)` \| ([\w, ]+) \|$", re.MULTILINE)
ENDS = {"uniform": "", "sgm_uniform": "_trailing"}


def test_docs_have_every_sampler() -> None:
    rows = ROW.findall(PAGE.read_text().split("## Samplers and schedulers")[1])
    documented = set()
    for sampler, base, ways in rows:
        names = [base + ENDS.get(way, f"_{way}") for way in ways.split(", ")]
        for way, ours in zip(ways.split(", "), names, strict=True):
            assert scheduler_of(sampler, way, SCHEDULERS, USUAL) == ours
        assert scheduler_of(sampler, "automatic", SCHEDULERS, USUAL) == names[0]
        documented |= set(names)
    assert documented == set(SCHEDULERS)
    assert [sampler for sampler, *_ in rows] == [each["name"] for each in samplers(SCHEDULERS)]
