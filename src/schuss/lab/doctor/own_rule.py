"""What a rule of one's own is held to: all that the rules of this library are, on every path that it can take."""

from __future__ import annotations

import copy
import importlib.util
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

import schuss.numpy
import schuss.torch
from schuss.compile import cpu, eager, gpu
from schuss.compile.formula import AVERAGE, formula
from schuss.compile.grammar import check, options_of_variants
from schuss.compile.launch import Terms, numbers
from schuss.compile.matrices import slot_shape
from schuss.compile.reference import Reference
from schuss.errors import refusal
from schuss.lab.doctor import steps
from schuss.lab.doctor.finding import Finding, broken, judged
from schuss.lab.doctor.steps import SIZES, STEPS
from schuss.lab.files import load_name
from schuss.rules import TABLE, Row, Rule, row_of

Options = dict[str, Any]


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
            yield _careful(about + label, partial(examine, row, options))
    by_shape = {rule().variant_of(dimensions) for dimensions in range(5)}
    missing = [one for one in rule.variants if one not in {*options_of_variants(rule), *by_shape}]
    if missing:
        yield Finding("variants", "each can be chosen", f"{missing} not found: not checked")
    for about, examine in _OF_RULES.items():
        yield _careful(about, partial(examine, row))


def _careful(about: str, examine: Callable[[], Finding]) -> Finding:
    try:
        return replace(examine(), about=about)
    except Exception as error:
        return broken(about, error)


def _kernel(dtype: torch.dtype, row: Row, options: Options) -> Finding:
    return steps.within(steps.deviation(row, options, dtype))


def _eager(row: Row, options: Options) -> Finding:
    """Whole tensors, one operation after another: the path of devices and dtypes without a kernel."""
    rule, w = row.rule(**options), steps.leaf(row.rule, 63, torch.float64).detach()
    one, first, start = formula(rule, dimensions=w.dim()), rule.initial(), steps.wide(w)
    given = steps.gradients([w])
    shapes = {name: slot_shape(w.shape, rule.shapes.get(name)) for name in one.slots}
    slots = [w.new_full(shapes[name], first.get(name, 0.0)) for name in one.slots]
    remembered = [0.0, *(first.get(name, 0.0) for name in rule.scalars)]
    for (g,) in given:
        values, remembered = numbers(one, False, rule, remembered, Terms())
        eager.step(one, ("float64",) * (2 + len(slots)), [w, g.clone(), *slots], values, rule=rule)
    return steps.within(steps.roundings(rule, [start], ([steps.wide(g)] for (g,) in given), [steps.wide(w)]))


def _numpy(row: Row, options: Options) -> Finding:
    """The NumPy API, arrays of every size at once."""
    weights = [steps.leaf(row.rule, size, torch.float64) for size in SIZES]
    starts = [steps.wide(w) for w in weights]
    given = [[steps.wide(g) for g in step] for step in steps.gradients(weights)]
    params = {str(k): start.copy() for k, start in enumerate(starts)}
    optimizer = schuss.numpy.optimizer(row.rule)(**steps.arguments(row.rule, options))
    for step in given:
        optimizer.update(params, {str(k): g for k, g in enumerate(step)})
    return steps.within(steps.roundings(row.rule(**options), starts, given, list(params.values())))


def _strides(row: Row, options: Options) -> Finding:
    """A weight and a gradient that lie otherwise in memory."""
    straight = torch.linspace(-1, 1, 20 * 30).reshape(30, 20).clone()
    weights = [straight.requires_grad_(), straight.detach().t().contiguous().t().requires_grad_()]
    start = steps.wide(straight)
    given = [g.t().contiguous().t() if k % 2 else g for k, (g,) in enumerate(steps.gradients([straight]))]
    for w in weights:
        steps.stepped(row, options, [w], ([g] for g in given))
    rule = row.rule(**options)
    if not formula(rule, dimensions=2).by_shape:
        return steps.equal(weights[:1], weights[1:])
    # Products of matrices are taken by another path then.
    wides, eps = ([steps.wide(g)] for g in given), float(np.finfo(np.float32).eps)
    return steps.within(steps.roundings(rule, [start], wides, [steps.wide(weights[1])], eps))


