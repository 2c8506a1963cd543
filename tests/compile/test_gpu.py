"""The GPU kernels: compiled for two GPUs without one, and run in Triton's interpreter against the float64 reference."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from schuss.compile import device, gpu, source
from schuss.compile.formula import formula
from schuss.compile.reference import Reference
from schuss.compile.storage import compute_dtype
from schuss.rules import SGD, Adam

pytest.importorskip("triton", reason="Triton is not installed")

# Weight, gradient, every slot.
KEPT = {
    "float32": ("float32", "float32", "float32"),
    "float64": ("float64", "float64", "float64"),
    "bfloat16": ("bfloat16", "bfloat16", "float32"),
    "float16": ("float16", "float16", "float32"),
    "mixed": ("bfloat16", "float64", "float16"),
}
SIZES = (63, 0, 1, gpu.ROW, 1000, gpu.ROW + 1, 0)


def dtypes_of(rule, kept):
    w, g, slot = KEPT[kept]
    return (w, g, *[slot] * len(rule.slots))


# As text


def test_the_page_stands_in_its_kernel(variant):
    text = source(variant.rule, "gpu")
    compile(text, "kernel", "exec")
    page = text.split("def update(")[1].split("@triton.jit")[0]
    signature, *body = formula(variant.rule).source().split("\n", 1)
    assert signature.split("(", 1)[1].rstrip(":)") in page
    assert len(page.strip().splitlines()) >= len(body[0].splitlines()) - 1
    assert not re.findall(r"(?<![\w(.])\d+\.\d*", page.replace("real(", "(")), "a bare number"
    assert "/" not in page


def test_neither_hyperparameters_nor_shapes_are_in_the_kernel():
    assert source(Adam(lr=0.123, beta1=0.456), "gpu") == source(Adam(), "gpu")
    kept = ("float32", "float32")
    assert gpu.kernels(formula(SGD), kept) is gpu.kernels(formula(SGD(lr=0.5)), kept)


# Compiled for GPUs that are not here


@pytest.mark.parametrize(("kept", "capability"), [("float32", 80), ("float32", 90), ("bfloat16", 90)])
def test_machine_code(kept, capability, variant, gpus, tmp_path):
    """16 bytes a thread at a time, nothing spilled, nothing in float64, exact roots and quotients."""
    made = gpus.page_kernel(formula(variant.rule), dtypes_of(variant.rule, kept), capability)
    assert f".target sm_{capability}" in made.asm["ptx"]
    used = gpus.INSTRUCTION.findall(made.asm["ptx"])
    bytes_of = [getattr(torch, name).itemsize for name in dtypes_of(variant.rule, kept)]
    a_thread = gpu.BLOCK // (32 * gpu.OPTIONS["num_warps"])
    for way, moved in (("ld", bytes_of), ("st", [bytes_of[0], *bytes_of[2:]])):
        wide = [name for name in used if name.startswith(f"{way}.global.v4.b32")]
        assert len(wide) == sum(a_thread * itemsize // 16 for itemsize in moved)
        assert any(re.match(rf"{way}\.global\.b\d+", name) for name in used)
    assert not [n for n in used if re.search(r"f64|local|ftz|approx|^call", n)]
    assert all(n.startswith("cvt.rn.bf16") for n in used if re.match(r"cvt\..*bf16(x2)?\.f32", n))
    gpus.nothing_is_spilled(made, tmp_path)


@pytest.mark.parametrize("kept", ["float64", "float16", "mixed"])
def test_other_dtypes_compile(kept, sample, gpus):
    made = gpus.page_kernel(formula(sample.rule), dtypes_of(sample.rule, kept))
    used = gpus.INSTRUCTION.findall(made.asm["ptx"])
    assert any(n.endswith(".f64") for n in used) == (kept != "float16")


def test_amd_compiles(sample, gpus):
    made = gpus.page_kernel(formula(sample.rule), dtypes_of(sample.rule, "float32"), "gfx942")
    assert "global_load_dwordx4" in made.asm["amdgcn"]
    assert re.search(r"vgpr_spill_count: +0\b", made.asm["amdgcn"])


# In the interpreter: the same kernels, and the same host code, over the CPU's memory


def test_in_the_interpreter():
    """All tests of GPU kernels that are named so."""
    files = map(str, sorted(Path(__file__).parent.glob("test_gpu*.py")))
    found = subprocess.run(
        [sys.executable, "-m", "pytest", *files, "-p", "no:cacheprovider", "-k", "test_interpreted"],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout[-6000:] + found.stderr[-2000:]
    assert re.search(r"\d\d+ passed", found.stdout), found.stdout[-2000:]
    assert "failed" not in found.stdout


def between_nan(values, dtype, shift):
    """A tensor that lies in NaN, its memory `shift` elements past a multiple of 128 bytes."""
    buffer = torch.full((64 + shift + len(values) + 65,), torch.nan, dtype=getattr(torch, dtype))
    inner = buffer[64 + shift : 64 + shift + len(values)]
    inner.copy_(torch.from_numpy(np.asarray(values, dtype=np.float64)))
    return buffer, inner


def poison_is_whole(buffer, inner):
    margin = inner.storage_offset()
    return buffer[:margin].isnan().all() and buffer[margin + len(inner) :].isnan().all()


def launched(rules, tensors, dtypes, groups):
    """A launch over `tensors[column][k]`, all columns placed."""
    made = device.DeviceLaunch(
        formula(rules[0]),
        dtypes,
        [len(w) for w in tensors[0]],
        groups,
        range(len(groups)),
        torch.device("cpu"),
    )
    for column, each in enumerate(tensors):
        made.tensors.place(column, np.array([t.data_ptr() for t in each], dtype=np.int64))
    return made


@pytest.mark.parametrize("kept", ["float32", "float64", "bfloat16"])
def test_interpreted_against_the_reference(kept, variant, gpus):
    follow_the_reference(kept, variant, gpus)


@pytest.mark.parametrize("kept", ["float16", "mixed"])
def test_interpreted_other_dtypes(kept, sample, gpus):
    follow_the_reference(kept, sample, gpus)


def follow_the_reference(kept, variant, gpus):
    """Tensors of all sizes in two groups, one climbing: each where the reference takes it, and nothing else touched."""
    rules = [variant.rule, variant.rule.changed(lr=variant.rule.lr / 2)]
    scales, dtypes, steps = [1.0, -1.0], dtypes_of(variant.rule, kept), 3 if kept == "float64" else 1
    groups = [k % 2 for k in range(len(SIZES))]
    random = np.random.default_rng(0)
    starts = [random.choice([-1.0, 1.0], n) * random.uniform(1, 2, n) for n in SIZES]
    slots = [
        [np.full(n, rules[group].initial().get(name, 0.0)) for n, group in zip(SIZES, groups, strict=True)]
        for name in variant.rule.slots
    ]
    # Some start at 16 bytes, as memory that is allocated does; others do not.
    columns = [
        [between_nan(values, dtype, k % 3) for k, values in enumerate(column)]
        for dtype, column in zip(dtypes, [starts, [np.zeros(n) for n in SIZES], *slots], strict=True)
    ]
    inner = [[one for _, one in column] for column in columns]
    references = [
        Reference(rules[group], w.double().numpy()) for group, w in zip(groups, inner[0], strict=True)
    ]
    launch = launched(rules, inner, dtypes, groups)
    ledger = gpus.first_ledger([rules[group] for group in groups])
    for _ in range(steps):
        for g in inner[1]:
            g.copy_(torch.from_numpy(random.choice([-1.0, 1.0], len(g)) * random.uniform(0.5, 2, len(g))))
        before = [g.clone() for g in inner[1]]
        launch.step(ledger, rules, gpus.plain(*scales))
        assert all(map(torch.equal, before, inner[1]))
        for reference, group, g in zip(references, groups, before, strict=True):
            reference.step(scales[group] * g.double().numpy())
    assert (ledger[:, 0] == steps).all()
    assert all(poison_is_whole(*one) for column in columns for one in column)
    real = torch.finfo(getattr(torch, compute_dtype(dtypes))).eps
    for k, reference in enumerate(references):
        written = [inner[0][k], *(column[k] for column in inner[2:])]
        for found, meant in zip(written, [reference.w, *reference.state], strict=True):
            half = 0.501 * torch.finfo(found.dtype).eps
            # Denormals of float16 are coarser than that.
            least = torch.finfo(found.dtype).smallest_normal
            np.testing.assert_allclose(
                found.double().numpy(), meant, rtol=half, atol=64 * steps * real + least
            )


SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 5e-324, -1e-310, 1e-200, -1e200, 1.0, -2.0]


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_interpreted_nan_infinity_and_denormals(variant, gpus):
    if variant.rule.variant.startswith("centered"):
        pytest.skip("∞ − ∞ there depends on the products' rounding")
    start, g = (np.array(column) for column in zip(*itertools.product(SPECIAL, SPECIAL), strict=True))
    first = variant.rule.initial()
    arrays = [start, g, *(np.full_like(g, first.get(name, 0.0)) for name in variant.rule.slots)]
    tensors = [[torch.from_numpy(a.copy())] for a in arrays]
    launch = launched([variant.rule], tensors, ("float64",) * len(tensors), [0])
    ledger, reference = gpus.first_ledger([variant.rule]), Reference(variant.rule, start)
    for gradient in (g, np.full_like(g, 0.5)):
        tensors[1][0].copy_(torch.from_numpy(gradient))
        launch.step(ledger, [variant.rule], gpus.plain(1.0))
        reference.step(gradient)
        for column, meant in zip([0, *range(2, len(tensors))], [reference.w, *reference.state], strict=True):
            np.testing.assert_allclose(tensors[column][0].numpy(), meant, rtol=1e-12)


def test_interpreted_only_what_is_new_is_sent(monkeypatch, gpus):
    rule = Adam()
    tensors = [[torch.ones(n) for n in (5, 7)] for _ in range(4)]
    launch = launched([rule], tensors, ("float32",) * 4, [0, 0])
    sent, send = [], device._Sent.send
    monkeypatch.setattr(
        device._Sent, "send", lambda self, array: (sent.append(array.shape), send(self, array))
    )
    ledger, terms = gpus.first_ledger([rule, rule]), gpus.plain(1.0)
    numbers, table = (1, 1 + len(formula(rule).coefficients)), (2, 4 + 3)
    launch.step(ledger, [rule], terms)
    assert sorted(map(tuple, sent)) == sorted([numbers, table])
    sent.clear()
    for _ in range(3):
        launch.step(ledger, [rule.changed(lr=0.5)], terms)
    assert list(map(tuple, sent)) == [numbers] * 3
    sent.clear()
    tensors[1] = [torch.full_like(g, 2.0) for g in tensors[1]]
    launch.tensors.place(1, np.array([g.data_ptr() for g in tensors[1]]))
    launch.step(ledger, [rule], terms)
    assert len(sent) == 2


def test_a_line_of_pinned_memory_is_used_once():
    """A copy may be on its way when the next is asked for: no two share memory, across more lines than a block has."""
    sent = device._Sent((3,), torch.float32, torch.device("cpu"))
    lines = [sent.line()[1] for _ in range(3 * sent.count)]
    assert len({line.data_ptr() for line in lines}) == len(lines)


# Through the PyTorch front: `runs_on` is told that the CPU is a GPU


@pytest.fixture
def cpu_is_a_gpu(monkeypatch):
    monkeypatch.setattr(device, "runs_on", lambda place: True)


def _pairs(tensor):
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def weights_and_gradients(steps=3):
    """All layouts that a model has: plain, channels last, transposed, complex, narrow, empty."""
    torch.manual_seed(0)
    weights = [
        torch.randn(5, 3),
        torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.randn(4, 6).T,
        torch.randn(7, dtype=torch.complex64),
        torch.randn(33).bfloat16(),
        torch.zeros(0),
        torch.randn(9).double(),
        torch.randn(8)[::2],
    ]
    signs = [_pairs(w).sign() for w in weights]
    gradients = [[torch.empty_like(w) for w in weights] for _ in range(steps)]
    for step in gradients:
        for g, sign in zip(step, signs, strict=True):  # of one sign each: rounding then decides no sign
            _pairs(g).copy_(sign * (1 + torch.rand(sign.shape)))
    return weights, gradients


def _copy(tensor, place):
    """The same numbers, as they lie."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=place).copy_(tensor)


