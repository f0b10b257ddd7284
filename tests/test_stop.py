"""What ranks were asked, added up, names one signal for all of them."""

import signal

from onediff.training.stop import NONE_ASKED, StopRequest, agreed


def test_a_signal_to_any_rank_is_named_the_strongest_first():
    assert agreed(NONE_ASKED) is None
    sums = [0.0] * len(StopRequest.SIGNALS)
    sums[StopRequest.SIGNALS.index(signal.SIGUSR1)] = 1.0
    assert agreed(sums) == "SIGUSR1"
    sums[StopRequest.SIGNALS.index(signal.SIGTERM)] = 3.0
    assert agreed(sums) == "SIGTERM"
