"""What holds for every page: its table row, its domains, and the invariances that its maths has."""

import inspect
import math
from dataclasses import fields, replace

import numpy as np
import pytest

from schuss.compile.formula import formula
from schuss.compile.matrices import words
from schuss.compile.reference import WORDS, Reference
from schuss.rules import TABLE
from schuss.rules.adam import left_to_average
from schuss.rules.rule import maximum, minimum, sign, where

STEPS, SIZE = 8, 12


def path(rule, start, gradients):
    reference = Reference(rule, start)
    return np.array([reference.step(g) for g in gradients])


@pytest.fixture
def start():
    return np.random.default_rng(3).standard_normal(SIZE)


def scalars_of(rule):
    return {name: rule.initial().get(name, 0.0) for name in rule.scalars}


def test_a_page_names_all_that_its_updates_take(variant):
    rule = variant.rule
    function = getattr(rule, "update_" + rule.variant if rule.variant else "update")
    names = list(inspect.signature(function).parameters)
    coefficients = rule.coefficients(1, **scalars_of(rule))
    assert names[: 2 + len(rule.slots)] == ["w", "g", *rule.slots]
    assert set(names[2 + len(rule.slots) :]) == coefficients.keys() - set(rule.scalars)
    assert len(
        function(
            1.0, 1.0, *[1.0] * len(rule.slots), **{n: coefficients[n] for n in names[2 + len(rule.slots) :]}
        )
    ) == (1 + len(rule.slots))


@pytest.mark.parametrize("name", TABLE)
def test_a_row_knows_every_hyperparameter_and_all_state(name):
    row = TABLE[name]
    own = {f.name for f in fields(row.rule)}
    words = set(row.arguments.split()) - {"|"}
    for together, parts in row.rule.tuples.items():
        assert together in words
        assert set(parts) <= own
    state = {slot for slots in row.rule.variants.values() for slot in slots} | set(row.rule.scalars)
    assert row.names.keys() == state
    assert set(row.rule().initial()) <= state


@pytest.mark.parametrize("name", TABLE)
def test_every_hyperparameter_has_a_domain_that_holds_its_default_and_not_nan(name):
    rule = TABLE[name].rule
    for f in fields(rule):
        rule(**{f.name: f.default})
        with pytest.raises(ValueError, match=f"^{f.name}=nan is not "):
            rule(**{f.name: math.nan})


@pytest.mark.parametrize("name", TABLE)
def test_every_hyperparameter_stands_in_the_pages_own_table(name):
    rule = TABLE[name].rule
    for f in fields(rule):
        described = any(f"`{f.name}`" in (cls.__doc__ or "") for cls in rule.__mro__)
        assert described, f"{name}'s docstring has no row for {f.name}"


@pytest.mark.parametrize("name", TABLE)
def test_pages_are_frozen_and_by_keyword(name):
    rule = TABLE[name].rule()
    with pytest.raises(AttributeError):
        rule.lr = 1.0
    with pytest.raises(TypeError):
        type(rule)(0.1)
    assert replace(rule, lr=0.5) == type(rule)(lr=0.5)
    assert hash(replace(rule)) == hash(rule)


def test_a_rate_of_zero_moves_nothing(case, start, decades):
    if case.name == "Rprop":
        pytest.skip("its rate is the first length")
    found = path(replace(case.rule, lr=0.0), start, decades(STEPS, SIZE, 1))
    assert (found == start).all()


def test_weights_do_not_see_each_other(case, start, decades):
    """Splitting a tensor changes nothing, bit for bit.

    Of a rule that looks at whole tensors, the order of its weights changes nothing but how sums are rounded.
    """
    gradients = decades(STEPS, SIZE, 2)
    whole = path(case.rule, start, gradients)
    if formula(case.rule).passes:
        turned = path(case.rule, start[::-1], gradients[:, ::-1])[:, ::-1]
        assert np.allclose(whole, turned, rtol=1e-12, atol=1e-12 * np.abs(start).max())
        return
    parts = [
        path(case.rule, start[part], gradients[:, part])
        for part in (slice(0, 5), slice(5, 6), slice(6, None))
    ]
    assert (whole == np.concatenate(parts, axis=1)).all()


def test_mirrored_gradients_mirror_the_path(case, start, decades):
    gradients = decades(STEPS, SIZE, 3)
    assert (path(case.rule, -start, -gradients) == -path(case.rule, start, gradients)).all()


SCALE_FREE = {
    "Adagrad": ("eps",),
    "RMSprop": ("eps",),
    "Adam": ("eps",),
    "AdamW": ("eps",),
    "NAdam": ("eps",),
}
SCALE_FREE |= {"Adamax": ("eps",), "Lion": (), "Rprop": ()}
SCALE_FREE |= {"LARS": ("eps",), "LAMB": ("eps",), "MARS": ("eps",)}
SCALE_FREE |= {"ScheduleFreeAdamW": ("eps",)}
SCALED = ("ScheduleFreeSGD", "ScheduleFreeRAdam", "SGD", "ASGD", "Adadelta", "RAdam")
SCALE_FREE |= {"Adan": ("eps",), "AdaBelief": ("eps",), "ADOPT": ("eps",), "AdEMAMix": ("eps",)}


