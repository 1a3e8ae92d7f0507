"""One plan for validating, previewing and loading: declarations and headers into copies and findings."""

from qload.plan.copies import Copy, Slot
from qload.plan.planner import LayerPlan, Plan, find_faults, make_plan
from qload.plan.targets import PlainTarget, Source, Target

__all__ = ["Copy", "LayerPlan", "PlainTarget", "Plan", "Slot", "Source", "Target", "find_faults", "make_plan"]
