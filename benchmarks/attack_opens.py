"""Which files a server opens: all are written down, and those that are none of its business found.

What counts is where a file lies, once links are followed. What libraries open without Python is not
seen.
"""

import os
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

__all__ = ["HOOK", "find_strays", "read_opened"]

# in the server's own processes: Python tells a hook of every file that it opens
HOOK = """
import os, sys

log = os.open({path!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

def tell(event, args):
    if event == "open" and isinstance(args[0], (str, bytes)):
        try:
            name = os.path.join(os.getcwd(), os.fsdecode(args[0]))
            os.write(log, (ascii(os.path.realpath(name)) + "\\n").encode())
        except OSError:
            pass

sys.addaudithook(tell)
"""
SYSTEM = ("/dev", "/proc", "/sys")


def read_opened(log: Path) -> list[str]:
    """Paths, in the order of their opening."""
    return [line[1:-1] for line in log.read_text().splitlines()]


def find_strays(opened: Sequence[str], allowed: Sequence[Path]) -> list[str]:
    """Those outside of `allowed`, of Python's own folders and of the system's pseudo files.

    Folders are compared as they are and without symbolic links.
    """
    python = {sys.prefix, sys.base_prefix, *sysconfig.get_paths().values()}
    roots = [*SYSTEM, *python, *map(str, allowed)]
    roots = [*{*roots, *map(os.path.realpath, roots)}]
    return sorted({path for path in opened if not any(_is_in(path, root) for root in roots)})


def _is_in(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")
