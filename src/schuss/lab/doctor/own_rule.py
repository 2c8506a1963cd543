"""What a rule of one's own is held to: all that the rules of this library are, on every path that it can take."""

from __future__ import annotations

import copy
import importlib.util
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import schuss.numpy as arrays
import schuss.torch as front
from schuss.compile import cpu, eager, gpu
from schuss.compile.formula import formula
from schuss.compile.grammar import check, options_of_variants
from schuss.compile.launch import Terms, numbers
from schuss.compile.reference import Reference
from schuss.errors import refusal
from schuss.lab.doctor.finding import Finding, judged
from schuss.lab.doctor.steps import ALLOWED, SIZES, STEPS, deviation, gradient, sparse, wide
from schuss.lab.files import load_name
from schuss.rules import TABLE, Row, Rule, row_of

HELD_TO = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def find_rule(name: str) -> type[Rule]:
    """The rule of `file.py:Name`, or a built-in one by its name; capitals do not matter there."""
    if ".py:" not in name:
        built_in = {known.lower(): row.rule for known, row in TABLE.items()}
        if name.lower() not in built_in:
            raise refusal("rule", name, "file.py:Name or a built-in rule", f"Built in: {', '.join(TABLE)}.")
        return built_in[name.lower()]
    found, _ = load_name(*name.rsplit(":", 1))
    check(found)
    return found


def examine_rule(rule: type[Rule]) -> Iterator[Finding]:
    """Each thing that a rule is held to with what was found; `RuleError` if it cannot be compiled as it is written.

    A check that breaks is a finding that fails.

    >>> from schuss.rules import Lion
    >>> {finding.verdict for finding in examine_rule(Lion)} <= {"holds", "note"}
    True
    """
    check(rule)
    row = row_of(rule)
    yield judged("grammar", "compiles as written", "compiles", True)
    for variant, options in options_of_variants(rule).items():
        label = f" ({variant})" if variant else ""
        for about, examine in _OF_VARIANTS.items():
            yield from _careful(about + label, lambda one=examine, chosen=options: one(row, chosen))
    missing = [one for one in rule.variants if one not in options_of_variants(rule)]
    if missing:
        yield Finding("variants", "each can be chosen", f"{missing} not found: not checked", "note")
    for about, examine in _OF_RULES.items():
        yield from _careful(about, lambda one=examine: one(row))


def _careful(about: str, examine: Callable[[], Finding]) -> Iterator[Finding]:
    try:
        found = examine()
    except Exception as error:
        found = judged(about, "runs", f"{type(error).__name__}: {error}", False)
    yield replace(found, about=about)


def _off(dtype: str) -> Callable[[Row, dict[str, Any]], Finding]:
    def kernel(row: Row, options: dict[str, Any]) -> Finding:
        found = deviation(row, options, HELD_TO[dtype])
        return judged("", f"≤ {ALLOWED} roundings", f"{found:.3g} off", found <= ALLOWED)

    return kernel


def _judged_off(off: float) -> Finding:
    return judged("", f"≤ {ALLOWED} roundings", f"{off:.3g} off", off <= ALLOWED)


def _error(found: Any, expected: Any, scale: float, eps: float) -> float:
    error = np.abs(found - expected).max(initial=0.0) / (eps * scale)
    return math.inf if np.isnan(error) else float(error)


def _eager(row: Row, options: dict[str, Any]) -> Finding:
    """Whole tensors, one operation after another: the path of devices and dtypes without a kernel."""
    rule, size = row.rule(**options), 63
    one, w = formula(rule), torch.linspace(-1, 1, size, dtype=torch.float64)
    first, reference, scale = rule.initial(), Reference(rule, wide(w)), 1.0
    slots = [torch.full_like(w, first.get(name, 0.0)) for name in rule.slots]
    remembered = [0.0, *(first.get(name, 0.0) for name in rule.scalars)]
    for step in range(STEPS):
        g = gradient(size, step)
        values, remembered = numbers(one, False, rule, remembered, Terms())
        eager.step(one, ("float64",) * (2 + len(slots)), [w, g, *slots], values)
        scale = max(scale, float(np.abs(reference.step(wide(g))).max()))
    return _judged_off(_error(wide(w), reference.w, scale, np.finfo(np.float64).eps))


def _numpy(row: Row, options: dict[str, Any]) -> Finding:
    """The NumPy API, arrays of every size at once."""
    params = {str(size): np.linspace(-1, 1, size) for size in SIZES}
    references = {key: Reference(row.rule(**options), w) for key, w in params.items()}
    optimizer, scale = arrays.optimizer(row.rule)(**_together(row, options)), 1.0
    for step in range(STEPS):
        grads = {key: wide(gradient(int(key), step)) for key in params}
        optimizer.update(params, grads)
        scale = max(scale, *(np.abs(references[k].step(g)).max(initial=0.0) for k, g in grads.items()))
    eps = np.finfo(np.float64).eps
    return _judged_off(max(_error(w, references[key].w, scale, eps) for key, w in params.items()))


