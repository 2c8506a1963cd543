"""How much a race may spend: trials and seeds, the same for every entry."""

from __future__ import annotations

from dataclasses import dataclass

from schuss.errors import unknown, whole


@dataclass(frozen=True)
class Budget:
    """Trials per entry, how many of them are confirmed, and seeds per stage.

    | field           | meaning                                                                        |
    | `trials`        | configurations tried of each entry, all from one seed                          |
    | `finalists`     | how many of them are confirmed                                                 |
    | `confirm_seeds` | fresh seeds for each finalist                                                  |
    | `report_seeds`  | fresh seeds for the one that was chosen; all that is claimed rests on these    |
    | `extra`         | more trials for every entry when the best of any lies at the edge of its range |
    """

    trials: int
    finalists: int = 3
    confirm_seeds: int = 3
    report_seeds: int = 10

    def __post_init__(self) -> None:
        """Refuse a budget that cannot be spent."""
        for name, value in vars(self).items():
            whole(name, value, 1)

    @property
    def extra(self) -> int:
        """Half as many trials again."""
        return (self.trials + 1) // 2

    def seeds(self, base: int) -> dict[str, list[int]]:
        """Seeds for each stage; no seed serves two.

        >>> Budget(5, confirm_seeds=2, report_seeds=3).seeds(0)
        {'tune': [0], 'confirm': [1, 2], 'report': [3, 4, 5]}
        """
        base = whole("seed", base)
        first = base * 1000
        confirm = list(range(first + 1, first + 1 + self.confirm_seeds))
        report = list(range(confirm[-1] + 1, confirm[-1] + 1 + self.report_seeds))
        return {"tune": [first], "confirm": confirm, "report": report}


PRESETS = {"quick": Budget(5), "default": Budget(20), "careful": Budget(50)}


def budget(given: str | int | Budget) -> tuple[str, Budget]:
    """A preset by name, a number of trials, or a budget as it is; with what to call it."""
    if isinstance(given, Budget):
        return "custom", given
    if isinstance(given, int):
        return f"{given} trials", Budget(given)
    if not isinstance(given, str) or given not in PRESETS:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise unknown("budget", given, PRESETS, "A number of trials and a Budget will do too.")
    return given, PRESETS[given]
