"""The race's statistics against hand-computed cases, SciPy, and simulated races whose truth is known."""

from dataclasses import replace
from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats
from scipy.stats import qmc

from schuss.lab.statistics import (
    budget_curve,
    claims_of,
    cost_to_target,
    edges,
    fixed_targets,
    lr_basin,
    mean_interval,
    median_interval,
    paired_interval,
    pairwise_profiles,
    performance_profiles,
    rank,
    sample,
    time_to_target,
)
from schuss.lab.statistics.claims import claims, judge
from schuss.lab.statistics.compare import Interval, compare_with_leader, further_seeds, holm_levels, penalised
from schuss.lab.statistics.costs import cost_ratios
from schuss.lab.statistics.numbers import RunNumbers
from schuss.lab.statistics.sampling import COMMON, coordinates
from schuss.lab.statistics.simultaneous import EQUIVALENT, apart_from_leader, equivalent_comparisons
from schuss.lab.statistics.tuning import expected_best

INF, NAN = float("inf"), float("nan")


def races(advantage: float, *, seeds: int = 10, count: int = 100) -> list[str]:
    """Simulate races of two entries whose seeds share half their variance; what is said of the better one."""
    generator = np.random.default_rng(20240607)
    said = []
    for _ in range(count):
        shared = generator.normal(size=seeds)
        one, other = (np.sqrt(0.5) * (shared + generator.normal(size=seeds)) for _ in range(2))
        places = rank({"a": one, "b": other + advantage}).places
        said.append("tie" if places[0].tied else places[0].entry)
    return said


class TestSimulatedRaces:
    def test_an_entry_against_itself_ties(self):
        assert races(0.0).count("tie") >= 95

    def test_identical_runs_under_two_names_tie_and_need_no_more_seeds(self):
        scores = np.random.default_rng(0).normal(size=10)
        behind = rank({"a": scores, "again": scores}).places[1].behind
        assert behind is not None
        assert (behind.verdict, behind.settles_as, behind.further_seeds) == ("tie", "equal", 0)

    def test_two_sd_better_is_better(self):
        assert races(2.0).count("a") >= 90

    def test_never_the_wrong_way_round(self):
        assert "b" not in races(2.0, seeds=3)

    @pytest.mark.parametrize("gap", [1.05, 1.2, 2.0])
    def test_the_number_of_further_seeds_settles_four_in_five(self, gap):
        tie = Interval(gap, -0.4, 2.8, 0.1, 5, np.sqrt(2), "t")
        settles_as, seeds = further_seeds(tie, 1.0, level=0.95)
        assert settles_as == "better"
        assert seeds is not None
        losses = np.random.default_rng(1).normal(size=(1000, 2, 5 + seeds))
        losses[:, 1] += gap
        assert 0.76 < behind(losses)[:, 1].mean() < (0.85 if gap < 2 else 1.0)


def behind(losses):
    """Who is called worse than the leader in many races at once, (races, entries)."""
    found = apart_from_leader(losses)
    own = losses.var(axis=2, ddof=1)
    threshold = np.sqrt((own + own[np.arange(len(own)), found.leader][:, None]) / 2)
    return (found.p <= 0.05) & (found.gap > threshold)


def accuracies(generator, size, at=0.98):
    chance = 1 / (1 + np.exp(-np.log(at / (1 - at)) - 0.3 * generator.normal(size=size)))
    return generator.binomial(270, chance) / 270


SCORES = {
    "normal": lambda generator, size: generator.normal(size=size),
    "lognormal": lambda generator, size: np.exp(generator.normal(size=size)),
    "accuracy": accuracies,
    "saturated": lambda generator, size: accuracies(generator, size, at=0.9995),
    "one in ten fails": lambda generator, size: (
        generator.normal(scale=0.01, size=size) - 0.9 * (generator.random(size) < 0.1)
    ),
    "half are noisy": lambda generator, size: (
        generator.normal(size=size) * np.where(np.arange(size[1]) % 2, 10.0, 1.0)[:, None]
    ),
}
MOST_OF_1000 = 67  # P(Bin(1000, .05) > 67) = .7 %