def _together(row: Row, options: dict[str, Any]) -> dict[str, Any]:
    """A rule's own hyperparameters as a constructor takes them."""
    rule = row.rule(**options)
    tuples = {
        name: tuple(getattr(rule, part) for part in parts)
        for name, parts in row.rule.tuples.items()
        if not options.keys().isdisjoint(parts)
    }
    inside = {part for parts in row.rule.tuples.values() for part in parts}
    return tuples | {name: value for name, value in options.items() if name not in inside}


def _steps(row: Row, options: dict[str, Any], weights: list[Tensor], at: int = 0, **more: Any) -> Any:
    """An optimizer that has taken its steps over these weights."""
    optimizer = front.optimizer(row.rule)(weights, **_together(row, options), **more)
    _go_on(optimizer, weights, at)
    return optimizer


def _go_on(optimizer: Any, weights: list[Tensor], at: int) -> None:
    for step in range(at, at + STEPS):
        for w in weights:
            w.grad = gradient(w.numel(), step).to(w.dtype).reshape(w.shape)
        optimizer.step()


def _equal(one: list[Tensor], other: list[Tensor]) -> Finding:
    same = all(torch.equal(a.detach(), b.detach()) for a, b in zip(one, other, strict=True))
    return judged("", "equal bits", "equal" if same else "different", same)


