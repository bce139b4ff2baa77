import contextlib
import errno
import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load, save
from safetensors.torch import save as save_torch

from lspt_serve.bundle import BASELINE, MANIFEST, TENSORS, Bundle, load_bundle, save_bundle
from lspt_serve.errors import BundleError, OutputError
from lspt_serve.manifest import BackboneRef, Metrics
from lspt_serve.models import METHODS

SHAPES = {"head.bias": [3], "head.weight": [3, 24], "method.prompts": [16, 24]}
TEXT = st.text(st.characters(exclude_categories=()))  # JSON can spell unpaired surrogates
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture
def folder(tmp_path: Path, make_bundle: Callable[..., Bundle]) -> Path:
    """A sound bundle of VPT-shallow with 3 labels, on disk."""
    save_bundle(make_bundle("vpt-shallow"), tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory, make_bundle: Callable[..., Bundle]) -> Path:
    """The same, for every example of a test to overwrite."""
    path = tmp_path_factory.mktemp("fuzzed")
    save_bundle(make_bundle("vpt-shallow"), path / "sound")
    save_bundle(make_bundle("vpt-shallow"), path / "bundle")
    return path / "bundle"


def rewrite(folder: Path, **fields: Any) -> None:
    """Change fields of the manifest."""
    manifest = json.loads((folder / MANIFEST).read_text()) | fields
    (folder / MANIFEST).write_text(json.dumps(manifest))


def rewrite_tensors(folder: Path, changed: dict[str, NDArray[Any] | None], **fields: Any) -> None:
    """Change tensors (None: leave out) and fields, with the sha256 of the new file."""
    tensors = load((folder / TENSORS).read_bytes()) | changed
    data = save({name: tensor for name, tensor in tensors.items() if tensor is not None})
    (folder / TENSORS).write_bytes(data)
    rewrite(folder, tensors_sha256=hashlib.sha256(data).hexdigest(), **fields)


