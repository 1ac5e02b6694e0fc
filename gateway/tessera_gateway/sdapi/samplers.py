"""Samplers and schedulers by the names that front ends have for them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from tessera.contract import SCHEDULERS, SPREAD_TITLES, Scheduler
from tessera_gateway.errors import invalid


@dataclass(frozen=True)
class Sampler:
    """A sampler of webui.

    Attributes:
        base: our sampler. Its variants have their noise levels spread in other ways.
        aliases: other names of it.
        automatic: which of these ways "Automatic" is, where the bundle has it.
    """

    base: Scheduler
    aliases: tuple[str, ...]
    automatic: str = "uniform"

    @property
    def name(self) -> str:
        """In lists."""
        return SCHEDULERS[self.base].title

    def ways(self, offered: Collection[str]) -> dict[str, Scheduler]:
        """Our samplers by the name of how their noise levels are spread."""
        return {
            _WAYS[spec.spread]: Scheduler(name)
            for name, spec in SCHEDULERS.items()
            if spec.base == self.base and name in offered
        }


SAMPLERS = (
    Sampler(Scheduler.DPMPP_2M, ("k_dpmpp_2m",), automatic="karras"),
    Sampler(Scheduler.DPMPP_SDE, ("k_dpmpp_sde",), automatic="karras"),
    Sampler(Scheduler.DPMPP_2M_SDE, ("k_dpmpp_2m_sde",), automatic="exponential"),
    Sampler(Scheduler.EULER_ANCESTRAL, ("k_euler_a", "k_euler_ancestral")),
    Sampler(Scheduler.EULER, ("k_euler",)),
    Sampler(Scheduler.LMS, ("k_lms",)),
    Sampler(Scheduler.HEUN, ("k_heun",)),
    Sampler(Scheduler.KDPM2, ("k_dpm_2",), automatic="karras"),
    Sampler(Scheduler.DDIM, ("ddim",)),
    Sampler(Scheduler.PNDM, ("plms",)),
    Sampler(Scheduler.UNIPC, ("unipc",)),
    Sampler(Scheduler.LCM, ("k_lcm",)),
    Sampler(Scheduler.TCD, ("tcd",)),
    Sampler(Scheduler.EDM_EULER, ("edm_euler",)),
    Sampler(Scheduler.EDM_DPMPP_2M, ("edm_dpmpp_2m",)),
)
"""In webui's order of lists, with its automatic ways."""
_WAYS = {"": "uniform", "trailing": "sgm_uniform"} | {
    spread: spread for spread in ("karras", "exponential", "beta")
}
_LABELS = {_WAYS[spread]: title for spread, title in SPREAD_TITLES.items()}
SCHEDULERS_BY_NAME = {"automatic": "Automatic", "uniform": "Uniform"} | _LABELS
"""Ways to spread the noise levels: name -> label."""
_ALIASES = {"": "automatic", "normal": "uniform", "simple": "uniform", "sgmuniform": "sgm_uniform"}
"""Other names of them. SillyTavern sends `normal` unless its user has chosen one."""
_IN_NAME = (" karras", " exponential")
"""Older front ends have them in the sampler's name."""


def scheduler_of(
    sampler: str | None, scheduler: str | None, offered: Collection[str], usual: str
) -> Scheduler | None:
    """Our scheduler; `None` for the bundle's, if the request names neither.

    Args:
        sampler: its name, or an alias; left out, that of the bundle's scheduler.
        scheduler: how its steps are spread.
        offered: our schedulers that the bundle has.
        usual: the bundle's.

    Raises:
        ApiError: the bundle has no such sampler or scheduler, or the two do not go together.
    """
    spread = _spread(scheduler)
    if not sampler or sampler == "Automatic":
        if spread == "automatic":
            return None
        sampler, _ = names_of(usual)
    name = sampler.lower()
    for end in _IN_NAME:
        if name.endswith(end):
            name, spread = name.removesuffix(end), end.strip()
    found = next((s for s in SAMPLERS if name in (s.name.lower(), *s.aliases)), None)
    ways = found.ways(offered) if found else {}
    if found is None or not ways:
        raise invalid("sampler_name", sampler, ", ".join(s.name for s in _known(offered)))
    if spread == "automatic":
        spread = found.automatic if found.automatic in ways else next(iter(ways))
    if spread not in ways:
        accepted = f"{', '.join(['automatic', *ways])} with {found.name}"
        raise invalid("scheduler", scheduler or sampler, accepted)
    return ways[spread]


def _known(offered: Collection[str]) -> list[Sampler]:
    """The samplers that a bundle has."""
    return [s for s in SAMPLERS if s.ways(offered)]


def _spread(scheduler: str | None) -> str:
    name = (scheduler or "").lower()
    labels = {label.lower(): name for name, label in SCHEDULERS_BY_NAME.items()}
    name = _ALIASES.get(name, labels.get(name, name))
    if name not in SCHEDULERS_BY_NAME:
        raise invalid("scheduler", scheduler, ", ".join(SCHEDULERS_BY_NAME))
    return name


def names_of(scheduler: str) -> tuple[str, str]:
    """Names of the sampler and scheduler that our scheduler stands for."""
    spec = SCHEDULERS.get(scheduler)
    if spec is None:
        return scheduler, SCHEDULERS_BY_NAME["uniform"]
    return spec.title, SCHEDULERS_BY_NAME[_WAYS[spec.spread]]


def samplers(offered: Collection[str]) -> list[dict[str, Any]]:
    """GET samplers: those that the bundle has."""
    return [{"name": s.name, "aliases": list(s.aliases), "options": {}} for s in _known(offered)]


def schedulers() -> list[dict[str, Any]]:
    """GET schedulers."""
    return [
        {
            "name": name,
            "label": label,
            "aliases": [alias for alias, of in _ALIASES.items() if alias and of == name],
            "default_rho": -1,
            "need_inner_model": False,
        }
        for name, label in SCHEDULERS_BY_NAME.items()
    ]
