"""Mistakes in a rule: each is one message that names the file, the line and the remedy, when the class is made."""

import importlib.util
import inspect
import re
import sys

import pytest

import schuss.numpy
import schuss.torch
from schuss.compile import source
from schuss.compile.grammar import check, options_of_variants
from schuss.compile.reference import Reference
from schuss.errors import RuleError
from schuss.rules import TABLE, AdamW

GOOD = '''from dataclasses import dataclass

from schuss.rules import Rule, number, sign


@dataclass(frozen=True, kw_only=True)
class Mine(Rule):
    """Step by the sign of the average gradient."""

    lr: float = number(1e-4, low=0)
    beta: float = number(0.9, low=0, below=1)
    state = ("m",)

    def coefficients(self, step):
        return dict(decay=self.beta, gain=1 - self.beta, lr=self.lr)

    @staticmethod
    def update(w, g, m, decay, gain, lr):
        m = decay * m + gain * g
        w = w - lr * sign(m)
        return w, m
'''
MEAN, MOVE, RESULT = "m = decay * m + gain * g", "w = w - lr * sign(m)", "return w, m"
NUMBERS = "dict(decay=self.beta, gain=1 - self.beta, lr=self.lr)"
TWO = """state = ("m", "v")"""

# what is written instead of what, the line that is named, and what is said
MISTAKES = [
    (MEAN, "m = m if g > 0 else g", 19, "where(condition, yes, no)"),
    (MOVE, "if w > 0: w = w - lr", 20, "update has an if. Write where(condition, yes, no)"),
    (MOVE, "for _ in range(3): w = w - lr", 20, "update has a loop. Write its steps out"),
    (MOVE, "while w > 0: w = w - lr", 20, "update has a loop"),
    (MOVE, "w = w - lr * sgn(m)", 20, "sgn is not known in an update. Did you mean sign?"),
    (MOVE, "w = w - lr * np.sqrt(m)", 20, "np.sqrt is not known in an update. Did you mean sqrt?"),
    (MOVE, "w = w - lr * q", 20, "q is not known in an update"),
    (
        MOVE,
        "w = w - beta * m",
        20,
        "beta is a hyperparameter, which update does not see. Return it from coefficients",
    ),
    (MOVE, "w -= lr * m", 20, "w -= lr * m would change a tensor in place. Write w = w - ..."),
    (MOVE, "w = w - lr * m ** 2", 20, "Write x * x, sqrt(x), or exp(p * log(x))"),
    (MOVE, "w = w - lr * (0 < m < 1)", 20, "Write (a < b) & (b < c)"),
    (MOVE, "w = w - lr * (m > 0 and g > 0)", 20, "needs one truth value"),
    (MOVE, "w = w - lr * m[0]", 20, "is no arithmetic on numbers"),
    (MOVE, "w = w - lr * sign(m, 2)", 20, "sign takes sign(a)"),
    (MOVE, "w = w - lr * sign", 20, "sign is a function. Write sign(...)"),
    (MOVE, "sign = 2 * lr", 20, "sign is a word of the vocabulary"),
    (MOVE, "print(w)", 20, "is no plain assignment"),
    (MOVE, "w = w - lr * True", 20, "True is no real number"),
    (MOVE, "return w, m", 20, "returns before its end"),
    (RESULT, "return w", 21, "returns w; a weight and 1 of state are 2. Write return w, m"),
    (RESULT, "return w, m, g", 21, "returns (w, m, g); a weight and 1 of state are 2"),
    (RESULT, "return m, w", 21, "returns m, w, but the state is ('m',): another order"),
    (f"        {RESULT}\n", "", 20, "returns nothing. End it with return w, m"),
    ("gain=1 - self.beta, ", "", 14, "coefficients returns no 'gain', which update takes"),
    ("gain=1 - self.beta", "gian=1 - self.beta", 14, "Did you mean 'gian'?"),
    ("gain=1 - self.beta", "gain=float('nan')", 14, "gives gain=nan, which is not a finite number"),
    ("gain=1 - self.beta", "gain=1 / (step - 2)", 14, "coefficients(step=2) fails: ZeroDivisionError"),
    (NUMBERS, "[self.beta, 1 - self.beta, self.lr]", 14, "coefficients returns list. Return a dict"),
    ('state = ("m",)', 'state = ("m", "m")', 17, "'m' is named twice in the state"),
    ('state = ("m",)', 'state = ("m")', 17, "state = 'm' is not a tuple of names. Write state = ('m',)"),
    ('state = ("m",)', 'state = ("g",)', 17, "state cannot be named 'g'"),
    ('state = ("m",)', TWO, 17, "It must take w, g, m, v, then the coefficients by name"),
    ('state = ("m",)', 'state = ("m",)\n    state_names = {"m": "step"}', 18, "the checkpoint's name 'step'"),
    (
        'state = ("m",)',
        'state = ("m",)\n    state_names = {"q": "n"}',
        18,
        "state_names has 'q', which is no state",
    ),
    (
        'state = ("m",)',
        'state = ("m",)\n    precise = ("q",)',
        18,
        "precise has 'q', which is no state. State: m.",
    ),
    ('state = ("m",)', 'state = ("m",)\n    precise = ("m")', 18, "precise = 'm' is not a tuple of names"),
    (
        'state = ("m",)',
        'state = ("m",)\n    tuples = {"betas": ("b",)}',
        18,
        "Each name on the right must be a field",
    ),
    ("beta: float = number(0.9, low=0, below=1)", "beta: float = 0.9", 11, "beta has no domain"),
    ("number(0.9, low=0, below=1)", "number(1.0, low=0, below=1)", 17, "beta=1.0 is not in [0, 1)"),
    ("beta: float", "seed: float = number(0)\n    beta: float", 11, "seed is an argument of every optimizer"),
    ("@dataclass(frozen=True, kw_only=True)\n", "", 9, "no dataclass, so lr is no hyperparameter"),
    ("    @staticmethod\n", "", 17, "is no static method. Write @staticmethod above it"),
    ("gain, lr):", "gain, lr=1):", 17, "by name, without defaults"),
    ("decay, gain, lr):", "decay, divide, lr):", 17, "a coefficient cannot be named 'divide'"),
    ('state = ("m",)', 'state = ("m_",)', 17, "state cannot be named 'm_', which means something else"),
    (MOVE, "real = w * lr", 20, "real is a function of the kernels. Give the number another name"),
    (MOVE, "w = w - lr * norm(lr)", 20, "'norm(lr)' is of lr, which is one number for the whole tensor"),
    (
        MOVE,
        "w = w - lr * mean(rows(w) + lr)",
        20,
        "Give mean what differs from element to element, as w or g",
    ),
    (MOVE, "w, q = w - total(norm(m) * lr), m", 20, "is of norm(m) * lr, which is one number"),
    (MOVE, "w = orthogonal(m)", 17, "orthogonal needs polynomials. Write a property iterations"),
    ("decay, gain, lr):", "decay, scale, lr):", 17, "a coefficient cannot be named 'scale'"),
    (
        'state = ("m",)',
        'state = ("m",)\n    shapes = {"m": "row"}',
        22,
        "m is one number for each row, but what update returns for it differs within a row. Take row_mean(...) of it",
    ),
    ('state = ("m",)', 'state = ("m",)\n    shapes = {"m": "rows"}', 18, "each with one of 'row', 'column'"),
    ('state = ("m",)', 'state = ("m",)\n    shapes = {"q": "row"}', 18, "It names state"),
    (MOVE, "w = w - lr * row_mean(row_mean(m))", 20, "which is one number for each row already"),
    (MOVE, "w = w - lr * row_mean(norm(m))", 20, "which is one number for the whole tensor"),
    (
        'state = ("m",)',
        'state = ("m",)\n    def variant_of(self, dimensions): return "flat"',
        13,
        "variant_of(0) is 'flat', which is none of ''",
    ),
]