def _leaf(size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.linspace(-1, 1, size, dtype=dtype).requires_grad_()


def _strides(row: Row, options: dict[str, Any]) -> Finding:
    """A weight and a gradient that lie otherwise in memory."""
    straight = torch.linspace(-1, 1, 20 * 30).reshape(30, 20).clone().requires_grad_()
    crossed = straight.detach().t().contiguous().t().requires_grad_()
    for weights in ([straight], [crossed]):
        optimizer = front.optimizer(row.rule)(weights, **_together(row, options))
        for step in range(STEPS):
            g = gradient(600, step).float().reshape(30, 20)
            weights[0].grad = g.t().contiguous().t() if step % 2 else g
            optimizer.step()
    return _equal([straight], [crossed])


def _cut(row: Row, options: dict[str, Any]) -> Finding:
    """One tensor, and the same numbers in several."""
    cuts, results = (1, 62, 937), list[Tensor]()
    for sizes in ((1000,), cuts):
        parts = [one.clone().requires_grad_() for one in torch.linspace(-1, 1, 1000).split(sizes)]
        optimizer = front.optimizer(row.rule)(parts, **_together(row, options))
        for step in range(STEPS):
            for part, g in zip(parts, gradient(1000, step).float().split(sizes), strict=True):
                part.grad = g.clone()
            optimizer.step()
        results.append(torch.cat([part.detach() for part in parts]))
    return _equal(results[:1], results[1:])


def _nan(row: Row, options: dict[str, Any]) -> Finding:
    """A NaN or an infinity in one gradient: the kernel has it where the reference has, and its neighbours go on."""
    rule = row.rule(**options)
    w = _leaf(70, torch.float64)
    optimizer = front.optimizer(row.rule)([w], **_together(row, options))
    reference = Reference(rule, wide(w))
    for step in range(STEPS):
        g = gradient(70, step)
        if step == 1:
            g[33], g[50], g[66] = math.nan, math.inf, -math.inf
        w.grad = g
        optimizer.step()
        reference.step(wide(g))
    found = wide(w)
    same = bool((np.isnan(found) == np.isnan(reference.w)).all()) and bool(np.isnan(found[33]))
    others = bool(np.isfinite(np.delete(found, [33, 50, 66])).all())
    measured = (
        f"{'as the reference' if same else 'NOT as the reference'}, others {'go on' if others else 'SPOILED'}"
    )
    return judged("", "only there, and seen", measured, same and others)


def _continued(row: Row, options: dict[str, Any]) -> Finding:
    """Saved to a file, loaded, and gone on with: the same as never stopped; both APIs."""
    never, stopped = [_leaf(size) for size in SIZES], [_leaf(size) for size in SIZES]
    _go_on(_steps(row, options, never), never, STEPS)
    saved = io.BytesIO()
    torch.save(_steps(row, options, stopped).state_dict(), saved)
    saved.seek(0)
    fresh = front.optimizer(row.rule)(stopped, **_together(row, options))
    fresh.load_state_dict(torch.load(saved, weights_only=True))
    _go_on(fresh, stopped, STEPS)
    params = {"w": np.linspace(-1, 1, 63)}
    ours = arrays.optimizer(row.rule)(**_together(row, options))
    ours.update(params, {"w": wide(gradient(63, 0))})
    other, again = copy.deepcopy(params), arrays.optimizer(row.rule)(**_together(row, options))
    again.load_state_dict(ours.state_dict())
    for optimizer, where in ((ours, params), (again, other)):
        optimizer.update(where, {"w": wide(gradient(63, 1))})
    same = bool((params["w"] == other["w"]).all())
    torch_same = _equal(never, stopped)
    return torch_same if same else judged("", "equal bits", "different in the NumPy API", False)


def _recompiles(row: Row, options: dict[str, Any]) -> Finding:
    """Another learning rate, another shape, another layer: the kernels that there are."""
    weights = [_leaf(64)]
    optimizer = _steps(row, options, weights)
    before = cpu.count()
    for group in optimizer.param_groups:
        if isinstance(group.get("lr"), float):
            group["lr"] *= 0.5
    more = [_leaf(size) for size in (5, 77)]
    optimizer.add_param_group({"params": more})
    _go_on(optimizer, [*weights, *more], STEPS)
    made = cpu.count() - before
    return judged("", "0 new kernels", f"{made} new", made == 0)


def _low_precision(row: Row, options: dict[str, Any]) -> Finding:
    """State in int8 and bfloat16, 16-bit weights rounded stochastically or compensated: near the float32 path."""
    # A gradient of constant sign, so that how far a weight goes says how right its state is.
    distance: dict[str, float] = {}
    for name, dtype, more in (
        ("float32", torch.float32, {}),
        ("int8 state", torch.float32, {"state_dtype": "int8"}),
        ("bfloat16 state", torch.float32, {"state_dtype": "bfloat16"}),
        ("stochastic", torch.bfloat16, {"rounding": "stochastic"}),
        ("compensated", torch.bfloat16, {"compensated": True}),
    ):
        w = torch.zeros(8192, dtype=dtype).requires_grad_()
        optimizer = front.optimizer(row.rule)([w], **_together(row, options), **more)
        for _ in range(20):
            w.grad = torch.full_like(w, 0.5)
            optimizer.step()
        distance[name] = float(w.detach().double().mean())
    whole = distance.pop("float32")
    off = {name: abs(one - whole) / max(abs(whole), 1e-30) for name, one in distance.items()}
    worst = max(off, key=lambda name: -1.0 if math.isnan(off[name]) else off[name])
    right = all(one <= 0.2 for one in off.values())
    return judged("", "within 20 %", f"{worst}: {100 * off[worst]:.2g} % off", right)


def _options(row: Row) -> Finding:
    """Clipping, averaging and a schedule, in one step: the reference with the gradient scaled."""
    rate = {"lr": lambda n: 0.1 / (1 + n)} if "lr" in front.optimizer(row.rule).arguments() else {}
    w = _leaf(63, torch.float64)
    optimizer = front.optimizer(row.rule)([w], max_norm=1.0, ema_decay=0.5, **rate)
    rule = row.rule(**{"lr": 0.1} if rate else {})
    reference, g = Reference(rule, wide(w)), gradient(63, 0)
    expected = reference.step(wide(g / (torch.linalg.vector_norm(g) + 1e-6)))
    w.grad = g
    optimizer.step()
    with optimizer.averaged():
        average = wide(w).copy()
    off = max(_error(one, expected, 1.0, np.finfo(np.float64).eps) for one in (wide(w), average))
    return _judged_off(off)


def _sparse(row: Row) -> Finding:
    try:
        return sparse(row)
    except RuntimeError as error:
        return Finding("", "touched rows move", f"refused: {error}", "note")


def _gpu(row: Row) -> Finding:
    """Machine code for an NVIDIA GPU, from the same text; no GPU is needed for it."""
    if importlib.util.find_spec("triton") is None:
        return Finding("", "PTX compiles", "Triton is not installed", "note")
    lines = 0
    for options in options_of_variants(row.rule).values():
        one = formula(row.rule(**options))
        for dtype in ("float32", "bfloat16"):
            kept = (dtype, dtype, *["float32"] * len(one.slots))
            lines += len(gpu.machine_code(one, kept).asm["ptx"].splitlines())
    return judged("", "PTX compiles", f"{lines} lines for sm_90", lines > 0)


_OF_VARIANTS: dict[str, Callable[[Row, dict[str, Any]], Finding]] = {
    **{f"CPU kernel, {dtype}": _off(dtype) for dtype in HELD_TO},
    "eager path, float64": _eager,
    "NumPy API, float64": _numpy,
    "strides": _strides,
    "splitting tensors": _cut,
    "NaN and infinity": _nan,
    "save, load, continue": _continued,
    "compiles once": _recompiles,
    "low precision": _low_precision,
}
_OF_RULES: dict[str, Callable[[Row], Finding]] = {
    "clipping, average, schedule": _options,
    "sparse gradients": _sparse,
    "GPU kernel": _gpu,
}
