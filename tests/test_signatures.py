import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toys import export_once, prompts_graph, random_bundle

from lspt_serve.bundle import MANIFEST, TENSORS, Bundle, load_bundle, save_bundle
from lspt_serve.cli import main
from lspt_serve.errors import BundleError, OptionError, SettingError
from lspt_serve.models import Backbone
from lspt_serve.runtime import PromptStore
from lspt_serve.settings import ServiceSettings, load_classifier
from lspt_serve.signatures import SIGNATURE, load_private_key, load_trusted_keys

REASON = "needs the extra signing"
ec = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ec", reason=REASON)
ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519", reason=REASON)
forms = pytest.importorskip("cryptography.hazmat.primitives.serialization", reason=REASON)

MakeBundle = Callable[..., Bundle]
PUBLIC = forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo
PRIVATE = forms.Encoding.PEM, forms.PrivateFormat.PKCS8


def write_keys(
    folder: Path, name: str, private: Any = None, *, encryption: Any = None
) -> tuple[Path, Path]:
    """Files of a private key and its public one."""
    private = private or ed25519.Ed25519PrivateKey.generate()
    (folder / "trusted").mkdir(exist_ok=True)
    paths = folder / f"{name}-private.pem", folder / "trusted" / f"{name}.pem"
    paths[0].write_bytes(private.private_bytes(*PRIVATE, encryption or forms.NoEncryption()))
    paths[1].write_bytes(private.public_key().public_bytes(*PUBLIC))
    return paths


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return write_keys(tmp_path, "mine")