@pytest.fixture
def written(tmp_path, monkeypatch):
    """`written(text)`: the rule `Mine` of a file with this text."""
    monkeypatch.chdir(tmp_path)

    def load(text, name="my_rule"):
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module.Mine

    return load


@pytest.mark.parametrize(("old", "new", "line", "said"), MISTAKES, ids=[repr(m[1][:40]) for m in MISTAKES])
@pytest.mark.parametrize("api", [schuss.torch, schuss.numpy], ids=["torch", "numpy"])
def test_each_mistake_is_named_with_its_file_line_and_remedy(api, written, old, new, line, said):
    assert GOOD.count(old) == 1
    rule = written(GOOD.replace(old, new))
    with pytest.raises(RuleError, match=rf"^my_rule\.py:{line}: .*{re.escape(said)}") as refused:
        api.optimizer(rule)
    assert "\n" not in str(refused.value)


def test_one_number_for_the_tensor_stays_one_through_names(written):
    """Also where a name is given anew: to what differs, it may be measured again."""
    lines = "q = norm(m)\n        p = q * lr\n        "
    for more, said in (("w = w - norm(p)", "is of p"), ("w, p = w - p, w\n        w = w - norm(p)", None)):
        rule = written(GOOD.replace("number, sign", "norm, number, sign").replace(MOVE, lines + more))
        if said is None:
            check(rule)
            continue
        with pytest.raises(RuleError, match=rf"my_rule\.py:22: .*{said}, which is one number"):
            check(rule)


