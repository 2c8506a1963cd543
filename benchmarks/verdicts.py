"""How often the race's verdicts are wrong, what its intervals cover, and what that costs in power.

    python benchmarks/verdicts.py              error rates, coverage and power, as tables
    python benchmarks/verdicts.py --table      the numbers of equivalent comparisons in simultaneous.py

Every number is a simulation from a fixed seed; nothing is trained.
"""

import argparse
from itertools import product

import numpy as np
from scipy.special import expit, logit, ndtr, stdtr
from scipy.stats import binom

from schuss.lab.statistics import mean_interval, median_interval, simultaneous
from schuss.lab.statistics.compare import Interval, further_seeds

ALPHA = 0.05


def largest_t(losses, among=None):
    """The largest t value over all pairs of each race, with the variances that the race uses."""
    variances = simultaneous.pair_variances(losses)
    typical = simultaneous.typical_variances(variances, np.ones(losses.shape[:2], dtype=bool))
    variances = np.maximum(variances, np.maximum(typical[:, :, None], typical[:, None, :]))
    means = losses.mean(axis=2)
    gaps = np.abs(means[:, :, None] - means[:, None, :])
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(gaps / np.sqrt(variances / losses.shape[2])).max(axis=(1, 2))


def equivalent(entries, seeds, races):
    """The m for which α/m of Student's t is the 95 % point of the largest t, at the worst mixture of noises."""
    generator = np.random.default_rng([entries, 0 if np.isinf(seeds) else int(seeds)])
    if np.isinf(seeds):
        means = generator.normal(size=(races, entries))
        worst = np.quantile(np.ptp(means, axis=1) / np.sqrt(2), 0.95)
        return ALPHA / (2 * ndtr(-worst))
    losses = generator.normal(size=(races, entries, int(seeds)))
    middle = entries // 2
    noisy = range(1, entries + 1) if entries <= 12 else sorted({2, *range(middle - 1, middle + 4), entries})
    worst = 0.0
    for count in noisy:
        scaled = losses.copy()
        scaled[:, count:] *= 1e-5
        worst = max(worst, float(np.quantile(largest_t(scaled), 0.95)))
    return ALPHA / (2 * stdtr(seeds - 1, -worst))


def table():
    """Print the rows of `EQUIVALENT`."""
    for entries in simultaneous.ENTRIES:
        races = 20_000 if entries <= 12 else 60_000 // entries
        pairs = entries * (entries - 1) / 2  # m cannot exceed it; a simulation can, by luck
        row = [1.0 if entries == 2 else min(pairs, equivalent(entries, s, races)) for s in simultaneous.SEEDS]
        print(f"    ({', '.join(f'{m:.2f}' for m in row)}),", flush=True)


def holm_verdicts(losses):
    """Who was behind by the rule used before: paired t, Holm over the comparisons with the leader."""
    races, count, seeds = losses.shape
    means = losses.mean(axis=2)
    leader = means.argmin(axis=1)
    at = np.arange(races), leader
    variances = simultaneous.pair_variances(losses)
    gap = means - means[at][:, None]
    p = simultaneous.two_sided(gap, np.sqrt(variances[at] / seeds), seeds)
    p[at] = np.inf  # it is no comparison: sorted last
    order = p.argsort(axis=1)
    limits = ALPHA / np.maximum(count - 1 - np.arange(count), 1)
    passed = np.logical_and.accumulate(np.take_along_axis(p, order, axis=1) <= limits, axis=1)
    found = np.zeros_like(passed)
    np.put_along_axis(found, order, passed, axis=1)
    return found & (gap > thresholds(losses, leader))


def thresholds(losses, leader):
    """One seed-sd, pooled over an entry and the leader."""
    own = losses.var(axis=2, ddof=1)
    return np.sqrt((own + own[np.arange(len(own)), leader][:, None]) / 2)


def race_verdicts(losses):
    """Who is behind the leader, as `rank` says it, for many races at once."""
    found = simultaneous.apart_from_leader(losses, alpha=ALPHA)
    return (found.p <= ALPHA) & (found.gap > thresholds(losses, found.leader))


def latent(generator, races, entries, seeds, correlation):
    """Standard normal numbers; those of one seed share `correlation` of their variance."""
    shared, own = generator.normal(size=(races, 1, seeds)), generator.normal(size=(races, entries, seeds))
    return np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own


def accuracy(generator, races, entries, seeds, correlation, at=0.98, spread=0.3, examples=270):
    """Minus the accuracy on some examples: a binomial whose probability differs from seed to seed."""
    z, u = (latent(generator, races, entries, seeds, correlation) for _ in range(2))
    return -binom.ppf(ndtr(u), examples, expit(logit(at) + spread * z)) / examples


