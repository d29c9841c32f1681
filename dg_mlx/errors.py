"""The errors a user can fix. Each message says what is wrong, the value, and the fix.

The command line prints them as one line and exits 1; a traceback means a bug of ours.
"""


class DGError(Exception):
    """Base of every error that the user can fix."""


class CheckpointError(DGError):
    """A checkpoint's config or weights are missing, broken or of another architecture."""


class HubError(DGError):
    """A model could not be found or fetched."""


class SettingsError(DGError):
    """A generation setting is out of range or unknown."""


class PromptError(DGError):
    """Messages cannot be turned into a prompt, or the prompt is longer than the context."""


class MediaError(DGError):
    """A picture or a video cannot be read."""


class BackendError(DGError):
    """The asked-for device cannot be used here."""


class MemoryLimitError(DGError):
    """A model or a context does not fit into this machine's memory or disk."""


class MissingPackageError(DGError):
    """An optional package is needed; the message names the pip command."""


class ConstraintError(DGError):
    """A constraint that cannot be met or is not supported."""


class PinError(DGError):
    """A pinned token cannot be held where it is asked for."""


class EditError(DGError):
    """A file cannot be edited, or the spans to edit are not in it."""


class StoppedError(DGError):
    """What was going on was told to stop, and has no result."""


class ConversationError(DGError):
    """A conversation has no such message, or cannot be changed so now."""


class StoreError(DGError):
    """A conversation cannot be saved or loaded."""


class BusyError(DGError):
    """What is to change is in use; it can be done once that is over."""
