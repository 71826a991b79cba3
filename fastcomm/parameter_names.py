"""The names of a model's parameters, without what wrappers put into them.

A model that was compiled, or whose activations are checkpointed, calls the same parameter by
another name. Policies and saved states mean the parameter, whichever way it is run today.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

# What torch.compile and PyTorch's wrappers of submodules call the module in them.
_INSERTED = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")


def own_name(name: str) -> str:
    """Return a parameter's name without what wrappers of modules insert."""
    for inserted in _INSERTED:
        name = name.replace(inserted, "")
    return name


def named_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield (name, parameter) of all parameters, as ``module.named_parameters()`` does.

    The names are those without wrappers, unless two parameters would have the same one.
    """
    named = dict(module.named_parameters())
    short = [own_name(name) for name in named]
    names = short if len(set(short)) == len(named) else list(named)
    yield from zip(names, named.values(), strict=True)
