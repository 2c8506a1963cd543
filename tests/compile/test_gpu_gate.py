"""Steps that the device decides on: compiled, and in the interpreter, with an ordinary launch as the measure."""

import math
import re

import numpy as np
import pytest
import torch

from schuss.compile import device
from schuss.compile.device import Ahead, Control
from schuss.compile.formula import formula
from schuss.compile.launch import Terms
from schuss.rules import SGD, AdamW, NAdam

HERE = torch.device("cpu")
FLOATS = ("float32", "float32", "float32", "float32")


# Compiled


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_machine_code_of_the_norm(dtype, capability, gpus, tmp_path):
    """16 bytes a thread at a time; of float64 no more than a handful of scalars, unless gradients are."""
    from schuss.compile import triton_gate

    signature = {"rows": "*i64", "tensors": "*i64", "sums": "*fp64", "start": "i32", "stride": "i32"}
    made = gpus.compiled(getattr(triton_gate, f"squares_{dtype}"), signature, capability)
    used = gpus.INSTRUCTION.findall(made.asm["ptx"])
    wide = [n for n in used if n in ("ld.global.v4.b32", "ld.global.v2.b64")]
    assert 16 * len(wide) == 32 * getattr(torch, dtype).itemsize
    assert (sum("f64" in n for n in used) < 10) == (dtype != "float64")
    assert not [n for n in used if re.search(r"local|ftz|approx|^call|atom", n)]
    gpus.nothing_is_spilled(made, tmp_path)


def test_machine_code_of_the_gate(gpus, tmp_path):
    from schuss.compile import triton_gate

    signature = {
        "sums": "*fp64",
        "count": "i32",
        "asked": "*fp64",
        "grad_scale": "*fp32",
        "found_inf": "*fp32",
        "gate": "*fp64",
    }
    for target in (90, "gfx942"):
        assert gpus.compiled(triton_gate.decide, signature, target)
    made = gpus.compiled(triton_gate.decide, signature)
    assert not re.search(r"\.local|approx|atom", made.asm["ptx"])
    gpus.nothing_is_spilled(made, tmp_path)


@pytest.mark.parametrize("kept", [FLOATS, ("bfloat16 stochastic", "bfloat16", "int8", "int8")], ids=str)
def test_a_gated_step_moves_memory_as_widely(kept, gpus, tmp_path):
    one = formula(AdamW())
    used = [
        gpus.INSTRUCTION.findall(gpus.page_kernel(one, kept, entry=entry).asm["ptx"])
        for entry in ("launch", "launch_gated")
    ]
    wide = [[n for n in each if re.search(r"global\.v\d", n)] for each in used]
    assert wide[0] == wide[1] != []
    assert {n for n in used[1] if "f64" in n} <= {
        "cvt.rn.f32.f64",
        "cvt.rzi.s64.f64",
        "setp.neu.f64",
        "setp.eq.f64",
    }
    gpus.nothing_is_spilled(gpus.page_kernel(one, kept, entry="launch_gated"), tmp_path)


# In the interpreter


class Training:
    """One set of weights that steps by a control, and what it would be by ordinary steps."""

    def __init__(self, gpus, rule=None, kept=FLOATS, lengths=(700, 0, 3), capturable=False):
        self.rule, self.gpus = rule or AdamW(lr=0.1), gpus
        self.arrays = gpus.Arrays([self.rule], kept, lengths)
        self.random = np.random.default_rng(0)
        self.arrays.fill("w", [self.random.uniform(1, 2, n) for n in lengths])
        self.meant = self.arrays.copy()
        members = range(len(lengths))
        self.launch = self.arrays.on_gpu([0] * len(lengths), members)
        self.ordinary = self.meant.on_gpu([0] * len(lengths), members)
        self.ledger, self.meant_ledger = (gpus.first_ledger([self.rule] * len(lengths)) for _ in range(2))
        self.control = Control(HERE, capturable)

    def gradients(self, size=1.0):
        return [
            torch.from_numpy(size * self.random.uniform(0.5, 1, n) * self.random.choice([-1, 1], n))
            for n in self.arrays.lengths
        ]

    def ahead(self, rule=None):
        rule = rule or self.rule
        return Ahead(rule, lambda taken: ([rule], [Terms()]))

    def step(self, g, ahead=None, **asked):
        self.arrays.fill("g", g)
        self.control.step([self.launch], self.ledger, ahead or self.ahead(), **asked)

    def mean(self, g, scale=1.0, rule=None):
        """What the same step is by hand."""
        self.meant.fill("g", g)
        self.ordinary.step(self.meant_ledger, [rule or self.rule], [Terms(scale)])

    def agree(self, exactly=True):
        self.control.settle(wait=True)
        assert self.ledger.tolist() == self.meant_ledger.tolist()
        for column, found, meant in zip(
            self.arrays.columns, self.arrays.tensors, self.meant.tensors, strict=True
        ):
            if column.name != "g":
                for a, b in zip(found, meant, strict=True):
                    torch.testing.assert_close(a, b, rtol=0 if exactly else 1e-6, atol=0 if exactly else 1e-7)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("size", [1e-42, 1.0, 3.3e38])
