"""The manifests are ones that Kubernetes takes, and fit the service."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from bentoml._internal.configuration.containers import BentoMLContainer

from lspt_serve.settings import PREFIX, ServiceSettings

ROOT = Path(__file__).resolve().parents[1]
OBJECTS: list[dict[str, Any]] = list(
    yaml.safe_load_all((ROOT / "examples" / "deploy" / "kubernetes.yaml").read_text())
)
BY_KIND = {found["kind"]: found for found in OBJECTS}
POD = BY_KIND["Deployment"]["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]


@pytest.mark.parametrize("found", OBJECTS, ids=[*BY_KIND])
def test_object_is_one_of_kubernetes(found: dict[str, Any]) -> None:
    kubernetes_validate.validate(found, "1.37", strict=True)


def test_a_mistake_in_an_object_is_found() -> None:
    container = CONTAINER | {"livenessprobe": CONTAINER["livenessProbe"]}
    pod = {"metadata": {"name": "x"}, "spec": POD["spec"] | {"containers": [container]}}

    with pytest.raises(kubernetes_validate.ValidationError, match="livenessprobe"):
        kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pod"} | pod, "1.37", strict=True)


def test_objects_name_one_another() -> None:
    deployment, service, scaler = (
        BY_KIND[kind] for kind in ("Deployment", "Service", "HorizontalPodAutoscaler")
    )
    labels = POD["metadata"]["labels"]
    (port,) = CONTAINER["ports"]
    (claim,) = [
        volume["persistentVolumeClaim"]["claimName"]
        for volume in POD["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    ]

    assert deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"] == labels
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
    assert claim == BY_KIND["PersistentVolumeClaim"]["metadata"]["name"]
    target = {name: deployment[name] for name in ("apiVersion", "kind")} | {
        "name": deployment["metadata"]["name"]
    }
    assert scaler["spec"]["scaleTargetRef"] == target
    mounts = {mount["name"] for mount in CONTAINER["volumeMounts"]}
    assert mounts == {volume["name"] for volume in POD["spec"]["volumes"]}


def test_ports_paths_and_settings_are_those_of_the_service() -> None:
    (port,) = CONTAINER["ports"]
    probes = [CONTAINER[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")]
    settings = {PREFIX + name.upper() for name in ServiceSettings.model_fields}
    own = {variable["name"] for variable in CONTAINER["env"]} - {"OMP_NUM_THREADS"}

    assert port["containerPort"] == BentoMLContainer.http.port.get()
    assert POD["metadata"]["annotations"]["prometheus.io/port"] == str(port["containerPort"])
    assert [probe["path"] for probe in probes] == ["/readyz", "/readyz", "/livez"]
    assert {probe["port"] for probe in probes} == {port["name"]}
    assert own <= settings | {"BENTOML_HOME", "BENTOML_DO_NOT_TRACK"}
    mounts = {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    values = {variable["name"]: variable["value"] for variable in CONTAINER["env"]}
    assert values["LSPT_BUNDLES"] == mounts["bundles"]
    assert values["BENTOML_HOME"].startswith(mounts["tmp"] + "/")  # the rest is read-only
