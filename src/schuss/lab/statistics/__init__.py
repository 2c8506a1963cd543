"""The race's statistics: pure functions of numbers, no training, no files."""

from schuss.lab.statistics.basin import edges, lr_basin
from schuss.lab.statistics.budget import budget_curve
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
from schuss.lab.statistics.profiles import pairwise_profiles, performance_profiles
from schuss.lab.statistics.sampling import Range, sample
from schuss.lab.statistics.targets import cost_to_target, fixed_targets, time_to_target

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
