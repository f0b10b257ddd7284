"""What ranks were asked, added up, names one signal for all of them; of several, the first counts."""

import signal

import pytest

from onediff.training.stop import NONE_ASKED, StopRequest, signal_of


def test_a_signal_to_any_rank_is_named_the_strongest_first():
    assert signal_of(NONE_ASKED) is None
    sums = [0.0] * len(StopRequest.SIGNALS)
    sums[StopRequest.SIGNALS.index(signal.SIGUSR1)] = 1.0
    assert signal_of(sums) == "SIGUSR1"
    sums[StopRequest.SIGNALS.index(signal.SIGTERM)] = 3.0
    assert signal_of(sums) == "SIGTERM"


@pytest.fixture
def request_of_this_process():
    """A stop request that has taken over the signals of this process, which are given back."""
    before = {number: signal.getsignal(number) for number in StopRequest.SIGNALS}
    yield StopRequest()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_ctrl_c_is_named_though_make_sends_sigterm_after_it(request_of_this_process):
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
        signal.raise_signal(number)
    assert signal_of(request_of_this_process.asked) == "Ctrl-C (SIGINT)"


def test_a_second_ctrl_c_after_a_second_interrupts_at_once(request_of_this_process):
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
    request_of_this_process.interrupted -= 1.1
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
