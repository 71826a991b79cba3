"""Checks of a saved state, before any of it is used: files get damaged, mixed up and edited."""

from __future__ import annotations

import ctypes
import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from fastcomm.errors import ArgumentError

_MOST_STEPS = 1 << 62
_MOST_LEVELS = 64  # more than there are codecs


def checksum(values: Iterable[torch.Tensor]) -> int:
    """Return a sum of the CRC-32 of each tensor, in any order and by any name."""
    return sum(_crc32(of_one) for of_one in values) & 0xFFFFFFFF


def check_state(state: Any) -> None:
    """Check one rank's state.

    Raises:
        ArgumentError: for the first field that is missing, of another kind than was saved, out of
            range, not finite, or changed since.
    """
    if not isinstance(state, Mapping):
        raise ArgumentError(f"a state must be a dict, as state_dict() returns, got {_kind(state)}")
    for name, (is_required, is_valid, what) in _FIELDS.items():
        if name not in state:
            if is_required:
                raise ArgumentError(
                    f"the state has no {name!r}; pass what state_dict() of a HookState returned"
                )
        elif not is_valid(state[name]):
            raise ArgumentError(
                f"{name!r} of the state must be {what}, got {_shown(state[name])}; the state is "
                "damaged, or not one of a HookState: load an older checkpoint"
            )
    if len(state.get("rate_groups", [])) != len(state.get("rates", [])):
        raise ArgumentError("the state has not one of 'rates' for each of 'rate_groups'")
    tensors: list[torch.Tensor] = []
    for kind in ("residuals", "velocities"):
        for name, values in state.get(kind, {}).items():
            _check_values(f"{kind} of {name!r}", values)
            tensors.append(values)
    if "checksum" in state and checksum(tensors) != state["checksum"]:
        raise ArgumentError(
            "the residuals of the state are not those that were saved: their checksum is "
            f"{checksum(tensors):#010x} instead of {state['checksum']:#010x}; load an older "
            "checkpoint (with torch.distributed.checkpoint: use fastcomm.sharded_state_dict and "
            "load_sharded_state_dict, which loads all of them)"
        )


def check_states(states: Any) -> None:
    """Check the list of the states of all ranks.

    Raises:
        ArgumentError: for what :func:`check_state` refuses, or if it is no list of the states that
            all ranks saved after the same step.
    """
    if not isinstance(states, (list, tuple)) or not states:
        raise ArgumentError(
            "pass a state, or the list of the states of all ranks that saved one, got "
            f"{_kind(states)}{'' if states else ' without any'}"
        )
    # Others than the first are empty where it is known that this rank takes nothing of them.
    for state in [states[0], *filter(None, states[1:])]:
        check_state(state)
    shards = {state.get("shard") for state in states if state}
    if len(shards) > 1:
        names = ", ".join("all ranks" if shard is None else str(shard) for shard in shards)
        raise ArgumentError(
            f"the states are of different shards of the model ({names}); pass those of one, which "
            "the ranks of one process group have saved"
        )
    ranks = [state["rank"] for state in states if "rank" in state]
    twice = [rank for rank in ranks if ranks.count(rank) > 1]
    if twice:
        raise ArgumentError(
            f"the state of rank {twice[0]} is in the list {ranks.count(twice[0])} times, so that "
            "others are missing; pass the states of all ranks"
        )
    steps = {state["step"] for state in states if state}
    if len(steps) > 1:
        raise ArgumentError(
            f"the states were saved after different steps ({', '.join(map(str, sorted(steps)))}); "
            "pass those of one checkpoint"
        )


def _check_values(what: str, values: Any) -> None:
    if not isinstance(values, torch.Tensor) or not values.is_floating_point():
        raise ArgumentError(
            f"the {what} must be a tensor of float32, got {_shown(values)}; load an older "
            "checkpoint"
        )
    if not values.isfinite().all():
        raise ArgumentError(
            f"the {what} have elements that are not finite, which would never leave the gradients "
            "again; the state is damaged: load an older checkpoint"
        )


def _crc32(values: torch.Tensor) -> int:
    flat = values.detach().cpu().contiguous()
    size = flat.numel() * flat.itemsize
    return zlib.crc32((ctypes.c_char * size).from_address(flat.data_ptr())) if size else 0


def _is_count(most: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and 0 <= value <= most


def _is_number(value: Any) -> bool:
    return isinstance(value, (float, int)) and math.isfinite(value)


def _is_none_or(is_valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or is_valid(value)


def _is_list_of(is_valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (list, tuple)) and all(map(is_valid, value))


def _are_buckets(value: Any) -> bool:
    if not _is_list_of(_is_list_of(lambda name: isinstance(name, str)))(value):
        return False
    names = [name for bucket in value for name in bucket]
    return len(set(names)) == len(names)


def _is_dict_by_name(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of {value.dtype}"
    text = repr(value)
    return text if len(text) < 80 else _kind(value)


_is_pair = _is_list_of(lambda value: isinstance(value, (float, int)))

# Of each field: whether even the oldest states have it, what is valid, and that in words.
_FIELDS: dict[str, tuple[bool, Callable[[Any], bool], str]] = {
    "step": (True, _is_count(_MOST_STEPS), "a number of steps"),
    "world_size": (True, _is_count(1 << 31), "a number of ranks"),
    "residuals": (True, _is_dict_by_name, "a dict by parameter name"),
    "velocities": (False, _is_dict_by_name, "a dict by parameter name"),
    "rank": (False, _is_count(1 << 31), "a rank"),
    "shard": (False, _is_none_or(_is_count(1 << 31)), "None or a rank"),
    "flush_requested": (False, lambda value: isinstance(value, bool), "True or False"),
    "buckets": (False, _are_buckets, "a list of lists of different parameter names"),
    "grad_scale": (
        False,
        _is_none_or(lambda value: _is_number(value) and value > 0),
        "None or a positive number",
    ),
    "guard_level": (False, _is_count(_MOST_LEVELS), f"a level from 0 to {_MOST_LEVELS}"),
    "guard_has_warned": (False, lambda value: isinstance(value, bool), "True or False"),
    "guard_squares": (False, _is_none_or(_is_list_of(_is_pair)), "None or pairs of numbers"),
    "guard_sums": (False, _is_none_or(_is_pair), "None or a pair of numbers"),
    "rate_groups": (False, _is_list_of(_is_count(1 << 31)), "a list of indices"),
    "rates": (False, _is_list_of(lambda value: _is_number(value) and value > 0), "learning rates"),
    "largest_rate": (False, lambda value: _is_number(value) and value >= 0, "a learning rate"),
    "checksum": (False, _is_count(0xFFFFFFFF), "a CRC-32"),
}
