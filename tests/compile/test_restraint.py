"""`cautious` and `max_update`: every rule with them, against the two formulas written down in NumPy."""

import numpy as np
import pytest
import torch

from schuss.compile import cpu, eager, gpu
from schuss.compile.formula import formula
from schuss.compile.grammar import check
from schuss.compile.launch import Terms, numbers
from schuss.compile.reference import WORDS, Reference
from schuss.compile.restraint import restrained
from schuss.rules import Rule

OPTIONS = {
    "cautious": dict(cautious=True),
    "limited": dict(max_update=1e-4),
    "both": dict(cautious=True, max_update=0.3),
}
STEPS, SIZE = 6, 40


def formula_with(rule, cautious=False, max_update=None, averaged=False):
    return formula(rule, averaged, cautious=cautious, limited=max_update is not None)


def held_back(change, g, largest, cautious=False, max_update=None):
    """The change with the options, as published; `largest` is for max_update = 1."""
    if cautious:
        mask = np.where(-np.sign(change) * np.sign(g) > 0, 1.0, 0.0)
        change = change * mask / max(np.mean(mask), 1e-3)
    if max_update is not None and change.any():
        change = change / max(1.0, np.sqrt(np.mean(change**2)) / (max_update * largest))
    return change


def written_down(rule, start, gradients, **options):
    """Where a weight goes: the rule's own change of it by itself, and the options by hand."""
    plain, w = Reference(rule, start), start
    for t, g in enumerate(gradients, 1):
        old_state, scalars = [state.copy() for state in plain.state], rule.coefficients(t, **plain.scalars)
        plain.w = w
        kept = scalars.get("keep", 1.0) * w
        w = kept + held_back(plain.step(g) - kept, g, rule.lr, **options)
        if type(rule).__name__ == "ASGD":  # its average is of the weight as it moved
            plain.state[0] = scalars["stay"] * old_state[0] + scalars["share"] * w
    return w, plain.state


def refuses(case):
    return case.rule.has_evaluated()


def given(seed=1, size=SIZE):
    random = np.random.default_rng(seed)
    start, noise = random.standard_normal(size), random.standard_normal((STEPS, size))
    return start, noise * 10 ** random.uniform(-2, 1, (STEPS, 1)) * (random.random((STEPS, size)) > 0.1)


def eagerly(rule, start, gradients, dtype=torch.float64, **options):
    """The weight and its state after the steps, one operation after the other."""
    one, first, w = formula_with(rule, **options), rule.initial(), torch.tensor(start, dtype=dtype)
    slots = [torch.full_like(w, first.get(name, 0.0)) for name in one.slots]
    remembered = [0.0, *(first.get(name, 0.0) for name in rule.scalars)]
    kept = (str(dtype).removeprefix("torch."),) * (2 + len(slots))
    for g in gradients:
        terms = Terms(max_update=options.get("max_update"))
        row, remembered = numbers(one, False, rule, remembered, terms)
        eager.step(one, kept, [w, torch.from_numpy(g).to(dtype), *slots], row, rule=rule)
    return w, slots


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_rule_is_as_written_down(case, options):
    if refuses(case):
        return
    start, gradients = given()
    w, state = written_down(case.rule, start, gradients, **options)
    found, slots = eagerly(case.rule, start, gradients, **options)
    np.testing.assert_allclose(found.numpy(), w, rtol=1e-11, atol=1e-12)
    for slot, expected in zip(slots, state, strict=True):
        np.testing.assert_allclose(slot.numpy(), expected, rtol=1e-10, atol=1e-12)
    reference = Reference(case.rule, start, **options)
    np.testing.assert_allclose(reference.run(gradients), w, rtol=1e-11, atol=1e-12)
    assert (w != written_down(case.rule, start, gradients)[0]).any()