def trained(case, place, weights, gradients, **more):
    """The weights after a step with each of the gradients; the last weight joins at the second."""
    mine = [torch.nn.Parameter(_copy(w, place)) for w in weights]
    groups = [{"params": mine[::2]}, {"params": mine[1::2], "lr": 0.003, "maximize": case.name != "Rprop"}]
    optimizer = case.ours(groups, **more)
    for k, step in enumerate(gradients):
        for w, g in zip(mine, step, strict=True):
            w.grad = _copy(g, place)
        if k == 0:
            mine[0].grad = None
        optimizer.step()
    return optimizer, [w.detach().cpu() for w in mine]


def assert_like(found, expected):
    for a, b in zip(found, expected, strict=True):
        eps = torch.finfo(a.dtype).eps
        torch.testing.assert_close(a, b, rtol=4 * eps, atol=64 * torch.finfo(torch.float32).eps)


def test_interpreted_front(sample, monkeypatch):
    weights, gradients = weights_and_gradients()
    with monkeypatch.context() as without_kernels:
        without_kernels.setattr("schuss.torch.plan._has_kernel", lambda *_: False)
        _, expected = trained(sample, "cpu", weights, gradients)
    monkeypatch.setattr(device, "runs_on", lambda place: True)
    optimizer, found = trained(sample, "cpu", weights, gradients)
    assert_like(found, expected)
    plan = optimizer._plan
    assert len(plan.eager) == len(plan.others) == 1  # the one that does not fill its memory
    # float32 with complex64 apart, bfloat16, float64: a launch for each
    assert len(plan.plain) == 4
    assert all(isinstance(batch.launch, device.DeviceLaunch) for batch in plan.plain)


