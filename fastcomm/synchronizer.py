"""The exchanges of a hook's steps: what is done for each bucket that DDP hands over."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from fastcomm._arguments import check_tensor
from fastcomm.announcement import NUM_STEPS_BEFORE, announce
from fastcomm.clipping import LocalClipping
from fastcomm.codecs import Codec, Fp32
from fastcomm.connection import Connection, connect
from fastcomm.error_feedback import ErrorFeedback
from fastcomm.errors import ArgumentError
from fastcomm.policy import Policy
from fastcomm.regrouping import Part, synchronize_parts
from fastcomm.simulated_rank import SimulatedRank
from fastcomm.stats import Counters
from fastcomm.steps import Steps
from fastcomm.unused_parameters import Deliveries
from fastcomm.warmup import WarmUp
from fastcomm.wrapped_models import ddp_in, unwrapped


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
        process_group: returns the ranks, which need not be there yet.
        plan: how.
        feedback: of this rank.
        clipping: of this rank's gradients.
        settings: what all ranks must have in common.
        is_in_backward: whether buckets come from DDP's backward passes.
    """

    def __init__(
        self,
        process_group: Callable[[], dist.ProcessGroup | SimulatedRank],
        plan: Plan,
        feedback: ErrorFeedback,
        clipping: LocalClipping,
        settings: dict[str, str],
        is_in_backward: bool,
    ) -> None:
        self.group: Connection | None = None
        self.steps = Steps(is_in_backward)
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
        self._num_parameters = 0  # of the model; not known yet

    def connect(self) -> Connection:
        """Connect the ranks, and check that they agree, unless that was done already. Collective.

        Raises:
            MismatchError: if the ranks use different settings.
        """
        if self.group is None:
            self.group = connect(self._process_group())
        if not self._is_agreed:
            self.group.check_agreement(self._settings)
            self._is_agreed = True
        return self.group

    def attach(self, module: nn.Module) -> None:
        """Learn what there is to synchronize, and how DDP deals with it.

        Raises:
            ArgumentError: after the first step, if the policy goes by names.
        """
        if not self._feedback.residuals.has_layouts:
            self._plan.policy.attach(unwrapped(module))
        elif self._plan.policy.needs_names:
            raise ArgumentError("policy: the first step is over; attach the state before it")
        ignored: set[str] = set()
        ddp = ddp_in(module)
        if ddp is not None:
            self._deliveries.may_keep_gradients = ddp.find_unused_parameters
            ignored = set(ddp.parameters_to_ignore)
            module = ddp.module
        self._num_parameters = sum(
            parameter.requires_grad and name not in ignored
            for name, parameter in module.named_parameters()
        )

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
        try:
            return self._synchronize(buffer, parameters, is_last)
        except Exception as error:
            self._clipping.fail(error)
            raise

    def _synchronize(
        self, buffer: torch.Tensor, parameters: list[torch.Tensor], is_last: bool
    ) -> torch.futures.Future[torch.Tensor]:
        group = self.connect()
        check_tensor(buffer, "the gradient bucket")
        if self._plan.policy.needs_names or self._clipping.is_wanted:
            self._feedback.residuals.require_names()
        if self.steps.buckets.is_between_steps and not self._clipping.is_holding:
            self._begin_step(group, buffer.device)
        self._deliveries.note(buffer, parameters)
        start = self._clipping.hold if self._clipping.is_wanted else self._start
        future = start(buffer, parameters)
        # With static_graph and parameters of several dtypes, DDP calls no bucket of its first step
        # the last one, and waits for the first when it has handed over all.
        if is_last or self._clipping.num_parameters == self._num_parameters > 0:
            self._deliveries.factor = self._clipping.release(self._start, self._feedback.grad_scale)
        if is_last:
            self.steps.end()
            if not self.steps.is_in_backward:
                self._deliveries.clear()
        return future

    def _start(
        self, buffer: torch.Tensor, parameters: list[torch.Tensor]
    ) -> torch.futures.Future[torch.Tensor]:
        parts = self.steps.buckets.parts(parameters, self._feedback.residuals.names)
        return synchronize_parts(buffer, parameters, parts, self._exchange)

    def _exchange(self, gradients: torch.Tensor, part: Part) -> torch.futures.Future[torch.Tensor]:
        group, plan = self.connect(), self._plan
        layout = self._feedback.residuals.layout(part.parameters)
        if not layout.is_agreed:
            group.connect(gradients.device)
            group.check_agreement({"bucket": layout.describe()})
            layout.is_agreed = True
        step, momentum = self.steps.number, self._feedback.momentum
        has_data = not self.steps.is_joined
        residual = self._feedback.residual_to_send(
            layout,
            gradients,
            step,
            has_data=has_data,
            # A flush delivers what a rank without data has, too.
            delivers_own=has_data or self._flushing,
        )
        future = group.all_reduce(
            gradients,
            residual,
            layout.plan(self._codec_of_step, plan.algorithm, group, plan.codec_threads),
            1.0 / group.world_size,
            step,
            part.index,
            # A rank without data has no momentum to go on with.
            velocity=layout.velocity if has_data else None,
            momentum=momentum.factor,
            nesterov=momentum.nesterov,
        )
        self.steps.buckets.note(part)
        self.counters.add(gradients, group.world_size)
        return future

    def _begin_step(self, group: Connection, device: torch.device) -> None:
        self._flushing = self.flush_requested
        self.flush_requested = False
        measured = group.measurements()
        if self.steps.num_complete == NUM_STEPS_BEFORE and group.rank == 0:
            announce(
                self._settings["codec"],
                group.world_size,
                self.counters.stats(self.steps.num_complete, measured),
                self._plan.warmup.num_steps - self.steps.number,
            )
        self.counters.begin_step(measured)
        self._feedback.begin_step(self.steps.number, group, device)
        self._deliveries.clear()
        self.steps.begin(
            functools.partial(self._deliveries.take_back, self._feedback.residuals.residual_of)
        )

    def _codec_of_step(self, codec: Codec) -> Codec:
        # One rank has nobody to send to: nothing is worth leaving out.
        if self._flushing or self._process_group().size() == 1:
            return Fp32()
        warm = self._plan.warmup.codec_at(codec, self.steps.number)
        return self._feedback.guard.codec_at_level(warm)
