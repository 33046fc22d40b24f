"""Errors that a user can mend.

The command line prints a `UserError` as one sentence and leaves with exit code 2; anything else is a bug of ours
and keeps its traceback. Every message says what was found, what was expected, where, and what to do next.
"""


class UserError(Exception):
    """The base of everything that the reader of the message can mend."""


class ConfigError(UserError):
    """A preset or an override that does not fit: unknown key, wrong type, impossible combination."""


class DataError(UserError):
    """A dataset or an image folder that is not what it should be."""


class ArtifactError(UserError):
    """A folder of ours that is missing, of another kind, damaged, or in the way."""


class MissingExtraError(UserError):
    """An optional package is needed; the message names the extra that brings it."""


class DivergedError(UserError):
    """Training met a loss that is not finite; the message names step, learning rate and last checkpoint."""
