"""Packages that only a proof needs, each in an environment of its own outside of ours."""

import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from common import progress

__all__ = ["find_python"]

FOLDER = Path(tempfile.gettempdir()) / "lspt-proofs"
INSTALL_S = 300.0
OURS = "ours.pth"


def find_python(package: str, *, with_ours: bool = True) -> tuple[Path | None, str]:
    """The Python of an environment that has the package, made now if there is none.

    Args:
        with_ours: it sees what this Python has, too.

    Returns:
        None where it cannot be installed, and why; or the Python, and the package's version.
    """
    folder = FOLDER / f"{package}-{sys.version_info.major}.{sys.version_info.minor}"
    python = folder / "bin" / "python"
    found = _version(python, package)
    if found:
        return python, found
    progress(f"installing {package} into {folder}")
    try:
        _run(sys.executable, "-m", "venv", str(folder))
        if with_ours:
            site = _run(str(python), "-c", "import site; print(site.getsitepackages()[0])")
            (Path(site) / OURS).write_text(sysconfig.get_path("purelib") + "\n")
        _run(str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q", package)
    except (OSError, subprocess.SubprocessError) as error:
        return None, f"{package} cannot be installed: {_reason(error)}"
    return python, _version(python, package)


def _version(python: Path, package: str) -> str:
    """Empty where there is none."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    try:
        return _run(str(python), "-c", code)
    except (OSError, subprocess.SubprocessError):
        return ""


def _run(*command: str) -> str:
    ended = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=True)
    return ended.stdout.strip()


def _reason(error: Exception) -> str:
    said = getattr(error, "stderr", None) or str(error)
    return str(said).strip().splitlines()[-1][:200]