def refuses(folder: Path, message: str) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        load_bundle(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
def test_a_bundle_comes_back_as_it_was(
    tmp_path: Path, make_bundle: Callable[..., Bundle], method: str
) -> None:
    bundle = make_bundle(method, name="a-1._", labels=["ant", "Biene 🐝"], version=7)
    save_bundle(bundle, tmp_path / "one")
    loaded = load_bundle(tmp_path / "one")
    assert loaded.manifest == bundle.manifest
    assert loaded.tensors.keys() == bundle.tensors.keys()
    for name, tensor in bundle.tensors.items():
        assert np.array_equal(loaded.tensors[name], tensor)
        assert loaded.tensors[name].dtype == np.float32


def test_a_bundle_saved_again_is_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    save_bundle(load_bundle(folder), tmp_path / "again")
    for file in (MANIFEST, TENSORS):
        assert (tmp_path / "again" / file).read_bytes() == (folder / file).read_bytes()


@pytest.fixture
def halved(tmp_path: Path, folder: Path) -> Path:
    """The bundle of `folder`, stored in float16."""
    sound = load_bundle(folder)
    described = {"dtype", "tensors", "tensors_sha256"}
    fields = {k: v for k, v in sound.manifest if k not in described}
    save_bundle(Bundle.create(sound.tensors, dtype="float16", **fields), tmp_path / "halved")
    return tmp_path / "halved"


def test_float16_halves_the_file_and_is_float32_in_memory(folder: Path, halved: Path) -> None:
    sound, loaded = load_bundle(folder), load_bundle(halved)
    stored = load((halved / TENSORS).read_bytes())
    assert json.loads((halved / MANIFEST).read_text())["dtype"] == "float16"
    assert stored.keys() == loaded.tensors.keys() == sound.tensors.keys()
    for name, tensor in loaded.tensors.items():
        assert (str(stored[name].dtype), str(tensor.dtype)) == ("float16", "float32")
        wanted = torch.from_numpy(sound.tensors[name]).half().float()
        assert torch.equal(torch.from_numpy(tensor), wanted)
    assert (loaded.num_bytes, sound.num_bytes) == (2 * 459, 4 * 459)  # 16 x 24 + 3 x 24 + 3


def test_float16_is_rounded_as_soon_as_it_is_made(folder: Path, halved: Path) -> None:
    sound, loaded = load_bundle(folder), load_bundle(halved)
    described = {"dtype", "tensors", "tensors_sha256"}
    fields = {k: v for k, v in sound.manifest if k not in described}
    made = Bundle.create(sound.tensors, dtype="float16", **fields)
    assert made.manifest == loaded.manifest
    for name, tensor in loaded.tensors.items():
        assert np.array_equal(made.tensors[name], tensor)
    with pytest.raises(BundleError, match=r"head\.bias reaches 70000, beyond 65504; use float32"):
        Bundle.create(
            sound.tensors | {"head.bias": np.full(3, 7e4, np.float32)}, dtype="float16", **fields
        )


def test_float16_saved_again_is_the_same_bytes(halved: Path, tmp_path: Path) -> None:
    save_bundle(load_bundle(halved), tmp_path / "again")
    for file in (MANIFEST, TENSORS):
        assert (tmp_path / "again" / file).read_bytes() == (halved / file).read_bytes()


def test_sha256_of_float16_is_over_the_files_bytes(halved: Path) -> None:
    sha256 = hashlib.sha256((halved / TENSORS).read_bytes()).hexdigest()
    assert json.loads((halved / MANIFEST).read_text())["tensors_sha256"] == sha256


def test_a_bundle_that_says_no_dtype_is_float32(folder: Path, halved: Path) -> None:
    for path in (folder, halved):
        manifest = json.loads((path / MANIFEST).read_text())
        del manifest["dtype"]
        (path / MANIFEST).write_text(json.dumps(manifest))
    assert load_bundle(folder).manifest.dtype == "float32"
    refuses(halved, r"head\.bias is float16, wanted float32")


def test_one_tensor_of_another_dtype_than_the_manifest_says_is_named(halved: Path) -> None:
    rewrite_tensors(halved, {"head.bias": np.zeros(3, np.float32)})
    refuses(halved, r"tensors\.safetensors: head\.bias is float32, wanted float16$")


@pytest.mark.parametrize(("said", "crop_pct"), [({}, 1.0), ({"crop_pct": 0.875}, 0.875)])
def test_crop_pct_is_kept_and_is_1_where_it_is_missing(
    folder: Path, said: dict[str, float], crop_pct: float
) -> None:
    rewrite(folder, preprocess={"img_size": 32, **said})
    assert load_bundle(folder).manifest.preprocess.crop_pct == crop_pct


def test_a_bundle_is_two_files(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [MANIFEST, TENSORS]


def test_the_manifest_describes_its_tensors(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["tensors"] == SHAPES
    sha256 = hashlib.sha256((folder / TENSORS).read_bytes()).hexdigest()
    assert manifest["tensors_sha256"] == sha256


def test_the_head_is_apart_from_what_enters_the_graph(make_bundle: Callable[..., Bundle]) -> None:
    bundle = make_bundle("vpt-shallow")
    weight, bias = bundle.head
    assert (weight.shape, bias.shape) == ((3, 24), (3,))
    assert list(bundle.method_tensors) == ["method.prompts"]


def test_a_transposed_array_is_saved_as_what_it_reads(
    tmp_path: Path, make_bundle: Callable[..., Bundle]
) -> None:
    sound = make_bundle("vpt-shallow")
    prompts = sound.tensors["method.prompts"]
    transposed = np.ascontiguousarray(prompts.T).T  # equal, in column order
    fields = {name: getattr(sound.manifest, name) for name in ("method", "backbone", "preprocess")}
    bundle = Bundle.create(
        sound.tensors | {"method.prompts": transposed},
        name="tiny",
        labels=sound.labels,
        pool="cls",
        **fields,
    )
    save_bundle(bundle, tmp_path / "bundle")
    assert np.array_equal(load_bundle(tmp_path / "bundle").tensors["method.prompts"], prompts)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"method.prompts": None}, "method.prompts is missing"),
        ({"head.bias": None}, "head.bias is missing"),
        ({"method.gate": np.zeros(3, np.float32)}, "method.gate is unexpected"),
        (
            {"method.prompts": np.zeros((5, 24), np.float32)},
            r"method.prompts is \[5, 24\], wanted \[16, 24\]",
        ),
        (
            {"method.prompts": np.zeros((16, 24, 1), np.float32)},
            r"method.prompts is \[16, 24, 1\], wanted \[16, 24\]",
        ),
        (
            {"method.prompts": np.full((16, 24), np.nan, np.float32)},
            "method.prompts holds values that are not finite",
        ),
        (
            {"head.weight": np.full((3, 24), -np.inf, np.float32)},
            "head.weight holds values that are not finite",
        ),
        (
            {"method.prompts": np.zeros((16, 24), np.float16)},
            "method.prompts is float16, wanted float32",
        ),
        (
            {"method.prompts": np.zeros((16, 24), np.float64)},
            "method.prompts is float64, wanted float32",
        ),
        ({"head.bias": np.zeros(3, np.int64)}, "head.bias is int64, wanted float32"),
        (
            {"head.bias": None, "method.prompts": np.zeros((5, 24), np.float32)},
            r"head.bias is missing, method.prompts is \[5, 24\]",
        ),
    ],
)
def test_a_tensor_that_is_not_as_the_manifest_says_is_named(
    folder: Path, changed: dict[str, NDArray[Any] | None], message: str
) -> None:
    rewrite_tensors(folder, changed)
    refuses(folder, rf"tensors\.safetensors: .*{message}")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("head.weight", (2, 24)),
        ("head.weight", (4, 24)),
        ("head.weight", (3,)),
        ("head.weight", (3, 24, 1)),
        ("head.weight", ()),
        ("head.bias", (2,)),
        ("head.bias", (3, 1)),
        ("head.bias", ()),
    ],
)
def test_a_head_that_is_not_as_the_labels_say_is_named(
    folder: Path, name: str, shape: tuple[int, ...]
) -> None:
    shapes = SHAPES | {name: list(shape)}
    rewrite_tensors(folder, {name: np.zeros(shape, np.float32)}, tensors=shapes)
    refuses(folder, rf"{name} is \[{', '.join(map(str, shape))}\] for 3 labels")


