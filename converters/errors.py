"""Errors of the converters: each message names the thing, what was found, what was expected, the next step."""


class ConvertError(Exception):
    """A checkpoint, data set or graph that cannot become a bundle; the command ends with exit code 1."""


class QuantizeError(ConvertError):
    """Quantization was asked for something the graph or the calibration images cannot give."""


class PackageError(ConvertError):
    """A bundle folder that cannot be written or is not complete."""


class CheckpointError(ConvertError):
    """A checkpoint that is not what it claims, holds what we cannot convert, or wants to run code."""
