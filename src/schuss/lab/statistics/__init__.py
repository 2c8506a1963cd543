"""The race's statistics: pure functions of numbers, no training, no files."""

from schuss.lab.statistics.basin import Basin, at_edge, edges, lr_basin
from schuss.lab.statistics.budget import BudgetCurve, budget_curve, expected_best
from schuss.lab.statistics.claims import Claim, claims, claims_of
from schuss.lab.statistics.compare import (
    Comparison,
    Interval,
    Place,
    Ranking,
    as_losses,
    compare_with_leader,
    mean_interval,
    median_interval,
    paired_differences,
    paired_interval,
    rank,
)
from schuss.lab.statistics.numbers import RunNumbers, numbers_of
from schuss.lab.statistics.profiles import Profiles, cost_ratios, pairwise_profiles, performance_profiles
from schuss.lab.statistics.sampling import Range, sample
from schuss.lab.statistics.targets import (
    TimeToTarget,
    cost_to_target,
    first_reached,
    fixed_targets,
    time_to_target,
)

__all__ = [
    "Basin",
    "BudgetCurve",
    "Claim",
    "Comparison",
    "Interval",
    "Place",
    "Profiles",
    "Range",
    "Ranking",
    "RunNumbers",
    "TimeToTarget",
    "as_losses",
    "at_edge",
    "budget_curve",
    "claims",
    "claims_of",
    "compare_with_leader",
    "cost_ratios",
    "cost_to_target",
    "edges",
    "expected_best",
    "first_reached",
    "fixed_targets",
    "lr_basin",
    "mean_interval",
    "median_interval",
    "numbers_of",
    "paired_differences",
    "paired_interval",
    "pairwise_profiles",
    "performance_profiles",
    "rank",
    "sample",
    "time_to_target",
]