@pytest.mark.parametrize("name", ["head.weight", "head.bias"])
def test_a_bundle_needs_a_head_even_if_its_manifest_does_not(folder: Path, name: str) -> None:
    rewrite_tensors(folder, {name: None}, tensors={k: v for k, v in SHAPES.items() if k != name})
    refuses(folder, f"{name} is missing")


def test_bfloat16_is_refused(folder: Path) -> None:
    tensors = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in SHAPES.items()}
    (folder / TENSORS).write_bytes(save_torch(tensors))
    refuses(folder, r"tensors\.safetensors: .*(BF16|bfloat16)")


def test_tensors_changed_since_are_refused(folder: Path) -> None:
    data = bytearray((folder / TENSORS).read_bytes())
    data[-1] ^= 1
    (folder / TENSORS).write_bytes(data)
    refuses(folder, r"tensors\.safetensors: sha256 is not the one in bundle\.json; changed since")


@pytest.mark.parametrize("file", [MANIFEST, TENSORS])
def test_a_pickle_is_not_run(folder: Path, file: str, tmp_path: Path) -> None:
    class Run:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "run"),)

    (folder / file).write_bytes(pickle.dumps(Run()))
    refuses(folder, file)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_truncated_tensors_are_refused(folder: Path, kept: int) -> None:
    (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:kept])
    refuses(folder, r"tensors\.safetensors: not a safetensors file")


@pytest.mark.parametrize("file", [MANIFEST, TENSORS])
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    refuses(folder, f"{file}: cannot be read: No such file")


@pytest.mark.parametrize("file", [MANIFEST, TENSORS])
def test_a_folder_in_place_of_a_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    (folder / file).mkdir()
    refuses(folder, f"{file}: cannot be read: Is a directory")


@pytest.mark.parametrize("file", [MANIFEST, TENSORS])
def test_a_device_in_place_of_a_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    (folder / file).symlink_to(os.devnull)
    refuses(folder, f"{file}: cannot be read: not a regular file")


