import json
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from pydantic import SecretStr
from toys import coloured, encoded, export_once, random_bundle

from lspt_serve.bundle import save_bundle
from lspt_serve.errors import BundleError, GraphError, SettingError
from lspt_serve.export import create_model
from lspt_serve.models import Backbone
from lspt_serve.preprocess import preprocess_image
from lspt_serve.settings import ServiceSettings, load_classifier

ROOT = Path(__file__).resolve().parents[1]
VARIABLES = {
    "LSPT_GRAPH": "/g",
    "LSPT_BUNDLES": "/b",
    "LSPT_ENGINE": "triton",
    "LSPT_TRITON_URL": "http://gpu:8000",
    "LSPT_PRECISION": "bf16",
    "LSPT_DEVICE": "cpu",
    "LSPT_MAX_DELAY_MS": "2.5",
    "LSPT_MEMORY_MB": "64",
    "LSPT_PIN": "flowers,birds:stable",
    "LSPT_FORMATS": "JPEG,WEBP",
    "LSPT_MAX_PIXELS": "1000000",
    "LSPT_MAX_BYTES": "5000000",
    "LSPT_LOG_FORMAT": "json",
    "LSPT_TASK_METRICS": "false",
    "LSPT_ADMIN_TOKEN": "token",
    "LSPT_KEYS": "/k",
}
WITHOUT_TORCH = """
import json, sys

FORBIDDEN = {"torch", "torchvision", "timm", "onnx", "onnxscript"}

class Nobody:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in FORBIDDEN:
            raise ModuleNotFoundError(f"no {name} in the serving image")

sys.meta_path.insert(0, Nobody())

from pathlib import Path
from lspt_serve.preprocess import preprocess_image
from lspt_serve.runtime import activate
from lspt_serve.service import LSPTService, app

service = LSPTService.inner()
assert service.__is_ready__()
classifier = app.state.classifier
scores = {}
for bundle in [classifier.store[task.name] for task in classifier.store]:
    pixels = preprocess_image(Path(sys.argv[1]).read_bytes(), bundle.manifest.preprocess)
    answer = activate(classifier.submit(pixels, bundle).result(timeout=30))
    scores[bundle.name] = dict(zip(bundle.labels, answer.tolist(), strict=True))
loaded = sorted(name for name in FORBIDDEN if name in sys.modules)
print(json.dumps({"scores": scores, "loaded": loaded}))
"""


