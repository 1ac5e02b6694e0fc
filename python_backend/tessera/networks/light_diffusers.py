"""The parts of diffusers that serving needs at every start: schedulers and the converters of LoRAs'
names, without what makes `import diffusers` slow.

Measured with diffusers 0.42.1 on torch 2.13, in seconds of CPU time beyond `import torch` (0.95):
`import diffusers` 1.1, of which 0.9 go into `torch._dynamo`, torch's compiler, which diffusers
imports for one decorator of its networks and does without where it cannot be imported. So it is
told that it cannot; 0.2 remain. Its networks add 0.9 and its pipelines' LoRA loaders, which bring
transformers, 0.9 (`docs/internals/startup.md`).

Whoever else imports `torch._dynamo`, in another thread or later, gets it.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from tessera.shared.settings import compiles

_DYNAMO = "torch._dynamo"
_KOHYA = ("lora_te_", "lora_unet_", "lora_te1_", "lora_te2_")


class _Refusal(MetaPathFinder):
    """Lets the thread that made it import everything but torch's compiler."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        """Refuse the compiler; leave others to the next finder."""
        if name == _DYNAMO and threading.get_ident() == self._thread:
            raise ImportError(f"{name} is not needed")


@contextlib.contextmanager
def _without_dynamo() -> Iterator[None]:
    """Keep torch's compiler out, unless it is there or will be used: then the networks of diffusers
    are to be decorated as its authors want.
    """
    if _DYNAMO in sys.modules or compiles():
        yield
        return
    refusal = _Refusal()
    sys.meta_path.insert(0, refusal)
    try:
        yield
    finally:
        sys.meta_path.remove(refusal)


with _without_dynamo():
    import diffusers
    from diffusers.loaders import lora_conversion_utils
    from diffusers.utils.state_dict_utils import (
        DIFFUSERS_OLD_TO_PEFT,
        DIFFUSERS_TO_PEFT,
        UNET_TO_DIFFUSERS,
        convert_state_dict,
    )

__all__ = [
    "DIFFUSERS_OLD_TO_PEFT",
    "DIFFUSERS_TO_PEFT",
    "UNET_TO_DIFFUSERS",
    "convert_state_dict",
    "lora_state_dict",
    "scheduler_class",
]


def scheduler_class(name: str) -> Any:
    """One of diffusers' schedulers."""
    return getattr(diffusers, name)


def lora_state_dict(
    tensors: Mapping[str, torch.Tensor], *, layers_per_block: int | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """A LoRA's tensors under diffusers' names, and kohya's alphas: what
    `StableDiffusionXLLoraLoaderMixin.lora_state_dict` gives, by the same converters.

    Args:
        tensors: the file's.
        layers_per_block: of the UNet, where LoRAs may use the names of the original SDXL code.
    """
    state = dict(tensors)
    if not all(key.startswith(_KOHYA) for key in state):
        return state, {}
    if layers_per_block:
        config = SimpleNamespace(layers_per_block=layers_per_block)
        state = lora_conversion_utils._maybe_map_sgm_blocks_to_diffusers(state, config)
    converted, alphas = lora_conversion_utils._convert_non_diffusers_lora_to_diffusers(state)
    return converted, alphas or {}
