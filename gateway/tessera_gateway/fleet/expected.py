"""What a worker will do for a request: size, rows and steps, as far as a look at it tells.

`tessera.requests` and `tessera.edits` in the runtime are what workers do. What a router cannot know
is how near a recording's prompt is to the edit's, and with which LoRAs and ControlNets it was made:
where there are recordings with prompts, it takes one to be the edit's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tessera.contract import FIFTHS, SCHEDULERS, SIZE_STEP, EditQuality
from tessera.contract.crops import filled
from tessera_gateway.fleet.load import Load, Policies, Policy
from tessera_gateway.fleet.masks import Drawn, active, cropped
from tessera_gateway.fleet.peek import Peek

_FAST: Policies = ((1.0, (Policy(0),)),)
"""Of a worker that tells no policies."""


@dataclass(frozen=True)
class Way:
    """One way of an edit to spend its evaluations.

    Attributes:
        active: latents that a sparse one computes.
        dense: how many are dense.
    """

    active: int
    dense: int


def evaluations(load: Load, peek: Peek, *, whole: bool = False) -> list[int]:
    """The evaluations of the UNet that are run, among those of the schedule.

    Args:
        load: of the worker.
        peek: the request.
        whole: of the whole schedule, whatever the request's strength.
    """
    steps = peek.steps if peek.steps and peek.steps > 0 else load.defaults.steps
    first, strength = 0, peek.strength
    if strength is not None and 0 < strength <= 1 and not whole:
        first = steps - max(1, int(steps * strength))
    spec = SCHEDULERS.get(peek.scheduler or load.defaults.scheduler)
    return spec.evaluations(steps, first) if spec else list(range(first, steps))


def branches(load: Load, peek: Peek) -> int:
    """Rows of the request in a call: of its prompts, and of the negative one."""
    guidance = load.defaults.guidance if peek.guidance is None else peek.guidance
    return 1 + peek.regions + int(guidance > 1 and not load.defaults.embedded)


def drawn(load: Load, peek: Peek) -> Drawn:
    """What is drawn, in pixels."""
    defaults, edited = load.defaults, peek.edited
    if edited is None:
        return Drawn(peek.width or defaults.width, peek.height or defaults.height)
    if peek.padding is None:
        width, height = (filled(side, defaults.smallest) for side in (edited.width, edited.height))
        return Drawn(width, height)
    most = defaults.largest or max(edited.width, edited.height)
    scale = min(1.0, most / max(edited.width, edited.height))
    width, height = (
        asked or max(int(scale * side) // SIZE_STEP * SIZE_STEP, defaults.smallest, SIZE_STEP)
        for asked, side in ((peek.width, edited.width), (peek.height, edited.height))
    )
    return cropped(edited, peek.padding, width, height)


def latents(load: Load, peek: Peek) -> tuple[int, int]:
    """(height, width) of its latents."""
    size = drawn(load, peek)
    pixels = load.defaults.pixels
    return max(1, size.height // pixels), max(1, size.width // pixels)


def ways(load: Load, peek: Peek, *, prompted: bool, warm: float) -> list[Way]:
    """What an edit may do with a recording. In mode `sparse`, it does the first.

    Args:
        load: of the worker.
        peek: the edit.
        prompted: whether there is a recording with a prompt.
        warm: share of the schedule that is dense in any case.
    """
    places = evaluations(load, peek)
    count = len(evaluations(load, peek, whole=True))
    noisiest = math.ceil(warm * count)
    return [
        Way(
            _active(load, peek, policy.margin),
            sum(place < noisiest or _dense_at(policy, place, count) for place in places),
        )
        for policy in _policies(load, peek, prompted=prompted)
    ]


def _dense_at(policy: Policy, place: int, count: int) -> bool:
    """Whether one evaluation of so many is dense."""
    regular = bool(policy.every) and place % policy.every == 0
    return regular or FIFTHS * place // count in policy.fifths


def texts(load: Load, peek: Peek) -> int:
    """How many recordings an edit waits for that needs them: one of each prompt, or the one that
    serves all.
    """
    return 1 if reads_empty(load, peek) else branches(load, peek)


def reads_empty(load: Load, peek: Peek) -> bool:
    """Whether an edit has the empty prompt recorded, which serves all prompts."""
    return bool(peek.regions) or _quality(load, peek) == EditQuality.FAST


def _quality(load: Load, peek: Peek) -> str:
    return peek.quality or load.defaults.quality


def _policies(load: Load, peek: Peek, *, prompted: bool) -> tuple[Policy, ...]:
    """Of which the worker takes the cheapest."""
    nearness = "own" if prompted and not peek.regions else "empty"
    steps = load.policies.get(_quality(load, peek), {}).get(nearness, _FAST)
    share = peek.mask or 0.0
    if peek.padding is not None:  # of what is drawn
        height, width = latents(load, peek)
        share = _active(load, peek, 0) / (height * width)
    return next((found for limit, found in steps if share <= limit), steps[-1][1])


def _active(load: Load, peek: Peek, margin: int) -> int:
    if peek.edited is not None and peek.edited.share:
        return active(peek.edited, drawn(load, peek), load.defaults.pixels, margin)
    height, width = latents(load, peek)
    return round(max(1.0, (peek.mask or 0.0) * height * width))
