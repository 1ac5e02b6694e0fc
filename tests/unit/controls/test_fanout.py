"""ControlNets beside the encoder half, with real ones and against diffusers; windows, failures, and
requests with other ControlNets in the same call.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

import pytest
import torch

from tessera.controls.fanout import FanOut
from tessera.controls.network import ControlNetwork, Forgotten
from tessera.denoise.running import Running, RunningControl, start
from tessera.denoise.sampler import Sampler
from tessera.denoise.tick import tick
from tessera.denoise.unet import UNet
from tessera.engines.torch import TorchEngine
from tessera.errors import InternalError, Unavailable
from tessera.networks.controlnets import ControlNet, ControlNetHint
from tessera.networks.modules import UNetDecoder, UNetEncoder
from tessera.plan import ControlUse
from tests.fakes.checkpoint import controlnet, topology
from tests.samples.plans import plan
from tests.samples.schedulers import DEMO
from tests.samples.waiting import PATIENCE_S

WIDTHS = {"conditioning_embedding_out_channels": (8, 8, 16, 16)}
IMAGE = torch.randint(
    0, 256, (64, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
PIPE = topology("sd15")
NETWORKS = {name: controlnet(PIPE.unet, **WIDTHS) for name in ("edges", "depth")}
with torch.no_grad():
    for parameter in NETWORKS["depth"].parameters():
        parameter.mul_(0.9)  # else both would be the same


def unet(max_rows: int = 16) -> UNet:
    halves = (TorchEngine(half(PIPE.unet).eval()) for half in (UNetEncoder, UNetDecoder))
    return UNet(*halves, max_rows=max_rows)


class Models:
    """What answers the calls: real ControlNets, as the models hold them."""

    def __init__(self, *, max_rows: int = 16, kept: int = 32) -> None:
        self.networks = {
            name: ControlNetwork(
                TorchEngine(ControlNet(network).eval()),
                TorchEngine(ControlNetHint(network).eval()),
                max_rows=max_rows,
                kept=kept,
            )
            for name, network in NETWORKS.items()
        }
        self.asked: list[tuple[str, tuple[str, ...]]] = []
        self.broken: set[str] = set()

    def __call__(self, name: str, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        self.asked.append((name, tuple(sorted(inputs))))
        if name in self.broken:
            raise Unavailable(f"the controlnet_{name} model is being restarted")
        keys = [int(key) for key in inputs["KEYS"]]
        with torch.inference_mode():
            if "SAMPLE" in inputs:
                return self.networks[name].residuals(keys, inputs["SAMPLE"], inputs["TIMESTEP"])
            told = {"encoder_hidden_states": inputs["TEXT"]}
            self.networks[name].tell(keys[0], inputs["IMAGE"], told)
            return torch.zeros(1)


def running(*uses: ControlUse, seed: int = 1, steps: int = 4, guidance: float = 4.0) -> Running:
    wanted = plan(seed=seed, steps=steps, guidance=guidance, height=64, width=96, controls=uses)
    sampler = Sampler(wanted.scheduler, DEMO, steps=steps, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    width = PIPE.unet.config.cross_attention_dim
    text = torch.randn(2 if wanted.guided else 1, 77, width, generator=generator)
    controls = tuple(RunningControl(use, 100 * seed + i, IMAGE) for i, use in enumerate(uses))
    conditions = {"encoder_hidden_states": text}
    return start(wanted, conditions, sampler, shape=(4, 8, 12), controls=controls)


@torch.inference_mode()
def by_diffusers(request: Running) -> torch.Tensor:
    """The prediction for its next step, as MultiControlNet and the UNet make it."""
    sample = request.sampler.network_input(request.latents, request.step).expand(request.rows)
    timestep = request.sampler.timesteps[request.step]
    text = request.conditions["encoder_hidden_states"]
    down: list[torch.Tensor] = []
    middle = torch.zeros(())
    for control in request.controls:
        use = control.use
        steps = len(request.sampler.timesteps)
        on = not (request.step / steps < use.start or (request.step + 1) / steps > use.end)
        found, mid = NETWORKS[use.name](
            sample,
            timestep,
            text,
            controlnet_cond=(IMAGE.permute(2, 0, 1)[None] / 255).expand(len(sample), -1, -1, -1),
            conditioning_scale=use.scale * on,
            return_dict=False,
        )
        down = [a + b for a, b in zip(down, found, strict=True)] if down else list(found)
        middle = middle + mid
    return PIPE.unet(
        sample,
        timestep,
        text,
        down_block_additional_residuals=down or None,
        mid_block_additional_residual=middle if down else None,
    ).sample


def predictions(requests: list[Running], models: Models, network: UNet) -> list[torch.Tensor]:
    """What a tick predicts for every request, before guidance."""
    found: list[torch.Tensor] = []

    def predict(*inputs: object) -> torch.Tensor:
        found.append(network.predict(*inputs))  # type: ignore[arg-type]
        return found[-1]

    rows = [r.branches for r in requests]
    with torch.inference_mode():
        tick(requests, predict, 1, controls=FanOut(models))
    (whole,) = found
    return list(whole.split(rows))


EDGES, DEPTH = ControlUse("edges", 0.7, 0.0, 1.0), ControlUse("depth", -1.2, 0.0, 1.0)


@pytest.mark.parametrize("max_rows", [16, 3])
def test_a_mixed_group_equals_diffusers_request_by_request(max_rows: int) -> None:
    requests = [
        running(EDGES, seed=1),
        running(seed=2),
        running(DEPTH, EDGES, seed=3, guidance=1.0),
        running(DEPTH, seed=4),
        running(EDGES, ControlUse("edges", 0.2, 0.0, 1.0), seed=5),
    ]
    expected = [by_diffusers(r) for r in requests]
    plain = [by_diffusers(running(seed=s)) for s in (1, 4)]
    found = predictions(requests, Models(max_rows=max_rows), unet(max_rows))
    for answer, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(answer, wanted, atol=2e-5, rtol=1e-4)
    assert (expected[0] - plain[0]).abs().max() > 1e-2
    assert (expected[3] - plain[1]).abs().max() > 1e-2
    assert [r.stats.control_ticks for r in requests] == [1, 0, 1, 1, 1]


def test_each_controlnet_is_asked_once_a_step_and_told_of_a_request_once() -> None:
    requests, models = [running(EDGES, seed=1), running(EDGES, DEPTH, seed=2)], Models()
    fan_out = FanOut(models)
    for number in range(4):
        tick(requests, unet().predict, number, controls=fan_out)
    assert all(r.finished and r.error is None for r in requests)
    told, step = ("IMAGE", "KEYS", "TEXT"), ("KEYS", "SAMPLE", "TIMESTEP")
    assert sorted(models.asked) == sorted(
        [("edges", told)] * 2 + [("depth", told)] + [("edges", step), ("depth", step)] * 4
    )


def test_outside_its_window_and_at_scale_zero_a_controlnet_is_not_asked() -> None:
    late, none = ControlUse("edges", 1.0, 0.5, 1.0), ControlUse("depth", 0.0, 0.0, 1.0)
    request, models = running(late, none, steps=4), Models()
    asked = []
    for number in range(4):
        before = len(models.asked)
        tick([request], unet().predict, number, controls=FanOut(models))
        asked.append(len(models.asked) - before)
    assert asked == [0, 0, 2, 1]
    assert {name for name, _ in models.asked} == {"edges"}
    assert request.stats.control_ticks == 2


def test_a_controlnet_that_has_forgotten_is_told_again() -> None:
    request, models = running(EDGES), Models()
    tick([request], unet().predict, 1, controls=FanOut(models))
    expected = by_diffusers(request)
    models.networks = Models().networks  # its process has been restarted
    (found,) = predictions([request], models, unet())
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_only_the_latest_requests_are_remembered() -> None:
    network = Models(kept=2).networks["edges"]
    text = {"encoder_hidden_states": torch.randn(2, 77, PIPE.unet.config.cross_attention_dim)}
    sample, timestep = torch.randn(1, 4, 8, 12), torch.tensor([500.0])
    with torch.inference_mode():
        network.tell(1, IMAGE, text)
        network.tell(2, IMAGE, text)
        network.residuals([1], sample, timestep)
        network.tell(3, IMAGE, text)
        network.residuals([3, 1], sample.expand(2, -1, -1, -1), timestep.expand(2))
        with pytest.raises(Forgotten, match="control key 2 is unknown"):
            network.residuals([2], sample, timestep)


def test_a_failing_controlnet_fails_the_requests_that_it_guides_only() -> None:
    guided, plain, other = running(EDGES, seed=1), running(seed=2), running(DEPTH, seed=3)
    models = Models()
    models.broken = {"edges"}
    expected = by_diffusers(other)
    tick([guided, plain, other], unet().predict, 1, controls=FanOut(models))
    assert "controlnet_edges model is being restarted" in str(guided.error)
    assert (plain.error, plain.step, other.error, other.step) == (None, 1, None, 1)
    assert (guided.step, plain.stats.ticks, plain.stats.mean_batch) == (0, 1, 2)
    again = running(DEPTH, seed=3)
    (found,) = predictions([again], Models(), unet())
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    assert torch.allclose(again.latents, other.latents, atol=1e-4)


def test_nobody_waits_for_a_process_that_has_died() -> None:
    guided, plain, over = running(EDGES, seed=1), running(seed=2), threading.Event()

    def ask(name: str, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        over.wait(300)
        return torch.zeros(1)

    began, awaited = time.monotonic(), list[str]()
    fan_out = FanOut(ask, lambda name: False, awaited.append)
    tick([guided, plain], unet().predict, 1, controls=fan_out)
    assert time.monotonic() - began < 200
    over.set()
    assert awaited == ["edges", ""]
    assert "the controlnet_edges model is being restarted" in str(guided.error)
    assert (plain.error, plain.step) == (None, 1)


def test_residuals_of_another_size_are_an_error_not_a_wrong_picture() -> None:
    request, plain = running(EDGES, seed=1), running(seed=2)
    tick([request, plain], unet().predict, 1, controls=FanOut(lambda name, inputs: torch.zeros(12)))
    assert isinstance(request.error, InternalError)
    assert "ControlNet edges returned 12 numbers" in str(request.error)
    assert (plain.error, plain.step) == (None, 1)


def test_controlnets_run_at_the_same_time_and_beside_the_encoder_half() -> None:
    """Each waits until all three have begun: run one after the other they would never end."""
    models, begun, network = Models(), threading.Barrier(3, timeout=PATIENCE_S), unet()

    def ask(name: str, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if "SAMPLE" in inputs:
            begun.wait()
        return models(name, inputs)

    class Encoder:
        def __init__(self) -> None:
            self._engine = network._encoder

        def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            begun.wait()
            return self._engine.run(inputs)

    network._encoder = Encoder()  # type: ignore[assignment]
    request = running(EDGES, DEPTH)
    tick([request], network.predict, 1, controls=FanOut(ask))
    assert request.error is None
    assert request.step == 1
