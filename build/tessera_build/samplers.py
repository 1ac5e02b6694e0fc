"""The samplers of a bundle: those that its checkpoint's scheduler config can be used with, and the
one that requests get by default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tessera.contract import SCHEDULERS, scheduler_list
from tessera.errors import BundleError
from tessera.networks.schedulers import native, usable


def samplers_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the samplers that requests may use.

    Raises:
        BundleError: there is none.
    """
    reasons = usable(config)
    offered = tuple(name for name, reason in reasons.items() if not reason)
    if not offered:
        why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise BundleError(f"no sampler can be used with the checkpoint's scheduler config: {why}")
    return offered


def default_sampler(config: Mapping[str, Any], wanted: str | None, of_variant: str) -> str:
    """The sampler of requests that name none: the wanted one, else the checkpoint's own, else that
    of its variant, else any.

    Raises:
        BundleError: the wanted one is unknown, or cannot be used with the config.
    """
    offered = samplers_of(config)
    if wanted is None:
        chosen = (native(config), of_variant, *offered)
        return next(name for name in chosen if name in offered)
    if wanted not in SCHEDULERS:
        raise BundleError(f"scheduler {wanted!r} is unknown; accepted: {scheduler_list(offered)}")
    if wanted not in offered:
        raise BundleError(
            f"scheduler {wanted!r} cannot be used with this checkpoint ({usable(config)[wanted]}); "
            f"accepted: {scheduler_list(offered)}"
        )
    return wanted
