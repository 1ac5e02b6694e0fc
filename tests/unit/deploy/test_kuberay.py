"""KubeRay's RayService, as a manifest and by the Helm chart, as far as a machine without a cluster
can tell: fields, pods, ports, and the configuration that Ray Serve gets.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import msgspec
import pytest
import yaml
from msgspec.structs import replace

from tessera.serve.tritonserver import Ports
from tessera_gateway.fleet.scaling import Autoscaling
from tessera_gateway.fleet.settings import FleetError, FleetSettings, settings_of
from tests.samples.charts import CHART, DEPLOY, lint, rendered

pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")

ROOT = DEPLOY.parent
VERSION = "1.34"
MANIFEST = DEPLOY / "kubernetes" / "kuberay" / "rayservice.yaml"
REDIS = DEPLOY / "kubernetes" / "kuberay-redis" / "kustomization.yaml"
CREDENTIAL = {
    "type": "object",
    "properties": {"value": {"type": "string"}, "valueFrom": {"type": "object"}},
    "additionalProperties": False,
}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}


def group(**more: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["template", "rayStartParams", *more],
        "properties": {"template": {"type": "object"}, "rayStartParams": TEXTS, **more},
        "additionalProperties": False,
    }


COUNT = {"type": "integer", "minimum": 0}
RAY_SERVICE = {
    "type": "object",
    "required": ["serveConfigV2", "rayClusterConfig"],
    "additionalProperties": False,
    "properties": {
        "serveConfigV2": {"type": "string"},
        "rayClusterConfig": {
            "type": "object",
            "required": ["rayVersion", "headGroupSpec", "workerGroupSpecs"],
            "additionalProperties": False,
            "properties": {
                "rayVersion": {"type": "string"},
                "enableInTreeAutoscaling": {"type": "boolean"},
                "authOptions": {
                    "type": "object",
                    "properties": {"mode": {"enum": ["disabled", "token"]}},
                    "additionalProperties": False,
                },
                "gcsFaultToleranceOptions": {
                    "type": "object",
                    "required": ["redisAddress"],
                    "properties": {
                        "redisAddress": {"type": "string"},
                        "redisUsername": CREDENTIAL,
                        "redisPassword": CREDENTIAL,
                        "externalStorageNamespace": {"type": "string"},
                    },
                    "additionalProperties": False,
                },
                "headGroupSpec": group(),
                "workerGroupSpecs": {
                    "type": "array",
                    "minItems": 1,
                    "items": group(
                        groupName={"type": "string"},
                        replicas=COUNT,
                        minReplicas=COUNT,
                        maxReplicas=COUNT,
                    ),
                },
            },
        },
    },
}
"""Those fields of KubeRay's RayService (ray.io/v1) that are used here, with the types that its API
reference gives them. The whole definition is 0.8 MB, mostly Kubernetes' own pods."""


def manifest() -> dict[str, Any]:
    found: dict[str, Any] = next(yaml.safe_load_all(MANIFEST.read_text()))
    return found


def ray_service(documents: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = [each for each in documents if each["kind"] == "RayService"]
    return found


VALUES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "gpus": {"gpu": True, "serve": ["--place", "unet=gpu:0"], "weights": {"control": 9000}},
    "autoscaling": {"autoscaling": {"min": 0, "max": 4}, "templatesClaim": "templates"},
    "redis": {"redis": {"address": "redis:6379", "secret": "redis"}},
    "keys": {"keysSecret": "keys", "bundleClaim": "bundles", "bundle": "/bundles/mine"},
    "metrics": {"metricsNamespaces": {"matchLabels": {"name": "monitoring"}}},
    "pods": {
        "imagePullSecrets": [{"name": "registry"}],
        "imagePullPolicy": "Always",
        "head": {"nodeSelector": {"disk": "ssd"}},
        "worker": {"tolerations": [{"key": "gpu", "operator": "Exists"}]},
    },
}


