"""When a step begins and ends, which the hook has to find out: DDP calls it for buckets only.

A step is one outermost backward pass. Backward passes inside of it (of activation checkpointing
that runs the engine again) are parts of it: what counts is which buckets there were, not which pass
of the engine they came from.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from fastcomm.regrouping import BucketHistory

_queue_callback = torch.autograd.Variable._execution_engine.queue_callback
_NO_BACKWARD_PASS = -1


class Steps:
    """The step under way, and its buckets so far.

    ``is_in_backward``: DDP calls the hook in backward passes, or for a rank that has joined; not so
    where ranks are simulated.
    """

    def __init__(self, is_in_backward: bool = True) -> None:
        self.is_in_backward = is_in_backward
        self.number = 0  # goes on from a checkpoint
        self.num_complete = 0  # of this state
        self.is_under_way = False
        self.is_joined = False  # whether this rank has no data in this step, under DDP's join()
        self.buckets = BucketHistory()

    def begin(self) -> None:
        """Note that a step begins."""
        self.is_under_way = True
        in_pass = torch._C._current_graph_task_id() != _NO_BACKWARD_PASS
        self.is_joined = self.is_in_backward and not in_pass

    def end(self, when_over: Callable[[], None]) -> None:
        """Note that all buckets of the step were seen.

        ``when_over`` is called when DDP has taken the averages out of its buckets; never for a rank
        that has joined, nor where ranks are simulated.
        """
        self.is_under_way = False
        self.number += 1
        self.num_complete += 1
        self.buckets.end_step()
        if self.is_in_backward and not self.is_joined:
            # DDP is about to queue its own callback, which waits for the exchanges, in this pass of
            # the engine. What a callback queues comes behind that.
            _queue_callback(functools.partial(_queue_callback, when_over))