def _cut(row: Row, options: Options) -> Finding:
    """One tensor, and the same numbers in several."""
    if formula(row.rule(**options)).passes:
        return Finding("", "", "parts of a tensor are other tensors: its words are of whole ones")
    whole, sizes = steps.leaf(row.rule, 1000), (1, 62, 937)
    parts = [part.clone().requires_grad_() for part in whole.detach().split(sizes)]
    steps.stepped(
        row, options, parts, ([g.clone() for g in one.split(sizes)] for (one,) in steps.gradients([whole]))
    )
    steps.stepped(row, options, [whole], steps.gradients([whole]))
    return steps.equal([whole], [torch.cat([part.detach() for part in parts])])


def _nan(row: Row, options: Options) -> Finding:
    """A NaN or an infinity in one gradient: the kernel has it where the reference has, and its neighbours go on."""
    w = steps.leaf(row.rule, 70, torch.float64)
    reference, given = Reference(row.rule(**options), steps.wide(w)), steps.gradients([w])
    given[1][0].view(-1)[[33, 50, 66]] = torch.tensor([math.nan, math.inf, -math.inf], dtype=torch.float64)
    meant = reference.run([steps.wide(g) for (g,) in given])
    steps.stepped(row, options, [w], given)
    found = steps.wide(w)
    same = np.array_equal(np.isnan(found), np.isnan(meant)) and bool(np.isnan(found.flat[33]))
    if formula(reference.rule).passes:  # of which a whole tensor has one number
        return judged("", "seen", f"{'as the reference' if same else 'NOT as the reference'}", same)
    others = bool(np.isfinite(np.delete(found, [33, 50, 66])).all())
    measured = (
        f"{'as the reference' if same else 'NOT as the reference'}, others {'go on' if others else 'SPOILED'}"
    )
    return judged("", "only there, and seen", measured, same and others)


def _continued(row: Row, options: Options) -> Finding:
    """Saved to a file, loaded, and gone on with: the same as never stopped; both APIs."""
    never, stopped = (
        [steps.leaf(row.rule, size) for size in SIZES],
        [steps.leaf(row.rule, size) for size in SIZES],
    )
    steps.stepped(row, options, never, [*steps.gradients(never), *steps.gradients(never, STEPS)])
    saved = io.BytesIO()
    torch.save(steps.stepped(row, options, stopped, steps.gradients(stopped)).state_dict(), saved)
    saved.seek(0)
    fresh = steps.stepped(row, options, stopped, [])
    fresh.load_state_dict(torch.load(saved, weights_only=True))
    steps.go_on(fresh, stopped, steps.gradients(stopped, STEPS))
    shape = steps.shape_of(row.rule, 63)
    first, second = ({"w": steps.wide(steps.gradient(63, step)).reshape(shape)} for step in (0, 1))
    ours, again = (schuss.numpy.optimizer(row.rule)(**steps.arguments(row.rule, options)) for _ in range(2))
    params = {"w": np.linspace(-1, 1, 63).reshape(shape)}
    ours.update(params, first)
    other = copy.deepcopy(params)
    again.load_state_dict(ours.state_dict())
    ours.update(params, second)
    again.update(other, second)
    if not (params["w"] == other["w"]).all():
        return judged("", "equal bits", "different in the NumPy API", False)
    return steps.equal(never, stopped)


def _recompiles(row: Row, options: Options) -> Finding:
    """Another learning rate, another shape, another layer: the kernels that there are."""
    weights = [steps.leaf(row.rule, 64)]
    optimizer = steps.stepped(row, options, weights, steps.gradients(weights))
    before = cpu.count()
    for group in optimizer.param_groups:
        if isinstance(group.get("lr"), float):
            group["lr"] *= 0.5
    more = [steps.leaf(row.rule, size) for size in (5, 77)]
    optimizer.add_param_group({"params": more})
    steps.go_on(optimizer, [*weights, *more], steps.gradients([*weights, *more]))
    made = cpu.count() - before
    return judged("", "0 new kernels", f"{made} new", made == 0)


