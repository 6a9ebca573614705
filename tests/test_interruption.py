"""The first signal is a request, an echo of it is nothing, a later second one ends the process as before."""

from __future__ import annotations

import signal
import threading

import pytest

from moekd import interruption
from moekd.interruption import StopRequest


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch):
    """Return the list of signals that reach the handlers from before."""
    heard: list[int] = []
    old = {number: signal.signal(number, lambda n, frame: heard.append(n)) for number in interruption.SIGNALS}
    yield heard
    for number, handler in old.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", interruption.SIGNALS)
def test_the_first_signal_is_noted(before: list[int], number: int) -> None:
    """R5: it only asks."""
    with StopRequest() as stop:
        assert stop.agreed(1, 1) == 0
        signal.raise_signal(number)
        assert stop.agreed(1, 1) == number
        signal.raise_signal(number)
    assert before == []
    signal.raise_signal(number)
    assert before == [number]


def test_a_second_signal_reaches_the_handler_from_before(before: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """R5: it ends the run at once."""
    monkeypatch.setattr(interruption, "ECHO", -1.0)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert before == []
        signal.raise_signal(signal.SIGINT)
        assert before == [signal.SIGINT]
        assert stop.agreed(0, 20) == signal.SIGTERM


def test_other_threads_handle_no_signals(before: list[int]) -> None:
    def work() -> None:
        with StopRequest() as stop:
            assert stop.signal == 0

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    signal.raise_signal(signal.SIGINT)
    assert before == [signal.SIGINT]
