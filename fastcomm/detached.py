"""What a copy of a DDP model has in place of a hook's state.

DDP's reducer, which calls the hook, is made anew for a copy, and has none: the copy synchronizes
uncompressed gradients. Connections cannot be copied either.
"""

import warnings


class DetachedHookState:
    """Stands for a :class:`HookState` in a pickled or deep-copied DDP model."""

    def __reduce__(self) -> tuple[object, ...]:
        return (detached_hook_state, ())


def detached_hook_state() -> DetachedHookState:
    """Make one, with a warning; pickle and copy call this."""
    warnings.warn(
        "the communication hook of a DDP model is not copied with it: the copy synchronizes "
        "uncompressed gradients until you call fastcomm.register(copy); what the residuals of the "
        "original hold stays there",
        stacklevel=2,
    )
    return DetachedHookState()
