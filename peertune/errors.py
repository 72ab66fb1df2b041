"""What can go wrong, as seen by a user.

PeertuneError
 +- ConfigError    bad input: configuration, models, data, run names; nothing has been trained
 |   +- MethodError    the agents do not fit the chosen method
 |   +- StorageError   the disk refuses to read or write
 |       +- DamagedError   what was stored is gone or is not what was stored
 +- AgentError     one agent could not answer one call; the others go on
 +- PayloadError   bytes that are not a valid payload
 +- SealError      a sealed message, a receipt or a key that cannot be trusted
     +- ChangedKeyError   a party shows other keys than those that are pinned: the run stops

Each message says what was expected, what was found and what to do.
"""


class PeertuneError(Exception):
    """Base of all errors that a user can meet; `exit_code` is what the command returns."""

    exit_code = 1
    code = "error"  # what a coordinator may know of an agent's error, beside one line


class ConfigError(PeertuneError):
    """Input that cannot be used. Nothing was changed."""

    exit_code = 2


class MethodError(ConfigError):
    """The agents of this federation do not fit the chosen method."""


class StorageError(ConfigError):
    """A file of the run cannot be read or written; the last complete round is safe."""

    code = "storage"


class DamagedError(StorageError):
    """A stored file is missing, or its content is not what was stored: an older one must do."""

    code = "damaged"


class PayloadError(PeertuneError):
    """Bytes that do not decode to a valid payload."""


class SealError(PeertuneError):
    """A sealed message, a receipt or a key that cannot be trusted. Nothing of it was used."""

    code = "seal"


class ChangedKeyError(SealError):
    """A party shows other keys than those that are pinned for it. The run must not go on."""

    exit_code = 2
    code = "changed_key"


class AgentError(PeertuneError):
    """`agent` could not answer `verb`: `cause` is one line without private text; the traceback stays with the agent."""

    def __init__(self, agent: str, verb: str, cause: str, code: str = "error") -> None:
        super().__init__(f"{agent}.{verb} failed: {cause}")
        self.agent, self.verb, self.cause, self.code = agent, verb, cause, code
