"""Continuous batching with a made-up network: every request as if it were alone."""

from __future__ import annotations

import random

import pytest
import torch

from tessera.contract import SCHEDULERS
from tessera.denoise.running import Running
from tessera.denoise.tick import tick
from tessera.denoise.unet import Join, UNet, conditions_of
from tessera.plan import Plan
from tessera.types import Conditions
from tessera.variants import VARIANTS
from tests.fakes.engine import unet_engines
from tests.samples.plans import plan, running


def unet(max_rows: int = 16) -> UNet:
    return UNet(*unet_engines(), max_rows=max_rows)


def alone(wanted: Plan) -> torch.Tensor:
    request, network = running(wanted), unet()
    for number in range(1, len(wanted.evaluations) + 1):
        tick([request], network.predict, number)
    assert request.finished
    return request.latents


def random_plan(rng: random.Random) -> Plan:
    return plan(
        seed=rng.randrange(1000),
        steps=rng.randint(1, 9),
        guidance=rng.choice([0.0, 1.0, 1.5, 7.5]),
        width=rng.choice([64, 96]),
        height=rng.choice([64, 72]),
        scheduler=rng.choice(list(SCHEDULERS)),
    )


@pytest.mark.parametrize("seed", range(5))
def test_a_request_in_company_equals_the_request_alone(seed: int) -> None:
    rng = random.Random(seed)
    waiting = [(rng.randrange(12), random_plan(rng)) for _ in range(12)]
    network, active, done = unet(), list[Running](), list[Running]()
    for number in range(1, 40):
        active += [running(p) for arrival, p in waiting if arrival == number - 1]
        tick(active, network.predict, number)
        done += [r for r in active if r.finished]
        active = [r for r in active if not r.finished]
    assert len(done) == 12
    for request in done:
        assert request.error is None
        evaluations = len(request.plan.evaluations)
        assert request.stats.ticks == evaluations
        assert request.stats.last_tick - request.stats.first_tick + 1 == evaluations
        torch.testing.assert_close(request.latents, alone(request.plan), atol=1e-5, rtol=0)


def test_one_network_call_serves_all_branches_of_a_size() -> None:
    encoder, decoder = unet_engines()
    requests = [running(plan(guidance=4.0)), running(plan(guidance=1.0)), running(plan(seed=2))]
    tick(requests, UNet(encoder, decoder, max_rows=16).predict, 1)
    assert encoder.batches == decoder.batches == [5]
    assert [r.stats.mean_batch for r in requests] == [3, 3, 3]


def test_sizes_get_a_call_each() -> None:
    encoder, decoder = unet_engines()
    requests = [running(plan()), running(plan(width=96)), running(plan(seed=2))]
    tick(requests, UNet(encoder, decoder, max_rows=16).predict, 1)
    assert encoder.batches == [4, 2]
    assert [r.stats.mean_batch for r in requests] == [2, 1, 2]


def test_a_batch_beyond_the_engines_limit_is_split() -> None:
    encoder, decoder = unet_engines()
    requests = [running(plan(seed=s)) for s in range(5)]
    tick(requests, UNet(encoder, decoder, max_rows=4).predict, 1)
    assert encoder.batches == [4, 4, 2]


def test_guidance_is_negative_plus_scaled_difference() -> None:
    request = running(plan(guidance=3.0, steps=1))
    before = request.latents.clone()
    outputs = torch.stack([torch.full((4, 16, 16), 2.0), torch.full((4, 16, 16), 5.0)])
    tick([request], lambda sample, timestep, conditions, join: outputs, 1)
    again = running(plan(guidance=3.0, steps=1))
    guided = torch.full((1, 4, 16, 16), 2.0 + 3.0 * (5.0 - 2.0))
    assert torch.equal(request.latents, again.sampler.step(guided, before, 0))


def test_a_failing_network_call_fails_its_group_only() -> None:
    wide, narrow = running(plan(width=96)), running(plan())
    network = unet()

    def predict(
        sample: torch.Tensor, timestep: torch.Tensor, conditions: Conditions, join: Join | None
    ) -> torch.Tensor:
        if sample.shape[-1] == 24:
            raise RuntimeError("no memory")
        return network.predict(sample, timestep, conditions, join)

    tick([wide, narrow], predict, 1)
    assert wide.finished
    assert str(wide.error) == "no memory"
    assert narrow.error is None
    assert narrow.step == 1


def test_texts_of_different_lengths_do_not_share_a_call() -> None:
    network, calls = unet(), []
    long, short, other = running(plan()), running(plan(seed=2)), running(plan(seed=3))
    long.conditions = {k: torch.cat([v, v], 1) for k, v in long.conditions.items()}

    def predict(
        sample: torch.Tensor, timestep: torch.Tensor, conditions: Conditions, join: Join | None
    ) -> torch.Tensor:
        calls.append((len(sample), *(v.shape[1] for v in conditions.values())))
        return network.predict(sample, timestep, conditions, join)

    tick([short, long, other], predict, 1)
    (tokens,) = (v.shape[1] for v in short.conditions.values())
    assert calls == [(4, tokens), (2, 2 * tokens)]
    assert [r.step for r in (long, short, other)] == [1, 1, 1]


def test_when_a_batch_fails_each_of_its_requests_is_tried_alone() -> None:
    """One whose conditions no network takes, or a batch that the memory does not suffice for."""
    network = unet()
    odd, well, other = running(plan()), running(plan(seed=2)), running(plan(seed=3))
    odd.conditions = {k: torch.full_like(v, torch.nan) for k, v in odd.conditions.items()}

    def predict(
        sample: torch.Tensor, timestep: torch.Tensor, conditions: Conditions, join: Join | None
    ) -> torch.Tensor:
        assert all(v.isfinite().all() for v in conditions.values()), "not finite"
        return network.predict(sample, timestep, conditions, join)

    tick([odd, well, other], predict, 1)
    assert str(odd.error).startswith("not finite")
    assert [(r.error, r.step, r.stats.mean_batch) for r in (well, other)] == [(None, 1, 1)] * 2
    expected = running(plan(seed=2))
    tick([expected], unet().predict, 1)
    torch.testing.assert_close(well.latents, expected.latents, atol=1e-5, rtol=0)


def test_a_failing_sampler_fails_its_request_only() -> None:
    broken, well = running(plan()), running(plan(seed=2))

    def fail(*args: object) -> torch.Tensor:
        raise ValueError("sampler")

    broken.sampler.step = fail  # type: ignore[assignment,method-assign]
    tick([broken, well], unet().predict, 1)
    assert isinstance(broken.error, ValueError)
    assert well.step == 1


def test_conditions_say_what_the_variant_takes() -> None:
    text, pooled = torch.ones(2, 5, 8), torch.ones(2, 3)
    plain = conditions_of(text, pooled, width=96, height=64, variant=VARIANTS["sd15"])
    assert set(plain) == {"encoder_hidden_states"}
    sized = conditions_of(text, pooled, width=96, height=64, variant=VARIANTS["sdxl"])
    assert set(sized) == {"encoder_hidden_states", "text_embeds", "time_ids"}
    assert sized["time_ids"].tolist() == [[64, 96, 0, 0, 64, 96]] * 2
