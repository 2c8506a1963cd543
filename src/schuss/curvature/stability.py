"""The largest curvature at which an optimizer's present settings are stable.

What a rule does near a minimum is read off its own `update` by `linear`; no rule is known here by name. In many
dimensions h / P is an eigenvalue of P^-½ H P^-½. An L2 decay λ adds to every h. P is frozen as it is now.

| method            | limit of h / P                                        |
|-------------------|-------------------------------------------------------|
| gradient descent  | 2 / η                                                 |
| heavy ball        | 2 (1 + μ) / ((1 − d) η), with dampening d             |
| Nesterov          | 2 (1 + μ) / ((1 + 2 μ) η)                             |
| Adam and averages | 2 (1 + β₁) / ((1 − β₁) η)                             |

Sources: Polyak 1964; Cohen, Kaur, Li, Kolter and Talwalkar 2021 (edge of stability); Cohen, Ghorbani et al.
2022 (adaptive).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from schuss.compile.eager import from_levels
from schuss.core.arguments import own_names
from schuss.core.checkpoint import scale_of
from schuss.core.schedules import at, plain_number
from schuss.curvature import linear
from schuss.curvature.eigenvalues import ends
from schuss.curvature.objective import Loss, Model, Progress, check_optimizer, objective
from schuss.curvature.products import Curvature
from schuss.errors import refusal
from schuss.rules import TABLE, Row, Rule

if TYPE_CHECKING:
    from schuss.numpy.optimizer import Optimizer as NumPyOptimizer

Group = Mapping[str, Any]
State = Mapping[str, Any]

# How many weights' preconditioners are worked out at a time.
_CHUNK = 2**16


@dataclass(frozen=True)
class Linear:
    """One weight tensor's linear iteration: the largest stable h / P, and what it follows from.

    h counts the L2 decay `l2`; `decay` is what the weight loses per step without a gradient; `preconditioner` is P,
    None while it is not known.
    """

    rule: Rule
    limit: float
    l2: float
    decay: float
    preconditioner: Tensor | float | None
    step: int
    scalars: tuple[tuple[str, float], ...]

    @property
    def lr(self) -> float:
        """The rule's learning rate; NaN if it has none of that name."""
        return float(getattr(self.rule, "lr", math.nan))

    def largest_lr(self, sharpness: float) -> float:
        """The learning rate at which the limit is `sharpness`, P and all else as they are."""
        if math.isnan(self.lr):
            return math.nan
        if math.isinf(self.limit) and self.lr:
            return 2 * self.lr / self.decay if self.decay > 0 else math.inf
        # Newton's method with differences, in 1 / lr: the limit of most rules is linear in it.
        old = 1 / self.lr if self.lr else 1e6
        new = 2 * old
        before, now = self._at(old), self._at(new)
        for _ in range(50):
            if abs(now - sharpness) <= 1e-15 * sharpness or now == before:
                break
            old, new = new, max(new + (sharpness - now) * (new - old) / (now - before), new / 10)
            before, now = now, self._at(new)
        return 1 / new

    def _at(self, inverse: float) -> float:
        rule = self.rule.changed(lr=1 / inverse)
        was, first = self.rule.initial(), rule.initial()
        # Scalars that start from the rate are in proportion to it.
        ratio = {name: first[name] / value for name, value in was.items() if value}
        return _iterations(rule, self.step, tuple((n, x * ratio.get(n, 1.0)) for n, x in self.scalars))[0]


@dataclass(frozen=True)
class Sharpness:
    """The largest eigenvalue of the preconditioned Hessian, against the limit of the optimizer in use.

    `value` and `limit` are in the same units; `ratio` = value / limit is the sharpness ratio, 1 at the edge of
    stability. `largest_lr` is the largest stable learning rate at this sharpness, P frozen (of the group with the
    smallest limit; the others in proportion).
    """

    value: float
    limit: float
    largest_lr: float
    residual: float
    converged: bool
    products: int

    @property
    def ratio(self) -> float:
        """The sharpness ratio, sharpness / limit: 1 at the edge of stability, above it unstable."""
        return self.value / self.limit

    def __float__(self) -> float:
        """The sharpness itself."""
        return self.value

    def __repr__(self) -> str:
        """One line."""
        ratio = f"{self.ratio:.0%} of the stability limit {self.limit:.4g}"
        return f"sharpness {self.value:.4g}, {ratio}; stable up to lr {self.largest_lr:.4g}"


