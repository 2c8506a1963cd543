"""How many published problems each second-order method solves, and with how many evaluations.

The 35 problems of Moré, Garbow & Hillstrom (some in several sizes) and NIST's nonlinear regressions from both
of their starts, in float64. A problem is solved once any evaluated point has a published optimum to the digits
published; costs are counted up to the end of the evaluation (ours: of the step) that found it, so stopping rules do
not enter. Every method is given exact derivatives by autograd and tolerances too tight to stop it early.

What is counted: every loss, every gradient, every Hessian-vector product (a dense Hessian of d weights is d of
them) and every product with a Jacobian (a dense one is the smaller of its sides). `cost` sums them in gradient
equivalents: a loss 1/3, a gradient 2/3, a product 2. Methods that take loss and gradient together (the line searches)
pay both at each evaluation.

Run: python benchmarks/newton_problems.py [--only newton,lbfgs]; it prints Markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import statistics
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "newton"))
import mgh
import nist

from schuss.bench.grids import markdown_table
from schuss.newton import LBFGS, GaussNewton, Newton, NewtonCG

LIMIT = 1000  # losses a run may take


class Enough(Exception):  # noqa: N818 (a signal, not an error)
    """The run has solved its problem or used up its evaluations."""


@dataclass
class Case:
    """A problem from one start, with counters that stop the run once it is solved, and what SciPy is given."""

    name: str
    residual: Callable[[Tensor], Tensor]
    solved: Callable[[float], bool]
    start: tuple[float, ...]
    losses: int = 0
    gradients: int = 0
    products: int = 0
    is_solved: bool = False

    @property
    def over(self) -> bool:
        """Whether no further evaluation is needed, or allowed."""
        return self.is_solved or self.losses >= LIMIT

    @property
    def cost(self) -> float:
        """Gradient equivalents: forward 1/3, backward 2/3, product 2."""
        return self.losses / 3 + 2 * self.gradients / 3 + 2 * self.products

    def seen(self, w: Tensor, ends: bool = True) -> Tensor:
        """The residual. It counts as one evaluation unless the run was over before, and `ends` a run that is."""
        residual = self.residual(w)
        if not self.over:
            self.losses += 1
            self.is_solved = self.solved(float(residual.detach().square().sum()))
        if ends and self.over:
            raise Enough
        return residual

    def half(self, w: Tensor) -> Tensor:
        return 0.5 * self.residual(w).square().sum()

    def fun(self, x: np.ndarray) -> float:
        return 0.5 * float(self.seen(torch.tensor(x)).square().sum())

    def fun_and_grad(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        self.gradients += 1
        w = torch.tensor(x, requires_grad=True)
        loss = 0.5 * self.seen(w).square().sum()
        return float(loss.detach()), torch.autograd.grad(loss, w)[0].numpy()

    def grad(self, x: np.ndarray) -> np.ndarray:
        self.gradients += 1
        w = torch.tensor(x, requires_grad=True)
        return torch.autograd.grad(self.half(w), w)[0].numpy()

    def hessp(self, x: np.ndarray, p: np.ndarray) -> np.ndarray:
        self.products += 1
        return torch.autograd.functional.hvp(self.half, torch.tensor(x), torch.tensor(p))[1].numpy()

    def hess(self, x: np.ndarray) -> np.ndarray:
        self.products += len(x)
        return torch.autograd.functional.hessian(self.half, torch.tensor(x)).numpy()

    def residuals(self, x: np.ndarray) -> np.ndarray:
        return self.seen(torch.tensor(x)).numpy()

    def jacobian(self, x: np.ndarray) -> np.ndarray:
        w = torch.tensor(x)
        self.products += min(len(x), len(self.residual(w)))
        return torch.autograd.functional.jacobian(self.residual, w).numpy()


Method = Callable[[Case], object]


def ours(cls: Callable[..., Any], *, squares: bool = False) -> Method:
    def run(case: Case) -> None:
        w = torch.tensor(case.start, dtype=torch.float64, requires_grad=True)
        optimizer = cls([w], full_batch=True)

        def closure() -> Tensor:
            residual = case.seen(w, ends=False)
            return residual if squares else 0.5 * residual.square().sum()

        while not case.over:
            optimizer.step(closure)
            report = optimizer.report
            case.gradients += report.gradients
            case.products += report.products
            if not report.accepted:
                return

    return run


def scipy_minimize(method: str, second: str = "", **options: Any) -> Method:
    """SciPy's method, which takes loss and gradient together, or apart and `second`: "hess" or "hessp"."""

    def run(case: Case) -> None:
        given: dict[str, Any] = {"fun": case.fun_and_grad, "jac": True}
        if second:
            given = {"fun": case.fun, "jac": case.grad, second: getattr(case, second)}
        options["maxiter"] = LIMIT
        scipy.optimize.minimize(x0=np.array(case.start, float), method=method, options=options, **given)

    return run


