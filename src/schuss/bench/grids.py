"""A report as tables of text, for a terminal and for a README alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from schuss.bench import arrays, contenders, first_step, gpu, sparse
from schuss.bench.report import Report, Timing
from schuss.units import in_unit


@dataclass(frozen=True)
class Grid:
    """A table: a title, the columns' heads, rows of cells, and a line below."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    below: str = ""


def duration(seconds: float) -> str:
    """A time with three digits and its unit.

    >>> duration(1.3872e-5), duration(0.0578), duration(0.95)
    ('13.9 µs', '57.8 ms', '950 ms')
    """
    count, unit = in_unit(seconds, longest=1)
    return f"{_digits(count)} {unit}"


def _digits(number: float) -> str:
    """Three digits that count, without an exponent."""
    if number >= 100:
        return f"{number:.0f}"
    return f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def _size(amount: float) -> str:
    return f"{_digits(amount / 1e9)} GB" if amount >= 1e9 else f"{_digits(amount / 1e6)} MB"


def headline(report: Report) -> str:
    """The machine in one line: no number means anything without it."""
    here = report.machine
    versions = ", ".join(f"{package} {version}" for package, version in here["packages"].items())
    add = next(
        (f" torch.add moves {_speed(t)} GB/s." for t in report.timings if t.section == "bandwidth"), ""
    )
    return (
        f"{here['processor']} ({here['instructions']}), {here['cores']} cores, {here['threads']} threads; "
        + (f"{here['gpu']}; " if "gpu" in here else "")
        + f"{here['system']}; Python {here['python']}, {versions}.{add}"
    )


def _speed(timing: Timing) -> str:
    return _digits(timing.moved / timing.seconds / 1e9)


def _cell(timing: Timing | None, base: Timing | None) -> str:
    """A contender's time, and how often the base's it is."""
    if timing is None:
        return ""
    if timing.problem:
        return "wrong"
    if base is None or base is timing or not base.rounds:
        return duration(timing.seconds)
    return f"{duration(timing.seconds)} ({_digits(timing.times(base))}×)"


def _problems(timings: Iterable[Timing]) -> str:
    wrong = dict.fromkeys(f"{t.contender}, {t.page}: {t.problem}" for t in timings if t.problem)
    return "Wrong, so not timed: " + "; ".join(wrong) + "." if wrong else ""


def _race(
    title: str,
    timings: Sequence[Timing],
    base: str,
    order: Sequence[str],
    machine: str = "of torch.add's",
) -> Grid:
    """Contenders side by side, one row per optimizer, each with its ratio to the base in the same rounds."""
    present = [name for name in order if any(t.contender == name for t in timings)]
    memory = any(t.machine for t in timings)
    rows: list[tuple[str, ...]] = []
    for page in dict.fromkeys(t.page for t in timings):
        by = {t.contender: t for t in timings if t.page == page}
        mine = by.get(base)
        bandwidth: tuple[str, ...] = ()
        if memory:
            known = mine is not None and mine.machine
            bandwidth = (
                (_speed(mine), f"{100 * mine.share:.0f} %") if mine is not None and known else ("", "")
            )
        cells = {name: _cell(by.get(name), mine) for name in present}
        rows.append((page, *(cells.pop(name) for name in present[:1]), *bandwidth, *cells.values()))
    heads = ("optimizer", *present[:1], *(("GB/s", machine) if memory else ()), *present[1:])
    return Grid(title, heads, tuple(rows), _problems(timings))


def _bars(title: str, timings: Sequence[Timing], base: str) -> Grid:
    """Contenders below each other, each with its ratio to the base."""
    mine = next((t for t in timings if t.contender == base and t.rounds), None)
    rows = tuple(
        (
            t.contender,
            "wrong" if t.problem else duration(t.seconds),
            f"{100 * t.times(mine):.3g} %" if mine is not None and t.rounds else "",
        )
        for t in timings
    )
    return Grid(title, (timings[0].page, "per step", f"of {base}"), rows, _problems(timings))


def _one_step(timings: Sequence[Timing]) -> Grid:
    order = (contenders.OURS, *contenders.IMPLEMENTATIONS, "optimi", "pytorch_optimizer")
    return _race(f"One step, float32: {timings[0].workload}", timings, contenders.OURS, order)


