"""How a checkpoint was trained, as single files say it: by empty tensors beside the weights.

Diffusers does not look at them. It reads such a file with the scheduler config of the model that it
was fine-tuned from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import diffusers
from diffusers import DiffusionPipeline
from safetensors import safe_open

from tessera.errors import BundleError

V_PREDICTION, ZERO_SNR = "v_pred", "ztsnr"
EDM_MEAN, EDM_STD = "edm_mean", "edm_std"
MARKERS = {V_PREDICTION, ZERO_SNR, EDM_MEAN, EDM_STD}
_OTHERS = {"edm_vpred.sigma_max": "an EDM network with v-prediction"}

_EDM_SCALE = 0.5
_EDM = {"sigma_data": 0.5, "sigma_max": 80.0, "sigma_min": 0.002, "rho": 7.0}
"""Of Playground v2.5, the only published network of this kind (Li et al. 2024)."""


@dataclass(frozen=True)
class Training:
    """What decides how a network's prediction is read. `None` leaves it to the scheduler config.

    Attributes:
        prediction: `epsilon` or `v_prediction`.
        zero_snr: whether the last training step was pure noise (Lin et al. 2023).
    """

    prediction: str | None = None
    zero_snr: bool | None = None


AS_CONFIGURED = Training()


def read_markers(path: Path) -> dict[str, list[float]]:
    """The markers in a single file, with their numbers.

    Raises:
        BundleError: one says that the network is of a kind that is not supported.
    """
    with safe_open(path, framework="pt") as weights:
        names = set(weights.keys())
        for name, kind in _OTHERS.items():
            if name in names:
                raise BundleError(f"{path} is {kind} (tensor {name}), which is not supported")
        known = MARKERS & names
        return {name: weights.get_tensor(name).float().flatten().tolist() for name in sorted(known)}


def apply_markers(pipe: DiffusionPipeline, markers: dict[str, list[float]]) -> None:
    """Let a pipeline's configurations say what the markers say."""
    if EDM_MEAN in markers and EDM_STD in markers:
        pipe.vae.register_to_config(
            latents_mean=markers[EDM_MEAN],
            latents_std=markers[EDM_STD],
            scaling_factor=_EDM_SCALE,
        )
        if not type(pipe.scheduler).__name__.startswith("EDM"):
            pipe.scheduler = diffusers.EDMDPMSolverMultistepScheduler(**_EDM)
    elif V_PREDICTION in markers:
        apply_training(pipe, Training("v_prediction", ZERO_SNR in markers or None))


def apply_training(pipe: DiffusionPipeline, training: Training) -> None:
    """Let a pipeline's scheduler config say how its network was trained.

    With zero SNR timesteps are spaced trailing: others would never reach the last training step.
    """
    changes: dict[str, object] = {}
    if training.prediction is not None:
        changes["prediction_type"] = training.prediction
    if training.zero_snr is not None:
        changes["rescale_betas_zero_snr"] = training.zero_snr
        if training.zero_snr:
            changes["timestep_spacing"] = "trailing"
    if changes:
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **changes)
