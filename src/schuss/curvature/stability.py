r"""The largest curvature that an optimizer's present settings can bear.

On ½ h w² every linear method here takes the step

    m ← β m + γ g,   w ← (1 − δ) w − (η / P) (c₁ m + c₂ g),   g = h w

with decoupled decay δ = η λ, and P = 1 or the adaptive method's own denominator. With a = η h / P the matrix
of one step has

    trace = 1 − δ + β − a (c₁ γ + c₂),    determinant = (1 − δ) β − a β c₂

and its eigenvalues are inside the unit circle until 1 + trace + determinant = (2 − δ)(1 + β) − a (c₁ γ + c₂
(1 + β)) reaches 0, at

    h / P = (2 − δ)(1 + β) / (η (c₁ γ + c₂ (1 + β)))

| method            | β   | γ     | c₁ | c₂ | limit (δ = 0)              |
|-------------------|-----|-------|----|----|----------------------------|
| gradient descent  | 0   | 1     | 1  | 0  | 2 / η                      |
| heavy ball        | μ   | 1 − d | 1  | 0  | 2 (1 + μ) / ((1 − d) η)    |
| Nesterov          | μ   | 1     | μ  | 1  | 2 (1 + μ) / ((1 + 2 μ) η)  |
| Adam and averages | β₁  | 1 − β₁| 1  | 0  | 2 (1 + β₁) / ((1 − β₁) η)  |

In many dimensions h / P is an eigenvalue of P^-½ H P^-½. An L2 decay λ adds to every h. P moves with
training: the limit is that of P frozen as it is now.

Sources: Polyak 1964; Cohen, Kaur, Li, Kolter and Talwalkar 2021 (edge of stability); Cohen, Ghorbani et al.
2022 (adaptive).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor

import schuss.numpy
from schuss.curvature.eigenvalues import ends
from schuss.curvature.memory import claim
from schuss.curvature.place import Loss, Model, Progress, check_optimizer, visit
from schuss.curvature.products import Curvature
from schuss.errors import refusal
from schuss.numpy import kept as arrays
from schuss.torch import kept as tensors

Group = Mapping[str, Any]
State = Mapping[str, Any]


@dataclass(frozen=True)
class Linear:
    """One weight tensor's iteration in the letters of this module; P is None while it is not known."""

    lr: float
    beta: float = 0.0
    gamma: float = 1.0
    past: float = 1.0
    now: float = 0.0
    decay: float = 0.0
    l2: float = 0.0
    preconditioner: Tensor | float | None = 1.0

    @property
    def reach(self) -> float:
        """(1 + β) / (c₁ γ + c₂ (1 + β)): how much more than gradient descent the method bears.

        Infinite where gradients do not count (dampening 1): no curvature makes those steps grow.
        """
        weight = self.past * self.gamma + self.now * (1 + self.beta)
        return (1 + self.beta) / weight if weight else math.inf

    @property
    def limit(self) -> float:
        """The largest stable h / P."""
        return (2 - self.lr * self.decay) * self.reach / self.lr if self.lr > 0 else math.inf