def _first_step(timings: Sequence[Timing]) -> Grid:
    names = (first_step.COLD, first_step.WARM, first_step.THEIRS, first_step.IMPORT)
    by = {(t.workload, t.contender): t for t in timings}
    rows = tuple(
        (workload, *(_cell(by.get((workload, name)), None) for name in names))
        for workload in dict.fromkeys(t.workload for t in timings)
    )
    return Grid("First step of AdamW in a new process", ("weights", *names), rows)


def _sparse(timings: Sequence[Timing]) -> Grid:
    return _bars(f"Sparse gradients: {timings[0].workload}", timings, sparse.DENSE)


def _precision(timings: Sequence[Timing]) -> Grid:
    return _bars(f"One step: {timings[0].workload}", timings, timings[0].contender)


def _numpy(timings: Sequence[Timing]) -> Grid:
    title = f"One step, float64: {timings[0].workload}"
    return _race(title, timings, arrays.OURS, (arrays.OURS, arrays.THEIRS))


def _gpu(timings: Sequence[Timing]) -> Grid:
    title = f"One step on the GPU: {timings[0].workload}"
    order = (contenders.OURS, gpu.FUSED, gpu.CLIPPED, gpu.TORCH_CLIPPED)
    return _race(title, timings, contenders.OURS, order, machine=f"of {gpu.COPY}'s")


def _drivers(report: Report) -> Grid:
    rows = tuple(
        (d.contender, f"{d.kernels:g}", f"{d.copies:g}", f"{d.waits:g}", duration(d.host))
        for d in report.drivers
    )
    title = f"What a step of {report.drivers[0].page} asks of the GPU's driver, at GPT-2 shapes"
    return Grid(title, ("", "kernels", "copies", "waits", "host busy"), rows)


_SHOWN: dict[str, Callable[[Sequence[Timing]], Grid]] = {
    "gpt2": _one_step,
    "small": _one_step,
    "mlp": _one_step,
    "first-step": _first_step,
    "sparse": _sparse,
    "precision": _precision,
    "numpy": _numpy,
    "gpu": _gpu,
}


def grids(report: Report) -> list[Grid]:
    """All tables of a report, in the order in which they were measured."""
    found: list[Grid] = []
    for section, show in _SHOWN.items():
        mine = [t for t in report.timings if t.section == section]
        # A first step is one table of all workloads; the others have a table each.
        workloads = [mine] if section == "first-step" and mine else []
        if section != "first-step":
            names = dict.fromkeys(t.workload for t in mine)
            workloads = [[t for t in mine if t.workload == name] for name in names]
        found += map(show, workloads)
    if report.drivers:
        found.append(_drivers(report))
    if report.peaks:
        rows = tuple((p.contender, _size(p.bytes), f"{100 * p.bytes / p.needed:.0f} %") for p in report.peaks)
        needed = _size(report.peaks[0].needed)
        title = f"Peak memory of a step of {report.peaks[0].page}; weights, gradients and state are {needed}"
        found.append(Grid(title, ("", "peak", "of these"), rows))
    return found


def remarks(report: Report) -> list[str]:
    """What a reader must know beside the tables."""
    said = [f"{s.section}: skipped, {s.reason}." for s in report.skipped]
    if report.interrupted:
        said.append("Interrupted: only what was measured until then is shown.")
    return said


READING = (
    "Medians of rounds in which the contenders take turns; (n×) is the median over rounds of a contender's time over "
    "ours. GB/s counts the bytes that a step must move; torch.add ran in the same rounds. "
    "Each contender agreed with the float64 reference first."
)


def markdown(report: Report) -> str:
    """The report as Markdown, for a README."""
    parts = [headline(report)]
    for grid in grids(report):
        lines = [
            f"**{grid.title}**",
            "",
            _line(grid.heads),
            _line(["---", *["---:"] * (len(grid.heads) - 1)]),
        ]
        lines += [_line(row) for row in grid.rows]
        parts.append("\n".join(lines))
        parts += [grid.below] if grid.below else []
    return "\n\n".join([*parts, READING, *remarks(report)]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
