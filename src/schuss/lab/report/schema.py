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

The shape, from the outside in:

    Report
      tasks: [TaskReport]          one per task, in the order given
        entries: [EntryReport]     in the order given; every dict keyed by entry uses their names
        configurations: [ConfigurationReport]
        runs: [RunReport]          with curves; sorted by entry, stage, configuration, seed
        ranking: [RankingRow]      best first
        verdict, budget_curves, targets, sensitivity, claims, diverged, crashed, settings
      profiles: Profiles | null    null when only one task was raced
      machine: Machine
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

Stage = Literal["tune", "confirm", "report"]
Status = Literal["finished", "diverged", "crashed"]


class Interval(TypedDict):
    """A mean paired difference with its 95 % t interval; `low` and `high` are null when n < 2."""

    mean: float | None
    low: float | None
    high: float | None
    sd: float | None
    n: int


class Spread(TypedDict):
    """Numbers over seeds: their mean, and their median with the interval that order statistics give.

    The interval covers the median of any distribution with at least `coverage` (0.95 or more; 0.9375 with five
    seeds). Fewer than five seeds give none: `low`, `high` and `coverage` are null.
    """

    mean: float | None
    median: float | None
    low: float | None
    high: float | None
    coverage: float | None
    sd: float | None
    n: int


class Cost(TypedDict):
    """One cost on the four axes; null where it is infinite (not reached)."""

    steps: float | None
    examples: float | None
    gradients: float | None
    seconds: float | None


class Dimension(TypedDict):
    """One hyperparameter's range. `log`: sampled uniformly in its logarithm, and drawn on a log axis."""

    low: float
    high: float
    log: bool


class Step(TypedDict):
    """The median of calibrated single steps, alone on the machine."""

    seconds: float | None


class EntryReport(TypedDict):
    """One optimizer with its schedule and batch size, and the space that was searched for it."""

    name: str
    optimizer: str  # "adam", or "file.py:Name" for the user's own
    schedule: str  # "constant", "cosine", "warmup+cosine", ...
    batch_size: int
    space: dict[
        str, Dimension
    ]  # as searched in the end; the key is the hyperparameter's name ("lr", "1 - beta1", ...)
    fixed: dict[str, float | bool | str]  # what was not searched
    trials: int  # configurations tuned, the same for every entry
    widened: list[str]  # dimensions that the edge rule widened by a decade
    space_limited: list[
        str
    ]  # dimensions whose best value still lies in the outer 10 %: the range may hold the entry back
    parameters: int  # weights of the model
    bytes_per_weight: float | None  # of optimizer state
    step: Step


class ConfigurationReport(TypedDict):
    """One point of an entry's space, with what tuning and confirming said about it."""

    id: str
    entry: str
    index: int  # 0, 1, 2, ... in the entry's sequence
    parameters: dict[str, float]  # by the names of `EntryReport.space`
    tune: float | None  # validation metric at the horizon of the tuning run; null if it diverged or crashed
    confirm: Spread | None  # over the confirming seeds; null if it was not among the best of tuning
    chosen: bool  # this one went on to the report stage


class Curve(TypedDict):
    """Columns of equal length, one row per evaluation, beginning before the first step."""

    steps: list[int]
    examples: list[int]
    gradients: list[int]
    train_loss: list[float | None]
    validation_loss: list[float | None]
    metric: list[float | None]  # on the validation split
    lr: list[float | None]  # as scheduled for the step just taken
    effective_rate: list[
        float | None
    ]  # rms(change of w) / rms(gradient) of the step just taken; null before the first


class Divergence(TypedDict):
    """Where and why a run was stopped."""

    step: int
    reason: str  # "the loss was not finite" | "the loss stayed above its start for a fifth of the horizon"


class TestResult(TypedDict):
    """What the test split said, once, at the end of a report run."""

    loss: float | None
    metric: float | None


class RunReport(TypedDict):
    """One training run."""

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
    train_loss: float | None  # the last of the curve, as are the next two; null if diverged or crashed
    validation_loss: float | None
    metric: float | None
    test: TestResult | None  # only for finished "report" runs
    curve: Curve
    divergence: Divergence | None
    error: str | None  # the traceback of a crashed run
    command: str  # repeats this run and prints its numbers
    seconds: (
        float | None
    )  # measured, under whatever contention there was: for progress only, never for ranking


