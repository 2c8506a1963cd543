"""What `report.json` holds, field by field: the contract between the race and the page that shows it.

The file is strict JSON: a number that is not finite is `null`, and so is a cost that was never paid because
the target was not reached. Measured wall-clock times stand only under keys named `seconds`; with those left
out, two reports of the same race are equal byte for byte, whatever ran it, in whatever order, however often
it was interrupted.

Words. An *entry* is an optimizer with a schedule and a batch size; it has a name that is unique in the
report ("adam", "adam + cosine", "sgd, batch 32"). A *configuration* is one point of an entry's search
space. A *run* trains one configuration from one seed over the horizon. A *cost* is counted on four axes:
`steps`, `examples`, `gradients` (forward + backward = 1) and `seconds` (steps × the entry's calibrated
step).

Stages. "tune" runs share one seed; "confirm" runs use fresh seeds; "report" runs use fresh seeds again and
are the only ones with a `test` result. Everything that ranks or judges rests on the "report" runs.
"""

from typing import Any, Literal, NotRequired, TypedDict

from schuss.lab.statistics.claims import Claim
from schuss.lab.statistics.compare import IntervalDict

Stage = Literal["tune", "confirm", "report"]
Status = Literal["finished", "diverged", "crashed"]
Axis = Literal["steps", "examples", "gradients", "seconds"]
Number = float | None
Step = dict[Literal["seconds"], Number]  # the median of calibrated single steps, alone on the machine
Cost = dict[Axis, Number]  # null where it is infinite (not reached)


class Spread(TypedDict):
    """Numbers over seeds: their mean, and their median with the interval that order statistics give.

    The interval covers the median of any distribution with at least `coverage` (0.95 or more; 0.9375 with five
    seeds). Fewer than five seeds give none: `low`, `high` and `coverage` are null.
    """

    mean: Number
    median: Number
    low: Number
    high: Number
    coverage: Number
    sd: Number
    n: int


class EntryReport(TypedDict):
    """One optimizer with its schedule and batch size, and the space that was searched for it."""

    name: str
    optimizer: str  # "adam", or "file.py:Name" for the user's own
    schedule: str  # "constant", "cosine", "warmup+cosine", ...
    batch_size: int
    # As searched in the end, by hyperparameter ("lr", "1 - beta1", ...). `log`: uniformly in its logarithm.
    space: dict[str, dict[Literal["low", "high", "log"], float | bool]]
    fixed: dict[str, float | bool | str]  # what was not searched
    trials: int  # configurations tuned, the same for every entry
    widened: list[str]  # dimensions that the edge rule widened by a decade
    space_limited: list[str]  # dimensions whose best value still lies in the outer 10 % of its range
    parameters: int  # weights of the model
    bytes_per_weight: Number  # of optimizer state
    step: Step


class ConfigurationReport(TypedDict):
    """One point of an entry's space, with what tuning and confirming said about it."""

    id: str
    entry: str
    index: int  # 0, 1, 2, ... in the entry's sequence
    parameters: dict[str, float]  # by the names of `EntryReport.space`
    tune: Number  # validation metric at the horizon of the tuning run; null if it diverged or crashed
    confirm: Spread | None  # over the confirming seeds; null if it was not among the best of tuning
    chosen: bool  # this one went on to the report stage


class Curve(TypedDict):
    """Columns of equal length, one row per evaluation, beginning before the first step."""

    steps: list[int]
    examples: list[int]
    gradients: list[int]
    train_loss: list[Number]
    validation_loss: list[Number]
    metric: list[Number]  # on the validation split
    lr: list[Number]  # as scheduled for the step just taken
    effective_rate: list[Number]  # rms(change of w) / rms(gradient) of the step just taken


class Divergence(TypedDict):
    """Where and why a run was stopped."""

    step: int
    reason: str  # "the loss was not finite" | "the loss stayed above its start for a fifth of the horizon"


