"""The errors of the package: each names the argument or file, what was expected, what came, and the cure."""

from __future__ import annotations


class PpcmiError(ValueError):
    """Base of every error that the package raises on purpose about input, files or messages."""


class DataError(PpcmiError):
    """A data folder, an image, a mask or a split cannot be used."""


class KeyFileError(PpcmiError):
    """A key file has the wrong length or mode, or cannot be written."""


class WireError(PpcmiError):
    """A message is truncated, altered, or of another version, federation or epoch."""


class ConfigError(PpcmiError):
    """A setting is missing, unknown or contradicts another."""


class RunError(PpcmiError):
    """A run folder cannot be started, resumed or read."""
