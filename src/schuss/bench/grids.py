"""A report as tables of text, for a terminal and for a README alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from schuss.bench.report import Report, Timing
from schuss.units import in_unit

READING = (
    "Medians of rounds in which the contenders take turns; (n×) is the median over rounds of a contender's time over "
    "ours. GB/s counts the bytes that a step must move; torch.add ran in the same rounds. "
    "Each contender agreed with the float64 reference first."
)
_TITLES = {
    **dict.fromkeys(("gpt2", "small", "mlp"), "One step, float32"),
    "first-step": "First step of AdamW in a new process",
    "sparse": "Sparse gradients",
    "precision": "One step",
    "numpy": "One step, float64",
    **dict.fromkeys(("gpu", "gpu-precision"), "One step on the GPU"),
}


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
    return f"{number:.{0 if number >= 100 else 1 if number >= 10 else 2}f}"


def _size(amount: float) -> str:
    return f"{_digits(amount / 1e9)} GB" if amount >= 1e9 else f"{_digits(amount / 1e6)} MB"


def _speed(timing: Timing) -> str:
    return _digits(timing.moved / timing.seconds / 1e9)


def headline(report: Report) -> str:
    """The machine in one line: no number means anything without it."""
    here = report.machine
    versions = ", ".join(f"{package} {version}" for package, version in here["packages"].items())
    add = [f" torch.add moves {_speed(t)} GB/s." for t in report.timings if t.section == "bandwidth"]
    return (
        f"{here['processor']} ({here['instructions']}), {here['cores']} cores, {here['threads']} threads; "
        + (f"{here['gpu']}; " if "gpu" in here else "")
        + f"{here['system']}; Python {here['python']}, {versions}.{''.join(add[:1])}"
    )


def _cell(timing: Timing | None, base: Timing | None) -> str:
    """A contender's time, and how often the base's it is."""
    if timing is None:
        return ""
    if timing.problem:
        return "wrong"
    if base is None or base is timing or not base.rounds:
        return duration(timing.seconds)
    return f"{duration(timing.seconds)} ({_digits(timing.times(base))}×)"


def _problems(timings: Sequence[Timing]) -> str:
    wrong = dict.fromkeys(f"{t.contender}, {t.optimizer}: {t.problem}" for t in timings if t.problem)
    return "Wrong, so not timed: " + "; ".join(wrong) + "." if wrong else ""


def _race(title: str, timings: Sequence[Timing], row: str = "optimizer") -> Grid:
    """Contenders side by side: a row per optimizer, with ratios to the first in the same rounds, or per workload."""
    first, *others = dict.fromkeys(t.contender for t in timings)
    memory = any(t.machine for t in timings)
    rows: list[tuple[str, ...]] = []
    for about in dict.fromkeys(getattr(t, row) for t in timings):
        by = {t.contender: t for t in timings if getattr(t, row) == about}
        base = by.get(first)
        bandwidth = ("", "") if memory else ()
        if base is not None and base.machine:
            bandwidth = (_speed(base), f"{100 * base.fraction:.0f} %")
        cells = (_cell(by.get(name), base if row == "optimizer" else None) for name in others)
        rows.append((about, _cell(base, None), *bandwidth, *cells))
    machine = "copy" if timings[0].section == "gpu" else "torch.add"
    head = "optimizer" if row == "optimizer" else "weights"
    heads = (head, first, *(("GB/s", f"of {machine}'s") if memory else ()), *others)
    return Grid(title, heads, tuple(rows), _problems(timings))


def _bars(title: str, timings: Sequence[Timing]) -> Grid:
    """Contenders below each other, each with its ratio to the first."""
    base = timings[0]
    rows = tuple(
        (t.contender, _cell(t, None), f"{100 * t.times(base):.3g} %" if base.rounds and t.rounds else "")
        for t in timings
    )
    return Grid(title, (base.optimizer, "per step", f"of {base.contender}"), rows, _problems(timings))


def grids(report: Report) -> list[Grid]:
    """All tables of a report: one for each workload of a section."""
    found: list[Grid] = []
    for section in _TITLES:
        timings = [t for t in report.timings if t.section == section]
        if section == "first-step" and timings:
            found.append(_race(_TITLES[section], timings, "workload"))
            continue
        show = _bars if section in ("sparse", "precision", "gpu-precision") else _race
        for workload in dict.fromkeys(t.workload for t in timings):
            title = f"{_TITLES[section]}: {workload}"
            found.append(show(title, [t for t in timings if t.workload == workload]))
    if report.drivers:
        rows = tuple(
            (d.contender, f"{d.kernels:g}", f"{d.copies:g}", f"{d.waits:g}", duration(d.host))
            for d in report.drivers
        )
        title = f"What a step of {report.drivers[0].optimizer} asks of the GPU's driver, at GPT-2 shapes"
        found.append(Grid(title, ("", "kernels", "copies", "waits", "host busy"), rows))
    if report.peaks:
        rows = tuple((p.contender, _size(p.bytes), f"{100 * p.bytes / p.needed:.0f} %") for p in report.peaks)
        needed, optimizer = _size(report.peaks[0].needed), report.peaks[0].optimizer
        title = f"Peak memory of a step of {optimizer}; weights, gradients and state are {needed}"
        found.append(Grid(title, ("", "peak", "of these"), rows))
    return found


def remarks(report: Report) -> list[str]:
    """What a reader must know besides the tables."""
    said = [f"{s.section}: skipped, {s.reason}." for s in report.skipped]
    if report.interrupted:
        said.append("Interrupted: only what was measured until then is shown.")
    return said


def markdown(report: Report) -> str:
    """The report as Markdown, for a README."""
    parts = [headline(report)]
    for grid in grids(report):
        parts.append("\n".join([f"**{grid.title}**", "", *markdown_table(grid.heads, grid.rows)]))
        parts += [grid.below] if grid.below else []
    return "\n\n".join([*parts, READING, *remarks(report)]) + "\n"


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]] = ()) -> list[str]:
    """The lines of a table whose first column is words and whose others are numbers.

    >>> print(*markdown_table(["n", "n²"], [["two", "4"]]), sep="\\n")
    | n | n² |
    | --- | ---: |
    | two | 4 |
    """
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in lines]
