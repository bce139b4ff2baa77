"""lspt sign: say that a bundle is one's own."""

from pathlib import Path
from typing import Annotated

import typer

from lspt_serve.bundle import MANIFEST, load_bundle
from lspt_serve.files import atomic_file
from lspt_serve.signatures import SIGNATURE, load_private_key

__all__ = ["sign"]


def sign(
    bundle: Annotated[Path, typer.Argument(help="A folder that lspt train wrote.")],
    key: Annotated[Path, typer.Option(help="An Ed25519 private key, as PEM.")],
) -> None:
    """Sign a bundle, for servers that take no others (LSPT_TRUSTED_KEYS).

    Example:  lspt sign bundles/flowers --key key.pem

    A key:  openssl genpkey -algorithm ed25519 -out key.pem
    """
    private = load_private_key(key)
    load_bundle(bundle)  # what is broken is not signed
    manifest = (bundle / MANIFEST).read_bytes()
    with atomic_file(bundle / SIGNATURE) as temporary:
        temporary.write_bytes(private.sign(manifest))
    print(bundle / SIGNATURE)
