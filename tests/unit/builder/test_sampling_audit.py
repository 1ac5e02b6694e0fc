"""Every field of a scheduler config is decided about, and configs that no sampler is for are
refused by name.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
from diffusers import schedulers
from diffusers.schedulers import KarrasDiffusionSchedulers

from tessera.contract import SCHEDULERS
from tessera.errors import BundleError
from tessera_build.checkpoint import open_checkpoint
from tessera_build.sampling_audit import CLASSES, FIELDS, check_sampling


@cache
def parameters() -> dict[str, set[str]]:
    """Of the constructor of each scheduler, by their source: some cannot be imported here."""
    found = {}
    for path in Path(schedulers.__file__).parent.glob("scheduling_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                for method in node.body:
                    if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                        found[node.name] = {argument.arg for argument in method.args.args[1:]}
    return found


def fields_of(kinds: Collection[str]) -> set[str]:
    return set().union(*(parameters()[kind] for kind in kinds))


def test_the_table_has_every_field_of_the_classes_and_no_other() -> None:
    assert set(FIELDS) == fields_of(CLASSES)


def test_a_field_that_is_taken_out_of_the_table_is_missed() -> None:
    for field in FIELDS:
        assert fields_of(CLASSES) - (set(FIELDS) - {field}) == {field}


def test_the_classes_are_those_of_samplers_and_of_configs_that_fit_them() -> None:
    assert {spec.cls for spec in SCHEDULERS.values()} <= set(CLASSES)
    assert {scheduler.name for scheduler in KarrasDiffusionSchedulers} <= set(CLASSES)


@pytest.mark.parametrize("kind", CLASSES)
def test_defaults_are_accepted(kind: str) -> None:
    given = inspect.signature(getattr(diffusers, kind).__init__).parameters
    check_sampling(kind, {name: p.default for name, p in given.items() if name != "self"})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prediction_type", "flow_prediction"),
        ("use_flow_sigmas", True),
        ("use_dynamic_shifting", True),
        ("shift_terminal", 0.1),
    ],
)
def test_values_that_no_sampler_is_for_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(BundleError, match=f"the scheduler has {field} .*; accepted: "):
        check_sampling("UniPCMultistepScheduler", {field: value})


def test_a_checkpoint_of_flow_matching_is_refused(copy: Path) -> None:
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(copy / "scheduler")
    index = copy / "model_index.json"
    text = index.read_text().replace("PNDMScheduler", "FlowMatchEulerDiscreteScheduler")
    index.write_text(text)
    with pytest.raises(BundleError, match="is of class FlowMatchEulerDiscreteScheduler; accepted"):
        open_checkpoint(copy)
