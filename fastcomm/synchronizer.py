"""The exchanges of a hook's steps: what is done for each bucket that DDP hands over."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from fastcomm._arguments import check_tensor
from fastcomm.clipping import LocalClipping
from fastcomm.codecs import Codec, Fp32
from fastcomm.connection import Connection, connect
from fastcomm.error_feedback import ErrorFeedback
from fastcomm.policy import Policy
from fastcomm.regrouping import Part, synchronize_parts
from fastcomm.simulated_rank import SimulatedRank
from fastcomm.stats import Counters
from fastcomm.steps import Steps
from fastcomm.unused_parameters import Deliveries
from fastcomm.warmup import WarmUp


@dataclass(frozen=True)
class Plan:
    """How buckets are synchronized; the arguments of :class:`HookState` say what these are."""

    policy: Policy
    warmup: WarmUp
    algorithm: str
    codec_threads: int | None


class Synchronizer:
    """Averages the buckets of one step after the other.

    Args:
        process_group: the ranks.
        plan: how.
        feedback: of this rank.
        clipping: of this rank's gradients.
        settings: what all ranks must have in common.
    """

    def __init__(
        self,
        process_group: dist.ProcessGroup | SimulatedRank,
        plan: Plan,
        feedback: ErrorFeedback,
        clipping: LocalClipping,
        settings: dict[str, str],
    ) -> None:
        self.group: Connection | None = None
        self.steps = Steps(in_backward=not isinstance(process_group, SimulatedRank))
        self.counters = Counters()
        self.flush_requested = False
        self._process_group = process_group
        self._plan = plan
        self._feedback = feedback
        self._clipping = clipping
        self._settings = settings
        self._deliveries = Deliveries()
        self._is_agreed = False
        self._flushing = False

    def connect(self) -> Connection:
        """Connect the ranks, and check that they agree, unless that was done already. Collective.

        Raises:
            MismatchError: if the ranks use different settings.
        """
        if self.group is None:
            self.group = connect(self._process_group)
        if not self._is_agreed:
            self.group.check_agreement(self._settings)
            self._is_agreed = True
        return self.group

    def attach(self, ddp_model: DistributedDataParallel) -> None:
        """Learn how DDP deals with gradients."""
        self._deliveries.may_keep_gradients = ddp_model.find_unused_parameters

    def synchronize(
        self, buffer: torch.Tensor, parameters: list[torch.Tensor], is_last: bool
    ) -> torch.futures.Future[torch.Tensor]:
        """Start averaging a bucket over all ranks.

        Args:
            buffer: the gradients, which receives the average.
            parameters: whose gradients they are, in this order.
            is_last: of the step.

        Raises:
            ArgumentError: for gradients that cannot be compressed, or if the policy needs names.
        """
        group = self.connect()
        check_tensor(buffer, "the gradient bucket")
        if self._plan.policy.needs_names:
            self._feedback.residuals.require_names()
        if self.steps.buckets.is_between_steps and not self._clipping.is_holding:
            self._begin_step(group)
        start = self._clipping.hold if self._clipping.is_wanted else self._start
        future = start(buffer, parameters)
        self._deliveries.note(buffer, parameters)
        if is_last:
            self._release()
            self.steps.end()
        return future

    def _start(
        self, buffer: torch.Tensor, parameters: list[torch.Tensor]
    ) -> torch.futures.Future[torch.Tensor]:
        parts = self.steps.buckets.parts(parameters, self._feedback.residuals.names)
        return synchronize_parts(buffer, parameters, parts, self._exchange)

    def _release(self) -> None:
        self._clipping.release(self._start, self._feedback.grad_scale)

    def _exchange(self, gradients: torch.Tensor, part: Part) -> torch.futures.Future[torch.Tensor]:
        group, plan = self.connect(), self._plan
        layout = self._feedback.residuals.layout(part.parameters)
        if not layout.is_agreed:
            group.connect(gradients.device)
            group.check_agreement({"bucket": layout.describe()})
            layout.is_agreed = True
        step, joined, momentum = self.steps.number, self.steps.is_joined, self._feedback.momentum
        # A flush delivers what a joined rank has, too.
        own = not joined or self._flushing
        future = group.all_reduce(
            gradients,
            self._feedback.residual_to_send(layout, gradients, step, own=own, joined=joined),
            layout.plan(self._codec_of_step, plan.algorithm, group, plan.codec_threads),
            1.0 / group.world_size,
            step,
            part.index,
            # A rank without data has no momentum to go on with.
            velocity=None if joined else layout.velocity,
            momentum=momentum.factor,
            nesterov=momentum.nesterov,
        )
        self.steps.buckets.note(part)
        self.counters.add(gradients, group.world_size)
        return future

    def _begin_step(self, group: Connection) -> None:
        self._flushing = self.flush_requested
        self.flush_requested = False
        self._feedback.begin_step(self.steps.number, group)
        self._deliveries.clear()
        self.steps.begin(
            self._release,
            functools.partial(self._deliveries.take_back, self._feedback.residuals.residual_of),
        )

    def _codec_of_step(self, codec: Codec) -> Codec:
        # One rank has nobody to send to: nothing is worth leaving out.
        if self._flushing or self._process_group.size() == 1:
            return Fp32()
        warm = self._plan.warmup.codec_at(codec, self.steps.number)
        return self._feedback.guard.codec_at_level(warm)
