"""The exchanges of a hook's steps: what is done for each bucket that DDP hands over."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastcomm._arguments import check_parameter, check_tensor
from fastcomm.accumulation import Accumulation, put_back
from fastcomm.announcement import NUM_STEPS_BEFORE, announce
from fastcomm.clipping import LocalClipping
from fastcomm.codecs import Codec, Fp32
from fastcomm.connection import Connection, connect, sum_over_ranks
from fastcomm.error_feedback import ErrorFeedback
from fastcomm.errors import ArgumentError
from fastcomm.parameter_names import named_parameters
from fastcomm.policy import Policy
from fastcomm.regrouping import Part, synchronize_apart, synchronize_parts
from fastcomm.sharded_parameters import ShardedParameters
from fastcomm.simulated_rank import SimulatedRank
from fastcomm.stats import Counters
from fastcomm.steps import Steps
from fastcomm.unused_parameters import Deliveries
from fastcomm.warmup import WarmUp
from fastcomm.wrapped_models import ddp_in, unwrapped

# The bucket index of the count of ranks that have data: no bucket's.
_COUNT_INDEX = 0xFFFE


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
        self._sharded = ShardedParameters([*clipping.refusals(), *feedback.guard.refusals()])
        self._accumulation = Accumulation()
        self._deliveries = Deliveries(lambda: process_group().size(), self._accumulation.is_adding)
        self._needs_new_gradients = is_in_backward and (
            bool(feedback.momentum) or clipping.is_wanted
        )
        self._is_agreed = False
        self._flushing = False
        self._ddp: weakref.ref[DistributedDataParallel] | None = None  # not known yet
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
            ArgumentError: after the first step, if the policy goes by names; if parameters are
                sharded in a way, or with options, that cannot work.
        """
        self._sharded.attach(dict(named_parameters(unwrapped(module))))
        if not self._feedback.residuals.has_layouts:
            self._plan.policy.attach(unwrapped(module))
        elif self._plan.policy.needs_names:
            raise ArgumentError("policy: the first step is over; attach the state before it")
        parameters = module.parameters()
        ddp = ddp_in(module)
        if ddp is not None:
            self._ddp = weakref.ref(ddp)
            self._deliveries.may_keep_gradients = ddp.find_unused_parameters
            # Not those of the module: DTensors are no parameters any more after the first step.
            parameters = iter(ddp._module_parameters)
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        if ddp is not None:
            names = {id(parameter): name for name, parameter in named_parameters(unwrapped(module))}
            for parameter in trained:
                check_parameter(names.get(id(parameter), "of the model"), parameter)
        self._num_parameters = len(trained)

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
        if self.steps.is_under_way and self._deliveries.has_any_of(parameters):
            self._end_step()  # the one before, whose backward pass was given up, or had no last one
        if not self.steps.is_under_way:
            self._begin_step(group, buffer.device)
        self._deliveries.note(buffer, parameters)
        pieces = self._sharded.pieces(parameters)
        future = synchronize_apart(buffer, parameters, pieces, self._average)
        if is_last or self._is_complete():
            self._deliveries.factor = self._clipping.release(self._start, self._feedback.grad_scale)
            self._end_step()
        return future

    def _average(
        self, gradients: torch.Tensor, parameters: list[torch.Tensor]
    ) -> torch.futures.Future[torch.Tensor]:
        delivered = None
        if self._needs_new_gradients and not self.steps.is_joined:
            delivered = self._accumulation.take_out(gradients, parameters)
        start = self._clipping.hold if self._clipping.is_wanted else self._start
        future = start(gradients, parameters)
        return future if delivered is None else put_back(future, gradients, delivered)

    def _is_complete(self) -> bool:
        # With static_graph and parameters of several dtypes, DDP calls no bucket of its first step
        # the last one, and waits for the first when it has handed over all.
        ddp = self._ddp() if self._ddp is not None else None
        is_static = ddp is not None and ddp.static_graph
        return is_static and self._deliveries.num_parameters == self._num_parameters

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
        # A rank without data has no momentum to go on with.
        velocity = layout.velocity if has_data else None
        if velocity is not None and self._accumulation.is_adding(part.parameters):
            momentum.add(gradients, velocity)
            velocity = None
        future = group.all_reduce(
            gradients,
            residual,
            layout.plan(self._codec_of_step, plan.algorithm, group, plan.codec_threads),
            1.0 / group.world_size,
            step,
            part.index,
            velocity=velocity,
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
        self._accumulation.begin_step()
        self.steps.begin()
        self._deliveries.num_givers = self._count_ranks_with_data(group, device)

    def _end_step(self) -> None:
        residual_of = self._feedback.residuals.residual_of
        self.steps.end(functools.partial(self._deliveries.take_back, residual_of))
        if not self.steps.is_in_backward:
            self._deliveries.clear()

    def _count_ranks_with_data(
        self, group: Connection, device: torch.device
    ) -> torch.futures.Future[torch.Tensor] | None:
        """Begin to count the ranks that have not joined, where there may be others."""
        ddp = self._ddp() if self._ddp is not None else None
        if ddp is None or not ddp.find_unused_parameters or not ddp._join_config.enable:
            return None
        if self.steps.is_joined:
            # DDP sums over the ranks what each has used, and has its last sum in this one's place.
            ddp.reducer._get_local_used_map().zero_()
        has_data = torch.full((1,), float(not self.steps.is_joined), device=device)
        return sum_over_ranks(has_data, group, self.steps.number, _COUNT_INDEX)

    def _codec_of_step(self, codec: Codec) -> Codec:
        # One rank has nobody to send to: nothing is worth leaving out.
        if self._flushing or self._process_group().size() == 1:
            return Fp32()
        warm = self._plan.warmup.codec_at(codec, self.steps.number)
        return self._feedback.guard.codec_at_level(warm)
