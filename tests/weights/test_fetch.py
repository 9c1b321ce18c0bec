"""Downloads from a real server that misbehaves."""

import functools
import hashlib
import http.server
import json
import threading

import pytest

from disa.runtime import shared
from disa.weights import fetch as fetching
from disa.weights import verify
from disa.weights.fetch import CATALOGUE, Published, fetch, find_published

CONTENT = bytes(range(256)) * 2048


class Server(http.server.ThreadingHTTPServer):
    """Serves `content`; what it does wrong is set by the test."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.ranges, self.breaks, self.errors, self.kind = (
            CONTENT,
            True,
            [],
            [],
            "application/octet-stream",
        )
        self.requests: list[str | None] = []  # the Range of each
        self.url = f"http://127.0.0.1:{self.server_port}/weights"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, asked = self.server, self.headers["Range"]
        server.requests.append(asked)
        if server.errors:
            self.send_error(server.errors.pop(0))
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.ranges else 0
        if start >= len(server.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.content)}")
            self.end_headers()
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", server.kind)
        self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        self.end_headers()
        self.wfile.write(
            body[: server.breaks.pop(0)] if server.breaks else body
        )  # the connection ends with the handler

    def log_message(self, *args) -> None:
        pass


download = functools.partial(fetching.download, retry_seconds=0.0)


@pytest.fixture
def server():
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_download_records_size_and_hash_and_happens_once(server, tmp_path):
    path = tmp_path / "below" / "weights.pth"
    download(server.url, path)
    assert path.read_bytes() == CONTENT
    assert files(path.parent) == ["weights.pth", "weights.pth.sha256.json"]
    record = json.loads((path.parent / "weights.pth.sha256.json").read_text())
    assert (record["size"], record["sha256"]) == (len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    download(server.url, path)
    assert server.requests == [None]


def test_broken_connection_goes_on_where_it_stopped(server, tmp_path):
    server.breaks = [1000, 2000]
    download(server.url, tmp_path / "weights.pth")
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT
    assert server.requests == [None, "bytes=1000-", "bytes=3000-"]


def test_server_without_ranges_starts_over(server, tmp_path):
    server.ranges, server.breaks = False, [1000]
    download(server.url, tmp_path / "weights.pth")
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT


def test_a_later_start_goes_on_from_an_earlier_one(server, tmp_path):
    server.breaks = [1000, 1000]
    with pytest.raises(OSError, match=r"2000 of 524288 bytes.*start again"):
        download(server.url, tmp_path / "weights.pth", attempts=2)
    assert files(tmp_path) == ["weights.pth.part"]
    download(server.url, tmp_path / "weights.pth")
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT
    assert server.requests[-1] == "bytes=2000-"


def test_a_part_that_is_already_everything_or_too_much(server, tmp_path):
    (tmp_path / "weights.pth.part").write_bytes(CONTENT)
    download(server.url, tmp_path / "weights.pth")
    (tmp_path / "longer.pth.part").write_bytes(CONTENT + b"more")
    download(server.url, tmp_path / "longer.pth")
    assert (tmp_path / "weights.pth").read_bytes() == (tmp_path / "longer.pth").read_bytes() == CONTENT


def test_server_errors_are_tried_again_and_refusals_are_not(server, tmp_path):
    server.errors = [503, 429]
    download(server.url, tmp_path / "weights.pth")
    server.errors, server.requests = [404] * 9, []
    with pytest.raises(OSError, match="404"):
        download(server.url, tmp_path / "other.pth")
    assert len(server.requests) == 1


def test_each_wait_is_twice_as_long(server, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(fetching.time, "sleep", waits.append)
    server.errors = [503, 429, 500]
    download(server.url, tmp_path / "weights.pth", retry_seconds=0.5)
    assert waits == [0.5, 1.0, 2.0]


def test_a_web_page_is_not_weights(server, tmp_path):
    server.kind = "text/html; charset=utf-8"
    with pytest.raises(ValueError, match="a web page"):
        download(server.url, tmp_path / "weights.pth")
    assert not (tmp_path / "weights.pth").exists()


def test_another_file_than_recorded_is_refused(server, tmp_path):
    download(server.url, tmp_path / "weights.pth")
    (tmp_path / "weights.pth").unlink()
    server.content = CONTENT[::-1]
    with pytest.raises(ValueError, match=r"another file than .*sha256.json"):
        download(server.url, tmp_path / "weights.pth")
    assert files(tmp_path) == ["weights.pth.sha256.json"]


def test_a_file_that_changed_since_its_download_is_refused(server, tmp_path):
    path = tmp_path / "weights.pth"
    download(server.url, path)
    path.write_bytes(CONTENT[::-1])
    with pytest.raises(ValueError, match="is not the file that"):
        download(server.url, path)


def test_a_file_put_there_by_hand_is_kept_and_vouched_for_by_nobody(server, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(CONTENT[:1000])  # cut short, which nothing here can know
    download(server.url, path)
    assert files(tmp_path) == ["weights.pth"]
    assert not server.requests
    path.unlink()  # what opening it advises
    download(server.url, path)
    assert path.read_bytes() == CONTENT


def test_fetch_knows_its_names(server, tmp_path, monkeypatch):
    entry = CATALOGUE["mar_base"]
    monkeypatch.setitem(CATALOGUE, "mar_base", Published("mar_base", server.url, entry.path, 1, "MIT"))
    assert fetch("mar_base", tmp_path) == tmp_path / "mar" / "mar_base" / "checkpoint-last.pth"
    with pytest.raises(ValueError, match=r"'mar_bas'; allowed are kl16, mar_base.*; did you mean mar_base\?"):
        fetch("mar_bas", tmp_path)


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """An empty shared folder, beside a checkout."""
    monkeypatch.setattr(shared, "PACKAGE", tmp_path / "checkout")
    (tmp_path / "checkout" / "MAR_DiSA").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISA_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "weights"


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A file in the hub's cache, and what was asked of the hub."""
    (tmp_path / "cache").mkdir()
    file, asked = tmp_path / "cache" / "xAR-B.pth", []
    file.write_bytes(CONTENT)
    monkeypatch.setattr(fetching, "hub_file", lambda *place: asked.append(place) or file)
    return file, asked


