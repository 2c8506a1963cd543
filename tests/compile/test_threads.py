"""Work shared among threads: every row once, whoever takes it, and no error lost."""

import threading

import pytest

from schuss.compile import threads

MUCH = 10 * threads.ELEMENTS_A_THREAD


@pytest.mark.parametrize("rows", [1, 2, 7, 100])
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_row_is_taken_once(rows, workers):
    taken, lock = [], threading.Lock()

    def kernel(table, matrix, first, last):
        with lock:
            taken.extend(range(first, last))

    threads.run(kernel, 0, 0, rows, MUCH, workers)
    assert sorted(taken) == list(range(rows))


def test_nothing_to_do():
    def kernel(table, matrix, first, last):
        assert first == last

    threads.run(kernel, 0, 0, 0, 0, 4)


@pytest.mark.parametrize(("elements", "workers"), [(threads.ELEMENTS_A_THREAD, 4), (MUCH, 1)])
def test_small_work_stays_on_the_calling_thread(elements, workers):
    where = []
    threads.run(lambda *_: where.append(threading.get_ident()), 0, 0, 50, elements, workers)
    assert where == [threading.get_ident()]


def test_an_error_in_any_thread_is_raised():
    def kernel(table, matrix, first, last):
        if first <= 33 < last:
            raise ArithmeticError("row 33")

    with pytest.raises(ArithmeticError, match="row 33"):
        threads.run(kernel, 0, 0, 50, MUCH, 3)
