"""What may stand in a checkpoint: one table of checks for both APIs, applied before anything is loaded.

| entry                     | kind      | what is allowed                                                              |
|---------------------------|-----------|------------------------------------------------------------------------------|
| `step`                    | a count   | a whole number ≥ 0                                                           |
| the rule's scalars        | a number  | finite, within the rule's `bounds`                                           |
| the rule's slots          | an array  | of the weight's shape, in a dtype of state, within `bounds`, no NaN          |
| the weight's average      | an array  | the same, in float32 or more                                                 |
| the compensation term     | an array  | the same, in 16 bits                                                         |
| the scales of int8 codes  | an array  | float32, one for each block, ≥ 0, no NaN                                     |

An infinity is no damage: a second moment that overflowed was saved so, and the step after it can be finite. A NaN is
for good, however it came to be there. It is refused as something missing is, with the same way out:
`strict=False`, with which that weight starts afresh.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from schuss.compile.formula import AVERAGE
from schuss.compile.matrices import slot_shape
from schuss.compile.storage import LEVEL_MOST, PLAIN, STORAGES
from schuss.errors import refusal
from schuss.rules import Rule

REST = "rest"
# A float64 counts on by one up to here.
_MOST_STEPS = 2**53
_MOST_BLOCK = 2**16
_COMPLEX = ("complex64", "complex128")
_ANY = (-math.inf, math.inf)
WAY_OUT = "With strict=False that weight starts afresh."


def scale_of(name: str) -> str:
    """The name under which a slot's scales stand."""
    return f"{name}_scale"


class Arrays(ABC):
    """How an API reads what a checkpoint holds."""

    @abstractmethod
    def number(self, value: Any) -> int | float | None:
        """The one real number that `value` is; None if it is anything else."""

    def count(self, value: Any) -> int | float | None:
        """The same for a count of steps."""
        return self.number(value)

    @abstractmethod
    def shape(self, value: Any) -> tuple[int, ...] | None:
        """An array's shape; None if it is none."""

    @abstractmethod
    def dtype(self, value: Any) -> str:
        """The name of an array's dtype: "bfloat16" also where only its bits are there."""

    @abstractmethod
    def real(self, value: Any) -> Any:
        """An array's real numbers that are here, two for each complex one; None if there are none."""

    def least(self, value: Any) -> float:
        """The smallest number of an array; NaN if one is NaN."""
        return 0.0 if (own := self.real(value)) is None else float(own.min())

    def most(self, value: Any) -> float:
        """The largest one."""
        return 0.0 if (own := self.real(value)) is None else float(own.max())


@dataclass(frozen=True)
class Part:
    """What one entry of a weight's state is, and the numbers that may stand in it."""

    kind: str
    low: float = -math.inf
    high: float = math.inf
    of: str = ""  # of scales: the slot whose codes they scale
    shape: str = ""  # of a slot with a number for each "row" or "column"

    @property
    def domain(self) -> str:
        """The numbers that are allowed, in words."""
        if self.high < math.inf:
            return f"a number in [{self.low:g}, {self.high:g}]"
        return f"a finite number ≥ {self.low:g}" if self.low > -math.inf else "a finite number"


@dataclass(frozen=True)
class Problem:
    """What is wrong with an entry. What is `absent`, or NaN, can start afresh; anything else cannot be understood."""

    words: str
    absent: bool = False
    fatal: bool = True


@dataclass(frozen=True)
class Weight:
    """The weight whose state is checked: its key, shape and dtype, as far as they are known."""

    key: Any
    shape: tuple[int, ...] | None
    dtype: str | None

    @property
    def is_complex(self) -> bool | None:
        """Whether its numbers are complex; None if its dtype is not known."""
        return None if self.dtype is None else self.dtype.startswith("complex")


