"""What a step of first and of second order costs as the number of weights d grows: a table of docs/second-order.md.

The chained Rosenbrock function in d variables, in float64, on one thread: a gradient, a Hessian-vector product, and the
two halves of a dense Newton step, d such products and an eigendecomposition. What would take too long is extrapolated
from the largest measurement by its own power of d.

Run: python benchmarks/step_cost.py; it prints Markdown.
"""

from __future__ import annotations

import timeit

import torch

from schuss.newton.products import hvp, rows
from schuss.units import human_bytes, human_seconds

SIZES = (10, 32, 100, 316, 1000, *(10**k for k in range(4, 9)))
LARGEST = {"gradient": 10**6, "product": 10**6, "hessian": 1000, "solution": 1000}
POWER = {"gradient": 1, "product": 1, "hessian": 2, "solution": 3}


def slope(d, create_graph=True):
    x = torch.linspace(-1, 1, d, dtype=torch.float64).requires_grad_()
    loss = (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()
    return x, torch.autograd.grad(loss, x, create_graph=create_graph)[0]


def work(part, d):
    """What is timed."""
    if part == "gradient":
        return lambda: slope(d, create_graph=False)
    x, g = slope(d)
    v = torch.ones_like(x)
    if part == "product":
        return lambda: torch.autograd.grad(g, x, v, retain_graph=True)
    hessian = lambda: rows(lambda v: hvp([g], [x], v), d, x.detach())  # noqa: E731
    matrix = hessian() if part == "solution" else None
    return hessian if matrix is None else lambda: torch.linalg.eigh(matrix)


def seconds(part):
    """Seconds at each d, and whether they were measured."""
    found = []
    for k, d in enumerate(SIZES):
        if d <= LARGEST[part]:
            do = work(part, d)
            slow = timeit.timeit(do, number=1) > 0.1
            found.append((min(timeit.repeat(do, number=1, repeat=1 if slow else 5)), True))
        else:
            found.append((found[-1][0] * (d / SIZES[k - 1]) ** POWER[part], False))
    return found


def main():
    torch.set_num_threads(1)
    gradient, product, hessian, solution = (seconds(part) for part in LARGEST)
    print("| d | gradient | one HVP | dense Newton step | its memory, 24 d² bytes |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for d, first, second, one, other in zip(SIZES, gradient, product, hessian, solution, strict=True):
        dense = (one[0] + other[0], one[1] and other[1])
        times = (("" if measured else "≈ ") + human_seconds(x) for x, measured in (first, second, dense))
        print(f"| {f'{d:,}'.replace(',', ' ')} | {' | '.join(times)} | {human_bytes(24 * d * d)} |")


if __name__ == "__main__":
    main()
