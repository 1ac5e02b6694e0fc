"""The samplers that requests may name. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from tessera.contract.words import Word


@dataclass(frozen=True)
class SchedulerSpec:
    """A sampler that requests may name: a diffusers class and the settings that make the variant.

    Attributes:
        cls: of diffusers.
        title: what front ends call the sampler.
        settings: of `cls.from_config`, beside the bundle's scheduler config.
        max_steps: largest number of steps.
        edm: whether it is for networks that were trained by Karras et al. (2022), which no other
            sampler is for.
        order: how often it evaluates the UNet in a step; in the last one it does so once.
        midpoint: whether the second evaluation of a step is half-way to the next noise level, by
            the logarithm, and not at it.
        repeats: whether it evaluates the UNet once more, since its first step is done twice.
        base: the sampler of which this one is a variant, by its spread; or its own name.
        spread: how its noise levels are spread, one of `SPREADS`; "" for as the config says.
    """

    cls: str
    title: str
    settings: tuple[tuple[str, object], ...] = ()
    max_steps: int = 1000
    edm: bool = False
    order: int = 1
    midpoint: bool = False
    repeats: bool = False
    base: str = ""
    spread: str = ""

    def evaluations(self, steps: int, first: int = 0) -> list[int]:
        """The evaluations of the UNet that are left of a whole schedule's without its first steps.

        Args:
            steps: of the schedule.
            first: how many of them are skipped.

        Returns:
            Places in the list of the whole schedule's evaluations, which has as many elements as
            `evaluations(steps)`.
        """
        if not self.repeats:
            return list(range(first * self.order, self.order * (steps - 1) + 1))
        if steps - first == 1:
            return [steps if steps > 1 else 0]
        start = first + 1 if first else 0
        return [start, first + 2 if first else 1, *range(first + 2, steps + 1)]

    def count(self, steps: int) -> int:
        """How many evaluations that many steps take."""
        return self.order * (steps - 1) + 1 + (self.repeats and steps > 1)

    def finished(self, evaluations: int, steps: int) -> int:
        """How many of the steps that are run are finished after that many evaluations."""
        if self.repeats and steps > 1:
            return min(steps, max(0, evaluations - 1))
        done = evaluations // self.order
        return steps if evaluations > self.order * (steps - 1) else done


class Scheduler(Word):
    """Values of SCHEDULER."""

    EULER = "euler"
    EULER_KARRAS = "euler_karras"
    EULER_EXPONENTIAL = "euler_exponential"
    EULER_BETA = "euler_beta"
    EULER_TRAILING = "euler_trailing"
    EULER_ANCESTRAL = "euler_ancestral"
    EULER_ANCESTRAL_TRAILING = "euler_ancestral_trailing"
    DDIM = "ddim"
    DDIM_TRAILING = "ddim_trailing"
    DPMPP_2M = "dpmpp_2m"
    DPMPP_2M_KARRAS = "dpmpp_2m_karras"
    DPMPP_2M_EXPONENTIAL = "dpmpp_2m_exponential"
    DPMPP_2M_BETA = "dpmpp_2m_beta"
    DPMPP_2M_TRAILING = "dpmpp_2m_trailing"
    UNIPC = "unipc"
    UNIPC_KARRAS = "unipc_karras"
    UNIPC_EXPONENTIAL = "unipc_exponential"
    UNIPC_BETA = "unipc_beta"
    UNIPC_TRAILING = "unipc_trailing"
    LCM = "lcm"
    DPMPP_2M_SDE = "dpmpp_2m_sde"
    DPMPP_2M_SDE_KARRAS = "dpmpp_2m_sde_karras"
    DPMPP_2M_SDE_EXPONENTIAL = "dpmpp_2m_sde_exponential"
    DPMPP_2M_SDE_BETA = "dpmpp_2m_sde_beta"
    DPMPP_2M_SDE_TRAILING = "dpmpp_2m_sde_trailing"
    DPMPP_SDE = "dpmpp_sde"
    DPMPP_SDE_KARRAS = "dpmpp_sde_karras"
    DPMPP_SDE_EXPONENTIAL = "dpmpp_sde_exponential"
    DPMPP_SDE_BETA = "dpmpp_sde_beta"
    DPMPP_SDE_TRAILING = "dpmpp_sde_trailing"
    HEUN = "heun"
    HEUN_KARRAS = "heun_karras"
    HEUN_EXPONENTIAL = "heun_exponential"
    HEUN_BETA = "heun_beta"
    HEUN_TRAILING = "heun_trailing"
    KDPM2 = "kdpm2"
    KDPM2_KARRAS = "kdpm2_karras"
    KDPM2_EXPONENTIAL = "kdpm2_exponential"
    KDPM2_BETA = "kdpm2_beta"
    KDPM2_TRAILING = "kdpm2_trailing"
    LMS = "lms"
    LMS_KARRAS = "lms_karras"
    LMS_EXPONENTIAL = "lms_exponential"
    LMS_BETA = "lms_beta"
    LMS_TRAILING = "lms_trailing"
    PNDM = "pndm"
    TCD = "tcd"
    EDM_EULER = "edm_euler"
    EDM_DPMPP_2M = "edm_dpmpp_2m"


_EVEN = (
    ("use_karras_sigmas", False),
    ("use_exponential_sigmas", False),
    ("use_beta_sigmas", False),
)
_TRAILING = (("timestep_spacing", "trailing"),)


def _only(setting: str) -> tuple[tuple[str, object], ...]:
    return tuple((name, name == setting) for name, _ in _EVEN)


SPREADS: dict[str, tuple[tuple[str, object], ...]] = {
    "karras": _only("use_karras_sigmas"),
    "exponential": _only("use_exponential_sigmas"),
    "beta": _only("use_beta_sigmas"),
    "trailing": _EVEN + _TRAILING,
}
"""How noise levels are spread -> settings. A sampler's variant is `NAME_SPREAD`."""