@pytest.fixture
def folder(tmp_path: Path, make_bundle: MakeBundle) -> Path:
    """A bundle that nobody signed."""
    save_bundle(make_bundle("vpt-shallow", name="flowers"), tmp_path / "bundles" / "flowers")
    return tmp_path / "bundles" / "flowers"


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """run(words): exit code, and stdout and stderr of a command."""

    def command(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["lspt", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), "".join(capsys.readouterr())

    return command


@pytest.fixture
def signed(folder: Path, keys: tuple[Path, Path], run: Callable[..., tuple[int, str]]) -> Path:
    assert run("sign", folder, "--key", keys[0]) == (0, f"{folder / SIGNATURE}\n")
    return folder


def refuses(folder: Path, keys: Path, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        load_bundle(folder, trusted=load_trusted_keys(keys))


def test_signed_bundle_is_loaded_and_holds_what_it_did(
    signed: Path, keys: tuple[Path, Path]
) -> None:
    bundle = load_bundle(signed, trusted=load_trusted_keys(keys[1]))

    assert bundle.manifest == load_bundle(signed).manifest
    assert len((signed / SIGNATURE).read_bytes()) == 64


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the command openssl")
def test_signature_is_one_for_openssl_too(signed: Path, keys: tuple[Path, Path]) -> None:
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(keys[1]), "-rawin"]
    files = ["-in", str(signed / MANIFEST), "-sigfile", str(signed / SIGNATURE)]

    verified = subprocess.run([*command, *files], capture_output=True, text=True)

    assert verified.returncode == 0, verified.stderr


def test_manifest_that_was_changed_is_refused(signed: Path, keys: tuple[Path, Path]) -> None:
    manifest = json.loads((signed / MANIFEST).read_text()) | {"name": "weeds"}
    (signed / MANIFEST).write_text(json.dumps(manifest))

    assert load_bundle(signed).name == "weeds"
    refuses(signed, keys[1], r"bundle\.sig: not by a key .*, or bundle\.json changed since")


def test_tensors_that_were_changed_are_refused(signed: Path, keys: tuple[Path, Path]) -> None:
    data = bytearray((signed / TENSORS).read_bytes())
    data[-1] ^= 1
    (signed / TENSORS).write_bytes(data)

    refuses(signed, keys[1], r"sha256 is not the one in bundle\.json")


def test_signature_by_another_key_is_refused(signed: Path, tmp_path: Path) -> None:
    _, other = write_keys(tmp_path, "other")

    refuses(signed, other, r"bundle\.sig: not by a key that is trusted here")


def test_signature_of_another_bundle_is_refused(
    signed: Path, keys: tuple[Path, Path], make_bundle: MakeBundle
) -> None:
    save_bundle(make_bundle("vpt-shallow", name="birds"), signed.parent / "birds")
    shutil.copy(signed / SIGNATURE, signed.parent / "birds")

    refuses(signed.parent / "birds", keys[1], r"bundle\.sig: not by a key")


def test_bundle_without_a_signature_is_refused(folder: Path, keys: tuple[Path, Path]) -> None:
    refuses(folder, keys[1], r"bundle\.sig: no such file; bundles have to be signed here")


@pytest.mark.parametrize("num_bytes", [0, 63, 64, 65])
def test_signature_that_is_none_is_refused(
    folder: Path, keys: tuple[Path, Path], num_bytes: int
) -> None:
    (folder / SIGNATURE).write_bytes(bytes(num_bytes))

    refuses(folder, keys[1], r"bundle\.sig: (not by a key|cannot be read: 65 bytes)")


def test_folder_in_place_of_a_signature_is_refused(folder: Path, keys: tuple[Path, Path]) -> None:
    (folder / SIGNATURE).mkdir()

    refuses(folder, keys[1], r"bundle\.sig: cannot be read: Is a directory")


def test_what_is_not_signed_is_not_even_parsed(folder: Path, keys: tuple[Path, Path]) -> None:
    (folder / MANIFEST).write_text("{")

    refuses(folder, keys[1], r"bundle\.sig: no such file")


def test_tensors_that_are_not_the_signed_ones_are_not_even_parsed(
    signed: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lspt_serve.bundle.load", lambda data: pytest.fail("parsed"))
    (signed / TENSORS).write_bytes(b"no safetensors")

    refuses(signed, keys[1], "sha256 is not the one in bundle.json")


def test_training_again_drops_the_signature(signed: Path, make_bundle: MakeBundle) -> None:
    save_bundle(make_bundle("vpt-shallow", name="flowers"), signed)

    assert not (signed / SIGNATURE).exists()


def test_store_serves_what_is_signed_once_it_is(
    signed: Path,
    keys: tuple[Path, Path],
    make_bundle: MakeBundle,
    run: Callable[..., tuple[int, str]],
) -> None:
    graph, trusted = prompts_graph(make_bundle("vpt-shallow")), load_trusted_keys(keys[1])
    birds = signed.parent / "birds"
    save_bundle(make_bundle("vpt-shallow", name="birds"), birds)

    store = PromptStore(signed.parent, graph, trusted=trusted)
    assert [task.name for task in store] == ["flowers"]
    assert store.refused == {
        "birds": "birds/bundle.sig: no such file; bundles have to be signed here: lspt sign"
    }

    run("sign", birds, "--key", keys[0])
    store.refresh()
    assert [task.name for task in store] == ["birds", "flowers"]
    assert store.refused == {}


def test_unsigned_bundle_in_the_place_of_a_signed_one_is_never_served(
    signed: Path, keys: tuple[Path, Path], make_bundle: MakeBundle
) -> None:
    graph, trusted = prompts_graph(make_bundle("vpt-shallow")), load_trusted_keys(keys[1])
    store = PromptStore(signed.parent, graph, trusted=trusted)
    before = store["flowers"]

    save_bundle(make_bundle("vpt-shallow", name="flowers", num_prompts=3), signed)
    store.refresh()

    assert store["flowers"] is before
    assert "bundle.sig: no such file" in store.refused["flowers"]


def test_service_takes_its_trusted_keys_from_the_settings(
    tiny_backbone: Backbone,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    keys: tuple[Path, Path],
) -> None:
    save_bundle(random_bundle(tiny_backbone, name="colour"), tmp_path / "bundles" / "colour")
    settings = ServiceSettings(
        graph=export_once(tiny_backbone, tmp_path_factory),
        bundles=tmp_path / "bundles",
        engine="onnxruntime",
        device="cpu",
        trusted_keys=keys[1],
    )

    classifier = load_classifier(settings)

    assert len(classifier.store) == 0
    assert "colour" in classifier.store.refused
    classifier.close()


def test_trusted_keys_are_those_of_a_file_or_of_a_folder(tmp_path: Path) -> None:
    publics = [write_keys(tmp_path, name)[1] for name in ("one", "two")]
    both = tmp_path / "both"
    both.write_bytes(b"mine:\n" + b"\n".join(path.read_bytes() for path in publics))
    raw = {path.read_bytes() for path in publics}

    for path in (both, tmp_path / "trusted"):
        trusted = load_trusted_keys(path)
        assert trusted is not None
        assert {key.public_bytes(*PUBLIC) for key in trusted.keys} == raw
    assert load_trusted_keys(None) is None


def nothing(folder: Path) -> Path:
    return folder / "nowhere"


def empty_folder(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def private_key(folder: Path) -> Path:
    return write_keys(folder, "secret")[0]


def key_of_another_kind(folder: Path) -> Path:
    return write_keys(folder, "curve", ec.generate_private_key(ec.SECP256R1()))[1]


def no_key(folder: Path) -> Path:
    text = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"
    (folder / "broken.pem").write_text(text)
    return folder / "broken.pem"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (nothing, "No such file"),
        (empty_folder, "no public key there"),
        (private_key, "no public key there; make one of a private one"),
        (key_of_another_kind, "not of Ed25519"),
        (no_key, "no public key"),
    ],
)
def test_trusted_keys_that_there_are_not_are_refused(
    tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        load_trusted_keys(make(tmp_path))


def test_without_the_package_nothing_is_trusted(
    keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)

    with pytest.raises(SettingError, match="needs cryptography"):
        load_trusted_keys(keys[1])


def encrypted_key(folder: Path) -> Path:
    return write_keys(folder, "locked", encryption=forms.BestAvailableEncryption(b"word"))[0]


def private_key_of_another_kind(folder: Path) -> Path:
    return write_keys(folder, "curve", ec.generate_private_key(ec.SECP256R1()))[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (nothing, "cannot be read: No such file"),
        (no_key, "no Ed25519 private key without a password"),
        (encrypted_key, "no Ed25519 private key without a password"),
        (private_key_of_another_kind, "no Ed25519 private key without a password"),
    ],
)
def test_key_that_cannot_sign_is_refused(
    tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        load_private_key(make(tmp_path))


def test_broken_bundle_is_not_signed(
    folder: Path, keys: tuple[Path, Path], run: Callable[..., tuple[int, str]]
) -> None:
    (folder / TENSORS).write_bytes(b"")

    code, said = run("sign", folder, "--key", keys[0])

    assert code == 2
    assert "not a safetensors file" in said
    assert not (folder / SIGNATURE).exists()
