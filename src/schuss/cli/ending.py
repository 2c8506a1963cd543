"""What the commands that write an HTML file have in common: the command itself, and an end that is clear."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Generator
from contextlib import contextmanager

import click
from rich.console import Console


def this_command() -> str:
    """What was typed, to be typed again."""
    words = [word if word.startswith("-") else shlex.quote(word) for word in sys.argv[1:]]
    return f"schuss {' '.join(words)}"


@contextmanager
def clear_end(console: Console, advice: str = "") -> Generator[None]:
    """Say in a line what the user can put right; an interrupt ends the process with 130 and, perhaps, `advice`."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError, RuntimeError, MemoryError) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        console.print(f"Stopped: nothing was written. {advice}".rstrip())
        sys.exit(130)
