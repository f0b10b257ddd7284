"""What ranks were asked, added up, names one signal for all of them; of several, the first counts."""

import signal
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from onediff.errors import UserError
from onediff.parallel.agreement import raise_on_all_ranks
from onediff.training.checkpoint.reader import CheckpointReader
from onediff.training.stop import NONE_ASKED, Stopped, StopRequest, during_reads, signal_of


def test_a_signal_to_any_rank_is_named_the_strongest_first():
    assert signal_of(NONE_ASKED) is None
    sums = [0.0] * len(StopRequest.SIGNALS)
    sums[StopRequest.SIGNALS.index(signal.SIGUSR1)] = 1.0
    assert signal_of(sums) == "SIGUSR1"
    sums[StopRequest.SIGNALS.index(signal.SIGTERM)] = 3.0
    assert signal_of(sums) == "SIGTERM"


@pytest.fixture
def request_of_this_process():
    """A stop request that has taken over the signals of this process, which it restores at the end."""
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


def read_a_range(folder, heed):
    with raise_on_all_ranks():
        reader = CheckpointReader(folder, SimpleNamespace(files={}), heed)
        reader.fill(None, "weight", "a parameter that is not asked for any more", None)


def test_reads_of_weights_end_at_the_next_range_and_their_own_faults_stay_what_they_are(
    request_of_this_process, tmp_path
):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(UserError, match="damaged"), during_reads(request_of_this_process), raise_on_all_ranks():
            raise UserError("damaged")
        signal.raise_signal(signal.SIGUSR1)
        with (
            pytest.raises(Stopped, match="SIGUSR1 before the first step"),
            during_reads(request_of_this_process) as heed,
        ):
            read_a_range(tmp_path, heed)
    finally:
        dist.destroy_process_group()