@dataclass(frozen=True)
class Sharpness:
    """The largest eigenvalue of the preconditioned Hessian, against the limit of the optimizer in use.

    `value` and `limit` are in the same units; `dial` = value / limit is the sharpness ratio, 1 at the edge of
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
    def dial(self) -> float:
        """The sharpness ratio, sharpness / limit: 1 at the edge of stability, above it unstable."""
        return self.value / self.limit

    def __float__(self) -> float:
        """The sharpness itself."""
        return self.value

    def __repr__(self) -> str:
        """One line."""
        return (
            f"sharpness {self.value:.4g}, {self.dial:.0%} of the stability limit {self.limit:.4g}; stable up to lr "
            f"{self.largest_lr:.4g}"
        )


@dataclass(frozen=True, eq=False)
class StabilityLimit:
    """The stability limit of an optimizer's settings.

    `limit`: the largest stable eigenvalue of P^-½ (H + λ) P^-½, in loss per weight² (times the units of P for
    adaptive methods); for plain methods P is 1 and this is the largest stable sharpness. With several groups,
    the smallest limit among them; P of the others is scaled so that this one limit holds for all (exact when
    they share their momentum). `preconditioned`: P is not 1 everywhere. `preconditioner` are the P of each
    weight tensor in the optimizer's order (a number where it is the same for the whole tensor), None before
    the first step of an adaptive method. `methods` names the rows of the module's table that each weight
    tensor follows.
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
        tightest = min(self.methods, key=lambda method: method.limit)
        if math.isinf(tightest.reach):
            return 2 / tightest.decay if tightest.decay else math.inf
        return 2 * tightest.reach / (sharpness + tightest.decay * tightest.reach)

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
        if self.preconditioner is None:
            raise ValueError(
                f"{self.optimizer} has no state yet, so its preconditioner is not known. Take a training "
                "step first."
            )
        with visit(model, loss, batch) as place:
            claim("the preconditioner", 2, place.n, place.dtype, place.device, "Freeze some weights.")
            place.steady()
            root, l2 = (torch.zeros(place.n, dtype=place.dtype, device=place.device) for _ in range(2))
            rows = {id(weight): i for i, weight in enumerate(place.given)}
            if not any(id(weight) in rows for weight in self.weights):
                raise ValueError(
                    f"{self.optimizer} holds none of the model's weights. Pass the model that it trains."
                )
            roots, decays = place.split(root), place.split(l2)
            for weight, method, p in zip(self.weights, self.methods, self.preconditioner, strict=True):
                if id(weight) in rows:
                    where = torch.as_tensor(p, dtype=place.dtype, device=place.device)
                    roots[rows[id(weight)]].copy_(where.rsqrt())
                    decays[rows[id(weight)]].fill_(method.l2)
            curvature = Curvature(place, matrix)

            def apply(vectors: Tensor, out: Tensor) -> None:
                for vector, product in zip(vectors, out, strict=True):
                    scaled = root * vector
                    curvature(scaled[None], product[None])
                    product.addcmul_(l2, scaled).mul_(root)

            ritz, _ = ends(
                place, apply, 0, 1, tolerance=tolerance, budget=products, seed=seed, progress=progress
            )
            value = float(ritz.values[-1])
            return Sharpness(
                value=value,
                limit=self.limit,
                largest_lr=self.largest_lr(value),
                residual=float(ritz.residuals[-1]),
                converged=ritz.converged,
                products=ritz.products,
            )


def stability_limit(optimizer: torch.optim.Optimizer | schuss.numpy.Optimizer) -> StabilityLimit:
    """The largest curvature at which the optimizer is stable with its present settings and state.

    Reads `param_groups` and `state` of torch.optim's and Schuss's SGD, ASGD, Adagrad, Adadelta, RMSprop,
    Adam, AdamW, NAdam, RAdam and Adamax, in low precision too; nothing is changed. Of an optimizer of
    `schuss.numpy` it knows the limit; the result's `sharpness` needs a torch model. Plain methods give a limit
    on the sharpness (2/lr for gradient descent), adaptive ones on the sharpness of P^-½ H P^-½ with P from
    their state, which the result's `sharpness(model, loss, batch)` measures. `largest_lr(sharpness)` is the
    inverse. The module's docstring has the formula and its proof.

    Raises:
        ValueError: a method that is not linear in the gradient (Rprop and Lion use only its sign, so no
            curvature makes their steps grow), one that is not known here, `maximize=True`, momentum ≥ 1, decoupled
            decay of lr × weight_decay ≥ 2, or state whose numbers cannot be read (int8 codes without scales).

    >>> w = torch.zeros(1, requires_grad=True)
    >>> stability_limit(torch.optim.SGD([w], lr=0.1))
    SGD at lr 0.1 is stable while the sharpness is below 20
    >>> limit = stability_limit(torch.optim.Adam([w], lr=0.1))
    >>> round(limit.limit, 9), round(limit.largest_lr(190.0), 9)
    (380.0, 0.2)
    """
    if not _is_numpy(optimizer):
        check_optimizer(optimizer)
    name = next((kind.__name__ for kind in type(optimizer).__mro__ if kind.__name__ in METHODS), None)
    if name is None:
        given = type(optimizer).__name__
        advice = (
            "It uses only the sign of the gradient: its steps have a fixed size, whatever the curvature."
            if given in ("Lion", "Rprop")
            else "Measure the curvature itself with extreme_eigenvalues."
        )
        raise refusal("optimizer", given, f"one of {', '.join(METHODS)}", advice)
    methods: list[Linear] = []
    weights: list[Tensor] = []
    for group, weight, state in _of_arrays(optimizer) if _is_numpy(optimizer) else _of_tensors(optimizer):
        if group.get("maximize"):
            raise refusal("maximize", True, "False", "A method that maximizes has no stability limit.")
        methods.append(_checked(METHODS[name](group, state)))
        weights.append(weight)
    limit = min(method.limit for method in methods)
    lr = min(methods, key=lambda method: method.limit).lr
    known = [method.preconditioner for method in methods]
    started = any(p is not None for p in known)
    scaled = [
        math.inf if p is None or math.isinf(method.limit) else p * (method.limit / limit)
        for p, method in zip(known, methods, strict=True)
    ]
    return StabilityLimit(
        limit=limit,
        lr=lr,
        preconditioned=not all(isinstance(p, float) and p == 1.0 for p in scaled),
        preconditioner=tuple(scaled) if started else None,
        methods=tuple(methods),
        weights=tuple(weights),
        optimizer=name,
    )


