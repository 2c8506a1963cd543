"""An update that uses whole-tensor words, cut into passes over memory.

`norm(x)` needs x of every element before any element can go on. So each word has a level: one more than the deepest
word that its argument depends on. For each level there is a function `measure_<level>` of the same statements, which
gives the arguments of that level's words for one element, and `update` takes what was measured as further arguments:

    u = m / sqrt(v)                          measure_1(w, g, m, v)          -> w, u
    w = w - lr * norm(w) / norm(u) * u       update(w, g, m, v, norm_w, norm_u)

Every pass computes anew what it needs from the weight, the gradient and the old state. Only `update` writes: until
then nothing has changed. What a pass does not need the compiler removes from it.

Slots that have a number for each row or column (`shapes`) are read by every element of it. They are written once all
elements have moved.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from schuss.compile.storage import EPSILONS
from schuss.rules.rule import MATRIX, SHAPES, VECTORS, WHOLE_TENSOR

__all__ = ["BOTH", "Axes", "Passes", "Word", "axes_of", "varying"]

# Along which axes of a matrix a number differs: one for each "row" has the axis "row".
Axes = frozenset[str]
BOTH, ALIKE = frozenset({"row", "column"}), frozenset[str]()


def varying(slots: Mapping[str, str] | tuple[str, ...], shapes: Mapping[str, str]) -> dict[str, Axes]:
    """Along which axes the weight, the gradient and these slots differ; coefficients do along none."""
    return dict.fromkeys(("w", "g"), BOTH) | {
        name: frozenset({shapes[name]}) if name in shapes else BOTH for name in slots
    }


def axes_of(node: ast.AST, known: Mapping[str, Axes]) -> Axes:
    """Along which axes the value of an expression differs, of names `known` to."""
    if isinstance(node, ast.Name):
        return known.get(node.id, ALIKE)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in WHOLE_TENSOR:
        word = node.func.id
        return frozenset({VECTORS[word]}) if word in VECTORS else BOTH if word in MATRIX else ALIKE
    return frozenset[str]().union(*(axes_of(child, known) for child in ast.iter_child_nodes(node)))


@dataclass(frozen=True)
class Word:
    """One whole-tensor word in an update: which, the name of what it gives, and the pass that measures it.

    Level 0 is known without looking at numbers. `alike`: whether its argument is the same all along a row.
    """

    word: str
    name: str
    level: int
    alike: bool = False

    @property
    def matrix(self) -> bool:
        """Whether it gives a number for each element, not one for the tensor."""
        return self.word in MATRIX

    @property
    def vector(self) -> str:
        """What it gives a number for each of: "row", "column", or neither."""
        return VECTORS.get(self.word, "")


@dataclass(frozen=True)
class _Line:
    """`name = value`, which can be worked out once the words up to `level` are measured."""

    name: str
    value: ast.expr
    level: int


class _Hoist(ast.NodeTransformer):
    """Put a name in the place of each whole-tensor word, innermost first, and remember what it is of."""

    def __init__(self, taken: set[str], axes: dict[str, Axes]) -> None:
        self.taken, self.axes = taken, axes
        self.levels: dict[str, int] = {}
        self.words: list[Word] = []
        self.lines: list[_Line] = []

    def level(self, expression: ast.expr) -> int:
        names = [node.id for node in ast.walk(expression) if isinstance(node, ast.Name)]
        return max((self.levels.get(name, 0) for name in names), default=0)

    def assign(self, name: str, value: ast.expr) -> None:
        value = self.visit(value)
        self.levels[name], self.axes[name] = self.level(value), axes_of(value, self.axes)
        self.lines.append(_Line(name, value, self.levels[name]))

    def free(self, name: str) -> str:
        while name in self.taken or _argument(name) in self.taken:
            name += "_"
        self.taken |= {name, _argument(name)}
        return name

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        word = node.func.id if isinstance(node.func, ast.Name) else ""
        if word not in WHOLE_TENSOR:
            return node
        (argument,) = node.args
        if word in SHAPES:
            return self.known_of_shape(word)
        level = self.level(argument)
        of = argument.id if isinstance(argument, ast.Name) else str(len(self.words) + 1)
        name = self.free(f"{word}_{of}")
        self.levels[name] = level + 1
        self.words.append(Word(word, name, level + 1, axes_of(argument, self.axes) <= {"row"}))
        self.axes[name] = axes_of(node, self.axes)
        self.lines.append(_Line(_argument(name), argument, level))
        return ast.Name(name, ast.Load())

    def known_of_shape(self, word: str) -> ast.expr:
        found = [one.name for one in self.words if one.word == word] or [self.free(f"number_of_{word}")]
        if all(one.name != found[0] for one in self.words):
            self.words.append(Word(word, found[0], 0))
        return ast.Name(found[0], ast.Load())


def _argument(name: str) -> str:
    return f"argument_of_{name}"


class Passes:
    """The passes of an update with this text: its `words`, and the text of each pass.

    `slots` are its state; `shapes` says which of them have a number for each row or column.

    >>> passes = Passes("def update(w, g, lr):\\n    return (w - lr * norm(w) / norm(g) * g,)")
    >>> [(word.name, word.level) for word in passes.words]
    [('norm_w', 1), ('norm_g', 1)]
    >>> print(passes.update())
    def update(w, g, lr, norm_w, norm_g):
        return (w - lr * norm_w / norm_g * g,)
    """

    def __init__(
        self, text: str, slots: tuple[str, ...] = (), shapes: Mapping[str, str] | None = None
    ) -> None:
        self.shapes = {name: (shapes or {})[name] for name in slots if name in (shapes or {})}
        (function,) = ast.parse(text).body
        assert isinstance(function, ast.FunctionDef)
        self.arguments = [one.arg for one in function.args.args]
        hoist = _Hoist(
            {node.id for node in ast.walk(function) if isinstance(node, ast.Name)} | set(self.arguments),
            varying(slots, self.shapes),
        )
        for statement in function.body:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    hoist.assign(name, value)
                case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
                    # All values are of before the statement.
                    halfway = [hoist.free(f"new_{ast.unparse(target)}") for target in targets]
                    for name, value in zip(halfway, values, strict=True):
                        hoist.assign(name, value)
                    for target, name in zip(targets, halfway, strict=True):
                        hoist.assign(ast.unparse(target), ast.Name(name, ast.Load()))
                case ast.Return(value=ast.expr() as value):
                    self.result = ast.unparse(hoist.visit(value))
                case _:
                    pass  # a docstring
        self.words, self.lines = tuple(hoist.words), hoist.lines

    @property
    def numbers(self) -> tuple[Word, ...]:
        """The words that give one number for a tensor."""
        return tuple(word for word in self.words if not word.matrix and not word.vector)

    @property
    def matrices(self) -> tuple[Word, ...]:
        """The words that give a matrix."""
        return tuple(word for word in self.words if word.matrix)

    def known_before(self, shapes: Sequence[tuple[int, int]], dtype: str) -> dict[int, float | list[float]]:
        """What is known of the shapes of matrices and of their dtype, by the place of the word among `numbers`.

        Of the shapes a number for each tensor, of the dtype one for all.
        """

        def known(word: str) -> float | list[float]:
            if word == "machine_epsilon":
                return EPSILONS[dtype]
            return [float(shape[word == "columns"]) for shape in shapes]

        return {k: known(word.word) for k, word in enumerate(self.numbers) if word.level == 0}

    @property
    def readings(self) -> int:
        """How many passes read the weight, the gradient or state of each element."""
        levels = range(1, self.levels + 1)
        return 1 + sum(any(not (one.alike and one.vector) for one in self.at(level)) for level in levels)

    @property
    def vectors(self) -> tuple[Word, ...]:
        """The words that give a number for each row or column."""
        return tuple(word for word in self.words if word.vector)

    @property
    def of_rows(self) -> bool:
        """Whether rows and columns of the weight are told apart."""
        return bool(self.vectors or self.shapes)

    @property
    def levels(self) -> int:
        """How many measuring passes there are."""
        return max((word.level for word in self.words), default=0)

    def at(self, level: int) -> tuple[Word, ...]:
        """The words that the pass of this level measures."""
        return tuple(word for word in self.words if word.level == level)

    def known(self, level: int) -> tuple[Word, ...]:
        """What has been measured before the pass of this level."""
        return tuple(word for word in self.words if word.level < level)

    def measure(self, level: int) -> str:
        """The text of `measure_<level>`: the arguments of this level's words, of one element."""
        arguments = [_argument(word.name) for word in self.at(level)]
        return self._text(f"measure_{level}", level, f"({', '.join(arguments)},)")

    def update(self) -> str:
        """The text of the moving pass."""
        return self._text("update", self.levels + 1, self.result)

    def _text(self, name: str, level: int, result: str) -> str:
        others = {_argument(word.name) for word in self.words if word.level != level}
        body = [
            f"    {line.name} = {ast.unparse(line.value)}"
            for line in self.lines
            if line.level < level and line.name not in others
        ]
        arguments = ", ".join((*self.arguments, *(word.name for word in self.known(level))))
        return "\n".join([f"def {name}({arguments}):", *body, f"    return {result}"])
