import errno
import gc
import json
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
import weakref
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from safetensors.torch import save_file
from toys import export_once, random_bundle, write_coloured
from toys_cli import Command, Ended, check_error
from typer.testing import CliRunner

from lspt_serve import __version__
from lspt_serve.bundle import BASELINE, MANIFEST, load_bundle, save_bundle
from lspt_serve.cli import app
from lspt_serve.cli.train import train
from lspt_serve.files import locked
from lspt_serve.graph import check_fits, load_graph_spec
from lspt_serve.models import BASELINES, METHODS, Backbone
from lspt_serve.preprocess import NORMALISATIONS, Preprocess
from lspt_serve.runtime import Engine, choose
from lspt_serve.training import TrainSettings

COMMANDS = (
    "train",
    "inspect",
    "export",
    "quantise",
    "engines",
    "serve",
    "classify",
    "sweep",
    "results",
)
LABELS = ("blue", "red")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_coloured(folder, LABELS, count=6)
    return folder


def write_page_only(folder: Path, *_: object, **__: object) -> None:
    """A second less for every training; end to end the whole report is written."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.html").touch()


@pytest.fixture
def quick(tiny_backbone: Backbone, data: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """lspt train, all but --out."""
    monkeypatch.setattr("lspt_serve.training.task.write_report", write_page_only)
    words = ["train", "--backbone", tiny_backbone.source, "--data", str(data), "--epochs", "2"]
    return [*words, "--device", "cpu"]


@pytest.fixture
def bundle(tiny_backbone: Backbone, tmp_path: Path) -> Path:
    save_bundle(random_bundle(tiny_backbone, labels=LABELS), tmp_path / "colour")
    return tmp_path / "colour"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])

    assert result.exit_code == 0
    assert f"Example:  lspt {command} " in result.output


def test_help_names_every_command(lspt: Command) -> None:
    ended = lspt("--help")

    assert ended.code == 0
    assert all(f" {command} " in ended.out for command in COMMANDS)


def test_version_is_printed(lspt: Command) -> None:
    assert lspt("--version") == Ended(0, f"{__version__}\n", "")


def test_package_is_run_as_a_module_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lspt_serve", "--version"])

    with pytest.raises(SystemExit):
        runpy.run_module("lspt_serve", run_name="__main__")

    assert capsys.readouterr().out == f"{__version__}\n"


def test_help_names_the_methods_that_there_are() -> None:
    option = get_type_hints(train, include_extras=True)["method"].__metadata__[0]

    bundled, others = option.help.replace(" or ", ", ").split("; ")
    assert re.findall(r"[a-z0-9]+(?:-[a-z]+)*", bundled) == [*METHODS]
    assert others.split()[0] == ", ".join(BASELINES)


@pytest.mark.parametrize("field", fields(TrainSettings), ids=lambda field: str(field.name))
def test_training_defaults_are_those_of_the_settings(field: Any) -> None:
    assert signature(train).parameters[field.name].default == field.default


def test_train_writes_a_bundle_and_says_so(lspt: Command, quick: list[str], tmp_path: Path) -> None:
    out = tmp_path / "bundles" / "colour"

    ended = lspt(*quick, "--out", out, "--option", "num_prompts=3", "--license", "CC0-1.0")

    assert ended.code == 0
    assert ended.out.startswith(f"{out}: lspt, 2 labels, val accuracy ")
    manifest = load_bundle(out).manifest
    assert (manifest.name, manifest.labels, manifest.license) == ("colour", [*LABELS], "CC0-1.0")
    assert manifest.tensors["method.prompts"] == [3, 3, 24]
    assert {path.name for path in out.parent.iterdir()} == {"colour", "colour.run"}
    assert ended.out.splitlines()[1:] == [f"report: {out}.run/report/index.html"]


def test_train_json_is_one_object_on_stdout(
    lspt: Command, quick: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "colour"

    ended = lspt(*quick, "--out", out, "--method", "linear", "--json")

    manifest = load_bundle(out).manifest.model_dump(mode="json")
    assert json.loads(ended.out) == {"bundle": str(out), **manifest}


def test_train_in_float16_says_what_that_costs(
    lspt: Command, quick: list[str], tmp_path: Path
) -> None:
    out, exact = tmp_path / "colour", tmp_path / "exact"

    printed = lspt(*quick, "--out", out, "--dtype", "float16").out
    answer = json.loads(
        lspt(*quick, "--out", out, "--dtype", "float16", "--overwrite", "--json").out
    )
    plain = lspt(*quick, "--out", exact).out

    said = r"^float16 loses (-?\d+\.\d\d) points of test accuracy and changes (\d+) of 2 answers$"
    (found,) = re.findall(said, printed, re.M)
    rounding = answer["metrics"]["rounding"]
    assert found == (f"{rounding['points_lost']:.2f}", str(rounding["answers_changed"]))
    assert "float16 loses" not in plain
    inspected = lspt("inspect", out).out
    assert re.search(r"^ *dtype +float16", inspected, re.M)
    assert f"{load_bundle(exact).num_bytes // 2:,}" in inspected
    assert "float16 loses" in inspected
    assert re.search(r"^ *dtype +float32", lspt("inspect", exact).out, re.M)


def test_full_fine_tuning_writes_a_baseline_that_is_no_bundle(
    lspt: Command, quick: list[str], tmp_path: Path
) -> None:
    out, words = tmp_path / "colour", [*quick, "--method", "full", "--lr", "1e-3"]

    ended = lspt(*words, "--out", out)

    assert ended.code == 0
    assert ended.out.startswith(f"{out}: full, 2 labels, val accuracy ")
    record = json.loads((out / BASELINE).read_text())
    size = f"{record['num_bytes']:,} bytes of weights"
    assert f"ECE {record['metrics']['test_ece']:.3f} on test, {size}" in ended.out
    assert ended.out.endswith(f"report: {out}.run/report/index.html\n")
    check_error(lspt(*words, "--out", out), "exists already; .*--overwrite")
    again = json.loads(lspt(*words, "--out", out, "--overwrite", "--json").out)
    assert again == {"baseline": str(out), **json.loads((out / BASELINE).read_text())}
    check_error(lspt("inspect", out), "colour: a baseline .*, no bundle")
    check_error(lspt("export", "--bundle", out, "--out", tmp_path / "x.onnx"), "a baseline .*, no")
    probe = lspt(*quick, "--backbone", out / record["weights"], "--out", tmp_path / "probe")
    assert probe.code == 0


def test_serve_refuses_a_baseline(
    lspt: Command, tiny_backbone: Backbone, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (tmp_path / BASELINE).write_text("{}")
    graph = export_once(tiny_backbone, tmp_path_factory)

    check_error(lspt("serve", "--graph", graph, "--bundles", tmp_path), "a baseline .*, no bundle")


def test_weights_that_could_not_be_kept_are_refused_before_any_image_is_read(
    lspt: Command, quick: list[str], tmp_path: Path
) -> None:
    words = [*quick, "--data", tmp_path / "none", "--out", tmp_path / "colour"]

    ended = lspt(*words, "--method", "full", "--pool", "cls+patch_mean")

    check_error(
        ended, r"the weights could not be kept: with pool 'cls\+patch_mean' no .*; give pool"
    )


@pytest.mark.parametrize(
    "words", [("--dtype", "float16"), ("--version", "2"), ("--license", "CC0-1.0")], ids=str
)
def test_a_baseline_takes_nothing_that_is_a_bundles(
    lspt: Command, quick: list[str], tmp_path: Path, words: tuple[str, str]
) -> None:
    ended = lspt(*quick, "--method", "full", "--out", tmp_path / "colour", *words)

    check_error(ended, "are those of a bundle; leave them out with full$")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("overwritten", ["bundle", "baseline"])
def test_baselines_and_bundles_do_not_replace_each_other(
    lspt: Command, quick: list[str], bundle: Path, tmp_path: Path, overwritten: str
) -> None:
    (tmp_path / "baseline").mkdir()
    (tmp_path / "baseline" / BASELINE).write_text("{}")
    out, method = (bundle, "full") if overwritten == "bundle" else (tmp_path / "baseline", "linear")

    ended = lspt(*quick, "--method", method, "--out", out, "--overwrite")

    check_error(ended, "it is not replaced")


def test_train_saves_its_bundle_before_a_report_that_fails(
    lspt: Command, quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "colour"

    def fail(folder: Path, *_: object, **__: object) -> None:
        assert load_bundle(out).manifest.name == "colour"
        raise OSError("No space left on device")

    monkeypatch.setattr("lspt_serve.training.task.write_report", fail)
    ended = lspt(*quick, "--out", out, "--method", "linear")

    assert ended.code == 0
    assert len(ended.out.splitlines()) == 1
    assert load_bundle(out).manifest.name == "colour"


@pytest.mark.parametrize("init", ["tokens", "kmeans"])
def test_train_starts_from_the_tasks_own_tokens(
    lspt: Command, quick: list[str], tmp_path: Path, init: str
) -> None:
    plain, own = tmp_path / "plain", tmp_path / "own"

    assert lspt(*quick, "--out", plain, "--init", "uniform").code == 0
    assert lspt(*quick, "--out", own, "--init", init).code == 0

    prompts = [load_bundle(path).tensors["method.prompts"] for path in (plain, own)]
    assert abs(prompts[0]).mean() < 0.5 * abs(prompts[1]).mean()


def test_init_without_prompts_is_refused_before_any_image_is_read(
    lspt: Command, quick: list[str], tmp_path: Path
) -> None:
    words = [*quick, "--data", tmp_path / "none", "--out", tmp_path / "colour"]

    ended = lspt(*words, "--method", "linear", "--init", "tokens")

    check_error(ended, "init 'tokens' needs prompts, and method 'linear' has none")


def test_inspect_says_what_was_folded(lspt: Command, quick: list[str], tmp_path: Path) -> None:
    out = tmp_path / "colour"

    assert lspt(*quick, "--out", out, "--method", "vfpt").code == 0

    printed = lspt("inspect", out).out
    assert re.search(r"^ *method +vpt-deep", printed, re.M)
    assert re.search(r"^ *trained as +vfpt: .*fourier_share=0\.5", printed, re.M)


def test_inspect_json_is_the_manifest(lspt: Command, bundle: Path) -> None:
    assert json.loads(lspt("inspect", bundle, "--json").out) == json.loads(
        (bundle / MANIFEST).read_text()
    )


def test_inspect_prints_what_a_bundle_is(lspt: Command, bundle: Path) -> None:
    ended = lspt("inspect", bundle)

    assert ended.code == 0
    for wanted in ("colour, version 1", "2: blue, red", "lspt", "method.prompts [3, 16, 24]"):
        assert wanted in ended.out


@pytest.mark.parametrize("label", ["[red]", "[/red]", "[bold]x"])
def test_inspect_prints_labels_as_they_are(
    lspt: Command, tiny_backbone: Backbone, tmp_path: Path, label: str
) -> None:
    save_bundle(random_bundle(tiny_backbone, labels=["blue", label]), tmp_path / "colour")

    assert f"2: blue, {label}" in lspt("inspect", tmp_path / "colour").out


def test_export_of_a_bundle_with_json_is_one_object_on_stdout(
    lspt: Command, bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "colour.onnx"

    ended = lspt("export", "--bundle", bundle, "--out", out, "--json")

    assert ended.code == 0
    answer = json.loads(ended.out)
    assert answer["out"] == str(out)
    assert [row["batch_size"] for row in answer["parity"]] == [1, 3, 8]
    assert out.is_file()


@pytest.mark.parametrize("option", ["--like", "--bundle"])
def test_export_is_refused_while_another_writes_there(
    lspt: Command, bundle: Path, tmp_path: Path, option: str
) -> None:
    out = tmp_path / "out"

    with locked(out):
        ended = lspt("export", option, bundle, "--out", out)

    check_error(ended, f"out is being written by process {os.getpid()}; wait for its end")
    assert not out.exists()


@pytest.mark.slow
def test_of_two_exports_to_one_place_the_second_replaces_nothing(
    bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "colour.onnx"
    both = [start(["export", "--bundle", str(bundle), "--out", str(out)]) for _ in range(2)]
    printed = [process.communicate(timeout=300) for process in both]
    ended = [Ended(process.returncode, *text) for process, text in zip(both, printed, strict=True)]
    first, second = sorted(ended, key=lambda each: str(each.code))

    assert first.code == 0
    check_error(second, "is being written by process|exists already")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["colour", "colour.onnx"]


def test_bundles_are_exported_as_adapters_of_one_model(
    lspt: Command, bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "adapters"
    words = ["export", "--bundle", bundle, "--onnx-adapter", "--out", out]

    ended, again = lspt(*words, "--json"), lspt(*words)

    target = out / "colour.onnx_adapter"
    assert ended.code == 0
    assert json.loads(ended.out)["out"] == str(target)
    assert {path.name for path in out.iterdir() if path.name[0] != "."} == {
        "model.onnx",
        "colour.json",
        "colour.onnx_adapter",
    }
    check_error(again, f"{target} exists already")
    (out / "model.onnx").write_bytes(b"no model")
    assert lspt(*words, "--overwrite").code == 0
    assert (out / "model.onnx").stat().st_size > 1000
    target.unlink()
    check_error(lspt(*words), f"{out / 'colour.json'} exists already")


def test_serve_refuses_keys_that_cannot_be_read(
    lspt: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LSPT_KEYS", str(tmp_path / "keys.json"))

    check_error(lspt("serve", "--graph", tmp_path), "LSPT_KEYS is .*keys.json: cannot be read")


def test_serve_takes_what_it_is_not_given_from_the_environment(
    lspt: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LSPT_GRAPH", str(tmp_path / "elsewhere"))

    check_error(lspt("serve", "--bundles", tmp_path), "elsewhere/graph.json: cannot be read")
    check_error(lspt("serve", "--graph", tmp_path / "given"), "given/graph.json: cannot be read")


def test_a_triton_repository_is_exported_for_all_tasks_and_for_one(
    lspt: Command, bundle: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "models"

    shared = lspt("export", "--like", bundle, "--triton-repository", repository)
    one = lspt("export", "--bundle", bundle, "--triton-repository", repository)

    assert (shared.code, one.code) == (0, 0)
    assert {path.name for path in repository.iterdir() if path.name[0] != "."} == {
        "colour",
        "lspt",
        "lspt-graph",
    }
    for model in ("colour", "lspt", "lspt-graph"):
        assert (repository / model / "config.pbtxt").is_file()
    again = lspt("export", "--bundle", bundle, "--triton-repository", repository)
    check_error(again, "models/colour exists already")
    shutil.rmtree(repository / "lspt")
    again = lspt("export", "--like", bundle, "--triton-repository", repository)
    check_error(again, "models/lspt-graph exists already")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bundle", "b"], "give --out or --triton-repository"),
        (["--bundle", "b", "--out", "o", "--triton-repository", "t"], "give --out or --triton"),
        (["--like", "b", "--out", "o", "--onnx-adapter"], "give --bundle and --out as well"),
    ],
)
def test_exports_that_contradict_themselves_are_refused(
    lspt: Command, words: list[str], message: str
) -> None:
    check_error(lspt("export", *words), message)


def test_a_task_keeps_its_image_size_and_normalisation_from_training_to_export(
    lspt: Command, quick: list[str], tmp_path: Path
) -> None:
    bundle, graph = tmp_path / "colour", tmp_path / "graph"
    words = ["--img-size", "48", "--normalisation", "imagenet", "--method", "linear"]

    assert lspt(*quick, "--out", bundle, *words).code == 0
    assert lspt("export", "--like", bundle, "--out", graph).code == 0
    assert lspt("export", "--bundle", bundle, "--out", tmp_path / "colour.onnx").code == 0

    trained = load_bundle(bundle)
    assert trained.manifest.preprocess == Preprocess(48, *NORMALISATIONS["imagenet"])
    check_fits(trained, load_graph_spec(graph))


def test_a_graph_without_a_bundle_is_exported_for_the_size_that_is_said(
    lspt: Command, tiny_backbone: Backbone, tmp_path: Path
) -> None:
    words = ["export", "--backbone", tiny_backbone.source, "--out", tmp_path / "graph"]

    assert lspt(*words, "--img-size", "16", "--normalisation", "imagenet").code == 0

    spec = load_graph_spec(tmp_path / "graph")
    assert spec.preprocess == Preprocess(16, *NORMALISATIONS["imagenet"])
    assert spec.backbone.sha256 == tiny_backbone.sha256


def test_a_task_does_not_take_the_place_of_tritons_model_of_all_tasks(
    lspt: Command, bundle: Path, tiny_backbone: Backbone, tmp_path: Path
) -> None:
    repository, renamed = tmp_path / "models", tmp_path / "renamed"
    save_bundle(random_bundle(tiny_backbone, name="lspt"), renamed)
    assert lspt("export", "--like", bundle, "--triton-repository", repository).code == 0
    config = (repository / "lspt" / "config.pbtxt").read_bytes()

    words = ["--bundle", renamed, "--triton-repository", repository, "--overwrite"]
    check_error(lspt("export", *words), "the bundle's name, lspt, is that of a model of all tasks")

    assert (repository / "lspt" / "config.pbtxt").read_bytes() == config


@pytest.mark.parametrize("of", ["--like", "--bundle"])
def test_triton_backend_is_of_the_shared_graph_in_a_repository(
    lspt: Command, bundle: Path, tmp_path: Path, of: str
) -> None:
    where = "--out" if of == "--like" else "--triton-repository"

    ended = lspt("export", of, bundle, where, tmp_path / "out", "--triton-backend", "python")

    check_error(ended, "--triton-backend is of --triton-repository without --bundle$")
    assert not (tmp_path / "out").exists()


def test_tensorrt_that_is_not_there_is_one_line_and_nothing_is_written(
    lspt: Command, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)

    ended = lspt("export", "--like", bundle, "--tensorrt", "fp16", "--out", tmp_path / "out")

    check_error(ended, "needs TensorRT's Python libraries: pip install 'tensorrt-cu13<11'$")
    assert not (tmp_path / "out").exists()


def test_tensorrt_is_of_the_shared_graph(lspt: Command, bundle: Path, tmp_path: Path) -> None:
    ended = lspt("export", "--bundle", bundle, "--out", tmp_path / "out", "--tensorrt", "fp16")

    check_error(ended, "--tensorrt is of the shared graph; give no --bundle$")


@pytest.mark.parametrize("words", [("--tensorrt", "fp16"), ("--triton-backend", "tensorrt")])
def test_tensorrt_in_a_repository_is_a_backend_of_it(
    lspt: Command, bundle: Path, tmp_path: Path, words: tuple[str, str]
) -> None:
    ended = lspt("export", "--like", bundle, "--triton-repository", tmp_path / "out", *words)

    check_error(ended, "--triton-backend tensorrt go together; give both or neither$")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("hint", [("--img-size", "48"), ("--normalisation", "half")], ids=str)
@pytest.mark.parametrize("of", ["--like", "--bundle"])
def test_export_takes_no_hint_where_the_bundle_says_it(
    lspt: Command, bundle: Path, tmp_path: Path, of: str, hint: tuple[str, str]
) -> None:
    ended = lspt("export", of, bundle, "--out", tmp_path / "out", *hint)

    check_error(ended, "are those of the bundle; leave them out$")
    assert not (tmp_path / "out").exists()


def test_engines_that_can_run_a_graph_are_shown(
    lspt: Command, tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> None:
    graph = export_once(tiny_backbone, tmp_path_factory)

    shown, record = lspt("engines", "--graph", graph), lspt("engines", "--graph", graph, "--json")

    assert (shown.code, record.code) == (0, 0)
    assert "ONNX Runtime runs the graph in fp32 only" in " ".join(shown.out.split())
    found = {(each["engine"], each["precision"]): each for each in json.loads(record.out)}
    assert "not in bf16" in found["onnxruntime", "bf16"]["refused"]
    assert f"lspt quantise --graph {graph} " in found["openvino", "int8"]["refused"]
    for name in ("onnxruntime", "openvino", "torch"):
        assert re.search(rf"{name} +fp32 +[\d.]+ +\d\.\de-0[678] +100\.0%", shown.out)
        assert found[name, "fp32"]["images_per_s"] > 0
        assert found[name, "fp32"]["max_error"] < 1e-5


def test_engines_have_the_machine_one_at_a_time(
    lspt: Command,
    tiny_backbone: Backbone,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    create, alive = choose.create_engine, weakref.WeakSet[Engine]()
    seen: list[int] = []

    def look(*given: Any, **named: Any) -> Engine:
        gc.collect()
        seen.append(len(alive))
        engine = create(*given, **named)
        alive.add(engine)
        return engine

    monkeypatch.setattr(choose, "create_engine", look)
    lspt("engines", "--graph", export_once(tiny_backbone, tmp_path_factory), "--device", "cpu")

    assert len(seen) > 3
    assert set(seen) == {0}


def test_notes_go_to_stderr_as_they_are(lspt: Command, quick: list[str], tmp_path: Path) -> None:
    data = tmp_path / "data"
    for split in ("train", "val", "test"):
        write_coloured(data / split, LABELS, count=2)
    (data / "train" / "[red]").mkdir()
    (data / "train" / "red").rename(data / "train" / "[red]" / "more")
    (data / "test" / "red").rename(data / "test" / "[red]")
    (data / "val" / "red").rename(tmp_path / "gone")

    ended = lspt(*quick, "--data", data, "--out", tmp_path / "colour", "--json")

    assert ended.code == 0
    assert "note: val has no image of 1 label(s): [red]" in ended.err.splitlines()
    assert json.loads(ended.out)["labels"] == ["[red]", "blue"]


@pytest.mark.parametrize(
    ("words", "noted"),
    [
        (["train", "--out", "new", "--data", "nowhere"], True),
        (["sweep", "sweep.toml", "--storage", "sweep.db", "--data", "empty"], True),
        (["export", "--out", "graph"], True),
        (["export", "--out", "graph", "--like", "colour"], False),
    ],
    ids=["train", "sweep", "export", "export of a bundle"],
)
def test_what_is_assumed_of_a_bare_backbone_is_noted(
    lspt: Command,
    tiny_backbone: Backbone,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    *,
    noted: bool,
) -> None:
    monkeypatch.chdir(bundle.parent)
    Path("empty").mkdir()
    Path("sweep.toml").write_text('trials = 1\nseeds = [0]\n[[entry]]\nmethod = "linear"\n')
    save_file(tiny_backbone.vit.state_dict(), "vit.safetensors")

    ended = lspt(*words, "--backbone", "vit.safetensors")

    note = "note: assumed of vit.safetensors, which does not say: normalisation half"
    assert (note in " ".join(ended.err.split())) == noted
    assert "note" not in ended.out


def test_unreadable_images_are_skipped_when_asked(
    lspt: Command, quick: list[str], tmp_path: Path
) -> None:
    write_coloured(tmp_path / "data", LABELS, count=4)
    (tmp_path / "data" / "red" / "broken.png").write_bytes(b"no image")
    words = [*quick, "--data", tmp_path / "data", "--out", tmp_path / "colour"]

    check_error(lspt(*words), "1 of 9 images cannot be read")
    ended = lspt(*words, "--on-bad-image", "skip")

    assert ended.code == 0
    assert "note: skipped 1 unreadable image(s)" in ended.err


def test_images_are_cropped_augmented_and_cached_when_asked(
    lspt: Command, quick: list[str], tmp_path: Path
) -> None:
    words = [*quick, "--crop-pct", "0.8", "--augment", "crop+flip", "--cache", tmp_path / "cache"]

    for name in ("first", "second"):
        ended = lspt(*words, "--out", tmp_path / name)
        assert ended.code == 0
        assert re.search(r"inputs \d+%", ended.err)
        assert ("12/12" in ended.err) == (name == "first")  # images decoded

    manifests = [load_bundle(tmp_path / name).manifest for name in ("first", "second")]
    assert [manifest.preprocess.crop_pct for manifest in manifests] == [0.8, 0.8]
    assert manifests[0].tensors_sha256 == manifests[1].tensors_sha256
    assert "crop_pct 0.8" in lspt("inspect", tmp_path / "first").out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backbone", "vit_base_patch16_2244"], "nearest: .*vit_base_patch16_224"),
        (["--backbone", "nowhere.safetensors"], r"nowhere\.safetensors: no such file"),
        (["--data", "nowhere"], "nowhere: no such folder"),
        (["--method", "lsp"], "unknown method 'lsp'; .*nearest: lspt"),
        (["--option", "num_promts=3"], "unknown option 'num_promts'; .*nearest: num_prompts"),
        (["--option", "num-prompts=0"], "num_prompts must be at least 1, got 0"),
        (["--option", "num_prompts=many"], "num_prompts: .*integer"),
        (["--option", f"num_prompts={'9' * 5000}"], "num_prompts: .*integer"),
        (["--option", f"num_prompts={'[' * 100_000}"], "num_prompts: .*integer"),
        (["--option", "pool=cls"], "unknown option 'pool'; wanted one of: num_prompts"),
        (["--option", "num_prompts"], "'num_prompts' is not of the form KEY=VALUE"),
        (["--option", "coder=lstmm"], "unknown coder 'lstmm'; .*nearest: lstm"),
        (["--img-size", "30"], "img_size 30 is no multiple of the patch size 8; nearest: 24, 32"),
        (["--pool", "clss"], "unknown pool 'clss'; .*nearest: cls"),
        (["--epochs", "0"], "epochs must be above 0, got 0"),
        (["--lr", "nan"], "lr must be finite, got nan"),
        (["--warmup-epochs", "inf"], "warmup_epochs must be finite, got inf"),
        (["--seed", "-1"], "seed"),
        (["--device", "tpu"], "device 'tpu'"),
        (["--crop-pct", "1.2"], r"crop_pct must be in \[0.1, 1\], got 1.2"),
    ],
)
def test_mistake_in_train_is_one_line_and_exit_code_2(
    lspt: Command, quick: list[str], tmp_path: Path, words: list[str], message: str
) -> None:
    check_error(lspt(*quick, "--out", tmp_path / "colour", *words), message)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["inspect", "nowhere"], r"nowhere/bundle\.json: cannot be read"),
        (["export", "--like", "nowhere", "--out", "graph"], r"nowhere/bundle\.json"),
        (["export", "--backbone", "nowhere.pth", "--out", "graph"], "no such file"),
        (["serve", "--graph", "nowhere"], r"nowhere/graph\.json: .*lspt export --out nowhere"),
    ],
)
def test_mistake_in_another_command_is_one_line_and_exit_code_2(
    lspt: Command,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)

    check_error(lspt(*words), message)

    assert list(tmp_path.iterdir()) == []


def test_bundle_whose_option_is_called_as_an_argument_is_refused(
    lspt: Command, bundle: Path, tmp_path: Path
) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["method"]["options"]["pool"] = "cls"
    (bundle / MANIFEST).write_text(json.dumps(manifest))

    ended = lspt("export", "--like", bundle, "--out", tmp_path / "graph")

    check_error(ended, "unknown option 'pool'; wanted one of: num_prompts")


@pytest.mark.parametrize(
    "words",
    [
        ["results", "x" * 300],
        ["export", "--like", "colour", "--out", "x" * 300],
        ["train", "--backbone", "x" * 300, "--data", "photos", "--out", "new"],
        ["train", "--backbone", "vit_digits_patch8_32", "--data", "x" * 300, "--out", "new"],
    ],
    ids=["results", "output", "backbone", "data"],
)
def test_path_that_the_system_does_not_take_is_one_line(
    lspt: Command, bundle: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(bundle.parent)

    check_error(lspt(*words), "x{300}.*(name too long|[Nn]o such|unknown backbone)")


def test_folder_that_may_not_be_read_is_one_line(
    lspt: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)

    check_error(lspt("results", tmp_path), f"^error: {tmp_path}: Permission denied$")


def test_pipe_that_nobody_reads_is_no_error_of_the_users(bundle: Path) -> None:
    with start(["inspect", str(bundle), "--json"]) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        printed = process.stderr.read()

    assert process.returncode != 2
    assert "error" not in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to export; give --backbone, --like or --bundle$"),
        (["--like", "a", "--bundle", "b"], "both --like and --bundle; give one of them$"),
    ],
)
def test_export_wants_to_know_what_to_export(lspt: Command, words: list[str], message: str) -> None:
    check_error(lspt("export", "--out", "graph", *words), message)


def test_name_that_no_bundle_may_have_is_refused_before_training(
    lspt: Command, quick: list[str], tmp_path: Path
) -> None:
    ended = lspt(*quick, "--out", tmp_path / "My Colours")

    check_error(ended, "cannot name a task")
    assert "val accuracy" not in ended.err


def test_existing_output_is_kept(lspt: Command, quick: list[str], bundle: Path) -> None:
    before = (bundle / MANIFEST).read_bytes()

    check_error(lspt(*quick, "--out", bundle), "exists already; .*--overwrite")

    assert (bundle / MANIFEST).read_bytes() == before


def test_existing_bundle_is_replaced_with_overwrite(
    lspt: Command, quick: list[str], bundle: Path
) -> None:
    ended = lspt(*quick, "--out", bundle, "--method", "linear", "--overwrite")

    assert ended.code == 0
    assert load_bundle(bundle).manifest.method.name == "linear"
    assert {path.name for path in bundle.parent.iterdir()} == {"colour", "colour.run"}


def test_folder_that_is_no_bundle_is_kept_even_with_overwrite(
    lspt: Command, quick: list[str], tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_bytes(b"precious")

    check_error(lspt(*quick, "--out", tmp_path / "photos", "--overwrite"), "it is not replaced")

    assert (tmp_path / "photos" / "me.jpg").read_bytes() == b"precious"


def test_file_is_not_replaced_by_a_bundle_even_with_overwrite(
    lspt: Command, quick: list[str], tmp_path: Path
) -> None:
    (tmp_path / "thesis").write_text("precious")

    check_error(lspt(*quick, "--out", tmp_path / "thesis", "--overwrite"), "thesis")

    assert (tmp_path / "thesis").read_text() == "precious"


def start(words: list[str], **environment: str) -> "subprocess.Popen[str]":
    """A real process, in which Ctrl-C does what it does in a terminal."""
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from lspt_serve.cli import main; main()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        start_new_session=True,
    )


def test_real_process_gives_its_error_to_the_shell() -> None:
    process = start(["inspect", "nowhere"])
    out, err = process.communicate(timeout=60)

    check_error(Ended(process.returncode, out, err), "nowhere")


@pytest.mark.parametrize("words", [(), ("--engine", "openvino", "--device", "cpu")])
def test_serve_says_which_engine_and_hands_it_to_the_service(
    lspt: Command,
    tiny_backbone: Backbone,
    tmp_path_factory: pytest.TempPathFactory,
    bundle: Path,
    words: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = export_once(tiny_backbone, tmp_path_factory)
    monkeypatch.setattr(os, "environ", dict(os.environ))

    def become(path: str, command: list[str]) -> None:
        assert command[1:3] == ["-m", "bentoml"]
        raise SystemExit(0)

    monkeypatch.setattr(os, "execv", become)

    ended = lspt("serve", "--graph", graph, "--bundles", bundle.parent, "--port", 3999, *words)

    (taken,) = re.findall(r"(\w+) is the fastest here and serves", ended.err)
    assert f"{taken} in fp32 on CPU" in ended.err
    assert os.environ["LSPT_ENGINE"] == taken
    if words:
        assert taken == "openvino"
        assert "onnxruntime" not in ended.err


@pytest.mark.parametrize(("words", "host"), [((), "127.0.0.1"), (("--host", "0.0.0.0"), "0.0.0.0")])
def test_serve_listens_for_this_machine_alone_unless_told_otherwise(
    lspt: Command,
    tiny_backbone: Backbone,
    tmp_path_factory: pytest.TempPathFactory,
    bundle: Path,
    words: tuple[str, ...],
    host: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = export_once(tiny_backbone, tmp_path_factory)
    monkeypatch.setattr(os, "environ", dict(os.environ))

    def become(path: str, command: list[str]) -> None:
        assert command[4:] == ["lspt_serve.service:LSPTService", "--host", host, "--port", "3999"]
        raise SystemExit(0)

    monkeypatch.setattr(os, "execv", become)
    engine = ("--engine", "onnxruntime", "--device", "cpu", "--port", 3999)

    ended = lspt("serve", "--graph", graph, "--bundles", bundle.parent, *engine, *words)

    assert ended.code == 0, ended.err


def test_serve_whose_engine_cannot_be_had_says_so_before_it_starts(
    lspt: Command,
    tiny_backbone: Backbone,
    tmp_path_factory: pytest.TempPathFactory,
    bundle: Path,
) -> None:
    graph = export_once(tiny_backbone, tmp_path_factory)
    words = ["serve", "--graph", graph, "--bundles", bundle.parent, "--port", 3999]

    ended = lspt(*words, "--engine", "onnxruntime", "--precision", "bf16")

    assert (ended.code, ended.out) == (2, "")
    error = "error: ONNX Runtime runs the graph in fp32 only, not in bf16"
    assert ended.err.splitlines()[-1] == error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--triton-url", "grpc://h:1"), "--triton-url is of --engine triton; give both"),
        (("--engine", "triton", "--triton-url", "h"), "Triton's url is 'h'; wanted grpc://HOST"),
        (
            ("--engine", "triton", "--triton-url", "http://127.0.0.1:9"),
            "error: no Triton server answers at http://127.0.0.1:9: ",
        ),
    ],
)
def test_serve_says_what_is_wrong_with_triton_before_it_starts(
    lspt: Command,
    tiny_backbone: Backbone,
    tmp_path_factory: pytest.TempPathFactory,
    bundle: Path,
    words: tuple[str, ...],
    message: str,
) -> None:
    graph = export_once(tiny_backbone, tmp_path_factory)

    ended = lspt("serve", "--graph", graph, "--bundles", bundle.parent, "--port", 3999, *words)

    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err.splitlines()[-1]


def test_serve_refuses_a_port_that_is_taken(
    lspt: Command, bundle: Path, tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> None:
    graph = export_once(tiny_backbone, tmp_path_factory)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = lspt("serve", "--graph", graph, "--bundles", bundle.parent, "--port", port)

    check_error(ended, f"port {port} cannot be listened at: Address already in use")


def test_serve_refuses_what_no_host_can_be_called(
    lspt: Command, bundle: Path, tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> None:
    graph = export_once(tiny_backbone, tmp_path_factory)

    ended = lspt("serve", "--graph", graph, "--bundles", bundle.parent, "--host", "127..0.1")

    check_error(ended, r"127\.\.0\.1 port 3000 cannot be listened at: .*; give another --host or")


@pytest.mark.parametrize(
    "words", [["train", "--data", "x"], ["export"]], ids=lambda words: words[0]
)
def test_without_the_train_extra_a_command_says_what_to_install(
    words: list[str], tmp_path: Path
) -> None:
    program = (
        "import sys; sys.modules.update(torch=None, timm=None)\n"
        "from lspt_serve.cli import main; main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, *words, "--backbone", "x", "--out", "y"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    check_error(Ended(ended.returncode, ended.stdout, ended.stderr), "pip install '\\.\\[train\\]'")
