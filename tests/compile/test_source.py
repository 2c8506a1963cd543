"""The kernel as text, and the formula that it is made from."""

import re

import pytest

from schuss.compile import cpu, source
from schuss.compile.formula import formula
from schuss.errors import RuleError
from schuss.rules import SGD, Adam
from schuss.rules.rule import VOCABULARY, Rule


def test_the_page_stands_in_its_kernel(variant):
    text = source(variant.rule)
    compile(text, "kernel", "exec")
    plain = re.sub(r"real\((-?[\d.]+)\)", r"\1", text)
    *lines, last = formula(variant.rule).source().splitlines()[2:]
    assert lines
    assert "return" in last
    for line in lines:
        if re.search(
            r"\b(mean|norm|total)\(\w+ ", line
        ):  # of more than a name: numbered where it is measured
            continue
        measured = re.sub(r"\b(mean|norm|total)\((\w+)\)", r"\1_\2", line.strip())
        measured = measured.replace("machine_epsilon(w)", "number_of_machine_epsilon")
        assert measured in plain


@pytest.mark.parametrize(
    ("dtypes", "real"), [("float32", "float32"), ("bfloat16", "float32"), ("float64", "float64")]
)
def test_numbers_of_the_page_take_the_kernels_type(dtypes, real, variant):
    """One bare 1.0 would turn a whole float32 expression into float64."""
    text = source(variant.rule, "cpu", dtypes)
    assert f"from numba import {real} as real" in text
    body = text.split("def update(")[1].split("return")[0]
    assert not re.findall(r"(?<![\w(.])\d+\.\d*(?!\))", body)


def test_no_hyperparameter_is_in_the_kernel():
    assert source(Adam(lr=0.123, beta1=0.456)) == source(Adam())


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: source(SGD, "tpu"), r"device='tpu' has no generated kernel\. Those that have: .*'cpu'"),
        (lambda: source(SGD, "cpu", "int8"), r"dtypes='int8' does not fit\. Give one of float64, float32"),
        (
            lambda: source(Adam, "cpu", ("float32",)),
            r"or one for each of w, g, m, v; also bfloat16 stochastic",
        ),
    ],
)
def test_what_has_no_kernel_is_refused(call, text):
    with pytest.raises(ValueError, match=text):
        call()


def test_a_page_that_takes_other_names_is_refused():
    class Odd(Rule):
        state = ("m",)

        @staticmethod
        def update(w, g, v):
            return w, v

    with pytest.raises(
        RuleError, match=r"update takes w, g, v\. It must take w, g, m, then the coefficients"
    ):
        formula(Odd)


def test_words_are_those_that_the_page_uses():
    assert formula(SGD).words() == ()
    assert set(formula(Adam(amsgrad=True)).words()) == {"maximum", "sqrt"}
    assert {"abs", "exp", "log", "where"} <= set(VOCABULARY)


def test_kernels_are_one_for_each_formula_and_dtypes():
    dtypes = ("float64", "float64")
    assert cpu.kernel(formula(SGD), dtypes) is cpu.kernel(formula(SGD(lr=0.5)), dtypes)