def test_what_lies_on_the_hub_stays_in_its_cache(weights, cached):
    file, asked = cached
    path = fetch("xar_base")
    assert path == weights / "xar" / "xAR-B.pth"
    assert path.readlink() == file
    assert asked == [("OliverRen/xAR", "xAR-B.pth")]
    assert fetch("xar_base") == path == find_published("xar_base")
    assert len(asked) == 1
    assert files(path.parent) == ["xAR-B.pth"]
    file.unlink()  # a cache that was cleaned
    with pytest.raises(FileNotFoundError, match="disa checkpoints fetch xar_base"):
        find_published("xar_base")
    file.write_bytes(CONTENT[:9])
    assert fetch("xar_base").read_bytes() == CONTENT[:9]


@pytest.mark.usefixtures("cached")
def test_without_links_it_is_copied(weights, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr("pathlib.Path.symlink_to", refuse)
    path = fetch("xar_base")
    assert path.parent == weights / "xar"
    assert not path.is_symlink()
    assert path.read_bytes() == CONTENT


def test_a_hub_that_fails_leaves_nothing(weights, monkeypatch):
    def fail(*_):
        raise OSError("no network")

    monkeypatch.setattr(fetching, "hub_file", fail)
    with pytest.raises(OSError, match="no network"):
        fetch("xar_base")
    assert not weights.exists()


@pytest.mark.usefixtures("cached")
def test_another_folder_takes_the_file(weights, tmp_path):
    assert fetch("xar_base", tmp_path / "mine") == tmp_path / "mine" / "xar" / "xAR-B.pth"
    assert not weights.exists()


@pytest.mark.parametrize("name", ["kl16", "xar_base"])
@pytest.mark.parametrize("where", ["", "checkout", "checkout/MAR_DiSA", None])
def test_a_file_that_somebody_has_is_found_and_not_fetched_again(weights, cached, server, tmp_path, name, where):
    folder = weights if where is None else tmp_path / where / "pretrained_models"
    path = folder / CATALOGUE[name].path
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert find_published(name).samefile(path)
    assert fetch(name).samefile(path)
    assert not cached[1]
    assert not server.requests


@pytest.mark.usefixtures("weights")
def test_files_that_are_nowhere_are_named():
    with pytest.raises(
        FileNotFoundError,
        match=r"there is no pretrained_models/vae/kl16\.ckpt; fetch it with `disa checkpoints fetch kl16`",
    ):
        find_published("kl16")


def test_catalogue_has_every_published_model():
    assert set(verify.manifests()) | {"harmon_1.5b-o", "adm_in256_stats"} == set(CATALOGUE)
    assert all(entry.url.endswith("dl=1") for entry in CATALOGUE.values() if "dropbox" in entry.url)
