"""Checkpoints in repositories of the Hugging Face hub: their headers alone, by range requests."""

from qload.hub.addresses import Address, read_address
from qload.hub.answers import TransferError
from qload.hub.limits import Limits
from qload.hub.repository import Repository, open_repository

__all__ = ["Address", "Limits", "Repository", "TransferError", "open_repository", "read_address"]
