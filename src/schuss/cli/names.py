"""Names on the command line are checked before anything heavy is imported: a slip costs no seconds."""

from __future__ import annotations

from collections.abc import Sequence

import click


def check_names(
    *,
    tasks: Sequence[str] = (),
    entries: Sequence[str] = (),
    schedules: Sequence[str] = (),
    landscape: str = "",
) -> None:
    """Refuse names that nothing here has, with the one that was probably meant; nothing of torch is imported."""
    from schuss.lab import names

    try:
        if landscape and not names.is_own(landscape):
            names.check_landscape(landscape)
        names.check_words(tasks=tasks, entries=entries, schedules=schedules)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
