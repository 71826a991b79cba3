"""When a step begins and ends, which the hook has to find out: DDP calls it for buckets only."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from fastcomm.regrouping import BucketHistory

_queue_callback = torch.autograd.Variable._execution_engine.queue_callback


class Steps:
    """The step under way, and its buckets so far.

    ``is_in_backward``: DDP calls the hook in backward passes, or for a rank that has joined; not so
    where ranks are simulated.
    """

    def __init__(self, is_in_backward: bool = True) -> None:
        self.is_in_backward = is_in_backward
        self.number = 0  # goes on from a checkpoint
        self.num_complete = 0  # of this state
        self.is_joined = False  # whether this rank has no data in this step, under DDP's join()
        self.buckets = BucketHistory()

    def begin(self, when_over: Callable[[], None]) -> None:
        """Note that a step begins; ``when_over`` is called when DDP has finished it.

        Neither for a rank that has joined, nor where ranks are simulated.
        """
        if not self.is_in_backward:
            return
        # With static_graph and parameters of several dtypes no bucket of the first step says that
        # it is the last one; the end of the backward pass does.
        end_backward = functools.partial(self._end_backward, self.number, when_over)
        try:
            _queue_callback(end_backward)
            self.is_joined = False
        except RuntimeError:  # Not in a backward pass: DDP's join().
            self.is_joined = True

    def end(self) -> None:
        """Note that all buckets of the step were seen."""
        self._end(self.number)

    def _end_backward(self, number: int, when_over: Callable[[], None]) -> None:
        self._end(number)
        _queue_callback(when_over)  # behind DDP's own callback, which waits for the exchanges

    def _end(self, number: int) -> None:
        if self.number == number:
            self.number += 1
            self.num_complete += 1
            self.buckets.end_step()