def test_service_answers_like_torch_where_there_is_no_torch(
    tiny_backbone: Backbone,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
) -> None:
    graph = export_once(tiny_backbone, tmp_path_factory)
    bundles = [
        random_bundle(tiny_backbone, name="colour", num_prompts=2, seed=1),
        random_bundle(tiny_backbone, name="parity", labels=["even", "odd"], seed=2),
    ]
    for bundle in bundles:
        save_bundle(bundle, tmp_path / "bundles" / bundle.name)
    data = encoded(coloured("red", np.random.default_rng(0), side=50))
    (tmp_path / "image.png").write_bytes(data)

    process = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path / "image.png")],
        env={
            "BENTOML_DO_NOT_TRACK": "True",
            "BENTOML_HOME": str(tmp_path / "bentoml"),
            "LSPT_BUNDLES": str(tmp_path / "bundles"),
            "LSPT_DEVICE": "cpu",
            "LSPT_GRAPH": str(graph),
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert process.returncode == 0, process.stderr
    answer = json.loads(process.stdout.splitlines()[-1])
    assert answer["loaded"] == []
    pixels = torch.from_numpy(preprocess_image(data, tiny_backbone.preprocess))[None]
    for bundle in bundles:
        with torch.inference_mode():
            (wanted,) = create_model(tiny_backbone, bundle)(pixels).softmax(dim=-1).tolist()
        scores = answer["scores"][bundle.name]
        assert [scores[label] for label in bundle.labels] == pytest.approx(wanted, abs=1e-5)


def test_bentoml_is_one_whose_inside_is_known() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    required = {each.name: each.specifier for each in map(Requirement, project["dependencies"])}

    assert "1.4.39" in required["bentoml"]
    assert "1.4.38" not in required["bentoml"]
    assert "1.5" not in required["bentoml"]
    assert version("bentoml") in required["bentoml"]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_settings_have_defaults(environment: pytest.MonkeyPatch) -> None:
    settings = ServiceSettings.from_env()

    assert (settings.graph, settings.bundles) == (Path("graph"), Path("bundles"))
    assert (settings.engine, settings.precision, settings.device) == ("auto", "fp32", "auto")
    assert settings.triton_url == "grpc://127.0.0.1:8001"
    assert (settings.max_delay_ms, settings.memory_mb, settings.pin) == (0, 1024, ())
    assert settings.formats == ("JPEG", "PNG", "BMP", "GIF")
    assert (settings.max_pixels, settings.max_bytes) == (50_000_000, 20_000_000)
    assert (settings.log_format, settings.task_metrics) == ("text", True)
    assert (settings.admin_token, settings.keys) == (None, None)


def test_settings_come_from_the_environment(environment: pytest.MonkeyPatch) -> None:
    for name, value in VARIABLES.items():
        environment.setenv(name, value)

    assert ServiceSettings.from_env() == ServiceSettings(
        graph=Path("/g"),
        bundles=Path("/b"),
        engine="triton",
        triton_url="http://gpu:8000",
        precision="bf16",
        device="cpu",
        max_delay_ms=2.5,
        memory_mb=64,
        pin=("flowers", "birds:stable"),
        formats=("JPEG", "WEBP"),
        max_pixels=1_000_000,
        max_bytes=5_000_000,
        log_format="json",
        task_metrics=False,
        admin_token=SecretStr("token"),
        keys=Path("/k"),
    )


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("LSPT_DEVICE", "gpu", "'auto', 'cpu' or 'cuda'"),
        ("LSPT_DEVICE", "", "'auto', 'cpu' or 'cuda'"),
        ("LSPT_ENGINE", "TensorFlow", "'onnxruntime', 'openvino', 'torch', 'tensorrt' or 'triton'"),
        ("LSPT_PRECISION", "fp8", "'fp32', 'fp16', 'bf16' or 'int8'"),
        ("LSPT_LOG_FORMAT", "xml", "'text' or 'json'"),
        ("LSPT_MEMORY_MB", "-1", "greater than or equal to 0"),
        ("LSPT_FORMATS", "JPEG,TIFF", "'JPEG2000'"),
        ("LSPT_FORMATS", "", "at least 1 item"),
        ("LSPT_MAX_PIXELS", "0", "greater than or equal to 1"),
        ("LSPT_MAX_PIXELS", "178956971", "less than or equal to 178956970"),
        ("LSPT_MAX_DELAY_MS", "-1", "greater than or equal to 0"),
        ("LSPT_MAX_DELAY_MS", "nan", "finite number"),
        ("LSPT_MAX_DELAY_MS", "soon", "valid number"),
        ("LSPT_ADMIN_TOKEN", "", "at least 1"),
    ],
)
def test_setting_that_there_is_not_is_refused(
    environment: pytest.MonkeyPatch, name: str, value: str, wanted: str
) -> None:
    environment.setenv(name, value)

    with pytest.raises(SettingError, match=f"^{name} is '{value}': .*{wanted}"):
        ServiceSettings.from_env()


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("LSPT_KEY", "; nearest: LSPT_KEYS"),
        ("LSPT_TRUSTED_KEY", "; nearest: LSPT_TRUSTED_KEYS"),
        (f"LSPT_{'Z' * 70}", "$"),
    ],
)
def test_misspelt_setting_is_refused(
    environment: pytest.MonkeyPatch, name: str, wanted: str
) -> None:
    environment.setenv(name, "keys.json")

    with pytest.raises(SettingError, match=f"^{name} is no setting{wanted}"):
        ServiceSettings.from_env()


@pytest.mark.parametrize(
    "name",
    [
        "LSPT_API_KEY",
        "LSPT_TEST_DATA",
        "LSPT_NEIGHBOURS",
        # https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
        "LSPT_SERVICE_HOST",
        "LSPT_SERVE_SERVICE_PORT",
        "LSPT_SERVE_SERVICE_PORT_HTTP",
        "LSPT_PORT",
        "LSPT_PORT_3000_TCP",
        "LSPT_SERVE_PORT_3000_TCP_ADDR",
        "lspt_keys",
    ],
)
def test_what_is_not_of_the_service_is_let_be(environment: pytest.MonkeyPatch, name: str) -> None:
    environment.setenv(name, "tcp://10.0.0.11:3000")

    assert ServiceSettings.from_env() == ServiceSettings()


def test_service_without_a_graph_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=r"graph\.json: cannot be read"):
        load_classifier(ServiceSettings(graph=tmp_path, bundles=tmp_path))


def test_service_without_a_folder_of_bundles_does_not_start(
    tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    graph = export_once(tiny_backbone, tmp_path_factory)

    with pytest.raises(BundleError, match="no such folder of bundles"):
        load_classifier(ServiceSettings(graph=graph, bundles=tmp_path / "nowhere"))
