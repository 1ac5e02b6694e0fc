"""Every field of a checkpoint's scheduler config, as `audit` has those of networks.

Samplers are diffusers' own classes, made of the whole config. A field that a sampler's class has is
applied by it; one that it does not have means nothing to it, here as in diffusers. So this table
says which classes of configs are known, and which values no sampler here is for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tessera.errors import BundleError, brief, listing
from tessera_build.audit import NOTHING, Only, Rule

CLASS = "class"
"""The sampler's class applies it, if it has it."""
NAME = "name"
"""The sampler's name may say otherwise: `dpmpp_2m_karras` has Karras' sigmas whatever is here."""

_NO = Only((None, False))

CLASSES = (
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
)
"""Of configs. Those of flow matching are not among them: no network here predicts a flow."""

FIELDS: dict[str, Rule] = {
    "algorithm_type": NAME,
    "beta_end": CLASS,
    "beta_schedule": CLASS,
    "beta_start": CLASS,
    "clip_sample": NAME,  # never by DDIM's default, which is meant for pixels
    "clip_sample_range": CLASS,
    "disable_corrector": CLASS,
    "dynamic_thresholding_ratio": CLASS,
    "euler_at_final": CLASS,
    "final_sigmas_type": CLASS,
    "flow_shift": NOTHING,  # of flow matching
    "interpolation_type": CLASS,
    "lambda_min_clipped": CLASS,
    "lower_order_final": CLASS,
    "noise_sampler_seed": CLASS,
    "num_train_timesteps": CLASS,
    "original_inference_steps": CLASS,
    "predict_x0": CLASS,
    "prediction_type": Only(("epsilon", "v_prediction", "sample")),
    "rescale_betas_zero_snr": CLASS,
    "rho": CLASS,
    "sample_max_value": CLASS,
    "set_alpha_to_one": CLASS,
    "shift_terminal": Only((None,)),
    "sigma_data": CLASS,
    "sigma_max": CLASS,
    "sigma_min": CLASS,
    "sigma_schedule": CLASS,
    "skip_prk_steps": CLASS,
    "solver_order": NAME,
    "solver_p": CLASS,
    "solver_type": CLASS,
    "steps_offset": CLASS,
    "thresholding": CLASS,
    "time_shift_type": NOTHING,  # of flow matching
    "timestep_scaling": CLASS,
    "timestep_spacing": CLASS,
    "timestep_type": CLASS,
    "trained_betas": CLASS,
    "use_beta_sigmas": NAME,
    "use_dynamic_shifting": _NO,
    "use_exponential_sigmas": NAME,
    "use_flow_sigmas": _NO,
    "use_karras_sigmas": NAME,
    "use_lu_lambdas": NAME,
    "variance_type": CLASS,
}
"""By name, of all `CLASSES` together: a config may have been written for another class."""


def check_sampling(kind: str, config: Mapping[str, Any]) -> None:
    """Refuse a scheduler config that no sampler here is for.

    Args:
        kind: its class.
        config: its fields.

    Raises:
        BundleError: the class, or a field's value, is not supported. The message names it.
    """
    if kind not in CLASSES:
        raise BundleError(f"the scheduler is of class {kind}; accepted: {listing(CLASSES)}")
    for field, rule in FIELDS.items():
        if isinstance(rule, Only) and config.get(field, rule.values[0]) not in rule.values:
            accepted = listing("nothing" if v is None else str(v) for v in rule.values)
            raise BundleError(
                f"the scheduler has {field} {brief(config[field])}; accepted: {accepted}"
            )