def test_interpreted_norm(dtype, size, gpus):
    """Of all tensors together, from the least numbers to the largest, whose squares float32 does not have."""
    if dtype == "float16" and size != 1.0:
        size = 2.0**-22 if size < 1 else 6e4
    training = Training(gpus, SGD(lr=0.0), ("float32", dtype), (4096, 0, 5, 4097))
    g = training.gradients(size)
    training.step(g, max_norm=1.0)
    training.control.settle(wait=True)
    meant = np.sqrt(sum((t.double().numpy() ** 2).sum() for t in training.arrays.named("g")))
    assert training.control.norm == pytest.approx(meant, rel=1e-6, abs=0)


@pytest.mark.parametrize(
    ("bad", "dtype"),
    [(math.nan, "float32"), (math.nan, "bfloat16"), (-math.inf, "bfloat16"), (math.inf, "float64")],
)
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_interpreted_a_step_with_a_bad_gradient_changes_nothing(bad, dtype, gpus):
    training = Training(gpus, kept=("bfloat16 stochastic", dtype, "int8", "float32"))
    control = training.control
    for k in range(4):
        g = training.gradients()
        if k % 2:
            g[2][1] = bad
        training.step(g, skip_nonfinite=True, max_norm=1e9)
        if k % 2 == 0:
            training.mean(g)
    training.agree()
    assert (control.taken, control.skipped) == (2, 2)
    assert not math.isfinite(control.norm)


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_interpreted_without_skipping_a_nan_shows(gpus):
    training = Training(gpus)
    g = training.gradients()
    g[0][3] = math.nan
    training.step(g, max_norm=1.0)
    training.control.settle(wait=True)
    assert (training.control.taken, training.control.skipped) == (1, 0)
    assert all(w.isnan().all() for w in training.arrays.named("w"))


@pytest.mark.parametrize("most", [1e-3, 1e9])
def test_interpreted_clipping(most, gpus):
    """As torch.nn.utils.clip_grad_norm_ and a step, with the gradients as they were."""
    training = Training(gpus, SGD(lr=0.1), ("float32", "float32"))
    for _ in range(2):
        g = training.gradients()
        training.step(g, max_norm=most)
        before = [torch.nn.Parameter(t.float()) for t in g]
        for p in before:
            p.grad = p.detach().clone()
        torch.nn.utils.clip_grad_norm_(before, most)
        training.mean([p.grad for p in before])
        for found, given in zip(training.arrays.named("g"), g, strict=True):
            assert torch.equal(found, given.float())
    training.agree(exactly=False)


def test_interpreted_the_gradient_scaler(gpus):
    """Gradients are divided by the scale before they are clipped; a flag skips the step, whatever else is asked."""
    training = Training(gpus)
    scale, flag = torch.tensor(1024.0), torch.tensor(0.0)
    g = training.gradients()
    norm = math.sqrt(sum(float((t.float().double() ** 2).sum()) for t in g))
    training.step([1024 * t for t in g], grad_scale=scale, found_inf=flag, max_norm=1.0)
    training.mean(g, 1 / (norm + 1e-6))
    training.step([math.nan * t for t in g], grad_scale=scale, found_inf=torch.tensor(1.0))
    training.step([1024 * t for t in g], grad_scale=scale, found_inf=flag)
    training.mean(g)
    training.agree(exactly=False)
    assert (training.control.taken, training.control.skipped) == (2, 1)


class Late:
    """An event that is over when it is told."""

    def __init__(self):
        self.over = False

    def record(self):
        self.over = False

    def query(self):
        return self.over


