"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; rename it to `path` on success, remove it on failure.

    The name is hidden and carries the process number, so that ranks never share one; the suffix is kept, because
    libraries choose a format by it.

    Raises:
        OSError: naming `path`, if the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield beside
        os.replace(beside, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None:  # whoever writes does not know
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Hold the lock of this name: processes that see one file system enter one at a time, and one that dies lets go.

    Raises:
        OSError: the file system has no locks.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise OSError(error.errno, f"no lock on {path} ({error.strerror}); choose a folder on a file system that has locks") from error
        yield


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON."""
    with atomic_write(path) as beside:
        beside.write_text(json.dumps(value, indent=2, sort_keys=False) + "\n")


def image_files(folder: str | Path) -> list[Path]:
    """The images anywhere below `folder`, by name.

    Raises:
        FileNotFoundError: there are none.
    """
    found = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
    if not found:
        raise FileNotFoundError(f"there are no images in {folder}")
    return found
