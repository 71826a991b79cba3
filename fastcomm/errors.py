"""Every error that fastcomm raises. Each message names the offending value and the fix."""


class Error(RuntimeError):
    """Base class of all fastcomm errors; raised itself when an exchange fails."""


class ArgumentError(Error, ValueError):
    """A value given by the caller cannot work: codec, density, dtype, device, model."""


class MismatchError(Error):
    """The ranks disagree on the codec or another setting; raised on every rank."""


class PeerError(Error):
    """Another rank has ended, was silent for too long, or an earlier exchange failed somewhere.

    The ranks are out of step then: restart from a checkpoint.
    """


class PayloadError(Error):
    """A received payload is damaged, foreign, or out of step with this rank."""


def described(error: Exception) -> tuple[str, str]:
    """Return the name of the class above that stands for an error, and the message."""
    if isinstance(error, Error):
        return type(error).__name__, str(error)
    return Error.__name__, f"{type(error).__name__}: {error}"
