"""Which layout a path has."""

from pathlib import Path

from lspt_serve.errors import DataError
from lspt_serve.training.data.archive import read_tar
from lspt_serve.training.data.folders import read_folders
from lspt_serve.training.data.hub import HUB_FILES, read_hub
from lspt_serve.training.data.lists import FGVC_FILES, VTAB_FILES, read_fgvc, read_vtab
from lspt_serve.training.data.source import Source
from lspt_serve.training.data.table import read_csv

__all__ = ["find_source"]


def find_source(path: Path, *, seed: int) -> Source:
    """Recognise a layout by what is there and read its lists, but no image.

    Raises:
        DataError: nothing there, no layout that is known, or a list that makes no sense.
    """
    if path.is_dir():
        if any((path / name).is_file() for name in HUB_FILES):
            return read_hub(path, seed)
        if (path / VTAB_FILES["train"]).is_file():
            return read_vtab(path)
        if (path / FGVC_FILES["train"]).is_file():
            return read_fgvc(path)
        return read_folders(path, seed)
    if not path.exists():
        raise DataError(
            f"{path}: no such folder or file; wanted DIR/train/LABEL/* or DIR/LABEL/*, a .csv, a "
            ".tar, or a folder of VTAB-1K, FGVC or Hugging Face datasets"
        )
    readers = {".csv": read_csv, ".tar": read_tar}
    if reader := readers.get(path.suffix.lower()):
        return reader(path, seed)
    raise DataError(f"{path}: a {path.suffix or 'nameless kind of'} file; wanted a .csv or a .tar")
