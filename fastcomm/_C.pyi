"""The native module; csrc/bindings/module.cpp."""

from datetime import timedelta

from torch import Tensor, device
from torch._C._distributed_c10d import Backend
from torch.futures import Future

has_cuda: bool
OPENING_RECORD_BYTES: int
PAYLOAD_ALIGNMENT: int
SETTINGS_BUCKET: int  # the bucket index of what stats and traces leave out
TOPK_LARGEST_SPARSE_DENSITY: float

class DenseFormat:
    @property
    def name(self) -> str: ...
    @property
    def block_elements(self) -> int: ...
    @property
    def has_scale(self) -> bool: ...
    @property
    def is_rotated(self) -> bool: ...
    @property
    def has_stochastic_rounding(self) -> bool: ...
    @property
    def code_bits(self) -> int: ...

def largest_opening_payload(world_size: int) -> int: ...
def dense_formats() -> list[DenseFormat]: ...
def algorithm_names() -> list[str]: ...
def supported_isas() -> list[str]: ...
def active_isa() -> str: ...
def force_isa(name: str) -> None: ...

class CodecSpec:
    def __init__(
        self,
        name: str,
        density: float = 1.0,
        is_stochastic: bool = False,
        seed: int = 0,
        rotates: bool = True,  # False, in benchmarks: what a rotation costs
    ) -> None: ...

class ThreadPool:
    def __init__(self, num_threads: int) -> None: ...
    @property
    def num_threads(self) -> int: ...

class CodecWorkspace:
    def __init__(self, threads: ThreadPool | None = None) -> None: ...

# `sliced`: as the ring cuts a bucket, a payload for each slice, one after another. `sealed`: False,
# in benchmarks, leaves out headers and checksums. On a GPU, all work is enqueued on the current
# stream; decode() of sealed payloads waits for it, to see what the device found wrong. `runs`: as
# those of a BucketPlan.
def payload_bytes(
    codecs: list[CodecSpec],
    num_elements: int,
    sliced: bool = False,
    runs: list[tuple[int, int]] = ...,
) -> int: ...
def payload_num_elements(payload: Tensor) -> int: ...
def encode(
    spec: CodecSpec,
    tensor: Tensor,
    residual: Tensor | None,
    received: list[Tensor],
    payload: Tensor,
    workspace: CodecWorkspace,
    sliced: bool = False,
    sealed: bool = True,
    velocity: Tensor | None = None,  # becomes 0 where a sparse codec sends a finite value
) -> None: ...
def decode(
    spec: CodecSpec,
    payload: Tensor,
    out: Tensor,
    workspace: CodecWorkspace,
    sliced: bool = False,
    sealed: bool = True,
) -> None: ...

# float32, in huge pages where there are some; and what gives the memory of a part of it back, whose
# values are lost. Only for what streamed_zeros() returned.
def streamed_zeros(num_elements: int) -> Tensor: ...
def release_streamed(part: Tensor) -> None: ...

# A copy past the cache, of float32: what benchmarks compare with.
def stream_copy(out: Tensor, tensor: Tensor, workspace: CodecWorkspace) -> None: ...

# `runs`: (num_elements, index of its codec in `codecs`) of each part of the bucket; none: all of it
# has the only codec of the list.
class BucketPlan:
    def __init__(
        self,
        codecs: list[CodecSpec],
        runs: list[tuple[int, int]],
        algorithm: str,
        threads: ThreadPool | None,
    ) -> None: ...

class Communicator:
    # `timeout`: how long an exchange waits for a message of another rank
    def __init__(self, backends: list[Backend], num_lanes: int, timeout: timedelta) -> None: ...
    # Raises PeerError if `peer` has ended, or the error of an exchange that failed.
    def check(self, peer: int) -> None: ...
    # Tells the other ranks that this one has failed between exchanges.
    def fail(self, text: str) -> None: ...
    def all_reduce(
        self,
        bucket: Tensor,
        residual: Tensor | None,
        plan: BucketPlan,
        factor: float,
        step: int,
        bucket_index: int,
        caller_waits: bool = False,  # run it on this thread, if that is possible
        # velocity = momentum * velocity + bucket; the bucket's values are then those of velocity
        # (nesterov: bucket + momentum * velocity). Needs a residual.
        velocity: Tensor | None = None,
        momentum: float = 0.0,
        nesterov: bool = False,
    ) -> Future[Tensor]: ...
    def measurements(self) -> dict[str, float]: ...
    def start_trace(self) -> None: ...
    # (lane, step, bucket, name, begin in seconds of the monotonic clock, seconds, payload bytes)
    def stop_trace(self) -> list[tuple[int, int, int, str, float, float, int]]: ...
    def abort(self) -> None: ...

# For one GPU; `backend` is NCCL, None for one rank.
class StreamCommunicator:
    def __init__(self, backend: Backend | None, device: device) -> None: ...
    def all_reduce(
        self,
        bucket: Tensor,
        residual: Tensor | None,
        plan: BucketPlan,
        factor: float,
        step: int,
        bucket_index: int,
        caller_waits: bool = False,  # of no effect
        velocity: Tensor | None = None,  # as above
        momentum: float = 0.0,
        nesterov: bool = False,
    ) -> Future[Tensor]: ...
    # Waits for what is enqueued; False if it failed or takes longer.
    def finish(self, seconds: float) -> bool: ...
    def measurements(self) -> dict[str, float]: ...
    def start_trace(self) -> None: ...
    def stop_trace(self) -> list[tuple[int, int, int, str, float, float, int]]: ...
    def abort(self) -> None: ...

# A group of ranks that live in one process; one rank's end of it.
class SimulatedGroup:
    def __init__(self, world_size: int) -> None: ...

class SimulatedCommunicator:
    def __init__(self, group: SimulatedGroup, rank: int) -> None: ...
    # Runs the exchange if it is the last rank's part of it.
    def all_reduce(
        self,
        bucket: Tensor,
        residual: Tensor | None,
        plan: BucketPlan,
        factor: float,
        step: int,
        bucket_index: int,
        velocity: Tensor | None = None,  # as above
        momentum: float = 0.0,
        nesterov: bool = False,
    ) -> Future[Tensor]: ...
    def measurements(self) -> dict[str, float]: ...

# A future that will hold `tensor`, and what completes it. `error_type`: a class of fastcomm.errors.
class TensorFuture:
    def __init__(self, tensor: Tensor) -> None: ...
    @property
    def future(self) -> Future[Tensor]: ...
    def succeed(self) -> None: ...
    def fail(self, error_type: str, message: str) -> None: ...

def failed_future(error_type: str, message: str) -> Future[Tensor]: ...
