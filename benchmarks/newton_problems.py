"""How many published problems each second-order method solves, and with how many evaluations.

The 35 problems of Moré, Garbow & Hillstrom (some in several sizes) and NIST's nonlinear regressions from both
of their starts, in float64. A problem is solved once any evaluated point has a published optimum to the digits
published; costs are counted up to the end of the evaluation (ours: of the step) that found it, so stopping rules do
not enter. Every method is given exact derivatives by autograd and tolerances too tight to stop it early.

What is counted: every loss, every gradient, every product with a Hessian (a dense Hessian of d weights is d of
them) or a Jacobian (a dense one is the smaller of its sides). `cost` sums them in gradient equivalents: a loss 1/3, a
gradient 2/3, a product 2. Methods that take loss and gradient together (the line searches) pay both at each evaluation.

Run: python benchmarks/newton_problems.py [--only newton,lbfgs] [--detail]; it prints Markdown.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "newton"))
import mgh
import nist

from schuss.newton import LBFGS, GaussNewton, Newton, NewtonCG

LIMIT = 1000  # losses a run may take


class Enough(Exception):  # noqa: N818 (a signal, not an error)
    """The run has solved its problem or used up its evaluations."""


@dataclass
class Case:
    """A problem from one start, with counters that stop the run once it is solved."""

    name: str
    residual: Callable[[Tensor], Tensor]
    solved: Callable[[float], bool]
    start: tuple[float, ...]
    losses: int = 0
    gradients: int = 0
    products: int = 0
    is_solved: bool = field(default=False)

    def fresh(self) -> Case:
        return Case(self.name, self.residual, self.solved, self.start)

    def x0(self) -> np.ndarray:
        return np.array(self.start, dtype=np.float64)

    @property
    def over(self) -> bool:
        """Whether no further evaluation is needed, or allowed."""
        return self.is_solved or self.losses >= LIMIT

    def seen(self, residual: Tensor) -> Tensor:
        """Count one evaluation, unless the run was over before."""
        if not self.over:
            self.losses += 1
            self.is_solved = self.solved(float(residual.detach().square().sum()))
        return residual

    def last(self, residual: Tensor) -> Tensor:
        """Count one evaluation and end the run there if no other is needed."""
        self.seen(residual)
        if self.over:
            raise Enough
        return residual

    @property
    def cost(self) -> float:
        """Gradient equivalents: forward 1/3, backward 2/3, product 2."""
        return self.losses / 3 + 2 * self.gradients / 3 + 2 * self.products

    # What SciPy is given.
    def fun(self, x: np.ndarray) -> float:
        return 0.5 * float(self.last(self.residual(torch.from_numpy(x.copy()))).square().sum())

    def fun_and_grad(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        w = torch.from_numpy(x.copy()).requires_grad_()
        self.gradients += 1
        loss = 0.5 * self.last(self.residual(w)).square().sum()
        return float(loss.detach()), torch.autograd.grad(loss, w)[0].numpy()

    def _half(self, w: Tensor) -> Tensor:
        return 0.5 * self.residual(w).square().sum()

    def grad(self, x: np.ndarray) -> np.ndarray:
        self.gradients += 1
        w = torch.from_numpy(x.copy()).requires_grad_()
        return torch.autograd.grad(self._half(w), w)[0].numpy()

    def hessp(self, x: np.ndarray, p: np.ndarray) -> np.ndarray:
        self.products += 1
        w = torch.from_numpy(x.copy())
        return torch.autograd.functional.hvp(self._half, w, torch.from_numpy(np.array(p)))[1].numpy()

    def hess(self, x: np.ndarray) -> np.ndarray:
        self.products += len(x)
        return torch.autograd.functional.hessian(self._half, torch.from_numpy(x.copy())).numpy()

    def residuals(self, x: np.ndarray) -> np.ndarray:
        return self.last(self.residual(torch.from_numpy(x.copy()))).numpy()

    def jacobian(self, x: np.ndarray) -> np.ndarray:
        w = torch.from_numpy(x.copy())
        self.products += min(len(x), len(self.residual(w)))
        return torch.autograd.functional.jacobian(self.residual, w).numpy()


def ours(make: Callable[[list[Tensor]], Any], *, squares: bool = False) -> Callable[[Case], None]:
    def run(case: Case) -> None:
        w = torch.tensor(case.start, dtype=torch.float64, requires_grad=True)
        optimizer = make([w])

        def closure() -> Tensor:
            residual = case.seen(case.residual(w))
            return residual if squares else 0.5 * residual.square().sum()

        while not case.over:
            optimizer.step(closure)
            report = optimizer.report
            case.gradients += report.gradients
            case.products += report.products
            if not report.accepted:
                return

    return run


def scipy_minimize(method: str, **options: Any) -> Callable[[Case], None]:
    def run(case: Case) -> None:
        arguments: dict[str, Any] = {"fun": case.fun, "jac": case.grad}
        if method in ("BFGS", "L-BFGS-B"):
            arguments = {"fun": case.fun_and_grad, "jac": True}
        if method in ("Newton-CG", "trust-ncg"):
            arguments["hessp"] = case.hessp
        if method == "trust-exact":
            arguments["hess"] = case.hess
        scipy.optimize.minimize(
            x0=case.x0(), method=method, options={"maxiter": LIMIT, **options}, **arguments
        )

    return run


def scipy_least_squares(method: str) -> Callable[[Case], None]:
    def run(case: Case) -> None:
        scipy.optimize.least_squares(
            case.residuals,
            case.x0(),
            jac=case.jacobian,
            method=method,
            x_scale="jac",
            ftol=1e-15,
            xtol=1e-15,
            gtol=1e-15,
            max_nfev=LIMIT,
        )

    return run


def torch_lbfgs(case: Case) -> None:
    w = torch.tensor(case.start, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [w],
        max_iter=LIMIT,
        max_eval=LIMIT,
        tolerance_grad=1e-14,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        case.gradients += 1
        loss = 0.5 * case.last(case.residual(w)).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)


CLASSES: dict[str, dict[str, Callable[[Case], None]]] = {
    "second order": {
        "schuss Newton": ours(lambda p: Newton(p, full_batch=True)),
        "schuss NewtonCG": ours(lambda p: NewtonCG(p, full_batch=True)),
        "SciPy Newton-CG": scipy_minimize("Newton-CG", xtol=1e-14),
        "SciPy trust-ncg": scipy_minimize("trust-ncg", gtol=1e-14, max_trust_radius=1e10),
        "SciPy trust-exact": scipy_minimize("trust-exact", gtol=1e-14, max_trust_radius=1e10),
    },
    "first derivatives": {
        "schuss LBFGS": ours(lambda p: LBFGS(p, full_batch=True)),
        "SciPy BFGS": scipy_minimize("BFGS", gtol=1e-14),
        "SciPy L-BFGS-B": scipy_minimize("L-BFGS-B", gtol=1e-14, ftol=1e-18, maxfun=LIMIT),
        "torch LBFGS": torch_lbfgs,
    },
    "least squares": {
        "schuss GaussNewton": ours(lambda p: GaussNewton(p, full_batch=True), squares=True),
        "SciPy least_squares lm": scipy_least_squares("lm"),
        "SciPy least_squares trf": scipy_least_squares("trf"),
    },
}


def cases() -> tuple[list[Case], list[Case]]:
    """The problems of Moré, Garbow & Hillstrom, and NIST's from both starts."""
    published = [Case(p.name, p.residual, p.solved, p.start) for p in mgh.PROBLEMS]
    fits = [
        Case(f"{d.name}/{i}", d.residual, d.solved, start)
        for d in nist.DATASETS
        for i, start in enumerate(d.starts, start=1)
    ]
    return published, fits


