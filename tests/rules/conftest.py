"""The papers, line by line, in sixty decimal digits and in other algebra than the pages'.

An average from zero is written as its weighted sum, a power as a power, a correction as a division: nothing here is
folded, factored or remembered from step to step but the gradients and the weight.
"""

from decimal import Decimal, localcontext

import numpy as np
import pytest

ONE = Decimal(1)


def average(xs, beta):
    """β-average from zero of x₁ … xₜ: Σ (1 − β) βᵗ⁻ⁱ xᵢ."""
    return sum((ONE - beta) * power(beta, len(xs) - i) * x for i, x in enumerate(xs, 1))


def power(base, n):
    return ONE if n == 0 else base**n


def sign(x):
    return Decimal((x > 0) - (x < 0))


def sgd(w, t, gs, past, o):
    d, mu = o["dampening"], o["momentum"]
    if o["decoupled_weight_decay"]:
        w = w - o["lr"] * o["weight_decay"] * w
    # At a constant rate, the rate inside or outside the velocity is the same path.
    v = sum(power(mu, t - i) * (g if i == 1 else (ONE - d) * g) for i, g in enumerate(gs, 1))
    if mu == 0:
        return w - o["lr"] * gs[-1]
    return w - o["lr"] * (gs[-1] + mu * v if o["nesterov"] else v)


def adagrad(w, t, gs, past, o):
    s = o["initial_accumulator_value"] + sum(g * g for g in gs)
    root = (s + o["eps"]).sqrt() if o["eps_position"] == "inside" else s.sqrt() + o["eps"]
    return w - o["lr"] / (ONE + (t - 1) * o["lr_decay"]) * gs[-1] / root


def adadelta(w, t, gs, past, o):
    xs = past.setdefault("xs", [])
    v, u = average([g * g for g in gs], o["rho"]), average([x * x for x in xs], o["rho"])
    # The average of steps ends one step earlier, so it has decayed as often as there were steps.
    xs.append((u + o["eps"]).sqrt() / (v + o["eps"]).sqrt() * gs[-1])
    return w - o["lr"] * xs[-1]


def rmsprop(w, t, gs, past, o):
    v, a = average([g * g for g in gs], o["alpha"]), average(gs, o["alpha"])
    size = v - a * a if o["centered"] else v
    root = (size + o["eps"]).sqrt() if o["eps_position"] == "inside" else size.sqrt() + o["eps"]
    steps = past.setdefault("steps", [])
    steps.append(gs[-1] / root)
    return w - o["lr"] * sum(
        power(o["momentum"], t - i) * x for i, x in enumerate(steps, 1) if i == t or o["momentum"]
    )


def adam(w, t, gs, past, o):
    if o["decoupled_weight_decay"]:
        w = w - o["lr"] * o["weight_decay"] * w
    raw = [average([g * g for g in gs[:k]], o["beta2"]) for k in range(1, t + 1)]
    v = (max(raw) if o["amsgrad"] else raw[-1]) / (ONE - o["beta2"] ** t)
    m = average(gs, o["beta1"]) / (ONE - power(o["beta1"], t) if o["beta1"] else ONE)
    if o["eps_position"] == "inside":
        return w - o["lr"] * m / (v + o["eps"]).sqrt()
    if o["eps_position"] == "uncorrected":  # the end of section 2: α √(1 − β₂ᵗ)/(1 − β₁ᵗ) · m / (√v + ε̂)
        c = (ONE - o["beta2"] ** t).sqrt()
        return w - o["lr"] * c * m / (raw[-1].sqrt() + o["eps"])
    return w - o["lr"] * m / (v.sqrt() + o["eps"])


def nadam(w, t, gs, past, o):
    if o["decoupled_weight_decay"]:
        w = w - o["lr"] * o["weight_decay"] * w

    def mu(i):
        return o["beta1"] * (ONE - Decimal("0.5") * Decimal("0.96") ** (i * o["momentum_decay"]))

    def product(n):
        return ONE if n == 0 else product(n - 1) * mu(n)

    m, v = average(gs, o["beta1"]), average([g * g for g in gs], o["beta2"]) / (ONE - o["beta2"] ** t)
    ahead = mu(t + 1) * m / (ONE - product(t + 1)) + (ONE - mu(t)) * gs[-1] / (ONE - product(t))
    return w - o["lr"] * ahead / (v.sqrt() + o["eps"])


