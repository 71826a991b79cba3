"""What ranks do until one of them fails, and what is expected of the others then."""

import os
import re
import signal
import sys
import threading
import time
from types import FrameType

import torch
from torch.nn.parallel import DistributedDataParallel

import fastcomm
from faulty_ranks import Outcome, Report
from training import backward, mlp

# Timeouts of the process group. Errors that come although it is long are not of the timeout.
LONG = 1000.0
SHORT = 5.0

# A rank that reports more is blocked when nobody reads it.
NUM_REPORTS = 10


def report_step(report: Report, step: int) -> None:
    if step < NUM_REPORTS:
        report(f"step {step}")


def reduce_for_ever(report: Report, num_elements: int, algorithm: str, codec: str) -> None:
    tensor = torch.ones(num_elements)
    step = 0
    while True:
        report_step(report, step)
        fastcomm.all_reduce(tensor.fill_(1), algorithm=algorithm, codec=codec)
        step += 1


def train_for_ever(report: Report) -> None:
    model = DistributedDataParallel(mlp(width=6001), bucket_cap_mb=1)
    fastcomm.register(model, "int8")
    step = 0
    while True:
        report_step(report, step)
        backward(model, step)
        step += 1


def interrupt_when_it_waits() -> None:
    """Send this process what Ctrl-C sends, as soon as this thread waits somewhere in fastcomm."""
    main = threading.get_ident()
    threading.Thread(target=_interrupt_when_waiting, args=(main,), daemon=True).start()


def _interrupt_when_waiting(main: int) -> None:
    package = os.path.dirname(fastcomm.__file__)
    while True:
        frame: FrameType | None = sys._current_frames()[main]
        files = []
        while frame is not None:
            files.append(frame.f_code.co_filename)
            frame = frame.f_back
        if files[0] == threading.__file__ and any(file.startswith(package) for file in files):
            return os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)


def check_exchange_error(outcome: Outcome, *words: str) -> None:
    # Of this rank's exchange, or of the one that failed elsewhere before this rank began its own.
    assert re.search(r"rank \d+, step \d+, bucket \d+, (hop \d+|opening): ", outcome.message)
    check_peer_error(outcome, *words)


def check_peer_error(outcome: Outcome, *words: str) -> None:
    assert outcome.error == "PeerError", outcome
    assert all(word in outcome.message for word in words), outcome
    check_clean_end(outcome)


def check_clean_end(outcome: Outcome) -> None:
    assert outcome.exit_code == 0, outcome
    assert outcome.left == ()