MISTAKES = {
    "uphill": ("(change < 0.0) & (gradient > 0.0) |", "(change < 0.0) & (gradient < 0.0) |"),
    "one direction": ("| (change > 0.0) & (gradient < 0.0)", "| (change > 0.0) & (gradient > 0.0)"),
    "not scaled up": ("1.0 / maximum(mean(agrees), 0.001)", "1.0"),
    "scaled by all": ("maximum(mean(agrees), 0.001)", "maximum(mean(agrees), 1.0)"),
    "masked in the scale alone": ("change = change * agrees", "change = change * 1.0"),
    "with L2 decay": ("gradient = g\n    g = g + l2 * w", "g = g + l2 * w\n    gradient = g"),
    "decay lost": ("kept = keep * w", "kept = w"),
    "decay in the change": (
        "kept = keep * w\n    change = -(step",
        "kept = w\n    change = keep * w - w - (step",
    ),
    "a norm, not a root mean square": ("root_mean_square(change)", "norm(change)"),
    "limited before it is scaled": ("length = factor * root", "length = root"),
    "scaled anew": ("factor * largest_change / where", "largest_change / factor / where"),
    "always at the limit": ("length > largest_change", "length > 0.0"),
    "never larger": ("factor * change", "minimum(factor, 1.0) * change"),
    "the average of another weight": (
        "w = kept + factor * change\n    x = stay * x + share * w",
        "x = stay * x + share * (kept + change)\n    w = kept + factor * change",
    ),
}


@pytest.mark.parametrize("mistake", [None, *MISTAKES])
def test_mistakes_are_seen(mistake):
    from schuss.rules import ASGD

    rule = ASGD(lr=0.03, lambd=0.3, alpha=0.5, t0=2, weight_decay=0.3)
    text = formula_with(rule, **OPTIONS["both"]).source()
    if mistake:
        assert text.count(MISTAKES[mistake][0]) == 1
        text = text.replace(*MISTAKES[mistake])
    scope = dict(WORDS)
    exec(text, scope)
    start, gradients = given(2)
    limited = 0
    for max_update in (0.5, 20.0):  # reached, and not
        expected = written_down(rule, start, gradients, cautious=True, max_update=max_update)
        w, x, scalars = start, np.zeros(SIZE), {"eta": rule.initial()["eta"], "mu": rule.initial()["mu"]}
        for t, g in enumerate(gradients, 1):
            found = rule.coefficients(t, **scalars)
            scalars = {name: found[name] for name in scalars}
            page = [found[name] for name in ("l2", "keep", "step", "stay", "share")]
            w, x = scope["update"](w, g, x, *page, max_update * rule.lr)
        limited += np.allclose(w, expected[0], rtol=1e-9) and np.allclose(x, expected[1][0], rtol=1e-9)
    assert (limited == 2) == (mistake is None)


def test_how_a_rule_is_written_decides_what_is_decay():
    """Terms that are the old weight times coefficients, wherever they stand; else all that the step changed."""

    def lines(body, arguments="w, g, v, a, b"):
        return restrained(f"def update({arguments}):\n    {body}", True, False)

    for body in ("w = a * w - b * g", "w = w * a - b * g", "w = w / a - b * g", "w = -b * g + a * w"):
        text = lines(f"{body}\n    return w, v")
        assert "kept = " in text
        assert "w - old" not in text
    text = lines("w = w - b * g - a * w\n    return w, v")
    assert "kept = w - a * w\n    change = -(b * g)" in text
    for body in (
        "w = w - b * g\n    w = w - a * w",  # the last line is of a moved weight
        "w = w - a * w * g\n    w = w * a",
        "w = where(g > 0, w - a, w)",
        "w, v = w - g, w",
    ):
        text = lines(f"{body}\n    return w, v")
        assert "old = w\n" in text
        assert "change = w - old" in text
    text = lines("change = b * g\n    return w - change, w")
    assert "moved = kept + factor * change_\n    return (moved, w)" in text
    assert "return (moved,)" in restrained("def update(w, g, a):\n    return (w - a * g,)", False, True)


