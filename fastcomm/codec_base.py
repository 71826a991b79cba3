"""What every codec offers."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import ClassVar

import torch

from fastcomm import _C
from fastcomm._arguments import check_residual, check_tensor
from fastcomm.errors import ArgumentError

_of_thread = threading.local()


def _workspace(device: torch.device) -> _C.CodecWorkspace:
    """Return buffers for a call: on a GPU the thread's own, so that only its first call waits."""
    if device.type == "cpu":
        return _C.CodecWorkspace()
    if not hasattr(_of_thread, "workspace"):
        _of_thread.workspace = _C.CodecWorkspace()
    workspace: _C.CodecWorkspace = _of_thread.workspace
    return workspace


@dataclass(frozen=True)
class Codec:
    """Turns float32, bfloat16 or float16 elements into a payload and back.

    Subclasses are frozen and comparable; ``str(codec)`` is the name that :func:`codec` takes.
    """

    name: ClassVar[str]

    def __str__(self) -> str:
        return self.name

    @property
    def spec(self) -> _C.CodecSpec:
        """What the native layer needs to know of this codec."""
        return _C.CodecSpec(self.name)

    @property
    def loses_bits(self) -> bool:
        """Whether anything is left out of a payload, so that error feedback matters."""
        return True

    @property
    def is_stochastic(self) -> bool:
        """Whether it rounds at random: for synchronization without error feedback only."""
        return False

    @property
    def spared_share(self) -> float:
        """How many bytes may be spent to spare embeddings, norms and the head this codec.

        As a share of the bytes of the others. Zero for codecs that do them no harm; those others
        send so little of a gradient that error feedback delays much of it.
        """
        return 0.0

    @property
    def default_warmup_steps(self) -> int:
        """How many steps a warm-up takes where nothing else is asked for."""
        return 0

    def denser(self) -> Codec | None:
        """Return the codec that sends the next larger part of a gradient; None: this is enough."""
        return None

    def at_warmup(self, progress: float) -> Codec:
        """Return the codec to use at ``progress`` (0 <= progress < 1) of a warm-up."""
        raise NotImplementedError

    def check_error_feedback(self, has_residual: bool) -> None:
        """Raise :class:`ArgumentError` if this codec cannot be used with a residual."""
        if has_residual and self.is_stochastic:
            raise ArgumentError(
                f"codec {str(self)!r} rounds at random, which replaces error feedback; use "
                f'codec="{self.name}", or no residual (error_feedback=False)'
            )

    def wire_bytes(self, num_elements: int) -> int:
        """Return the size in bytes of a payload of ``num_elements`` elements, header included."""
        if num_elements < 0:
            raise ArgumentError(f"num_elements {num_elements} is negative; pass tensor.numel()")
        return _C.payload_bytes([self.spec], num_elements)

    def encode(self, tensor: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Encode ``tensor + residual`` and leave in ``residual`` what the payload leaves out.

        Args:
            tensor: contiguous tensor of float32, bfloat16 or float16, of any shape, on the CPU or
                a CUDA device.
            residual: contiguous float32 tensor of as many elements on the same device, updated in
                place; None: what is left out is lost.

        Stochastic rounding uses the random numbers of rank 0, step 0.

        Returns:
            The payload, a uint8 tensor of shape (``wire_bytes(tensor.numel())``,) on the device of
            ``tensor``: the same bytes on every device.

        Raises:
            ArgumentError: for a dtype, device or size that cannot be encoded.
        """
        check_tensor(tensor, "tensor")
        check_residual(residual, tensor)
        self.check_error_feedback(residual is not None)
        num_bytes = self.wire_bytes(tensor.numel())
        payload = torch.empty(num_bytes, dtype=torch.uint8, device=tensor.device)
        _C.encode(self.spec, tensor.detach(), residual, [], payload, _workspace(tensor.device))
        return payload

    def decode(self, payload: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Decode a payload of this codec.

        Args:
            payload: uint8 tensor, as :meth:`encode` returns it.
            out: where to write, a contiguous float32, bfloat16 or float16 tensor of as many
                elements as were encoded, on the device of ``payload``; None: a new float32 tensor
                of shape (num_elements,).

        Returns:
            ``out``.

        Raises:
            PayloadError: if the payload is damaged, truncated, or of another codec or size.
        """
        is_tensor = isinstance(payload, torch.Tensor)
        if not is_tensor or payload.dtype != torch.uint8 or not payload.is_contiguous():
            raise ArgumentError(
                "payload must be a contiguous uint8 tensor, got "
                f"{payload.dtype if is_tensor else type(payload).__name__}; "
                "pass what encode() returned"
            )
        if out is None:
            num_elements = _C.payload_num_elements(payload)
            # The claim of a damaged header must not decide how much memory is allocated.
            if self.wire_bytes(num_elements) != payload.numel():
                num_elements = 0
            out = torch.empty(num_elements, dtype=torch.float32, device=payload.device)
        check_tensor(out, "out")
        if out.device != payload.device:
            raise ArgumentError(
                f"out is on {out.device}, payload on {payload.device}; decode where the payload "
                "is, or move it"
            )
        if payload.data_ptr() % _C.PAYLOAD_ALIGNMENT:
            payload = payload.clone()
        _C.decode(self.spec, payload, out.detach(), _workspace(out.device))
        return out