class TestErrorRate:
    """With equal entries at most 5 % of races put somebody behind the leader, whom the same data chose."""

    @pytest.mark.parametrize("name", SCORES)
    @pytest.mark.parametrize(("entries", "seeds"), [(2, 5), (3, 10), (5, 5), (9, 10), (9, 20), (12, 10)])
    def test_equal_entries_tie(self, name, entries, seeds):
        losses = SCORES[name](np.random.default_rng([entries, seeds]), (1000, entries, seeds))
        assert behind(losses).any(axis=1).sum() <= MOST_OF_1000

    def test_so_it_is_without_a_threshold(self):
        losses = np.random.default_rng(8).normal(size=(1000, 9, 10))
        assert (apart_from_leader(losses).p <= 0.05).any(axis=1).sum() <= MOST_OF_1000

    def test_stepping_down_protects_those_that_are_left(self):
        losses = np.random.default_rng(9).normal(size=(1000, 9, 10))
        losses[:, 5:] += 3.0
        found = behind(losses)
        assert found[:, :5].any(axis=1).sum() <= MOST_OF_1000
        assert found[:, 5:].mean() > 0.95

    def test_two_sd_are_seen_among_nine(self):
        losses = np.random.default_rng(10).normal(size=(1000, 9, 10))
        losses[:, 0] += 2.0
        assert behind(losses)[:, 0].mean() > 0.9

    def test_one_race_at_a_time_says_the_same(self):
        generator = np.random.default_rng(11)
        losses = generator.normal(size=(40, 6, 8)) + generator.normal(size=(40, 6, 1))
        for race, expected in zip(losses, behind(losses), strict=True):
            places = rank({str(i): x for i, x in enumerate(race)}).places
            assert {int(p.entry) for p in places if p.rank > 1} == set(np.flatnonzero(expected))

    @given(
        st.integers(2, 7),
        st.integers(2, 12),
        st.integers(0, 2**32 - 1),
        st.floats(-5, 5),
        st.floats(0.1, 10),
    )
    @settings(max_examples=60, deadline=None)
    def test_seeds_in_common_units_and_order_do_not_matter(self, entries, seeds, seed, shift, scale):
        generator = np.random.default_rng(seed)
        losses = generator.normal(size=(entries, seeds)) + generator.normal(size=(entries, 1))
        common, order = generator.normal(size=seeds), generator.permutation(entries)
        found = apart_from_leader(losses[None])
        moved = apart_from_leader((scale * (losses + common) + shift)[order][None])
        assert_allclose(moved.p[0], found.p[0][order], rtol=1e-6, atol=1e-12)
        assert_allclose(moved.gap[0], scale * found.gap[0][order], rtol=1e-9, atol=1e-9)
        assert found.leader[0] == losses.mean(axis=1).argmin()
        assert (found.p >= 0).all()
        assert (found.p <= 1).all()
        assert found.p[0, found.leader[0]] == 1

    def test_the_table_grows_with_entries_and_stays_below_all_pairs(self):
        for seeds in (3, 5, 10, 13, 25, 1000):
            numbers = [equivalent_comparisons(k, seeds) for k in (2, 3, 5, 7, 9, 12, 15, 20, 25, 30, 36, 41)]
            assert numbers == sorted(numbers)
            assert numbers[-1] == 820
        assert all(m <= comb(k, 2) for k, row in zip((2, 3, 4, 5), EQUIVALENT, strict=False) for m in row)


class TestMedianInterval:
    @pytest.mark.parametrize("name", [name for name in SCORES if name != "half are noisy"])
    @pytest.mark.parametrize("seeds", [5, 6, 10, 20])
    def test_covers_whatever_the_distribution(self, name, seeds):
        draw, generator = SCORES[name], np.random.default_rng(seeds)
        truth = np.median(draw(generator, (1, 1, 400_001)))
        found = [median_interval(x) for x in draw(generator, (600, 1, seeds))[:, 0]]
        promised = found[0].coverage
        assert promised >= 0.93
        covered = sum(i.low <= truth <= i.high for i in found)
        assert covered >= stats.binom.ppf(0.005, 600, promised)

    def test_by_hand(self):
        found = median_interval(range(10))
        assert (found.centre, found.low, found.high) == (4.5, 1.0, 8.0)
        assert_allclose(found.coverage, 1 - 2 * 11 / 1024)
        five = median_interval([3.0, 1.0, 2.0, 5.0, 4.0])
        assert (five.low, five.high, five.coverage) == (1.0, 5.0, 0.9375)

    @pytest.mark.parametrize("values", [[1.0], [1.0, 1.0], [1.0, 2.0, 3.0, 4.0]])
    def test_few_seeds_give_none(self, values):
        found = median_interval(values)
        assert (found.low, found.high) == (-INF, INF)

    @given(st.lists(st.floats(0, 1), min_size=5, max_size=30))
    def test_never_leaves_the_range_of_the_values(self, values):
        found = median_interval(values)
        assert min(values) <= found.low <= found.centre <= found.high <= max(values)

    def test_refuses(self):
        with pytest.raises(ValueError, match="n ≥ 1"):
            median_interval([])
        with pytest.raises(ValueError, match=r"level=95 is not in \(0, 1\)"):
            mean_interval([1.0], level=95)


