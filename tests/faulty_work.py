"""What ranks do until one of them fails, and what is expected of the others then."""

import re

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