@pytest.mark.usefixtures("cpu_is_a_gpu")
def test_interpreted_front_finds_nothing_anew_when_gradients_move():
    w = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = torch_optimizer([w])
    plans = []
    for _ in range(3):
        w.grad = torch.ones(3, 2)
        optimizer.step()
        plans.append(optimizer._plan)
    assert plans[0] is plans[1] is plans[2]
    w.grad = torch.ones(2, 3).T
    optimizer.step()
    assert optimizer._plan is not plans[0]
    torch.testing.assert_close(w.detach(), torch.full((3, 2), 1 - 4 * 1e-3), rtol=1e-6, atol=0)


def torch_optimizer(params):
    import schuss.torch

    return schuss.torch.Adam(params)


def test_without_a_gpu_nothing_runs_there():
    assert not device.runs_on(torch.device("cpu"))
    assert not device.runs_on(torch.device("mps"))
    assert not device.runs_on(torch.device("xpu"))


def test_a_gpu_that_triton_cannot_serve_takes_the_eager_way(monkeypatch):
    for capability, runs in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        device._can_run.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index, answer=capability: answer)
        assert device.runs_on(torch.device("cuda", 0)) == runs
    device._can_run.cache_clear()
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(device.shutil, "which", lambda name: None)
    with pytest.warns(RuntimeWarning, match="Triton needs a C compiler"):
        assert not device.runs_on(torch.device("cuda", 0))
    device._can_run.cache_clear()


