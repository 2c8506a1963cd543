"""`schuss race`: race optimizers on a task, and go on where an earlier race stopped."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from schuss.cli.names import check_names
from schuss.lab.names import separate

EXAMPLES = """
\b
Examples:
  schuss race digits                            scikit-learn's digits, every usual entry
  schuss race digits --preset quick             the same, in about a minute
  schuss race mnist --data ~/mnist              MNIST, from its own IDX files
  schuss race my_task.py                        your own model: a file with a schuss.lab.Task
  schuss race my_package.tasks:task             the same in a package
  schuss race digits --entries adam,opt.py:Mine your own optimizer against Adam
  schuss race digits --schedules constant,cosine,warmup+cosine
  schuss race digits --entries sgd --batch-sizes 1,32,256,full
  schuss race digits,text,sparse                several tasks, with performance profiles
  schuss race digits --diagnose                 and the curvature along the winner's run
  schuss race digits --export runs.csv          every run as a table

You may interrupt a race at any time: the same command resumes it. `schuss list` shows tasks, entries and schedules.
"""


@click.command(epilog=EXAMPLES)
@click.argument("tasks", metavar="TASK[,TASK...]")
@click.option(
    "--entries",
    help="Entries, separated by commas: names, file.py:name or package.module:name.  [default: those that "
    "`schuss list` marks with *]",
)
@click.option(
    "--entry",
    "more",
    multiple=True,
    help="One more entry, as file.py:name or package.module:name. May be repeated.  [default: none]",
)
@click.option(
    "--preset",
    type=click.Choice(["quick", "default", "careful"]),
    help="Trials per entry: 5 (quick), 20 (default) or 50 (careful).  [default: default]",
)
@click.option(
    "--trials", type=click.IntRange(1), help="Trials per entry, instead of a preset.  [default: as --preset]"
)
@click.option(
    "--schedules",
    default="constant",
    show_default=True,
    help="Learning-rate schedules, separated by commas. Every entry is raced with each of them.",
)
@click.option(
    "--batch-sizes",
    help="Batch sizes, separated by commas; `full` is the whole training split. Every entry is raced at each of "
    "them.  [default: the task's]",
)
@click.option(
    "--rank-by",
    type=click.Choice(["metric", "steps", "examples", "gradients", "seconds"]),
    default="metric",
    show_default=True,
    help="Rank by the metric at the end, or by the cost of reaching the target.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the race.  [default: runs/TASK]")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="File or folder with the task's data (MNIST: the folder of its IDX files).  [default: none]",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Seed from which all randomness of the race follows.",
)
@click.option(
    "--workers", type=click.IntRange(1), help="Runs at the same time.  [default: one per core, or per GPU]"
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Device to train on; with cuda there is one worker per GPU.",
)
@click.option(
    "--scheduler",
    help="Address of a running Dask cluster, as tcp://host:8786.  [default: processes on this machine]",
)
@click.option(
    "--export",
    "table",
    type=click.Path(path_type=Path),
    help="Write all runs to a .csv, .json or .parquet file.  [default: none]",
)
@click.option(
    "--diagnose",
    is_flag=True,
    help="Measure the curvature along the winner's run, to help explain the verdict.  [default: off]",
)
@click.option(
    "--retry-crashed",
    is_flag=True,
    help="Run again the runs that crashed earlier in the same folder.  [default: off]",
)
@click.option(
    "--run-minutes",
    type=click.FloatRange(0, min_open=True),
    help="Stop a run that takes more minutes than this.  [default: 30 times the expected time, at least 10]",
)
@click.option(
    "--run-memory",
    type=click.FloatRange(0, min_open=True),
    help="Stop a run that uses more GiB of memory than this (Linux).  [default: 0.8 of the machine's memory divided "
    "by the workers, at least 2]",
)
@click.option(
    "--run", "again", help="Repeat a single run: give the text after --run in the report.  [default: race]"
)
def command(
    tasks: str,
    entries: str | None,
    more: tuple[str, ...],
    preset: str | None,
    trials: int | None,
    schedules: str,
    batch_sizes: str | None,
    workers: int | None,
    scheduler: str | None,
    table: Path | None,
    again: str | None,
    **options: Any,
) -> None:
    """Race optimizers on a task, and print which is best, by how much, and how sure that is.

    Every entry is tuned with the same number of trials. Its best settings are confirmed on fresh seeds, and the best
    of those is reported on fresh seeds again. TASK is a built-in task or a file of your own.
    """
    console = Console(markup=False, highlight=False, emoji=False)
    if preset and trials:
        raise click.UsageError("Give --preset or --trials, not both.")
    named = separate(entries) if entries else None
    given, scheduled = separate(tasks), schedules.split(",")
    check_names(tasks=given, entries=[*(named or ()), *more], schedules=scheduled)
    with Interrupts() as interrupts, clear_errors():
        from schuss.lab.racing.executors import dask, start_server

        if scheduler is None and again is None:
            start_server()  # it imports torch for the workers on another core while this process does
        from schuss.lab.entries import DEFAULT
        from schuss.lab.racing.export import check_format
        from schuss.lab.racing.race import race

        racing = None if named is None and not more else [*(DEFAULT if named is None else named), *more]
        if again is not None:
            repeat(console, tasks, racing, options["data"], again, options["device"])
            return
        if table is not None:
            check_format(table)
        watcher = Watching(console, interrupts)
        using = nullcontext((None, workers)) if scheduler is None else dask(scheduler)
        with using as (executor, capacity), watcher.progress:
            try:
                report = race(
                    *(given, racing, trials or preset or "default"),
                    schedules=scheduled,
                    batch_sizes=batch_sizes.split(",") if batch_sizes else (),
                    executor=executor,
                    workers=capacity,
                    watcher=watcher,
                    **options,
                ).data
            except KeyboardInterrupt:
                watcher.progress.stop()
                interrupted(console, watcher.folder)
                sys.exit(130)
        assert watcher.folder is not None
        conclude(console, report, watcher.folder, table)


def conclude(console: Console, report: Mapping[str, Any], folder: Path, table: Path | None) -> None:
    """What came of each task, and where it is written; an error where a task has no result at all."""
    from schuss.lab.racing.export import export

    for task in report["tasks"]:
        show(console, task)
        if "curvature" in task:
            say(console, f"Curvature: {task['curvature']['text']}")
    say(console, f"Report: {folder / 'report.html'}", soft_wrap=True)
    if table is not None:
        export(report, table)
        say(console, f"Runs: {table}", soft_wrap=True)
    if failures := list(filter(None, map(without_a_finish, report["tasks"]))):
        advice = "Fix the error and give the same command with --retry-crashed."
        raise click.ClickException(printable("\n".join([*failures, advice])))


def printable(text: str) -> str:
    """A text that does nothing to a terminal but stand there: what would steer it is written out."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def say(console: Console, text: str, *, soft_wrap: bool = False) -> None:
    """Print a text as it is: names and messages may hold what a terminal would act on."""
    console.print(printable(text), soft_wrap=soft_wrap)


