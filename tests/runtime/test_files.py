"""Files that appear whole or not at all, and the lock of those that ranks share."""

import errno
import fcntl
import multiprocessing
import os
import signal

import pytest

from disa.runtime.files import atomic_write, locked


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