DISTRIBUTIONS = {
    "normal": latent,
    "accuracy .98 of 270": accuracy,
    "accuracy .9995 of 270": lambda *given: accuracy(*given, at=0.9995),
    "lognormal": lambda *given: np.exp(latent(*given)),
    "one seed in ten fails": lambda generator, *given: (
        latent(generator, *given) + 30 * (generator.random(size=given[:3]) < 0.1)
    ),
    "half vary 10 times as much": lambda generator, races, entries, *given: (
        latent(generator, races, entries, *given) * np.where(np.arange(entries) % 2, 10.0, 1.0)[:, None]
    ),
    "sds from 1 to 100": lambda generator, races, entries, *given: (
        latent(generator, races, entries, *given) * np.logspace(0, 2, entries)[:, None]
    ),
}


def both(losses, entry=None):
    """The fraction of races in which this entry, or any, is put behind: before, and now."""
    found = (verdicts(losses) for verdicts in (holm_verdicts, race_verdicts))
    return [(v.any(axis=1) if entry is None else v[:, entry]).mean() for v in found]


def head(*names):
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")


def line(*cells):
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def errors(races):
    """Print how often somebody is put behind the leader though all entries are equal, in per cent."""
    head("seeds", "entries", "correlation", *DISTRIBUTIONS)
    for seeds, entries, correlation in product((5, 10, 20), (2, 3, 5, 9, 12), (0.0, 0.8)):
        cells = []
        for number, draw in enumerate(DISTRIBUTIONS.values()):
            generator = np.random.default_rng([seeds, entries, int(10 * correlation), number])
            before, after = both(draw(generator, races, entries, seeds, correlation))
            cells.append(f"{100 * before:.1f} → {100 * after:.1f}")
        line(seeds, entries, correlation, *cells)
    print(
        "\nSome entries equal and best, others worse by so many sd: somebody of the best is put behind, in per cent."
    )
    for equal, worse, by in ((5, 4, 1), (5, 4, 3), (2, 7, 1), (2, 7, 3), (8, 1, 3)):
        rates = []
        for seeds in (5, 10, 20):
            generator = np.random.default_rng([equal, worse, by, seeds])
            losses = latent(generator, races, equal + worse, seeds, 0.0)
            losses[:, equal:] += by
            rates.append(f"{100 * race_verdicts(losses)[:, :equal].any(axis=1).mean():.1f}")
        print(f"{equal} equal, {worse} worse by {by} sd; 5, 10, 20 seeds: {', '.join(rates)}", flush=True)


def power(races):
    """Print how often the better of two is recognised: one entry leads, all others are `by` sd worse, or one is."""
    head(
        *("seeds", "entries", "difference, sd"),
        *("one is worse: before → after", "one is better: before → after"),
    )
    for seeds, entries, by in product((10, 20), (3, 5, 9), (1.0, 1.5, 2.0)):
        generator = np.random.default_rng([seeds, entries, int(10 * by)])
        losses = latent(generator, races, entries, seeds, 0.0)
        cells = []
        for shift, entry in ((by, 0), (-by, 1)):
            moved = losses.copy()
            moved[:, 0] += shift
            cells.append(" → ".join(f"{rate:.2f}" for rate in both(moved, entry)))
        line(seeds, entries, by, *cells)


def coverage(samples):
    """Print how often the interval of a median and Student's interval of a mean cover what they speak of."""
    head("metric", "seeds", "the mean, Student", "the median, as reported")
    for name, draw in list(DISTRIBUTIONS.items())[:5]:  # the others differ between entries alone
        much = draw(np.random.default_rng(0), 2_000_000, 1, 1, 0.0).ravel()
        targets = ((mean_interval, much.mean()), (median_interval, np.median(much)))
        for seeds in (5, 10, 20):
            values = draw(np.random.default_rng(seeds), samples, 1, seeds, 0.0)[:, 0]
            cells = []
            for interval, target in targets:
                found = [interval(x) for x in values]
                covered = [i.low <= target + 1e-12 and target - 1e-12 <= i.high for i in found]
                cells.append(f"{np.mean(covered):.3f}")
            line(name, seeds, *cells)


def settling(races):
    """Print how often a tie of two entries is settled by the number of further seeds that is named for it."""
    head("gap, sd", "true threshold, sd", "further seeds", "settled")
    for gap in (1.05, 1.1, 1.2, 1.4):
        tie = Interval(gap, -0.1, 2 * gap, 0.1, 5, np.sqrt(2), "t")
        _, more = further_seeds(tie, 1.0, level=0.95)
        losses = latent(np.random.default_rng(int(100 * gap)), races, 2, 5 + more, 0.0)
        losses[:, 1] += gap
        line(gap, 1, more, f"{race_verdicts(losses)[:, 1].mean():.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--races", type=int, default=4000, help="simulated races for each number")
    given = parser.parse_args()
    if given.table:
        table()
    else:
        for part in (errors, power, coverage, settling):
            print(f"\n{part.__doc__}\n")
            part(given.races)
