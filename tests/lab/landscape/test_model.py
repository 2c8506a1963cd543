"""The Taylor model against what is known of it, and second-order methods on a surface."""

import numpy as np
import pytest

from schuss.lab.entries import find
from schuss.lab.landscape import TaylorModel, on_surface, render_model, surface


def named(model):
    return {step.name: step for step in model.steps}


def test_on_a_quadratic_the_model_is_the_surface():
    model = TaylorModel(surface("quadratic:kappa=50"), (0.3, 0.2))
    np.testing.assert_allclose(model.modelled, model.heights, atol=1e-12)
    assert model.eigenvalues == pytest.approx((1, 50))
    newton = named(model)["Newton"]
    assert newton.end == pytest.approx((0, 0), abs=1e-14)
    assert newton.predicted == pytest.approx(newton.actual) == pytest.approx(model.value)
    assert newton.fits
    assert model.shape == "a bowl"


def test_rosenbrocks_newton_step_is_the_published_one():
    model = TaylorModel(surface("rosenbrock"))
    assert named(model)["Newton"].end == pytest.approx((-1.1752809, 1.3806742), abs=1e-7)
    assert model.gradient == pytest.approx((-215.6, -88))


def test_at_a_saddle_newton_goes_to_it_and_the_region_does_not():
    model = TaylorModel(surface("saddle"), (0.5, 0.1))
    steps = named(model)
    assert model.shape == "a saddle"
    assert "no minimum" in model.found
    assert abs(steps["Newton"].end[1]) < 0.01  # near the saddle at (0, 0)
    assert steps["trust region"].end[1] > 0.1  # down the negative curvature
    assert steps["trust region"].length == pytest.approx(model.radius)
    for step in steps.values():
        if step.fits:
            assert step.predicted <= steps["trust region"].predicted + 1e-12


def test_the_model_errs_as_the_third_power():
    ground = surface("beale")
    errors = []
    for radius in (1e-2, 5e-3):
        step = named(TaylorModel(ground, radius=radius))["trust region"]
        errors.append(abs(step.predicted - step.actual))
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.2)


def test_a_radius_too_long_is_halved_until_the_promise_is_kept():
    for point in ((-1.2, 1.0), (0.0, 0.5), (1.4, -0.4)):
        model = TaylorModel(surface("rosenbrock"), point)
        step = named(model)["trust region"]
        assert step.actual >= 0.25 * step.predicted > 0


@pytest.mark.parametrize(
    ("at", "radius", "message"),
    [((1.0, 1.0), None, "the slope of rosenbrock"), ((0.0, 0.0), -1.0, "radius=-1.0")],
)
def test_points_without_steps_are_refused(at, radius, message):
    with pytest.raises(ValueError, match=message):
        TaylorModel(surface("rosenbrock"), at, radius)


def test_the_page_has_the_steps():
    page = render_model(TaylorModel(surface("himmelblau")), "schuss landscape himmelblau --model")
    assert "The quadratic model of himmelblau" in page
    for name in ("gradient", "Newton", "trust region"):
        assert f"</span>{name}</th>" in page


def test_second_order_methods_take_their_own_step():
    scene = on_surface(surface("rosenbrock"), [find("lbfgs"), find("newton-cg")], 60)
    assert all(each.values[-1] < 1e-12 for each in scene.trajectories)
    with pytest.raises(ValueError, match="no sum of squares"):
        on_surface(surface("rosenbrock"), [find("gauss-newton")], 5)
