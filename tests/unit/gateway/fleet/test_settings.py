"""`fleet.yaml`."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tessera_gateway.fleet.cli import app
from tessera_gateway.fleet.scaling import Autoscaling
from tessera_gateway.fleet.score import Weights
from tessera_gateway.fleet.settings import FleetError, Server, read_settings


def write(folder: Path, text: str) -> Path:
    (folder / "fleet.yaml").write_text(text)
    return folder / "fleet.yaml"


def test_a_bundle_is_enough(tmp_path: Path) -> None:
    settings = read_settings(write(tmp_path, "bundle: bundles/demo\n"))
    assert settings.bundle == str(tmp_path / "bundles/demo")
    assert (settings.replicas, settings.http_port, settings.grpc_port) == (1, 8000, 8001)
    assert settings.weights == Weights()


def test_everything(tmp_path: Path) -> None:
    text = """
    servers: [{grpc: "a:1", http: "a:2"}]
    templates: /t
    keys: keys.toml
    weights: {control: 9000, overlap: 0.5}
    """
    settings = read_settings(write(tmp_path, text))
    assert settings.servers == (Server("a:1", "a:2"),)
    assert settings.templates == "/t"
    assert settings.keys == str(tmp_path / "keys.toml")
    assert settings.weights == Weights(control=9000.0, overlap=0.5)


def test_a_number_of_workers_that_follows_the_work(tmp_path: Path) -> None:
    text = "bundle: b\nshared_templates: true\nautoscaling: {min: 0, max: 4, down_delay: 60}\n"
    assert read_settings(write(tmp_path, text)).scaling == Autoscaling(0, 4, down_delay=60)
    fixed = read_settings(write(tmp_path, "bundle: b\nreplicas: 3\n")).scaling
    assert (fixed.min, fixed.max) == (3, 3)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "has to name either a bundle or servers"),
        ("bundle: b\nservers: [{grpc: a, http: b}]", "either a bundle or servers"),
        ("ray: a:6379\nservers: [{grpc: a, http: b}]", "ray needs a bundle"),
        ("bundle: b\nreplica: 2", "unknown field `replica`"),
        ("bundle: b\nreplicas: 0", "replicas is 0; accepted: 1 and above"),
        ("bundle: b\nreplicas: two", "Expected `int`"),
        ("bundle: b\nhttp_port: 70000", "http_port is 70000; accepted: 1 to 65535"),
        ("bundle: b\nweights: {x: 1}", "unknown field `x`"),
        ("bundle: [", "is not accepted"),
        ("bundle: b\nautoscaling: {most: 2}", "unknown field `most`"),
        ("bundle: b\nautoscaling: {min: 2}", "autoscaling: max is 1; accepted: 1 and above, and"),
        ("bundle: b\nautoscaling: {max: 2}", "autoscaling needs shared_templates: true"),
        ("servers: [{grpc: a, http: b}]\nautoscaling: {}", "autoscaling needs a bundle"),
    ],
)
def test_what_is_not_accepted(tmp_path: Path, text: str, sentence: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(FleetError, match=sentence) as caught:
        read_settings(path)
    assert str(path) in str(caught.value)
    shown = CliRunner().invoke(app, [str(path)])
    assert shown.exit_code == 1


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="cannot be read: No such file"):
        read_settings(tmp_path / "none.yaml")
