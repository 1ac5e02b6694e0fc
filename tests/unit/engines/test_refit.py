"""Replacing weights in a running engine: ONNX Runtime against torch, and the canary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from tessera.engines.base import Engine
from tessera.engines.canary import Canary, WatchedEngine
from tessera.engines.onnxruntime import OnnxRuntimeEngine
from tessera.engines.registry import Source, open_engine, open_module
from tessera.errors import BundleError, InternalError
from tessera.manifest import read_manifest
from tessera.networks.modules import GraphModule
from tessera.types import Tensors
from tessera.variants import VARIANTS
from tessera_build.examples import decoder_inputs, example_inputs, run
from tests.fakes.engine import FakeEngine
from tests.samples.bundles import IN_HALF, Small

Make = Callable[[str], Small]
GRAPHS = [(v, g) for v in VARIANTS for g in ("unet_encoder", "unet_decoder")]
GRAPHS += [(v, g) for v in VARIANTS for g in VARIANTS[v].text_encoders]
GRAPHS += [(name, g) for name in IN_HALF for g in ("unet_encoder", "text_encoder")]


def opened(small: Make, variant: str, graph: str) -> tuple[Engine, GraphModule, Tensors]:
    """A graph in ONNX Runtime, in torch, and inputs for it."""
    bundle = small(variant).bundle
    manifest = read_manifest(bundle)
    source = Source.of(bundle, manifest, graph)
    torch.manual_seed(0)
    encoder = "unet_encoder" if graph == "unet_decoder" else graph
    module = open_module(Source.of(bundle, manifest, encoder)).float()
    inputs = example_inputs(module, manifest.latents, rows=2, height=16, width=16)
    if graph == "unet_decoder":
        inputs = decoder_inputs(inputs, run(module, inputs))
        module = open_module(source).float()
    return open_engine("onnxruntime", source), module, inputs


def factors(module: GraphModule) -> list[str]:
    """What LoRAs change: weights of linear layers and convolutions."""
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    return [f"{n}.weight" for n, m in module.named_modules() if isinstance(m, kinds)]


def low_rank(weight: torch.Tensor) -> torch.Tensor:
    """The weight and a LoRA of rank 2."""
    flat = weight.reshape(weight.shape[0], -1)
    delta = torch.randn(flat.shape[0], 2) @ torch.randn(2, flat.shape[1])
    return weight + 0.02 * delta.reshape(weight.shape)


@torch.no_grad()
@pytest.mark.parametrize(("variant", "graph"), GRAPHS)
@pytest.mark.parametrize("every", [True, False], ids=["all targets", "attention"])
def test_a_lora_goes_in_as_in_torch_and_comes_out_exactly(
    small: Make, variant: str, graph: str, every: bool
) -> None:
    engine, module, inputs = opened(small, variant, graph)
    targets = [n for n in factors(module) if every or ".to_" in n or "_proj" in n]
    assert set(targets) <= engine.describe().refittable
    base = {n: module.get_parameter(n).detach().clone() for n in targets}
    changed = {n: low_rank(w) for n, w in base.items()}
    before, plain = engine.run(inputs), run(module, inputs)

    engine.refit(changed)
    for name, weight in changed.items():
        module.get_parameter(name).copy_(weight)
    expected = run(module, inputs)
    assert distance(plain, expected) > 1e-3, "a LoRA without effect would prove nothing"
    with_lora = engine.run(inputs)
    assert distance(with_lora, expected) <= 1e-4

    engine.refit(base)
    assert distance(engine.run(inputs), before) == 0
    engine.refit(changed)
    assert distance(engine.run(inputs), with_lora) == 0


def test_weights_that_are_not_named_stay(small: Make) -> None:
    engine, module, inputs = opened(small, "sd15", "text_encoder")
    first, second, *_ = factors(module)
    for name in (first, second):
        engine.refit({name: 2 * module.get_parameter(name)})
        with torch.no_grad():
            module.get_parameter(name).mul_(2)
    assert distance(engine.run(inputs), run(module, inputs)) <= 1e-4


def test_what_does_not_fit_is_refused_before_anything_is_replaced(small: Make) -> None:
    engine, module, inputs = opened(small, "sd15", "text_encoder")
    name = next(n for n in factors(module) if n.endswith("fc1.weight"))
    weight = module.get_parameter(name).detach()
    before = engine.run(inputs)
    for wrong in ({"no.weight": weight}, {next(iter(factors(module))): weight.T[:3]}):
        with pytest.raises(BundleError, match=r"that can be replaced|has shape \(3, "):
            engine.refit({name: 2 * weight} | wrong)
    assert distance(engine.run(inputs), before) == 0


def test_what_takes_no_loras_is_not_refitted(small: Make) -> None:
    bundle = small("sd15").bundle
    engine = open_engine("onnxruntime", Source.of(bundle, read_manifest(bundle), "vae_decoder"))
    with pytest.raises(BundleError, match=r"no weight 'decoder\.conv_in\.weight'"):
        engine.refit({"decoder.conv_in.weight": torch.ones(1)})


def test_a_missing_input_is_an_error_and_not_the_last_ones(small: Make) -> None:
    engine, _, inputs = opened(small, "sd15", "unet_encoder")
    engine.run(inputs)
    del inputs["timestep"]
    with pytest.raises(InternalError, match="input timestep is missing"):
        engine.run(inputs)


def test_shapes_are_the_checkpoints(small: Make) -> None:
    engine, module, _ = opened(small, "sdxl", "unet_encoder")
    assert isinstance(engine, OnnxRuntimeEngine)
    for name in engine.describe().refittable:
        wrong = torch.ones(1, 1, 1)
        with pytest.raises(BundleError) as raised:
            engine.refit({name: wrong})
        assert str(raised.value).endswith(f"accepted: {tuple(module.get_parameter(name).shape)}")


class Scaling:
    """A network with one weight: output = input * weight; `deaf` ignores refits."""

    def __init__(self, deaf: bool = False, forgetful: bool = False) -> None:
        self.weight = torch.tensor([3.0])
        self.refits = 0
        self._deaf = deaf
        self._forgetful = forgetful

    def engine(self) -> FakeEngine:
        made = FakeEngine(lambda i: {"y": i["x"] * self.weight})
        made.refit = self._refit  # type: ignore[method-assign]
        return made

    def _refit(self, weights: Mapping[str, torch.Tensor]) -> None:
        self.refits += 1
        if not self._deaf and not (self._forgetful and self.refits > 1):
            self.weight = weights["w"]


@pytest.fixture
def canary() -> Canary:
    x, w = torch.tensor([[1.0], [2.0]]), torch.tensor([3.0])
    return Canary("w", w, {"x": x}, {"y": x * w}, {"y": 2 * x * w}, tolerance=1e-2)


def test_a_canary_survives_its_file(canary: Canary, tmp_path: Path) -> None:
    canary.write(tmp_path / "canary.safetensors")
    found = Canary.read(tmp_path / "canary.safetensors")
    assert (found.weight, found.tolerance) == ("w", 1e-2)
    assert torch.equal(found.value, canary.value)
    for group in ("inputs", "built", "doubled"):
        held, wanted = getattr(found, group), getattr(canary, group)
        assert {k: v.tolist() for k, v in held.items()} == {
            k: v.tolist() for k, v in wanted.items()
        }
    (tmp_path / "canary.safetensors").write_bytes(b"bird")
    with pytest.raises(BundleError, match=r"canary\.safetensors is damaged .* compile"):
        Canary.read(tmp_path / "canary.safetensors")


def test_the_first_refit_is_tried_out_once(canary: Canary) -> None:
    network = Scaling()
    engine = WatchedEngine(network.engine(), canary, name="unet")
    assert engine.run({"x": torch.ones(1)})["y"] == 3
    assert network.refits == 0
    engine.refit({"w": torch.tensor([5.0])})
    assert engine.run({"x": torch.ones(1)})["y"] == 5
    engine.refit({"w": torch.tensor([7.0])})
    assert engine.run({"x": torch.ones(1)})["y"] == 7
    assert network.refits == 2 + 2


@pytest.mark.parametrize(
    ("network", "when"),
    [(Scaling(deaf=True), "after a refit"), (Scaling(forgetful=True), "after it was undone")],
    ids=["deaf", "forgetful"],
)
def test_an_engine_that_fails_never_answers_again(
    canary: Canary, network: Scaling, when: str
) -> None:
    engine = WatchedEngine(network.engine(), canary, name="unet")
    sentence = (
        rf"the engine unet is disabled: it differs from torch by .* {when}; accepted: at most 1e-02"
    )
    for call in (
        lambda: engine.refit({"w": torch.tensor([5.0])}),
        lambda: engine.refit({"w": torch.tensor([5.0])}),
        lambda: engine.run({"x": torch.ones(1)}),
    ):
        with pytest.raises(BundleError, match=sentence):
            call()


def distance(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> float:
    return max(
        float((found[name] - value).abs().max() / value.abs().max().clamp(min=1))
        for name, value in expected.items()
    )
