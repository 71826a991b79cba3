"""The codecs that send a fixed number of bits for each element."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from fastcomm import _C
from fastcomm.codec_base import Codec
from fastcomm.errors import ArgumentError

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

    def at_warmup(self, progress: float) -> Codec:  # noqa: D102
        return Fp32()

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

    def denser(self) -> Codec | None:  # noqa: D102
        return Int8()


class FewBitCodec(DenseCodec):
    """What the codecs have in common whose errors are as large as what they send."""

    @property
    def spared_share(self) -> float:  # noqa: D102
        return 1.0

    def at_warmup(self, progress: float) -> Codec:
        """Step down: int8 for the first half, int4 for the second."""
        return Int8() if progress < 0.5 else Int4()


class Int2(FewBitCodec):
    """Four levels in a Hadamard-rotated block: 0.258 bytes per element.

    The randomized rotation is that of "Distributed Mean Estimation with Limited Communication",
    Suresh et al., ICML 2017, section 3.
    """

    name: ClassVar[str] = "int2"

    def denser(self) -> Codec | None:  # noqa: D102
        return Int4()


class Sign(FewBitCodec):
    """Signs and the mean magnitude of a Hadamard-rotated block: 0.133 bytes per element.

    "Error Feedback Fixes SignSGD", Karimireddy et al., ICML 2019, in a rotated basis as
    :class:`Int2`.
    """

    name: ClassVar[str] = "sign"

    def denser(self) -> Codec | None:  # noqa: D102
        return Int2(seed=self.seed)


DENSE_CODECS: dict[str, type[DenseCodec]] = {
    dense.name: dense for dense in (Fp32, Bf16, Fp16, Fp8, Int8, Int4, Int2, Sign)
}
# The native layer's list decides which codecs there are; one without a class above gets one here.
for _name in _FORMATS.keys() - DENSE_CODECS.keys():
    DENSE_CODECS[_name] = type(_name.capitalize(), (DenseCodec,), {"name": _name})
