"""Requests to stop."""

import os
import signal
import threading

import pytest

from disa.runtime.stop import stop_requests


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_request_is_noted_and_the_second_stops(number):
    before = signal.getsignal(number)
    with stop_requests() as asked:
        os.kill(os.getpid(), number)
        assert asked == [number]
        with pytest.raises(KeyboardInterrupt, match="at once"):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_other_threads_cannot_be_asked():
    found = []

    def work():
        with stop_requests() as asked:
            found.append(asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [[]]