class TestPairedInterval:
    def test_agrees_with_scipy(self):
        a, b = np.random.default_rng(3).normal(size=(2, 7))
        expected = stats.ttest_rel(b, a)
        found = paired_interval(a, b, level=0.9)
        assert_allclose(found.p, expected.pvalue)
        assert_allclose((found.low, found.high), expected.confidence_interval(0.9))

    def test_costs_by_their_log_ratio(self):
        found = paired_interval([100, 200, 300], [110, 220, 330], ratio=True)
        assert_allclose((found.low, found.centre, found.high), np.log(1.1))

    def test_coverage_at_three_seeds(self):
        draws = np.random.default_rng(4).normal(size=(1000, 3))
        covered = [i.low <= 0 <= i.high for i in map(mean_interval, draws)]
        assert 0.93 < np.mean(covered) < 0.97

    def test_one_seed_says_nothing(self):
        found = paired_interval([1.0], [2.0])
        assert (found.low, found.high, found.p) == (-INF, INF, 1.0)

    def test_a_failure_turns_to_the_sign_test(self):
        found = paired_interval(np.zeros(10), [INF, *range(1, 10)])
        assert found.method == "sign"
        assert found.centre == 5.5
        assert_allclose(found.p, stats.binomtest(0, 10).pvalue)
        assert (found.low, found.high) == (2.0, 9.0)  # the 2nd from either end: P(Bin(10, ½) ≤ 1) = .011

    @pytest.mark.parametrize("n", [3, 6, 9, 14])
    @pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
    def test_the_sign_interval_excludes_zero_exactly_when_the_test_rejects(self, n, level):
        for negatives in range(n + 1):
            differences = np.array([-INF] * negatives + [INF] * (n - negatives))
            found = mean_interval(differences, level=level)
            assert (found.low > 0 or found.high < 0) == (found.p <= 1 - level)

    def test_both_failing_is_no_difference(self):
        assert paired_interval([INF, INF], [INF, INF]).centre == 0.0

    @pytest.mark.parametrize(
        ("a", "b", "ratio", "text"),
        [([1, 2], [1], False, "shapes"), ([-1.0], [1.0], True, "cost=-1.0 is not ≥ 0")],
    )
    def test_refuses(self, a, b, ratio, text):
        with pytest.raises(ValueError, match=text):
            paired_interval(a, b, ratio=ratio)

    def test_refuses_an_empty_array(self):
        with pytest.raises(ValueError, match="n ≥ 1"):
            mean_interval([])


class TestHolm:
    def test_levels_by_hand(self):
        alphas = np.array(
            [0.05 / 3, 0.05 / 2, 0.05 / 2, 0.05 / 4]
        )  # 0.03 fails at 0.05/2, so 0.04 is not tried
        assert_allclose(holm_levels([0.01, 0.04, 0.03, 0.005]), 1 - alphas)


class TestComparisons:
    @pytest.mark.parametrize("seed", range(30))
    def test_intervals_say_what_the_steps_say(self, seed):
        generator = np.random.default_rng(seed)
        losses = {f"e{i}": generator.normal(loc=0.5 * i, size=6) for i in range(5)}
        for found in compare_with_leader(losses).values():
            assert (found.low > 0) == (found.p <= 0.05)

    def test_two_entries_are_a_paired_t_test(self):
        a, b = np.random.default_rng(13).normal(loc=[[0.0], [3.0]], size=(2, 7))
        found = compare_with_leader({"a": a, "b": b})["b"]
        expected = stats.ttest_rel(b, a)
        assert_allclose(found.p, expected.pvalue)
        assert_allclose((found.low, found.high), expected.confidence_interval(0.95))

    def test_more_rivals_widen_the_interval(self):
        generator = np.random.default_rng(5)
        a, b, *rest = generator.normal(size=(8, 10))
        a = a - 1
        alone = compare_with_leader({"a": a, "b": b})["b"]
        crowd = compare_with_leader({"a": a, "b": b, **{str(i): x for i, x in enumerate(rest)}})["b"]
        assert crowd.high - crowd.low > alone.high - alone.low

    def test_a_failure_is_worse_than_all_that_did_not_fail(self):
        assert_allclose(penalised({"a": [1.0, 3.0], "b": [INF, 2.0]}), [[1, 3], [5, 2]])
        assert_allclose(
            penalised({"a": [100.0, 0.0], "b": [INF, 200.0]}, ratio=True), np.log([[100, 50], [400, 200]])
        )
        assert_allclose(penalised({"a": [INF], "b": [NAN]}), [[1], [1]])

    def test_one_seed_decides_nothing(self):
        found = compare_with_leader({"a": [1.0], "b": [9.0]})["b"]
        assert (found.verdict, found.low, found.high, found.further_seeds) == ("tie", -INF, INF, None)


