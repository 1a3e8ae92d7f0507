"""Mends what JSON files say of a checkpoint: its index, and its config. Never touches a tensor."""

from qload.repair.planning import plan_repairs
from qload.repair.repairs import Repair
from qload.repair.writing import apply

__all__ = ["Repair", "apply", "plan_repairs"]
"""What is offered: a plan of changes, each with its `diff`, and what makes them."""
