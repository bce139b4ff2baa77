"""`bentoml build`, and its bento served where nothing else is installed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from toys import coloured, encoded, export_once, random_bundle
from toys_server import serving

from lspt_serve.bundle import save_bundle
from lspt_serve.models import Backbone
from lspt_serve.runtime import Classifier, OnnxEngine, PromptStore, activate, top_labels

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
CODE = ("lspt_serve", "bentofile.yaml", "pyproject.toml", "README.md", "LICENSE")
PNG = encoded(coloured("red", np.random.default_rng(0), side=40))
TRAINING = {"torch", "torchvision", "timm", "onnx", "onnxscript", "lightning"}


def run(*words: object, folder: Path, **environment: object) -> str:
    """Run a command to its end; returns what it printed."""
    added = {"BENTOML_DO_NOT_TRACK": True, "PYTHONPATH": folder, **environment}
    ended = subprocess.run(
        [*map(str, words)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        env={**os.environ, **{name: str(value) for name, value in added.items()}},
        check=False,
    )
    if ended.returncode and any(sign in ended.stdout for sign in ("ConnectionError", "dns error")):
        pytest.skip(f"PyPI cannot be reached: {ended.stdout[-200:]}")
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


@pytest.fixture(scope="module")
def context(tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository in which tasks were trained and a graph was exported."""
    context = tmp_path_factory.mktemp("context")
    for name in CODE:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, context / name)
    shutil.copytree(export_once(tiny_backbone, tmp_path_factory), context / "graph")
    (context / "graph" / "tensorrt").mkdir()
    (context / "graph" / "tensorrt" / "this.engine").write_bytes(bytes(1000))
    for name in ("colour", "parity"):
        save_bundle(random_bundle(tiny_backbone, name=name), context / "bundles" / name)
    (context / "bundles" / "aliases.json").write_text('{"colour": {"stable": 1}}')
    (context / "bundles" / "colour.run" / "report").mkdir(parents=True)
    (context / "bundles" / "colour.run" / "state.pt").write_bytes(bytes(1000))
    (context / "bundles" / "colour.run" / "report" / "errors.png").write_bytes(PNG)
    (context / "photos").mkdir()
    (context / "photos" / "red.png").write_bytes(PNG)
    return context


@pytest.fixture(scope="module")
def bento(context: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    build = (sys.executable, "-m", "bentoml", "build", "--version", "1")
    run(*build, folder=context, BENTOML_HOME=home)
    return home / "bentos" / "lspt" / "1"


def test_a_bento_holds_graph_and_bundles_and_nothing_of_training(bento: Path) -> None:
    found = [file for file in (bento / "src").rglob("*") if file.is_file()]
    files = {str(file.relative_to(bento / "src")) for file in found}
    data = {file for file in files if file.startswith(("graph/", "bundles/"))}

    assert data == {
        "graph/graph.json",
        "graph/graph.onnx",
        "graph/reference.safetensors",
        "bundles/aliases.json",
        "bundles/colour/bundle.json",
        "bundles/colour/tensors.safetensors",
        "bundles/parity/bundle.json",
        "bundles/parity/tensors.safetensors",
    }
    others = {file.split("/")[0] for file in files - data}
    assert others == {"lspt_serve", "bentofile.yaml", "pyproject.toml", "README.md", "LICENSE"}
    assert not any("weights/" in file or file.endswith((".pt", ".pyc")) for file in files)
    required = (bento / "env" / "python" / "requirements.txt").read_text().lower()
    assert not any(f"\n{name}==" in required for name in TRAINING)
    assert "\nonnxruntime" in required


def test_a_bento_answers_where_nothing_else_is_installed(bento: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", "fresh", folder=tmp_path)
    python = tmp_path / "fresh" / "bin" / "python"
    install = (python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    run(*install, "-r", bento / "env/python/requirements.txt", folder=bento / "src")
    listed = run(python, "-m", "pip", "list", "--format=freeze", folder=tmp_path)
    assert not TRAINING & {line.split("==")[0].lower() for line in listed.splitlines()}
    given = [name for name in os.environ if name.startswith("LSPT_")]
    environment = dict.fromkeys([*given, "PYTHONPATH"]) | {"LSPT_DEVICE": "cpu"}

    with serving(bento, folder=tmp_path, python=python, environment=environment) as server:
        answer = httpx.post(
            f"{server.url}/classify",
            files={"image": PNG},
            data={"task": "colour:stable"},
            timeout=30,
        ).json()

    engine = OnnxEngine(bento / "src" / "graph", device="cpu")
    classifier = Classifier(engine, PromptStore(bento / "src" / "bundles", engine.graph))
    bundle = classifier.find("colour")
    logits = classifier.submit(classifier.decode(PNG, bundle), bundle).result(timeout=30)
    classifier.close()
    wanted = top_labels(activate(logits), bundle.labels, 5)
    assert [best["label"] for best in answer["predictions"]] == [best.label for best in wanted]
    assert [best["score"] for best in answer["predictions"]] == pytest.approx(
        [best.score for best in wanted], abs=1e-5
    )