def radam(w, t, gs, past, o):
    if o["decoupled_weight_decay"]:
        w = w - o["lr"] * o["weight_decay"] * w
    b2 = o["beta2"]
    m, v = average(gs, o["beta1"]) / (ONE - o["beta1"] ** t), average([g * g for g in gs], b2)
    longest = 2 / (ONE - b2) - 1
    length = longest - 2 * t * b2**t / (ONE - b2**t)
    if length <= 5:
        return w - o["lr"] * m
    r = ((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)).sqrt()
    return w - o["lr"] * m * r * (ONE - b2**t).sqrt() / (v.sqrt() + o["eps"])


def adamax(w, t, gs, past, o):
    u = max(power(o["beta2"], t - i) * (abs(g) + o["eps"]) for i, g in enumerate(gs, 1))
    return w - o["lr"] / (ONE - o["beta1"] ** t) * average(gs, o["beta1"]) / u


def rprop(w, t, gs, past, o):
    length, last = past.get("length", o["lr"]), past.get("last", Decimal(0))
    g = gs[-1]
    if g * last > 0:
        length = min(length * o["eta_plus"], o["step_size_max"])
    elif g * last < 0:
        length, g = max(length * o["eta_minus"], o["step_size_min"]), Decimal(0)
    else:  # every length is kept between the bounds
        length = min(max(length, o["step_size_min"]), o["step_size_max"])
    past["length"], past["last"] = length, g
    return w - sign(g) * length


def asgd(w, t, gs, past, o):
    rate = o["lr"] / (ONE + o["lambd"] * o["lr"] * (t - 1)) ** o["alpha"]
    return w - rate * (gs[-1] + o["lambd"] * w)


def lion(w, t, gs, past, o):
    w = w - o["lr"] * o["weight_decay"] * w
    return w - o["lr"] * sign(o["beta1"] * average(gs[:-1], o["beta2"]) + (ONE - o["beta1"]) * gs[-1])


# Rules that look at a whole tensor: `ws` are its weights, `gs` its gradients, step by step.


def length(xs):
    return sum(x * x for x in xs).sqrt()


def lamb(ws, t, gs, past, o):
    us = []
    for k, w in enumerate(ws):
        mine = [g[k] for g in gs]
        m, v = average(mine, o["beta1"]), average([g * g for g in mine], o["beta2"])
        m = m / (ONE - o["beta1"] ** t) if o["beta1"] else m
        v = v / (ONE - o["beta2"] ** t) if o["beta2"] else v
        us.append(m / (v.sqrt() + o["eps"]) + o["weight_decay"] * w)
    adapted = (o["always_adapt"] or o["weight_decay"]) and length(ws) and length(us)
    ratio = length(ws) / length(us) if adapted else ONE
    return [w - o["lr"] * ratio * u for w, u in zip(ws, us, strict=True)]


def lars(ws, t, gs, past, o):
    rate = ONE
    below = length(gs[-1]) + o["weight_decay"] * length(ws) + o["eps"]
    if (o["always_adapt"] or o["weight_decay"]) and length(ws) and below:
        rate = o["trust_coefficient"] * length(ws) / below
    if o["trust_clip"]:
        rate = min(rate / o["lr"], ONE)
    pushes = past.setdefault("pushes", [])
    pushes.append([rate * (g + o["weight_decay"] * w) for g, w in zip(gs[-1], ws, strict=True)])
    # At a constant rate, the rate inside or outside the velocity is the same path.
    return [
        w - o["lr"] * sum(power(o["momentum"], t - i) * push[k] for i, push in enumerate(pushes, 1))
        for k, w in enumerate(ws)
    ]


