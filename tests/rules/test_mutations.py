"""The test of the tests: plausible mistakes in the pages, each of which the comparison with the paper must catch."""

import importlib.util
import inspect

import numpy as np
import pytest

from schuss.compile.reference import Reference
from schuss.rules import TABLE

# (rule, the page's words, a plausible mistake in their place)
MUTATIONS = [
    # Adam and AdamW
    ("Adam", "keep=1 - self.lr * self.weight_decay if", "keep=1 - self.weight_decay if"),
    ("Adam", "keep=1 - self.lr * self.weight_decay if", "keep=1 + self.lr * self.weight_decay if"),
    ("Adam", "l2=0.0 if decoupled else self.weight_decay", "l2=self.weight_decay"),
    ("Adam", "l2=0.0 if decoupled else self.weight_decay", "l2=self.lr * self.weight_decay"),
    ("Adam", "gain1=1 - self.beta1", "gain1=1 - self.beta2"),
    ("Adam", "gain2=1 - self.beta2", "gain2=1 - self.beta1"),
    ("Adam", "gain1=1 - self.beta1", "gain1=1.0"),
    ("Adam", "decay2=self.beta2", "decay2=self.beta1"),
    ("Adam", "step=self.lr / correction1", "step=self.lr"),
    ("Adam", "step=self.lr / correction1", "step=self.lr * correction1"),
    ("Adam", "root = 1 / math.sqrt(correction2)", "root = 1.0"),
    ("Adam", "root = 1 / math.sqrt(correction2)", "root = 1 / correction2"),
    ("Adam", "left_to_average(self.beta2, step)", "left_to_average(self.beta2, step + 1)"),
    ("Adam", "left_to_average(self.beta1, step),", "left_to_average(self.beta1, step - 1 or 1),"),
    ("Adam", '{"outside": self.eps,', '{"outside": self.eps * root,'),
    ("Adam", '"uncorrected": self.eps * root}', '"uncorrected": self.eps}'),
    ("Adam", "self.eps * correction2 if", "self.eps if"),
    ("Adam", "(sqrt(v + eps_in) * root + eps)", "((sqrt(v + eps_in) + eps) * root)"),
    ("Adam", "(sqrt(v + eps_in) * root + eps)", "sqrt(v * root * root + eps_in + eps)"),
    ("Adam", "m = decay1 * m + gain1 * g\n        v", "m = decay1 * m + g\n        v"),
    ("Adam", "v = decay2 * v + gain2 * g * g\n        w", "v = decay2 * v + gain2 * g\n        w"),
    ("Adam", "v = decay2 * v + gain2 * g * g\n        w", "v = decay2 * v + gain2 * m * m\n        w"),
    ("Adam", "p = maximum(p, v)", "p = v"),
    ("Adam", "p = maximum(p, v)", "p = maximum(p, v)\n        v = p"),
    ("Adam", "p = maximum(p, v)", "p = maximum(p, v * root * root) / (root * root)"),
    ("Adam", "w = w - step * m", "w = w - step * g"),
    ("Adam", "return -math.expm1(step * math.log(beta)) if beta > 0", "return 1 - beta**1 if beta > 0"),
    # Gradient descent
    ("SGD", "1.0 if step == 1 else 1 - self.dampening", "1 - self.dampening"),
    ("SGD", "1.0 if step == 1 else 1 - self.dampening", "1.0"),
    ("SGD", "step_g=self.lr if self.nesterov else 0.0", "step_g=0.0"),
    ("SGD", "(self.momentum if self.nesterov else 1.0)", "1.0"),
    ("SGD", "v = momentum * v + gain * g", "v = momentum * v + gain * (g - l2 * w)"),
    ("SGD", "enters, leaves = (self.lr, 1.0)", "enters, leaves = (self.lr, self.lr)"),
    ("SGD", "keep=1 - self.lr * self.weight_decay", "keep=1 - self.weight_decay"),
    # The others
    ("Adagrad", "(step - 1) * self.lr_decay", "step * self.lr_decay"),
    ("Adagrad", "s = s + g * g", "s = s + abs(g)"),
    ("Adagrad", '{"s": self.initial_accumulator_value}', "{}"),
    ("Adagrad", "(sqrt(s + eps_in) + eps)", "sqrt(s + eps_in + eps)"),
    ("Adadelta", "sqrt(u + eps) / sqrt(v + eps)", "(sqrt(u) + eps) / (sqrt(v) + eps)"),
    ("Adadelta", "u = decay * u + gain * x * x", "u = decay * u + gain * (lr * x) * (lr * x)"),
    ("RMSprop", "b = momentum * b + enters * g", "b = momentum * b + (1 - momentum) * enters * g"),
    ("RMSprop", "maximum(v - a * a, 0.0)", "maximum(v - a, 0.0)"),
    ("RMSprop", "eps_in=self.eps if inside else 0.0", "eps_in=self.eps * self.eps if inside else 0.0"),
    ("NAdam", "(self.beta1 * (1 - 0.5", "(self.beta1 * (1 - 0.96"),
    ("NAdam", "0.96 ** (t * self.momentum_decay)", "0.96**t"),
    ("NAdam", "self.lr * ahead / (1 - product * ahead)", "self.lr * now / (1 - product)"),
    ("NAdam", "(step, step + 1)", "(step - 1, step)"),
    ("RAdam", "length > 5", "length > 4"),
    ("RAdam", "longest = 2 / (1 - self.beta2) - 1", "longest = 2 / (1 - self.beta2)"),
    ("RAdam", "math.sqrt(correction2 * (length - 4)", "math.sqrt((length - 4)"),
    ("RAdam", "eps=self.eps if rectified else 1.0", "eps=1.0"),
    ("Adamax", "maximum(decay2 * u, abs(g) + eps)", "maximum(decay2 * u, abs(g)) + eps"),
    ("Adamax", "maximum(decay2 * u, abs(g) + eps)", "maximum(u, abs(g) + eps)"),
    ("Adamax", "abs(g) + eps", "g + eps"),
    ("Rprop", "g = where(agrees < 0.0, 0.0, g)", "g = g"),
    ("Rprop", "where(d > longest, longest, d)", "d"),
    ("Rprop", '{"d": self.lr}', '{"d": 0.01}'),
    ("ASGD", "eta=self.lr / (1 + self.lambd * self.lr * step)", "eta=self.lr / (1 + self.lambd * step)"),
    ("ASGD", "keep=1 - self.lambd * eta", "keep=1 - self.lambd"),
    ("Lion", "blend_m * m + blend_g * g", "decay * m + gain * g"),
    ("Lion", "w = keep * w - lr * sign", "w = w - lr * sign"),
    ("Lion", "gain=1 - self.beta2", "gain=1 - self.beta1"),
    ("ScheduleFreeSGD", "z = where(start > 0.0, w, z)\n        u = g + decay", "u = g + decay"),
    ("ScheduleFreeSGD", "rate_y=rate * (1 - beta * (1 - toward))", "rate_y=rate * (1 - beta)"),
    ("ScheduleFreeSGD", "rate_y=rate * (1 - beta * (1 - toward))", "rate_y=rate * beta * (1 - toward)"),
    ("ScheduleFreeSGD", "weight_sum += weight\n", "weight_sum += 1.0\n"),
    ("ScheduleFreeSGD", "fastest**self.weight_lr_power", "rate**2"),
    ("ScheduleFreeSGD", "step**self.r", "1.0"),
    ("ScheduleFreeSGD", "min(1.0, step / self.warmup_steps)", "min(1.0, (step - 1) / self.warmup_steps)"),
    ("ScheduleFreeAdamW", "root = 1 / math.sqrt(left_to_average(self.beta2, step))", "root = 1.0"),
    ("ScheduleFreeAdamW", "sqrt(v) * root, 0.0) + eps) + decay * w", "sqrt(v) * root, 0.0) + eps)"),
    (
        "ScheduleFreeAdamW",
        "w = w + toward * (z - w) - rate_y * u\n        z = z - rate_z * u\n        return w, z, v",
        "z = z - rate_z * u\n        w = w + toward * (z - w) - rate_y * u\n        return w, z, v",
    ),
    ("ScheduleFreeRAdam", "length > 4", "length > 5"),
    (
        "ScheduleFreeRAdam",
        "elif self.silent_sgd_phase:\n            rate = 0.0",
        "elif self.silent_sgd_phase:\n            pass",
    ),
    ("ScheduleFreeRAdam", "else (0.0, 1.0)", "else (0.0, self.eps)"),
    ("LARS", "norm(g) + l2 * size", "norm(g + l2 * w)"),
    ("LARS", "enters * r * (g + l2 * w)", "enters * r * g + l2 * w"),
    ("LARS", "clip=1 / self.lr if", "clip=self.lr if"),
    ("LARS", "float(self.always_adapt or self.weight_decay > 0)", "1.0"),
    ("LARS", "r = where(fixed, 1.0,", "r = where(fixed, 0.0,"),
    ("LAMB", "+ decay * w\n", "+ 0.0 * w\n"),
    ("LAMB", "length = norm(u)", "length = norm(m)"),
    ("LAMB", "length = norm(u)", "length = total(u * u)"),
    ("LAMB", "length = norm(u)", "length = abs(u)"),
    ("LAMB", "float(self.always_adapt or self.weight_decay > 0)", "1.0"),
    ("LAMB", "debias=1 / left_to_average(self.beta1, step)", "debias=1.0"),
    ("LAMB", "(sqrt(v) * root + eps)", "((sqrt(v) + eps) * root)"),
    ("MARS", "c = c / maximum(norm(c), 1.0)", "c = c"),
    ("MARS", "c = c / maximum(norm(c), 1.0)", "c = c / maximum(abs(c), 1.0)"),
    ("MARS", "self.gamma * self.beta1 / (1 - self.beta1)", "self.gamma"),
    ("MARS", "        h = g\n", "        h = c\n"),
    ("MARS", "v = decay2 * v + gain2 * c * c", "v = decay2 * v + gain2 * g * g"),
    ("MARS", "keep=1 - self.lr * self.weight_decay", "keep=1 - self.weight_decay"),
    ("Adan", "follows=1.0 if step > 1 else 0.0", "follows=1.0"),
    ("Adan", "where(follows > 0, g - h, 0.0)", "where(follows > 0, h - g, 0.0)"),
    ("Adan", "ahead = g + b2 * change", "ahead = g + gain2 * change"),
    ("Adan", "ahead = g + b2 * change", "ahead = g"),
    ("Adan", "step_d=lr * self.beta2 /", "step_d=lr * (1 - self.beta2) /"),  # as Optax does
    ("Adan", "step_d=lr * self.beta2 /", "step_d=lr /"),
    ("Adan", "left_to_average(self.beta3, step)", "left_to_average(self.beta2, step)"),
    ("Adan", "return w, m, d, n, g", "return w, m, d, n, -g"),
    ("Adan", "else 1 / (1 + lost)", "else 1 - lost"),
    ("Adan", "keep=1 - lost if self.no_prox", "keep=1 / (1 + lost) if self.no_prox"),
    ("Adan", "self.lr if self.no_prox else self.lr / (1 + lost)", "self.lr"),
    ("AdaBelief", "strays = g - m", "strays = g"),
    ("AdaBelief", "strays = g - m", "strays = g - (m - gain1 * g) / decay1"),  # the average before
    ("AdaBelief", 'eps_each=self.eps if self.eps_position == "accumulated" else 0.0', "eps_each=0.0"),
    ("AdaBelief", 'eps_once=self.eps if self.eps_position == "once" else 0.0', "eps_once=0.0"),
    ("AdaBelief", "strays * strays + eps_each", "(strays * strays + eps_each)"),
    ("AdaBelief", "sqrt(s + eps_once) * root + eps", "(sqrt(s + eps_once) + eps) * root"),
    ("AdaBelief", "step=self.lr / left_to_average(self.beta1, step)", "step=self.lr"),
    ("ADOPT", "max(step - 1, 1) ** 0.25", "step**0.25"),  # as pytorch_optimizer does
    ("ADOPT", "max(step - 1, 1) ** 0.25", "max(step - 1, 1) ** 0.5"),
    ("ADOPT", "maximum(sqrt(v), eps)", "(sqrt(v) + eps)"),
    ("ADOPT", "where(most > 0, maximum(-most, minimum(most, x)), x)", "where(most > 0, minimum(most, x), x)"),
    ("ADOPT", "if moves else (0.0, 1.0, 0.0)", "if moves else (self.lr, self.beta1, 0.0)"),
    ("ADOPT", "if moves else (0.0, 1.0, 0.0)", "if moves else (0.0, 1.0, self.beta2)"),
    (
        "ADOPT",
        "keep=1 - lr * self.weight_decay",
        "keep=1 - self.lr * self.weight_decay",
    ),  # at the first step too
    ("ADOPT", "v = decay2 * v + gain2 * g * g", "v = decay2 * v + gain2 * x * x"),
    ("Muon", "keep=1 - self.lr * self.weight_decay", "keep=1 - self.weight_decay"),
    ("Muon", "w = keep * w - lr * size * orthogonal(n)", "w = keep * (w - lr * size * orthogonal(n))"),
    ("Muon", "ahead_b=self.momentum if self.nesterov else 1.0", "ahead_b=self.momentum"),
    ("Muon", "ahead_g=fresh if self.nesterov else 0.0", "ahead_g=0.0"),
    ("Muon", "ahead_g=fresh if", "ahead_g=1.0 if"),
    ("Muon", "fresh = 1 - self.momentum", "fresh = 1.0"),  # shows where N is below ε
    ("Muon", "sqrt(maximum(rows(w) / columns(w), least))", "sqrt(maximum(columns(w) / rows(w), least))"),
    ("Muon", "sqrt(maximum(rows(w) / columns(w), least))", "maximum(rows(w) / columns(w), least)"),
    ("Muon", "sqrt(maximum(rows(w), columns(w)))", "sqrt(rows(w))"),
    ("Muon", "rms=0.2", "rms=1.0"),
    ("Muon", "least=0.0 if", "least=1.0 if"),
    ("Muon", "b = decay * b + gain * g", "b = decay * b + gain * orthogonal(g)"),
    ("Muon", "return w, b", "return w, n"),
    ("Muon", "return self.eps", "return 1e-7"),
    ("Muon", "* int(self.ns_steps)", "* 5"),
    ("Muon", "return POLYNOMIALS[self.polynomials]", 'return POLYNOMIALS["quintic"]'),
    ("AdEMAMix", "alpha *= step / self.alpha_warmup", "alpha *= (step - 1) / self.alpha_warmup"),
    ("AdEMAMix", "if step < self.alpha_warmup", "if False"),
    ("AdEMAMix", "beta3 = math.exp(-1 / memory) if memory > 0 else 0.0", "beta3 = self.beta3"),
    (
        "AdEMAMix",
        "beta3 = math.exp(-1 / memory) if memory > 0 else 0.0",
        "beta3 = (1 - done) * self.beta1 + done * self.beta3",
    ),
    ("AdEMAMix", "step2=self.lr * alpha", "step2=self.lr * alpha / left_to_average(self.beta3, step)"),
    ("AdEMAMix", "gain3=1 - beta3", "gain3=1 - self.beta1"),
    ("AdEMAMix", "keep=1 - self.lr * self.weight_decay", "keep=1 - self.weight_decay"),
    ("Adafactor", "v = decay * v + gain * g * g", "v = gain * v + decay * g * g"),
    ("Adafactor", "float(step) ** self.beta2_decay", "float(step + 1) ** self.beta2_decay"),
    ("Adafactor", "step=min(self.lr, 1 / math.sqrt(step))", "step=self.lr"),
    (
        "Adafactor",
        "keep=1 - self.lr * self.weight_decay",
        "keep=1 - min(self.lr, 1 / math.sqrt(step)) * self.weight_decay",
    ),
    (
        "Adafactor",
        "length = sqrt(mean(u * u))\n        size = sqrt(mean(w * w))",
        "length = sqrt(mean(abs(u)))\n        size = sqrt(mean(w * w))",
    ),
    ("Adafactor", "maximum(length / longest, 1.0)", "maximum(length, longest)"),
    ("Adafactor", "eps=self.eps1 or 0.0", "eps=0.0"),
    ("Adafactor", "maximum(size, smallest)", "(size + smallest)"),
]