@dataclass(frozen=True, eq=False)
class StabilityLimit:
    """The stability limit of an optimizer's settings.

    `limit`: the largest stable eigenvalue of P^-½ (H + λ) P^-½, in loss per weight² (times the units of P for
    adaptive methods); for plain methods P is 1 and this is the largest stable sharpness. With several groups,
    the smallest limit among them; P of the others is scaled so that this one limit holds for all (exact when
    they share their momentum). `preconditioned`: P is not 1 everywhere. `preconditioner` are the P of each
    weight tensor (a number where it is the same for the whole tensor), None before the first step of an adaptive
    method. `methods` are the linear iterations of each weight tensor.
    """

    limit: float
    lr: float
    preconditioned: bool
    preconditioner: tuple[Tensor | float, ...] | None
    methods: tuple[Linear, ...]
    weights: tuple[Tensor, ...]
    optimizer: str

    def __float__(self) -> float:
        """The limit itself."""
        return self.limit

    def __repr__(self) -> str:
        """One line."""
        if math.isinf(self.limit):
            return f"{self.optimizer} at lr {self.lr:g} is stable at every sharpness"
        of = "the preconditioned sharpness" if self.preconditioned else "the sharpness"
        return f"{self.optimizer} at lr {self.lr:g} is stable while {of} is below {self.limit:.6g}"

    def largest_lr(self, sharpness: float) -> float:
        """The largest stable learning rate at a given (preconditioned) sharpness, all else as it is.

        With several groups: of the group with the smallest limit, the others scaled in proportion.
        """
        if sharpness <= 0:
            return math.inf
        return min(self.methods, key=lambda method: method.limit).largest_lr(sharpness)

    def sharpness(
        self,
        model: Model,
        loss: Loss,
        batch: Any,
        *,
        matrix: str = "hessian",
        tolerance: float | None = None,
        products: int | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Sharpness:
        """The largest eigenvalue of P^-½ (H + λ) P^-½ for this optimizer's weights, the others held fixed.

        Arguments and errors are those of `extreme_eigenvalues`; besides, an adaptive optimizer that has not
        taken a step yet is refused, and one that does not hold the model's weights.
        """
        name = self.optimizer
        if not self.weights:
            raise ValueError(
                f"{name} is an optimizer of schuss.numpy, which holds no weights of a torch model to measure. limit, "
                "preconditioner and largest_lr are known: compare them with the largest eigenvalue of "
                f"P^-½ (H + λ) P^-½ of your loss, or train the model with schuss.torch.{name}."
            )
        if self.preconditioner is None:
            raise ValueError(
                f"{name} has no state yet, so its preconditioner is not known. Take a training step first."
            )
        with objective(model, loss, batch) as f:
            f.claim("the preconditioner", 2)
            f.steady()
            root, l2 = f.zeros(2)
            parts = zip(map(id, f.given), f.split(root), f.split(l2), strict=True)
            rows = {key: (roots, decays) for key, roots, decays in parts}
            if not any(id(weight) in rows for weight in self.weights):
                raise ValueError(f"{name} holds none of the model's weights. Pass the model that it trains.")
            for weight, method, p in zip(self.weights, self.methods, self.preconditioner, strict=True):
                if id(weight) in rows:
                    roots, decays = rows[id(weight)]
                    roots.copy_(torch.as_tensor(p, dtype=f.dtype, device=f.device).rsqrt())
                    decays.fill_(method.l2)
            curvature = Curvature(f, matrix)

            def apply(vectors: Tensor) -> Tensor:
                scaled = root * vectors
                return curvature(scaled).addcmul_(l2, scaled).mul_(root)

            ritz, _ = ends(f, apply, 0, 1, tolerance=tolerance, budget=products, seed=seed, progress=progress)
        value = float(ritz.values[-1])
        return Sharpness(
            value=value,
            limit=self.limit,
            largest_lr=self.largest_lr(value),
            residual=float(ritz.residuals[-1]),
            converged=ritz.converged,
            products=ritz.products,
        )


def stability_limit(optimizer: torch.optim.Optimizer | NumPyOptimizer) -> StabilityLimit:
    """The largest curvature at which the optimizer is stable with its present settings and state.

    Reads optimizers of Schuss, of your own rules too, and those of torch.optim by the same names, with state in any
    precision; nothing is changed. Plain methods give a limit on the sharpness (2/lr for gradient descent), adaptive
    ones on the sharpness of P^-½ H P^-½ with P from their state, which the result's `sharpness(model, loss, batch)`
    measures (not for optimizers of `schuss.numpy`). `largest_lr(sharpness)` is the inverse.

    Raises:
        ValueError: a method that is not linear in a small gradient (Rprop and Lion use only its sign, so no
            curvature makes their steps grow), one that is not known here, `maximize=True`, momentum ≥ 1, decoupled
            decay of lr × weight_decay ≥ 2, or state whose numbers cannot be read (int8 codes without scales).

    >>> w = torch.zeros(1, requires_grad=True)
    >>> stability_limit(torch.optim.SGD([w], lr=0.1))
    SGD at lr 0.1 is stable while the sharpness is below 20
    >>> limit = stability_limit(torch.optim.Adam([w], lr=0.1))
    >>> round(limit.limit, 9), round(limit.largest_lr(190.0), 9)
    (380.0, 0.2)
    """
    if isinstance(optimizer, type) or not hasattr(optimizer, "row"):  # what has a row is of Schuss
        check_optimizer(optimizer)
    row = _row(optimizer)
    methods: list[Linear] = []
    weights: list[Tensor] = []
    for group, weight, state in _states(optimizer):
        if group.get("maximize"):
            raise refusal("maximize", True, "False", "A method that maximizes has no stability limit.")
        methods.append(_linear(row, group, state))
        weights += [] if weight is None else [weight]
    tightest = min(methods, key=lambda method: method.limit)
    scaled = [
        math.inf
        if method.preconditioner is None or math.isinf(method.limit)
        else method.preconditioner * (method.limit / tightest.limit)
        for method in methods
    ]
    return StabilityLimit(
        limit=tightest.limit,
        lr=tightest.lr,
        preconditioned=not all(isinstance(p, float) and p == 1.0 for p in scaled),
        preconditioner=tuple(scaled) if any(m.preconditioner is not None for m in methods) else None,
        methods=tuple(methods),
        weights=tuple(weights),
        optimizer=row.name,
    )


def _row(optimizer: Any) -> Row:
    """How the optimizer's rule names hyperparameters and state: its own, or that of torch.optim's class."""
    row = getattr(optimizer, "row", None)
    if isinstance(row, Row):
        return row
    for kind in type(optimizer).__mro__:
        if kind.__module__.startswith("torch.optim.") and kind.__name__ in TABLE:
            return TABLE[kind.__name__]
    allowed = f"of Schuss, or of torch.optim and one of {', '.join(TABLE)}"
    advice = "Measure the curvature itself with extreme_eigenvalues."
    raise refusal("optimizer", type(optimizer).__name__, allowed, advice)


def _states(optimizer: Any) -> Iterator[tuple[Group, Tensor | None, State]]:
    """Of each weight its group, itself (None in NumPy) and its state, in torch's names.

    An optimizer of NumPy has before its first update one weight without state.
    """
    if hasattr(optimizer, "param_groups"):
        for group in optimizer.param_groups:
            for weight in group["params"]:
                yield group, weight, optimizer.state.get(weight, {})
        return
    names = dict(optimizer.row.names)
    names |= {scale_of(slot): scale_of(name) for slot, name in names.items()}
    found: dict[str, dict[str, Any]] = {}
    for key, value in optimizer.state_dict().items():
        weight, _, slot = key.rpartition("/")
        if weight:
            bits = value.dtype == np.uint16  # of bfloat16, which NumPy has not
            tensor = torch.as_tensor(value.view(np.int16) if bits else value)
            tensor = tensor.view(torch.bfloat16) if bits else tensor
            found.setdefault(weight, {})[names.get(slot, slot)] = tensor
    group = {name: getattr(optimizer, name) for name in optimizer.arguments()}
    for state in found.values() or [{}]:
        yield group, None, state if int(state.get("step", 0)) else {}


def _linear(row: Row, group: Group, state: State) -> Linear:
    """The linear iteration of one weight tensor."""
    for name in ("cautious", "max_update"):
        if group.get(name):
            raise refusal(
                name,
                group[name],
                "possible here: the step is then not linear, and has no stability limit",
                "Measure without the option, or the curvature itself with extreme_eigenvalues.",
            )
    steps = int(float(state["step"])) if row.counts_steps and "step" in state else 0
    names = {field.name for field in fields(row.rule)} | row.rule.tuples.keys()
    # A schedule counts finished steps.
    chosen = {name: plain_number(at(value, steps)) for name, value in group.items() if name in names}
    rule = row.rule(**own_names(row, chosen))
    first = rule.initial()
    scalars = tuple((n, float(state.get(row.names[n], first.get(n, 0.0)))) for n in rule.scalars)
    limit, now, scale = _iterations(rule, steps, scalars)
    p: Tensor | float | None = scale
    if scale is not None and now.adaptive:
        p = _preconditioner(now, scale, {name: row.names[name] for name in now.frozen}, state)
    return Linear(rule, limit, now.l2, 1 - now.decay, p, steps, scalars)


def _iterations(
    rule: Rule, step: int, scalars: tuple[tuple[str, float], ...]
) -> tuple[float, linear.Iteration, float | None]:
    """The largest stable h / P; the iteration as it is now; and P where `Iteration.scale` is 1, if that is known.

    An adaptive method's limit is stated for sizes of 1 and the limit of many steps, or the present one where there is
    no such limit: what sizes and bias corrections are now is in P.
    """
    late = linear.settled(rule)
    if not step:
        now = late or linear.present(rule, 0, scalars)
        return now.limit, now, 1.0 if not now.adaptive else None
    now = linear.present(rule, step, scalars)
    if not now.adaptive and not (late and late.adaptive):
        return now.limit, now, 1.0
    limit = (late or now).limit
    return limit, now, now.edge / limit if math.isfinite(limit) and math.isfinite(now.edge) else None


def _preconditioner(
    now: linear.Iteration, scale: float, names: Mapping[str, str], state: State
) -> Tensor | None:
    """P of each weight: `scale` times that of the iteration at the weight's frozen state."""
    if any(name not in state for name in names.values()):
        return None
    slots = {slot: _numbers(state, name) for slot, name in names.items()}
    like = next(iter(slots.values()))
    found = np.empty(like.numel())
    for k in range(0, len(found), _CHUNK):
        part = {n: x.reshape(-1)[k : k + _CHUNK].cpu().double().numpy() for n, x in slots.items()}
        found[k : k + _CHUNK] = scale * now.scale(part)
    return torch.from_numpy(found).view(like.shape).to(like.device)


def _numbers(state: State, name: str) -> Tensor:
    """The numbers of a slot, which may be int8 codes."""
    value = state[name].detach()
    if value.dtype in (torch.int8, torch.uint8):
        if value.dtype == torch.uint8 or scale_of(name) not in state:
            allowed = "numbers, or int8 codes of schuss with their scales"
            raise refusal(f"the state's {name!r}", value.dtype, allowed)
        return from_levels(value, state[scale_of(name)])
    return torch.view_as_real(value) if value.is_complex() else value
