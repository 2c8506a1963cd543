"""What the `schuss` command does before one of its commands has begun."""

import importlib
import sys

import pytest

import schuss.cli


def test_an_interrupt_while_a_command_is_imported_is_a_line(monkeypatch, capsys):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["schuss", "list"])
    monkeypatch.setattr(importlib, "import_module", interrupted)
    with pytest.raises(SystemExit) as ended:
        schuss.cli.main()
    assert (ended.value.code, *capsys.readouterr()) == (130, "Stopped.\n", "")


def test_an_interrupt_while_click_is_imported_is_a_line(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(schuss.cli, "_run", interrupted)
    with pytest.raises(SystemExit) as ended:
        schuss.cli.main()
    assert (ended.value.code, *capsys.readouterr()) == (130, "Stopped.\n", "")