@pytest.fixture(params=["manifest", *VALUES])
def service(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A RayService: of the manifest, or of the chart with some values."""
    if request.param == "manifest":
        return manifest()
    return ray_service(rendered(VALUES[request.param]))


def pods(service: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = service["spec"]["rayClusterConfig"]
    (workers,) = cluster["workerGroupSpecs"]
    return [cluster["headGroupSpec"]["template"], workers["template"]]


def settings(service: dict[str, Any]) -> FleetSettings:
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    return settings_of(application["args"], "args", Path("/"))


def test_fields_are_those_of_kuberay(service: dict[str, Any]) -> None:
    assert (service["apiVersion"], service["kind"]) == ("ray.io/v1", "RayService")
    jsonschema.validate(service["spec"], RAY_SERVICE)


@pytest.mark.parametrize("field", ["serveConfig", "rayClusterSpec"])
def test_a_wrong_field_is_found(field: str) -> None:
    with pytest.raises(jsonschema.ValidationError, match=field):
        jsonschema.validate({**manifest()["spec"], field: ""}, RAY_SERVICE)


def test_pods_are_accepted_by_kubernetes_schemas(service: dict[str, Any]) -> None:
    for template in pods(service):
        pod = {"apiVersion": "v1", "kind": "Pod", **template}
        kubernetes_validate.validate(pod, VERSION, strict=True)
        (container,) = template["spec"]["containers"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in template["spec"]["volumes"]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own code
def test_serve_accepts_its_configuration_and_finds_the_fleet(service: dict[str, Any]) -> None:
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
    from ray.serve.schema import ServeDeploySchema

    parsed = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (application,) = parsed.applications
    module, _, name = application.import_path.partition(":")
    builder = getattr(import_module(module), name)
    built = call_user_app_builder_with_args_if_necessary(builder, application.args)
    front = built._bound_deployment
    (given,) = front.init_args
    assert given == replace(settings(service), ray="auto"), (
        "workers listen on their pods' addresses"
    )
    assert front.ray_actor_options["resources"] == {"node:__internal_head__": 0.001}
    assert application.route_prefix == "/", "Serve's proxy is ready once there is a route"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own code
def test_a_fleet_of_listed_servers_is_refused() -> None:
    from tessera_gateway.fleet.kuberay import fleet

    with pytest.raises(FleetError, match="accepted: a bundle"):
        fleet({"servers": [{"grpc": "a:1", "http": "a:2"}]})
    with pytest.raises(FleetError, match=r"args is not accepted: .*bundel"):
        fleet({"bundel": "/bundles/demo"})


def test_ports_of_the_head_are_those_of_front_and_proxy(service: dict[str, Any]) -> None:
    head, worker = (each["spec"]["containers"][0] for each in pods(service))
    ports = {port["name"]: port["containerPort"] for port in head["ports"]}
    front = settings(service)
    assert front.host == "0.0.0.0"
    assert (ports["http"], ports["grpc"]) == (front.http_port, front.grpc_port)
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    assert ports["serve"] == config["http_options"]["port"]
    scraped = [port["containerPort"] for port in worker.get("ports", [])]
    assert scraped == ([Ports.metrics] if "--metrics-port" in front.serve else [])


def test_every_worker_has_a_pod(service: dict[str, Any]) -> None:
    cluster = service["spec"]["rayClusterConfig"]
    (workers,) = cluster["workerGroupSpecs"]
    fleet = settings(service)
    bounds = (workers["minReplicas"], workers["maxReplicas"])
    assert bounds == (fleet.scaling.min, fleet.scaling.max)
    assert cluster.get("enableInTreeAutoscaling", False) == (fleet.autoscaling is not None)
    assert float(workers["rayStartParams"]["num-cpus"]) == fleet.cpus
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    limits = pods(service)[1]["spec"]["containers"][0]["resources"]["limits"]
    assert int(limits.get("nvidia.com/gpu", 0)) == fleet.gpus


def test_ray_is_the_one_that_the_image_installs(service: dict[str, Any]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (ray,) = [p for p in extras["optional-dependencies"]["ray"] if p.startswith("ray")]
    assert service["spec"]["rayClusterConfig"]["rayVersion"] == ray.partition("==")[2]
    assert {pod["spec"]["containers"][0]["image"] for pod in pods(service)} == {"tessera-ray"}


def test_helm_has_nothing_against_the_chart() -> None:
    assert not lint()


def test_the_chart_makes_the_manifest() -> None:
    made = rendered({})
    expected = [
        each
        for path in (MANIFEST, MANIFEST.with_name("policies.yaml"))
        for each in yaml.safe_load_all(path.read_text())
    ]
    named = {(each["kind"], each["metadata"]["name"]): each for each in made}
    assert len(made) == len(named) == len(expected)
    for each in expected:
        found = dict(named[each["kind"], each["metadata"]["name"]]["spec"])
        wanted = dict(each["spec"])
        if each["kind"] == "RayService":
            texts = found.pop("serveConfigV2"), wanted.pop("serveConfigV2")
            assert yaml.safe_load(texts[0]) == yaml.safe_load(texts[1])
        assert found == wanted


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_the_kustomization_with_redis(tmp_path: Path) -> None:
    shutil.copytree(DEPLOY / "kubernetes", tmp_path / "kubernetes")
    folder = tmp_path / "kubernetes" / "kuberay"
    with (folder / "kustomization.yaml").open("a") as file:
        file.write("components: [../kuberay-redis]\n")
    command = ["kubectl", "kustomize", str(folder)]
    built = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    service = ray_service(list(yaml.safe_load_all(built)))
    jsonschema.validate(service["spec"], RAY_SERVICE)
    redis = service["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]
    assert redis["redisAddress"] == "redis:6379"


def test_what_values_choose() -> None:
    redis = ray_service(rendered(VALUES["redis"]))["spec"]["rayClusterConfig"]
    (patch,) = yaml.safe_load(REDIS.read_text())["patches"]
    (operation,) = yaml.safe_load(patch["patch"])
    assert redis["gcsFaultToleranceOptions"] == operation["value"]
    fleet = settings(ray_service(rendered(VALUES["autoscaling"])))
    assert fleet.shared_templates
    assert fleet.autoscaling == Autoscaling(0, 4)
    assert settings(ray_service(rendered(VALUES["keys"]))).keys == "/etc/tessera/keys.toml"
    assert settings(ray_service(rendered(VALUES["gpus"]))).weights.control == 9000
    assert [each["kind"] for each in rendered({"networkPolicy": False})] == ["RayService"]


@pytest.mark.parametrize("namespaces", [{}, {"matchLabels": {"name": "monitoring"}}])
def test_chosen_namespaces_reach_only_the_metrics_of_workers(namespaces: dict[str, Any]) -> None:
    serve = ["--place", "unet=gpu:0"]
    made = rendered({"metricsNamespaces": namespaces, "serve": serve})
    (policy,) = [each for each in made if each["metadata"]["name"] == "tessera-metrics"]
    kubernetes_validate.validate(policy, VERSION, strict=True)
    (rule,) = policy["spec"]["ingress"]
    port = Ports.metrics
    assert rule == {"from": [{"namespaceSelector": namespaces}], "ports": [{"port": port}]}
    chosen = policy["spec"]["podSelector"]["matchLabels"]
    assert chosen == {"app": "tessera-ray", "ray.io/node-type": "worker"}
    assert settings(ray_service(made)).serve == ("--metrics-port", str(port), *serve)
    closed = rendered({"metricsNamespaces": namespaces, "networkPolicy": False})
    assert [each["kind"] for each in closed] == ["RayService"]
    assert settings(ray_service(rendered({}))).serve == ()


def test_values_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match="autoscaling needs templatesClaim"):
        rendered({"autoscaling": {"max": 4}})


@pytest.mark.parametrize(
    "wrong",
    [
        {"replica": 2},
        {"replicas": 0},
        {"autoscaling": {"mx": 4}},
        {"autoscaling": {"hold_seconds": 0}},
        {"autoscaling": {"hold_requests": 0}},
        {"metricsNamespaces": {"name": "monitoring"}},
    ],
)
def test_wrong_values_are_refused_by_the_schema(wrong: dict[str, Any]) -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    jsonschema.validate(values, schema)
    assert set(values) | {"global"} == set(schema["properties"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**values, **wrong}, schema)


def test_the_schema_knows_the_fields_of_autoscaling() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    fields = {field.name for field in msgspec.structs.fields(Autoscaling)}
    assert set(schema["properties"]["autoscaling"]["properties"]) == fields


def test_policies_are_about_pods_that_there_are() -> None:
    labels = {pod["metadata"]["labels"]["app"] for pod in pods(manifest())}
    policies = yaml.safe_load_all(MANIFEST.with_name("policies.yaml").read_text())
    for policy in policies:
        kubernetes_validate.validate(policy, VERSION, strict=True)
        assert {policy["spec"]["podSelector"]["matchLabels"]["app"]} == labels
    (front,) = re.findall(r"ports: \[\{port: (\d+)\}, \{port: (\d+)\}\]", policies_text())
    assert tuple(map(int, front)) == (FleetSettings().http_port, FleetSettings().grpc_port)


def policies_text() -> str:
    return MANIFEST.with_name("policies.yaml").read_text()
