"""ControlNets as Triton models: the configurations as Triton parses them."""

from __future__ import annotations

from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from tessera.controls.models import write_models


def config(folder: Path, name: str) -> model_config_pb2.ModelConfig:
    parsed = model_config_pb2.ModelConfig()
    text_format.Parse((folder / f"controlnet_{name}" / "config.pbtxt").read_text(), parsed)
    return parsed


def test_each_has_a_model_that_triton_can_read(tmp_path: Path) -> None:
    places = {"edges": "gpu:3", "depth": "cpu"}
    write_models(tmp_path, ["edges", "depth", "pose"], places, half=True)
    kinds = model_config_pb2.ModelInstanceGroup
    wanted = {
        "edges": (kinds.KIND_GPU, [3], "gpu:3", model_config_pb2.TYPE_FP16),
        "depth": (kinds.KIND_CPU, [], "cpu", model_config_pb2.TYPE_FP32),
        "pose": (kinds.KIND_CPU, [], "auto", model_config_pb2.TYPE_FP16),
    }
    for name, (kind, gpus, text, residuals) in wanted.items():
        found = config(tmp_path, name)
        (group,) = found.instance_group
        assert (found.name, found.backend) == (f"controlnet_{name}", "python")
        assert (group.count, group.kind, list(group.gpus)) == (1, kind, gpus)
        assert found.parameters["placement"].string_value == text
        assert found.output[0].data_type == residuals
        assert {i.name for i in found.input if not i.optional} == {"KEYS"}
        code = (tmp_path / f"controlnet_{name}" / "1" / "model.py").read_text()
        assert "from tessera.triton.controlnet import TritonPythonModel" in code


def test_residuals_are_float32_where_engines_are(tmp_path: Path) -> None:
    write_models(tmp_path, ["edges"], {})
    assert config(tmp_path, "edges").output[0].data_type == model_config_pb2.TYPE_FP32
