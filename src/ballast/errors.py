"""What can go wrong at a user's desk, one class per room.

Every message is one sentence that says what is wrong and what to do about it; the command line prints it.
"""


class BallastError(Exception):
    """Base of every error that a user can cause or mend."""


class UsageError(BallastError):
    """An argument is out of its range or two arguments do not fit each other."""


class PromptError(BallastError):
    """A prompt set is missing, empty, malformed or does not fit the model."""


class ModelError(BallastError):
    """A checkpoint cannot be opened or is not what it claims to be."""


class JudgeError(BallastError):
    """A judge is unknown or cannot be loaded."""


class RegionError(BallastError):
    """A region is empty, damaged, or belongs to another model."""


class PatchError(BallastError):
    """A patch is damaged or belongs to another model."""


class ProtectionError(BallastError):
    """Weights that were to be protected are not."""


class RunError(BallastError):
    """A run directory cannot be written, continued or read."""


class NumericalError(BallastError):
    """A loss, a gradient or a score is not a finite number."""