@pytest.mark.parametrize("file", [MANIFEST, TENSORS])
def test_a_file_far_larger_than_it_may_be_is_named(folder: Path, file: str) -> None:
    os.truncate(folder / file, 17_000_000)
    refuses(folder, rf"{file}: cannot be read: 17000000 bytes, wanted at most 1600\d\d\d\d$")


@pytest.mark.parametrize("file", [MANIFEST, BASELINE])
def test_a_disk_that_fails_is_named(
    folder: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = Path.stat
    (folder / MANIFEST).unlink()

    def fail(path: Path, **options: Any) -> os.stat_result:
        if path.name == file:
            raise OSError(errno.ESTALE, "Stale file handle")
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", fail)
    refuses(folder, f"{file}: cannot be read: Stale file handle")


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    refuses(tmp_path / "gone", r"gone/bundle\.json: cannot be read: No such file")


@pytest.mark.parametrize("version", [2, 10**9])
def test_a_newer_format_is_told_to_update(folder: Path, version: int) -> None:
    rewrite(folder, format_version=version, tensors="in a form not yet thought of")
    refuses(folder, f"bundle.json: format version {version}; lspt-serve .* reads up to 1: update")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../other",
        "..",
        "/etc/passwd",
        "a/b",
        "a\\b",
        ".hidden",
        "-option",
        "Upper",
        "white space",
        "zero\0",
        "line\n",
        "ü",
        "x" * 65,
    ],
)
def test_a_name_that_may_not_be_a_folders_is_refused(folder: Path, name: str) -> None:
    rewrite(folder, name=name)
    refuses(folder, r"bundle\.json: name: ")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"extra": 1}, "extra: Extra inputs are not permitted"),
        ({"format_version": 0}, "format_version: "),
        ({"format_version": "1"}, "format_version: "),
        ({"version": 0}, "version: .*greater than or equal to 1"),
        ({"version": "seven"}, "version: "),
        ({"version": 2**31}, "version: .*less than or equal to 2147483647"),
        ({"labels": ["ant", "bee", "ant"]}, "labels: .*labels must differ, got twice: ant"),
        ({"labels": ["ant"]}, "labels: .*at least 2"),
        ({"labels": []}, "labels: .*at least 2"),
        ({"labels": "ant"}, "labels: "),
        ({"labels": ["ant", 2, "bee"]}, "labels.1: "),
        ({"labels": ["\ud800", "bee", "cat"]}, "Invalid JSON: .*escape"),
        ({"method": {"options": {}}}, "method.name: Field required"),
        ({"method": {"name": "lspt", "option": {}}}, "method.option: Extra inputs"),
        ({"backbone": {"source": "vit", "sha256": "0" * 63}}, "backbone.sha256: "),
        ({"backbone": {"source": "vit", "sha256": "A" * 64}}, "backbone.sha256: "),
        ({"preprocess": {"img_size": 0}}, "preprocess: .*img_size must be at least 1, got 0"),
        ({"preprocess": {"img_size": 32, "crop": 0.9}}, "preprocess.crop: "),
        ({"preprocess": {"img_size": 32, "crop_pct": 1e-9}}, "preprocess: .*crop_pct must be in"),
        ({"preprocess": {"img_size": 32, "mean": [0, 0]}}, "preprocess.mean.2: "),
        ({"preprocess": {"img_size": 32, "std": [0, 1, 1]}}, "preprocess: .*std > 0"),
        ({"preprocess": {"img_size": 32, "mean": [float("nan"), 0, 0]}}, "preprocess"),
        ({"preprocess": {"img_size": 32, "std": [float("nan"), 1, 1]}}, "preprocess"),
        ({"preprocess": {"img_size": 32, "std": [1, float("inf"), 1]}}, "preprocess"),
        ({"dtype": "float64"}, "dtype: .*'float32' or 'float16'"),
        ({"dtype": None}, "dtype: "),
        ({"tensors": {"head.bias": 3}}, "tensors.head.bias: "),
        ({"tensors_sha256": "?"}, "tensors_sha256: "),
        ({"metrics": {"val_accuracy": 1}}, "metrics.test_accuracy: Field required"),
    ],
)
def test_a_field_that_the_format_does_not_allow_is_named(
    folder: Path, fields: dict[str, Any], message: str
) -> None:
    rewrite(folder, **fields)
    refuses(folder, rf"bundle\.json: .*{message}")