def mars(ws, t, gs, past, o):
    before = gs[-2] if t > 1 else [Decimal(0)] * len(ws)
    push = o["gamma"] * o["beta1"] / (ONE - o["beta1"])
    c = [(ONE + push) * g - push * h for g, h in zip(gs[-1], before, strict=True)]
    clipped = past.setdefault("clipped", [])
    clipped.append([x / length(c) for x in c] if length(c) > 1 else c)
    decayed = [w - o["lr"] * o["weight_decay"] * w for w in ws]
    adam_only = o | {"decoupled_weight_decay": False, "amsgrad": False, "eps_position": "outside"}
    return [adam(w, t, [c[k] for c in clipped], {}, adam_only) for k, w in enumerate(decayed)]


def bounded_step(ws, us, t, o):
    """Adafactor's step along u: as long as the weights, and no longer than d allows."""
    count = Decimal(len(ws))
    size, reach = length(ws) / count.sqrt(), length(us) / count.sqrt() / o["d"]
    rate = min(o["lr"], ONE / Decimal(t).sqrt()) * max(size, o["eps2"]) / max(reach, ONE)
    return [w - o["lr"] * o["weight_decay"] * w - rate * u for w, u in zip(ws, us, strict=True)]


def growing_average(xs, k):
    """Σ aᵢ xᵢ, where step i has weight iᵏ and leaves the part 1 − iᵏ to those before it."""
    gains = [Decimal(i) ** k for i in range(1, len(xs) + 1)]
    total = Decimal(0)
    for i, x in enumerate(xs):
        left = ONE
        for later in gains[i + 1 :]:
            left *= ONE - later
        total += left * gains[i] * x
    return total


def least_of(o):
    return Decimal(2) ** -52 if o["eps1"] is None else o["eps1"]


def adafactor(ws, t, gs, past, o):
    us = []
    for k in range(len(ws)):
        v = growing_average([g[k] * g[k] for g in gs], o["beta2_decay"])
        us.append(gs[-1][k] / max(v.sqrt(), least_of(o)))
    return bounded_step(ws, us, t, o)


def adafactor_of_matrices(shape):
    """The same of matrices, whose numbers stand one after the other: v is rᵢ cⱼ over the mean of r."""
    rows, columns = shape[-2:]

    def paper(ws, t, gs, past, o):
        squares = [growing_average([g[k] * g[k] for g in gs], o["beta2_decay"]) for k in range(len(ws))]
        us = []
        for k, g in enumerate(gs[-1]):
            first = k - k % (rows * columns)
            i, j = divmod(k - first, columns)
            row = sum(squares[first + i * columns + q] for q in range(columns))
            column = sum(squares[first + p * columns + j] for p in range(rows))
            mean = sum(squares[first : first + rows * columns]) / (rows * columns)
            v = row / columns * column / rows / max(mean, least_of(o))
            us.append(g / max(v.sqrt(), least_of(o)))
        return bounded_step(ws, us, t, o)

    return paper


TENSOR_PAPERS = {"LAMB": lamb, "LARS": lars, "MARS": mars, "Adafactor": adafactor}


def schedule_free(w, t, rate, u, beta, past, o):
    """y = (1 − β) z + β x, and x is what all z so far average to."""
    zs, weights = past.setdefault("zs", [w]), past.setdefault("weights", [])
    past["fastest"] = max(past.get("fastest", rate), rate)
    zs.append(zs[-1] - rate * u)
    weights.append(Decimal(t) ** o["r"] * past["fastest"] ** o["weight_lr_power"])
    if not sum(weights):
        return w
    x = sum(a * z for a, z in zip(weights, zs[1:], strict=True)) / sum(weights)
    return (ONE - beta) * zs[-1] + beta * x


def warm(t, o):
    return o["lr"] * (min(ONE, Decimal(t) / o["warmup_steps"]) if o["warmup_steps"] else ONE)


def schedule_free_sgd(w, t, gs, past, o):
    u = gs[-1] + o["weight_decay"] * w
    return schedule_free(w, t, warm(t, o), u, o["momentum"], past, o)


def schedule_free_adamw(w, t, gs, past, o):
    v = average([g * g for g in gs], o["beta2"]) / (ONE - power(o["beta2"], t) if o["beta2"] else ONE)
    u = gs[-1] / (v.sqrt() + o["eps"]) + o["weight_decay"] * w
    return schedule_free(w, t, warm(t, o), u, o["beta1"], past, o)