class Sensitivity(TypedDict):
    """The basin over the learning rate, from the tuning runs, sorted by `lr`."""

    lr: list[float]
    metric: list[float | None]  # null: diverged or crashed
    status: list[Status]
    best_lr: float | None
    low: float | None  # the range of lr, around the best, whose metric lies within 5 % of the best ...
    high: float | None  # ... (5 % of the way from the start to the best)
    decades: float | None  # log10(high / low)


class RankingRow(TypedDict):
    """One line of the final table. All numbers over the report stage's seeds at the chosen configuration."""

    rank: int  # 1 for all that tie with the leader; else one more than the number of entries that are better
    tied: bool  # shares its rank with another
    entry: str
    configuration: str
    parameters: dict[str, float]
    metric: Spread  # validation; a diverged run counts with the untrained model's metric
    test_metric: Spread
    validation_loss: Spread
    train_loss: Spread
    cost: Cost  # median cost to the ranking target (the one marked `ranking` in `targets`)
    ert: Cost  # expected running time: total cost of all runs / successes
    reached: float  # share of seeds that reached that target, 0..1
    sensitivity: float | None  # Sensitivity.decades
    bytes_per_weight: float | None
    step: Step


class Comparison(TypedDict):
    """The leader against one other entry, paired by seed; adjusted for all pairs, as the data chose the leader.

    All of it but `test` is over seeds on the one validation split. Its sign can be another on the test split;
    `test_agrees` says whether it is not.
    """

    leader: str
    other: str
    unit: str  # of the difference: the metric's name, or "log ratio of steps" ...
    difference: Interval  # leader − other, turned so that positive is in the leader's favour
    adjusted_low: float | None  # the simultaneous 95 % interval
    adjusted_high: float | None
    p: float | None
    p_adjusted: float | None
    verdict: Literal["better", "tie"]
    seeds_needed: (
        int | None
    )  # further seeds that would settle a tie; null when better, or when no number would
    settles_as: Literal["better", "equal"] | None  # what those further seeds would show
    gap_needed: (
        float | None
    )  # one seed-sd (or 5 % of cost): a smaller gap is a tie whatever the interval says
    test: Interval | None  # the same difference on the test split, not adjusted; null when ranked by cost
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
    rank_by: Literal["metric", "steps", "examples", "gradients", "seconds"]
    comparisons: list[Comparison]


class BudgetCurve(TypedDict):
    """Expected best validation metric of n trials drawn from the tuning pool, n = 1 .. N (unbiased)."""

    n: list[int]
    expected: list[float | None]
    low: NotRequired[list[float | None]]  # 95 % jackknife interval; null beyond n = N/2, where one pool ...
    high: NotRequired[list[float | None]]  # ... cannot say how much another would differ


class TargetEntry(TypedDict):
    """How one entry did against one target, over the report stage's seeds."""

    reached: int
    n: int
    median: Cost
    ert: Cost
    seeds: list[int]
    times: TargetTimes


class TargetTimes(TypedDict):
    """Cost to the target by seed (same order as `seeds`); null: not reached."""

    steps: list[float | None]
    examples: list[float | None]
    gradients: list[float | None]
    seconds: list[float | None]


class Target(TypedDict):
    """A value of the validation metric, fixed after confirming: start + q · (best median − start)."""

    q: float  # 0.5, 0.9, 1.0
    value: float
    ranking: bool  # costs in the ranking refer to this one
    entries: dict[str, TargetEntry]


class Claim(TypedDict):
    """A sentence of the textbooks, tested on this task."""

    id: str  # "momentum-beats-sgd", ...
    claim: str  # "Momentum beats plain SGD."
    verdict: Literal["holds", "fails", "no gap that counts", "undecided"]
    interval: Interval | None  # of the difference that decides; positive speaks for the claim
    unit: str
    entries: list[str]  # whose runs were compared
    runs: list[str]  # their ids
    why: str  # one plain sentence; for "undecided" also what would decide it


