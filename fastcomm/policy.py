"""Which codec each parameter gets.

Three rules, the first that says something about a parameter decides:

1. One-dimensional parameters (biases, norms) and small ones are sent as float32: they are few
   bytes, and large errors in them hurt.
2. ``policy`` has a pattern that matches the parameter's name: the first that does.
3. Without a policy, codecs that send little (``int2``, ``sign``, ``topk``) spare embeddings, norms
   and the head, the last layer: rows of an embedding get gradients rarely, and the head's are the
   largest of the model. These are sent as float32, or else as ``int8``, as long as that takes no
   more than a share of the bytes of all other parameters: all of it with the first two, a quarter
   with ``topk``, which selects what is large anyway. Where both take more, they get the codec.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping

import torch
from torch import nn

from fastcomm.codecs import Codec, Fp32, Int8
from fastcomm.codecs import codec as parse_codec
from fastcomm.errors import ArgumentError
from fastcomm.parameter_names import named_parameters

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_MATRICES = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd)


class Policy:
    """The codecs of a model's parameters.

    Args:
        codec: for parameters that no pattern matches.
        patterns: codecs or their names by shell pattern (``*``, ``?``, ``[…]``) of parameter names,
            as ``module.named_parameters()`` has them, without what wrappers put into
            them (``_orig_mod.``); the first that matches counts.
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
        self.min_compress_elements = min_compress_elements
        self._of_parameter: dict[int, Codec] = {}  # by id, where rules 2 and 3 say something

    def __str__(self) -> str:
        if self._patterns is None:
            return "default"
        return ", ".join(f"{pattern}: {codec}" for pattern, codec in self._patterns.items())

    @property
    def is_default(self) -> bool:
        """Whether no patterns were given."""
        return self._patterns is None

    @property
    def needs_names(self) -> bool:
        """Whether it cannot be used before :meth:`attach`."""
        return bool(self._patterns) and not self._of_parameter

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
        elif self._codec.spared_share:
            self._of_parameter = self._spared(module)

    def codec_of(self, parameter: torch.Tensor) -> Codec:
        """Return the codec of a parameter."""
        if not self._is_large(parameter):
            return Fp32()
        return self._of_parameter.get(id(parameter), self._codec)

    def _attach_patterns(self, module: nn.Module, patterns: dict[str, Codec]) -> None:
        parameters = dict(named_parameters(module))
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

    def _spared(self, module: nn.Module) -> dict[int, Codec]:
        """Return the codec, by id, of what is spared this policy's codec."""
        spared = {id(p): p for p in spared_parameters(module) if self._is_large(p)}
        num_others = sum(
            parameter.numel()
            for parameter in module.parameters()
            if parameter.requires_grad and id(parameter) not in spared and self._is_large(parameter)
        )
        num_bytes = self._codec.wire_bytes(num_others) if num_others else 0
        num_spared = sum(parameter.numel() for parameter in spared.values())
        for codec in (Fp32(), Int8()):
            if codec.wire_bytes(num_spared) <= self._codec.spared_share * num_bytes:
                return dict.fromkeys(spared, codec)
        return {}

    def _is_large(self, parameter: torch.Tensor) -> bool:
        return parameter.dim() > 1 and parameter.numel() >= self.min_compress_elements


def spared_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of embeddings, norms and the head."""
    spared: list[nn.Parameter] = []
    matrices: list[nn.Parameter] = []
    for part in module.modules():
        own = [parameter for parameter in part.parameters(recurse=False) if parameter.requires_grad]
        if isinstance(part, _EMBEDDINGS) or "Norm" in type(part).__name__:
            spared += own
        elif isinstance(part, _MATRICES):
            matrices += [parameter for parameter in own if parameter.dim() > 1]
    # The only layer of a model is all that there is to compress.
    return spared + matrices[-1:] if len(matrices) > 1 else spared