class TestRank:
    def test_groups_of_ties(self):
        noise = np.array([-1.0, 0.0, 1.0, -0.5, 0.5])
        scores = {"bad": 20 + noise, "good": noise, "also": noise[::-1], "worse": 20 + noise[::-1]}
        ranking = rank(scores, costs={"good": 2.0, "also": 1.0, "bad": 0.1})
        assert [(p.rank, p.entry, p.tied) for p in ranking.places] == [
            (1, "also", True),
            (1, "good", True),
            (3, "bad", True),
            (3, "worse", True),
        ]
        assert ranking.pick == "also"

    def test_higher_is_better_keeps_its_own_sign(self):
        ranking = rank({"a": [0.9, 0.91, 0.92], "b": [0.5, 0.51, 0.52]}, lower_is_better=False)
        first, second = ranking.places
        assert (first.entry, first.behind) == ("a", None)
        assert_allclose((first.mean, second.mean), (0.91, 0.51))
        assert second.behind is not None
        assert_allclose(second.behind.gap, 0.4)

    def test_diverged_runs_are_kept_and_come_last(self):
        good, mixed, lost = np.arange(10.0), np.r_[NAN, np.arange(9.0)], np.full(10, NAN)
        ranking = rank({"lost": lost, "mixed": mixed, "good": good})
        assert [p.entry for p in ranking.places] == ["good", "mixed", "lost"]
        behind = ranking.places[2].behind
        assert behind is not None
        assert (behind.verdict, ranking.places[2].mean) == ("better", INF)

    def test_never_getting_there_is_behind_among_many(self):
        generator = np.random.default_rng(14)
        costs = {str(i): 100 * np.exp(0.1 * generator.normal(size=5)) for i in range(8)}
        ranking = rank(costs | {"never": np.full(5, INF)}, ratio=True)
        assert (ranking.places[-1].entry, ranking.places[-1].rank) == ("never", 9)

    def test_places_follow_the_means_and_ties_the_evidence(self):
        noise = np.array([-1.0, 1.0, -0.5, 0.5, 0.2, -0.2, 0.8, -0.8, 0.1, -0.1])
        scores = {"leader": noise, "quiet": 1.3 + 0.9 * noise, "noisy": 1.5 + 6 * noise[::-1]}
        places = rank(scores).places
        assert [(p.entry, p.rank, p.tied) for p in places] == [
            ("leader", 1, True),
            ("quiet", 2, False),
            ("noisy", 1, True),
        ]

    @given(st.integers(1, 7), st.integers(1, 8), st.integers(0, 2**32 - 1))
    @settings(max_examples=60, deadline=None)
    def test_order_ranks_and_ties_agree(self, entries, seeds, seed):
        generator = np.random.default_rng(seed)
        scores = {str(i): generator.normal(size=1) * 2 + generator.normal(size=seeds) for i in range(entries)}
        ranking = rank(scores)
        means = [place.mean for place in ranking.places]
        assert means == sorted(means)
        ranks = [place.rank for place in ranking.places]
        for place in ranking.places:
            assert (place.rank == 1) == (place.behind is None or place.behind.verdict == "tie")
            assert place.tied == (ranks.count(place.rank) > 1)
            assert 1 <= place.rank <= entries
        assert ranking.pick in {place.entry for place in ranking.places if place.rank == 1}

    def test_a_sure_but_small_gap_is_a_tie(self):
        wide = np.linspace(-1, 1, 10)
        behind = rank({"a": wide, "b": wide + 0.3 + 1e-3 * wide**2}).places[1].behind
        assert behind is not None
        assert behind.low > 0
        assert (behind.verdict, behind.settles_as) == ("tie", "equal")

    def test_costs_within_five_percent_are_the_same(self):
        base = np.array([100.0, 150.0, 220.0])
        exact = np.array([1.0, 1.001, 0.999])
        assert rank({"a": base, "b": base * 1.04 * exact}, ratio=True).places[1].rank == 1
        assert rank({"a": base, "b": base * 1.06 * exact}, ratio=True).places[1].rank == 2

    def test_a_cost_of_nothing_is_the_best_there_is(self):
        costs = {"slow": [100.0, 100.0], "at once": [0.0, 0.0], "never": [INF, INF]}
        assert [place.entry for place in rank(costs, ratio=True).places] == ["at once", "slow", "never"]

    def test_order_of_entries_does_not_matter(self):
        generator = np.random.default_rng(6)
        scores = {name: generator.normal(size=5) for name in "abcd"}
        assert rank(scores) == rank(dict(reversed(scores.items())))

    def test_refuses_missing_seeds(self):
        with pytest.raises(ValueError, match="same seeds"):
            rank({"a": [1.0, 2.0], "b": [1.0]})


