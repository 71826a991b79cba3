"""The codec of a step: dense at first, where a codec sends little.

In the first steps gradients are large and change fast; what a residual delivers late does most
harm then. "Deep Gradient Compression", Lin et al., ICLR 2018, section 3.3.
"""

from __future__ import annotations

from collections.abc import Iterable

from fastcomm.codecs import Codec
from fastcomm.errors import ArgumentError


class WarmUp:
    """How codecs step down to what they are to be.

    Args:
        num_steps: of the warm-up; None: what each codec has by default.
        codecs: of which there is at least one.

    Raises:
        ArgumentError: for a negative number of steps.
    """

    def __init__(self, num_steps: int | None, codecs: Iterable[Codec]) -> None:
        if num_steps is not None and num_steps < 0:
            raise ArgumentError(
                f"warmup_steps {num_steps} is negative; leave it out for each codec's default, or "
                "use 0 for none"
            )
        self._num_steps = num_steps
        self.num_steps = max(self._steps_of(codec) for codec in codecs)

    def codec_at(self, codec: Codec, step: int) -> Codec:
        """Return what to use in place of ``codec`` in a step, counted from 0."""
        num_steps = self._steps_of(codec)
        return codec.at_warmup(step / num_steps) if step < num_steps else codec

    def _steps_of(self, codec: Codec) -> int:
        return codec.default_warmup_steps if self._num_steps is None else self._num_steps
