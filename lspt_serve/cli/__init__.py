"""The command line: lspt train | inspect | sign | export | quantise | engines | serve | ..."""

import sys

import typer
from rich.markup import escape

from lspt_serve import __version__
from lspt_serve.cli.classify import classify
from lspt_serve.cli.console import console
from lspt_serve.cli.engines import engines
from lspt_serve.cli.export import export
from lspt_serve.cli.inspect import inspect
from lspt_serve.cli.quantise import quantise
from lspt_serve.cli.remote import alias, load, unload
from lspt_serve.cli.results import results
from lspt_serve.cli.serve import serve
from lspt_serve.cli.sign import sign
from lspt_serve.cli.sweep import sweep
from lspt_serve.cli.train import train
from lspt_serve.errors import LSPTError, first_line, printable

__all__ = ["app", "main"]

TRAIN_PACKAGES = (
    "jinja2",
    "matplotlib",
    "onnx",
    "onnxscript",
    "optuna",
    "tensorboard",
    "timm",
    "torch",
    "torchvision",
)
EXTRAS = dict.fromkeys(TRAIN_PACKAGES, "train") | {  # package -> extra
    "cryptography": "signing",
    "nncf": "int8",
    "openvino": "openvino",
    "pyarrow": "parquet",
    "tritonclient": "triton",
}

app = typer.Typer(
    name="lspt",
    help="One frozen Vision Transformer, thousands of tasks, one server.",
    epilog="The usual order: lspt train, lspt export, lspt serve.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(train)
app.command()(inspect)
app.command()(sign)
app.command()(export)
app.command()(quantise)
app.command()(engines)
app.command()(serve)
app.command()(classify)
app.command()(load)
app.command()(unload)
app.command()(alias)
app.command()(sweep)
app.command()(results)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; a user's error is one line on stderr and exit code 2."""
    try:
        app()
    except LSPTError as error:
        _fail(str(error))
    except BrokenPipeError:  # of `lspt results | head`; typer ends the command
        raise
    except OSError as error:  # of a path that may not be looked at, say
        where = "" if error.filename is None else f"{error.filename}: "
        _fail(f"{where}{error.strerror or first_line(error)}")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        _fail(
            f"this command needs {package}, which serving does not; install it with: "
            f"pip install '.[{EXTRAS[package]}]' in a clone"
        )


def _fail(message: str) -> None:
    text = escape(printable(message))
    console.print(f"[red]error:[/] {text}", soft_wrap=True, highlight=False)
    sys.exit(2)