def schedule_free_radam(w, t, gs, past, o):
    b2 = o["beta2"]
    longest = 2 / (ONE - b2) - 1
    length = longest - 2 * t * b2**t / (ONE - b2**t)
    rate, u = o["lr"], gs[-1]
    if length > 4:
        rate *= ((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)).sqrt()
        u = u / ((average([g * g for g in gs], b2) / (ONE - b2**t)).sqrt() + o["eps"])
    elif o["silent_sgd_phase"]:
        rate = Decimal(0)
    return schedule_free(w, t, rate, u + o["weight_decay"] * w, o["beta1"], past, o)


def adan(w, t, gs, past, o):
    b1, b2, b3 = o["beta1"], o["beta2"], o["beta3"]
    changes = [g - h for g, h in zip(gs, [gs[0], *gs], strict=False)]
    m, d = average(gs, b1) / (ONE - b1**t), average(changes, b2) / (ONE - b2**t)
    n = average([(g + b2 * change) ** 2 for g, change in zip(gs, changes, strict=True)], b3) / (ONE - b3**t)
    step = o["lr"] * (m + b2 * d) / (n.sqrt() + o["eps"])
    lost = o["lr"] * o["weight_decay"]
    return w - lost * w - step if o["no_prox"] else (w - step) / (ONE + lost)


def adabelief(w, t, gs, past, o):
    if o["decoupled_weight_decay"]:
        w = w - o["lr"] * o["weight_decay"] * w
    b1, b2, eps = o["beta1"], o["beta2"], o["eps"]
    s = average([(g - average(gs[:i], b1)) ** 2 for i, g in enumerate(gs, 1)], b2)
    if (
        o["eps_position"] == "accumulated"
    ):  # the weight of each ε is a power of β₂: they sum to a geometric series
        s = s + eps * (ONE - b2**t) / (ONE - b2)
    elif o["eps_position"] == "once":
        s = s + eps
    root = (s / (ONE - b2**t)).sqrt()
    return w - o["lr"] * average(gs, b1) / (ONE - b1**t) / (root + eps)


def adopt(w, t, gs, past, o):
    if t == 1:
        return w
    if o["decoupled_weight_decay"]:
        w = w - o["lr"] * o["weight_decay"] * w
    xs = past.setdefault("xs", [])
    # v starts at g₁²: that square keeps the weight that an average from zero has not given away.
    v = gs[0] ** 2 * power(o["beta2"], t - 2) + average([g * g for g in gs[1:-1]], o["beta2"])
    x, c = gs[-1] / max(v.sqrt(), o["eps"]), Decimal(t - 1).sqrt().sqrt()
    xs.append(sign(x) * min(abs(x), c) if o["clip"] else x)
    return w - o["lr"] * average(xs, o["beta1"])


def ademamix(w, t, gs, past, o):
    """The paper's formula for β₃(t), with a product of logarithms above a mean of them."""
    b1, b2, b3 = o["beta1"], o["beta2"], o["beta3"]
    alpha, beta = o["alpha"], b3
    if o["alpha_warmup"]:
        alpha = min(alpha, t * alpha / o["alpha_warmup"])
    if o["beta3_warmup"] and t < o["beta3_warmup"]:
        part = t / o["beta3_warmup"]
        beta = min(b3, (b1.ln() * b3.ln() / ((ONE - part) * b3.ln() + part * b1.ln())).exp())
    past.setdefault("betas", []).append(beta)
    slow, left = Decimal(0), ONE
    for g, one in zip(reversed(gs), reversed(past["betas"]), strict=True):
        slow, left = slow + left * (ONE - one) * g, left * one
    fast = average(gs, b1) / (ONE - b1**t)
    root = (average([g * g for g in gs], b2) / (ONE - b2**t)).sqrt()
    return w - o["lr"] * ((fast + alpha * slow) / (root + o["eps"]) + o["weight_decay"] * w)


# Rules of matrices, by the singular values: `g` are all gradients so far.


