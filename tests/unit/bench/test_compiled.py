"""What `torch.compile` brings: calls of both sides, and the table."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import compiled
from bench.compiled import COMPILED, EAGER, TESSERA, WARM, _table, called


class Network:
    """Adds a number to its first input."""

    config = SimpleNamespace(in_channels=4, cross_attention_dim=8)

    def __init__(self, added: float = 0.0) -> None:
        self.added = added
        self.calls: list[tuple[int, ...]] = []

    def __call__(self, sample: torch.Tensor, *others: Any, **options: Any) -> tuple[torch.Tensor]:
        assert options == {"return_dict": False}
        self.calls.append(tuple(sample.shape))
        return (sample + self.added,)


def test_both_sides_get_the_same_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    eager, faster = Network(), Network(added=0.5)

    def compile_(network: Network, *, dynamic: bool) -> Network:
        assert network is eager
        assert not dynamic  # each number of rows has a program of its own
        return faster

    monkeypatch.setattr(torch, "compile", compile_)
    found = called(eager, 6, turns=3)
    shape = (6, 4, compiled.SIDE, compiled.SIDE)
    assert eager.calls == [shape] * (3 + WARM + 1)  # the last one is compared
    assert faster.calls == [shape] * (1 + 3 + WARM + 1)  # the first one compiles
    assert found["rows"] == 6
    assert found["largest_difference"] == pytest.approx(0.5)
    assert {name: len(of) for name, of in found["samples_ms"].items()} == {EAGER: 3, COMPILED: 3}


def test_the_ratio_is_of_turns() -> None:
    samples = {EAGER: [100.0, 200.0, 50.0], COMPILED: [90.0, 100.0, 60.0]}
    row = {"rows": 2, "first_call_s": 64.6, "largest_difference": 0.0, "samples_ms": samples}
    pictures = {TESSERA: [70.0], EAGER: [100.0], COMPILED: [95.0]}
    assert _table({"pictures_ms": pictures, "calls": [row]}).splitlines()[2:] == [
        "| a picture | 70 ms | 100 ms | 95 ms | 0.95 (0.95-0.95) | 0.74 (0.74-0.74) | |",
        "| UNet, 2 rows | | 100 ms | 90 ms | 0.90 (0.70-1.05) | | 65 s |",
    ]
