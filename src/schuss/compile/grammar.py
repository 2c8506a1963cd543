"""What a rule may say, checked when it is first used: each mistake is one message with file, line and remedy.

`update` becomes machine code for CPU and GPU as it is written, and runs on whole tensors too. So it is straight-line
arithmetic on its own arguments: what would work on one of these and fail, or mean something else, on another is refused
here, in words, instead of by a compiler.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import functools
import inspect
import keyword
import math
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NoReturn, cast

from schuss.compile.passes import axes_of, varying
from schuss.compile.restraint import LARGEST
from schuss.errors import RuleError
from schuss.rules.rule import MATRIX, VECTORS, VOCABULARY, WHOLE_TENSOR, Rule

# The names of the running average of the weights, and of the part of it that each step renews.
AVERAGE, RENEWED = "average", "renewed"

# What an optimizer's constructor and a checkpoint call something else.
RESERVED_FIELDS = (
    "params",
    "maximize",
    "foreach",
    "fused",
    "capturable",
    "differentiable",
    "rounding",
    "compensated",
    "state_dtype",
    "ema_decay",
    "cautious",
    "max_update",
    "max_norm",
    "skip_nonfinite",
    "seed",
)
# What an update's own text calls in a kernel, beside the vocabulary: its numbers and its quotients.
_CALLED = ("real", "divide")
# What kernels call something else.
_RESERVED = ("w", "g", "scale", "key1", "key2", AVERAGE, RENEWED, LARGEST, *_CALLED, *VOCABULARY)

_ARGUMENTS = {"maximum": 2, "minimum": 2, "where": 3}  # of the vocabulary's words; all others take one
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.BitAnd, ast.BitOr)
_COMPARISONS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq)


def _place(function: Callable[..., Any], line: int = 0) -> str:
    """Where a function's line stands, as editors and terminals link it: `my_rule.py:12`."""
    code = function.__code__
    path = Path(code.co_filename)
    with contextlib.suppress(ValueError):
        path = path.relative_to(Path.cwd())
    return f"{path}:{code.co_firstlineno + line}"


class _Mistake:
    """Says what is wrong where in one function of a rule."""

    def __init__(self, rule: type[Rule], function: Callable[..., Any]) -> None:
        self.rule, self.function = rule, function

    def __call__(
        self, text: str, node: ast.AST | None = None, cause: BaseException | None = None
    ) -> NoReturn:
        line = getattr(node, "lineno", 1) - 1
        raise RuleError(f"{_place(self.function, line)}: {self.rule.__name__}: {text}") from cause


def _update_of(rule: type[Rule], variant: str) -> Callable[..., Any] | None:
    found = inspect.getattr_static(rule, f"update_{variant}" if variant else "update", None)
    return found.__func__ if isinstance(found, staticmethod) else found


def _anywhere(rule: type[Rule]) -> Callable[..., Any]:
    """A function of the rule, to have a place to name where the mistake is in none."""
    for name in ("update", *(f"update_{variant}" for variant in rule.variants), "coefficients"):
        found = inspect.getattr_static(rule, name, None)
        function = found.__func__ if isinstance(found, staticmethod) else found
        if inspect.isfunction(function) and function is not Rule.coefficients:
            return function
    raise RuleError(
        f"{rule.__name__} has no update. Write a static method update(w, g, *state, *coefficients) that returns "
        "the new weight and state."
    )


def _line_of_field(rule: type[Rule], name: str) -> str:
    """Where a field of the class stands; where the class does, if its text cannot be found."""
    try:
        lines, first = inspect.getsourcelines(rule)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError):
        return _place(_anywhere(rule))
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
            start = _anywhere(rule)
            return _place(start, first - start.__code__.co_firstlineno + node.lineno - 1)
    return _place(_anywhere(rule))