SPREAD_TITLES = {
    "karras": "Karras",
    "exponential": "Exponential",
    "beta": "Beta",
    "trailing": "SGM Uniform",
}
"""What front ends call them."""

_2M = (("algorithm_type", "dpmsolver++"), ("solver_order", 2))
_2M_SDE = (("algorithm_type", "sde-dpmsolver++"), ("solver_order", 2))
"""The name says which solver it is, whatever solver a checkpoint's own config is for."""
_UNCLIPPED = (("clip_sample", False),)
"""DDIM's own default would clip latents as if they were pixels, where a config does not say (as one
that was written for another sampler). Diffusers' pipelines correct that, too."""
_LU = (("use_lu_lambdas", False),)
"""Another spread, of the multistep solver only; no variant has it."""
_PLMS = (("skip_prk_steps", True),)
"""As every checkpoint of Stable Diffusion has it: without, 9 evaluations come before the rest."""


def _variants() -> dict[str, SchedulerSpec]:
    """Every sampler with its variants, in the order of lists."""
    multistep, every, timesteps = "DPMSolverMultistepScheduler", tuple(SPREADS), ("trailing",)
    families: list[tuple[Scheduler, SchedulerSpec, tuple[str, ...]]] = [
        (Scheduler.EULER, SchedulerSpec("EulerDiscreteScheduler", "Euler"), every),
        (
            Scheduler.EULER_ANCESTRAL,
            SchedulerSpec("EulerAncestralDiscreteScheduler", "Euler a"),
            timesteps,
        ),
        (Scheduler.DDIM, SchedulerSpec("DDIMScheduler", "DDIM", _UNCLIPPED), timesteps),
        (Scheduler.DPMPP_2M, SchedulerSpec(multistep, "DPM++ 2M", _2M), every),
        (Scheduler.UNIPC, SchedulerSpec("UniPCMultistepScheduler", "UniPC"), every),
        (Scheduler.LCM, SchedulerSpec("LCMScheduler", "LCM", max_steps=50), ()),
        (Scheduler.DPMPP_2M_SDE, SchedulerSpec(multistep, "DPM++ 2M SDE", _2M_SDE), every),
        (
            Scheduler.DPMPP_SDE,
            SchedulerSpec("DPMSolverSDEScheduler", "DPM++ SDE", order=2, midpoint=True),
            every,
        ),
        (Scheduler.HEUN, SchedulerSpec("HeunDiscreteScheduler", "Heun", order=2), every),
        (
            Scheduler.KDPM2,
            SchedulerSpec("KDPM2DiscreteScheduler", "DPM2", order=2, midpoint=True),
            every,
        ),
        (Scheduler.LMS, SchedulerSpec("LMSDiscreteScheduler", "LMS"), every),
        (Scheduler.PNDM, SchedulerSpec("PNDMScheduler", "PLMS", _PLMS, repeats=True), ()),
        (Scheduler.TCD, SchedulerSpec("TCDScheduler", "TCD", max_steps=50), ()),
        (Scheduler.EDM_EULER, SchedulerSpec("EDMEulerScheduler", "EDM Euler", edm=True), ()),
        (
            Scheduler.EDM_DPMPP_2M,
            SchedulerSpec(
                "EDMDPMSolverMultistepScheduler",
                "EDM DPM++ 2M",
                (("algorithm_type", "dpmsolver++"),),
                edm=True,
            ),
            (),
        ),
    ]
    variants = {}
    for base, spec, spreads in families:
        variants[str(base)] = replace(spec, base=str(base))
        for spread in spreads:
            settings = spec.settings + SPREADS[spread] + (_LU if spec.cls == multistep else ())
            name = f"{base}_{spread}"
            variants[name] = replace(spec, base=str(base), settings=settings, spread=spread)
    return variants


SCHEDULERS: dict[str, SchedulerSpec] = _variants()
"""Value of SCHEDULER -> sampler.

Each is `cls.from_config(the bundle's scheduler config, **settings)`.
"""


def scheduler_list(names: Iterable[str]) -> str:
    """Names of samplers in a sentence, those with the same variants together."""
    there = list(names)
    groups: dict[tuple[str, ...], list[str]] = {}
    for base in dict.fromkeys(SCHEDULERS[name].base for name in there):
        variants = [n for n in there if SCHEDULERS[n].base == base and n != base]
        if base in there:
            ends = tuple(f"_{SCHEDULERS[n].spread}" for n in variants)
            groups.setdefault(ends, []).append(base)
        else:
            groups.setdefault((), []).extend(variants)
    return ", ".join(
        ", ".join(members) + (f" (each also with {', '.join(ends)})" if ends else "")
        for ends, members in groups.items()
    )
