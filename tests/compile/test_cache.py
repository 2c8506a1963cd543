"""Compiled kernels on disk: found again, renewed with their page, shared by processes, and never trusted blindly."""

import ctypes
import errno
import hashlib
import importlib.util
import os
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from schuss.compile import cache, cpu
from schuss.compile.formula import formula
from schuss.compile.storage import PLAIN
from schuss.rules import SGD, Adam

SOURCE = Path(__file__).parents[2] / "src"

# Take one step of gradient descent, w = 1 and g = 0.5, by the kernel alone, and print where it goes.
ONE_STEP = """
import numpy as np
from schuss.compile import cpu
from schuss.compile.formula import formula
from schuss.compile.storage import PLAIN
from schuss.rules import SGD
w, g = np.ones(1), np.full(1, 0.5)
for dtypes in {dtypes}:
    kernel = cpu.kernel(formula(SGD), dtypes)
table = np.array([[w.ctypes.data, g.ctypes.data, 0, 1, 0]], dtype=np.int64)
matrix = np.array([[1.0, 0.0, 1.0, 0.5]])
kernel(table.ctypes.data, matrix.ctypes.data, 0, 1)
print(w.item())
"""
FLOAT64 = ("float64", "float64")


def start(folder, dtypes=(FLOAT64,)):
    environment = os.environ | {"SCHUSS_CACHE_DIR": str(folder), "PYTHONPATH": str(SOURCE)}
    return subprocess.Popen(
        [sys.executable, "-W", "always", "-c", ONE_STEP.format(dtypes=dtypes)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def finish(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert float(out) == 0.75
    return err


def test_two_processes_at_once_with_an_empty_folder(tmp_path):
    processes = [start(tmp_path / "new"), start(tmp_path / "new")]
    for process in processes:
        assert "Warning" not in finish(process)
    kept = sorted(path.suffix for path in (tmp_path / "new").iterdir())
    assert kept == [".o", ".py"]


@pytest.mark.parametrize(
    "damage", [lambda code: code[: len(code) // 2], lambda code: b"", lambda code: b"\0" * 500]
)
def test_a_damaged_file_is_not_fatal(damage, tmp_path):
    finish(start(tmp_path))
    (kept,) = tmp_path.glob("*.o")
    whole = kept.read_bytes()
    kept.write_bytes(damage(whole))
    finish(start(tmp_path))
    assert kept.read_bytes() == whole  # compiled anew, and kept again


def test_a_folder_that_cannot_be_written_costs_one_warning():
    """Two kernels, one warning; it says where, why, and what to try."""
    errors = finish(start("/dev/null/x", (("float32", "float32"), FLOAT64)))
    assert errors.count("RuntimeWarning") == 1
    assert "cannot be stored in /dev/null/x" in errors
    assert "Try setting SCHUSS_CACHE_DIR" in errors


def belongs_to_another(path, monkeypatch):
    """Let it be a file or folder of somebody who is neither this user nor root."""
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A cache folder in use, with one file in it."""
    folder = tmp_path / "kernels"
    monkeypatch.setenv("SCHUSS_CACHE_DIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cache._usable.cache_clear()
    cache._warn.cache_clear()
    cache.write_checked("a.o", b"code", "text")
    yield folder
    cache._usable.cache_clear()


def test_a_new_folder_is_for_its_user_alone(place):
    before = os.umask(0)
    try:
        fresh = cache._usable(place / "deeper")
    finally:
        os.umask(before)
    assert stat.S_IMODE(fresh.stat().st_mode) == 0o700
    assert stat.S_IMODE((place / "a.o").stat().st_mode) == 0o600


def test_a_file_counts_under_its_name_and_for_its_text_only(place):
    """A renamed kernel is whole, and would be called with another table of addresses."""
    assert cache.read("a.o", "text") == cache.read("a.o") == b"code"
    assert cache.read("a.o", "another text") is None
    os.link(place / "a.o", place / "b.o")
    assert cache.read("b.o") is cache.read("b.o", "text") is None


@pytest.mark.parametrize("mode", [0o660, 0o606])
def test_a_file_that_others_may_write_is_not_run(place, mode):
    (place / "a.o").chmod(mode)
    assert cache.read("a.o", "text") is None
    cache.write_checked("a.o", b"code", "text")
    assert cache.read("a.o", "text") == b"code"


def test_a_file_of_another_user_is_not_run(place, monkeypatch):
    belongs_to_another(place / "a.o", monkeypatch)
    assert cache.read("a.o", "text") is None


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_that_others_may_write_is_not_used(place, mode, tmp_path):
    place.chmod(mode)
    cache._usable.cache_clear()
    with pytest.warns(
        RuntimeWarning, match="others may write to it, and its files would be run; try chmod go-w"
    ):
        spare = cache.folder()
    assert spare != place
    assert cache.read("a.o", "text") is None


def test_a_folder_of_another_user_is_not_used(place, monkeypatch):
    belongs_to_another(place, monkeypatch)
    cache._usable.cache_clear()
    with pytest.warns(RuntimeWarning, match=r"it belongs to user \d+, and its files would be run"):
        assert cache.folder() != place


def test_pipes_links_and_folders_are_not_read(place):
    """A pipe would wait for a writer for ever."""
    os.mkfifo(place / "pipe.o")
    os.symlink(place / "a.o", place / "link.o")
    (place / "folder.o").mkdir()
    assert [cache.read(name) for name in ("pipe.o", "link.o", "folder.o", "/dev/zero", "none.o")] == [
        None
    ] * 5


def test_a_folder_that_can_only_be_read_is_read(place, monkeypatch):
    """An image with warm kernels: nothing is said as long as nothing is missing, then it is said once."""
    place.chmod(0o755)
    cache._usable.cache_clear()

    def refuse(**_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    assert cache.read("a.o", "text") == b"code"
    with pytest.warns(RuntimeWarning, match="Read-only file system"):
        cache.write("b.py", b"")
    cache.write("c.py", b"")


def test_no_home_and_a_home_by_its_sign(monkeypatch, tmp_path):
    monkeypatch.setenv("SCHUSS_CACHE_DIR", "~/kernels")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.wanted_folder() == tmp_path / "kernels"
    monkeypatch.delenv("SCHUSS_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache.wanted_folder() == tmp_path / ".cache" / "schuss"
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as without HOME and an entry in passwd
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cache._usable.cache_clear()
    cache._warn.cache_clear()
    with pytest.warns(RuntimeWarning, match="there is no home folder"):
        assert cache.folder().parent == tmp_path


def test_a_temporary_folder_is_removed_at_exit(tmp_path):
    """Also where a forked process ends before: it is the parent's."""
    script = """
import os, sys
from schuss.compile import cache
spare = cache.folder()
cache.write("a.py", b"")
if os.fork() == 0:
    sys.exit()
os.wait()
assert spare.is_dir()
print(spare)
"""
    environment = os.environ | {
        "SCHUSS_CACHE_DIR": "/dev/null/x",
        "TMPDIR": str(tmp_path),
        "PYTHONPATH": str(SOURCE),
    }
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_what_nobody_has_used_for_long_makes_room(place):
    for name in ("adam-old.o", "adam-used.o", "sgd-old.o"):
        cache.write(name, b"")
        os.utime(place / name, (0, 0))
    os.utime(place / "adam-used.o", (time.time(), 0))
    cache.write("adam-new.o", b"")
    assert sorted(path.name for path in place.iterdir()) == ["a.o", "adam-new.o", "adam-used.o", "sgd-old.o"]


def test_a_process_forked_during_a_compilation_can_compile(tmp_path):
    """It inherits the locks of the thread that compiles, which does not exist there."""
    script = """
import os, signal, threading
from schuss.compile import cpu
from schuss.compile.formula import formula
from schuss.rules import SGD
begun, compile_ = threading.Event(), cpu._compile
def told(*arguments):
    begun.set()
    return compile_(*arguments)
cpu._compile = told
thread = threading.Thread(target=cpu.kernel, args=(formula(SGD), ("float32", "float32")))
thread.start()
begun.wait()
child = os.fork()
if not child:
    signal.alarm(60)
    cpu.kernel(formula(SGD), ("float64", "float64"))
    os._exit(0)
thread.join()
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    environment = os.environ | {"SCHUSS_CACHE_DIR": str(tmp_path / "new"), "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr


PAGE = """
from dataclasses import dataclass
from schuss.rules.rule import Rule, number

@dataclass(frozen=True, kw_only=True)
class Mine(Rule):
    lr: float = number(0.5, low=0)

    def coefficients(self, step):
        return dict(lr=self.lr)

    @staticmethod
    def update(w, g, lr):
        w = w - lr * g{more}
        return (w,)
"""


def page(folder, more):
    path = folder / f"mine{len(list(folder.glob('*.py')))}.py"
    path.write_text(PAGE.format(more=more))
    spec = importlib.util.spec_from_file_location("mine", path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "mine", module)
        spec.loader.exec_module(module)
    return module.Mine


def test_a_changed_page_is_compiled_anew(tmp_path, monkeypatch, launch):
    """The same name, other maths: another key, and the right answer; the old page is found again."""
    monkeypatch.setenv("SCHUSS_CACHE_DIR", str(tmp_path / "kept"))
    for more, expected, kernels in (("", 0.5, 1), (" - 0.25", 0.25, 2), ("", 0.5, 2)):
        rule = page(tmp_path, more)()
        w = torch.ones(1, dtype=torch.float64)
        launch(rule, rule.coefficients(1), w, torch.ones_like(w), [])
        assert w.item() == expected
        assert len(list((tmp_path / "kept").glob("*.o"))) == kernels


def test_the_key_follows_the_page_the_variant_and_the_dtypes():
    texts = {
        cpu.source(formula(rule), (dtype,) * (2 + len(rule.slots)))
        for rule in (SGD(), SGD(momentum=0.9), Adam(), Adam(amsgrad=True))
        for dtype in PLAIN
    }
    assert len({hashlib.sha256(text.encode()).hexdigest() for text in texts}) == 16


def test_hyperparameters_change_no_key(case):
    """Within one variant, all hyperparameters share one kernel."""
    usual = formula(case.rule)
    assert formula(replace(case.rule, lr=0.123)) is usual
    for name in ("beta1", "eps", "weight_decay"):
        if hasattr(case.rule, name):
            assert formula(replace(case.rule, **{name: 0.0123})) is usual


def test_nothing_compiles_when_numbers_or_shapes_change(monkeypatch):
    """After the first step: other rates, betas, shapes, groups and lengths, and not one more kernel."""
    import schuss.torch

    def step(optimizer):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.ones_like(p)
        optimizer.step()

    optimizer = schuss.torch.AdamW([torch.zeros(3, requires_grad=True)])
    step(optimizer)

    def refuse(*_):
        raise AssertionError("a kernel was asked for anew")

    monkeypatch.setattr(cpu, "_compile", refuse)
    monkeypatch.setattr(cpu, "_load", refuse)
    for lr, betas in ((0.1, (0.5, 0.6)), (0.2, (0.0, 0.9))):
        optimizer.param_groups[0] |= {"lr": lr, "betas": betas, "weight_decay": lr}
        step(optimizer)
    for shape in ((), (0,), (7, 5), (40_000,)):
        optimizer.add_param_group({"params": [torch.zeros(shape, requires_grad=True)], "eps": 1e-3})
        step(optimizer)
    step(schuss.torch.AdamW([torch.zeros(2, 2, requires_grad=True)], lr=3e-4))


def test_a_kernel_is_a_readable_file(tmp_path, monkeypatch):
    monkeypatch.setenv("SCHUSS_CACHE_DIR", str(tmp_path))
    kernel = cpu._load("sgd", cpu.source(formula(SGD), FLOAT64), ctypes.CFUNCTYPE, 4)
    (path,) = tmp_path.glob("*.py")
    text = path.read_text(encoding="utf-8")
    compile(text, path.name, "exec")
    assert "w = keep * w - lr * g" in text
    w, g = np.ones(1), np.full(1, 0.5)
    table = np.array([[w.ctypes.data, g.ctypes.data, 0, 1, 0]], dtype=np.int64)
    matrix = np.array([[1.0, 0.0, 1.0, 0.5]])
    kernel(table.ctypes.data, matrix.ctypes.data, 0, 1)
    assert w.item() == 0.75