class Check:
    """The table, for one rule and one API.

    `names` are the checkpoint's names of what the rule remembers, `where` says where an entry of a weight stands, and
    `narrow` are the 16-bit dtypes that weights have. `parts` is all that may stand in one weight's state.
    """

    def __init__(
        self,
        rule: type[Rule],
        names: Mapping[str, str],
        counts_steps: bool,
        read: Arrays,
        where: Callable[[Any, str], str],
        narrow: Sequence[str],
    ) -> None:
        self.name, self._names, self._counts = rule.__name__, names, counts_steps
        self._read, self._where = read, where
        self._rests = {one: _rest_of(one) for one in narrow}
        self._scalars = [names.get(scalar, scalar) for scalar in rule.scalars]
        self.parts = {"step": Part("count")}
        for name in rule.scalars:
            self.parts[names.get(name, name)] = Part("number", *rule.bounds.get(name, _ANY))
        for slot in [slot for variant in rule.variants.values() for slot in variant]:
            name = names.get(slot, slot)
            self.parts[name] = Part("slot", *rule.bounds.get(slot, _ANY), shape=rule.shapes.get(slot, ""))
            self.parts[scale_of(name)] = Part("scale", low=0, of=name)
        self.parts |= {AVERAGE: Part("average"), REST: Part("rest")}

    def problems(self, weight: Weight, entry: Mapping[str, Any], rule: Rule, block: int) -> Iterator[Problem]:
        """What is wrong with one weight's state; nothing if it can be loaded as it is."""
        needed = [*(["step"] if self._counts else []), *self._scalars]
        if weight.shape is None:
            weight = replace(weight, shape=self.shape_of(entry))
        if not self._counts or self._read.count(entry.get("step")) != 0:
            slots = rule.slots if weight.shape is None else rule.slots_of(len(weight.shape))
            needed += [self._names.get(slot, slot) for slot in slots]
        for name in needed:
            if name not in entry:
                yield Problem(
                    f"The checkpoint has no {self._where(weight.key, name)}. Build the optimizer with the options of "
                    f"the one that was saved. {WAY_OUT}",
                    absent=True,
                    fatal=False,
                )
        for name, value in entry.items():
            one, where = self.parts[name], f"The checkpoint's {self._where(weight.key, name)}"
            if one.kind == "count":
                number = self._read.count(value)
                if number is None or not is_count(number):
                    yield Problem(_said(where, value, "a count: a whole number ≥ 0"))
            elif one.kind == "number":
                yield from self._number(where, one, value)
            elif one.kind == "scale":
                if one.of not in entry or not self._is_int8(entry[one.of]):
                    yield Problem(
                        f"{where} are scales of int8 codes, but {self._where(weight.key, one.of)} is not int8. "
                        "Was it put together from two checkpoints?"
                    )
            else:
                shape = self._read.shape(value)
                if weight.dtype is None and one.kind != "rest" and shape is not None:
                    weight = replace(weight, dtype=self._read.dtype(value))
                yield from self._array(where, one, weight, value)
                if one.kind == "slot" and self._is_int8(value):
                    yield from self._scales(where, weight, name, entry, block)

    def shape_of(self, entry: Mapping[str, Any]) -> tuple[int, ...] | None:
        """The shape of an array that is not known yet: of its state, the first that has a number for each element.

        If there is none, the number of axes is known, and the sizes that rows and columns tell.
        """
        found: tuple[int, ...] | None = None
        for name, value in entry.items():
            shape = self._read.shape(value) if self.parts[name].kind in ("slot", "average", "rest") else None
            if shape is None:
                continue
            kind = self.parts[name].shape
            if not kind:
                return shape
            if len(shape) < 2 or found is None or len(found) != len(shape):
                found = shape
            elif kind == "row":
                found = (*shape[:-1], *found[-1:])
            else:
                found = (*found[:-1], shape[-1])
        return found

    def _is_int8(self, value: Any) -> bool:
        return self._read.shape(value) is not None and self._read.dtype(value) == "int8"

    def _number(self, where: str, one: Part, value: Any) -> Iterator[Problem]:
        number = self._read.number(value)
        if number is None or not (math.isfinite(number) and one.low <= number <= one.high):
            nan = number is not None and math.isnan(number)
            words = _said(where, value, one.domain)
            yield Problem(f"{words} {WAY_OUT}" if nan else words, fatal=not nan)

    def _array(self, where: str, one: Part, weight: Weight, value: Any) -> Iterator[Problem]:
        shape = self._read.shape(value)
        if shape is None:
            yield Problem(_said(where, value, "an array"))
            return
        dtype, allowed = self._read.dtype(value), self._dtypes(one.kind, weight)
        needed = None if weight.shape is None else slot_shape(weight.shape, one.shape)
        if shape != needed or (one.shape and len(shape) < 2):
            more = f"; it needs {needed}" if one.shape else ""
            yield Problem(
                f"{where} has shape {shape}, the weight {weight.shape}{more}. Is the model the one that was saved?"
            )
        elif dtype not in allowed:
            yield Problem(f"{where}={dtype!r} is not of a dtype that state has: {', '.join(allowed)}.")
        elif dtype != "int16":  # which are bits: each of them stands for a number
            least, low, high = self._read.least(value), one.low, one.high
            if dtype == "int8":  # a code times its scale: of the bounds the sign is left
                low, high = 0 if low >= 0 else -LEVEL_MOST, math.inf
            if math.isnan(least):
                yield Problem(f"{where} has a NaN, which would stay in the state. {WAY_OUT}", fatal=False)
            elif least < low:
                yield Problem(f"{where} has {least:g}, but it is never less than {low:g}. Was it damaged?")
            elif high < math.inf and (most := self._read.most(value)) > high:
                yield Problem(f"{where} has {most:g}, but it is never more than {high:g}. Was it damaged?")

    def _dtypes(self, kind: str, weight: Weight) -> tuple[str, ...]:
        """In which dtypes an array of this kind may be."""
        if kind == "rest":
            one = self._rests.get(weight.dtype or "")
            return (one,) if one else tuple(dict.fromkeys(self._rests.values()))
        real = ("float64", "float32") if kind == "average" else (*PLAIN, "int8")
        if weight.is_complex is not None:
            return _COMPLEX if weight.is_complex else real
        return (*real, *_COMPLEX)

    def _scales(
        self, where: str, weight: Weight, part: str, entry: Mapping[str, Any], block: int
    ) -> Iterator[Problem]:
        scales, there = entry.get(scale_of(part)), self._where(weight.key, scale_of(part))
        numbers = math.prod(weight.shape or ())
        blocks = -(-numbers // block)
        shape = None if scales is None else self._read.shape(scales)
        if shape != (blocks,) or self._read.dtype(scales) != "float32":
            found = "are none" if shape is None else f"is {self._read.dtype(scales)} of shape {shape}"
            words = (
                f"{where} has {numbers} int8 codes in blocks of {block}, which need {blocks} scales (float32) in "
                f"{there}; there {found}. Was it cut short?"
            )
            lost = scales is None
            yield Problem(f"{words} {WAY_OUT}" if lost else words, absent=lost, fatal=not lost)
            return
        least = self._read.least(scales)
        if math.isnan(least):
            yield Problem(f"The checkpoint's {there} has a NaN. {WAY_OUT}", fatal=False)
        elif least < 0:
            yield Problem(f"The checkpoint's {there} has {least:g}, but a scale is never less than 0.")


def _rest_of(dtype: str) -> str:
    """The dtype of the compensation term of weights of this dtype."""
    rest = STORAGES[f"{dtype} compensated"].beside
    assert rest is not None
    return rest.dtype


def is_count(number: float) -> bool:
    """Whether a number is a count of steps."""
    return math.isfinite(number) and number == int(number) and 0 <= number < _MOST_STEPS


def _said(where: str, value: Any, allowed: str) -> str:
    """`refusal`'s words, with a long value cut short."""
    shown = value.tolist() if hasattr(value, "tolist") else value
    short = repr(shown)
    return f"{where}={short if len(short) < 80 else short[:77] + '...'} is not {allowed}."


def check_count(name: str, number: int | float | None, value: Any) -> int:
    """A count of a checkpoint, if it is one."""
    if number is None or not is_count(number):
        raise ValueError(_said(name, value, "a count: a whole number ≥ 0"))
    return int(number)


def check_block(name: str, number: int | float | None, value: Any) -> int:
    """How many int8 codes one scale covers in a checkpoint. Another size gives other numbers, so none is guessed."""
    size = check_count(name, number, value)
    if not 0 < size <= _MOST_BLOCK or size & (size - 1):
        raise refusal(
            name, value, f"a number of int8 codes that share a scale: a power of 2, at most {_MOST_BLOCK}"
        )
    return size


def strange(check: Check, key: Any, entry: Mapping[Any, Any]) -> None:
    """Refuse state that this rule does not keep."""
    unknown = sorted(repr(part) for part in entry if part not in check.parts)
    if unknown:
        slots = sorted(repr(name) for name, part in check.parts.items() if part.kind == "slot")
        raise ValueError(
            f"The checkpoint's state of weight {key} has {', '.join(unknown)}; {check.name} stores "
            f"{', '.join(slots) or 'nothing'}. Is it another optimizer's?"
        )


def settle(
    problems: Iterable[Problem], strict: bool, absent: Callable[[str], ValueError] = ValueError
) -> list[str]:
    """Raise what cannot be loaded (`absent` of what is not there); return the words for what starts afresh instead."""
    lost: list[str] = []
    for problem in problems:
        if problem.fatal or strict:
            raise (absent if problem.absent else ValueError)(problem.words)
        lost.append(problem.words.removesuffix(WAY_OUT).strip())
    return lost


def warn_of(lost: Sequence[str]) -> None:
    """Say once what starts afresh."""
    if lost:
        more = f" And {len(lost) - 3} more." if len(lost) > 3 else ""
        warnings.warn(
            f"With strict=False, what the checkpoint lacks starts afresh. {' '.join(lost[:3])}{more}",
            stacklevel=3,
        )


def counted(entries: Iterable[Iterable[str]]) -> dict[str, int]:
    """How many of these have each name: written into a checkpoint, so that what is lost on the way is missed."""
    return dict(sorted(Counter(name for names in entries for name in names).items()))


def lost_entries(record: str, recorded: Any, found: Mapping[Any, Collection[str]]) -> Iterator[Problem]:
    """What a checkpoint's record of its entries has, and the checkpoint has not."""
    if not isinstance(recorded, Mapping):
        raise refusal(f"The checkpoint's {record!r}", recorded, "how many weights have each entry of state")
    there = Counter(name for names in found.values() for name in names)
    for name, said in cast(Mapping[Any, Any], recorded).items():
        if not isinstance(said, int) or isinstance(said, bool) or not is_count(said):
            raise refusal(f"The checkpoint's {record!r} of {name!r}", said, "a count: a whole number ≥ 0")
        if there[name] < said:
            without = [repr(key) for key, names in found.items() if name not in names]
            shown = f"{', '.join(without[:5])}{', ...' if len(without) > 5 else ''}"
            yield Problem(
                f"The checkpoint has no {name!r} of weight {shown or 'any more'}: it had {said} of them, and has "
                f"{there[name]}. Was it cut short? {WAY_OUT}",
                absent=True,
                fatal=False,
            )
