"""Every field of PEFT's configurations, and what it means for the tensors beside it.

Some ways to start a training change the network's own weights, too, and others change what the
tensors mean. Their files look like those of a LoRA, and would draw a wrong picture without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tessera.adapters.updates import Unusable

APPLIED = {"alpha", "alpha_pattern", "lora_alpha", "use_rslora"}
"""Fields that say how large an update is."""
BY_TENSORS = {
    "bias",
    "decompose_both",
    "decompose_factor",
    "feedforward_modules",
    "fan_in_fan_out",
    "lora_bias",
    "modules_to_save",
    "r",
    "rank_pattern",
    "trainable_token_indices",
    "use_dora",
    "use_effective_conv2d",
}
"""Fields that the tensors tell as well: each of them is applied, or the file is rejected."""
WITHOUT_EFFECT = {
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_ia3_weights",
    "init_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "module_dropout",
    "peft_version",
    "qalora_group_size",
    "rank_dropout",
    "rank_dropout_scale",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "velora_config",
}
"""Fields of the training, and those that mean something only with one of `ACCEPTED`."""
_NOTHING: tuple[Any, ...] = (None, False)
ACCEPTED: dict[str, tuple[Any, ...]] = {
    "peft_type": (None, "LORA", "LOHA", "LOKR", "IA3"),
    # The others (pissa, olora, corda, loftq, lora_ga) take a part out of the network's weights.
    "init_lora_weights": (None, True, False, "gaussian", "eva", "orthogonal", "mica"),
    **dict.fromkeys(
        (
            "alora_invocation_tokens",
            "arrow_config",
            "kasa_config",
            "layer_replication",
            "monteclora_config",
            "target_parameters",
            "use_bdlora",
            "use_qalora",
        ),
        _NOTHING,
    ),
}
"""Accepted values of the fields whose others would change the picture."""


def check_fields(config: Mapping[str, Any]) -> None:
    """Look for fields with values that are not accepted.

    Args:
        config: values by `part.field`.

    Raises:
        Unusable: there is one; the sentence names it.
    """
    for key, value in config.items():
        field = key.rpartition(".")[2]
        accepted = ACCEPTED.get(field)
        if accepted is None or value in accepted:
            continue
        words = ", ".join(str(each) for each in accepted if each is not None)
        raise Unusable(f"has {field} {value!r} in its configuration; accepted: {words}")
