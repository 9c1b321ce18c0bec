"""The file that an evaluation goes on from: its sums, its ids, damage; and real kills of real ranks."""

import os
import signal
import socket

import numpy as np
import pytest
import torch

from benchmarks.faults import largest_difference, rank_processes, scores, stop, wait_until, worker
from disa.evaluation.accumulator import Accumulator, Partial
from disa.evaluation.metrics import add
from tests.helpers.devices import OnGpu

ASKED = {"settings": {"seed": 1}}


def partial(ids, features=None):
    rows = torch.tensor([[float(i), 1.0, -i] for i in ids], dtype=torch.float64)
    sums = {"space/products": rows.T @ rows, "space/features": rows.sum(0), "seconds/all": torch.tensor(0.5).double()}
    return Partial(list(ids), sums, {} if features is None else {"space": [features[list(ids)]]})


def test_nothing_was_counted_at_first(tmp_path):
    counted, sums = Accumulator(tmp_path, ASKED, 9).load()
    assert counted.shape == (9,)
    assert not counted.any()
    assert sums == {}
    assert list(tmp_path.iterdir()) == []


def test_sums_and_ids_add_up(tmp_path):
    for ids in ([0, 1, 2], [6, 7, 8], [3, 4]):
        Accumulator(tmp_path, ASKED, 9).save(partial(ids))  # each as another process would
    counted, sums = Accumulator(tmp_path, ASKED, 9).load()
    assert np.flatnonzero(~counted).tolist() == [5]
    expected = partial([0, 1, 2, 3, 4, 6, 7, 8]).sums
    assert sums.keys() == expected.keys()
    assert sums.pop("seconds/all") == 1.5
    for name, value in sums.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


def test_features_come_in_the_order_of_ids(tmp_path):
    features, accumulator = torch.randn(7, 3), Accumulator(tmp_path, ASKED, 7)
    for ids in ([4, 5], [0, 1, 6], [2, 3]):
        accumulator.save(partial(ids, features))
    # A run was killed when its features were written and its sums were not: its ids were counted again by another.
    np.savez(accumulator.folder / "00000005.npz", ids=[5, 6], space=features[[5, 6]].numpy())
    assert torch.equal(accumulator.features("space"), features)


def test_what_is_on_a_gpu_comes_to_the_cpu_when_it_is_saved(tmp_path):
    features, accumulator = torch.randn(4, 3), Accumulator(tmp_path, ASKED, 4)
    for ids in ([0, 1], [2, 3]):
        part = partial(ids)
        sums = {name: value.as_subclass(OnGpu) for name, value in part.sums.items()}
        blocks = [features[[image_id]].as_subclass(OnGpu) for image_id in ids]
        accumulator.save(Partial(ids, sums, {"space": blocks}))
    assert torch.equal(accumulator.features("space"), features)
    assert torch.equal(accumulator.load()[1]["space/features"], partial([0, 1, 2, 3]).sums["space/features"])


def test_an_image_is_counted_once(tmp_path):
    accumulator = Accumulator(tmp_path, ASKED, 9)
    accumulator.save(partial([0, 1]))
    before = accumulator.path.read_bytes()
    with pytest.raises(ValueError, match=r"another run is evaluating in .*; stop one of them"):
        accumulator.save(partial([2, 1]))
    assert accumulator.path.read_bytes() == before


def test_other_questions_have_other_files(tmp_path):
    one, other = Accumulator(tmp_path, ASKED, 9), Accumulator(tmp_path, {"settings": {"seed": 2}}, 9)
    one.save(partial([0]))
    assert not other.load()[0].any()
    assert one.load()[0].any()
    other.remove()
    assert one.load()[0].any()
    one.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_damage_is_named(tmp_path, kept):
    accumulator = Accumulator(tmp_path, ASKED, 9)
    accumulator.save(partial([0]))
    content = accumulator.path.read_bytes()
    accumulator.path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=r"progress-\w{12}.npz cannot be read .*; remove it to begin again"):
        accumulator.load()


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    accumulator = Accumulator(tmp_path, ASKED, 9)
    accumulator.save(partial([0]))

    def full(path, **_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        with pytest.raises(OSError, match="No space left"):
            accumulator.save(partial([1]))
    accumulator.save(partial([1]))
    assert accumulator.load()[0].tolist() == [True] * 2 + [False] * 7
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".lock", ".npz"]


