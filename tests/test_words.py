"""Public text says the field's words: README, docs, help, messages, reports, and docstrings of public names.

The words refused here grew in this project and tell a new reader nothing. Each has a standard term.
"""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

from schuss.cli import COMMANDS

ROOT = Path(__file__).parents[1]
PACKAGES = ("compile", "curvature", "lab", "minimizing", "newton", "numpy", "rules", "schedules", "torch")

# What is refused, and what to say instead.
WORDS = {
    r"\bby chance\b": "stochastic rounding, rounded stochastically",
    r"\bright on average\b": "unbiased",
    r"\bfew bits\b": "low precision",
    r"\bwhat rounding takes?\b": "(Kahan) compensation term",
    r"\bHessian products?\b|\bproducts with the (Hessian|Gauss-Newton)": "Hessian-vector (HVP) or GGN-vector product",
    r"\bladders?\b|\brungs?\b|\bclimb(s|ed|ing)?\b": "learning-rate range test, learning rates; maximize, rise",
    r"\bbears?\b|\bbearable\b|\bborne\b": "stable, stability limit, largest stable learning rate",
    r"\bfronts\b|\b(NumPy|PyTorch|torch)('s)? front\b": "API",
    r"\btruths\b|\bknown truth\b": "known value, analytic reference",
    r"\brooms\b|\b(this|the wrong) room\b": "package",
    r"\btaken back\b|\bpromised (fall|decrease)\b|\bmodel promise[sd]\b": "rejected step, predicted decrease",
    r"(?<!random )\bwalks\b|\bwalked\b|\bwalking\b": "trajectory, runs",
    r"\b(bytes|bits|numbers?) a weight\b": "per weight",
    r"\b(trials|panel|point) an? (entry|seed|trial)\b|\bvalue a seed\b": "per entry, per seed",
    r"\b(s|ms|µs|seconds|products|examples|losses) a (step|gradient)\b": "per step, per gradient",
    r"\b(what|in) every habit\b|\bgives a page legs\b|\bwho walks\b": "a plain sentence",
}


def found(text: str) -> list[str]:
    """What a text says that it should not, and what to say instead."""
    return [
        f"{match.group()!r}: say {instead}"
        for pattern, instead in WORDS.items()
        for match in re.finditer(pattern, text, re.IGNORECASE)
    ]


@pytest.mark.parametrize(
    "text",
    [
        "A weight is rounded by chance.",
        "Nine bytes a weight",
        "5 trials an entry.",
        "the NumPy front",
        "Rungs of the ladder.",
        "two Hessian products",
        "what the optimizer bears",
        "12 µs a step",
    ],
)
def test_such_words_are_found(text):
    assert found(text)


def test_their_neighbours_are_not():
    for text in (
        "the interval bearing",
        "random walks",
        "one truth value",
        "counted from the front",
        "a bytes object",
    ):
        assert found(text) == []


@pytest.mark.parametrize(
    "file", [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))], ids=lambda file: file.name
)
def test_documents(file):
    # Indented lines are code, and names of packages.
    text = re.sub(r"^    .*$", "", file.read_text(encoding="utf-8"), flags=re.M)
    assert found(text) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_each_option_does_and_what_it_is_without(name):
    import click

    command = importlib.import_module(f"schuss.cli.{name}").command
    context = click.Context(command, info_name=f"schuss {name}")
    assert found(command.get_help(context)) == []
    for option in command.params:
        if isinstance(option, click.Option):
            text = option.help or ""
            assert re.match(r"[A-Z][\w-]+[ ,:]", text), f"schuss {name} --{option.name}: {text!r}"
            assert option.show_default or "[default: " in text, f"schuss {name} --{option.name}: {text!r}"


def docstrings(package: str):
    """The docstrings of a package's public names, by name: classes with their public methods, and functions."""
    module = importlib.import_module(package)
    yield package, inspect.getdoc(module)
    for name in module.__all__:
        public = getattr(module, name)
        if getattr(public, "__module__", "").startswith("schuss"):
            yield f"{package}.{name}", inspect.getdoc(public)
        if inspect.isclass(public):
            for of, part in vars(public).items():
                if not of.startswith("_") and (inspect.isroutine(part) or isinstance(part, property)):
                    yield f"{package}.{name}.{of}", inspect.getdoc(part)


@pytest.mark.parametrize("package", PACKAGES)
def test_docstrings_of_public_names(package):
    wrong = {name: said for name, text in docstrings(f"schuss.{package}") if (said := found(text or ""))}
    assert wrong == {}


def strings(path: Path):
    """The texts of a module that are no docstrings, with their lines; what is filled into one stands as {}."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    passed = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            passed.add(id(node.value))
        elif isinstance(node, ast.JoinedStr):
            passed.update(id(part) for part in node.values)
            yield node.lineno, "".join(p.value if isinstance(p, ast.Constant) else "{}" for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in passed:
            yield node.lineno, node.value


def test_messages_and_reports():
    texts = [
        (f"{path.relative_to(ROOT)}:{line}", text)
        for path in sorted((ROOT / "src").rglob("*.py"))
        for line, text in strings(path)
        if " " in text
    ]
    for path in (ROOT / "src").rglob("templates/*.j2"):
        text = re.sub(r"\.\w+", "", path.read_text(encoding="utf-8"))  # names of attributes are not shown
        texts.append((path.name, text))
    assert len(texts) > 1000
    assert {where: said for where, text in texts if (said := found(text))} == {}
