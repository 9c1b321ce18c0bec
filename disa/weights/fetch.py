"""Published weights: the catalogue, where they are, and downloads that can be continued."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError

from tqdm import tqdm

from ..runtime.files import atomic_write, sha256, write_json
from ..runtime.names import did_you_mean
from ..runtime.shared import NAME, places, shared_folder
from .hub import hub_file

LAST = "checkpoint-last.pth"  # in the folder of a training, ours and the released ones


@dataclass(frozen=True)
class Published:
    """A published file."""

    name: str
    url: str
    path: str  # below `pretrained_models`
    megabytes: int  # approximately; 0 where it was not published
    licence: str

    @property
    def origin(self) -> str:
        """The address without its query."""
        return self.url.partition("?")[0]

    @property
    def hub(self) -> tuple[str, str] | None:
        """Its repository on the Hugging Face hub, and its name there, if it lies there."""
        repository, found, file = self.url.removeprefix("https://huggingface.co/").partition("/resolve/main/")
        return (repository, file) if found else None


def _dropbox(name: str, key: str, query: str, path: str, megabytes: int) -> Published:
    return Published(name, f"https://www.dropbox.com/scl/fi/{key}?rlkey={query}&dl=1", path, megabytes, "MIT")


def _hugging_face(name: str, repository: str, file: str, licence: str) -> Published:
    folder = repository.rpartition("/")[2].lower()
    return Published(name, f"https://huggingface.co/{repository}/resolve/main/{file}", f"{folder}/{file}", 0, licence)


_AUTHORS, _NTU = "see the authors' page", "NTU S-Lab 1.0 (non-commercial)"
_MAR, _STATISTICS = "https://raw.githubusercontent.com/LTH14/mar/main", "fid_stats/adm_in256_stats.npz"
_FILES = [
    _dropbox("kl16", "hhmuvaiacrarfg28qxhwz/kl16.ckpt", "l44xipsezc8atcffdp4q7mwmh", "vae/kl16.ckpt", 254),
    _dropbox("mar_base", f"f6dpuyjb7fudzxcyhvrhk/{LAST}", "a6i4bo71vhfo4anp33n9ukujb", f"mar/mar_base/{LAST}", 1587),
    _dropbox("mar_large", f"pxacc5b2mrt3ifw4cah6k/{LAST}", "m48ovo6g7ivcbosrbdaz0ehqt", f"mar/mar_large/{LAST}", 3650),
    _dropbox("mar_huge", f"1qmfx6fpy3k7j9vcjjs3s/{LAST}", "4lae281yzxb406atp32vzc83o", f"mar/mar_huge/{LAST}", 7191),
    _hugging_face("flowar_small", "OliverRen/FlowAR", "FlowAR-S.pth", _AUTHORS),
    _hugging_face("flowar_large", "OliverRen/FlowAR", "FlowAR-L.pth", _AUTHORS),
    _hugging_face("flowar_huge", "OliverRen/FlowAR", "FlowAR-H.pth", _AUTHORS),
    _hugging_face("xar_base", "OliverRen/xAR", "xAR-B.pth", _AUTHORS),
    _hugging_face("xar_large", "OliverRen/xAR", "xAR-L.pth", _AUTHORS),
    _hugging_face("xar_huge", "OliverRen/xAR", "xAR-H.pth", _AUTHORS),
    _hugging_face("harmon_0.5b", "wusize/harmon", "harmon_0.5b.pth", _NTU),
    _hugging_face("harmon_1.5b", "wusize/harmon", "harmon_1.5b.pth", _NTU),
    _hugging_face("harmon_1.5b-o", "wusize/harmon", "harmon_1.5b-o.pth", _NTU),
    Published("adm_in256_stats", f"{_MAR}/{_STATISTICS}", _STATISTICS, 0, "MIT"),
]
CATALOGUE = {entry.name: entry for entry in _FILES}


def published(name: str) -> Published:
    """Return what the catalogue has of a published file; raise ValueError if it knows none of that name."""
    if name not in CATALOGUE:
        advice = did_you_mean(name, CATALOGUE)
        raise ValueError(f"there is no published file {name!r}; allowed are {', '.join(CATALOGUE)}{advice}")
    return CATALOGUE[name]


def find_published(name: str) -> Path:
    """Find a published file, see `places`; raise FileNotFoundError if it has not been fetched."""
    path = Path(NAME, published(name).path)
    for place in places(path):
        if place.is_file():
            return place
    fetch = f"`disa checkpoints fetch {name}`, or with util/download.py of its family"
    raise FileNotFoundError(f"there is no {path}; fetch it with {fetch}")


def fetch(name: str, folder: str | Path | None = None, attempts: int = 5) -> Path:
    """Download a published file, unless it is there; return its path below `folder`, by default `shared_folder()`.

    What lies on the Hugging Face hub stays in the hub's cache, and a link is left. Of other files, an earlier try is
    continued, up to `attempts` times; their size and SHA-256 are kept beside them, in `<file>.sha256.json`: the first
    download records them, later ones must match. A file that is there is checked with that, not downloaded again.

    Raises:
        ValueError: the name is unknown, or the file is another one.
        OSError: it could not be fetched.
    """
    entry = published(name)
    path = Path(shared_folder() if folder is None else folder, entry.path)
    if folder is None:
        with contextlib.suppress(FileNotFoundError):
            path = find_published(name)  # perhaps in a family's own folder
    if entry.hub is None or path.is_file():
        download(entry.url, path, attempts)
    else:
        _link(path, hub_file(*entry.hub))
    return path


def _link(path: Path, target: Path) -> None:
    """Make `path` a link to `target`; where the file system has none, a copy."""
    with atomic_write(path) as beside:
        try:
            beside.symlink_to(target.absolute())
        except OSError:
            shutil.copyfile(target, beside)


def download(url: str, path: Path, attempts: int = 5, retry_seconds: float = 1.0) -> None:
    """Download as `fetch` does; wait `retry_seconds` before the second try, and twice as long before each later one."""
    record, part = path.with_name(path.name + ".sha256.json"), path.with_name(path.name + ".part")
    if path.is_file():
        # Without a record somebody put it there: it is kept unchecked.
        if record.is_file() and not _check_record(path, record, url):
            raise ValueError(
                f"{path} is not the file that {record} describes; "
                "move it away to fetch it again, or remove the record to keep it"
            )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(1, attempts + 1):
        try:
            _continue_download(url, part)
            break
        except (OSError, EOFError, http.client.HTTPException) as error:
            refused = isinstance(error, HTTPError) and error.code < 500 and error.code not in (408, 429)
            if attempt == attempts or refused:
                raise OSError(f"downloading {url} failed ({error}); start again to go on from {part}") from error
            time.sleep(retry_seconds * 2 ** (attempt - 1))
    if not _check_record(part, record, url):
        part.unlink()
        raise ValueError(
            f"{url} gave another file than {record} describes; if the publisher changed it, remove the record"
        )
    part.replace(path)


def _check_record(path: Path, record: Path, url: str) -> bool:
    """Compare `path` with the file that `record` describes; without a record, write it."""
    found = {"size": path.stat().st_size, "sha256": sha256(path), "url": url}
    if not record.is_file():
        write_json(record, found)
    known = json.loads(record.read_text())
    return all(known[key] == found[key] for key in ("size", "sha256"))


def _continue_download(url: str, part: Path) -> None:
    """Append to `part` what it lacks of `url`."""
    have = part.stat().st_size if part.is_file() else 0
    headers = {"User-Agent": "disa", **({"Range": f"bytes={have}-"} if have else {})}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60)
    except HTTPError as error:
        if error.code != 416 or not have:
            raise
        if error.headers.get("Content-Range", "").rpartition("/")[2] == str(have):  # `part` is already everything
            return
        part.unlink()
        raise EOFError("the part that was there is longer than the file") from error
    with response:
        if response.headers.get_content_type() == "text/html":
            raise ValueError(
                f"{url} gave a web page, not a file; its publisher may have moved it, or limits downloads for a while"
            )
        have = have if response.status == 206 else 0  # without ranges the server starts over
        total = None if response.length is None else have + response.length
        with (
            open(part, "ab" if have else "wb") as file,
            tqdm.wrapattr(response, "read", total, initial=have, desc=part.stem) as body,
        ):
            shutil.copyfileobj(body, file, 1 << 20)
    if total is not None and part.stat().st_size != total:
        raise EOFError(f"the connection ended at {part.stat().st_size} of {total} bytes")
