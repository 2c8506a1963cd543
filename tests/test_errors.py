"""The one voice for refusals: a slip is named, a number is a number, and nothing else is taken for one."""

import numpy as np
import pytest
import torch

from schuss.errors import closest, real, unknown, whole


def test_an_unknown_word_names_the_one_that_was_meant():
    assert str(unknown("task", "digtis", ["text", "digits"])).endswith("Did you mean digits?")
    assert "Did you mean" not in str(unknown("task", "zzz", ["text", "digits"]))


def test_capitals_do_not_matter_to_what_was_meant():
    assert closest("SGD", ["sgd", "adam"]) == "sgd"


@pytest.mark.parametrize("value", [1.5, "3", None, True, -1, [3]])
def test_what_is_no_whole_number_is_refused(value):
    with pytest.raises(ValueError, match="is not an integer ≥ 0"):
        whole("n", value)


@pytest.mark.parametrize("value", [3, np.int64(3), torch.tensor(3)])
def test_whole_numbers_of_every_library_are_taken(value):
    assert whole("n", value) == 3


@pytest.mark.parametrize("value", ["0.1", None, True, float("nan"), [0.1], torch.ones(2), np.ones(2), 1j])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match=r"x=.* is not a number"):
        real("x", value, "a number")


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), torch.tensor(0.5)])
def test_numbers_of_every_library_are_taken(value):
    assert real("x", value, "a number") == 0.5
