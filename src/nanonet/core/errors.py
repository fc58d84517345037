"""The errors that NanoNet raises on purpose. Each message is one line: what, where, what to do.

::

    NanoNetError
    ├── ConfigError       a setting that is unknown, out of range or contradicts another
    ├── DataError         a file, row or label that cannot be used
    ├── BackboneError     a pretrained encoder that cannot be found, verified or loaded
    ├── RunError          a run folder that is missing, unfinished or does not fit
    ├── BundleError       a bundle that is missing, altered or of another format
    ├── MissingExtraError a command that needs a package outside the base install
    └── InterruptedRunError  work that was stopped on request and can be resumed

The command line prints ``error: <message>`` and exits with ``exit_code``.
"""


class NanoNetError(Exception):
    """Base class: catch this to catch everything that NanoNet raises on purpose."""

    exit_code = 1


class ConfigError(NanoNetError):
    """A setting is unknown, out of range or contradicts another."""

    exit_code = 2


class DataError(NanoNetError):
    """A file, row or label cannot be used; the message names it."""


class BackboneError(NanoNetError):
    """A pretrained encoder cannot be found, verified or loaded."""


class RunError(NanoNetError):
    """A run folder is missing, unfinished or does not fit the request."""


class BundleError(NanoNetError):
    """A bundle is missing, altered or of another format."""


class InterruptedRunError(NanoNetError):
    """Work was stopped on request (Ctrl-C or a time limit) and can be resumed."""

    exit_code = 130


class MissingExtraError(NanoNetError):
    """A command needs a package that the base install leaves out."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs the extra '{extra}': pip install 'nanonet[{extra}]'")
        self.extra = extra