@pytest.mark.parametrize("rule", [AdamW(lr=0.1), NAdam(lr=0.1)], ids=["AdamW", "NAdam"])
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_interpreted_what_the_host_learns_late_changes_nothing(rule, gpus):
    """A schedule of taken steps, some skipped, and news that come after 5 steps or 24: as if all had been known."""
    for lateness in (5, 24):
        training = Training(gpus, rule, lengths=(9,))
        control = training.control
        control.event = Late()

        def rule_after(taken):
            return rule.changed(lr=0.1 / (1 + taken))

        ahead = Ahead("a schedule", lambda taken: ([rule_after(taken)], [Terms()]))
        taken, most = 0, 0
        for k in range(24):
            g = training.gradients()
            if k % 3 == 1:
                g[0][0] = math.inf
            training.step(g, ahead, skip_nonfinite=True)
            most = max(most, control.rows)
            if k % 3 != 1:
                training.mean(g, rule=rule_after(taken))
                taken += 1
            if k % lateness == lateness - 1:
                control.event.over = True
        assert (control.taken == 0) == (lateness == 24)
        assert most <= device.WINDOW
        training.agree()
        assert (control.taken, control.skipped) == (16, 8)


@pytest.mark.parametrize("rule", [AdamW(lr=0.1), NAdam(lr=0.1)], ids=["AdamW", "NAdam"])
def test_interpreted_a_rate_changed_by_hand_counts_at_once(rule, gpus):
    """Though earlier steps are under way. What NAdam remembers of a tensor depends on which: there the host waits."""
    training = Training(gpus, rule, lengths=(9,))
    training.control.event = Late()
    for k in range(6):
        now = rule.changed(lr=0.1 + k, beta1=0.5 + k / 20)
        g = training.gradients()
        training.step(g, training.ahead(now), max_norm=1e9)
        training.mean(g, rule=now)
    assert (training.control.taken == 0) == (not rule.scalars)
    training.agree()


def test_interpreted_the_window_is_sent_seldom(gpus, monkeypatch):
    training = Training(gpus, lengths=(3,))
    sent, send = [], device._Sent.send
    for k in range(40):
        if k == 1:
            monkeypatch.setattr(device._Sent, "send", lambda self, v: (sent.append(len(v)), send(self, v)))
        training.step(training.gradients(), skip_nonfinite=True)
    # A window, and where it starts.
    assert len(sent) <= 2 * 6, sent


def test_interpreted_a_schedule_may_end(gpus):
    """A list of rates, say: no step beyond the last is asked for before it is due."""
    training = Training(gpus, SGD(lr=1.0), ("float32", "float32"), (1,))
    rates = np.linspace(1, 2, 12)
    ahead = Ahead("a list", lambda taken: ([training.rule.changed(lr=float(rates[taken]))], [Terms()]))
    training.arrays.fill("w", [torch.zeros(1)])
    for _ in rates:
        training.step([torch.ones(1)], ahead, skip_nonfinite=True)
    assert training.arrays.named("w")[0].item() == pytest.approx(-rates.sum())
    for _ in range(2):
        with pytest.raises(IndexError):
            training.step([torch.ones(1)], ahead, skip_nonfinite=True)
    training.step([torch.ones(1)], training.ahead(), skip_nonfinite=True)
    assert training.arrays.named("w")[0].item() == pytest.approx(-rates.sum() - 1)


def test_interpreted_several_kernels_share_a_gate(gpus):
    """One norm over float32 and bfloat16 gradients; all kernels take the step, or none."""
    rule = SGD(lr=1.0)
    both = [gpus.Arrays([rule], kept, (5, 2)) for kept in (("float32",) * 2, ("float32", "bfloat16"))]
    launches = [arrays.on_gpu([0, 0], [2 * k, 2 * k + 1]) for k, arrays in enumerate(both)]
    control, ledger = Control(HERE), np.zeros((4, 1))
    ahead = Ahead(1, lambda taken: ([rule], [Terms()]))
    for value in (3.0, math.nan):
        both[0].fill("g", [torch.full((n,), 3.0) for n in (5, 2)])
        both[1].fill("g", [torch.full((n,), value) for n in (5, 2)])
        control.step(launches, ledger, ahead, max_norm=0.5, skip_nonfinite=True)
    control.settle(wait=True)
    assert ledger.tolist() == [[1.0]] * 4
    each = -0.5 / math.sqrt(14)
    for arrays in both:
        for w in arrays.named("w"):
            torch.testing.assert_close(w, torch.full_like(w, each), rtol=1e-5, atol=0)