def mutant(name, words, mistake, folder):
    """The page with a mistake in it, as a class of a module of its own."""
    text = inspect.getsource(inspect.getmodule(TABLE[name].rule))
    assert words in text, f"{name}'s page no longer says {words!r}: renew the mutation"
    path = folder / f"mutant_{name.lower()}.py"
    path.write_text(text.replace(words, mistake), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(importlib.sys.modules, path.stem, module)
        spec.loader.exec_module(module)
    return getattr(module, name)


@pytest.fixture(scope="module")
def compared(cases_of, decades, starts, matrices, paper, close):
    """`compared(case, page)`: compare the page's path with the paper's; for matrices a wide and a tall one."""
    kept = {}

    def find(case):
        if case.of_matrices:
            random, given = np.random.default_rng(11), []
            for start in matrices[:2]:
                sizes = 10.0 ** random.uniform(-2, 2, (8, *[1] * start.ndim))
                given.append((start, sizes * random.standard_normal((8, *start.shape))))
        else:
            given = [(starts, decades(8, len(starts), 11, -6, 6))]
        return [(start, gs, paper(case.name, case.rule, start, gs)) for start, gs in given]

    def compare(case, page):
        if str(case) not in kept:
            kept[str(case)] = find(case)
        for start, gradients, right in kept[str(case)]:
            reference = Reference(page(**vars(case.rule)), start)
            path = np.array([reference.step(g) for g in gradients])
            close(path, right, 1e-9 if case.of_matrices else 1e-12)

    return compare


@pytest.mark.parametrize(("name", "words", "mistake"), MUTATIONS)
def test_a_mistake_is_caught(name, words, mistake, cases_of, compared, tmp_path):
    page = mutant(name, words, mistake, tmp_path)
    caught = []
    for case in cases_of(name):
        try:
            compared(case, page)
        except AssertionError:
            caught.append(case)
    assert caught


@pytest.mark.parametrize("name", sorted({name for name, *_ in MUTATIONS}))
def test_the_page_itself_is_not_caught(name, cases_of, compared, tmp_path):
    """The same comparison passes a page without a mistake."""
    page = mutant(name, "self", "self", tmp_path)
    for case in cases_of(name):
        compared(case, page)


def test_every_page_has_mistakes_on_the_list():
    assert {name for name, *_ in MUTATIONS} == TABLE.keys() - {"AdamW"}  # its update is Adam's
