"""Random updates with whole-tensor words, as rules of their own text: what the tests of every path compare."""

import linecache

_COUNT = iter(range(10**9))

_TEXT = '''from dataclasses import dataclass
from schuss.rules import *
from schuss.rules.rule import *


@dataclass(frozen=True, kw_only=True)
class Mine(Rule):
    """Whatever comes."""

    lr: float = number(0.25, low=0)
    part: float = number(0.5, low=0)
    {state}

    @property
    def iterations(self):
        return ((1.5, -0.5, 0.0),) * 8

    def coefficients(self, step):
        return dict(lr=self.lr / step, part=self.part)

    @staticmethod
    def update({arguments}):
{body}
'''


def rule_of(body, slots=("m",), coefficients=("lr", "part")):
    """The rule whose `update` has this body, a line each."""
    name = f"<update {next(_COUNT)}>"
    text = _TEXT.format(
        state=f"state = {tuple(slots)!r}",
        arguments=", ".join(("w", "g", *slots, *coefficients)),
        body="\n".join(f"        {line}" for line in body),
    )
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    scope = {"__name__": "updates"}
    exec(compile(text, name, "exec"), scope)
    return scope["Mine"]


class _Writer:
    """Writes positive expressions, so that nothing cancels and no condition hangs on a rounding."""

    def __init__(self, random):
        self.random = random
        self.element, self.tensor = ["w", "g", "m"], ["lr", "part"]

    def one(self, depth):
        """Of one number for the tensor."""
        kind = self.random.randrange(5) if depth else 0
        if kind in (0, 1):
            return self.random.choice([*self.tensor, "0.75", "2"])
        if kind == 2:
            return self.binary(self.one(depth - 1), self.one(depth - 1))
        return f"{self.random.choice(['norm', 'mean', 'mean', 'total'])}({self.each(depth - 1)})"

    def each(self, depth):
        """What differs from element to element."""
        kind = self.random.randrange(8) if depth else 0
        if kind in (0, 1):
            return self.random.choice(self.element)
        if kind == 2:
            return self.binary(self.each(depth - 1), self.each(depth - 1))
        if kind in (3, 4):
            return self.binary(*self.random.sample([self.each(depth - 1), self.one(depth - 1)], 2))
        if kind == 5:
            return f"sqrt({self.each(depth - 1)})"
        if kind == 6:
            return f"where({self.condition(depth - 1)}, {self.each(depth - 1)}, {self.either(depth - 1)})"
        return (
            f"{self.random.choice(['maximum', 'minimum'])}({self.each(depth - 1)}, {self.either(depth - 1)})"
        )

    def either(self, depth):
        return self.random.choice([self.each, self.one])(depth)

    def condition(self, depth):
        found = f"{self.either(depth)} {self.random.choice('<>')} 1.13 * {self.each(depth)}"
        return found if self.random.random() < 0.7 else f"({found}) & ({self.one(depth)} > 0.61)"

    def binary(self, left, right):
        kind = self.random.randrange(3)
        return (f"({left} + {right})", f"{left} * {right} / (1 + {right})", f"{left} / (0.5 + {right})")[kind]

    def assignment(self):
        whole = self.random.random() < 0.4
        name = self.random.choice(["a", "b", "c", "w", "m", "g"] if not whole else ["p", "q", "a", "b", "lr"])
        value = (self.one if whole else self.each)(self.random.choice([1, 2, 3]))
        return name, value, whole

    def known(self, name, whole):
        for names in (self.element, self.tensor):
            while name in names:
                names.remove(name)
        (self.tensor if whole else self.element).append(name)

    def line(self):
        some = [self.assignment() for _ in range(self.random.choice([1, 1, 1, 2]))]
        some = list({name: one for one in some for name in (one[0],)}.values())
        for name, _, whole in some:
            self.known(name, whole)
        return f"{', '.join(one[0] for one in some)} = {', '.join(one[1] for one in some)}"


def body_of(random):
    """The lines of a random update of w, g, m, lr and part."""
    writer = _Writer(random)
    lines = [writer.line() for _ in range(random.randrange(1, 7))]
    for name in ("w", "m"):
        if name not in writer.element:
            writer.known(name, False)
            lines.append(f"{name} = {writer.random.choice([n for n in writer.element if n != name])}")
    weight = writer.random.choice(["w", writer.each(2)])
    state = writer.random.choice(["m", writer.each(2)])
    return [*lines, f"return {weight} / (1 + part), {state} / (1 + part)"]
