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