def run(method: Callable[[Case], None], case: Case) -> Case:
    """One run on a fresh copy of a case; whatever a solver raises is a problem not solved."""
    case = case.fresh()
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            method(case)
    except Enough:
        pass
    except (ValueError, ArithmeticError, np.linalg.LinAlgError, RuntimeError) as error:
        case.name += f" [{type(error).__name__}]"
    return case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="comma-separated parts of method names")
    parser.add_argument("--detail", action="store_true", help="print every run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    wanted = [w for w in options.only.lower().split(",") if w]
    published, fits = cases()
    everything = published + fits
    for title, methods in CLASSES.items():
        chosen = {n: m for n, m in methods.items() if not wanted or any(w in n.lower() for w in wanted)}
        if chosen:
            results = {n: [run(m, c) for c in everything] for n, m in chosen.items()}
            print_class(title, results, len(published))
            if options.detail:
                print_detail(results)


def median(runs: list[Case], which: list[int], what: str) -> float:
    return statistics.median(getattr(runs[i], what) for i in which) if which else math.nan


def print_class(title: str, results: dict[str, list[Case]], split: int) -> None:
    """Who solves how many, in each set and in each half of both, and the medians over what all solve."""
    count = len(next(iter(results.values())))
    common = [i for i in range(count) if all(r[i].is_solved for r in results.values())]
    print(f"\n**{title}** (medians over the {len(common)} that all of these solve)\n")
    print(
        f"| method | solved of {count} | MGH of {split} | NIST of {count - split} | odd | even "
        "| losses | gradients | HVPs | cost | losses, odd | even |"
    )
    print("| --- |" + " ---: |" * 11)
    for name, runs in results.items():
        parts = (runs, runs[:split], runs[split:], runs[::2], runs[1::2])
        solved = " | ".join(str(sum(r.is_solved for r in part)) for part in parts)
        medians = " | ".join(
            f"{median(runs, common, what):g}" for what in ("losses", "gradients", "products")
        )
        halves = " | ".join(
            f"{median(runs, [i for i in common if i % 2 == half], 'losses'):g}" for half in (0, 1)
        )
        print(f"| {name} | {solved} | {medians} | {median(runs, common, 'cost'):.1f} | {halves} |")
    mine = [n for n in results if n.startswith("schuss")]
    others = [n for n in results if n not in mine]
    if not (mine and others):
        return
    print("\n| pair | both solve | losses, median | cost, median | ratio of losses, geometric mean |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for ours_, theirs in itertools.product(mine, others):
        a, b = results[ours_], results[theirs]
        both = [i for i in range(count) if a[i].is_solved and b[i].is_solved]
        ratio = math.exp(statistics.fmean(math.log(a[i].losses / b[i].losses) for i in both))
        print(
            f"| {ours_} : {theirs} | {len(both)} | {median(a, both, 'losses'):g} : {median(b, both, 'losses'):g} | "
            f"{median(a, both, 'cost'):.1f} : {median(b, both, 'cost'):.1f} | {ratio:.2f} |"
        )


def print_detail(results: dict[str, list[Case]]) -> None:
    """Losses of every run; a dash before those that did not solve their problem."""
    print(f"\n| losses (– unsolved) | {' | '.join(results)} |")
    print("| --- |" + " ---: |" * len(results))
    for runs in zip(*results.values(), strict=True):
        marks = " | ".join(f"{'' if r.is_solved else '–'}{r.losses}" for r in runs)
        print(f"| {runs[0].name} | {marks} |")


if __name__ == "__main__":
    main()