def test_the_decay_of_a_rule_that_cannot_be_split_counts():
    start, gradients = given(3)

    def run(text, *more):
        scope = dict(WORDS)
        exec(restrained(text, True, False), scope)
        w = start
        for g in gradients:
            (w,) = scope["update"](w, g, *more)
        return w

    chosen = run(
        "def update(w, g, a, b):\n    w = where(a > 0.0, a * w - b * g, w)\n    return (w,)", 0.5, 0.1
    )
    w = start
    for g in gradients:
        w = w + held_back(0.5 * w - 0.1 * g - w, g, 1.0, cautious=True)
    np.testing.assert_allclose(chosen, w, rtol=1e-12)


def test_no_change_is_too_small_to_have_a_sign():
    """What the product of a change and a gradient, or the difference of two weights, would round to nothing."""
    from schuss.rules import SGD

    w, g = np.ones(4, np.float64), np.full(4, 1e-30)
    found, _ = eagerly(SGD(lr=1e-9, momentum=0.5), w, [g], torch.float32, cautious=True)
    text = formula_with(SGD(), cautious=True).source()
    assert "change = -(lr * g)" in text
    scope = dict(WORDS)
    exec(text, scope)
    assert found.tolist() == [1.0] * 4
    zero = np.zeros(4, np.float32)
    (moved,) = scope["update"](zero, g.astype(np.float32), np.float32(0), np.float32(1), np.float32(1e-9))
    np.testing.assert_allclose(moved, -1e-39, rtol=1e-2)


def test_nothing_agrees_and_nothing_moves():
    """The gradient has turned round: momentum goes the wrong way everywhere, and only decay is left."""
    from schuss.rules import AdamW

    w, g = np.ones(8), np.ones(8)
    before, _ = eagerly(AdamW(lr=0.1, weight_decay=0.5), w, [g] * 20, cautious=True)
    after, _ = eagerly(AdamW(lr=0.1, weight_decay=0.5), w, [*[g] * 20, -0.01 * g], cautious=True)
    np.testing.assert_allclose(after, 0.95 * before, rtol=1e-15)


def test_a_rate_of_zero_moves_nothing():
    from schuss.rules import SGD

    w, g = np.ones(8), np.ones(8)
    assert (eagerly(SGD(lr=0.0), w, [g] * 2, max_update=1.0)[0] == 1).all()
    assert (eagerly(SGD(lr=0.0), w, [g] * 2, cautious=True, max_update=1.0)[0] == 1).all()


def test_without_the_options_a_rule_is_its_own_text(variant):
    one = formula(variant.rule)
    assert one.code is one.function.__code__
    assert not one.restrained
    assert formula(variant.rule, cautious=False, limited=False) is one
    if one.passes is None:
        assert "mean" not in cpu.source(one, ("float32",) * (2 + len(one.slots)))


class Renamed(Rule):
    """A rule that has the mechanism's own names, and no learning rate."""

    state = ("kept",)

    def coefficients(self, step):
        return dict(factor=0.1, agrees=0.5)

    @staticmethod
    def update(w, g, kept, factor, agrees):
        change = factor * g
        gradient = agrees * change
        kept = kept + gradient
        return w - kept, kept


def test_names_of_a_rule_are_left_to_it():
    check(Renamed)
    start, gradients = given(4)
    found, _ = eagerly(Renamed(), start, gradients, cautious=True)
    w, kept = start, np.zeros(SIZE)
    for g in gradients:
        kept = kept + 0.05 * g
        w = w + held_back(-kept, g, 1.0, cautious=True)
    np.testing.assert_allclose(found, w, rtol=1e-12)


def test_machine_code_for_a_gpu(gpus):
    from schuss.rules import AdamW

    one = formula_with(AdamW(), averaged=True, **OPTIONS["both"])
    kept = ("bfloat16 stochastic", "bfloat16", "int8", "int8", "float32")
    assert gpu.suffixes(one) == ("_1", "")
    for entry in ("finish_1", "launch"):
        assert gpu.machine_code(one, kept, entry=entry).asm["ptx"]