def test_interpreted_groups_have_rates_and_counts_of_their_own(gpus):
    """Several rows of coefficients for each step that may be next."""
    rules, groups = [SGD(lr=1.0), SGD(lr=10.0)], [1, 0, 1]
    arrays = gpus.Arrays(rules, ("float32", "float32"), (3, 3, 3))
    arrays.fill("g", [torch.ones(3)] * 3)
    launch, control = arrays.on_gpu(groups, [2, 1, 0]), Control(HERE)
    control.event, ledger = Late(), np.array([[7.0], [0.0], [0.0]])
    ahead = Ahead(
        "a schedule",
        lambda taken: ([rule.changed(lr=rule.lr / (1 + taken)) for rule in rules], [Terms(), Terms(-1.0)]),
    )
    for _ in range(4):
        control.step([launch], ledger, ahead, skip_nonfinite=True)
    control.settle(wait=True)
    assert ledger.tolist() == [[11.0], [4.0], [4.0]]
    fourth = 1 + 1 / 2 + 1 / 3 + 1 / 4
    for w, meant in zip(arrays.named("w"), (10 * fourth, -fourth, 10 * fourth), strict=True):
        torch.testing.assert_close(w, torch.full((3,), meant))


def test_interpreted_another_plan_goes_on_from_the_same_counts(gpus):
    """Launches are replaced, as when a weight has no gradient; a count set by hand stands, whatever is under way."""
    training = Training(gpus, lengths=(9,))
    training.control.event = Late()
    for k in range(5):
        if k == 2:
            training.control.settle(wait=True)
            training.launch = training.arrays.on_gpu([0], [0])
        if k == 4:
            training.ledger[0, 0] = training.meant_ledger[0, 0] = 50
        g = training.gradients()
        training.step(g, skip_nonfinite=True)
        training.mean(g)
    training.agree()
    assert training.ledger[0, 0] == 51
    assert training.control.taken == 5


# CUDA graphs


class Graph:
    """What a CUDA graph does: what is launched meanwhile is noted, with its arguments, and runs at each replay."""

    def __init__(self, monkeypatch):
        self.noted = []
        self.patch = monkeypatch

    def __enter__(self):
        self.patch.setattr(device, "capturing", lambda place: True)
        self.patch.setattr(device._Program, "__call__", lambda program, *a: self.noted.append((program, a)))

    def __exit__(self, *_):
        self.patch.undo()

    def replay(self):
        for program, arguments in self.noted:
            if program.run:
                program.run(*arguments)


@pytest.fixture
def graph(monkeypatch):
    monkeypatch.setattr(device, "HORIZON", 64)
    with pytest.MonkeyPatch.context() as patch:
        yield Graph(patch)


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_interpreted_a_replayed_step_counts_by_itself(graph, gpus):
    """Replays, some skipped, with a schedule: as ordinary steps; then an ordinary step goes on where they ended."""
    training = Training(gpus, NAdam(lr=0.1), lengths=(9, 0), capturable=True)

    def rule_after(taken):
        return training.rule.changed(lr=0.1 / (1 + taken))

    ahead = Ahead("a schedule", lambda taken: ([rule_after(taken)], [Terms()]))
    g = training.gradients()
    training.step(g, ahead, skip_nonfinite=True, max_norm=1e9)
    training.mean(g, rule=rule_after(0))
    with graph:
        training.step(g, ahead, skip_nonfinite=True, max_norm=1e9)
    assert len(graph.noted) == 3
    taken = 1
    for k in range(20):
        g = training.gradients()
        if k % 5 == 2:
            g[0][0] = math.nan
        training.arrays.fill("g", g)
        if k == 7:
            training.step(g, ahead, skip_nonfinite=True, max_norm=1e9)
        else:
            graph.replay()
        if k % 5 != 2:
            training.mean(g, rule=rule_after(taken))
            taken += 1
    assert training.ledger[0, 0] < 17
    training.agree()
    assert (training.control.taken, training.control.skipped) == (17, 4)


def test_interpreted_a_graph_keeps_its_gradients_addresses(graph, gpus):
    """An ordinary step with gradients elsewhere does not move those that a graph reads."""
    training = Training(gpus, SGD(lr=1.0), ("float32", "float32"), (3,), capturable=True)
    training.step([torch.ones(3)])
    with graph:
        training.step([torch.ones(3)])
    there = training.arrays.tensors[1]
    training.arrays.tensors[1] = [torch.zeros(3)]
    training.arrays.placed(training.launch.tensors)
    before = training.arrays.named("w")[0].clone()
    training.step([torch.full((3,), 10.0)])
    there[0].fill_(2.0)
    graph.replay()
    torch.testing.assert_close(training.arrays.named("w")[0], before - 12)


