"""How a rule runs: the float64 reference, the CPU and GPU kernels, and the eager path."""

from __future__ import annotations

from schuss.compile import cpu, gpu
from schuss.compile.formula import formula
from schuss.compile.storage import PLAIN, STORAGES
from schuss.errors import refusal
from schuss.rules import TABLE, Rule

__all__ = ["source"]


def source(
    rule: Rule | type[Rule] | str, device: str = "cpu", dtypes: str | tuple[str, ...] = "float32"
) -> str:
    """The generated kernel of a rule, as text. `rule`: a class, a rule with hyperparameters, or a built-in name.

    `device` is "cpu" (Numba) or "gpu" (Triton).

    `dtypes` is one storage format for all, or that of the weight, the gradient and each slot in turn: "float64",
    "float32", "bfloat16", "float16", or another name in `schuss.compile.storage`, such as "bfloat16 stochastic".

    >>> from schuss.rules import Lion
    >>> print(source(Lion, "cpu").split("@cfunc")[0].split("@njit")[-1].strip())
    (error_model="numpy", fastmath={"contract"})
    def update(w, g, m, keep, blend_m, blend_g, decay, gain, lr):
        w = keep * w - lr * sign(blend_m * m + blend_g * g)
        m = decay * m + gain * g
        return (w, m)
    """
    if device not in ("cpu", "gpu"):
        raise ValueError(f"device={device!r} has no generated kernel. Those that have: 'cpu', 'gpu'.")
    if isinstance(rule, str):
        if rule not in TABLE:
            raise refusal("rule", rule, f"one of {', '.join(TABLE)}")
        rule = TABLE[rule].rule
    chosen = formula(rule)
    each = (dtypes,) * (2 + len(chosen.slots)) if isinstance(dtypes, str) else tuple(dtypes)
    unknown = [dtype for dtype in each if dtype not in STORAGES]
    unknown += [dtype for dtype in each[:2] if dtype == "int8"] + [
        dtype for dtype in each[1:2] if dtype not in PLAIN
    ]
    if unknown or len(each) != 2 + len(chosen.slots):
        raise ValueError(
            f"dtypes={dtypes!r} does not fit. Give one of {', '.join(PLAIN)} for all, or one for each of "
            f"{', '.join(('w', 'g', *chosen.slots))}; also "
            f"{', '.join(one for one in STORAGES if one not in PLAIN)}, but for g (int8: for slots alone)."
        )
    if device == "gpu" and chosen.of_rows:
        raise ValueError(
            f"{chosen.title} takes means over rows and columns, for which there is no GPU kernel: it takes the eager "
            "path there. Try device='cpu'."
        )
    return (cpu if device == "cpu" else gpu).source(chosen, each)