class Setting(TypedDict):
    """An entry's best settings, to paste."""

    entry: str
    code: str  # Python: optimizer = schuss.torch.Adam(model.parameters(), lr=...)
    command: str  # repeats the entry's report runs


class Diverged(TypedDict):
    """A diverged run, in short."""

    run: str
    entry: str
    stage: Stage
    seed: int
    parameters: dict[str, float]
    step: int
    reason: str


class Crashed(TypedDict):
    """A run that raised, twice."""

    run: str
    entry: str
    stage: Stage
    seed: int
    parameters: dict[str, float]
    error: str


class Metric(TypedDict):
    """What decides. `best` is "max" for accuracies and "min" for losses."""

    name: str
    best: Literal["max", "min"]
    bounds: list[float | None]  # [lowest, highest] possible value, as far as known; [0, 1] for an accuracy


class Horizon(TypedDict):
    """The length of every run, in the three counted axes (steps at the task's own batch size)."""

    steps: int
    examples: int
    gradients: int


class Splits(TypedDict):
    """Examples in each split (null: a stream without length, or no data) and how they were made."""

    train: int | None
    validation: int | None
    test: int | None
    how: str


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
    looks: list[
        dict[str, Any]
    ]  # step, loss, largest, smallest, sharpness, limit, largest_lr, dial, residuals,
    # bounds: "≥ " or "≤ " before largest, smallest, sharpness and dial, largest_lr that had not converged
    conditioning: dict[str, Any] | None  # value, largest, against, how
    noise: list[dict[str, Any]]  # step, simple, low, high (None: no bound), batches
    sparsity: dict[str, float] | None  # zeros, empty_rows, spread
    advice: list[dict[str, str]]  # topic, take, because, sure, command
    missing: dict[str, str]  # what could not be measured, and why
    seconds: dict[str, Any]  # all that rests on measured times: `steps` and the `advice` on batch size


class RacedTask(TypedDict):
    """What there always is to say about one task."""

    name: str
    spec: str  # as given: "digits", "quadratic:kappa=1000", "my_task.py"
    description: str
    metric: Metric
    optimum: float | None  # the lowest possible training loss, where it is known
    parameters: int  # weights of the model
    batch_size: int
    horizon: Horizon
    evaluations: int  # rows of a full curve, less the one before the first step
    splits: Splits
    fingerprint: str  # of model, data and code
    entries: list[EntryReport]
    configurations: list[ConfigurationReport]
    runs: list[RunReport]
    ranking: list[RankingRow]
    verdict: Verdict
    budget_curves: dict[str, BudgetCurve]
    targets: list[Target]
    sensitivity: dict[str, Sensitivity]
    claims: list[Claim]
    diverged: list[Diverged]
    crashed: list[Crashed]
    settings: list[Setting]


class TaskReport(RacedTask, total=False):
    """Everything about one task."""

    curvature: Curvature  # with `--diagnose`


class PairProfile(TypedDict):
    """The profile of two entries alone: a third can swap two others."""

    a: str
    b: str
    a_share: list[float]
    b_share: list[float]


class Profiles(TypedDict):
    """Dolan–Moré profiles: for each τ, the share of (task, seed) solved within τ × the cheapest cost."""

    cost: Literal["steps", "examples", "gradients"]
    tau: list[float]  # 1 .. 4
    share: dict[str, list[float]]
    score: dict[str, float]  # mean of max(0, (4 − r)/3)
    pairs: list[PairProfile]


class Machine(TypedDict):
    """Where the race was run."""

    system: str
    processor: str
    cores: int
    python: str
    torch: str
    numpy: str


class Report(TypedDict):
    """The whole of `report.json`."""

    format: Literal["schuss-race-report"]
    version: Literal[1]
    schuss: str  # the package's version
    title: str
    command: str  # repeats the whole race
    preset: str
    trials: int  # tuning trials an entry, before the edge rule
    seeds: dict[Stage, list[int]]
    tasks: list[TaskReport]
    profiles: Profiles | None
    machine: Machine
    complete: bool  # false: interrupted; what is there is true, but stages are missing
    seconds: NotRequired[float]  # wall clock of the whole race, all its sittings together
