"""Compiled engines as far as a machine without a GPU can tell: what is planned, which one fits,
what is refused. The compiler is a fake: what it compiles are ONNX files that ONNX Runtime runs.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tessera.engines.compiled import FOLDER, find_compiled, read_record
from tessera.engines.registry import Source
from tessera.errors import BundleError
from tessera.manifest import read_manifest
from tessera_build.cli import app
from tessera_build.compile import Job, compile_job, plan_jobs
from tests.fakes.compiler import MACHINE, FakeCompiler
from tests.samples.bundles import Small

Make = Callable[[str], Small]
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def bundle(small: Make, tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    shutil.copytree(small("sd15").bundle, folder)
    return folder


@pytest.fixture(scope="module")
def planned(small: Make) -> dict[str, Job]:
    """Jobs of a bundle that nothing is compiled for."""
    return jobs(small("sd15").bundle)


@pytest.fixture
def job_of(bundle: Path, planned: dict[str, Job]) -> Callable[[str], Job]:
    """A graph's job in the bundle of this test, which is planned as the one it is a copy of."""

    def get(graph: str) -> Job:
        job = planned[graph]
        source = Source.of(bundle, read_manifest(bundle), graph)
        return dataclasses.replace(job, source=source, path=bundle / FOLDER / job.path.name)

    return get


