"""The DDP communication hook and its state."""

# No "from __future__ import annotations" here: register_comm_hook inspects the hook's annotations.
import contextlib
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import GradBucket  # type: ignore[attr-defined]  # torch's stubs lack it
from torch.nn.parallel import DistributedDataParallel

from fastcomm import _C
from fastcomm._arguments import check_num_threads, check_tensor, require_process_group
from fastcomm.algorithms import check_algorithm
from fastcomm.codecs import Codec, Fp32
from fastcomm.codecs import codec as parse_codec
from fastcomm.ddp_modes import USE_BUCKETS
from fastcomm.detached import detached_hook_state
from fastcomm.errors import ArgumentError, Error
from fastcomm.group import ConnectedGroup
from fastcomm.regrouping import Part, synchronize_parts
from fastcomm.residuals import ResidualStore
from fastcomm.saved_states import state_to_take
from fastcomm.stats import Counters, Stats
from fastcomm.steps import Steps
from fastcomm.trace import write_chrome_trace
from fastcomm.unused_parameters import Deliveries


class HookState:
    """State of :func:`compress_hook`: the codec, the connection, and this rank's residuals.

    One for each DDP model and rank. Use :func:`register`, or PyTorch's own
    ``ddp_model.register_comm_hook(state, fastcomm.compress_hook)``.

    Args:
        codec: a codec or its name; see :func:`fastcomm.codec`.
        process_group: the ranks that synchronize; None: the default group. Give the group that the
            DDP model has.
        algorithm: ``ring``, ``gather``, ``scatter_gather`` or ``auto``.
        error_feedback: keep what compression leaves out and add it to the next step's gradient.
            False for codecs with stochastic rounding.
        min_compress_elements: smaller parameters, and all one-dimensional ones (biases, norms), are
            sent as float32, inside the same message.
        warmup_steps: during so many steps, start dense and become sparser (top-k: density ramps
            from 1 to its target; other codecs: fp32). None: no warm-up.
        codec_threads: how many threads of this rank encode and decode a slice together; results do
            not depend on it. None: the cores that the ranks of this host leave idle, at least 1.

    Raises:
        ArgumentError: for an argument that cannot work.
        Error: if the process group is not initialized.
    """

    def __init__(
        self,
        codec: str | Codec = "int8",
        process_group: dist.ProcessGroup | None = None,
        algorithm: str = "auto",
        error_feedback: bool = True,
        min_compress_elements: int = 1024,
        warmup_steps: int | None = None,
        codec_threads: int | None = None,
    ) -> None:
        self.codec = parse_codec(codec)
        self.codec.check_error_feedback(error_feedback)
        check_num_threads(codec_threads)
        self.codec_threads = codec_threads
        check_algorithm(algorithm)
        self.algorithm = algorithm
        self.process_group = require_process_group(process_group)
        self.min_compress_elements = min_compress_elements
        self.warmup_steps = warmup_steps or 0
        self.error_feedback = error_feedback
        # Residuals of fp32 are zero; only a checkpoint can bring some to be delivered.
        self._residuals = ResidualStore(
            self._is_compressed, error_feedback, starts_empty=not self.codec.loses_bits
        )
        self._steps = Steps()
        self._deliveries = Deliveries()
        self._group: ConnectedGroup | None = None
        self._is_agreed = False
        self._flush_requested = False
        self._flushing = False
        self._grad_scale: float | None = None  # not known
        self._counters = Counters()

    def __reduce__(self) -> tuple[object, ...]:
        return (detached_hook_state, ())  # of a copy of the DDP model

    def connect(self) -> None:
        """Connect the ranks and check that they agree; does nothing if that was done already.

        Collective. Happens by itself in :func:`register` or at the first synchronization.

        Raises:
            MismatchError: if the ranks use different settings.
        """
        if self._is_agreed:
            return
        if self._group is None:
            self._group = ConnectedGroup(self.process_group)
        self._group.check_agreement(
            {
                "codec": str(self.codec),
                "algorithm": self.algorithm,
                "min_compress_elements": str(self.min_compress_elements),
                "warmup_steps": str(self.warmup_steps),
                "error_feedback": str(self.error_feedback),
            }
        )
        self._is_agreed = True

    def attach(self, module: torch.nn.Module) -> None:
        """Tell the state which model it is of: the DDP model, or the module in it.

        ``state_dict`` uses the names of its parameters.
        """
        self._residuals.attach(module)
        if isinstance(module, DistributedDataParallel):
            self._deliveries.may_keep_gradients = module.find_unused_parameters

    def synchronize(self, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        """Start averaging a bucket over all ranks; :func:`compress_hook` calls this.

        Raises:
            ArgumentError: for gradients that cannot be compressed.
        """
        self.connect()
        buffer = bucket.buffer()
        check_tensor(buffer, "the gradient bucket")
        if self._steps.buckets.is_between_steps:
            self._begin_step()
        parameters = bucket.parameters()
        parts = self._steps.buckets.parts(parameters, self._residuals.names)
        future = synchronize_parts(buffer, parameters, parts, self._exchange)
        self._deliveries.note(buffer, parameters)
        if bucket.is_last():
            self._steps.end()
        return future

    def _exchange(self, gradients: torch.Tensor, part: Part) -> torch.futures.Future[torch.Tensor]:
        assert self._group is not None
        world_size = self._group.world_size
        layout = self._residuals.layout(part.parameters)
        if not layout.is_agreed:
            self._group.connect(gradients.device)
            self._group.check_agreement({"bucket": layout.describe()})
            layout.is_agreed = True
        future = self._group.all_reduce(
            gradients,
            # A flush delivers what a joined rank has, too.
            layout.residual_to_send(self._steps.is_joined and not self._flushing),
            layout.plan(self._codec_of_step(), self.algorithm, self._group, self.codec_threads),
            1.0 / world_size,
            self._steps.number,
            part.index,
        )
        self._steps.buckets.note(part)
        self._counters.add(gradients, world_size)
        return future

    def _begin_step(self) -> None:
        self._flushing = self._flush_requested
        self._flush_requested = False
        self._deliveries.clear()
        self._steps.begin(
            functools.partial(self._deliveries.take_back, self._residuals.residual_of)
        )

    @property
    def stats(self) -> Stats:
        """What this rank sent so far, and where the time went."""
        measured = self._group.measurements() if self._group is not None else {}
        return self._counters.stats(self._steps.num_complete, measured)

    def trace(self, path: str | Path) -> contextlib.AbstractContextManager[None]:
        """Record, in a ``with`` block, what the native threads do, and write a Chrome trace.

        Give each rank a path of its own. Collective if the ranks are not connected yet.
        """
        self.connect()
        assert self._group is not None
        return write_chrome_trace(self._group, path)

    def flush(self) -> None:
        """Send the next step in float32 with all residuals folded in; they are zero afterwards.

        Call it on every rank, between steps: before a checkpoint without residuals, say.
        """
        self._flush_requested = True

    def grad_scale(self, scale: float | torch.amp.GradScaler) -> None:
        """Tell by what gradients are multiplied from now on: a GradScaler, or its scale.

        Residuals are in units of scaled gradients; when the scale changes, they follow. Call it on
        every rank, before the first step and after each ``scaler.update()``.

        Raises:
            ArgumentError: if the scale is not positive and finite.
        """
        value = scale if isinstance(scale, (float, int)) else scale.get_scale()
        if not 0 < value < math.inf:
            raise ArgumentError(f"the scale of the gradients is {value}; it must be positive")
        if self._grad_scale not in (None, value):
            self._residuals.rescale(value / self._grad_scale)
        self._grad_scale = float(value)

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
            "step": self._steps.number,
            "codec": str(self.codec),
            "rank": self.process_group.rank(),
            "world_size": self.process_group.size(),
            "grad_scale": self._grad_scale,
            "flush_requested": self._flush_requested,
            "buckets": self._steps.buckets.saved(self._residuals.names),
            "residuals": {name: r.clone() for name, r in self._residuals.named_residuals()},
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
        taken = state_to_take(state_dict, self.process_group.rank(), self.process_group.size())
        self._residuals.load(taken["residuals"])
        own_name = self._residuals.own_name
        self._steps.buckets.load([[own_name(name) for name in names] for names in taken["buckets"]])
        self._steps.number = taken["step"]
        self._grad_scale = taken["grad_scale"]
        self._flush_requested = taken["flush_requested"]

    def _is_compressed(self, parameter: torch.Tensor) -> bool:
        return parameter.dim() > 1 and parameter.numel() >= self.min_compress_elements

    def _codec_of_step(self) -> Codec:
        # One rank has nobody to send to: nothing is worth leaving out.
        if self._flushing or self.process_group.size() == 1:
            return Fp32()
        if self._steps.number < self.warmup_steps:
            return self.codec.at_warmup(self._steps.number / self.warmup_steps)
        return self.codec


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
    except Error as error:
        return _C.failed_future(type(error).__name__, str(error))
    except Exception as error:
        return _C.failed_future(Error.__name__, f"{type(error).__name__}: {error}")
