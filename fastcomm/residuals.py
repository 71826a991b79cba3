"""What this rank keeps of its gradients from step to step, laid out as DDP's buckets are.

The *residual* is what encodings have left out so far; with momentum correction there is a
*velocity*, too (momentum.py). Both belong to parameters, wherever DDP puts these.

A rank that ran out of data (DDP's ``join()``) takes part with gradients of zero. Its residuals
belong to its own training: they stay as they are, and what its encodings of the others' sums leave
out goes to a second array, until its next own step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from fastcomm import _C
from fastcomm.bucket_values import BucketValues, rescale, zeros
from fastcomm.bucket_views import num_elements, real_shape
from fastcomm.codecs import Codec
from fastcomm.connection import Connection
from fastcomm.errors import ArgumentError
from fastcomm.parameter_names import named_parameters
from fastcomm.parameter_names import own_name as without_wrappers
from fastcomm.runs import Runs, bucket_plan, merged_runs
from fastcomm.sharded_parameters import check_names
from fastcomm.wrapped_models import ddp_in, unwrapped

CodecOf = Callable[[Codec], Codec]  # what a step uses in place of a codec


@dataclass
class BucketLayout:
    """The parameters of one bucket, in its order."""

    parameters: list[torch.Tensor]  # kept alive: layouts are found by the ids of parameters
    runs: Runs  # covering the bucket
    residual: torch.Tensor | None  # float32, one per element of the bucket
    velocity: torch.Tensor | None  # the same
    joined_residual: torch.Tensor | None = None  # what was left out since this rank joined
    is_agreed: bool = False  # whether all ranks were seen to have the same layout
    plans: dict[tuple[object, ...], _C.BucketPlan] = field(default_factory=dict)

    def describe(self) -> str:
        """Return what all ranks must have in common, for the handshake."""
        runs = ", ".join(f"{num_elements} {codec}" for num_elements, codec in self.runs)
        return f"{len(self.parameters)} parameters of {self.parameters[0].dtype}, elements {runs}"

    def residual_to_send(self, delivers_own: bool) -> torch.Tensor | None:
        """Return what an exchange adds to the gradients and leaves the rest in.

        Not ``delivers_own``: this rank has no data any more, and takes part for the others only.
        """
        if delivers_own or self.residual is None:
            self.end_join()
            return self.residual
        if self.joined_residual is None:
            self.joined_residual = zeros(self.residual.numel(), self.residual.device)
        return self.joined_residual

    def end_join(self) -> None:
        """Add what was left out since this rank joined to its residual."""
        if self.joined_residual is not None:
            assert self.residual is not None
            self.residual += self.joined_residual
            self.joined_residual = None

    def plan(
        self, codec_of: CodecOf, algorithm: str, group: Connection, num_threads: int | None
    ) -> _C.BucketPlan:
        """Return the plan to synchronize this bucket, with ``codec_of(its codecs)``."""
        codecs = {codec: codec_of(codec) for _, codec in self.runs}
        key = (*codecs.values(), algorithm)
        if key not in self.plans:
            self.plans.clear()  # a warm-up uses another codec at each step
            device = self.parameters[0].device
            runs = merged_runs((number, codecs[codec]) for number, codec in self.runs)
            resolved = group.algorithm(algorithm, runs, device)
            threads = group.threads(num_threads, device)
            self.plans[key] = bucket_plan(runs, resolved, threads)
        return self.plans[key]


class ResidualStore:
    """Residuals and velocities by parameter, laid out bucket by bucket."""

    def __init__(
        self,
        codec_of: Callable[[torch.Tensor], Codec],
        error_feedback: bool,
        starts_empty: bool,
        has_velocities: bool,
    ) -> None:
        self._codec_of = codec_of
        self._error_feedback = error_feedback
        self._keeps_residuals = error_feedback and not starts_empty
        self._layouts: dict[tuple[int, ...], BucketLayout] = {}
        self._residuals = BucketValues()
        self._velocities = BucketValues() if has_velocities else None
        self._names: dict[int, str] = {}
        self._shapes: dict[str, torch.Size] = {}  # of a parameter, by its name

    def layout(self, parameters: list[torch.Tensor]) -> BucketLayout:
        """Return the layout of a bucket that holds ``parameters``, making it if it is new."""
        key = tuple(map(id, parameters))
        if key not in self._layouts:
            if self._names and not all(each in self._names for each in key):
                raise _another_model()
            self._layouts[key] = self._make_layout(parameters)
        return self._layouts[key]

    @property
    def has_layouts(self) -> bool:
        """Whether there were buckets already."""
        return bool(self._layouts)

    def _make_layout(self, parameters: list[torch.Tensor]) -> BucketLayout:
        ids = set(map(id, parameters))
        replaced = [key for key in self._layouts if not ids.isdisjoint(key)]
        for key in replaced:
            self._layouts[key].end_join()
        runs = merged_runs((num_elements(p), self._codec_of(p)) for p in parameters)
        residual = velocity = None
        if self._keeps_residuals:
            residual = self._residuals.lay_out(parameters, self._names)
        if self._velocities is not None:
            velocity = self._velocities.lay_out(parameters, self._names)
        for key in replaced:
            del self._layouts[key]  # buckets were rebuilt
        return BucketLayout(list(parameters), runs, residual, velocity)

    def attach(self, module: nn.Module) -> None:
        """Learn the names of a model's parameters.

        Raises:
            ArgumentError: if this is the state of another model already; if parameters have lost
                their names.
        """
        named = dict(named_parameters(unwrapped(module)))
        ids = set(map(id, named.values()))
        ddp = ddp_in(module)
        check_names(named, self._names, [] if ddp is None else ddp._module_parameters)
        if self._names and ids and ids.isdisjoint(self._names):
            raise _another_model()
        for name, parameter in named.items():
            self._names[id(parameter)] = name
            self._shapes[name] = real_shape(parameter)

    def residual_of(self, parameter: torch.Tensor) -> torch.Tensor | None:
        """Return the residual of a parameter, in its shape, if it has one."""
        return self._residuals.of(parameter, self._names)

    def names(self, parameters: list[torch.Tensor]) -> list[str]:
        """Return the names of parameters.

        Raises:
            ArgumentError: if they have none yet.
        """
        self.require_names()
        return [self._names[id(parameter)] for parameter in parameters]

    def own_name(self, name: str) -> str:
        """Return what this model calls the parameter that a wrapper of it calls ``name``."""
        short = without_wrappers(name)
        candidates = (name, short, short.removeprefix("module."), f"module.{short}")
        return next((known for known in candidates if known in self._shapes), name)

    def saved(self) -> dict[str, dict[str, torch.Tensor]]:
        """Return copies of the residuals, and of velocities if there are, by parameter name."""
        kinds = {"residuals": self._residuals}
        if self._velocities is not None:
            kinds["velocities"] = self._velocities
        if self._layouts:
            self.require_names()
        if not all(values.has_only(self._names) for values in kinds.values()):
            raise _another_model()
        self.end_join()
        return {
            kind: {name: of_one.clone() for name, of_one in values.named(self._names)}
            for kind, values in kinds.items()
        }

    def load(self, residuals: dict[str, torch.Tensor], velocities: dict[str, torch.Tensor]) -> None:
        """Replace everything; parameters that are not mentioned start from zero.

        Raises:
            ArgumentError: if there are values of other shapes than their parameters', if the
                parameters have no names, or if there is no error feedback to deliver residuals.
                Nothing has changed then.
        """
        self.require_names()
        residuals = self._checked("residual", residuals)
        velocities = self._checked("velocity", velocities)
        if residuals and not self._error_feedback:
            raise ArgumentError(
                "the state has residuals, which error_feedback=False would never deliver; use "
                "error_feedback=True, or call flush() and make one step before saving"
            )
        if velocities and self._velocities is None:
            raise ArgumentError(
                "the state has velocities, which a hook without momentum would never deliver; pass "
                "the momentum that it was saved with"
            )
        self._keeps_residuals |= bool(residuals)
        # The next step lays its buckets out anew and takes the values from here.
        self._layouts.clear()
        self._residuals.load(residuals)
        if self._velocities is not None:
            self._velocities.load(velocities)

    def _checked(self, what: str, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        checked = {self.own_name(name): of_one for name, of_one in values.items()}
        for name, of_one in checked.items():
            expected = self._shapes.get(name)
            # States of before 0.2 are flat.
            if expected is None or of_one.shape not in (expected, (expected.numel(),)):
                its = "no counterpart in this model"
                if expected is not None:
                    its = f"{expected.numel()} of shape {tuple(expected)}"
                raise ArgumentError(
                    f"the {what} of {name!r} has {of_one.numel()} elements of shape "
                    f"{tuple(of_one.shape)}, its parameter has {its}; load a checkpoint of the "
                    "same model"
                )
        return checked

    def rescale(self, factor: float) -> None:
        """Multiply everything: the gradients to come are that much larger."""
        self.end_join()
        self._residuals.rescale(factor)
        if self._velocities is not None:
            self._velocities.rescale(factor)

    def rescale_residual(self, parameter: torch.Tensor, factor: float) -> None:
        """Multiply the residual of one parameter, if it has one."""
        residual = self._residuals.of(parameter, self._names)
        if residual is not None:
            rescale(residual, factor)

    def end_join(self) -> None:
        """Add what was left out since this rank joined to its residuals."""
        for layout in self._layouts.values():
            layout.end_join()

    def require_names(self) -> None:
        """Raise :class:`ArgumentError` if the parameters have no names yet."""
        if not self._names:
            raise ArgumentError(
                "the parameters have no names yet; use fastcomm.register(ddp_model), or call "
                "state.attach(ddp_model) once"
            )


def _another_model() -> ArgumentError:
    return ArgumentError(
        "the state is of another model already, whose residuals it holds; make a HookState for "
        "each DistributedDataParallel model"
    )