@pytest.fixture(scope="module")
def _compiled_once(small: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with one compiled engine, of `vae_decoder`; `compiled` is a copy to spoil."""
    folder = tmp_path_factory.mktemp("compiled") / "bundle"
    shutil.copytree(small("sd15").bundle, folder)
    compile_job(jobs(folder)["vae_decoder"], FakeCompiler(), folder)
    return folder


@pytest.fixture
def compiled(_compiled_once: Path, tmp_path: Path) -> Path:
    shutil.copytree(_compiled_once, tmp_path / "compiled")
    return tmp_path / "compiled"


def jobs(bundle: Path, precision: str = "fp32", **changes: Any) -> dict[str, Job]:
    planned = plan_jobs(bundle, precision=precision, **(MACHINE | changes))
    return {job.key.graph: job for job in planned}


def find(bundle: Path, **changes: str) -> Path:
    return find_compiled(bundle, read_manifest(bundle), "vae_decoder", **(MACHINE | changes))


def test_profiles_follow_from_the_bundles_limits(bundle: Path, planned: dict[str, Job]) -> None:
    sample = planned["unet_encoder"].key.profile["sample"]
    assert dataclasses.astuple(sample) == ((1, 4, 8, 8), (2, 4, 16, 16), (16, 4, 32, 32))
    mid = planned["unet_decoder"].key.profile["mid"]
    assert dataclasses.astuple(mid) == ((1, 64, 1, 1), (2, 64, 2, 2), (16, 64, 4, 4))
    image = planned["vae_encoder"].key.profile["image"]
    assert image.largest == (2, 3, 256, 256)
    down = planned["unet_encoder_lowrank"].key.profile["lora_down"]
    width = down.smallest[2]
    assert dataclasses.astuple(down) == ((1, 1, width), (2, 16, width), (16, 64, width))
    own = planned["unet_decoder_lowrank"].key.profile
    plain = planned["unet_decoder"].key.profile
    assert {name: own[name] for name in plain} == plain
    assert own["lora_conv_up"].largest[:2] == (16, 64)
    assert set(planned) == set(read_manifest(bundle).graphs)


def test_a_name_is_made_of_everything_that_went_into_the_plan(planned: dict[str, Job]) -> None:
    key = planned["vae_decoder"].key
    other_shapes = {"latents": dataclasses.replace(key.profile["latents"], largest=(2, 4, 64, 64))}
    changes: list[dict[str, Any]] = [
        {"weights": "0"},
        {"precision": "fp16"},
        {"architecture": "sm_89"},
        {"tensorrt": "10.8.0"},
        {"profile": other_shapes},
        {"stripped": True},
    ]
    names = {dataclasses.replace(key, **change).name for change in changes} | {key.name}
    assert len(names) == 1 + len(changes)


def test_a_plan_is_compared_with_torch_and_found_again(
    bundle: Path, job_of: Callable[[str], Job]
) -> None:
    job = job_of("vae_decoder")
    with pytest.raises(
        BundleError, match=r"no compiled engine of vae_decoder for sm_90 .* run: tessera-build"
    ):
        find(bundle)
    record = compile_job(job, FakeCompiler(), bundle)
    assert record.canary_built < 1e-4
    assert record.canary_refitted < 1e-4
    assert job.done
    assert jobs(bundle)["vae_decoder"].done
    assert find(bundle) == job.path
    assert read_record(job.path.with_suffix(".json")) == record
    assert not [p for p in job.path.parent.iterdir() if p.name.startswith(".build")]


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_halves_with_low_rank_inputs_are_compiled_like_the_others(
    bundle: Path, job_of: Callable[[str], Job], half: str
) -> None:
    record = compile_job(job_of(f"unet_{half}_lowrank"), FakeCompiler(), bundle)
    assert record.canary_built < 1e-4
    assert record.canary_refitted < 1e-4


@pytest.mark.parametrize(
    "changes", [{"architecture": "sm_89"}, {"tensorrt": "10.8.0"}], ids=["GPU", "version"]
)
def test_a_plan_for_another_machine_is_never_opened(
    compiled: Path, changes: dict[str, str]
) -> None:
    find(compiled)
    with pytest.raises(BundleError, match=r", only for sm_90 with TensorRT 11\.4\.0; run:"):
        find(compiled, **changes)


def test_a_plan_of_other_weights_is_never_opened(compiled: Path) -> None:
    find(compiled)
    manifest = json.loads((compiled / "bundle.json").read_text())
    manifest["files"]["graphs/vae_decoder.onnx"]["sha256"] = "0" * 64
    (compiled / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="has no compiled engine of vae_decoder"):
        find(compiled)


def test_a_damaged_plan_is_never_opened(compiled: Path) -> None:
    path = find(compiled)
    path.write_bytes(b"plan")
    with pytest.raises(BundleError, match=r"plan is damaged \(SHA-256 differs\)"):
        find(compiled)
    path.with_suffix(".json").write_text("{}")
    with pytest.raises(BundleError, match=r"json is damaged"):
        find(compiled)


@pytest.mark.parametrize(
    ("compiler", "when"),
    [(FakeCompiler(spoil=True), "as built"), (FakeCompiler(deaf=True), "after a refit")],
    ids=["wrong from the start", "deaf to a refit"],
)
def test_a_plan_that_computes_something_else_is_not_used(
    bundle: Path, job_of: Callable[[str], Job], compiler: FakeCompiler, when: str
) -> None:
    job = job_of("vae_decoder")
    pattern = rf"differs from torch by .* {when}; accepted: .*it is not used"
    with pytest.raises(BundleError, match=pattern):
        compile_job(job, compiler, bundle)
    assert not job.done


def test_faulty_versions_are_refused(bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"TensorRT 11\.3\.0\.99 is not supported: .*bias"):
        jobs(bundle, tensorrt="11.3.0.99")
    with pytest.raises(BundleError, match="is not supported"):
        find(bundle, tensorrt="11.3.0")


def test_an_unknown_precision_is_told_the_known_ones(bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"'int8' is unknown; accepted: bf16, fp16, fp32"):
        jobs(bundle, precision="int8")


def test_a_dry_run_prints_the_plan_without_a_gpu(bundle: Path) -> None:
    result = CliRunner().invoke(app, ["compile", str(bundle), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert re.search(r"\nunet_encoder, fp16: to build\n  sample +1x4x8x8 +2x4x16x16", result.output)
    assert "inputs whose shapes follow from these" in result.output
    lines = result.output.splitlines()
    assert all(len(line) <= 80 and "…" not in line for line in lines[1:]), "but for the path"
    assert not (bundle / "compiled").exists()


@pytest.mark.parametrize("version", ["10.8", "11.4"])
def test_every_name_that_is_used_of_tensorrt_exists(version: str) -> None:
    api = json.loads((ROOT / "tests" / "fakes" / "tensorrt_api.json").read_text())[version]
    source = (ROOT / "python_backend" / "tessera" / "engines" / "tensorrt.py").read_text()
    for name, member in re.findall(r"\btrt\.([A-Z]\w*)(?:\.([A-Z]\w*))?", source):
        assert name in api, name
        assert not member or member in api[name], f"{name}.{member}"
    members = {
        "_engine": "ICudaEngine",
        "context": "IExecutionContext",
        "refitter": "Refitter",
        "_refitter": "Refitter",
        "_runtime": "Runtime",
        "prototype": "Weights",
    }
    for owner, kind in members.items():
        used = re.findall(rf"\b{owner}\.([a-z]\w*)", source)
        assert used, owner
        for member in used:
            assert member in api[kind], f"{kind}.{member}"