class RunReport(TypedDict):
    """One training run; the losses and the metric are the last of its curve, null if it diverged or crashed."""

    id: str
    entry: str
    configuration: str  # ConfigurationReport.id
    stage: Stage
    seed: int
    status: Status
    parameters: dict[str, float]
    steps: int
    examples: int
    gradients: int
    train_loss: Number
    validation_loss: Number
    metric: Number
    test: dict[Literal["loss", "metric"], Number] | None  # only for finished "report" runs
    curve: Curve
    divergence: Divergence | None
    error: str | None  # the traceback of a crashed run
    command: str  # repeats this run and prints its numbers
    seconds: Number  # under whatever contention there was: for progress only, never for ranking


class Stopped(TypedDict):
    """A run that diverged or crashed, in short."""

    run: str
    entry: str
    stage: Stage
    seed: int
    parameters: dict[str, float]


class Diverged(Stopped, Divergence):
    """A diverged run."""


class Crashed(Stopped):
    """A run that raised, twice."""

    error: str


class Sensitivity(TypedDict):
    """The basin over the learning rate, from the tuning runs, sorted by `lr`."""

    lr: list[float]
    metric: list[Number]  # null: diverged or crashed
    status: list[Status]
    best_lr: Number
    low: Number  # from here ...
    high: Number  # ... to here the metric is within 5 % of the best (of the way from the start to the best)
    decades: Number  # log10(high / low)


class RankingRow(TypedDict):
    """One line of the final table. All numbers over the report stage's seeds at the chosen configuration."""

    rank: int  # 1 for all that tie with the leader; else one more than the number of entries that are better
    tied: bool  # other entries have this rank too
    entry: str
    configuration: str
    parameters: dict[str, float]
    metric: Spread  # validation; a diverged run counts with the untrained model's metric
    test_metric: Spread
    validation_loss: Spread
    train_loss: Spread
    cost: Cost  # median cost to the ranking target (the one marked `ranking` in `targets`)
    ert: Cost  # expected running time: total cost of all runs / successes
    reached: float  # fraction of seeds that reached that target
    sensitivity: Number  # Sensitivity.decades
    bytes_per_weight: Number
    step: Step


class Comparison(TypedDict):
    """The leader against one other entry, paired by seed; adjusted for all pairs, as the data chose the leader.

    All of it but `test` is over seeds on the one validation split. Its sign can be another on the test split;
    `test_agrees` says whether it is not.
    """

    leader: str
    other: str
    unit: str  # of the difference: the metric's name, or "log ratio of steps" ...
    difference: IntervalDict  # leader − other, turned so that positive is in the leader's favour
    adjusted_low: Number  # the simultaneous 95 % interval
    adjusted_high: Number
    p: Number
    p_adjusted: Number
    verdict: Literal["better", "tie"]
    seeds_needed: int | None  # further seeds that would settle a tie; null when better, or when none would
    settles_as: Literal["better", "equal"] | None  # what those further seeds would show
    gap_needed: Number  # one seed-sd (or 5 % of cost): a smaller gap is a tie whatever the interval says
    test: IntervalDict | None  # the same difference on the test split, not adjusted; null when ranked by cost
    test_agrees: bool | None  # false: on test the other is ahead; null when not measured, or exactly equal


class Verdict(TypedDict):
    """The race in a few sentences, and what they rest on."""

    headline: str  # "Decided", "A tie", "Not decided: ..."
    text: str
    notes: list[str]  # what the intervals are over, where test disagrees, why an order looks odd
    winner: str | None  # null when nothing finished
    kind: Literal["better", "unsure", "tie", "none"]  # unsure: too few trials, or test has the other sign
    tied: list[str]  # entries tied with the leader, without the leader
    take: str | None  # the winner, or the cheapest of the tied
    rank_by: Literal["metric"] | Axis
    comparisons: list[Comparison]


class BudgetCurve(TypedDict):
    """Expected best validation metric of n trials drawn from the tuning pool, n = 1 .. N (unbiased)."""

    n: list[int]
    expected: list[Number]
    low: list[Number]  # 95 % jackknife interval; null beyond n = N/2, where one pool ...
    high: list[Number]  # ... cannot say how much another would differ


class TargetEntry(TypedDict):
    """How one entry did against one target, over the report stage's seeds."""

    reached: int
    n: int
    median: Cost
    ert: Cost
    seeds: list[int]
    times: dict[Axis, list[Number]]  # cost to the target by seed, in the order of `seeds`


