"""Files that appear whole or not at all."""

import errno

import pytest

from disa.files import atomic_write


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "a" / "b.txt"
    with atomic_write(path) as beside:
        beside.write_text("all of it")
        assert not path.exists() and beside.parent == path.parent and beside.suffix == ".txt"
    assert path.read_text() == "all of it" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("bad"), OSError(errno.ENOSPC, "No space left on device")])
def test_a_file_that_fails_leaves_the_one_before(tmp_path, error):
    path = tmp_path / "b.txt"
    path.write_text("before")
    with pytest.raises(type(error)), atomic_write(path) as beside:
        beside.write_text("half")
        raise error
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_named(tmp_path):
    with pytest.raises(OSError, match=r"No space left on device: '.*b\.txt'"), atomic_write(tmp_path / "b.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match=r"^\[Errno 5\] gone$"), atomic_write(tmp_path / "b.txt"):
        raise OSError(errno.EIO, "gone")
