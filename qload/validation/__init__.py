"""Finds what is wrong with a checkpoint from its config and headers, without torch."""

from qload.validation.report import Report, validate

__all__ = ["Report", "validate"]
