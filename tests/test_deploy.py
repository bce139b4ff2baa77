"""The manifests are ones that Kubernetes and systemd take, and fit the service."""

import configparser
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate
import pytest
import yaml
from bentoml._internal.configuration.containers import BentoMLContainer
from toys_server import create_served, running

from lspt_serve.models import Backbone
from lspt_serve.settings import PREFIX, ServiceSettings

ROOT = Path(__file__).resolve().parents[1]
OBJECTS: list[dict[str, Any]] = list(
    yaml.safe_load_all((ROOT / "examples" / "deploy" / "kubernetes.yaml").read_text())
)
BY_KIND = {found["kind"]: found for found in OBJECTS}
POD = BY_KIND["Deployment"]["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]
# of this environment, for the one that it names is not there
UNIT = (
    (ROOT / "examples" / "deploy" / "lspt.service")
    .read_text()
    .replace("/srv/lspt/.venv/bin/", f"{Path(sys.executable).parent}/")
)
NEEDS_SYSTEMD = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd-analyze in PATH"
)


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


def verify(unit: str, folder: Path) -> str:
    """What systemd has to say of it."""
    file = folder / "lspt.service"
    file.write_text(unit)
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", file],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    return "\n".join(line for line in checked.stdout.splitlines() if "lspt.service" in line)


@NEEDS_SYSTEMD
def test_unit_is_one_of_systemd(tmp_path: Path) -> None:
    assert verify(UNIT, tmp_path) == ""


@NEEDS_SYSTEMD
@pytest.mark.parametrize(
    ("right", "wrong"), [("Restart=", "Restarts="), ("=60", "=soon"), ("bentoml", "bentomk")]
)
def test_a_mistake_in_the_unit_is_found(tmp_path: Path, right: str, wrong: str) -> None:
    assert verify(UNIT.replace(right, wrong), tmp_path)


@pytest.mark.slow
def test_command_of_the_unit_serves_and_ends(
    tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> None:
    unit = configparser.RawConfigParser()
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(UNIT)
    service = unit["Service"]
    environment = dict(each.split("=", 1) for each in shlex.split(service["Environment"]))
    folder = create_served(tiny_backbone, tmp_path_factory)
    environment |= {"BENTOML_HOME": str(folder / "bentoml"), "LSPT_ENGINE": "onnxruntime"}

    words = shlex.split(service["ExecStart"])
    with running(words, [], folder=folder, environment=environment) as server:
        assert [task["name"] for task in httpx.get(f"{server.url}/tasks").json()["tasks"]]
        assert '"message": "serving 2 task(s)"' in server.log.read_text()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=int(service["TimeoutStopSec"])) == 0
