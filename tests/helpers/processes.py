"""Processes that tests start: with which environment, on how many ranks, and how they are killed."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.faults import alive, rank_processes, stop, wait_until

__all__ = ["alive", "rank_processes", "stop", "wait_until"]

ROOT = Path(__file__).parents[2]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


def environment(**more):
    """What a process inherits: not the rank of the test's own, and one thread."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**inherited, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def run(*words, cwd=None, code=0, **more):
    """Run Python with `words` to its end, which must be this exit code (None: any); returns the ended process."""
    words = [sys.executable, *map(str, words)]
    ended = subprocess.run(words, cwd=cwd, env=environment(**more), capture_output=True, text=True, timeout=300)
    assert code is None or ended.returncode == code, ended.stderr
    return ended


def start(*words, cwd=None, **more):
    """Start Python with `words`, in a process group of its own."""
    words, quiet = [sys.executable, *map(str, words)], subprocess.DEVNULL
    return subprocess.Popen(words, cwd=cwd, env=environment(**more), stdout=quiet, stderr=quiet, start_new_session=True)


def kill_when(process, condition, rank=None):
    """Kill `process` and its ranks, or only that rank of a torchrun, when `condition` holds; it must hold in time."""
    ranks = {}
    try:
        assert wait_until(condition, process)
        if rank is not None:
            ranks = rank_processes(process.pid)
            os.kill(ranks[rank], signal.SIGKILL)
            assert process.wait(60) != 0
    finally:
        stop(process)
        for pid in ranks.values():
            while alive(pid):
                os.kill(pid, signal.SIGKILL)
                time.sleep(0.005)


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
