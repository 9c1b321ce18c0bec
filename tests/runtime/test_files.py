"""Files that appear whole or not at all, and the lock of those that ranks share."""

import errno
import fcntl
import hashlib
import multiprocessing
import os
import signal

import pytest

from disa.runtime.files import BUNDLED, atomic_write, image_files, locked, sha256, write_json


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "a" / "b.txt"
    with atomic_write(path) as beside:
        beside.write_text("all of it")
        assert not path.exists()
        assert beside.parent == path.parent
        assert beside.suffix == ".txt"
    assert path.read_text() == "all of it"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("there", [True, False])
def test_what_was_written_is_renamed_and_not_copied(tmp_path, there):
    """A copy would show a reader half a file, and leave half a file when it is killed."""
    path = tmp_path / "b.txt"
    if there:
        path.write_text("before")
    with open(path if there else os.devnull) as reader:
        with atomic_write(path) as beside:
            beside.write_text("after")
            written = beside.stat()
        assert reader.read() == ("before" if there else "")  # who reads the old file reads it to its end
    assert os.path.samestat(path.stat(), written)
    assert path.read_text() == "after"


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), ValueError("bad"), OSError(errno.ENOSPC, "No space left on device")]
)
def test_a_file_that_fails_leaves_the_one_before(tmp_path, error):
    path = tmp_path / "b.txt"
    path.write_text("before")

    def fail():
        with atomic_write(path) as beside:
            beside.write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_named(tmp_path):
    with pytest.raises(OSError, match=r"No space left on device: '.*b\.txt'"), atomic_write(tmp_path / "b.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match=r"^\[Errno 5\] gone$"), atomic_write(tmp_path / "b.txt"):
        raise OSError(errno.EIO, "gone")


def hold(path, held):
    with locked(path):
        held.set()
        signal.pause()


def enter(path, entered):
    with locked(path):
        entered.set()


def test_one_process_at_a_time_enters_and_one_that_is_killed_lets_go(tmp_path):
    processes = multiprocessing.get_context("spawn")
    held, entered = processes.Event(), processes.Event()
    path = tmp_path / "a" / ".lock"
    holder, other = (
        processes.Process(target=work, args=(path, event)) for work, event in ((hold, held), (enter, entered))
    )
    holder.start()
    try:
        assert held.wait(20)
        other.start()
        assert not entered.wait(0.3)
        holder.kill()
        assert entered.wait(20)
        other.join(20)
        assert other.exitcode == 0
    finally:
        holder.kill()
    with locked(path), locked(tmp_path / "another"):
        pass  # released at the end of the context, and one lock does not stand for another


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(OSError, match=r"no lock on .*\.lock \(.*\); choose a folder on a file system that has locks"),
        locked(tmp_path / ".lock"),
    ):
        raise AssertionError("it entered without a lock")


def test_the_lock_is_released_when_the_work_fails(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path / ".lock"):
        raise KeyError
    with locked(tmp_path / ".lock"):
        pass


def test_a_lock_makes_the_folders_above_it(tmp_path):
    with locked(tmp_path / "a" / "b" / ".lock"):
        assert (tmp_path / "a" / "b" / ".lock").exists()
    with locked(str(tmp_path / "a" / "b" / ".lock")):
        pass


def test_a_whole_file_makes_the_folders_above_it(tmp_path):
    write_json(str(tmp_path / "a" / "b" / "c.json"), [1])
    with atomic_write(tmp_path / "a" / "b" / "c.json") as beside:
        assert beside.name == f".c.{os.getpid()}.part.json"
        beside.touch()
    (tmp_path / "gone").mkdir()
    with pytest.raises(KeyError), atomic_write(tmp_path / "gone" / "d.txt"):
        raise KeyError  # before anything was written
    assert not list((tmp_path / "gone").iterdir())


def test_only_a_full_disk_that_names_no_file_is_renamed(tmp_path):
    with pytest.raises(OSError, match=r"quota.*'.*b\.txt'"), atomic_write(tmp_path / "b.txt"):
        raise OSError(errno.EDQUOT, "quota exceeded")
    with pytest.raises(OSError, match=r"No space.*'another'$"), atomic_write(tmp_path / "b.txt"):
        raise OSError(errno.ENOSPC, "No space left on device", "another")


def test_json_is_indented_and_ends_with_a_line(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1, None]})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": [\n    1,\n    null\n  ]\n}\n'


def test_images_are_found_by_suffix_and_listed_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="no images in"):
        image_files(tmp_path)
    (tmp_path / "b").mkdir()
    names = ["a.PNG", "b/c.jpg", "b/d.jpeg", "e.webp"]
    for name in [*names, "f.txt", "png"]:
        (tmp_path / name).touch()
    assert image_files(tmp_path) == image_files(str(tmp_path)) == [tmp_path / name for name in names]


@pytest.mark.parametrize("size", [0, 5, (1 << 20) + 1])
def test_sha256_is_of_the_whole_file(tmp_path, size):
    content = b"\n\r\xff0123456789"[:size].ljust(size, b"a")
    (tmp_path / "a").write_bytes(content)
    assert sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_the_bundled_files_are_there():
    assert (BUNDLED / "mar_fashion.safetensors").is_file()
