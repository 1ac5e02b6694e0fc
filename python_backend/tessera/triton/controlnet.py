"""`controlnet_NAME`: one ControlNet, called by `denoise` beside the UNet's encoder half.

A call tells it a request's control picture and text under a key, or asks for a step's residuals of
the requests with those keys.
"""

from __future__ import annotations

import json
from typing import Any

import torch

from tessera import trace
from tessera.controls.network import CONDITIONS, ControlNetwork
from tessera.engines.bundle import Bundle
from tessera.manifest import CONTROLNET, HINT
from tessera.shared.settings import CPU, EngineKind, ServerSettings
from tessera.triton import pb


class TritonPythonModel:
    """KEYS, IMAGE, TEXT (POOLED, SIZES, MODE), or KEYS, SAMPLE, TIMESTEP -> RESIDUALS."""

    def initialize(self, args: dict[str, Any]) -> None:
        """Open the engines of the ControlNet that the model is named after, on its device."""
        torch.set_num_threads(1)
        on_gpu = args["model_instance_kind"] == "GPU"
        device = f"cuda:{args['model_instance_device_id']}" if on_gpu else ""
        config = json.loads(args["model_config"])
        graph = config["name"]
        if config["parameters"]["placement"]["string_value"] == CPU:
            device = CPU
        settings = ServerSettings.from_environment()
        trace.write_to(settings.trace)
        bundle = Bundle.of(settings)
        kind = EngineKind.ONNXRUNTIME if device == CPU else None
        self._network = ControlNetwork(
            bundle.engine(graph, kind, device=device),
            bundle.engine(f"{graph}{HINT}", kind, device=device),
            max_rows=bundle.manifest.limits.max_rows,
            modes=bundle.manifest.control_kind(graph.removeprefix(CONTROLNET)).modes,
        )
        half = config["output"][0]["data_type"] == "TYPE_FP16"
        self._precision = torch.float16 if half else torch.float32

    def execute(self, requests: list[pb.Request]) -> list[pb.Response]:
        """Answer each request on its own."""
        with trace.span("execute"):
            return pb.answer_each(requests, self._answer)

    @torch.inference_mode()
    def _answer(self, request: pb.Request) -> list[pb.TensorHandle]:
        pb.check_call(request)
        inputs = {name: pb.to_torch(handle) for name, handle in pb.handles(request).items()}
        keys = [int(key) for key in inputs["KEYS"]]
        if "SAMPLE" in inputs:
            found = self._network.residuals(keys, inputs["SAMPLE"], inputs["TIMESTEP"])
            return [pb.tensor_of("RESIDUALS", found.to(self._precision))]
        given = {
            theirs: inputs[ours].clone() for ours, theirs in CONDITIONS.items() if ours in inputs
        }
        mode = int(inputs["MODE"]) if "MODE" in inputs else None
        self._network.tell(keys[0], inputs["IMAGE"], given, mode)
        return [pb.tensor_of("RESIDUALS", torch.zeros(1, dtype=self._precision))]