@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")
def test_touched_rows_move_alike_without_a_kernel(sample, monkeypatch):
    from schuss.torch import plan

    paths = []
    for has_kernel in (plan._has_kernel, lambda _: False):
        monkeypatch.setattr(plan, "_has_kernel", has_kernel)
        w = torch.nn.Parameter(torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(6, 2))
        optimizer = sample.ours([w])
        for rows in ([1, 4, 1], [], [4, 0, 5]):
            values = torch.linspace(1, 2, 2 * len(rows), dtype=torch.float64).reshape(-1, 2)
            w.grad = torch.sparse_coo_tensor([rows], values, (6, 2), check_invariants=True)
            optimizer.step()
        paths.append(w.detach())
    torch.testing.assert_close(paths[1], paths[0], rtol=1e-12, atol=1e-12)
    assert (paths[0][2:4] == torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(6, 2)[2:4]).all()


# On a GPU


@pytest.mark.gpu
def test_on_a_gpu(case):
    weights, gradients = weights_and_gradients()
    _, expected = trained(case, "cpu", weights, gradients)
    torch.cuda.synchronize()
    _, found = trained(case, "cuda", weights, gradients)
    assert_like(found, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("shift", range(4))
def test_tensors_that_start_anywhere(shift, sample):
    """A misaligned wide load is an error on a GPU: such tensors must take the narrow way."""
    random = torch.randn(3 * gpu.ROW + shift)
    moved = []
    for place in ("cpu", "cuda"):
        w = torch.nn.Parameter(random.to(place)[shift:])
        w.grad = random.to(place)[shift:]
        sample.ours([w]).step()
        moved.append(w.detach().cpu())
    assert_like([moved[1]], [moved[0]])


@pytest.mark.gpu
def test_a_step_is_one_launch_and_waits_for_nothing(plain):
    weights = [torch.nn.Parameter(torch.randn(n, device="cuda")) for n in (1, 1000, 100_000, 0, 63)]
    for w in weights:
        w.grad = torch.randn_like(w)
    optimizer = plain.ours(weights)
    optimizer.step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            for _ in range(3):
                optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    kernels = [e.name for e in profile.events() if e.name == "launch"]
    assert len(kernels) == 3