@pytest.mark.slow
@pytest.mark.distributed
def test_what_a_killed_rank_was_writing_goes_with_the_next_saving(tmp_path):
    features, accumulator = torch.randn(9, 3), Accumulator(tmp_path, ASKED, 9)
    accumulator.save(partial([0], features))
    leftovers = [tmp_path / f".{accumulator.path.stem}.123.part.npz", accumulator.folder / ".00000001.123.part.npz"]
    others = [
        tmp_path / ".progress-0123456789ab.123.part.npz",
        accumulator.folder / ".000001.123.part.png",
        tmp_path / "notes.txt",
    ]
    for path in (*leftovers, *others):
        path.write_bytes(b"half")
    accumulator.save(partial([1], features))
    assert not any(path.exists() for path in leftovers)
    assert all(path.exists() for path in others)
    accumulator.remove()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".progress-0123456789ab.123.part.npz", "notes.txt"]


def test_damaged_and_lost_features_are_refused(tmp_path):
    features, accumulator = torch.randn(4, 3), Accumulator(tmp_path, ASKED, 4)
    for ids in ([0, 1], [2, 3]):
        accumulator.save(partial(ids, features))
    part = accumulator.folder / "00000002.npz"
    part.write_bytes(part.read_bytes()[:-30])
    with pytest.raises(
        ValueError, match=r"00000002.npz cannot be read .*; remove .*progress-\w+.npz and .* to begin again"
    ):
        accumulator.features("space")
    part.unlink()
    with pytest.raises(ValueError, match="lacks features of 2 images; remove"):
        accumulator.features("space")
    (accumulator.folder / "00000000.npz").unlink()
    with pytest.raises(ValueError, match="lacks features of 4 images; remove"):
        accumulator.features("space")


def test_sums_of_one_part_do_not_share_its_memory():
    total, part = {}, {"a": torch.ones(2)}
    add(total, part)
    add(total, part)
    assert total["a"].tolist() == [2, 2]
    assert part["a"].tolist() == [1, 1]


# -------------------------------------------------------------------------------------- an evaluation in many processes

MODEL, IMAGES = "xar_fashion", 44


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The scores of an evaluation that one rank made."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert worker(MODEL, folder, IMAGES).wait(120) == 0
    found = scores(folder)
    assert found[0]["images"] == IMAGES
    assert found[0]["fid_interval"][0] < found[0]["fid"] < found[0]["fid_interval"][1]
    return found


def counted(folder):
    """How many images the sums in `folder` covers."""
    for path in folder.glob("progress-*.npz"):
        with np.load(path) as file:
            return int(np.unpackbits(file["counted"]).sum())
    return 0


@pytest.mark.slow
@pytest.mark.distributed
def test_killed_ranks_and_other_numbers_of_ranks_change_nothing(undisturbed, tmp_path):
    for ranks, enough in ((1, 4), (3, 20)):
        process = worker(MODEL, tmp_path, IMAGES, ranks)
        try:
            assert wait_until(lambda enough=enough: counted(tmp_path) >= enough, process)
            victim = rank_processes(process.pid)[ranks - 1]
            os.kill(victim, signal.SIGKILL)
            assert process.wait(60) != 0
        finally:
            stop(process)
        assert enough <= counted(tmp_path) < IMAGES
    assert worker(MODEL, tmp_path, IMAGES, 2).wait(120) == 0
    assert largest_difference(scores(tmp_path), undisturbed) < 1e-6
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["results.json", "samples.png"]


@pytest.mark.slow
@pytest.mark.distributed
def test_two_machines_do_the_work_of_one_that_is_lost(undisturbed, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = [
        "--nnodes=2",
        "--max-restarts=5",
        "--rdzv_backend=c10d",
        f"--rdzv_endpoint=127.0.0.1:{port}",
        "--rdzv_id=test",
    ]
    agents = [worker(MODEL, tmp_path, IMAGES, 1, *meeting) for _ in range(2)]
    try:
        assert wait_until(lambda: counted(tmp_path) >= 8, agents[0])
        (victim,) = rank_processes(agents[1].pid).values()
        os.kill(victim, signal.SIGKILL)
        # One agent may wait in vain for the other to say goodbye, longer than a test should; that is torchrun's fault.
        assert wait_until((tmp_path / "results.json").is_file, agents[0]) or (tmp_path / "results.json").is_file()
    finally:
        for agent in agents:
            stop(agent)
    assert largest_difference(scores(tmp_path), undisturbed) < 1e-6