def test_what_has_no_mistake_is_taken(written):
    rule = written(GOOD)
    for make in (schuss.torch.optimizer, schuss.numpy.optimizer):
        assert make(rule).__name__ == "Mine"
        assert make(rule) is make(rule)


def test_a_rule_without_coefficients_or_update_and_what_is_no_rule(written):
    start = GOOD.index("    def coefficients")
    no_coefficients = GOOD[:start] + GOOD[GOOD.index("    @staticmethod") :]
    with pytest.raises(
        RuleError, match=r"my_rule\.py:14: Mine: there is no coefficients\. Write coefficients"
    ):
        check(written(no_coefficients))
    with pytest.raises(RuleError, match=r"Mine has no update\. Write a static method update\(w, g"):
        check(written(GOOD[:start] + "    pass\n"))
    for other in (int, 3, "Adam"):
        with pytest.raises(RuleError, match=r"is not a rule\. A rule is a class"):
            schuss.torch.optimizer(other)


def test_a_variant_without_its_update_is_named(written):
    text = GOOD.replace('state = ("m",)', 'variants = {"": ("m",), "heavy": ("m", "v")}')
    with pytest.raises(
        RuleError, match=r"the variant 'heavy' has no update\. Write a static method update_heavy"
    ):
        check(written(text))


@pytest.mark.parametrize(
    "used", [lambda rule: source(rule), lambda rule: Reference(rule(), [1.0]).step([1.0])]
)
def test_no_way_to_a_kernel_goes_round_the_check(written, used):
    with pytest.raises(RuleError, match="sgn is not known"):
        used(written(GOOD.replace("sign(m)", "sgn(m)")))


@pytest.mark.parametrize("name", TABLE)
def test_every_rule_here_may_be_written_as_it_is_and_every_variant_can_be_chosen(name):
    rule = TABLE[name].rule
    check(rule)
    chosen = options_of_variants(rule)
    by_shape = {rule().variant_of(dimensions) for dimensions in range(5)}
    assert chosen.keys() | by_shape == rule.variants.keys()
    for variant, options in chosen.items():
        assert rule(**options).variant == variant


def test_built_in_rules_lead_to_the_built_in_classes():
    assert schuss.torch.optimizer(AdamW) is schuss.torch.AdamW
    assert schuss.numpy.optimizer(AdamW) is schuss.numpy.AdamW


def test_text_that_cannot_be_found_is_said():
    scope = {"__name__": "nowhere"}
    exec(compile(GOOD, "<nowhere>", "exec"), scope)
    with pytest.raises(RuleError, match=r"the text of update cannot be found.*Put the rule in a file"):
        check(scope["Mine"])


def test_help_and_signature_list_what_the_constructor_takes():
    for cls in (schuss.torch.AdamW, schuss.numpy.AdamW):
        signature = inspect.signature(cls)
        assert list(signature.parameters) == list(inspect.signature(cls.__init__).parameters)[1:]
        assert "betas" in signature.parameters
        assert "beta1" not in signature.parameters
        told = cls.__doc__.split("Arguments:")[1]
        for name in signature.parameters:
            assert re.search(rf"^    {name}( = |: )", told, re.MULTILINE), name
        assert "        beta1: in [0, 1): memory of m" in told
        assert "        a finite number ≥ 0, of g: gradients smaller" in told