def scipy_least_squares(method: str) -> Method:
    return lambda case: scipy.optimize.least_squares(
        *(case.residuals, np.array(case.start, float)),
        **dict(jac=case.jacobian, method=method, x_scale="jac", max_nfev=LIMIT),
        **dict(ftol=1e-15, xtol=1e-15, gtol=1e-15),
    )


def torch_lbfgs(case: Case) -> None:
    w = torch.tensor(case.start, dtype=torch.float64, requires_grad=True)
    tight = dict(tolerance_grad=1e-14, tolerance_change=1e-16)
    optimizer = torch.optim.LBFGS([w], max_iter=LIMIT, max_eval=LIMIT, line_search_fn="strong_wolfe", **tight)

    def closure() -> Tensor:
        optimizer.zero_grad()
        case.gradients += 1
        loss = 0.5 * case.seen(w).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)


CLASSES: dict[str, dict[str, Method]] = {
    "second order": {
        "schuss Newton": ours(Newton),
        "schuss NewtonCG": ours(NewtonCG),
        "SciPy Newton-CG": scipy_minimize("Newton-CG", "hessp", xtol=1e-14),
        "SciPy trust-ncg": scipy_minimize("trust-ncg", "hessp", gtol=1e-14, max_trust_radius=1e10),
        "SciPy trust-exact": scipy_minimize("trust-exact", "hess", gtol=1e-14, max_trust_radius=1e10),
    },
    "first derivatives": {
        "schuss LBFGS": ours(LBFGS),
        "SciPy BFGS": scipy_minimize("BFGS", gtol=1e-14),
        "SciPy L-BFGS-B": scipy_minimize("L-BFGS-B", gtol=1e-14, ftol=1e-18, maxfun=LIMIT),
        "torch LBFGS": torch_lbfgs,
    },
    "least squares": {
        "schuss GaussNewton": ours(GaussNewton, squares=True),
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


def run(method: Method, case: Case) -> Case:
    """One run on a fresh copy of a case; whatever a solver raises is a problem not solved."""
    case = dataclasses.replace(case)
    try:
        with warnings.catch_warnings(action="ignore"), np.errstate(all="ignore"):
            method(case)
    except Enough:
        pass
    except (ValueError, ArithmeticError, np.linalg.LinAlgError, RuntimeError) as error:
        case.name += f" [{type(error).__name__}]"
    return case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="comma-separated parts of method names")
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


def median(runs: list[Case], which: list[int], what: str) -> float:
    return statistics.median(getattr(runs[i], what) for i in which) if which else math.nan


def print_class(title: str, results: dict[str, list[Case]], split: int) -> None:
    """Who solves how many, in each set and in each half of both, and the medians over what all solve."""
    count = len(next(iter(results.values())))
    common = [i for i in range(count) if all(r[i].is_solved for r in results.values())]
    heads = [
        *("method", f"solved of {count}", f"MGH of {split}", f"NIST of {count - split}", "odd", "even"),
        *("losses", "gradients", "HVPs", "cost", "losses, odd", "even"),
    ]
    rows: list[list[str]] = []
    for name, runs in results.items():
        parts = (runs, runs[:split], runs[split:], runs[::2], runs[1::2])
        halves = ([i for i in common if i % 2 == half] for half in (0, 1))
        rows.append(
            [
                name,
                *(str(sum(r.is_solved for r in part)) for part in parts),
                *(f"{median(runs, common, what):g}" for what in ("losses", "gradients", "products")),
                f"{median(runs, common, 'cost'):.1f}",
                *(f"{median(runs, half, 'losses'):g}" for half in halves),
            ]
        )
    print(f"\n**{title}** (medians over the {len(common)} that all of these solve)\n")
    print(*markdown_table(heads, rows), sep="\n")
    mine = [n for n in results if n.startswith("schuss")]
    others = [n for n in results if n not in mine]
    rows = []
    for name, other in itertools.product(mine, others):
        a, b = results[name], results[other]
        both = [i for i in range(count) if a[i].is_solved and b[i].is_solved]
        ratio = math.exp(statistics.fmean(math.log(a[i].losses / b[i].losses) for i in both))
        losses, costs = ([median(runs, both, what) for runs in (a, b)] for what in ("losses", "cost"))
        pair = [f"{name} : {other}", str(len(both)), "{:g} : {:g}".format(*losses)]
        rows.append([*pair, "{:.1f} : {:.1f}".format(*costs), f"{ratio:.2f}"])
    heads = ["pair", "both solve", "losses, median", "cost, median", "ratio of losses, geometric mean"]
    if rows:
        print("", *markdown_table(heads, rows), sep="\n")


if __name__ == "__main__":
    main()
