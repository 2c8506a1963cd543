"""The user's own Python: tasks and optimizers in files or packages, with the modules next to them that they import.

A file is run here, once, and what it defines travels to other processes and machines by value. The modules next to it
are named by reference, as Python does it, so their texts travel along and an importer in each worker serves them:
a worker needs no copy of the folder. Which modules those are is read from the import statements, so an import inside
a function counts too.

Whatever is run here draws from generators that were seeded with its own name. A file that draws its data at import
draws the same numbers each time, in each process.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.abc
import importlib.util
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from schuss.errors import refusal
from schuss.lab.reason import reason
from schuss.lab.seeds import seeded

NEVER = {"schuss", *sys.stdlib_module_names}  # no neighbour bears these names, whatever lies in the folder


@dataclass(frozen=True)
class UserModule:
    """One module next to the user's file."""

    path: str
    text: str
    package: bool = False


@dataclass(frozen=True)
class UserCode:
    """Modules by their names, and the folders in which they were found."""

    modules: Mapping[str, UserModule] = field(default_factory=dict[str, UserModule])
    folders: tuple[str, ...] = ()

    @classmethod
    def merged(cls, parts: Sequence[UserCode]) -> UserCode:
        """All of these together; `ValueError` where one name stands for two modules."""
        modules: dict[str, UserModule] = {}
        for part in parts:
            for name, module in part.modules.items():
                before = modules.setdefault(name, module)
                if before.path != module.path:
                    two = f"one module: it is {before.path} and {module.path}"
                    advice = "No two modules of files that race together may have one name; rename one."
                    raise refusal("import", name, two, advice)
        return cls(modules, tuple(dict.fromkeys(folder for part in parts for folder in part.folders)))


@dataclass(frozen=True)
class Loaded:
    """A module of the user's that was run, and all that it consists of."""

    module: ModuleType
    label: str  # as the user wrote it
    text: str
    neighbours: Mapping[str, str]  # file -> text
    code: UserCode  # what has to travel

    @property
    def source(self) -> str:
        """All of its text: what its numbers depend on."""
        return "\n".join([self.text, *(f"# {file}\n{text}" for file, text in self.neighbours.items())])

    @property
    def files(self) -> dict[str, str]:
        """The text of each file."""
        return {self.label: self.text, **self.neighbours}

    def get(self, name: str) -> Any:
        """One thing that is defined in it."""
        if not hasattr(self.module, name):
            there = ", ".join(sorted(key for key in vars(self.module) if not key.startswith("_")))
            raise refusal("name", name, f"in {self.label}", f"There is: {there}.")
        return getattr(self.module, name)


def load_own(spec: str) -> Loaded:
    """Run the file or the module that a spec names."""
    if spec.endswith(".py"):
        return load(spec)
    parts = spec.split(".")
    for path in (Path(*parts).with_suffix(".py"), Path(*parts, "__init__.py")):
        if path.is_file():
            return load(path, spec)
    return _installed(spec)


def load_name(spec: str | Path, name: str) -> tuple[Any, str]:
    """One thing from a file, with the file's text."""
    loaded = load_own(str(spec))
    return loaded.get(name), loaded.source


def load(file: str | Path, name: str | None = None) -> Loaded:
    """Run a Python file; `name` is its module's, where it was named as part of a package."""
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file.")
    full = path.resolve()
    text = _read(full)
    package, root = full.name == "__init__.py", full.parent
    if name is None and _is_relative(text):
        name, root = _name_in_package(full)
    elif name is not None:
        root = Path.cwd()
    if name is None or "." not in name:  # outside of a package no other file may be meant by the same name
        name = f"{path.stem}_{hashlib.blake2b(str(full).encode(), digest_size=4).hexdigest()}"
    folders = list(dict.fromkeys((full.parent, root)))  # a script finds what lies next to it first
    code = UserCode(dict(_closure(name, text, package, folders)), tuple(map(str, folders)))
    install(code)
    spec = importlib.util.spec_from_loader(name, _Loader(path.name, UserModule(str(full), text, package)))
    assert spec is not None
    module = _run(spec, str(path))
    cloudpickle.register_pickle_by_value(module)
    neighbours = {_short(found.path, root): found.text for found in code.modules.values() if found.text}
    return Loaded(module, str(path), text, dict(sorted(neighbours.items())), code)


def _installed(name: str) -> Loaded:
    """A module of an installed package: workers import it themselves."""
    try:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"No module named {name!r}")
        path = Path(spec.origin)
        with _seeded(name):
            module = importlib.import_module(name)
        text = _read(path) if path.suffix == ".py" else hashlib.blake2b(path.read_bytes()).hexdigest()
    except ModuleNotFoundError as error:
        advice = f"{error}. It must lie in the folder you are in or be installed; a file ends in .py."
        raise refusal("module", name, "a module that can be imported here", advice) from error
    except (Exception, SystemExit) as error:
        raise ValueError(f"{name} cannot be imported: {reason(traceback.format_exc())}") from error
    top = name.partition(".")[0]
    root = path.parents[name.count(".") + (path.name == "__init__.py")]
    modules = _closure(name, text, path.name == "__init__.py", [root])
    files = {
        found.path: found.text for each, found in modules if each.partition(".")[0] == top and found.text
    }
    neighbours = {_short(file, root): text for file, text in sorted(files.items())}
    return Loaded(module, name, text, neighbours, UserCode())