def _is_numpy(optimizer: object) -> TypeGuard[schuss.numpy.Optimizer]:
    return isinstance(optimizer, schuss.numpy.Optimizer)


def _of_tensors(optimizer: Any) -> Iterator[tuple[Group, Tensor, State]]:
    """Each weight of an optimizer of torch, with its group and its state in numbers."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            state = dict(optimizer.state.get(weight, {}))
            for name, value in list(state.items()):
                if not (isinstance(value, Tensor) and value.dtype in (torch.int8, torch.uint8)):
                    continue
                if value.dtype == torch.uint8 or tensors.scale_of(name) not in state:
                    raise refusal(
                        f"the state's {name!r}",
                        value.dtype,
                        "numbers, or int8 codes of schuss with their scales",
                    )
                tensors.convert(state, name, "float32")
            yield group, weight, state


def _of_arrays(optimizer: schuss.numpy.Optimizer) -> Iterator[tuple[Group, Tensor, State]]:
    """The same of an optimizer of NumPy, under torch's names; before the first update one weight without state."""
    group = {name: getattr(optimizer, name) for name in inspect.signature(type(optimizer)).parameters}
    found: dict[str, dict[str, Any]] = {}
    for key, value in optimizer.state_dict().items():
        weight, _, slot = key.rpartition("/")
        if weight:
            found.setdefault(weight, {})[slot] = value
    for slots in found.values() or [{}]:
        steps, state = int(slots.pop("step", 0)), dict[str, Any]()
        for slot, name in optimizer.row.names.items():
            if slot in slots and slots[slot].ndim:
                arrays.convert(slots, slot, "float64")
            if slot in slots:
                state[name] = torch.as_tensor(slots[slot])
        yield group, torch.empty(0), state | ({"step": steps} if steps else {})


def _checked(method: Linear) -> Linear:
    if not 0 <= method.beta < 1:
        raise refusal("momentum", method.beta, "in [0, 1)", "From 1 on no curvature is stable.")
    if not method.lr * method.decay < 2:
        raise refusal(
            "lr × weight_decay",
            method.lr * method.decay,
            "below 2",
            "Decay alone multiplies weights by 1 − lr × weight_decay at every step: no curvature is stable.",
        )
    return method


def _rate(group: Group, state: State) -> float:
    """The learning rate of a group: a number, a tensor, or a schedule of the finished steps."""
    lr = group["lr"]
    schedule = cast("Callable[[int], float]", lr)
    return float(schedule(_steps(state)) if callable(lr) else lr)


def _steps(state: State) -> int:
    return int(float(state["step"])) if "step" in state else 0


def _decays(group: Group, decoupled: bool = False) -> dict[str, float]:
    """Weight decay as the formula takes it: added to h, or shrinking w."""
    decoupled = bool(group.get("decoupled_weight_decay", decoupled))
    return {"decay" if decoupled else "l2": float(group.get("weight_decay", 0.0))}


def _root(square: Tensor, group: Group) -> Tensor:
    """√v + ε, or √(v + ε) where the group says so."""
    eps = float(group["eps"])
    if group.get("eps_position", "outside") == "inside":
        return (square.double() + eps).sqrt()
    return square.double().sqrt() + eps


def _sgd(group: Group, state: State) -> Linear:
    momentum = float(group["momentum"])
    common: dict[str, Any] = dict(lr=_rate(group, state), beta=momentum, **_decays(group))
    if group["nesterov"]:
        return Linear(**common, past=momentum, now=1.0)
    return Linear(**common, gamma=1 - float(group["dampening"]) if momentum else 1.0)


def _asgd(group: Group, state: State) -> Linear:
    return Linear(
        lr=float(state["eta"]) if "eta" in state else _rate(group, state),
        decay=float(group["lambd"]),
        l2=float(group["weight_decay"]),
    )


