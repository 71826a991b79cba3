"""The DDP communication hook and its state."""

# No "from __future__ import annotations" here: register_comm_hook inspects the hook's annotations.
import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import GradBucket  # type: ignore[attr-defined]  # torch's stubs lack it

from fastcomm import _C
from fastcomm._arguments import check_num_threads
from fastcomm.algorithms import check_algorithm
from fastcomm.clipping import LocalClipping
from fastcomm.codecs import Codec
from fastcomm.codecs import codec as parse_codec
from fastcomm.ddp_modes import USE_BUCKETS
from fastcomm.detached import detached_hook_state
from fastcomm.error_feedback import ErrorFeedback, check_error_feedback
from fastcomm.errors import ArgumentError, described
from fastcomm.guard import LARGEST_RATIO, ResidualGuard
from fastcomm.job_groups import rank_in_job
from fastcomm.late_group import LateGroup
from fastcomm.momentum import Momentum
from fastcomm.policy import Policy
from fastcomm.residuals import ResidualStore
from fastcomm.saved_states import state_to_take
from fastcomm.simulated_rank import SimulatedBucket, SimulatedRank
from fastcomm.stats import Stats
from fastcomm.synchronizer import Plan, Synchronizer
from fastcomm.trace import write_chrome_trace
from fastcomm.warmup import WarmUp


