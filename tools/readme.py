"""Write README's table of optimizers, read off the rules; with `--check` only say whether it is up to date."""

import re
import sys
from pathlib import Path

from schuss.compile.facts import markdown
from schuss.rules import TABLE

README = Path(__file__).parents[1] / "README.md"
FOUND = re.compile(r"^\| optimizer \|.*\n(?:\|.*\n)*", re.MULTILINE)


def main() -> None:
    """Put the table in the place of the one that is there."""
    old = README.read_text(encoding="utf-8")
    new, count = FOUND.subn(lambda _: markdown({name: row.rule for name, row in TABLE.items()}), old)
    if count != 1:
        sys.exit("README.md has no table of optimizers, or more than one.")
    if "--check" not in sys.argv:
        README.write_text(new, encoding="utf-8")
    elif new != old:
        sys.exit("README.md has another table of optimizers than its rules. Run: make stubs")


if __name__ == "__main__":
    main()