def _low_precision(row: Row, options: Options) -> Finding:
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
        w = torch.zeros(steps.shape_of(row.rule, 8192), dtype=dtype).requires_grad_()
        steps.stepped(row, options, [w], [[torch.full_like(w, 0.5)]] * 20, **more)
        distance[name] = float(w.detach().double().mean())
    whole = distance.pop("float32")
    off = {name: abs(one - whole) / max(abs(whole), 1e-30) for name, one in distance.items()}
    worst = max(off, key=lambda name: -1.0 if math.isnan(off[name]) else off[name])
    right = all(one <= 0.2 for one in off.values())
    return judged("", "within 20 %", f"{worst}: {100 * off[worst]:.2g} % off", right)


def _options(row: Row) -> Finding:
    """Clipping, averaging and a schedule, in one step: the reference with the gradient scaled."""
    lr = {"lr": 0.1} if "lr" in schuss.torch.optimizer(row.rule).arguments() else {}
    schedule = {name: lambda n: 0.1 / (1 + n) for name in lr}
    w, g = (
        steps.leaf(row.rule, 63, torch.float64),
        steps.gradient(63, 0).reshape(steps.shape_of(row.rule, 63)),
    )
    start, scaled = steps.wide(w), steps.wide(g / (torch.linalg.vector_norm(g) + 1e-6))
    optimizer = schuss.torch.optimizer(row.rule)([w], max_norm=1.0, ema_decay=0.5, **schedule)
    steps.go_on(optimizer, [w], [[g]])
    average = steps.wide(optimizer.state[w][AVERAGE])
    rule = row.rule(**lr)
    return steps.within(
        max(steps.roundings(rule, [start], [[scaled]], [found]) for found in (steps.wide(w), average))
    )


def _held_back(row: Row) -> Finding:
    """The options of the change, where they have a meaning."""
    options: Options = {"cautious": True} | ({"max_update": 0.1} if hasattr(row.rule(), "lr") else {})
    w, rule = steps.leaf(row.rule, 63, torch.float64), row.rule()
    start, given = steps.wide(w), steps.gradients([w])
    try:
        steps.stepped(row, {}, [w], given, **options)
    except ValueError as error:
        return Finding("", "refused or as written down", f"refused: {error}")
    return steps.within(
        steps.roundings(rule, [start], ([steps.wide(g)] for (g,) in given), [steps.wide(w)], **options)
    )


def _sparse(row: Row) -> Finding:
    try:
        return steps.sparse(row)
    except RuntimeError as error:
        return Finding("", "touched rows move", f"refused: {error}")


def _gpu(row: Row) -> Finding:
    """Machine code for an NVIDIA GPU, from the same text; no GPU is needed for it."""
    if formula(row.rule).of_rows:
        return Finding("", "", "none: means over rows and columns take the eager path there")
    if formula(row.rule).of_matrices:
        return Finding("", "", "none: products of matrices take the eager path there")
    if importlib.util.find_spec("triton") is None:
        return Finding("", "PTX compiles", "Triton is not installed")
    lines = 0
    for options in options_of_variants(row.rule).values():
        one = formula(row.rule(**options))
        for dtype in ("float32", "bfloat16"):
            storage = (dtype, dtype, *["float32"] * len(one.slots))
            lines += len(gpu.machine_code(one, storage).asm["ptx"].splitlines())
    return judged("", "PTX compiles", f"{lines} lines for sm_90", lines > 0)


_OF_VARIANTS: dict[str, Callable[[Row, Options], Finding]] = {
    **{
        f"CPU kernel, {name}": partial(_kernel, getattr(torch, name))
        for name in ("float64", "float32", "bfloat16", "float16")
    },
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
    "cautious, max_update": _held_back,
    "sparse gradients": _sparse,
    "GPU kernel": _gpu,
}
