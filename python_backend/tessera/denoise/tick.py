"""Step-level continuous batching: one `tick` moves every running request by one denoising step.

Requests with different steps, schedulers, seeds, guidance and sizes run together. Each has its own
sampler; only the network call is shared. Knows neither Triton nor engines: the network is a
callable.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol

import torch

from tessera.denoise.running import Running
from tessera.denoise.unet import Join
from tessera.engines.devices import DeviceLost
from tessera.plan import AdapterUse
from tessera.types import Conditions

Predict = Callable[[torch.Tensor, torch.Tensor, Conditions, Join | None], torch.Tensor]
"""(sample (n, c, h, w), timestep (n,), conditions of n rows, join) -> prediction (n, c, h, w)."""


class Regroup(Exception):
    """Some requests of a group changed, so the group has to be formed again.

    A changed request has an error or has lost its sparse state.
    """


class Observer(Protocol):
    """Receives the costs of steps. See `tessera.edits.chooser.StepChooser`."""

    def observe(self, kind: str, size: tuple[int, int], tokens: float, milliseconds: float) -> None:
        """Called after each network call, with values per branch."""
        ...


class Controls(Protocol):
    """Runs ControlNets. See `tessera.controls.fanout`."""

    def start(self, group: Sequence[Running]) -> Join | None:
        """Start the ControlNets of a group's next step; `None` if it has none."""
        ...


class Sparse(Protocol):
    """Predicts sparse steps. See `tessera.edits.steps.SparseSteps`."""

    def adapt(self, adapters: tuple[AdapterUse, ...]) -> None:
        """Note which adapter set is in the engines from now on."""
        ...

    def groups(self, requests: Sequence[Running]) -> list[list[Running]]:
        """Group requests that share a call."""
        ...

    def predict(self, group: list[Running]) -> list[torch.Tensor]:
        """Predictions (branches, c, h, w) of a group.

        Raises:
            Regroup: some requests of the group changed.
        """
        ...


Meter = Callable[[Sequence[Running], float], None]
"""Told after each network call: its requests, which have not stepped yet, and its seconds."""
Call = Callable[[list[Running]], list[torch.Tensor]]


def tick(
    running: Sequence[Running],
    predict: Predict,
    number: int,
    *,
    sparse: Sparse | None = None,
    observer: Observer | None = None,
    controls: Controls | None = None,
    meter: Meter | None = None,
) -> None:
    """Advance every request by one step.

    Requests of one size, one length of text and one kind of step share a network call. A request
    whose sampler fails gets its `error`. A failed network call is repeated for each of
    its requests alone, and those that fail again get their `error`. Other requests are unaffected.

    Args:
        running: the requests.
        predict: calls the dense UNet.
        number: the tick's number, for the requests' stats.
        sparse: predicts sparse steps.
        observer: receives the costs of calls.
        controls: runs ControlNets.
        meter: receives the times of calls.
    """
    dense = partial(_predict_group, predict, controls)
    work = _calls(running, dense, sparse)
    while work:
        call, group = work.pop(0)
        began, loaded_ms = time.perf_counter(), group[0].stats.cache_load_ms
        try:
            branches = call(group)
        except Regroup:  # no request has stepped: those without an error are grouped again
            work += _calls([r for r in group if r.error is None], dense, sparse)
            continue
        except Exception as error:
            if len(group) > 1:  # one request may be the cause: run each alone to find out
                work += [(call, [request]) for request in group]
            else:
                group[0].error = error
            continue
        elapsed_ms = 1e3 * (time.perf_counter() - began)
        if meter is not None:
            meter(group, elapsed_ms / 1e3)
        # A call that waits for ControlNets does not show the UNet's cost, so it is not observed.
        # Time spent loading recordings is subtracted, since the observer adds its own forecast.
        if observer is not None and not any(r.controls_now for r in group):
            loading_ms = group[0].stats.cache_load_ms - loaded_ms
            _observe(observer, group, elapsed_ms - loading_ms)
        for request, prediction in zip(group, branches, strict=True):
            request.stats.add_tick(number, len(group))
            prediction = _of_one_prompt(prediction, request.weights)
            _step(request, _apply_guidance(prediction, request.plan.guidance))