def _run(spec: ModuleSpec, label: str) -> ModuleType:
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(spec.name)
    sys.modules[spec.name] = module
    try:
        if "." in spec.name:
            importlib.import_module(spec.name.rpartition(".")[0])
        assert spec.loader is not None
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        if before is None:
            del sys.modules[spec.name]
        else:
            sys.modules[spec.name] = before
        raise ValueError(f"{label} cannot be run: {reason(traceback.format_exc())}") from error
    return module


def _read(path: Path) -> str:
    try:
        return importlib.util.decode_source(path.read_bytes())
    except (UnicodeDecodeError, SyntaxError) as error:
        raise refusal("file", str(path), "Python source", f"It cannot be decoded: {error}.") from error


def _short(file: str, root: Path) -> str:
    path = Path(file)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else file


def _name_in_package(path: Path) -> tuple[str, Path]:
    """What a file is called from outside of all its packages, and the folder that is outside."""
    parts = [] if path.name == "__init__.py" else [path.stem]
    folder = path.parent
    while (folder / "__init__.py").is_file() and folder.name.isidentifier():
        parts.insert(0, folder.name)
        folder = folder.parent
    return ".".join(parts), folder


def _closure(
    name: str, text: str, package: bool, folders: Sequence[Path]
) -> Iterator[tuple[str, UserModule]]:
    """Every module that is imported from these folders, directly or by another, wherever the statement stands."""
    seen, waiting = {name}, [(name, text, package)]
    while waiting:
        importer, source, is_package = waiting.pop()
        home = importer if is_package else importer.rpartition(".")[0]
        for wanted in (*_imported(home, source), importer):
            for parent in accumulate(wanted.split("."), "{}.{}".format):
                if parent in seen:
                    continue
                seen.add(parent)
                found = None if _is_foreign(parent, folders) else _find(parent, folders)
                if found is not None:
                    yield parent, found
                    waiting.append((parent, found.text, found.package))


def _statements(text: str) -> list[ast.Import | ast.ImportFrom]:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):  # running it will say so
        return []
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def _is_relative(text: str) -> bool:
    return any(isinstance(node, ast.ImportFrom) and node.level for node in _statements(text))


def _imported(home: str, text: str) -> Iterator[str]:
    """The names of all that a text imports, seen from the package that it belongs to."""
    for node in _statements(text):
        base = ""
        if isinstance(node, ast.ImportFrom):
            with suppress(ImportError):  # beyond the top: running it will say so
                base = importlib.util.resolve_name("." * node.level + (node.module or ""), home)
            if not base:
                continue
            yield base
            base += "."
        yield from (base + alias.name for alias in node.names if alias.name != "*")


def _find(name: str, folders: Sequence[Path]) -> UserModule | None:
    for folder in folders:
        base = folder.joinpath(*name.split("."))
        for path, package in ((base / "__init__.py", True), (base.with_name(f"{base.name}.py"), False)):
            if path.is_file():
                return UserModule(str(path), _read(path), package)
        if base.is_dir() and any(base.glob("*.py")):  # a package without __init__.py
            return UserModule(str(base / "__init__.py"), "", True)
    return None


def _is_foreign(name: str, folders: Sequence[Path]) -> bool:
    """Whether this name belongs to a module from elsewhere, which Python would take from `sys.modules`."""
    top = name.partition(".")[0]
    if top in NEVER:
        return True
    there = sys.modules.get(top)
    if there is None or isinstance(getattr(there, "__loader__", None), _Loader):
        return False
    paths = filter(None, [getattr(there, "__file__", None), *getattr(there, "__path__", [])])
    return not any(Path(path).is_relative_to(folder) for path in paths for folder in folders)


class _Loader(importlib.abc.InspectLoader):
    """Runs a text as a module, its draws seeded by its name."""

    def __init__(self, name: str, module: UserModule) -> None:
        self.name, self.of = name, module

    def get_source(self, fullname: str) -> str:
        return self.of.text

    def is_package(self, fullname: str) -> bool:
        return self.of.package

    def exec_module(self, module: ModuleType) -> None:
        module.__file__ = self.of.path
        if self.of.package:
            module.__path__ = [str(Path(self.of.path).parent)]
        code = compile(self.of.text, self.of.path, "exec")
        with _seeded(self.name):
            exec(code, vars(module))


class _Finder(importlib.abc.MetaPathFinder):
    """Serves the user's modules by name, ahead of every folder."""

    def __init__(self) -> None:
        self.modules: dict[str, UserModule] = {}
        self.folders: list[str] = []

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module of that name, if it is one of them."""
        module = self.modules.get(fullname)
        if module is None:
            return None
        spec = importlib.util.spec_from_loader(fullname, _Loader(fullname, module), origin=module.path)
        if spec is not None and module.package:
            spec.submodule_search_locations = [str(Path(module.path).parent)]
        return spec


_finder = _Finder()


def install(code: UserCode) -> None:
    """Let this process import these modules; of an older version of them nothing is kept.

    What no import statement names (a module whose name is put together while running) is still found where its
    folder is there.
    """
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    if any(_finder.modules.get(name, module) != module for name, module in code.modules.items()):
        for name, module in list(sys.modules.items()):
            if isinstance(getattr(module, "__loader__", None), _Loader) and name in _finder.modules:
                del sys.modules[name]
        _finder.modules.clear()
        sys.path[:] = [folder for folder in sys.path if folder not in _finder.folders]
        _finder.folders.clear()
    _finder.modules.update(code.modules)
    for folder in code.folders:
        if folder not in sys.path:
            sys.path.append(folder)
            _finder.folders.append(folder)


def _seeded(name: str) -> AbstractContextManager[None]:
    """Draw the same numbers under this name each time."""
    return seeded(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big"))