class TestBudgetCurve:
    @pytest.mark.parametrize("lower_is_better", [True, False])
    def test_is_the_mean_over_all_subsets(self, lower_is_better):
        x = np.random.default_rng(7).normal(size=7)
        best = min if lower_is_better else max
        means = [np.mean([best(s) for s in combinations(x, n)]) for n in range(1, 8)]
        assert_allclose(expected_best(x, lower_is_better=lower_is_better), means)

    def test_is_unbiased_where_the_plug_in_is_not(self):
        draws = np.random.default_rng(8).normal(size=(3000, 20))
        truth = 1.5388  # expected maximum of 10 standard normal values
        unbiased = [expected_best(row, lower_is_better=False)[9] for row in draws]
        ordered, i = np.sort(draws, axis=1), np.arange(1, 21)
        plug_in = ordered @ ((i / 20) ** 10 - ((i - 1) / 20) ** 10)
        error = np.std(unbiased) / np.sqrt(3000)
        assert abs(np.mean(unbiased) - truth) < 3 * error
        assert np.mean(plug_in) < truth - 0.1

    def test_intervals_cover_while_the_pool_holds_two_sets(self):
        draws = np.random.default_rng(9).normal(size=(400, 20))
        truth = -1.1630  # expected minimum of 5
        curves = [budget_curve(row) for row in draws]
        assert 0.89 < np.mean([c.low[4] <= truth <= c.high[4] for c in curves]) < 0.97
        assert np.isfinite(curves[0].low[:10]).all()
        assert np.isnan(curves[0].low[10:]).all()

    def test_failed_trials_stay_in_the_pool(self):
        assert_allclose(expected_best([NAN, 1.0, 2.0]), [INF, 4 / 3, 1.0])
        assert_array_equal(expected_best([NAN, NAN], lower_is_better=False), [-INF, -INF])
        curve = budget_curve([NAN, 1.0, 2.0, 3.0])
        assert np.isnan(curve.low[0])

    def test_one_trial(self):
        curve = budget_curve([3.0])
        assert (curve.expected[0], curve.n[0]) == (3.0, 1)

    def test_refuses_an_empty_pool(self):
        with pytest.raises(ValueError, match="at least one trial"):
            expected_best([])


class TestTargets:
    def test_by_hand(self):
        bests = {"strong": [0.2, 0.3, NAN], "weak": [0.9, 0.9, 0.9]}
        assert_allclose(fixed_targets(2.3, bests, quantiles=(0.5, 1.0)), [1.3, 0.3])
        assert_allclose(fixed_targets(0.1, {"a": [0.8, 0.9, 1.0]}, lower_is_better=False), [0.5, 0.82, 0.9])

    def test_none_where_nothing_learned(self):
        assert fixed_targets(1.0, {"a": [1.0, 2.0, NAN]}) == []

    def test_reached_means_held_for_three(self):
        def at(values, target, **more):
            return cost_to_target(values, range(len(values)), target, **more)

        assert at([9, 1, 9, 1, 1, 9, 1, 1, 1, 9], 1) == 6
        assert at([9, 9, 9, 1, 1], 1) == INF
        assert at([1, NAN, 1, 1], 1) == INF
        assert at([0.1, 0.9, 0.9, 0.95], 0.9, lower_is_better=False) == 1
        assert at([1, 1], 1) == INF
        assert cost_to_target([3.0, 1.0, 1.0, 1.0], [0, 10, 20, 30], 2.0) == 10.0

    def test_a_first_crossing_is_biased_and_this_is_less(self):
        generator = np.random.default_rng(10)
        truth = np.exp(-np.arange(120) / 30)
        noisy = truth + generator.normal(scale=0.05, size=(300, 120))
        true_step = int((truth <= 0.1).argmax())
        first = np.mean([(row <= 0.1).argmax() for row in noisy])
        held = np.mean([cost_to_target(row, np.arange(120), 0.1) for row in noisy])
        assert true_step == 70
        assert first < true_step - 10
        assert abs(held - true_step) < true_step - first

    def test_ert_and_median_by_hand(self):
        found = time_to_target([10.0, INF, 30.0, NAN], [100, 100, 100, 50])
        assert (found.reached, found.median, found.ert) == (2, INF, 95.0)

    def test_nobody_reached(self):
        assert time_to_target([INF], [10]).ert == INF

    def test_refuses(self):
        with pytest.raises(ValueError, match="both costs"):
            time_to_target([1.0], [])
        with pytest.raises(ValueError, match=r"quantile=2 is not in \(0, 1\]"):
            fixed_targets(1.0, {}, quantiles=[2])


class TestBasinAndEdges:
    def test_width_from_the_start_to_the_best(self):
        basin = lr_basin([1e-4, 1e-3, 1e-2, 1e-1, 1.0], [0.3, 0.12, 0.1, 0.14, NAN], initial=1.1)
        assert basin is not None
        assert (basin.best_lr, basin.low, basin.high) == (1e-2, 1e-3, 1e-1)
        assert_allclose(basin.decades, 2.0)

    def test_it_spans_holes(self):
        basin = lr_basin([1, 2, 4, 8], [0.9, 0.1, 0.9, 0.9], lower_is_better=False, initial=0.1)
        assert basin is not None
        assert (basin.low, basin.high) == (1, 8)

    def test_all_failed(self):
        assert lr_basin([1.0, 2.0], [NAN, NAN], 1.0) is None

    def test_refuses_rates_that_have_no_logarithm(self):
        with pytest.raises(ValueError, match="positive"):
            lr_basin([0.0], [1.0], 1.0)

    def test_edges_are_the_outer_tenths_of_the_log_range(self):
        space = {"lr": (1e-4, 1e-1, True), "momentum": (0.8, 1.0, False), "eps": (1e-8, 1e-8, True)}
        best = {"lr": 1.9e-4, "momentum": 0.985, "eps": 1e-8}
        assert edges(best, space) == {"lr": "low", "momentum": "high"}
        assert edges({**best, "lr": 2.1e-4, "momentum": 0.97}, space) == {}

    def test_refuses_an_upside_down_range(self):
        with pytest.raises(ValueError, match="low < high"):
            edges({"lr": 1.0}, {"lr": (2.0, 1.0, True)})


