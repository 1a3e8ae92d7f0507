"""Transformers models with qload's layers in them: built, matched with a checkpoint's names, replaced, tied, loaded."""

from qload.torch.models.loading import load, report

__all__ = ["load", "report"]
