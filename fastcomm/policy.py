"""Which codec each parameter gets.

Three rules, the first that says something about a parameter decides:

1. One-dimensional parameters (biases, norms) and small ones are sent as float32: they are few
   bytes, and large errors in them hurt.
2. ``policy`` has a pattern that matches the parameter's name: the first that does.
3. Without a policy, codecs that send little (``int2``, ``sign``, ``topk``) leave embeddings, norms
   and the head alone: rows of an embedding get gradients rarely, and the head's are the largest of
   the model. They are sent as float32; as ``int8`` where they are more than a sixteenth of the
   model, whose bytes they would then dominate.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping

import torch
from torch import nn

from fastcomm.codecs import Codec, Fp32, Int8
from fastcomm.codecs import codec as parse_codec
from fastcomm.errors import ArgumentError

_LARGEST_SHARE_AS_FP32 = 1 / 16

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_MATRICES = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd)


class Policy:
    """The codecs of a model's parameters.

    Args:
        codec: for parameters that no pattern matches.
        patterns: codecs or their names by shell pattern (``*``, ``?``, ``[…]``) of parameter names,
            as ``module.named_parameters()`` has them; the first that matches counts.
        min_compress_elements: smaller parameters are sent as float32.

    Raises:
        ArgumentError: for a codec that does not exist.
    """

    def __init__(
        self,
        codec: Codec,
        patterns: Mapping[str, str | Codec] | None,
        min_compress_elements: int,
    ) -> None:
        if patterns is not None and not isinstance(patterns, Mapping):
            raise ArgumentError(
                f"policy must be a dict from patterns to codecs, got {type(patterns).__name__}; "
                'use for instance policy={"embed*": "int8", "*": "topk:0.01"}'
            )
        self._codec = codec
        self._patterns = (
            None
            if patterns is None
            else {pattern: parse_codec(its) for pattern, its in patterns.items()}
        )
        self._min_compress_elements = min_compress_elements
        self._of_parameter: dict[int, Codec] = {}  # by id, where rules 2 and 3 say something

    def __str__(self) -> str:
        if self._patterns is None:
            return "default"
        return ", ".join(f"{pattern}: {codec}" for pattern, codec in self._patterns.items())

    @property
    def needs_names(self) -> bool:
        """Whether it cannot be used before :meth:`attach`."""
        return self._patterns is not None and not self._of_parameter

    def codecs(self) -> list[Codec]:
        """Return all codecs that a parameter may get, float32 apart."""
        return [self._codec, *(self._patterns or {}).values()]

    def attach(self, module: nn.Module) -> None:
        """Learn the names of the parameters, and what they are for.

        Raises:
            ArgumentError: if a pattern matches no parameter.
        """
        if self._patterns is not None:
            self._attach_patterns(module, self._patterns)
        elif self._codec.sends_little:
            self._of_parameter = _protected(module)

    def codec_of(self, parameter: torch.Tensor) -> Codec:
        """Return the codec of a parameter."""
        if parameter.dim() <= 1 or parameter.numel() < self._min_compress_elements:
            return Fp32()
        return self._of_parameter.get(id(parameter), self._codec)

    def _attach_patterns(self, module: nn.Module, patterns: dict[str, Codec]) -> None:
        parameters = dict(module.named_parameters())
        unused = dict.fromkeys(patterns)
        for name, parameter in parameters.items():
            for pattern in patterns:
                if fnmatch.fnmatchcase(name, pattern):
                    self._of_parameter[id(parameter)] = patterns[pattern]
                    unused.pop(pattern, None)
                    break
            else:
                self._of_parameter[id(parameter)] = self._codec
        # A last "*" for whatever there may be besides is no mistake.
        unused.pop("*", None)
        if unused:
            raise ArgumentError(
                f"policy: the pattern {next(iter(unused))!r} is no parameter's first match; the "
                f"parameters are {', '.join(parameters)}"
            )


def _protected(module: nn.Module) -> dict[int, Codec]:
    """Return the codecs of what codecs that send little leave alone, by id."""
    protected: dict[int, torch.Tensor] = {}
    head: torch.Tensor | None = None
    num_matrices = 0
    for part in module.modules():
        if isinstance(part, _EMBEDDINGS) or "Norm" in type(part).__name__:
            own = part.parameters(recurse=False)
            protected.update({id(parameter): parameter for parameter in own})
        elif isinstance(part, _MATRICES) and part.weight.requires_grad:
            head = part.weight
            num_matrices += 1
    if head is not None and num_matrices > 1:
        protected[id(head)] = head
    num_elements = sum(parameter.numel() for parameter in module.parameters())
    num_protected = sum(parameter.numel() for parameter in protected.values())
    is_small = num_protected <= _LARGEST_SHARE_AS_FP32 * num_elements
    return dict.fromkeys(protected, Fp32() if is_small else Int8())