@pytest.mark.parametrize(
    "field",
    ["name", "labels", "method", "backbone", "preprocess", "pool", "tensors", "tensors_sha256"],
)
def test_a_field_that_is_left_out_is_named(folder: Path, field: str) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest[field]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    refuses(folder, rf"bundle\.json: {field}: Field required")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"{'name': 1}",
        b"\xff\xfe\xfd",
        b"\x80",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"version": ' + b"1" * 5_000 + b"}",
    ],
    ids=lambda data: repr(data[:20]),
)
def test_a_manifest_that_is_not_json_is_refused(folder: Path, data: bytes) -> None:
    (folder / MANIFEST).write_bytes(data)
    refuses(folder, r"bundle\.json: ")


@pytest.mark.parametrize(
    "fields",
    [
        {str(number): 1 for number in range(100_000)},
        {"tensors": {"head.bias": ["x"] * 300_000}},
        {"preprocess": {"img_size": 32, "mean": [0] * 400_000}},
    ],
    ids=["unknown keys", "shape", "mean"],
)
def test_a_manifest_that_is_long_without_its_labels_is_refused(
    folder: Path, fields: dict[str, Any]
) -> None:
    """Each of a million mistakes would take kilobytes to be told."""
    rewrite(folder, **fields)
    refuses(folder, r"bundle\.json: more than 1000000 bytes without the labels$")


def test_a_manifest_may_have_many_labels_and_the_first_mistake_in_them_is_told(
    folder: Path,
) -> None:
    rewrite(folder, labels=[*map(str, range(200_000))])
    refuses(folder, r"head\.(bias|weight) is \[3.*\] for 200000 labels")
    rewrite(folder, labels=[1] * 200_000)
    refuses(folder, r"bundle\.json: labels\.0: Input should be a valid string$")


@pytest.mark.parametrize("data", [b"null", b"1", b'"text"', b"[]", b"true"])
def test_a_manifest_that_is_no_object_is_refused(folder: Path, data: bytes) -> None:
    (folder / MANIFEST).write_bytes(data)
    refuses(folder, r"bundle\.json: the file: ")