@functools.cache
def check(rule: type[Rule]) -> None:
    """Raise `RuleError` naming the file, the line and the remedy, if this is no rule that can be compiled."""
    if not (isinstance(rule, type) and issubclass(rule, Rule)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise RuleError(
            f"{rule!r} is not a rule. A rule is a class: @dataclass(frozen=True, kw_only=True) class Mine(Rule), "
            "with fields, state, coefficients and update. See CONTRIBUTING.md."
        )
    _check_fields(rule)
    _check_state(rule)
    for variant in rule.variants:
        _check_update(rule, variant)
    default, by_options = rule(), options_of_variants(rule)
    by_shape = {dimensions: default.variant_of(dimensions) for dimensions in range(5)}
    for dimensions, variant in by_shape.items():
        if variant not in rule.variants:
            _Mistake(rule, rule.variant_of)(
                f"variant_of({dimensions}) is {variant!r}, which is none of {', '.join(map(repr, rule.variants))}."
            )
    for variant, options in by_options.items():
        _check_coefficients(rule(**options), variant)
    for variant in set(by_shape.values()) - by_options.keys():
        _check_coefficients(default, variant)


# Fields


def _check_fields(rule: type[Rule]) -> None:
    name = rule.__name__
    own = {f.name: f for f in fields(rule)} if is_dataclass(rule) else {}
    for field_name, kind in inspect.get_annotations(rule).items():
        if field_name not in own and "ClassVar" not in str(kind):
            raise RuleError(
                f"{_line_of_field(rule, field_name)}: {name} is no dataclass, so {field_name} is no hyperparameter. "
                f"Put @dataclass(frozen=True, kw_only=True) above class {name}."
            )
    for f in own.values():
        if "domain" not in f.metadata:
            given = "" if f.default is MISSING else repr(f.default)
            wrapped = f"number({given or '0.1'}, low=0)"
            if isinstance(f.default, bool):
                wrapped = f"option({given})"
            elif isinstance(f.default, str):
                wrapped = f"choice({given}, ...)"
            raise RuleError(
                f"{_line_of_field(rule, f.name)}: {name}: {f.name} has no domain. Say which values it may have: "
                f"{f.name} = {wrapped}; number, option and choice are in schuss.rules."
            )
        if f.name in RESERVED_FIELDS:
            raise RuleError(
                f"{_line_of_field(rule, f.name)}: {name}: {f.name} is an argument of every optimizer. Give the "
                "hyperparameter another name."
            )
    try:
        rule()
    except ValueError as error:
        raise RuleError(f"{_place(_anywhere(rule))}: {name}: the defaults do not hold: {error}") from error
    taken: dict[str, str] = {}
    for together, parts in rule.tuples.items():
        for part in parts:
            if part not in own or part in taken or together in own:
                raise RuleError(
                    f"{_place(_anywhere(rule))}: {name}: tuples = {rule.tuples!r} does not fit. Each name on the right "
                    f"must be a field, once; those on the left must not be. Fields: {', '.join(own)}."
                )
            taken[part] = together


# State


def _check_precise(rule: type[Rule], every: Iterable[str], wrong: _Mistake) -> None:
    slots = [slot for slot in every if slot not in rule.scalars]
    if isinstance(rule.precise, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        wrong(f"precise = {rule.precise!r} is not a tuple of names. Write precise = ({rule.precise!r},).")
    for slot in rule.precise:
        if slot not in slots:
            wrong(f"precise has {slot!r}, which is no state. State: {', '.join(slots) or 'none'}.")


def _check_state(rule: type[Rule]) -> None:
    wrong = _Mistake(rule, _anywhere(rule))
    every: dict[str, None] = {}
    for variant, state in rule.variants.items():
        if isinstance(state, str) or not all(isinstance(slot, str) for slot in state):  # pyright: ignore
            wrong(f"state = {state!r} is not a tuple of names. Write state = ({str(state)!r},).")
        names = (*state, *rule.scalars)
        twice = [slot for slot in dict.fromkeys(names) if names.count(slot) > 1]
        if twice:
            wrong(f"{twice[0]!r} is named twice in the state {names}. Give each a letter of its own.")
        if _update_of(rule, variant) is None:
            wrong(f"the variant {variant!r} has no update. Write a static method update_{variant}.")
        every |= dict.fromkeys(names)
    for slot in every:
        called = rule.state_names.get(slot, slot)
        clash = slot in _RESERVED or slot.endswith(("_scale", "_rest", "_spare", "_"))
        if clash or not slot.isidentifier() or keyword.iskeyword(slot):
            wrong(f"state cannot be named {slot!r}, which means something else. Use another letter.")
        if called in ("step", "rest", AVERAGE) or called.endswith(("_scale", "_codes")):
            wrong(
                f"the checkpoint's name {called!r} of {slot!r} means something else there. Use another name."
            )
    for slot, kind in rule.shapes.items():
        if slot not in every or slot in rule.scalars or kind not in VECTORS.values():
            wrong(
                f"shapes = {rule.shapes!r} does not fit. It names state, each with one of "
                f"{', '.join(map(repr, VECTORS.values()))}."
            )
    unknown = [slot for slot in rule.state_names if slot not in every]
    called = [rule.state_names.get(slot, slot) for slot in every]
    if unknown:
        wrong(f"state_names has {unknown[0]!r}, which is no state. State: {', '.join(every) or 'none'}.")
    _check_precise(rule, every, wrong)
    if len(set(called)) < len(called):
        wrong(f"state_names = {rule.state_names!r} gives two the same name. Give each its own.")


# The update


def text_of(function: Callable[..., Any]) -> str:
    """The text of an update, as it stands in its file. Once found it stays with the function, wherever that travels."""
    if "text" not in vars(function):
        vars(function)["text"] = textwrap.dedent(inspect.getsource(function))
    return vars(function)["text"]


def _check_update(rule: type[Rule], variant: str) -> None:
    """Refuse an update that is not straight-line arithmetic on its own arguments."""
    function, slots = _update_of(rule, variant), rule.variants[variant]
    assert function is not None
    wrong = _Mistake(rule, function)
    static = inspect.getattr_static(rule, function.__name__)
    if not isinstance(static, staticmethod):
        wrong(f"{function.__name__} is no static method. Write @staticmethod above it, and no self.")
    taken = inspect.signature(function).parameters
    names, expected = tuple(taken), ("w", "g", *slots)
    plain = all(p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty for p in taken.values())
    if names[: len(expected)] != expected or not plain:
        wrong(
            f"{function.__name__} takes {', '.join(map(str, taken.values()))}. It must take {', '.join(expected)}, "
            "then the coefficients by name, without defaults."
        )
    for name in names[len(expected) :]:
        if name in _RESERVED:
            wrong(f"a coefficient cannot be named {name!r}, which means something else. Use another name.")
    try:
        definition = ast.parse(text_of(function)).body[0]
    except (OSError, TypeError) as error:
        wrong(
            "the text of update cannot be found, and it is compiled from its text. Put the rule in a file.",
            None,
            error,
        )
    assert isinstance(definition, ast.FunctionDef)
    body = definition.body
    if ast.get_docstring(definition) is not None:
        body = body[1:]
    _Sentence(wrong, rule, function.__name__, names, slots).check(body)


class _Sentence:
    """The statements of one update, read in order; `known` are the names that have a value so far."""

    def __init__(
        self, wrong: _Mistake, rule: type[Rule], name: str, arguments: Iterable[str], slots: tuple[str, ...]
    ) -> None:
        self.wrong, self.rule, self.name, self.slots = wrong, rule, name, slots
        self.known = set(arguments)
        self.varying = varying(slots, rule.shapes)  # along which axes each name differs

    def check(self, body: list[ast.stmt]) -> None:
        """Every statement, of which the last returns the new weight and state."""
        for statement in body[:-1]:
            self._assignment(statement)
        if not body or not isinstance(body[-1], ast.Return):
            if body:
                self._assignment(body[-1])
            self.wrong(
                f"{self.name} returns nothing. End it with return {self._result()}.",
                body[-1] if body else None,
            )
        self._returned(body[-1])

    def _result(self) -> str:
        return ", ".join(("w", *self.slots)) if self.slots else "(w,)"

    def _assignment(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target, value = statement.targets[0], statement.value
            together = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
            targets = target.elts if together else [target]  # type: ignore[attr-defined]
            values = value.elts if together else [value]  # type: ignore[attr-defined]
            if all(isinstance(one, ast.Name) for one in targets) and len(targets) == len(values):
                for one in values:
                    self._expression(one)
                axes = [axes_of(one, self.varying) for one in values]
                for one, differs in zip(cast(list[ast.Name], targets), axes, strict=True):
                    self.varying[one.id] = differs
                    if one.id in VOCABULARY:
                        self.wrong(
                            f"{one.id} is a word of the vocabulary. Give the number another name.", one
                        )
                    if one.id in _CALLED:
                        self.wrong(
                            f"{one.id} is a function of the kernels. Give the number another name.", one
                        )
                    self.known.add(one.id)
                return
        if isinstance(statement, ast.If):
            self.wrong(
                "update has an if. Write where(condition, yes, no), or a coefficient that is 0 or 1.",
                statement,
            )
        if isinstance(statement, ast.For | ast.While):
            self.wrong(
                "update has a loop. Write its steps out, or work them out once in coefficients.", statement
            )
        if isinstance(statement, ast.AugAssign):
            short = ast.unparse(statement)
            operator = short.split("=", 1)[0].split()[-1]
            plain = f"{ast.unparse(statement.target)} = {ast.unparse(statement.target)} {operator} ..."
            self.wrong(f"{short} would change a tensor in place. Write {plain}", statement)
        if isinstance(statement, ast.Return):
            self.wrong(
                "update returns before its end. Choose with where(condition, yes, no) instead.", statement
            )
        first = ast.unparse(statement).splitlines()[0]
        self.wrong(
            f"{first!r} is no plain assignment. An update is lines of name = arithmetic, then return.",
            statement,
        )

    def _returned(self, statement: ast.Return) -> None:
        value = statement.value
        count = 1 + len(self.slots)
        found = len(value.elts) if isinstance(value, ast.Tuple) else 1
        if not isinstance(value, ast.Tuple) or found != count:
            what = "nothing" if value is None else f"{ast.unparse(value)}"
            self.wrong(
                f"{self.name} returns {what}; a weight and {len(self.slots)} of state are {count}. Write return "
                f"{self._result()}.",
                statement,
            )
        for one in value.elts:
            self._expression(one)
        for slot, one in zip(self.slots, value.elts[1:], strict=True):
            kind = self.rule.shapes.get(slot)
            if kind is not None and not axes_of(one, self.varying) <= {kind}:
                self.wrong(
                    f"{slot} is one number for each {kind}, but what {self.name} returns for it differs within a "
                    f"{kind}. Take {kind}_mean(...) of it.",
                    statement,
                )
        names = [one.id if isinstance(one, ast.Name) else None for one in value.elts]
        expected = ["w", *self.slots]
        if None not in names and names != expected and sorted(cast(list[str], names)) == sorted(expected):
            self.wrong(
                f"{self.name} returns {', '.join(cast(list[str], names))}, but the state is {self.slots}: another "
                f"order. Write return {self._result()}.",
                statement,
            )

    def _expression(self, node: ast.expr) -> None:
        match node:
            case ast.Constant(value=bool() | str() | bytes() | None | complex()):
                self.wrong(f"{ast.unparse(node)} is no real number. Only numbers stand in an update.", node)
            case ast.Constant():
                pass
            case ast.Name(id=name):
                self._name(node, name)
            case ast.BinOp(left=left, op=op, right=right):
                if not isinstance(op, _OPERATORS):
                    self.wrong(f"{ast.unparse(node)!r}: {self._operator(op)}", node)
                self._expression(left)
                self._expression(right)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
                self._expression(operand)
            case ast.Compare(left=left, ops=[op], comparators=[right]) if isinstance(op, _COMPARISONS):
                self._expression(left)
                self._expression(right)
            case ast.Call():
                self._call(node)
            case ast.IfExp():
                self.wrong(f"{ast.unparse(node)!r} has an if. Write where(condition, yes, no).", node)
            case ast.BoolOp() | ast.Compare() | ast.UnaryOp():
                self.wrong(
                    f"{ast.unparse(node)!r} needs one truth value. Write (a < b) & (b < c), (a < b) | (b < c), or turn "
                    "the comparison round.",
                    node,
                )
            case ast.Attribute():
                self._foreign(node, ast.unparse(node))
            case _:
                self.wrong(
                    f"{ast.unparse(node)!r} is no arithmetic on numbers. An update works on one weight.", node
                )

    @staticmethod
    def _operator(op: ast.operator) -> str:
        if isinstance(op, ast.Pow):
            return "** is not in the vocabulary. Write x * x, sqrt(x), or exp(p * log(x))."
        return "that operator is not in the vocabulary, which has + - * /, comparisons, & and |."

    def _name(self, node: ast.expr, name: str) -> None:
        if name in self.known:
            return
        if name in VOCABULARY:
            self.wrong(f"{name} is a function. Write {name}(...).", node)
        if name in {f.name for f in fields(self.rule)}:
            self.wrong(
                f"{name} is a hyperparameter, which update does not see. Return it from coefficients, and take it as "
                "an argument of update.",
                node,
            )
        self._foreign(node, name)

    def _foreign(self, node: ast.expr, name: str) -> NoReturn:
        last = name.rsplit(".", 1)[-1]
        near = difflib.get_close_matches(last, [*VOCABULARY, *self.known], 1, 0.75)
        hint = f" Did you mean {near[0]}?" if near else ""
        self.wrong(
            f"{name} is not known in an update.{hint} It may use its own arguments, what it has assigned, and "
            f"{', '.join(VOCABULARY)}. A constant belongs in coefficients.",
            node,
        )

    def _call(self, node: ast.Call) -> None:
        if not isinstance(node.func, ast.Name) or node.func.id not in VOCABULARY:
            self._foreign(node, ast.unparse(node.func))
        word, count = node.func.id, _ARGUMENTS.get(node.func.id, 1)
        if node.keywords or len(node.args) != count or any(isinstance(one, ast.Starred) for one in node.args):
            arguments = ", ".join("abc"[:count])
            self.wrong(f"{ast.unparse(node)!r} does not fit: {word} takes {word}({arguments}).", node)
        for one in node.args:
            self._expression(one)
        axes = axes_of(node.args[0], self.varying)
        if word in VECTORS and axes and axes <= {VECTORS[word]}:
            self.wrong(
                f"{ast.unparse(node)!r} is of {ast.unparse(node.args[0])}, which is one number for each "
                f"{VECTORS[word]} already.",
                node,
            )
        if word in WHOLE_TENSOR and not axes:
            self.wrong(
                f"{ast.unparse(node)!r} is of {ast.unparse(node.args[0])}, which is one number for the whole tensor. "
                f"Give {word} what differs from element to element, as w or g.",
                node,
            )


# Coefficients


def _check_coefficients(rule: Rule, variant: str) -> None:
    """Refuse coefficients that an update does not get, or that are no numbers."""
    wrong = _Mistake(type(rule), type(rule).coefficients)
    if type(rule).coefficients is Rule.coefficients:
        _Mistake(type(rule), _anywhere(type(rule)))(
            "there is no coefficients. Write coefficients(self, step), which returns a dict of the numbers that update "
            "takes after its state."
        )
    function = _update_of(type(rule), variant)
    assert function is not None
    slots = rule.variants[variant]
    needed = tuple(inspect.signature(function).parameters)[2 + len(slots) :]
    if any(word in function.__code__.co_names for word in MATRIX):
        try:
            rule.iterations  # noqa: B018 (whether there are any)
        except NotImplementedError as error:
            _Mistake(type(rule), function)(
                "orthogonal needs polynomials. Write a property iterations that returns (a, b, c) of each iteration, "
                "as ((1.5, -0.5, 0.0),) * 10.",
                None,
                error,
            )
    first = rule.initial()
    shaped = {slot for k in range(5) for slot in rule.slots_of(k)}
    unknown = [name for name in first if name not in (*slots, *shaped, *rule.scalars)]
    if unknown:
        wrong(f"initial() names {unknown[0]!r}, which is no state. State: {', '.join(slots) or 'none'}.")
    scalars = {name: first.get(name, 0.0) for name in rule.scalars}
    for step in (1, 2, 3):
        try:
            found: Any = rule.coefficients(step, **scalars)
        except Exception as error:
            wrong(
                f"coefficients(step={step}) fails: {type(error).__name__}: {error}. It must return the numbers of any "
                f"step 1, 2, 3, ..., here of {rule!r}.",
                None,
                error,
            )
        if not isinstance(found, dict):
            wrong(f"coefficients returns {type(found).__name__}. Return a dict of numbers by name.")
        numbers = cast(dict[str, Any], found)
        for name in (*needed, *rule.scalars):
            if name not in numbers:
                near = difflib.get_close_matches(name, list(numbers), 1, 0.6)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                wrong(
                    f"coefficients returns no {name!r}, which {function.__name__} takes.{hint} It returns "
                    f"{', '.join(numbers)}."
                )
            value = numbers[name]
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                wrong(f"coefficients(step={step}) gives {name}={value!r}, which is not a finite number.")
        scalars = {name: numbers[name] for name in rule.scalars}


# Variants


def _other_values(f: Any) -> Iterator[Any]:
    """Values of a hyperparameter other than its default, of which one may choose another variant."""
    domain = f.metadata["domain"]
    if domain.kind is bool:
        yield not f.default
    elif domain.choices:
        yield from (one for one in domain.choices if one != f.default)
    else:
        yield from (x for x in (0.9, 0.0, 0.5, 1.0) if x != f.default and domain.holds(x))


@functools.cache
def options_of_variants(rule: type[Rule]) -> dict[str, dict[str, Any]]:
    """The hyperparameters that choose each variant of a rule, found by trying them; as few as will do.

    A variant that none of a few changes leads to is left out.

    >>> from schuss.rules import SGD
    >>> options_of_variants(SGD)
    {'': {}, 'momentum': {'momentum': 0.9}}
    """
    found: dict[str, dict[str, Any]] = {}
    if len(rule.variants) == 1:
        return {next(iter(rule.variants)): {}}
    changes = [(f.name, value) for f in fields(rule) for value in _other_values(f)]
    for count in range(3):
        for chosen in combinations(changes, count):
            options = dict(chosen)
            if len(options) < count:
                continue
            try:
                variant = rule(**options).variant
            except ValueError:
                continue  # options that do not go together
            found.setdefault(variant, options)
            if len(found) == len(rule.variants):
                break
    return {name: found[name] for name in rule.variants if name in found}
