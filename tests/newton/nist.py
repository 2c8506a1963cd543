"""NIST's Statistical Reference Datasets for nonlinear regression (StRD): all 27 sets.

Data, models, both starts and the certified parameters and residual sums of squares are NIST's (public domain,
https://www.itl.nist.gov/div898/strd/nls/nls_main.shtml). The measurements lie in nist.txt: the name of a set and
of a column on one line, its numbers on the next, a blank line between columns. A test holds them to the certified sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class Dataset:
    """Fit `model(b, x)` to y; NIST certifies `certified` parameters and the residual sum of squares `rss`."""

    name: str
    model: Callable[[Tensor, Tensor], Tensor]
    x: Tensor
    y: Tensor
    starts: tuple[tuple[float, ...], tuple[float, ...]]
    certified: tuple[float, ...]
    rss: float

    def residual(self, b: Tensor) -> Tensor:
        return self.y - self.model(b, self.x)

    def loss(self, b: Tensor) -> Tensor:
        return self.residual(b).square().sum()

    def solved(self, value: float) -> bool:
        """Whether a residual sum is the certified one to six digits (Lanczos1: 0 to the digits of its parameters)."""
        return value <= self.rss * (1 + 1e-6) + 1e-20


def t(text: str) -> Tensor:
    return torch.tensor([float(v) for v in text.split()], dtype=torch.float64)


def columns() -> dict[str, Tensor]:
    """The measured columns by set and column, such as "ENSO y"."""
    text = (Path(__file__).parent / "nist.txt").read_text(encoding="utf-8")
    named = (block.split("\n", 1) for block in text.split("\n\n"))
    return {name: t(values) for name, values in named}


DATA = columns()
GRID = torch.arange(1, 251, dtype=torch.float64)
NELSON_X = torch.tensor(
    [
        (weeks, celsius)
        for weeks in (1, 2, 4, 8, 16, 32, 48, 64)
        for celsius in (180, 225, 250, 275)
        for _ in range(4)
    ],
    dtype=torch.float64,
)
LANCZOS_X = 0.05 * torch.arange(24, dtype=torch.float64)
LANCZOS_STARTS = ((1.2, 0.3, 5.6, 5.5, 6.5, 7.6), (0.5, 0.7, 3.6, 4.2, 4.0, 6.3))


def measured(name: str) -> tuple[Tensor, Tensor]:
    return DATA[f"{name} x"], DATA[f"{name} y"]


def lanczos(rounding: str) -> Tensor:
    """Lanczos's exact sum of exponentials, rounded to 13 (data 1) or 6 (data 2) digits or 4 decimals (data 3)."""
    truth = (0.0951, 1.0, 0.8607, 3.0, 1.5576, 5.0)
    exact = three_exponentials(torch.tensor(truth, dtype=torch.float64), LANCZOS_X)
    return torch.tensor([float(format(v, rounding)) for v in exact.tolist()], dtype=torch.float64)


def three_exponentials(b: Tensor, x: Tensor) -> Tensor:
    return b[0] * torch.exp(-b[1] * x) + b[2] * torch.exp(-b[3] * x) + b[4] * torch.exp(-b[5] * x)


def chwirut(b: Tensor, x: Tensor) -> Tensor:
    return torch.exp(-b[0] * x) / (b[1] + b[2] * x)


def two_peaks(b: Tensor, x: Tensor) -> Tensor:
    """A decaying background under two Gaussian peaks."""
    first = b[2] * torch.exp(-(((x - b[3]) / b[4]) ** 2))
    second = b[5] * torch.exp(-(((x - b[6]) / b[7]) ** 2))
    return b[0] * torch.exp(-b[1] * x) + first + second


def quadratics(b: Tensor, x: Tensor) -> Tensor:
    return (b[0] + b[1] * x + b[2] * x**2) / (1 + b[3] * x + b[4] * x**2)


def cubics(b: Tensor, x: Tensor) -> Tensor:
    above = b[0] + b[1] * x + b[2] * x**2 + b[3] * x**3
    return above / (1 + b[4] * x + b[5] * x**2 + b[6] * x**3)