class Interrupts:
    """What Ctrl-C does. Until the race begins it ends this process at once: half-imported libraries cannot be left
    in order. Then the first ends the race, and the next ones wait for its report, up to the third."""

    def __init__(self) -> None:
        """Nothing has begun."""
        self.began, self.count, self._before = False, 0, None

    def __enter__(self) -> Interrupts:
        """Answer from now on; only the main thread can."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self.answer)
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave the answer to whoever had it."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def answer(self, *_: object) -> None:
        """One Ctrl-C."""
        self.count += 1
        if not self.began:
            if self.count == 1:  # the next may come while the first is being answered
                leave("Stopped before any run.")
            return
        if self.count == 1:
            raise KeyboardInterrupt
        if self.count == 2:
            os.write(2, b"Stopping: the report is being written. Once more leaves at once.\n")
        else:
            leave("Stopped. Finished runs are stored; the same command resumes the race.")


def leave(line: str) -> None:
    """End this process with a line and nothing else."""
    sys.stdout.flush()
    shown = "\x1b[?25h" if sys.stdout.isatty() else ""  # a live bar hides the cursor
    os.write(1, f"{shown}{line}\n".encode())
    os._exit(130)


@contextmanager
def clear_errors() -> Generator[None]:
    """What the user can put right is said in a line, without a traceback."""
    from schuss.lab.racing.executors import ExecutorError
    from schuss.lab.racing.store import StoreError

    try:
        yield
    except (ValueError, TypeError, OSError, ImportError, StoreError, ExecutorError) as error:
        raise click.ClickException(printable(str(error))) from error


class Watching:
    """Shows a race as it goes: a live bar in a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console, interrupts: Interrupts) -> None:
        """Watch on this console."""
        self.console, self.interrupts = console, interrupts
        text = TextColumn("{task.description}", markup=False)
        columns = (text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self.best: dict[str, tuple[float, str]] = {}
        self.bar, self.name, self.total, self.count = None, "", 0, 0
        self.folder: Path | None = None

    def began(self, folder: Path) -> None:
        """A race is stored in this folder."""
        self.folder, self.interrupts.began = folder, True

    def planned(self, words: str) -> None:
        """What a run may use."""
        say(self.console, words)

    def stage(self, name: str, expected: int, known: int) -> None:
        """A stage begins."""
        self.name, self.total, self.count, self.best = name, expected, 0, {}
        if self.console.is_terminal:
            self.bar = self.progress.add_task(name, total=expected + known, completed=known)
        else:
            self.console.print(f"{name}: {expected} runs{f', {known} done already' if known else ''}")

    def finished(self, task: str, run: Any, result: Mapping[str, Any]) -> None:
        """A run has ended."""
        self.count += 1
        if result["status"] == "finished":
            loss = result["curve"]["validation_loss"][-1]
            if task not in self.best or loss < self.best[task][0]:
                self.best[task] = loss, f"{run.contestant.name} {loss:.4g}"
        best = "; ".join(f"{name}: {leader}" for name, (_, leader) in self.best.items())
        line = f"{self.name}, lowest loss so far: {best}" if best else self.name
        if self.bar is not None:
            self.progress.update(self.bar, advance=1, description=printable(line))
        elif self.count * 10 // self.total > (self.count - 1) * 10 // self.total:
            say(self.console, f"  {self.count} of {self.total}; {line}")


def show(console: Console, task: Mapping[str, Any]) -> None:
    """The final table and the verdict of one task."""
    if task["ranking"]:
        console.print(ranking(task))
        for row in task["ranking"]:
            say(console, f"  {row['entry']}: {settings(row['parameters'])}")
        console.print()
    for text in (f"{task['verdict']['headline']}. {task['verdict']['text']}", *task["verdict"]["notes"]):
        say(console, text)
    if task["diverged"]:
        console.print(f"{counted(len(task['diverged']))} diverged.")
    show_crashed(console, task)
    limited = [entry["name"] for entry in task["entries"] if "lr" in entry["space_limited"]]
    if limited:
        names = ", ".join(limited)
        say(console, f"Limited by the space: the best learning rate lies at the edge for {names}.")


def ranking(task: Mapping[str, Any]) -> Table:
    """The final table of one task, the best entry first."""
    metric, seeds = task["metric"]["name"], max(row["metric"]["n"] for row in task["ranking"])
    title = (
        f"{task['name']}: {metric} on validation, mean and 95 % interval of the median, {seeds} fresh seeds"
    )
    table = Table(title=printable(title), box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    widest = max(len(x) for row in task["ranking"] for x in spread(row["metric"]).split("\n"))
    table.add_column(no_wrap=True)
    table.add_column("entry", overflow="fold")
    table.add_column(printable(metric), justify="right", min_width=widest, overflow="fold")
    for heading in ("test", "reached", "gradients", "lr\nwidth", "bytes per\nweight", "µs per\nstep"):
        table.add_column(heading, justify="right", no_wrap=True, overflow="fold")
    for row in task["ranking"]:
        seconds = row["step"]["seconds"]
        table.add_row(
            f"{row['rank']}{'=' if row['tied'] else ''}",
            printable(row["entry"]),
            spread(row["metric"]),
            number(row["test_metric"]["mean"]),
            f"{100 * row['reached']:.0f} %",
            number(row["cost"]["gradients"]),
            "–" if row["sensitivity"] is None else f"{row['sensitivity']:.1f} dec",
            number(row["bytes_per_weight"]),
            number(None if seconds is None else 1e6 * seconds, 3),
        )
    return table


def show_crashed(console: Console, task: Mapping[str, Any]) -> None:
    """Every entry of which runs crashed, with the last reason: it may be missing in the table for that alone."""
    from schuss.lab.reason import reason

    for name in (entry["name"] for entry in task["entries"]):
        runs = [run for run in task["runs"] if run["entry"] == name]
        if crashed := [run for run in runs if run["status"] == "crashed"]:
            many = f"every run ({len(runs)})" if crashed == runs else f"{len(crashed)} of {len(runs)} runs"
            last = crashed[-1]
            where = f"{settings(last['parameters'])}, seed {last['seed']}"
            say(console, f"Crashed: {name}, {many}. The last ({where}) said: {reason(last['error'])}")


def without_a_finish(task: Mapping[str, Any]) -> str | None:
    """Why a task has no result at all, if it has none."""
    from schuss.lab.reason import reason

    runs = task["runs"]
    if not runs or any(run["status"] == "finished" for run in runs):
        return None
    crashed = [run for run in runs if run["status"] == "crashed"]
    none = f"None of the {len(runs)} runs on {task['name']!r} finished"
    if not crashed:
        return f"{none}: every one diverged."
    first = crashed[0]
    return f"{none}; {len(crashed)} crashed. The first, of {first['entry']}: {reason(first['error'])}"


def interrupted(console: Console, folder: Path | None) -> None:
    """Say what is stored and how to resume."""
    from schuss.lab.racing.store import Store, StoreError

    stored = 0
    if folder is not None:
        with suppress(StoreError), Store(folder) as store:
            stored = store.count()
    if folder is None or not stored:
        console.print("Stopped before any run.")
        return
    file = folder / "report.json"
    tasks = json.loads(file.read_text(encoding="utf-8"))["tasks"] if file.is_file() else []
    for task in tasks:
        if task["ranking"]:
            show(console, task)
            continue
        sign = 1 if task["metric"]["best"] == "max" else -1
        tuned = [(sign * c["tune"], c["entry"]) for c in task["configurations"] if c["tune"] is not None]
        for name, best in {entry: tune for tune, entry in sorted(tuned)}.items():
            say(console, f"  {name}: {task['metric']['name']} {sign * best:.4g} in tuning, so far")
        show_crashed(console, task)
    runs = counted(sum(len(task["runs"]) for task in tasks) or stored)
    say(console, f"Stopped. {runs} stored in {folder}; the same command resumes the race.", soft_wrap=True)


def repeat(
    console: Console, spec: str, entries: list[str] | None, data: Path | None, again: str, device: str
) -> None:
    """Run again what a line of the report names, in this process."""
    from schuss.lab.racing.race import repeat_run

    try:
        work = json.loads(again)
    except ValueError as error:
        raise click.BadParameter(f"--run is not what a report gives: {error}") from error
    for seed, result in repeat_run(spec, entries, data, work, device):
        curve = result["curve"]
        if result["status"] == "finished":
            last = {name: curve[name][-1] for name in ("steps", "train_loss", "validation_loss", "metric")}
        else:
            last = {"status": result["status"], **(result["divergence"] or {"error": result["error"]})}
        test = {f"test_{name}": value for name, value in (result["test"] or {}).items()}
        console.print_json(data={"seed": seed, **last, **test})


def counted(runs: int) -> str:
    """How many runs."""
    return f"{runs} run{'s' if runs > 1 else ''}"


def settings(parameters: Mapping[str, float]) -> str:
    """A configuration in a line, its learning rate first."""
    names = sorted(parameters, key=lambda name: name != "lr")
    return ", ".join(f"{name} {parameters[name]:.3g}" for name in names)


def spread(found: Mapping[str, Any]) -> str:
    """The mean, and under it the interval of the median."""
    if found["mean"] is None:
        return "–"
    interval = "" if found["high"] is None else f"\n{found['low']:.4g} to {found['high']:.4g}"
    return f"{found['mean']:.4g}{interval}"


def number(value: float | None, digits: int = 4) -> str:
    """A number, or a dash."""
    return "–" if value is None else f"{value:.{digits}g}"
