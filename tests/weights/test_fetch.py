"""Downloads from a real server that misbehaves."""

import functools
import hashlib
import http.server
import json
import threading

import pytest

from disa.weights import fetch as fetching
from disa.weights import verify
from disa.weights.fetch import CATALOGUE, Published, fetch

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
    with pytest.raises(ValueError, match="'mar_tiny'; allowed are kl16, mar_base"):
        fetch("mar_tiny", tmp_path)


def test_catalogue_has_every_published_model():
    assert set(verify.manifests()) | {"harmon_1.5b-o", "adm_in256_stats"} == set(CATALOGUE)
    assert all(entry.url.endswith("dl=1") for entry in CATALOGUE.values() if "dropbox" in entry.url)