def _observe(observer: Observer, group: list[Running], milliseconds: float) -> None:
    rows = sum(r.branches for r in group)
    height, width = group[0].latents.shape[2:]
    if group[0].goes_sparsely:
        active = [r.branches * r.sparse.active_latents for r in group if r.sparse]
        observer.observe("sparse", (height, width), sum(active) / rows, milliseconds / rows)
    else:
        observer.observe("dense", (height, width), height * width, milliseconds / rows)


def _calls(
    running: Sequence[Running], dense: Call, sparse: Sparse | None
) -> list[tuple[Call, list[Running]]]:
    """The network calls of a tick, each with its group of requests."""
    densely = [r for r in running if not r.goes_sparsely]
    calls: list[tuple[Call, list[Running]]] = [(dense, group) for group in _groups(densely)]
    if sparse is not None:
        sparsely = [r for r in running if r.goes_sparsely]
        calls += [(sparse.predict, group) for group in sparse.groups(sparsely)]
    return calls


def _groups(running: Sequence[Running]) -> Iterable[list[Running]]:
    """Group requests by the shapes of latents and text, in order of arrival."""
    groups: dict[tuple[tuple[int, ...], ...], list[Running]] = {}
    for request in running:
        groups.setdefault(request.shape, []).append(request)
    return groups.values()


def _predict_group(
    predict: Predict, controls: Controls | None, group: list[Running]
) -> list[torch.Tensor]:
    """Predictions (branches, c, h, w), one per request, from one network call for the group."""
    join = controls.start(group) if controls else None
    samples = [r.network_input for r in group]
    timesteps = [r.timesteps[r.step] for r in group]
    entries = [r.entries for r in group]
    conditions = {name: _concatenated([e[name] for e in entries]) for name in entries[0]}
    inputs = _concatenated(samples), _concatenated(timesteps), conditions
    began = time.perf_counter()
    try:
        output = predict(*inputs, join)
    except DeviceLost as lost:
        end_lost(group, lost)
        raise Regroup from lost
    network_ms = 1e3 * (time.perf_counter() - began)
    for request in group:
        request.stats.engine_ms += network_ms
    return list(output.split([r.branches for r in group])) if len(group) > 1 else [output]


def end_lost(group: Sequence[Running], lost: DeviceLost) -> None:
    """Give the error to the requests that had rows on a lost device; the others can go on."""
    first = 0
    for request in group:
        end = first + request.branches
        if first < lost.rows.stop and lost.rows.start < end:
            request.error = lost.error
        first = end


def _concatenated(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _of_one_prompt(branches: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Branches of one prompt: the mean of those of several, weighted in each latent. That is
    MultiDiffusion (Bar-Tal et al. 2023, eq. 5) with windows that all see the whole picture.
    """
    if weights is None:
        return branches
    others = branches.shape[0] - weights.shape[0]
    mean = (weights[:, None] * branches[others:]).sum(0, keepdim=True)
    return torch.cat([branches[:others], mean])


def _apply_guidance(branches: torch.Tensor, guidance: float) -> torch.Tensor:
    """Classifier-free guidance (Ho & Salimans 2022, eq. 6): negative + guidance * (positive -
    negative).
    """
    if branches.shape[0] == 1:
        return branches
    negative, positive = branches[:1], branches[1:]
    return (positive - negative).mul_(guidance).add_(negative)


def _step(request: Running, prediction: torch.Tensor) -> None:
    try:
        latents = request.sampler.step(prediction, request.latents, request.step)
        request.step += 1
        canvas = request.canvas
        if canvas is not None:
            outside = request.sampler.noised(canvas.clean, canvas.noise, request.step)
            of = request.sampler.evaluations
            latents = canvas.moved(latents, outside, request.step, of)
        request.latents = latents
    except Exception as error:
        request.error = error
