"""lspt serve: the BentoML service over a graph and a folder of bundles."""

import os
import socket
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from lspt_serve.cli.console import DeviceOption, PrecisionOption, console
from lspt_serve.errors import AddressError, OptionError, first_line

__all__ = ["serve"]


def serve(
    graph: Annotated[
        Path, typer.Option(envvar="LSPT_GRAPH", help="What lspt export wrote.")
    ] = Path("graph"),
    bundles: Annotated[Path, typer.Option(envvar="LSPT_BUNDLES", help="Folder of bundles.")] = Path(
        "bundles"
    ),
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at.", min=1, max=65535)] = 3000,
    engine: Annotated[
        Literal["auto", "onnxruntime", "openvino", "torch", "tensorrt", "triton"],
        typer.Option(
            envvar="LSPT_ENGINE",
            help="auto: the fastest here of onnxruntime, openvino and, on a GPU, torch.",
        ),
    ] = "auto",
    triton_url: Annotated[
        str | None,
        typer.Option(help="Of --engine triton: grpc:// or http://HOST:PORT; port 8001 here."),
    ] = None,
    precision: PrecisionOption = "fp32",
    device: DeviceOption = "auto",
) -> None:
    """Serve all bundles of a folder over HTTP.

    Example:  lspt serve --graph graph --bundles bundles --port 3000

    Then:  curl -F image=@photo.jpg -F task=flowers http://127.0.0.1:3000/classify
    """
    from lspt_serve.api.auth import load_access
    from lspt_serve.graph import load_graph_spec
    from lspt_serve.runtime import PromptStore, fastest, try_engines
    from lspt_serve.settings import ServiceSettings
    from lspt_serve.signatures import load_trusted_keys

    if triton_url is not None and engine != "triton":
        raise OptionError("--triton-url is of --engine triton; give both or neither")
    # say what is wrong before BentoML starts
    settings = ServiceSettings.from_env()
    load_access(settings.admin_token, settings.keys)
    trusted = load_trusted_keys(settings.trusted_keys)
    store = PromptStore(bundles, load_graph_spec(graph), host_bytes=0, trusted=trusted)
    address = _find_address(host, port)
    names = None if engine == "auto" else [engine]
    url = triton_url or settings.triton_url
    with console.status(escape(f"trying the engines on {graph}")):
        found = try_engines(
            graph, names=names, precisions=[precision], device=device, triton_url=url
        )
        best = fastest(found, log=_say)
    best.engine.close()  # the service makes its own
    tasks = ", ".join(task.name for task in store) or "none yet"
    _say(f"tasks: {tasks}")
    os.environ.update(
        LSPT_GRAPH=str(graph.resolve()),
        LSPT_BUNDLES=str(bundles.resolve()),
        LSPT_ENGINE=best.engine.name,
        LSPT_TRITON_URL=url,
        LSPT_PRECISION=precision,
        LSPT_DEVICE=device,
        BENTOML_DO_NOT_TRACK=os.environ.get("BENTOML_DO_NOT_TRACK", "True"),
    )
    service = "lspt_serve.service:LSPTService"
    command = ["bentoml", "serve", service, "--host", address, "--port", str(port)]
    os.execv(sys.executable, [sys.executable, "-m", *command])


def _say(line: str) -> None:
    console.print(escape(line), highlight=False, soft_wrap=True)


def _find_address(host: str, port: int) -> str:
    """The number of an address that can be listened at; BentoML takes no names."""
    try:
        (family, *_, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        socket.create_server(address[:2], family=family).close()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise AddressError(
            f"{host} port {port} cannot be listened at: {reason}; give another --host or --port"
        ) from error
    return str(address[0])