@pytest.mark.parametrize("figure", [float("nan"), float("inf")])
def test_figures_that_json_does_not_know_make_no_bundle(
    make_bundle: Callable[..., Bundle], figure: float
) -> None:
    sound = make_bundle("vpt-shallow")
    with pytest.raises(ValueError, match="val_accuracy"):
        Bundle.create(
            sound.tensors,
            metrics=Metrics(
                val_accuracy=figure, test_accuracy=1, best_epoch=1, seed=0, split={}, train_s=1
            ),
            **{k: getattr(sound.manifest, k) for k in ("name", "labels", "method", "pool")},
            **{k: getattr(sound.manifest, k) for k in ("backbone", "preprocess")},
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "../other"}, "no bundle can be made: name: "),
        ({"labels": ["ant", "ant"]}, "no bundle can be made: labels: .*got twice: ant"),
        ({"version": 0}, "no bundle can be made: version: "),
    ],
)
def test_what_cannot_be_loaded_cannot_be_made(
    make_bundle: Callable[..., Bundle], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        make_bundle("vpt-shallow", **fields)


def test_another_backbone_is_named_and_not_where_it_lies(
    make_bundle: Callable[..., Bundle],
) -> None:
    bundle = make_bundle("vpt-shallow")
    own = bundle.manifest.backbone
    bundle.check_backbone(BackboneRef(source="the same from elsewhere", sha256=own.sha256))
    with pytest.raises(BundleError) as caught:
        bundle.check_backbone(BackboneRef(source="/srv/vit_other.pth", sha256="0" * 64))
    assert str(caught.value) == (
        f"bundle 'tiny' belongs to backbone {Path(own.source).name} (sha256 {own.sha256[:12]}), "
        "not to vit_other.pth (sha256 000000000000)"
    )


@pytest.mark.parametrize(
    ("source", "label"),
    [
        ("/srv/models/vit.pth", "vit.pth"),
        ("C:\\models\\vit.pth", "vit.pth"),
        ("\\\\nas\\models\\vit.pth", "vit.pth"),
        ("models/vit.pth", "models/vit.pth"),
        ("hf-hub:timm/vit_tiny", "hf-hub:timm/vit_tiny"),
        ("timm/vit_tiny.in21k", "timm/vit_tiny.in21k"),
        ("/", "/"),
    ],
)
def test_backbone_is_called_without_the_folder_it_lies_in(source: str, label: str) -> None:
    assert BackboneRef(source=source, sha256="0" * 64).label == label


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A simulated full disk: every write of bytes fails."""

    def fail(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)


@pytest.mark.usefixtures("full_disk")
def test_a_simulated_full_disk_leaves_nothing_behind(
    tmp_path: Path, make_bundle: Callable[..., Bundle]
) -> None:
    with pytest.raises(OutputError, match="new cannot be written: No space left on device"):
        save_bundle(make_bundle("vpt-shallow"), tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_a_simulated_full_disk_leaves_an_existing_bundle_alone(
    folder: Path, make_bundle: Callable[..., Bundle], request: pytest.FixtureRequest
) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    request.getfixturevalue("full_disk")
    with pytest.raises(OutputError):
        save_bundle(make_bundle("gated"), folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert list(folder.parent.iterdir()) == [folder]


def loads_or_refuses(folder: Path, files: dict[str, bytes]) -> None:
    """Anything but a BundleError fails the test; what loads can be saved and loaded again."""
    for name in (MANIFEST, TENSORS):
        sound = folder.parent / "sound" / name
        (folder / name).write_bytes(files.get(name, sound.read_bytes()))
    with contextlib.suppress(BundleError):
        bundle = load_bundle(folder)
        save_bundle(bundle, folder)
        assert load_bundle(folder).tensors.keys() == bundle.tensors.keys()


@given(file=st.sampled_from([MANIFEST, TENSORS]), data=st.binary(max_size=400))
def test_arbitrary_bytes_raise_nothing_but_bundle_errors(
    fuzzed: Path, file: str, data: bytes
) -> None:
    loads_or_refuses(fuzzed, {file: data})


@given(
    file=st.sampled_from([MANIFEST, TENSORS]),
    position=st.integers(0, 1000),
    data=st.binary(min_size=1, max_size=8),
)
def test_damaged_bytes_raise_nothing_but_bundle_errors(
    fuzzed: Path, file: str, position: int, data: bytes
) -> None:
    sound = (fuzzed.parent / "sound" / file).read_bytes()
    damaged = sound[:position] + data + sound[position + len(data) :]
    loads_or_refuses(fuzzed, {file: damaged})


@given(data=st.data(), value=JSON)
def test_arbitrary_json_in_a_field_raises_nothing_but_bundle_errors(
    fuzzed: Path, data: st.DataObject, value: object
) -> None:
    manifest = json.loads((fuzzed.parent / "sound" / MANIFEST).read_bytes())
    record, key = manifest, data.draw(st.sampled_from(sorted(manifest)))
    if isinstance(manifest[key], dict) and data.draw(st.booleans()):
        record, key = manifest[key], data.draw(st.sampled_from(sorted(manifest[key])))
    record[key] = value
    loads_or_refuses(fuzzed, {MANIFEST: json.dumps(manifest).encode()})


@given(
    shapes=st.dictionaries(
        st.sampled_from([*SHAPES, "extra"]),
        st.lists(st.integers(0, 4), max_size=3),
        max_size=4,
    ),
    dtype=st.sampled_from(["float32", "float16", "bool", "int8"]),
)
def test_arbitrary_tensors_raise_nothing_but_bundle_errors(
    fuzzed: Path, shapes: dict[str, list[int]], dtype: str
) -> None:
    tensors = save({name: np.zeros(shape, dtype) for name, shape in shapes.items()})
    manifest = json.loads((fuzzed.parent / "sound" / MANIFEST).read_bytes())
    manifest |= {"tensors": shapes, "tensors_sha256": hashlib.sha256(tensors).hexdigest()}
    loads_or_refuses(fuzzed, {TENSORS: tensors, MANIFEST: json.dumps(manifest).encode()})
