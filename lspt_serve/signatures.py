"""Who made a bundle, where that is asked for. See docs/bundle-format.md.

`bundle.sig` is the Ed25519 signature of the bytes of bundle.json, which hold the sha256 of the
tensors. The package cryptography is imported where it is used: without trusted keys none is needed.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lspt_serve.errors import BundleError, OptionError, SettingError
from lspt_serve.files import read_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

__all__ = ["SIGNATURE", "TrustedKeys", "load_private_key", "load_trusted_keys"]

SIGNATURE = "bundle.sig"
SIGNATURE_BYTES = 64
MAX_KEY_BYTES = 1_000_000  # of a file of keys
PUBLIC_KEY = re.compile(rb"-----BEGIN PUBLIC KEY-----[^-]*-----END PUBLIC KEY-----")


@dataclass(frozen=True)
class TrustedKeys:
    """Public keys, one of which has to have signed a bundle."""

    keys: "Sequence[Ed25519PublicKey]"

    def check(self, folder: Path, manifest: bytes) -> None:
        """Raises BundleError unless the folder has a signature of the manifest's bytes."""
        from cryptography.exceptions import InvalidSignature

        path = folder / SIGNATURE
        try:
            signature = read_file(path, max_bytes=SIGNATURE_BYTES)
        except FileNotFoundError:
            raise BundleError(
                f"{path}: no such file; bundles have to be signed here: lspt sign"
            ) from None
        except OSError as error:
            raise BundleError(f"{path}: cannot be read: {error.strerror}") from error
        for key in self.keys:
            with suppress(InvalidSignature):
                key.verify(signature, manifest)
                return
        raise BundleError(
            f"{path}: not by a key that is trusted here, or bundle.json changed since"
        )


def load_trusted_keys(path: Path | None) -> TrustedKeys | None:
    """The keys in a file of public keys (PEM), or in all *.pem of a folder; None for no path.

    Raises:
        SettingError: no keys there, others than Ed25519, or no package to check signatures with.
    """
    if path is None:
        return None
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ModuleNotFoundError as error:
        raise SettingError(
            "LSPT_TRUSTED_KEYS needs cryptography; install it with: pip install '.[signing]' in a "
            "clone"
        ) from error
    try:
        files = sorted(path.glob("*.pem")) if path.is_dir() else [path]
        texts = {file: read_file(file, max_bytes=MAX_KEY_BYTES) for file in files}
    except OSError as error:
        raise SettingError(f"LSPT_TRUSTED_KEYS is {path}: {error.strerror}") from error
    keys = []
    for file, text in texts.items():
        for pem in PUBLIC_KEY.findall(text):
            try:
                key = load_pem_public_key(pem)
            except (ValueError, UnsupportedAlgorithm) as error:
                raise SettingError(f"{file}: holds what is no public key") from error
            if not isinstance(key, Ed25519PublicKey):
                raise SettingError(f"{file}: holds a key that is not of Ed25519")
            keys.append(key)
    if not keys:
        raise SettingError(
            f"LSPT_TRUSTED_KEYS is {path}: no public key there; make one of a private one with: "
            "openssl pkey -in key.pem -pubout"
        )
    return TrustedKeys(tuple(keys))


def load_private_key(path: Path) -> "Ed25519PrivateKey":
    """The key in a PEM file; raises OptionError if it is none of Ed25519, or encrypted."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(read_file(path, max_bytes=MAX_KEY_BYTES), password=None)
    except OSError as error:
        raise OptionError(f"--key {path}: cannot be read: {error.strerror}") from error
    except (TypeError, ValueError, UnsupportedAlgorithm):  # TypeError: it wants a password
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise OptionError(
            f"--key {path}: no Ed25519 private key without a password; make one with: "
            "openssl genpkey -algorithm ed25519 -out key.pem"
        )
    return key