class TestSampling:
    SPACE = {"lr": (1e-4, 1e-1, True), "weight_decay": (0.0, 1.0, False), "rho": (0.5, 0.9, False)}

    def test_more_trials_keep_the_earlier_ones(self):
        assert sample(self.SPACE, 20, seed=3)[:5] == sample(self.SPACE, 5, seed=3)

    def test_entries_share_each_names_sequence(self):
        other = {"rho": (0.0, 1.0, False), "lr": (1e-2, 1e1, True), "alpha": (1.0, 2.0, False)}
        for mine, theirs in zip(sample(self.SPACE, 9), sample(other, 9), strict=True):
            assert_allclose(np.log10(mine["lr"] / 1e-4), np.log10(theirs["lr"] / 1e-2))
            assert_allclose((mine["rho"] - 0.5) / 0.4, theirs["rho"])

    def test_stays_inside_and_seeds_differ(self):
        points = sample(self.SPACE, 64)
        for name, (low, high, _) in self.SPACE.items():
            assert all(low <= point[name] <= high for point in points)
        assert points != sample(self.SPACE, 64, seed=1)
        assert len(np.unique(np.floor(3 * np.log10([p["lr"] / 1e-4 for p in points]) / 3))) == 3

    def test_lower_discrepancy_than_random(self):
        cube = dict.fromkeys(COMMON[:3], (0.0, 1.0, False))
        generator = np.random.default_rng(11)
        ours = [qmc.discrepancy([list(p.values()) for p in sample(cube, 20, seed=s)]) for s in range(5)]
        random = [qmc.discrepancy(generator.random((20, 3))) for _ in range(5)]
        assert max(ours) < 0.5 * min(random)

    def test_a_fixed_dimension_stays(self):
        assert sample({"lr": (0.1, 0.1, True)}, 3) == [{"lr": 0.1}] * 3

    def test_no_two_names_share_a_coordinate(self):
        names = [*COMMON, *(f"x{i}" for i in range(50))]
        assert len(set(coordinates(names).values())) == len(names)

    @pytest.mark.parametrize("bounds", [(1.0, 0.1, False), (0.0, 1.0, True)])
    def test_refuses(self, bounds):
        with pytest.raises(ValueError, match="lr="):
            sample({"lr": bounds}, 1)


class TestProfiles:
    def test_by_hand(self):
        costs = {"a": [10, 30, INF], "b": [20, 10, INF]}
        ratios = cost_ratios(costs)
        assert_array_equal(ratios["a"], [1, 3, INF])
        found = performance_profiles(costs, points=4)
        assert_array_equal(found.tau, [1, 2, 3, 4])
        assert_allclose(found.share["a"], [1 / 3, 1 / 3, 2 / 3, 2 / 3])
        assert_allclose(found.share["b"], [1 / 3, 2 / 3, 2 / 3, 2 / 3])
        assert_allclose(found.score["a"], (1 + 1 / 3 + 0) / 3)

    def test_a_third_entry_swaps_two_others(self):
        costs = {"a": [4.0, 4.0], "b": [3.0, 8.0], "c": [1.0, 1.0]}
        alone, everyone = pairwise_profiles(costs)["a", "b"].score, performance_profiles(costs).score
        assert alone["a"] > alone["b"]
        assert everyone["a"] < everyone["b"]

    def test_the_score_is_the_area_under_the_profile(self):
        costs = np.random.default_rng(12).uniform(1, 5, size=(2, 40))
        found = performance_profiles({"a": costs[0], "b": costs[1]}, points=3001)
        area = np.trapezoid(found.share["a"], found.tau) / 3
        assert_allclose(found.score["a"], area, atol=1e-3)

    def test_free_for_both(self):
        assert_array_equal(cost_ratios({"a": [0.0], "b": [0.0]})["b"], [1.0])

    def test_refuses_negative_costs(self):
        with pytest.raises(ValueError, match="costs="):
            cost_ratios({"a": [-1.0]})


def run(optimizer: str, seed: int, score: float, **more) -> RunNumbers:
    parts = [optimizer, str(more.get("schedule", "constant")), str(more.get("batch_size", 0))]
    return RunNumbers(
        id=f"{' '.join(parts)} {seed}",
        entry=" ".join(parts),
        optimizer=optimizer,
        seed=seed,
        score=score,
        **more,
    )


