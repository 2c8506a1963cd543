import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from schuss.lab.names import TASKS
from schuss.lab.tasks import load
from schuss.lab.tasks.convex import RIDGE
from schuss.lab.tasks.functions import Point

SPECS = [name for name in TASKS if name != "mnist"] + ["digits:model=convnet", "quadratic:kappa=10,dim=3"]


@pytest.mark.parametrize("spec", SPECS)
def test_every_task_gives_a_loss_with_gradients_and_a_metric(spec):
    task = load(spec)
    model = task.model()
    batch = next(task.stream(0))
    task.loss(model, batch).backward()
    assert any(w.grad is not None for w in model.parameters())
    with torch.no_grad():
        assert np.isfinite(float((task.metric or task.loss)(model, batch)))
    assert task.description


def test_only_the_touched_rows_of_the_sparse_task_have_gradients():
    task = load("sparse")
    model = task.model()
    batch = next(task.stream(0))
    task.loss(model, batch).backward()
    gradient = model.weight.grad.coalesce()
    assert gradient.is_sparse
    assert set(gradient.indices()[0].tolist()) <= set(batch[0].flatten().tolist())


def test_any_file_will_do_as_text(tmp_path):
    file = tmp_path / "verse.txt"
    file.write_text("Whose woods these are I think I know.\n" * 200)
    task = load("text", file)
    assert sum(len(task.rows(split)) for split in task.splits) == 200 * 38 // 64
    with pytest.raises(FileNotFoundError, match="is not a file"):
        load("text", tmp_path / "nowhere.txt")


def test_a_file_for_each_class_will_do_as_sparse(tmp_path):
    for name in ("cats", "dogs"):
        (tmp_path / f"{name}.txt").write_text(f"the {name} are running in the garden\n" * 200)
    task = load("sparse", tmp_path)
    assert "2 files" in task.description
    with pytest.raises(NotADirectoryError):
        load("sparse", tmp_path / "nowhere")


def train_arrays(task):
    rows = task.rows("train")
    return [column.numpy() for column in rows.take(rows.index)]


def test_the_optimum_of_least_squares_is_scipys():
    task = load("diabetes")
    X, y = train_arrays(task)
    found = minimize(
        lambda wb: np.mean((X @ wb[:-1] + wb[-1] - y) ** 2) / 2, np.zeros(11), method="BFGS", tol=1e-9
    )
    assert task.optimum == pytest.approx(found.fun, rel=1e-9)
    assert task.optimum <= found.fun + 1e-12


def test_the_optimum_of_the_ridged_logistic_loss_is_scipys():
    """By another method than the task's own: Newton's, with the Hessian written out."""
    task = load("breast_cancer")
    X, y = train_arrays(task)
    design = np.column_stack([X, np.ones(len(X))])
    ridge = RIDGE * np.diag([1.0] * X.shape[1] + [0.0])

    def loss(w):
        z = design @ w
        return np.mean(np.logaddexp(0, z) - y * z) + w @ ridge @ w / 2

    def slope(w):
        return design.T @ (1 / (1 + np.exp(-design @ w)) - y) / len(y) + ridge @ w

    def curvature(w):
        p = 1 / (1 + np.exp(-design @ w))
        return (design.T * (p * (1 - p))) @ design / len(y) + ridge

    found = minimize(
        loss, np.zeros(design.shape[1]), jac=slope, hess=curvature, method="trust-exact", tol=1e-10
    )
    assert task.optimum == pytest.approx(found.fun, rel=1e-9)


def test_the_quadratic_has_the_condition_number_asked_for():
    task = load("quadratic:kappa=50,dim=7")
    H = torch.autograd.functional.hessian(
        lambda w: task.loss(Wrapped(w), None), torch.zeros(7, dtype=torch.float64)
    )
    eigenvalues = torch.linalg.eigvalsh(H)
    assert (eigenvalues[-1] / eigenvalues[0]).item() == pytest.approx(50)
    assert eigenvalues[-1].item() == pytest.approx(1)


class Wrapped:
    def __init__(self, w):
        self.w = w


@pytest.mark.parametrize(
    ("spec", "minimum"), [("rosenbrock", (1.0, 1.0)), ("saddle", (0.0, 1.0)), ("saddle", (0.0, -1.0))]
)
def test_functions_are_at_their_floor_at_their_minimum_and_flat_there(spec, minimum):
    task = load(spec)
    model = Point(torch.tensor(minimum, dtype=torch.float64))
    loss = task.loss(model, None)
    loss.backward()
    assert loss.item() == pytest.approx(task.optimum, abs=1e-15)
    assert model.w.grad.abs().max().item() == 0
    assert task.metric(model, None) == -16


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("quadratic:kappa=0.5", "kappa=0.5 is not a finite number of at least 1"),
        ("quadratic:dim=0", "dim=0 is not an integer ≥ 1"),
        ("quadratic:kappa=x", "task='quadratic:kappa=x' is not understood: kappa='x'. kappa is a number"),
        ("quadratic:dim=3.5", "dim='3.5'. dim is a whole number"),
        ("quadratc:dim=3", "task='quadratc' is not one of .* Did you mean quadratic"),
        ("quadratic:size=3", "After quadratic: it takes kappa=, dim="),
        ("text:width=7", "width=7 is not a positive multiple of 4"),
        ("saddle:x=1", "After saddle: it takes nothing"),
    ],
)
def test_settings_that_make_no_sense_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        load(spec)
