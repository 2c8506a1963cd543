"""Two convex problems on real data, whose lowest training loss is known to many digits.

Sources: Efron et al., "Least angle regression", 2004 (diabetes); W. Street, W. Wolberg and O. Mangasarian,
1993 (breast cancer). Both come with scikit-learn.
"""

from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor, nn

from schuss.lab.tasks.task import Task

RIDGE = 1e-2  # ½ · RIDGE · ‖w‖² keeps the logistic optimum finite: the classes can be separated

Pair = tuple[Tensor, Tensor]
Floats: TypeAlias = NDArray[np.float64]


def diabetes() -> Task:
    """Least squares on 442 patients: half the mean squared error of the standardized target."""
    from sklearn.datasets import load_diabetes

    X, y = cast("Any", load_diabetes(return_X_y=True))
    task = Task(
        name="diabetes",
        description="least squares on 442 patients and 10 measurements",
        model=partial(nn.Linear, X.shape[1], 1, dtype=torch.float64),
        loss=half_squares,
        outputs=residuals,
        train=(torch.tensor(_standard(X)), torch.tensor(_standard(y))),
        batch_size=32,
        epochs=60,
        decay=False,
    )
    return replace(task, optimum=least_squares(*_train(task)))


def breast_cancer() -> Task:
    """Logistic regression with a small ridge on 569 tumours."""
    from sklearn.datasets import load_breast_cancer

    X, y = cast("Any", load_breast_cancer(return_X_y=True))
    task = Task(
        name="breast_cancer",
        description="logistic regression with a ridge on 569 tumours and 30 measurements",
        model=partial(nn.Linear, X.shape[1], 1, dtype=torch.float64),
        loss=ridged_logistic,
        metric=right,
        metric_name="accuracy",
        best="max",
        train=(torch.tensor(_standard(X)), torch.tensor(y, dtype=torch.float64)),
        batch_size=32,
        epochs=40,
        decay=False,
    )
    return replace(task, optimum=logistic_optimum(*_train(task)))


def half_squares(model: nn.Linear, batch: Pair) -> Tensor:
    """½ mean (x·w + b − y)²."""
    X, y = batch
    return (model(X).squeeze(1) - y).square().mean() / 2


def residuals(model: nn.Linear, batch: Pair) -> Tensor:
    """(x·w + b − y)/√n, whose half sum of squares is `half_squares`."""
    X, y = batch
    return (model(X).squeeze(1) - y) / len(y) ** 0.5


def ridged_logistic(model: nn.Linear, batch: Pair) -> Tensor:
    """Mean cross-entropy in nats, plus ½ · RIDGE · ‖w‖²."""
    X, y = batch
    data = F.binary_cross_entropy_with_logits(model(X).squeeze(1), y)
    return data + RIDGE / 2 * model.weight.square().sum()


def right(model: nn.Linear, batch: Pair) -> Tensor:
    """Share of tumours on the right side."""
    X, y = batch
    return ((model(X).squeeze(1) > 0) == (y > 0.5)).double().mean()


def least_squares(X: Floats, y: Floats) -> float:
    """The lowest possible `half_squares`, by a direct solution."""
    design = np.column_stack([X, np.ones(len(X))])
    solution = np.linalg.lstsq(design, y, rcond=None)[0]
    return float(np.mean((design @ solution - y) ** 2) / 2)


def logistic_optimum(X: Floats, y: Floats) -> float:
    """The lowest possible `ridged_logistic`, by SciPy's quasi-Newton method to a gradient of 1e-10."""

    def both(wb: Floats) -> tuple[float, Floats]:
        logits = X @ wb[:-1] + wb[-1]
        slack = expit(logits) - y
        loss = np.mean(np.logaddexp(0, logits) - y * logits) + RIDGE / 2 * wb[:-1] @ wb[:-1]
        return float(loss), np.append(X.T @ slack / len(y) + RIDGE * wb[:-1], slack.mean())

    found = minimize(both, np.zeros(X.shape[1] + 1), jac=True, method="BFGS", options={"gtol": 1e-10})
    return float(found.fun)


def _standard(x: Floats) -> Floats:
    return (x - x.mean(axis=0)) / x.std(axis=0)


def _train(task: Task) -> tuple[Floats, Floats]:
    rows = task.rows("train")
    X, y = rows.take(rows.index)
    return X.numpy(), y.numpy()