def test_interpreted_the_last_row_repeats(graph, gpus, monkeypatch):
    """Beyond the horizon the rate stays; steps are counted on, and the next window goes on from them."""
    monkeypatch.setattr(device, "HORIZON", 4)
    training = Training(gpus, SGD(lr=1.0), ("float32", "float32"), (1,), capturable=True)
    rates = [1.0, 10.0, 100.0, 1000.0, *[7.0] * 20]
    ahead = Ahead("a schedule", lambda taken: ([training.rule.changed(lr=rates[taken])], [Terms()]))
    w = training.arrays.named("w")[0]
    w.zero_()
    training.step([torch.ones(1)], ahead)
    with graph:
        training.step([torch.ones(1)], ahead)
    for _ in range(6):
        graph.replay()
    assert w.item() == -(1 + 10 + 100 + 4 * 1000)
    training.control.settle(wait=True)
    assert training.ledger.tolist() == [[7.0]]
    for _ in range(2):
        training.step([torch.ones(1)], ahead)
    graph.replay()
    assert w.item() == -(1 + 10 + 100 + 4 * 1000 + 3 * 7)
    training.control.settle(wait=True)
    assert training.ledger.tolist() == [[10.0]]


def test_interpreted_a_capture_needs_a_step_like_it(graph, gpus):
    training = Training(gpus, lengths=(3,), capturable=True)
    g = training.gradients()
    with graph, pytest.raises(RuntimeError, match="Take a step as it is before the capture"):
        training.step(g)
    training.control.event = Late()
    training.step(g)
    with graph:
        for different in (dict(max_norm=1.0), dict(ahead=training.ahead(AdamW(lr=1.0)))):
            with pytest.raises(RuntimeError, match="Take a step as it is before the capture"):
                training.step(g, **different)
        with pytest.raises(RuntimeError, match="capturable=True"):
            training.launch.step(training.ledger, [training.rule], [Terms()])
        with pytest.raises(RuntimeError, match="Take a step as it is before the capture"):
            training.control.settle(wait=True)
    assert not graph.noted
    usual = Training(gpus, lengths=(3,))
    usual.step(g)
    with graph, pytest.raises(RuntimeError, match="Take a step as it is before the capture"):
        usual.step(g)


def test_interpreted_a_rate_changed_at_every_step_costs_a_row(gpus, monkeypatch):
    """Not a whole horizon, each time."""
    training = Training(gpus, lengths=(3,), capturable=True)
    monkeypatch.setattr(device, "HORIZON", 64)
    asked = []
    for k in range(5):
        rule = training.rule.changed(lr=0.1 * (k + 1))
        g = training.gradients()
        training.step(g, Ahead(rule, lambda taken, rule=rule: (asked.append(taken) or [rule], [Terms()])))
        training.mean(g, rule=rule)
    assert len(asked) <= 64 + 2 * 4
    training.agree()


# On a GPU


def _trained(steps, capture, **options):
    import schuss.torch

    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(n, device="cuda")) for n in (5000, 64, 1)]
    for w in weights:
        w.grad = torch.zeros_like(w)
    gradients = [[torch.randn_like(w) for w in weights] for _ in range(8)]
    optimizer = schuss.torch.AdamW(weights, lr=0.01, capturable=capture, **options)
    graph = None
    for k in range(steps):
        for w, g in zip(weights, gradients[k % 8], strict=True):
            w.grad.copy_(g)
        if capture and k == 1:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                optimizer.step()
        if graph:
            graph.replay()
        else:
            optimizer.step()
    found = optimizer.state_dict()["state"][0]["step"]
    return [w.detach().cpu() for w in weights], float(found)


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, dict(max_norm=1.0, skip_nonfinite=True)], ids=["plain", "gated"])
def test_a_graph_replayed_a_hundred_times(options):
    ordinary, steps = _trained(101, False, **options)
    replayed, count = _trained(101, True, **options)
    assert steps == count == 101
    for a, b in zip(ordinary, replayed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.gpu
def test_a_gated_step_waits_for_nothing():
    import schuss.torch

    weights = [torch.nn.Parameter(torch.randn(n, device="cuda")) for n in (1, 1000, 100_000)]
    for w in weights:
        w.grad = torch.randn_like(w)
    optimizer = schuss.torch.AdamW(weights, max_norm=1.0, skip_nonfinite=True)
    optimizer.step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(50):
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    weights[0].grad.fill_(math.nan)
    optimizer.step()
    assert optimizer.skipped == 1
