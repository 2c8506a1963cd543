"""Ctrl-C at any place of a step with whole-tensor words, in both APIs: all of it is done, or none."""

import ctypes
import signal
from functools import partial

import numpy as np
import pytest
import torch

import schuss.numpy
import schuss.torch
from schuss.compile import threads
from schuss.compile.launch import ROW
from schuss.rules import LAMB, AdamW

SMALL, LARGE = (5, 7), (3, 17 * ROW, 40)


@pytest.fixture
def matrix_rule(written_update):
    return written_update(
        ["m = 0.5 * m + g", "w = w - lr * norm(w) * orthogonal(m / norm(m))", "return w, m"]
    )


def by_torch(rule, sizes):
    weights = [torch.nn.Parameter(torch.linspace(1, 2, n).reshape(1, -1)) for n in sizes]
    optimizer = schuss.torch.optimizer(rule)(weights, lr=0.1)
    for w in weights:
        w.grad = torch.linspace(0.5, 1, w.numel()).reshape(w.shape)
    return optimizer.step, lambda: [*weights, *(x for w in weights for x in optimizer.state[w].values())]


def by_numpy(rule, sizes):
    weights = [np.linspace(1, 2, n, dtype=np.float32).reshape(1, -1) for n in sizes]
    gradients = [np.linspace(0.5, 1, n, dtype=np.float32).reshape(1, -1) for n in sizes]
    optimizer = schuss.numpy.optimizer(rule)(lr=0.1)
    return lambda: optimizer.update(weights, gradients), lambda: [*weights, *optimizer.state_dict().values()]


def copied(parts):
    return [part.detach().numpy().copy() if isinstance(part, torch.Tensor) else part.copy() for part in parts]


@pytest.mark.parametrize("api", [by_torch, by_numpy])
@pytest.mark.parametrize(
    ("rule", "sizes"), [(AdamW, LARGE), (LAMB, SMALL), (LAMB, LARGE), ("matrix", (6, 8))], ids=str
)
def test_an_interrupt_before_any_action(api, rule, sizes, monkeypatch, matrix_rule):
    interrupt = partial(getattr(ctypes.PyDLL(None), "raise"), int(signal.SIGINT))
    monkeypatch.setattr(threads, "ELEMENTS_A_THREAD", 2 * ROW)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    own, place, seen = threads.together, -1, 0
    rule = matrix_rule if rule == "matrix" else rule

    def together(actions):
        nonlocal seen
        more = []
        for action in actions:
            more += [interrupt] * (seen == place) + [action]
            seen += 1
        own(more)

    monkeypatch.setattr(threads, "together", together)
    found = []
    while place < seen:
        step, parts = api(rule, sizes)
        wanted, place = place + 1, -1
        step()
        before, place, seen = copied(parts()), wanted, 0
        try:
            step()
            assert place == seen  # one more than there are: nothing is interrupted
        except KeyboardInterrupt:
            pass
        found.append(copied(parts()))
    assert len(found) > 2
    for one in found:
        for a, b in zip(one, found[-1], strict=True):
            np.testing.assert_array_equal(a, b)
    assert not all(np.array_equal(a, b) for a, b in zip(before, found[-1], strict=True))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_is_held_back_on_the_main_thread_alone():
    """In another thread, where none arrives, and where Ctrl-C is ignored, actions are called as they are."""
    from threading import Thread

    done = []
    one = Thread(target=threads.together, args=([partial(lambda: done.append(1))],))
    one.start()
    one.join()
    own = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        threads.together([partial(lambda: done.append(signal.getsignal(signal.SIGINT)))])
    finally:
        signal.signal(signal.SIGINT, own)
    assert done == [1, signal.SIG_IGN]


def test_an_error_is_raised_and_the_handler_is_back():
    def fails():
        raise ArithmeticError("no")

    with pytest.raises(ArithmeticError, match="no"):
        threads.together([partial(fails)])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
