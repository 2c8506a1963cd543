"""Files are written whole or not at all, and what an interrupt leaves is said."""

import errno
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from schuss.lab.pages import check_writable, write


@pytest.fixture
def full(monkeypatch):
    """A disk on which half of a file finds room."""

    def half(path, data):
        with open(path, "wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", half)


def test_a_file_is_written_with_its_folder(tmp_path):
    path = tmp_path / "new" / "page.html"
    for content in ("first ∞", b"second"):
        write(path, content)
        assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_leaves_what_was_there(tmp_path, full):
    path = tmp_path / "page.html"
    path.write_text("before")
    with pytest.raises(OSError, match=r"page\.html could not be written: No space left on device\. Try"):
        write(path, "a longer page")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_pipe_is_written_as_it_is(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        check_writable(pipe)
        write(pipe, "page")
        assert os.read(reader, 9) == b"page"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "page.html", tmp_path):
        with pytest.raises(OSError, match=rf"{path} could not be written: .*Try"):
            check_writable(None, path)
        with pytest.raises(OSError, match=rf"{path} could not be written: .*Try"):
            write(path, "page")
    check_writable(None, tmp_path / "new" / "page.html")
    assert list((tmp_path / "new").iterdir()) == []


COMMANDS = {
    "landscape": ("beale", "--optimizers", "sgd", "--steps", "3", "--lr", "0.01"),
    "landscape --model": ("rosenbrock", "--model", "--at", "0,0.5"),
    "range": ("diabetes", "--steps", "10", "--sweeps", "1"),
    "diagnose": ("rosenbrock", "--optimizer", "sgd", "--steps", "2"),
}


def command(name):
    import importlib

    return importlib.import_module(f"schuss.cli.{name.split()[0]}").command


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_that_the_disk_is_full(name, tmp_path, full):
    found = CliRunner().invoke(command(name), [*COMMANDS[name], "--out", str(tmp_path / "page.html")])
    assert found.exit_code == 1
    assert "page.html could not be written: No space left on device. Try" in found.output
    assert list(tmp_path.iterdir()) == []


INSIDE = {
    "landscape": "schuss.lab.landscape.on_surface",
    "landscape --model": "schuss.lab.landscape.TaylorModel",
    "range": "schuss.lab.ranges.range_test_of",
    "diagnose": "schuss.lab.diagnose.measure",
}


def interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", COMMANDS)
def test_an_interrupt_is_a_short_word_and_130(name, tmp_path, monkeypatch):
    module, _, attribute = INSIDE[name].rpartition(".")
    monkeypatch.setattr(__import__(module, fromlist=["x"]), attribute, interrupt)
    found = CliRunner().invoke(command(name), [*COMMANDS[name], "--out", str(tmp_path / "page.html")])
    assert found.exit_code == 130
    assert "Stopped: nothing was written" in found.output
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_examination_shows_what_it_found(monkeypatch):
    from schuss.lab.doctor import PARTS

    monkeypatch.setitem(PARTS, "noise", interrupt)
    found = CliRunner().invoke(command("doctor"), ["--only", "limits,noise"])
    assert found.exit_code == 130
    assert "10 of 10 known values hold" in found.output
    assert "Stopped before the end" in found.output