class Target(TypedDict):
    """A value of the validation metric, fixed after confirming: start + q · (best median − start)."""

    q: float  # 0.5, 0.9, 1.0
    value: float
    ranking: bool  # costs in the ranking refer to this one
    entries: dict[str, TargetEntry]


class Metric(TypedDict):
    """What decides. `best` is "max" for accuracies and "min" for losses."""

    name: str
    best: Literal["max", "min"]
    bounds: list[Number]  # [lowest, highest] possible value, as far as known; [0, 1] for an accuracy


class Curvature(TypedDict):
    """What was measured of the winner's curvature along a run of its own (`--diagnose`)."""

    entry: str
    parameters: dict[str, float]
    schedule: str
    steps: int
    seed: int
    examples: int  # training examples on which curvature was measured
    products: int  # Hessian-vector products for each eigenvalue, at most
    caveat: str  # what the marks in `bounds` mean, "" if there are none
    text: str  # sharpness against its limit, spread and noise, in words
    # Step, loss, largest, smallest, sharpness, limit, largest_lr, dial, residuals; and as `bounds` the "≥ " or "≤ "
    # before largest, smallest, sharpness and dial, and largest_lr, where they had not converged.
    looks: list[dict[str, Any]]
    conditioning: dict[str, Any] | None  # value, largest, against, how
    noise: list[dict[str, Any]]  # step, simple, low, high (None: no bound), batches
    sparsity: dict[str, float] | None  # zeros, empty_rows, spread
    advice: list[dict[str, str]]  # topic, take, because, sure, command
    missing: dict[str, str]  # what could not be measured, and why
    seconds: dict[str, Any]  # all that rests on measured times: `steps` and the `advice` on batch size


class TaskReport(TypedDict):
    """Everything about one task. Lists of entries are in the order given; dicts by entry use their names."""

    name: str
    spec: str  # as given: "digits", "quadratic:kappa=1000", "my_task.py"
    description: str
    metric: Metric
    optimum: Number  # the lowest possible training loss, where it is known
    parameters: int  # weights of the model
    batch_size: int
    horizon: dict[Literal["steps", "examples", "gradients"], int]  # of every run, at the task's batch size
    evaluations: int  # rows of a full curve, less the one before the first step
    # Examples in each split (null: a stream without length, or no data) and how they were made.
    splits: dict[Literal["train", "validation", "test", "how"], int | str | None]
    fingerprint: str  # of model, data and code
    entries: list[EntryReport]
    configurations: list[ConfigurationReport]
    runs: list[RunReport]  # sorted by entry, stage, configuration, seed
    ranking: list[RankingRow]  # in the order of the means, best first
    verdict: Verdict
    budget_curves: dict[str, BudgetCurve]
    targets: list[Target]
    sensitivity: dict[str, Sensitivity]
    claims: list[Claim]
    diverged: list[Diverged]
    crashed: list[Crashed]
    # Each entry's best settings: Python code to paste, and the command that repeats its report runs.
    settings: list[dict[Literal["entry", "code", "command"], str]]
    curvature: NotRequired[Curvature]  # with `--diagnose`


class Profiles(TypedDict):
    """Dolan–Moré profiles: for each τ, the fraction of (task, seed) solved within τ × the cheapest cost."""

    cost: Axis
    tau: list[float]  # 1 .. 4
    share: dict[str, list[float]]
    score: dict[str, float]  # mean of max(0, (4 − r)/3)
    # Two entries alone, since a third can swap two others: their names, and the share of each.
    pairs: list[dict[Literal["a", "b", "a_share", "b_share"], str | list[float]]]


class Report(TypedDict):
    """The whole of `report.json`."""

    format: Literal["schuss-race-report"]
    version: Literal[1]
    schuss: str  # the package's version
    title: str
    command: str  # repeats the whole race
    preset: str
    trials: int  # tuning trials per entry, before the edge rule
    seeds: dict[Stage, list[int]]
    tasks: list[TaskReport]
    profiles: Profiles | None  # null when only one task was raced
    machine: dict[Literal["system", "processor", "cores", "python", "torch", "numpy"], str | int]
    complete: bool  # false: interrupted; what is there is true, but stages are missing
    seconds: NotRequired[float]  # wall clock of the whole race, all its sittings together
