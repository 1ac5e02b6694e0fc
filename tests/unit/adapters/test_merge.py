"""Adapter sets into engines and out again, with nothing left behind."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tessera.adapters.merge import BASE, AdapterSet, Patchable, Patcher, merge
from tessera.adapters.store import Adapter
from tessera.adapters.updates import LowRank, Update
from tessera.engines.base import Engine
from tessera.engines.onnxruntime import OnnxRuntimeEngine
from tessera.engines.torch import TorchEngine
from tessera.errors import InternalError, InvalidInput, Unavailable
from tessera.networks.modules import GraphModule
from tessera.plan import AdapterUse
from tessera_build.export import Signature, export_graph
from tests.fakes.engine import FakeEngine

NAMES = ("conv.weight", "first.weight", "point.weight", "second.weight")


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3)
        self.point = torch.nn.Conv2d(8, 8, 1)
        self.first = torch.nn.Linear(8, 16)
        self.second = torch.nn.Linear(16, 5, bias=False)


class Wrapped(GraphModule):
    inputs, outputs = ("x",), ("y",)
    conv: torch.nn.Conv2d
    point: torch.nn.Conv2d
    first: torch.nn.Linear
    second: torch.nn.Linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.point(self.conv(x)).relu().mean((2, 3))
        out: torch.Tensor = self.second(self.first(hidden).relu())
        return out


def network() -> Wrapped:
    torch.manual_seed(0)
    return Wrapped(Network()).eval()


def adapter(name: str, seed: int, names: tuple[str, ...] = NAMES, rank: int = 2) -> Adapter:
    """A random LoRA for the network."""
    torch.manual_seed(seed)
    weights = dict(network().named_parameters())
    updates: dict[str, Update] = {}
    for target in names:
        shape = weights[target].shape
        up = torch.randn(shape[0], rank, *[1] * (len(shape) - 2))
        updates[target] = LowRank(torch.randn(rank, *shape[1:]) * 0.3, up, 0.5)
    return Adapter(name, name, "peft", (rank, rank), {"unet": len(names)}, {"unet": updates})


ADAPTERS = {
    "a": adapter("a", 1),
    "b": adapter("b", 2, NAMES[:2], rank=3),
    "c": adapter("c", 3, NAMES[1:]),
}


def load(use: AdapterUse) -> Adapter:
    return ADAPTERS[use.name]


def wanted(*chosen: tuple[str, float]) -> AdapterSet:
    return tuple(AdapterUse(name, name, weight) for name, weight in chosen)


def patcher(engine: Engine, *, budget: int = 0) -> Patcher:
    base = {n: p.detach().clone() for n, p in network().named_parameters()}
    # as a graph lies in memory whose linear layers are transposed
    base = {n: w.T.contiguous().T if w.ndim == 2 else w for n, w in base.items()}
    return Patcher("unet", [Patchable(engine, frozenset(NAMES), base.__getitem__)], budget=budget)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, list[int]]]]:
    path = tmp_path_factory.mktemp("graph") / "network.onnx"
    signature = Signature((torch.randn(2, 3, 8, 8),), ("x",), ("y",), ({0: torch.export.Dim.AUTO},))
    return path, export_graph(network(), signature, path)


@pytest.fixture(params=["torch", "onnxruntime"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    if request.param == "torch":
        yield TorchEngine(network())
        return
    path, layout = request.getfixturevalue("graph")
    yield OnnxRuntimeEngine(path, layout=layout, threads=1, refittable=True)


def run(engine: Engine) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return engine.run({"x": torch.randn(2, 3, 8, 8, generator=generator)})["y"].clone()


@torch.no_grad()
def expected(chosen: AdapterSet) -> torch.Tensor:
    """Term by term, in float64, put into a network of torch."""
    module = network()
    for use in chosen:
        for name, update in ADAPTERS[use.name].updates["unet"].items():
            weight = module.get_parameter(name)
            assert isinstance(update, LowRank)
            product = update.up.double().flatten(1) @ update.down.double().flatten(1)
            weight.add_((use.weight * update.scale * product).reshape(weight.shape).float())
    return run(TorchEngine(module))


@pytest.mark.parametrize(
    "chosen",
    [[("a", 1.0)], [("b", -0.7)], [("a", 0.5), ("b", 2.0)], [("a", 1.0), ("b", 1.0), ("c", -3.0)]],
    ids=["one", "negative", "two", "three"],
)
def test_updates_add_up_without_cross_terms(
    engine: Engine, chosen: list[tuple[str, float]]
) -> None:
    patcher(engine).apply(wanted(*chosen), load)
    torch.testing.assert_close(run(engine), expected(wanted(*chosen)), atol=1e-5, rtol=1e-5)


def test_a_thousand_switches_leave_no_residue(engine: Engine) -> None:
    rng = random.Random(0)
    before = run(engine)
    switching = patcher(engine)
    seen: dict[AdapterSet, torch.Tensor] = {BASE: before}
    quick = ["a", "b", "c"] if isinstance(engine, TorchEngine) else ["linear"]
    ADAPTERS["linear"] = adapter("linear", 4, NAMES[1:])  # no session is opened again for these
    for _ in range(1000):
        names = rng.sample(quick, rng.randint(0, len(quick)))
        chosen = wanted(*((name, rng.choice([-1.0, 0.3, 2.0])) for name in sorted(names)))
        switching.apply(chosen, load)
        assert torch.equal(run(engine), seen.setdefault(chosen, run(engine)))
    assert len(seen) > 3
    switching.apply(BASE, load)
    assert torch.equal(run(engine), before)
    if isinstance(engine, TorchEngine):
        for name, weight in network().named_parameters():
            assert torch.equal(engine._module.get_parameter(name), weight)
    else:
        assert isinstance(engine, OnnxRuntimeEngine)
        untouched = OnnxRuntimeEngine(engine._graph, layout=engine._layout, refittable=True)
        for name, value in untouched._bound.items():
            assert (engine._bound[name].numpy() == value.numpy()).all()


def test_only_touched_weights_are_replaced_and_restored() -> None:
    fake = FakeEngine(lambda inputs: {})
    switching = patcher(fake)
    switching.apply(wanted(("b", 1.0)), load)
    switching.apply(wanted(("c", 1.0)), load)
    switching.apply(BASE, load)
    switching.apply(BASE, load)
    assert (
        [sorted(refit) for refit in fake.refits]
        == [
            list(NAMES[:2]),
            list(NAMES),  # conv goes back to the base
            list(NAMES[1:]),
        ]
    )
    base = dict(network().named_parameters())
    assert torch.equal(fake.refits[1]["conv.weight"], base["conv.weight"])
    assert all(torch.equal(w, base[n]) for n, w in fake.refits[2].items())
    assert switching.switches == 3


def test_merged_weights_are_kept_within_the_budget() -> None:
    calls: list[str] = []

    def counting(use: AdapterUse) -> Adapter:
        calls.append(use.name)
        return ADAPTERS[use.name]

    size = 4 * sum(p.numel() for n, p in network().named_parameters() if n in NAMES)
    for budget, loads in ((0, 6), (size, 6), (2 * size, 4), (3 * size, 3)):
        calls.clear()
        switching = patcher(FakeEngine(lambda inputs: {}), budget=budget)
        for name in ("a", "a2", "a", "a2", "c", "a"):
            ADAPTERS["a2"] = adapter("a2", 9)
            switching.apply(wanted((name, 1.0)), counting)
        assert len(calls) == loads, budget


def test_a_lora_that_cannot_be_loaded_changes_nothing() -> None:
    fake = FakeEngine(lambda inputs: {})
    switching = patcher(fake)
    switching.apply(wanted(("a", 1.0)), load)

    def gone(use: AdapterUse) -> Adapter:
        raise Unavailable("gone")

    with pytest.raises(Unavailable):
        switching.apply(wanted(("b", 1.0)), gone)
    assert switching.current == wanted(("a", 1.0))
    assert len(fake.refits) == 1


def test_a_weight_that_an_engine_has_and_cannot_replace_is_an_error() -> None:
    """One that the graph does not have has no effect."""
    base = {n: p.detach().clone() for n, p in network().named_parameters()}
    fixed = frozenset(NAMES) - {"conv.weight"}
    for stored in (True, False):
        fake = FakeEngine(lambda inputs: {})
        patchable = Patchable(fake, fixed, base.__getitem__, lambda n, stored=stored: stored)  # type: ignore[misc]
        switching = Patcher("unet", [patchable], budget=0)
        if stored:
            with pytest.raises(InvalidInput, match=r"LORAS change unet\.conv\.weight; accepted"):
                switching.apply(wanted(("a", 1.0)), load)
            assert (switching.current, fake.refits) == (BASE, [])
        else:
            switching.apply(wanted(("a", 1.0)), load)
            assert {name for refit in fake.refits for name in refit} == fixed


def test_after_a_failed_refit_every_weight_in_doubt_is_replaced() -> None:
    fake = FakeEngine(lambda inputs: {})
    switching = patcher(fake)
    working = fake.refit

    def fail(weights: object) -> None:
        raise InternalError("device lost")

    fake.refit = fail  # type: ignore[method-assign]
    with pytest.raises(InternalError):
        switching.apply(wanted(("a", 1.0)), load)
    fake.refit = working  # type: ignore[method-assign]
    switching.apply(BASE, load)
    assert sorted(fake.refits[0]) == list(NAMES)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_engines_take_tensors_of_other_devices_types(engine: Engine, dtype: torch.dtype) -> None:
    """A GPU beside the CPU has its tensors in half precision."""
    x = torch.randn(2, 3, 8, 8).to(dtype)
    found = engine.run({"x": x})["y"].clone()
    assert torch.equal(found, engine.run({"x": x.float()})["y"])


def test_a_merged_weight_lies_in_memory_as_the_base_does() -> None:
    update = ADAPTERS["a"].updates["unet"]["first.weight"]
    row = network().get_parameter("first.weight").detach()
    column = row.T.contiguous().T
    assert merge(row, [(update, 1.0)]).is_contiguous()
    assert merge(column, [(update, 1.0)]).T.is_contiguous()
    torch.testing.assert_close(merge(row, [(update, 1.0)]), merge(column, [(update, 1.0)]))


def test_half_precision_files_are_merged_in_float32() -> None:
    update = ADAPTERS["a"].updates["unet"]["first.weight"]
    assert isinstance(update, LowRank)
    half = LowRank(update.down.half(), update.up.half(), update.scale)
    base = network().get_parameter("first.weight").detach()
    exact = base + 0.7 * half.scale * half.up.float() @ half.down.float()
    torch.testing.assert_close(merge(base, [(half, 0.7)]), exact, atol=1e-6, rtol=0)