def enso(b: Tensor, x: Tensor) -> Tensor:
    def wave(period: Tensor | float, cosine: Tensor, sine: Tensor) -> Tensor:
        return cosine * torch.cos(2 * math.pi * x / period) + sine * torch.sin(2 * math.pi * x / period)

    return b[0] + wave(12.0, b[1], b[2]) + wave(b[3], b[4], b[5]) + wave(b[6], b[7], b[8])


DATASETS = [
    Dataset(
        "Misra1a",
        lambda b, x: b[0] * (1 - torch.exp(-b[1] * x)),
        *measured("Misra1"),
        ((500, 1e-4), (250, 5e-4)),
        (2.3894212918e2, 5.5015643181e-4),
        1.2455138894e-1,
    ),
    Dataset(
        "Misra1b",
        lambda b, x: b[0] * (1 - (1 + b[1] * x / 2) ** -2),
        *measured("Misra1"),
        ((500, 1e-4), (300, 2e-4)),
        (3.3799746163e2, 3.9039091287e-4),
        7.5464681533e-2,
    ),
    Dataset(
        "Misra1c",
        lambda b, x: b[0] * (1 - (1 + 2 * b[1] * x) ** -0.5),
        *measured("Misra1"),
        ((500, 1e-4), (600, 2e-4)),
        (6.3642725809e2, 2.0813627256e-4),
        4.0966836971e-2,
    ),
    Dataset(
        "Misra1d",
        lambda b, x: b[0] * b[1] * x / (1 + b[1] * x),
        *measured("Misra1"),
        ((500, 1e-4), (450, 3e-4)),
        (4.3736970754e2, 3.0227324449e-4),
        5.6419295283e-2,
    ),
    Dataset(
        "Chwirut1",
        chwirut,
        *measured("Chwirut1"),
        ((0.1, 0.01, 0.02), (0.15, 0.008, 0.010)),
        (1.9027818370e-1, 6.1314004477e-3, 1.0530908399e-2),
        2.3844771393e3,
    ),
    Dataset(
        "Chwirut2",
        chwirut,
        *measured("Chwirut2"),
        ((0.1, 0.01, 0.02), (0.15, 0.008, 0.010)),
        (1.6657666537e-1, 5.1653291286e-3, 1.2150007096e-2),
        5.1304802941e2,
    ),
    Dataset(
        "Lanczos1",
        three_exponentials,
        LANCZOS_X,
        lanczos(".12e"),
        LANCZOS_STARTS,
        (9.5100000027e-2, 1.0000000001, 8.6070000013e-1, 3.0000000002, 1.5575999998, 5.0000000001),
        1.4307867721e-25,
    ),
    Dataset(
        "Lanczos2",
        three_exponentials,
        LANCZOS_X,
        lanczos(".5e"),
        LANCZOS_STARTS,
        (9.6251029939e-2, 1.0057332849, 8.6424689056e-1, 3.0078283915, 1.5529016879, 5.0028798100),
        2.2299428125e-11,
    ),
    Dataset(
        "Lanczos3",
        three_exponentials,
        LANCZOS_X,
        lanczos(".4f"),
        LANCZOS_STARTS,
        (8.6816414977e-2, 9.5498101505e-1, 8.4400777463e-1, 2.9515951832, 1.5825685901, 4.9863565084),
        1.6117193594e-8,
    ),
    Dataset(
        "Gauss1",
        two_peaks,
        GRID,
        DATA["Gauss1 y"],
        ((97, 0.009, 100, 65, 20, 70, 178, 16.5), (94, 0.0105, 99, 63, 25, 71, 180, 20)),
        (
            9.8778210871e1,
            1.0497276517e-2,
            1.0048990633e2,
            6.7481111276e1,
            2.3129773360e1,
            7.1994503004e1,
            1.7899805021e2,
            1.8389389025e1,
        ),
        1.3158222432e3,
    ),
    Dataset(
        "Gauss2",
        two_peaks,
        GRID,
        DATA["Gauss2 y"],
        ((96, 0.009, 103, 106, 18, 72, 151, 18), (98, 0.0105, 103, 105, 20, 73, 150, 20)),
        (
            9.9018328406e1,
            1.0994945399e-2,
            1.0188022528e2,
            1.0703095519e2,
            2.3578584029e1,
            7.2045589471e1,
            1.5327010194e2,
            1.9525972636e1,
        ),
        1.2475282092e3,
    ),
    Dataset(
        "Gauss3",
        two_peaks,
        GRID,
        DATA["Gauss3 y"],
        ((94.9, 0.009, 90.1, 113, 20, 73.8, 140, 20), (96, 0.0096, 80, 110, 25, 74, 139, 25)),
        (
            9.8940368970e1,
            1.0945879335e-2,
            1.0069553078e2,
            1.1163619459e2,
            2.3300500029e1,
            7.3705031418e1,
            1.4776164251e2,
            1.9668221230e1,
        ),
        1.2444846360e3,
    ),
    Dataset(
        "DanWood",
        lambda b, x: b[0] * x ** b[1],
        t("1.309 1.471 1.490 1.565 1.611 1.680"),
        t("2.138 3.421 3.597 4.340 4.882 5.660"),
        ((1, 5), (0.7, 4)),
        (7.6886226176e-1, 3.8604055871),
        4.3173084083e-3,
    ),
    Dataset(
        "MGH09",
        lambda b, x: b[0] * (x**2 + x * b[1]) / (x**2 + x * b[2] + b[3]),
        t("4 2 1 .5 .25 .167 .125 .1 .0833 .0714 .0625"),
        t(".1957 .1947 .1735 .1600 .0844 .0627 .0456 .0342 .0323 .0235 .0246"),
        ((25, 39, 41.5, 39), (0.25, 0.39, 0.415, 0.39)),
        (1.9280693458e-1, 1.9128232873e-1, 1.2305650693e-1, 1.3606233068e-1),
        3.0750560385e-4,
    ),
    Dataset(
        "MGH10",
        lambda b, x: b[0] * torch.exp(b[1] / (x + b[2])),
        50 + 5 * torch.arange(16, dtype=torch.float64),
        t("34780 28610 23650 19630 16370 13720 11540 9744 8261 7030 6005 5147 4427 3820 3307 2872"),
        ((2, 400000, 25000), (0.02, 4000, 250)),
        (5.6096364710e-3, 6.1813463463e3, 3.4522363462e2),
        8.7945855171e1,
    ),
    Dataset(
        "MGH17",
        lambda b, x: b[0] + b[1] * torch.exp(-x * b[3]) + b[2] * torch.exp(-x * b[4]),
        10 * torch.arange(33, dtype=torch.float64),
        DATA["MGH17 y"],
        ((50, 150, -100, 1, 2), (0.5, 1.5, -1, 0.01, 0.02)),
        (3.7541005211e-1, 1.9358469127, -1.4646871366, 1.2867534640e-2, 2.2122699662e-2),
        5.4648946975e-5,
    ),
    Dataset(
        "Thurber",
        cubics,
        *measured("Thurber"),
        ((1000, 1000, 400, 40, 0.7, 0.3, 0.03), (1300, 1500, 500, 75, 1, 0.4, 0.05)),
        (
            1.2881396800e3,
            1.4910792535e3,
            5.8323836877e2,
            7.5416644291e1,
            9.6629502864e-1,
            3.9797285797e-1,
            4.9727297349e-2,
        ),
        5.6427082397e3,
    ),
    Dataset(
        "BoxBOD",
        lambda b, x: b[0] * (1 - torch.exp(-b[1] * x)),
        t("1 2 3 5 7 10"),
        t("109 149 149 191 213 224"),
        ((1, 1), (100, 0.75)),
        (2.1380940889e2, 5.4723748542e-1),
        1.1680088766e3,
    ),
    Dataset(
        "Rat42",
        lambda b, x: b[0] / (1 + torch.exp(b[1] - b[2] * x)),
        t("9 14 21 28 42 57 63 70 79"),
        t("8.93 10.8 18.59 22.33 39.35 56.11 61.73 64.62 67.08"),
        ((100, 1, 0.1), (75, 2.5, 0.07)),
        (7.2462237576e1, 2.6180768402, 6.7359200066e-2),
        8.0565229338,
    ),
    Dataset(
        "Rat43",
        lambda b, x: b[0] / (1 + torch.exp(b[1] - b[2] * x)) ** (1 / b[3]),
        torch.arange(1, 16, dtype=torch.float64),
        t(
            "16.08 33.83 65.80 97.20 191.55 326.20 386.87 520.53 590.03 651.92 724.93 699.56 689.96 637.56 717.41"
        ),
        ((100, 10, 1, 1), (700, 5, 0.75, 1.3)),
        (6.9964151270e2, 5.2771253025, 7.5962938329e-1, 1.2792483859),
        8.7864049080e3,
    ),
    Dataset(
        "Eckerle4",
        lambda b, x: b[0] / b[1] * torch.exp(-0.5 * ((x - b[2]) / b[1]) ** 2),
        *measured("Eckerle4"),
        ((1, 10, 500), (1.5, 5, 450)),
        (1.5543827178, 4.0888321754, 4.5154121844e2),
        1.4635887487e-3,
    ),
    Dataset(
        "Roszman1",
        lambda b, x: b[0] - b[1] * x - torch.atan(b[2] / (x - b[3])) / math.pi,
        *measured("Roszman1"),
        ((0.1, -1e-5, 1000, -100), (0.2, -5e-6, 1200, -150)),
        (2.0196866396e-1, -6.1953516256e-6, 1.2044556708e3, -1.8134269537e2),
        4.9484847331e-4,
    ),
    Dataset(
        "ENSO",
        enso,
        GRID[:168],
        DATA["ENSO y"],
        ((11, 3, 0.5, 40, -0.7, -1.3, 25, -0.3, 1.4), (10, 3, 0.5, 44, -1.5, 0.5, 26, -0.1, 1.5)),
        (
            1.0510749193e1,
            3.0762128085,
            5.3280138227e-1,
            4.4311088700e1,
            -1.6231428586,
            5.2554493756e-1,
            2.6887614440e1,
            2.1232288488e-1,
            1.4966870418,
        ),
        7.8853978668e2,
    ),
    Dataset(
        "Kirby2",
        quadratics,
        *measured("Kirby2"),
        ((2, -0.1, 0.003, -0.001, 0.00001), (1.5, -0.15, 0.0025, -0.0015, 0.00002)),
        (1.6745063063, -1.3927397867e-1, 2.5961181191e-3, -1.7241811870e-3, 2.1664802578e-5),
        3.9050739624,
    ),
    Dataset(
        "Hahn1",
        cubics,
        *measured("Hahn1"),
        ((10, -1, 0.05, -1e-5, -0.05, 1e-3, -1e-6), (1, -0.1, 0.005, -1e-6, -0.005, 1e-4, -1e-7)),
        (
            1.0776351733,
            -1.2269296921e-1,
            4.0863750610e-3,
            -1.4262662514e-6,
            -5.7609940901e-3,
            2.4053735503e-4,
            -1.2314450199e-7,
        ),
        1.5324382854,
    ),
    Dataset(
        "Nelson",
        lambda b, x: b[0] - b[1] * x[:, 0] * torch.exp(-b[2] * x[:, 1]),
        NELSON_X,
        DATA["Nelson y"].log(),
        ((2, 0.0001, -0.01), (2.5, 5e-9, -0.05)),
        (2.5906836021, 5.6177717026e-9, -5.7701013174e-2),
        3.7976833176,
    ),
    Dataset(
        "Bennett5",
        lambda b, x: b[0] * (b[1] + x) ** (-1 / b[2]),
        *measured("Bennett5"),
        ((-2000, 50, 0.8), (-1500, 45, 0.85)),
        (-2.5235058043e3, 4.6736564644e1, 9.3218483193e-1),
        5.2404744073e-4,
    ),
]