class TestClaims:
    NOISE = np.array([0.0, 0.3, -0.3, 0.1, -0.1])

    def verdicts(self, runs):
        return {claim["id"]: claim for claim in claims(runs, metric="loss")}

    def test_nothing_run_nothing_said(self):
        found = claims([])
        assert len(found) == 10
        assert {claim["verdict"] for claim in found} == {"undecided"}
        assert all("Not tested here: it needs" in claim["why"] for claim in found)

    def test_judgement(self):
        assert judge(Interval(1.0, 0.2, 1.8, 0.0, 5, 1.0, "t"), 0.5) == "holds"
        assert judge(Interval(0.4, 0.2, 0.6, 0.0, 5, 1.0, "t"), 0.5) == "undecided"
        assert judge(Interval(0.2, 0.1, 0.4, 0.0, 5, 1.0, "t"), 0.5) == "no gap that counts"
        assert judge(Interval(0.008, -0.016, 0.032, 0.5, 5, 0.02, "t"), 0.04) == "no gap that counts"
        assert judge(Interval(-0.01, -0.02, 0.0, 0.05, 5, 0.02, "t"), 0.0) == "no gap that counts"
        assert judge(Interval(-1.0, -2.0, -0.1, 0.0, 5, 1.0, "t"), 0.5) == "fails"
        assert judge(Interval(0.0, 0.0, 0.0, 1.0, 5, 0.0, "t"), 0.0) == "undecided"

    def test_a_metric_at_its_floor_cannot_tell(self):
        runs = [run(name, s, -16.0) for name in ("sgd", "momentum", "adam") for s in range(5)]
        claim = self.verdicts(runs)["momentum-beats-sgd"]
        assert claim["verdict"] == "undecided"
        assert "the metric cannot tell them apart" in claim["why"]
        met = [run(name, s, -16.0, cost=0.0) for name in ("sgd", "adam") for s in range(5)]
        assert self.verdicts(met)["adam-first"]["verdict"] == "undecided"

    def test_optimizers_are_paired_by_seed_and_setting(self):
        runs = [run("sgd", s, 2.0 + x) for s, x in enumerate(self.NOISE)]
        runs += [run("momentum", s, 1.0 + x) for s, x in reversed(list(enumerate(self.NOISE)))]
        runs += [run("nesterov", s, 1.0 + x, schedule="cosine") for s, x in enumerate(self.NOISE)]
        runs += [run("momentum", 99, -50.0), run("adam", 0, 1.0)]
        found = self.verdicts(runs)
        claim = found["momentum-beats-sgd"]
        assert claim["verdict"] == "holds"
        assert claim["interval"] is not None
        assert (claim["interval"]["n"], len(claim["runs"])) == (5, 10)
        assert_allclose((claim["interval"]["low"], claim["interval"]["high"]), 1.0)
        assert found["nesterov-beats-momentum"]["interval"] is None  # never under the same schedule

    def test_a_textbook_can_be_wrong_here(self):
        runs = [run("sgd", s, 1.0 + x) for s, x in enumerate(self.NOISE)]
        runs += [run("momentum", s, 2.0 - x) for s, x in enumerate(self.NOISE)]
        assert self.verdicts(runs)["momentum-beats-sgd"]["verdict"] == "fails"

    def test_undecided_says_how_many_seeds(self):
        runs = [run("adam", s, x, decayed=True) for s, x in enumerate(self.NOISE)]
        runs += [run("adamw", s, -2 * x) for s, x in enumerate(self.NOISE)]
        claim = self.verdicts(runs)["adamw-beats-adam-l2"]
        assert claim["verdict"] == "undecided"
        assert "further seeds would decide it" in claim["why"]

    def test_schedules_average_over_optimizers(self):
        runs = []
        for s, x in enumerate(self.NOISE):
            for name, level in (("sgd", 2.0), ("adam", 1.0)):
                runs.append(run(name, s, level + x))
                runs.append(run(name, s, level + x - 1, schedule="cosine"))
                runs.append(run(name, s, level + x - 2, schedule="warmup+cosine"))
                runs.append(run(name, s, level + x, schedule="restarts"))
        found = self.verdicts(runs)
        assert [found[i]["verdict"] for i in ("schedule-beats-none", "warmup-helps", "restarts-help")] == [
            "holds",
            "holds",
            "fails",
        ]
        assert found["schedule-beats-none"]["interval"] is not None
        assert_allclose(found["schedule-beats-none"]["interval"]["mean"], 1.0)
        assert found["schedule-beats-none"]["interval"]["n"] == 5

    def test_adam_is_first_only_before_everybody(self):
        costs = np.exp(self.NOISE / 10)
        runs = [run("adam", s, 0.0, cost=100 * c) for s, c in enumerate(costs)]
        runs += [run("sgd", s, 0.0, cost=900 * c) for s, c in enumerate(costs[::-1])]
        assert self.verdicts(runs)["adam-first"]["verdict"] == "holds"
        slow = [run("momentum", s, 0.0, cost=INF) for s in range(5)]
        assert (
            self.verdicts(runs + slow)["adam-first"]["verdict"] == "undecided"
        )  # 5 seeds: sign test, p = .0625
        quick = [run("lion", s, 0.0, cost=50 * c) for s, c in enumerate(costs)]
        claim = self.verdicts(runs + quick)["adam-first"]
        assert claim["verdict"] == "fails"
        assert "strongest rival is lion" in claim["why"]

    def test_generalization_is_judged_on_the_test_split(self):
        runs = [run("momentum", s, 5.0 + x, test=1.0 + x) for s, x in enumerate(self.NOISE)]
        runs += [run("adam", s, 1.0 + x, test=5.0 + x) for s, x in enumerate(self.NOISE)]
        claim = self.verdicts(runs)["momentum-generalizes-better"]
        assert claim["verdict"] == "holds"
        assert "Adam's eps was not tuned" in claim["why"]
        tuned = [replace(each, eps_tuned=each.optimizer == "adam") for each in runs]
        assert "eps" not in self.verdicts(tuned)["momentum-generalizes-better"]["why"]

    @pytest.mark.parametrize(("fall", "verdict"), [(-1.0, "holds"), (-0.05, "fails")])
    def test_adagrad_needs_a_rate_that_fell(self, fall, verdict):
        runs = [run("adagrad", s, 5.0 + x, rate_fall=fall + x / 100) for s, x in enumerate(self.NOISE)]
        runs += [run("rmsprop", s, 1.0 + x) for s, x in enumerate(self.NOISE)]
        claim = self.verdicts(runs)["adagrad-rate-shrinks"]
        assert claim["verdict"] == verdict
        assert f"{10**fall:.3g} × where it began" in claim["why"]

    def test_small_batches(self):
        jumps = np.exp(self.NOISE / 10)
        runs = [run("sgd", s, 0.0, batch_size=8, noise=2 * j) for s, j in enumerate(jumps)]
        runs += [run("sgd", s, 0.0, batch_size=64, noise=NAN) for s in range(5)]
        runs += [run("sgd", s, 0.0, batch_size=512, noise=j) for s, j in enumerate(jumps)]
        claim = self.verdicts(runs)["smaller-batches-noisier"]
        assert claim["verdict"] == "holds"
        assert claim["interval"] is not None
        assert_allclose(claim["interval"]["mean"], np.log(2))

    def test_accuracies_count_upwards(self):
        runs = [run("sgd", s, 0.5 + x / 100) for s, x in enumerate(self.NOISE)]
        runs += [run("momentum", s, 0.9 + x / 100) for s, x in enumerate(self.NOISE)]
        first = claims(runs, metric="accuracy", lower_is_better=False)[0]
        assert first["verdict"] == "holds"
        assert "accuracy 0.9 against 0.5" in first["why"]

    def test_read_from_a_report(self):
        def reported(entry, seed, metric, stage="report", status="finished"):
            steps = list(range(len(metric)))
            return {
                "id": f"{entry}{seed}{stage}",
                "entry": entry,
                "stage": stage,
                "seed": seed,
                "status": status,
                "test": {"loss": None, "metric": metric[-1]} if status == "finished" else None,
                "curve": {
                    "gradients": [10 * s for s in steps],
                    "metric": metric,
                    "train_loss": [1 / (1 + s) for s in steps],
                    "effective_rate": [None, *([0.1] * (len(metric) - 1))],
                },
            }

        def entry(name):
            return {"name": name, "optimizer": name, "schedule": "constant", "batch_size": 8, "space": {}}

        task = {
            "metric": {"name": "accuracy", "best": "max"},
            "targets": [{"value": 0.6, "ranking": True}],
            "entries": [entry("sgd"), entry("momentum")],
            "runs": [
                *(reported("sgd", s, [0.1, None]) | {"status": "diverged", "test": None} for s in range(3)),
                *(reported("momentum", s, [0.1, 0.7, 0.8, 0.9]) for s in range(3)),
                reported("momentum", 0, [0.1, 0.1], stage="tune"),
                reported("momentum", 7, [0.1, 0.1], status="crashed"),
            ],
        }
        first = claims_of(task)[0]
        assert first["verdict"] == "holds"
        assert_allclose(first["interval"]["mean"], 0.8)
        assert first["runs"] == [f"{e}{s}report" for e in ("momentum", "sgd") for s in range(3)]
        assert "interval" in claims_of(task)[1]


def test_what_is_left_of_rounding_is_zero():
    """Accuracies k/360: means of equal ones, and differences that cancel, were −2e−17 and ± 1e−16."""
    same = mean_interval([350 / 360] * 7)
    assert (same.centre, same.low, same.high) == (350 / 360,) * 3
    a, b = np.array([350, 351, 352, 349]) / 360, np.array([351, 350, 349, 352]) / 360
    assert paired_interval(a, b).centre == 0
    moved = np.nextafter(a, 1)
    assert (moved != a).any()
    found = paired_interval(a, moved)
    assert (found.centre, found.low, found.high) == (0, 0, 0)
    tiny = paired_interval([1e-20, 2e-20], [3e-20, 4e-20])  # small, and no rounding
    assert tiny.centre == pytest.approx(2e-20)