def muon(w, g, o):
    mu, t = o.momentum, len(g)
    b = sum((1 - mu) * mu ** (t - i) * x for i, x in enumerate(g, 1))
    n = (1 - mu) * g[-1] + mu * b if o.nesterov else b
    left, values, right = np.linalg.svd(n.reshape(len(n), -1), full_matrices=False)
    values = values / max(np.sqrt(np.sum(values**2)), o.eps)
    for a, b, c in o.iterations:
        values = values * (a + values**2 * (b + values**2 * c))
    rows, columns = left.shape[0], right.shape[1]
    size = {
        "match_rms_adamw": 0.2 * max(rows, columns) ** 0.5,
        "spectral_unclamped": (rows / columns) ** 0.5,
    }.get(o.adjust_lr_fn, max(1.0, rows / columns) ** 0.5)
    step = o.lr * o.weight_decay * w + o.lr * size * ((left * values) @ right).reshape(w.shape)
    return w - step


MATRIX_PAPERS = {"Muon": muon}


# Those whose decay never goes through the gradient.
DECOUPLED = ("Lion", "Adan", "AdEMAMix", "ScheduleFreeSGD", "ScheduleFreeAdamW", "ScheduleFreeRAdam")

PAPERS = {
    "ScheduleFreeSGD": schedule_free_sgd,
    "ScheduleFreeAdamW": schedule_free_adamw,
    "ScheduleFreeRAdam": schedule_free_radam,
    "SGD": sgd,
    "Adagrad": adagrad,
    "Adadelta": adadelta,
    "RMSprop": rmsprop,
    "Adam": adam,
    "AdamW": adam,
    "NAdam": nadam,
    "RAdam": radam,
    "Adamax": adamax,
    "Rprop": rprop,
    "ASGD": asgd,
    "Lion": lion,
    "Adan": adan,
    "AdaBelief": adabelief,
    "ADOPT": adopt,
    "AdEMAMix": ademamix,
}


def exact(value):
    return Decimal(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


@pytest.fixture(scope="session")
def paper():
    """`paper(name, rule, w, gradients)`: where the paper takes each weight, step by step."""

    def path(name, rule, start, gradients):
        if name in MATRIX_PAPERS:
            found = [start]
            for t in range(1, len(gradients) + 1):
                found.append(MATRIX_PAPERS[name](found[-1], gradients[:t], rule))
            return np.array(found[1:])
        options = {key: exact(value) for key, value in vars(rule).items()}
        coupled = not options.get("decoupled_weight_decay", name in DECOUPLED)
        found = np.empty(gradients.shape)
        with localcontext() as context:
            context.prec = 60
            if name in TENSOR_PAPERS:
                page = TENSOR_PAPERS[name] if start.ndim < 2 else adafactor_of_matrices(start.shape)
                ws, gs, past = [Decimal(w) for w in start.ravel().tolist()], [], {}
                for t, g in enumerate(gradients, 1):
                    gs.append([Decimal(x) for x in g.ravel().tolist()])
                    ws = page(ws, t, gs, past, options)
                    found[t - 1] = np.reshape([float(w) for w in ws], start.shape)
                return found
            for k, first in enumerate(start.tolist()):
                w, gs, past = Decimal(first), [], {}
                for t, g in enumerate(gradients[:, k].tolist(), 1):
                    gs.append(
                        Decimal(g) + (options.get("weight_decay", Decimal(0)) * w if coupled else Decimal(0))
                    )
                    w = PAPERS[name](w, t, gs, past, options)
                    found[t - 1, k] = float(w)
        return found

    return path


@pytest.fixture(scope="session")
def matrices():
    """Weights of two axes and more to start from, wide, tall, square and a convolution's; one a row, one a column."""
    random = np.random.default_rng(9)
    return [
        random.standard_normal(s) for s in ((3, 5), (6, 2), (4, 4), (2, 13), (3, 2, 2, 2), (1, 4), (4, 1))
    ]


@pytest.fixture(scope="session")
def starts():
    """Weights to start from: small, usual, large, and zero, where a step shows in all its digits."""
    return np.array([0.0, 1.0, -1.0, 0.0, 1e-6, -1e3, 0.0, 3.0, 0.0, -0.25, 0.0, 0.0])
