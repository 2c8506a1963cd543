"""The race's statistics: pure functions of numbers, no training, no files."""

from schuss.lab.statistics.claims import claims_of
from schuss.lab.statistics.compare import (
    Comparison,
    Ranking,
    mean_interval,
    median_interval,
    paired_differences,
    paired_interval,
    rank,
)
from schuss.lab.statistics.costs import (
    cost_to_target,
    fixed_targets,
    pairwise_profiles,
    performance_profiles,
    time_to_target,
)
from schuss.lab.statistics.sampling import Range, sample
from schuss.lab.statistics.tuning import budget_curve, edges, lr_basin

__all__ = [
    "Comparison",
    "Range",
    "Ranking",
    "budget_curve",
    "claims_of",
    "cost_to_target",
    "edges",
    "fixed_targets",
    "lr_basin",
    "mean_interval",
    "median_interval",
    "paired_differences",
    "paired_interval",
    "pairwise_profiles",
    "performance_profiles",
    "rank",
    "sample",
    "time_to_target",
]