class HookState:
    """State of :func:`compress_hook`: the codec, the connection, and this rank's residuals.

    One for each DDP model and rank. Use :func:`register`, or PyTorch's own
    ``ddp_model.register_comm_hook(state, fastcomm.compress_hook)``.

    Args:
        codec: a codec or its name; see :func:`fastcomm.codec`.
        process_group: the ranks that synchronize; None: those of the DDP model that the state is
            attached to, else the default group when it is first used. Either may be made later.
        algorithm: ``ring``, ``gather``, ``scatter_gather`` or ``auto``.
        error_feedback: keep what compression leaves out and add it to the next step's gradient.
            False for codecs with stochastic rounding.
        min_compress_elements: smaller and one-dimensional parameters are sent as float32.
        warmup_steps: during so many steps, start dense and become sparser (top-k: density ramps
            from 1, sent as ``int4`` down to 0.12, to its target; ``int2`` and ``sign``: ``int8``,
            then ``int4``; other codecs: fp32).
            None: what the codec has by default: 100 for ``topk``, none for others.
        codec_threads: how many threads of this rank encode and decode a slice together; results do
            not depend on it. None: the cores that the ranks of this host leave idle, at least 1.
        policy: codecs by parameter name, ``{"embed*": "int8", "*": "topk:0.01"}``: the first shell
            pattern that matches counts; what none matches gets ``codec``. None: ``codec`` for all,
            but codecs that send little (``int2``, ``sign``, ``topk``) spare embeddings, norms and
            the last layer as far as that costs few bytes. {}: ``codec`` for all. See policy.py.
        momentum: momentum correction: the hook applies the momentum, on each rank before it
            compresses. Use an optimizer without momentum then. See momentum.py.
        nesterov: of that momentum, as torch.optim.SGD has it.
        max_norm: clip each rank's gradient before it is accumulated, about as if the average were
            clipped to this norm; see clipping.py. With a GradScaler, call :meth:`grad_scale`.
        residual_decay: multiply residuals by this before each step; below 1 they forget what could
            not be delivered for long, which then is lost.
        guard: watch the ratio of the norms of residuals and gradients: ``warn`` once if it is above
            ``guard_ratio``; ``adapt``: send more until it is below again; ``off``.
        guard_ratio: what is too much.

    Raises:
        ArgumentError: for an argument that cannot work.
    """

    def __init__(
        self,
        codec: str | Codec = "int8",
        process_group: dist.ProcessGroup | SimulatedRank | None = None,
        algorithm: str = "auto",
        error_feedback: bool = True,
        min_compress_elements: int = 1024,
        warmup_steps: int | None = None,
        codec_threads: int | None = None,
        policy: Mapping[str, str | Codec] | None = None,
        momentum: float = 0.0,
        nesterov: bool = False,
        max_norm: float | None = None,
        residual_decay: float = 1.0,
        guard: str = "warn",
        guard_ratio: float = LARGEST_RATIO,
    ) -> None:
        self.codec = parse_codec(codec)
        self.policy = Policy(self.codec, policy, min_compress_elements)
        codecs = self.policy.codecs()
        its_momentum = Momentum(momentum, nesterov)
        check_error_feedback(error_feedback, codecs, its_momentum, residual_decay, guard)
        check_num_threads(codec_threads)
        self.codec_threads = codec_threads
        check_algorithm(algorithm)
        self.algorithm = algorithm
        self._group = LateGroup(process_group)
        self.error_feedback = error_feedback
        # Residuals of fp32 are zero; only a checkpoint can bring some to be delivered.
        self._residuals = ResidualStore(
            self.policy.codec_of,
            error_feedback,
            starts_empty=not (its_momentum or any(each.loses_bits for each in codecs)),
            has_velocities=bool(its_momentum),
        )
        guard_mode = guard if error_feedback else "off"
        self._feedback = ErrorFeedback(
            self._residuals,
            its_momentum,
            residual_decay,
            ResidualGuard(guard_mode, guard_ratio, self._group.rank, momentum),
        )
        self._warmup = WarmUp(warmup_steps, codecs)
        self._sync = Synchronizer(
            self._group,
            Plan(self.policy, self._warmup, algorithm, codec_threads),
            self._feedback,
            LocalClipping(max_norm, self._group.size, self._residuals.names),
            settings={
                "codec": str(self.codec),
                "algorithm": algorithm,
                "min_compress_elements": str(min_compress_elements),
                "warmup_steps": str(self.warmup_steps),
                "error_feedback": str(error_feedback),
                "policy": str(self.policy),
                "momentum": str(its_momentum),
                "max_norm": str(max_norm),
                "residual_decay": str(residual_decay),
                "guard": f"{guard} above {guard_ratio:g}",
            },
            is_in_backward=not self._group.is_simulated,
        )

    def __reduce__(self) -> tuple[object, ...]:
        return (detached_hook_state, ())  # of a copy of the DDP model

    def __repr__(self) -> str:
        policy = "" if self.policy.is_default else f" ({self.policy})"
        return f"<HookState {self.codec}{policy}: {self._group}, {self.stats}>"

    @property
    def process_group(self) -> dist.ProcessGroup | SimulatedRank:
        """The ranks that synchronize.

        Raises:
            Error: if it is the default group and there is none yet.
        """
        return self._group()

    @property
    def min_compress_elements(self) -> int:
        """Which parameters are too small to be compressed."""
        return self.policy.min_compress_elements

    @property
    def warmup_steps(self) -> int:
        """How many steps the warm-up takes."""
        return self._warmup.num_steps

    def connect(self) -> None:
        """Connect the ranks and check that they agree; does nothing if that was done already.

        Collective. Happens by itself in :func:`register` or at the first synchronization. Raises
        :class:`MismatchError` if the ranks use different settings.
        """
        self._sync.connect()

    def attach(self, module: torch.nn.Module) -> None:
        """Tell the state which model it is of: the DDP model, or the module in it.

        ``state_dict``, ``policy`` and ``max_norm`` use the names of its parameters.

        Raises:
            ArgumentError: if the policy has a pattern that matches no parameter, or there are
                patterns and the first step is over; if the DDP model has another process group.
        """
        self._group.serve(module)
        self._residuals.attach(module)
        self._sync.attach(module)

    def follow_learning_rate(self, optimizer: torch.optim.Optimizer) -> None:
        """Rescale residuals when a learning rate of ``optimizer`` changes.

        By a scheduler or by hand. What was left out then makes the update that it would have made
        in time; see learning_rates.py. Changes below 1 % wait until they add up. Call it once for
        each optimizer, on every rank, in the same order.

        Raises:
            ArgumentError: if it is no optimizer, or has parameters of one that is followed already.
        """
        self._feedback.learning_rates.follow(optimizer)

    def synchronize(
        self, bucket: GradBucket | SimulatedBucket
    ) -> torch.futures.Future[torch.Tensor]:
        """Start averaging a bucket over all ranks; :func:`compress_hook` calls this.

        Raises:
            ArgumentError: for gradients that cannot be compressed.
        """
        return self._sync.synchronize(bucket.buffer(), bucket.parameters(), bucket.is_last())

    @property
    def stats(self) -> Stats:
        """What this rank sent so far, and where the time went."""
        group = self._sync.group
        measured = group.measurements() if group is not None else {}
        return self._sync.counters.stats(self._sync.steps.num_complete, measured)

    def trace(self, path: str | Path) -> contextlib.AbstractContextManager[None]:
        """Record, in a ``with`` block, what the native threads do, and write a Chrome trace.

        Give each rank a path of its own. Collective if the ranks are not connected yet.
        """
        return write_chrome_trace(self._sync.connect(), rank_in_job(self._group()), path)

    def flush(self) -> None:
        """Send the next step in float32 with all residuals folded in; they are zero afterwards.

        Call it on every rank, between steps: before a checkpoint without residuals, say.
        """
        self._sync.flush_requested = True

    def grad_scale(self, scale: float | torch.amp.GradScaler) -> None:
        """Tell by what gradients are multiplied from now on: a GradScaler, or its scale.

        Residuals are in units of scaled gradients; when the scale changes, they follow. Call it on
        every rank, before the first step and after each ``scaler.update()``.

        Raises:
            ArgumentError: if the scale is not positive and finite.
        """
        self._feedback.follow_grad_scale(scale)

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's state: step, world size, buckets, and residuals by parameter name.

        Call it between steps, and save one for each rank. Training then goes on as if it had not
        stopped, bit by bit, if the DDP model has the same options. After its very first step (with
        ``static_graph`` the first two) DDP is still to rebuild its buckets. What is saved there,
        and what goes on with another ``bucket_cap_mb`` or world size, loses nothing either, but
        blocks hold other elements then, so that the bits differ.

        Raises:
            ArgumentError: if the parameters have no names yet; see :meth:`attach`.
        """
        return {
            "step": self._sync.steps.number,
            "codec": str(self.codec),
            **self._group.saved(),
            "flush_requested": self._sync.flush_requested,
            "buckets": self._sync.steps.buckets.saved(self._residuals.names),
            **self._feedback.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any] | Sequence[dict[str, Any]]) -> None:
        """Restore what :meth:`state_dict` returned, before the next step.

        Args:
            state_dict: this rank's own; or, for another world size, the list of those of all ranks
                that saved one: rank r then takes the residuals of the ranks r, r + N, r + 2 N, …,
                so that their sum over all ranks is conserved.

        Raises:
            ArgumentError: if a single state of another rank or world size is given, a list without
                those of some ranks, or the state of another model; if the parameters have no names
                yet (see :meth:`attach`), or if there are residuals but ``error_feedback`` is off.
        """
        taken = state_to_take(state_dict, **self._group.saved())
        self._feedback.load_state_dict(taken)
        own_name, steps = self._residuals.own_name, self._sync.steps
        steps.buckets.load([[own_name(name) for name in names] for names in taken["buckets"]])
        steps.number = taken["step"]
        self._sync.flush_requested = taken["flush_requested"]


def compress_hook(state: HookState, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """DDP communication hook: average the bucket over all ranks, sending it compressed.

    Errors are reported through the future, so that ``backward()`` raises them and the DDP model
    stays usable.

    Raises:
        ArgumentError: if it is called for a single parameter, by DDP's Python reducer.
    """
    if not isinstance(bucket, GradBucket):  # nobody would look at a future
        raise ArgumentError(
            f"the hook was called with a {type(bucket).__name__} instead of a GradBucket, as DDP's "
            f"Python reducer does; {USE_BUCKETS}"
        )
    try:
        return state.synchronize(bucket)
    except Exception as error:
        return _C.failed_future(*described(error))
