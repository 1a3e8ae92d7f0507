"""What each rank of a tensor-parallel load reads and holds, from a checkpoint's config and headers, without torch."""

from qload.preview.answers import Group, Obstacle, RankPlans, Share, SizePlan, Split
from qload.preview.planning import plan_ranks

__all__ = ["Group", "Obstacle", "RankPlans", "Share", "SizePlan", "Split", "plan_ranks"]
