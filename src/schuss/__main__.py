"""`python -m schuss` is the `schuss` command."""

from schuss.cli import main

if __name__ == "__main__":
    main()