def _adagrad(group: Group, state: State) -> Linear:
    fallen = 1 + max(_steps(state) - 1, 0) * float(group["lr_decay"])
    p = _root(state["sum"], group) if _steps(state) else None
    return Linear(lr=_rate(group, state) / fallen, preconditioner=p, **_decays(group))


def _adadelta(group: Group, state: State) -> Linear:
    p = None
    if state:
        eps = float(group["eps"])
        p = ((state["square_avg"].double() + eps) / (state["acc_delta"].double() + eps)).sqrt()
    return Linear(lr=_rate(group, state), preconditioner=p, **_decays(group))


def _rmsprop(group: Group, state: State) -> Linear:
    p = None
    if state:
        square = state["square_avg"].double()
        if group["centered"]:
            square = (square - state["grad_avg"].double() ** 2).clamp(min=0)
        p = _root(square, group)
    return Linear(lr=_rate(group, state), beta=float(group["momentum"]), preconditioner=p, **_decays(group))


def _adam(group: Group, state: State, decoupled: bool = False) -> Linear:
    beta1 = float(group["betas"][0])
    p = _adam_preconditioner(group, state) if state else None
    return Linear(
        lr=_rate(group, state), beta=beta1, gamma=1 - beta1, preconditioner=p, **_decays(group, decoupled)
    )


def _adamw(group: Group, state: State) -> Linear:
    return _adam(group, state, decoupled=True)


def _adam_preconditioner(group: Group, state: State, first: bool = True) -> Tensor:
    """(1 − β₁ᵗ)(√v̂ + ε); without `first` the denominator alone."""
    beta1, beta2 = (float(beta) for beta in group["betas"])
    step = _steps(state)
    square = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
    correction2 = 1 - beta2**step
    if group.get("eps_position") == "uncorrected":
        p = (square.double().sqrt() + float(group["eps"])) / math.sqrt(correction2)
    else:
        p = _root(square.double() / correction2, group)
    return (1 - beta1**step) * p if first else p


def _nadam(group: Group, state: State) -> Linear:
    r"""c₁ = μₜ₊₁ / (1 − Π μ to t + 1), c₂ = (1 − μₜ) / (1 − Π μ to t); their limits before the first step."""
    beta1 = float(group["betas"][0])
    past, now = beta1, 1 - beta1
    if state:
        step, decay = _steps(state), float(group["momentum_decay"])
        mu, mu_next = (beta1 * (1 - 0.5 * 0.96 ** (t * decay)) for t in (step, step + 1))
        product = float(state["mu_product"])
        past, now = mu_next / (1 - product * mu_next), (1 - mu) / (1 - product)
    return Linear(
        lr=_rate(group, state),
        beta=beta1,
        gamma=1 - beta1,
        past=past,
        now=now,
        preconditioner=_adam_preconditioner(group, state, first=False) if state else None,
        **_decays(group),
    )


def _radam(group: Group, state: State) -> Linear:
    """Adam's preconditioner over the rectification r once ρ > 5; before that P = 1 − β₁ᵗ."""
    beta1, beta2 = (float(beta) for beta in group["betas"])
    p: Tensor | float | None = None
    if state:
        step = _steps(state)
        correction2 = 1 - beta2**step
        rho_inf = 2 / (1 - beta2) - 1
        rho = rho_inf - 2 * step * beta2**step / correction2
        p = 1 - beta1**step
        if rho > 5:
            r = math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
            p = p * _root(state["exp_avg_sq"], group) / (math.sqrt(correction2) * r)
    return Linear(lr=_rate(group, state), beta=beta1, gamma=1 - beta1, preconditioner=p, **_decays(group))


def _adamax(group: Group, state: State) -> Linear:
    beta1 = float(group["betas"][0])
    p = (1 - beta1 ** _steps(state)) * state["exp_inf"].double() if state else None
    return Linear(lr=_rate(group, state), beta=beta1, gamma=1 - beta1, preconditioner=p, **_decays(group))


METHODS: dict[str, Callable[[Group, State], Linear]] = {
    "SGD": _sgd,
    "ASGD": _asgd,
    "Adagrad": _adagrad,
    "Adadelta": _adadelta,
    "RMSprop": _rmsprop,
    "AdamW": _adamw,
    "Adam": _adam,
    "NAdam": _nadam,
    "RAdam": _radam,
    "Adamax": _adamax,
}
