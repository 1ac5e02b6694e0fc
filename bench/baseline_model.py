"""A Triton Python model around diffusers' pipelines, as people write it: the baseline of
`bench.baselines`, which copies this file into a model repository.

All requests of a Triton batch that can share a pipeline call do (same steps, LoRAs, ControlNets,
guidance, and all edits or none). Each such group is answered when it is drawn, by response senders,
which models that are not decoupled may use, too, so clients need no streams. The groups with the
LoRAs that are fused already come first.

LoRAs stay loaded, the latest `KEPT` of them, and are fused when a group has others than the one
before. Runs in Triton's process for it and imports nothing of this project.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import triton_python_backend_utils as pb_utils

KEPT = 64
"""LoRAs that stay loaded."""


class TritonPythonModel:
    """REQUEST (JSON), IMAGE and MASK of an edit, HINT for ControlNets -> PICTURE."""

    def initialize(self, args: dict[str, Any]) -> None:
        """Open the pipeline and the ControlNets."""
        parameters = json.loads(args["model_config"])["parameters"]
        options = {name: value["string_value"] for name, value in parameters.items()}
        torch.set_num_threads(int(options["threads"]))
        self._adapters = Path(options["adapters"])
        self._plain = diffusers.StableDiffusionPipeline.from_pretrained(options["checkpoint"])
        self._networks = {
            folder.name: diffusers.ControlNetModel.from_pretrained(str(folder))
            for folder in sorted(Path(options["controlnets"]).iterdir())
        }
        self._pipes: dict[tuple[bool, tuple[str, ...]], Any] = {}
        self._fused: tuple[str, ...] = ()
        self._loaded: list[str] = []

    def execute(self, requests: list[Any]) -> None:
        """Draw the requests of a batch, in as few pipeline calls as they allow, and answer those of
        each call at once.
        """
        groups: dict[str, list[tuple[Any, dict[str, Any]]]] = {}
        for request in requests:
            inputs = _inputs(request)
            groups.setdefault(_key(inputs), []).append((request.get_response_sender(), inputs))
        for group in sorted(groups.values(), key=self._is_other):
            try:
                pictures = self._draw([inputs for _, inputs in group])
                answers = [_response(picture) for picture in pictures]
            except Exception as error:
                failed = pb_utils.TritonError(repr(error))
                answers = [pb_utils.InferenceResponse([], error=failed) for _ in group]
            for (sender, _), answer in zip(group, answers, strict=True):
                sender.send(answer, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _is_other(self, group: Sequence[tuple[Any, Mapping[str, Any]]]) -> bool:
        """Whether a group needs other LoRAs than those that are fused."""
        return tuple(group[0][1]["loras"]) != self._fused

    @torch.inference_mode()
    def _draw(self, group: Sequence[Mapping[str, Any]]) -> list[Any]:
        first = group[0]
        with torch.inference_mode(mode=False):
            self._fuse(tuple(first["loras"]))
        edits, controls = "IMAGE" in first, tuple(first["controls"])
        pipe = self._pipe(edits, controls)
        options: dict[str, Any] = {}
        if edits:
            options["image"] = np.stack([each["IMAGE"] for each in group]) / np.float32(255)
            options["mask_image"] = np.stack([each["MASK"] for each in group]) / np.float32(255)
            options |= {"strength": 1.0, "height": options["image"].shape[1]}
            options["width"] = options["image"].shape[2]
        if controls:
            hints = np.stack([each["HINT"] for each in group]) / np.float32(255)
            options["control_image" if edits else "image"] = [hints] * len(controls)
            options["controlnet_conditioning_scale"] = [1.0] * len(controls)
        result = pipe(
            [each["prompt"] for each in group],
            num_inference_steps=first["steps"],
            guidance_scale=first["guidance"],
            generator=[torch.Generator("cpu").manual_seed(each["seed"]) for each in group],
            output_type="np",
            **options,
        )
        return [(image * 255).round().astype(np.uint8) for image in result.images]

    def _pipe(self, edits: bool, controls: tuple[str, ...]) -> Any:
        """The pipeline for edits or generations with these ControlNets; all share their parts."""
        key = (edits, controls)
        if key not in self._pipes:
            kind = f"{'ControlNet' if controls else ''}{'Inpaint' if edits else ''}"
            parts = dict(self._plain.components)
            if controls:
                parts["controlnet"] = [self._networks[name] for name in controls]
            pipeline = getattr(diffusers, f"StableDiffusion{kind}Pipeline")
            self._pipes[key] = pipeline(**parts, requires_safety_checker=False)
            self._pipes[key].set_progress_bar_config(disable=True)
        return self._pipes[key]

    def _fuse(self, loras: tuple[str, ...]) -> None:
        """Fuse LoRAs, unless those of the call before are the same."""
        if loras == self._fused:
            return
        if self._fused:
            self._plain.unfuse_lora()
        self._fused = ()
        for name in loras:
            self._load(name)
        if loras:
            names = [_adapter(name) for name in loras]
            self._plain.enable_lora()
            self._plain.set_adapters(names, [1.0] * len(names))
            self._plain.fuse_lora(adapter_names=names)
        elif self._loaded:
            self._plain.disable_lora()
        self._fused = loras

    def _load(self, name: str) -> None:
        """Load a LoRA that is not there, and drop the one that has not been used for longest."""
        if name in self._loaded:
            self._loaded.remove(name)
        else:
            self._plain.load_lora_weights(
                str(self._adapters), weight_name=f"{name}.safetensors", adapter_name=_adapter(name)
            )
        self._loaded.append(name)
        if len(self._loaded) > KEPT:
            self._plain.delete_adapters(_adapter(self._loaded.pop(0)))


def _adapter(name: str) -> str:
    """What PEFT is told: its names have no dots."""
    return name.replace(".", "_")


def _inputs(request: Any) -> dict[str, Any]:
    arrays = {tensor.name(): tensor.as_numpy()[0] for tensor in request.inputs()}
    return {**json.loads(arrays.pop("REQUEST")[0]), **arrays}


def _key(inputs: Mapping[str, Any]) -> str:
    """Equal for requests that can share a call."""
    shape = inputs["IMAGE"].shape if "IMAGE" in inputs else None
    fields = ("steps", "guidance", "loras", "controls")
    return repr((shape, *(inputs[field] for field in fields)))


def _response(picture: Any) -> Any:
    return pb_utils.InferenceResponse([pb_utils.Tensor("PICTURE", picture[None])])
