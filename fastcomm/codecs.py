"""The codecs, as small frozen objects that name a wire format and its parameters."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch

from fastcomm import _C
from fastcomm._arguments import check_residual, check_tensor
from fastcomm.errors import ArgumentError


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

    def at_warmup(self, progress: float) -> Codec:
        """Return the codec to use at ``progress`` (0 <= progress < 1) of a warm-up."""
        return Fp32()

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
        return _C.payload_bytes(self.spec, num_elements)

    def encode(self, tensor: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Encode ``tensor + residual`` and leave in ``residual`` what the payload leaves out.

        Args:
            tensor: contiguous CPU tensor of float32, bfloat16 or float16, of any shape.
            residual: contiguous float32 CPU tensor of as many elements, updated in place;
                None: what is left out is lost.

        Stochastic rounding uses the random numbers of rank 0, step 0.

        Returns:
            The payload, a uint8 tensor of shape (``wire_bytes(tensor.numel())``,).

        Raises:
            ArgumentError: for a dtype, device or size that cannot be encoded.
        """
        check_tensor(tensor, "tensor")
        check_residual(residual, tensor)
        self.check_error_feedback(residual is not None)
        payload = torch.empty(self.wire_bytes(tensor.numel()), dtype=torch.uint8)
        _C.encode(self.spec, tensor.detach(), residual, [], payload, _C.CodecWorkspace())
        return payload

    def decode(self, payload: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Decode a payload of this codec.

        Args:
            payload: uint8 tensor, as :meth:`encode` returns it.
            out: where to write, a contiguous float32, bfloat16 or float16 CPU tensor of as many
                elements as were encoded; None: a new float32 tensor of shape (num_elements,).

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
            out = torch.empty(num_elements, dtype=torch.float32)
        check_tensor(out, "out")
        if payload.data_ptr() % _C.PAYLOAD_ALIGNMENT:
            payload = payload.clone()
        _C.decode(self.spec, payload, out.detach(), _C.CodecWorkspace())
        return out


_FORMATS = {native.name: native for native in _C.dense_formats()}


@dataclass(frozen=True)
class DenseCodec(Codec):
    """A codec that sends a fixed number of bits for each element.

    Args:
        block_size: elements that share one scale. Each codec has one block size; None means it.
        rounding: ``nearest``, or ``stochastic`` where the codec offers it: up or down at random, so
            that the expectation of what is sent is the value itself. It replaces error feedback;
            same inputs and seed give same bits, whatever the CPU and the number of threads.
        seed: of the rotation (``int2``, ``sign``) or of stochastic rounding, 0 to 2**32 - 1. The
            same on every rank.

    Raises:
        ArgumentError: for a parameter that this codec does not have.
    """

    block_size: int | None = None
    _: KW_ONLY
    rounding: str = "nearest"
    seed: int = 0

    def __post_init__(self) -> None:
        native = _FORMATS[self.name]
        if self.block_size is None:
            object.__setattr__(self, "block_size", native.block_elements)
        if self.block_size != native.block_elements:
            raise ArgumentError(
                f"block_size {self.block_size} is not available for {self.name}; "
                f"use block_size={native.block_elements}"
            )
        roundings = ["nearest", *(["stochastic"] if native.has_stochastic_rounding else [])]
        if self.rounding not in roundings:
            raise ArgumentError(
                f"rounding {self.rounding!r} is not available for {self.name}; "
                f"use {' or '.join(roundings)}"
            )
        if not 0 <= self.seed < 2**32:
            raise ArgumentError(f"seed {self.seed} is outside 0 to 2**32 - 1")
        if self.seed and not (native.is_rotated or self.is_stochastic):
            raise ArgumentError(
                f"codec {self.name} with rounding to nearest uses no random numbers; "
                f"leave out seed={self.seed}"
            )

    def __str__(self) -> str:
        options = ["stochastic"] if self.is_stochastic else []
        options += [f"seed={self.seed}"] if self.seed else []
        return ":".join([self.name, *([",".join(options)] if options else [])])

    @property
    def is_stochastic(self) -> bool:  # noqa: D102
        return self.rounding == "stochastic"

    @property
    def spec(self) -> _C.CodecSpec:  # noqa: D102
        return _C.CodecSpec(self.name, is_stochastic=self.is_stochastic, seed=self.seed)

    @classmethod
    def parse(cls, name: str, options: str) -> DenseCodec:
        """Return the codec of ``name:options``, options being ``stochastic`` and ``seed=N``."""
        rounding, seed = "nearest", 0
        for option in options.split(",") if options else []:
            key, equals, value = option.partition("=")
            if option == "stochastic":
                rounding = option
            elif key == "seed" and equals and value.isdecimal():
                seed = int(value)
            else:
                raise ArgumentError(
                    f"codec {name}:{options} has an unknown option {option!r}; "
                    f"for instance {name}:seed=1 or int8:stochastic,seed=1"
                )
        return cls(rounding=rounding, seed=seed)


class Fp32(DenseCodec):
    """The values themselves in float32: 4 bytes per element, nothing left out."""

    name: ClassVar[str] = "fp32"

    @property
    def loses_bits(self) -> bool:  # noqa: D102
        return False


class Bf16(DenseCodec):
    """bfloat16, rounded half to even: 2 bytes per element."""

    name: ClassVar[str] = "bf16"


class Fp16(DenseCodec):
    """float16, rounded half to even, saturating at 65504: 2 bytes per element."""

    name: ClassVar[str] = "fp16"


class Fp8(DenseCodec):
    """8-bit floats (e4m3) with one bf16 scale per block: 1.004 bytes per element."""

    name: ClassVar[str] = "fp8"


class Int8(DenseCodec):
    """Symmetric 8-bit integers with one bf16 scale per block: 1.004 bytes per element."""

    name: ClassVar[str] = "int8"


class Int4(DenseCodec):
    """Symmetric 4-bit integers with one bf16 scale per block: 0.508 bytes per element."""

    name: ClassVar[str] = "int4"


class Int2(DenseCodec):
    """Four levels in a Hadamard-rotated block: 0.258 bytes per element.

    The randomized rotation is that of "Distributed Mean Estimation with Limited Communication",
    Suresh et al., ICML 2017, section 3.
    """

    name: ClassVar[str] = "int2"


class Sign(DenseCodec):
    """Signs and the mean magnitude of a Hadamard-rotated block: 0.133 bytes per element.

    "Error Feedback Fixes SignSGD", Karimireddy et al., ICML 2019, in a rotated basis as
    :class:`Int2`.
    """

    name: ClassVar[str] = "sign"


@dataclass(frozen=True)
class TopK(Codec):
    """The ``density * num_elements`` largest magnitudes of a bucket: 4 bytes for each of them.

    Error feedback with global selection as in "Deep Gradient Compression", Lin et al., ICLR 2018,
    section 3. Values are sent as bfloat16; their rounding errors stay in the residual. Above a
    density of 0.12 the payload is int4, which then is smaller and keeps every element.
    """

    name: ClassVar[str] = "topk"
    density: float = 0.01

    def __post_init__(self) -> None:
        if not 0.0 < self.density <= 1.0:
            raise ArgumentError(
                f"density {self.density:g} is outside (0, 1]; "
                "use for instance topk:0.01 to send 1 % of the elements"
            )

    def __str__(self) -> str:
        return f"topk:{self.density!r}"

    @property
    def spec(self) -> _C.CodecSpec:  # noqa: D102
        if self.density > _C.TOPK_LARGEST_SPARSE_DENSITY:
            return Int4().spec
        return _C.CodecSpec("topk", self.density)

    def at_warmup(self, progress: float) -> Codec:
        """Ramp the density exponentially from 1 down to its target (the paper's section 3.3)."""
        return TopK(density=self.density**progress)


_CLASSES: dict[str, type[DenseCodec]] = {
    dense.name: dense for dense in (Fp32, Bf16, Fp16, Fp8, Int8, Int4, Int2, Sign)
}
# The native layer's list decides which codecs there are; one without a class above gets one here.
for _name in _FORMATS.keys() - _CLASSES.keys():
    _CLASSES[_name] = type(_name.capitalize(), (DenseCodec,), {"name": _name})


def codec_names() -> list[str]:
    """Return the names that :func:`codec` takes."""
    return [*_CLASSES, "topk:DENSITY"]


def codec(name: str | Codec) -> Codec:
    """Return the codec of a name.

    ``fp32``, ``bf16``, ``fp16``, ``fp8``, ``int8``, ``int4``, ``int2``, ``sign``, or
    ``topk:DENSITY``. Options follow a colon: ``int8:stochastic,seed=1``, ``sign:seed=1``; see
    :class:`DenseCodec`.

    Raises:
        ArgumentError: for an unknown name (lists the known ones), a density outside (0, 1], or an
            option that the codec does not have.
    """
    if isinstance(name, Codec):
        return name
    if not isinstance(name, str):
        raise ArgumentError(
            f"codec must be a name or a fastcomm.Codec, got {type(name).__name__}; "
            'use for instance codec="int8"'
        )
    base, colon, options = name.partition(":")
    if base == TopK.name:
        try:
            density = float(options)
        except ValueError:
            raise ArgumentError(
                f"codec {name!r} needs a density, a number in (0, 1]: for instance topk:0.01"
            ) from None
        return TopK(density=density)
    if base not in _CLASSES or (colon and not options):
        raise ArgumentError(f"unknown codec {name!r}; known codecs: {', '.join(codec_names())}")
    return _CLASSES[base].parse(base, options)