@pytest.mark.parametrize("factor", [2.0**-20, 2.0**20])
def test_the_scale_of_the_loss(case, start, decades, factor):
    """Rules that measure a gradient in its own units do not feel the scale of the loss, once ε is 0."""
    if case.name not in SCALE_FREE and case.name not in SCALED:
        pytest.skip("a new rule: put it into one of the two lists")
    feels = (
        case.name in SCALED
        or case.feels_untouched_rows
        or bool(case.options.get("initial_accumulator_value"))
        or (case.name == "LARS" and ((case.rule.trust_clip and factor < 1) or not case.rule.always_adapt))
        or (case.name == "MARS" and factor < 1)  # longer gradients are cut to norm 1
    )
    rule = replace(case.rule, **dict.fromkeys(SCALE_FREE.get(case.name, ()), 0.0))
    gradients = decades(STEPS, SIZE, 4, -2, 2)
    gradients[gradients == 0] = 1.0
    usual, scaled = path(rule, start, gradients), path(rule, start, factor * gradients)
    assert np.allclose(scaled, usual, rtol=1e-13, atol=0) == (not feels)


def test_sgd_scales_with_the_loss(start, decades):
    gradients = decades(STEPS, SIZE, 4, -2, 2)
    for momentum in (0.0, 0.9):
        rule = TABLE["SGD"].rule(lr=0.25, momentum=momentum)
        change = path(rule, 0 * start, gradients)
        assert (path(rule, 0 * start, 8 * gradients) == 8 * change).all()


def test_infinite_and_missing_gradients_are_never_hidden(case):
    """A NaN gradient gives a NaN weight, and neither it nor an infinite one touches a neighbour.

    A rule that looks at whole tensors has no neighbours: a NaN is then everywhere in its tensor.
    """
    if formula(case.rule).passes:
        reference = Reference(case.rule, np.array([1.0, 1.0]))
        reference.step(np.array([0.5, math.nan]))
        assert np.isnan(reference.w).all() or (case.rule.always_adapt is False and np.isnan(reference.w[1]))
        return
    for bad in (math.nan, math.inf, -math.inf):
        reference = Reference(case.rule, np.array([1.0, 1.0]))
        clean = Reference(case.rule, np.array([1.0]))
        for g in ([0.5, bad], [0.25, 0.25]):
            reference.step(np.array(g))
            clean.step(np.array(g[:1]))
        assert reference.w[0] == clean.w[0]
        if math.isnan(bad):
            assert math.isnan(reference.w[1])
        elif case.name in SCALE_FREE or case.name in SCALED:  # a sign is finite; what measures a size is not
            clips = getattr(case.rule, "clip", False)  # as ADOPT does, by the sizes before
            assert math.isfinite(reference.w[1]) == (case.name in ("Lion", "Rprop") or clips)


# The coefficients


@pytest.mark.parametrize("beta", [0.0, 1e-300, 0.5, 0.9, 0.999, 1 - 1e-9, 1 - 2**-53])
@pytest.mark.parametrize("step", [1, 2, 10, 1000, 10**7, 2**40])
def test_corrections_are_exact_near_one(beta, step):
    from decimal import Decimal, localcontext

    with localcontext() as context:
        context.prec = 60
        expected = float(1 - Decimal(beta) ** step)
    assert left_to_average(beta, step) == pytest.approx(expected, rel=1e-14, abs=0)


def test_coefficients_stay_finite_for_ever(case):
    for step in (1, 2, 7, 1000, 2**24 + 1, 2**40):
        values = case.rule.coefficients(step, **scalars_of(case.rule))
        assert all(math.isfinite(value) for value in values.values()), (step, values)


@pytest.mark.parametrize("name", TABLE)
def test_every_coefficient_moves_something(name, cases_of, start, decades):
    """None is computed for nothing: in one of the cases, another value of it is another path."""
    gradients = decades(STEPS, SIZE, 5, -2, 2)

    def walk(rule, changed=None):
        one = formula(rule)
        shape = (SIZE // 4, 4) if one.of_matrices else (SIZE,)
        state = [np.full(shape, rule.initial().get(slot, 0.0)) for slot in rule.slots]
        w, scalars, found = start.reshape(shape), scalars_of(rule), []
        for step, g in enumerate(gradients.reshape(-1, *shape), 1):
            values = rule.coefficients(step, **scalars)
            scalars = {scalar: values[scalar] for scalar in rule.scalars}
            numbers = [1e-3 - values[c] if c == changed else values[c] for c in one.coefficients]
            w, *state = one.bind(WORDS | words(rule, shape))(w, g, *state, *numbers)
            found.append(np.array([w, *state]))
        return np.array(found)

    taken = {c: case.rule for case in cases_of(name) for c in formula(case.rule).coefficients}
    assert taken
    with np.errstate(all="ignore"):
        still = [c for c in taken if all(_same(walk(r), walk(r, c)) for r in _rules(name, cases_of, c))]
    assert not still


def _rules(name, cases_of, coefficient):
    return [case.rule for case in cases_of(name) if coefficient in formula(case.rule).coefficients]


def _same(one, other):
    return np.array_equal(one, other, equal_nan=True)


# The vocabulary


def test_the_vocabulary_on_plain_numbers():
    nan = math.nan
    assert [sign(x) for x in (-2.5, 0.0, 3)] == [-1, 0, 1]
    assert math.isnan(sign(nan))
    assert (maximum(1, 2), maximum(2, 1), minimum(1, 2), minimum(2, 1)) == (2, 2, 1, 1)
    assert all(math.isnan(f(*pair)) for f in (maximum, minimum) for pair in ((nan, 1), (1, nan)))
    assert (where(True, 1, 2), where(False, 1, 2)) == (1, 2)
