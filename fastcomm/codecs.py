"""The codecs by name: small frozen objects that stand for a wire format and its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastcomm import _C
from fastcomm.codec_base import Codec
from fastcomm.dense_codecs import (
    DENSE_CODECS,
    Bf16,
    DenseCodec,
    Fp8,
    Fp16,
    Fp32,
    Int2,
    Int4,
    Int8,
    Sign,
)
from fastcomm.errors import ArgumentError

__all__ = [
    "Bf16",
    "Codec",
    "DenseCodec",
    "Fp8",
    "Fp16",
    "Fp32",
    "Int2",
    "Int4",
    "Int8",
    "Sign",
    "TopK",
    "codec",
    "codec_names",
]


# Measured: docs/choosing_a_codec.md.
_WARMUP_STEPS = 100


@dataclass(frozen=True)
class TopK(Codec):
    """The ``density * num_elements`` largest magnitudes of a bucket: 4 bytes for each of them.

    They are selected from a whole slice: a bucket that is gathered (of more than 8 Mi elements:
    each 8 Mi of it), or a segment of one that is not.

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
    def is_sparse(self) -> bool:
        """Whether it is sent as top-k, not as int4."""
        return self.density <= _C.TOPK_LARGEST_SPARSE_DENSITY

    @property
    def spared_share(self) -> float:
        """Little: the largest gradients of a bucket, those of the head say, are sent anyway."""
        return 0.25 if self.is_sparse else 0.0

    @property
    def default_warmup_steps(self) -> int:  # noqa: D102
        return _WARMUP_STEPS if self.is_sparse else 0

    def denser(self) -> Codec | None:  # noqa: D102
        return TopK(density=min(1.0, 4 * self.density)) if self.is_sparse else Int8()

    @property
    def spec(self) -> _C.CodecSpec:  # noqa: D102
        if not self.is_sparse:
            return Int4().spec
        return _C.CodecSpec("topk", self.density)

    def at_warmup(self, progress: float) -> Codec:
        """Ramp the density exponentially from 1 down to its target (the paper's section 3.3)."""
        return TopK(density=self.density**progress)


def codec_names() -> list[str]:
    """Return the names that :func:`codec` takes."""
    return [*DENSE_CODECS, "topk:DENSITY"]


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
    if base not in DENSE_CODECS or (colon and not options):
        raise ArgumentError(f"unknown codec {name!r}; known codecs: {', '.join(codec_names())}")
    return DENSE_CODECS[base].parse(base, options)
