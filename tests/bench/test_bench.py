"""The benchmark's plumbing, on sizes that take no time. What it measures is never asserted."""

import gc

import numpy as np
import pytest
import torch

import schuss.torch
from schuss.bench import arrays, check, contenders, precision, processes, sparse, steps, timing
from schuss.bench.contenders import CASES, Case
from schuss.bench.grids import duration, grids, headline, markdown, remarks
from schuss.bench.jobs import jobs
from schuss.bench.processes import answer
from schuss.bench.report import Peak, Report, Skipped, Timing, load
from schuss.bench.sizes import SECTIONS, Sizes, gpt2, mlp, small
from schuss.bench.timing import in_turn
from schuss.compile.formula import formula
from schuss.rules import TABLE, Adam

TINY = Sizes(
    rounds=2,
    short_rounds=3,
    least=0.0,
    processes=1,
    large=gpt2(layers=1, width=4, vocabulary=7, context=3),
    small=(small(3, 5),),
    mlp=mlp(3, 4, 2),
    add=64,
    embedding=(60, 4),
    touched=0.1,
    arrays=500,
    peak=small(4, 2**21),
)
MACHINE = {
    "processor": "A processor",
    "instructions": "AVX2",
    "cores": 4,
    "threads": 2,
    "system": "Linux x86_64",
    "python": "3.11.7",
    "packages": {"torch": "2.13.0"},
}


def took(contender, rounds=(), **more):
    return Timing("mlp", "small MLP", "AdamW", contender, rounds=tuple(rounds), **more)


def test_contenders_take_turns_and_each_round_starts_with_another():
    calls = []
    found = in_turn({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=4, least=0.0)
    assert "".join(calls) == "abc" + "abc" + "abc" + "bca" + "cab" + "abc"
    assert {name: len(rounds) for name, rounds in found.items()} == {"a": 4, "b": 4, "c": 4}
    assert gc.isenabled()


def test_garbage_collection_is_on_again_after_an_interruption():
    calls = []

    def third_time():
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_turn({"a": third_time}, rounds=2, least=0.0)
    assert gc.isenabled()


def test_short_work_is_repeated_within_a_round():
    calls = []
    in_turn({"a": lambda: calls.append(1)}, rounds=1, least=1e-3)
    assert len(calls) > 3


def test_gpt2_is_the_published_one():
    assert (len(gpt2().shapes), gpt2().elements) == (148, 124_439_808)
    assert str(gpt2()) == "GPT-2 shapes (148 tensors, 124M weights)"
    # GPT-2 medium, 355M
    assert gpt2(layers=24, width=1024).elements == 354_823_168


@pytest.mark.parametrize("contest", CASES, ids=str)
def test_every_contender_agrees_with_the_reference(contest):
    makers = contenders.contenders(contest)
    assert "schuss" in makers
    assert {name: contenders.disagreement(contest, make) for name, make in makers.items()} == dict.fromkeys(
        makers, ""
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda w: torch.optim.AdamW(w, lr=1.01e-3), "off by"),
        (lambda w: torch.optim.AdamW(w, weight_decay=0), "off by"),
        (lambda w: torch.optim.AdamW(w[:-1]), "off by"),
        (lambda w: torch.optim.AdamW(w, lr=float("inf")), "off by"),
        (lambda w: torch.optim.AdamW(w, lr=-1), "Invalid learning rate"),
    ],
)
def test_a_wrong_contender_is_found_out(make, words):
    assert words in contenders.disagreement(Case("AdamW"), make)


def test_a_contender_that_writes_to_gradients_is_found_out():
    def moved(weights, gradients):
        gradients[0][0] *= 2
        return weights

    assert check.disagreement(Adam(), moved, "float64") == "writes to the gradients"


def test_the_bytes_of_a_step():
    assert Case("AdamW").moved(10) == 4 * 10 * 7
    assert Case("SGD").moved(10) == 4 * 10 * 3
    assert Case("SGD", {"momentum": 0.9}).moved(10) == 4 * 10 * 5


def test_a_step_is_timed_for_everyone_and_the_machine():
    records = steps.step("gpt2", TINY.large, Case("AdamW"), TINY)
    assert {r.contender for r in records} >= {"schuss", "torch fused", "torch foreach", "torch default"}
    for record in records:
        assert (len(record.rounds), len(record.machine)) == (2, 2)
        assert record.moved == 28 * TINY.large.elements
        assert record.fraction > 0


def test_what_is_wrong_is_not_timed(monkeypatch):
    makers = {"schuss": torch.optim.AdamW, "torch default": torch.optim.SGD}
    monkeypatch.setattr(steps, "contenders", lambda case: makers)
    right, wrong = steps.step("mlp", TINY.mlp, Case("AdamW"), TINY)
    assert len(right.rounds) == 3
    assert right.problem == ""
    assert wrong.rounds == ()
    assert wrong.problem.startswith("off by")


def test_too_little_memory_skips(monkeypatch):
    monkeypatch.setattr(timing, "free_memory", lambda: 100)
    (skipped,) = steps.step("gpt2", TINY.large, Case("AdamW"), TINY)
    assert isinstance(skipped, Skipped)
    assert "GB of memory" in skipped.reason


def test_sparse_gradients_touch_what_they_say():
    found = sparse.gradients(100, 3, 0.1)
    assert not found["uncoalesced"].is_coalesced()
    assert found["coalesced"].is_coalesced()
    assert found["coalesced"]._nnz() == 10
    assert found["uncoalesced"]._nnz() == 12
    assert torch.equal(found["coalesced"].to_dense(), found["uncoalesced"].to_dense())


def test_sparse_contenders(monkeypatch):
    records = sparse.measure("sparse", TINY)
    assert [r.problem for r in records] == [""] * 5
    assert records[0].contender == sparse.DENSE
    monkeypatch.setitem(sparse._OPTIMIZERS, sparse.THEIRS, torch.optim.SGD)
    assert sparse.disagreement(sparse.THEIRS, "coalesced").startswith("off by")


@pytest.mark.parametrize("contender", [arrays.OURS, arrays.THEIRS])
@pytest.mark.parametrize("pair", arrays.PAIRS, ids=lambda pair: pair.name)
def test_the_textbook_and_the_numpy_api_agree_with_the_reference(pair, contender):
    assert pair.disagreement(contender) == ""


def test_the_numpy_api_is_measured_unless_it_is_wrong(monkeypatch):
    import schuss.numpy

    records = arrays.measure("numpy", TINY)
    assert len(records) == 2 * 2 * len(arrays.PAIRS)
    assert all(r.rounds and not r.problem for r in records)
    monkeypatch.setattr(schuss.numpy, "Adam", lambda **options: schuss.numpy.SGD(lr=1e-3))
    wrong = [r for r in arrays.measure("numpy", TINY) if r.problem]
    assert {(r.optimizer, r.contender) for r in wrong} == {("Adam", arrays.OURS)}


def test_first_steps_are_cold_before_they_are_warm(monkeypatch):
    caches = []

    def stand_in(program, api, *rest, **environment):
        caches.append((api, environment["SCHUSS_CACHE_DIR"]))
        return {"import": 0.25, "step": 0.5}

    monkeypatch.setattr(processes, "answer", stand_in)
    records = processes.first_step("first-step", TINY)
    assert [api for api, _ in caches] == ["schuss", "schuss", "torch"] * 2
    assert caches[0][1] == caches[1][1] != caches[3][1]
    assert [(r.contender, r.rounds) for r in records[:4]] == [
        (processes.COLD, (0.5,)),
        (processes.WARM, (0.5,)),
        (processes.THEIRS, (0.5,)),
        (processes.IMPORT, (0.25,)),
    ]


def test_a_new_process_takes_its_first_step(tmp_path):
    took = answer("first_step", "schuss", "SGD", {}, [[3], [2, 2]], SCHUSS_CACHE_DIR=str(tmp_path))
    assert set(took) == {"import", "step"}
    assert took["step"] > 0
    assert any(tmp_path.iterdir())


def test_a_process_that_fails_says_why(monkeypatch):
    with pytest.raises(RuntimeError, match="NoSuchOptimizer"):
        answer("first_step", "torch", "NoSuchOptimizer", {}, [[3]])


@pytest.mark.skipif(not processes.RESET.exists(), reason="peak memory is read from Linux's /proc")
def test_a_step_holds_weights_gradients_and_state_and_no_more():
    needed = 4 * 4 * TINY.peak.elements
    ours = answer("peak_memory", "schuss", "AdamW", {}, TINY.peak.shapes)["peak"]
    assert 0.95 * needed < ours < 1.1 * needed


def test_peaks_of_all_implementations(monkeypatch):
    def stand_in(program, api, optimizer, options, shapes):
        if options.get("fused"):
            raise RuntimeError("no fused kernel here")
        return {"peak": 10**9}

    monkeypatch.setattr(processes, "answer", stand_in)
    records = processes.peak_memory("memory", TINY)
    assert [type(r) for r in records] == [Peak, Skipped, Peak, Peak]
    assert records[1].reason == "torch fused: no fused kernel here"


def test_jobs_are_what_was_asked_for():
    def sections(*only):
        return [job.section for job in jobs(TINY, only)]

    assert sections("gpt2") == ["bandwidth", "gpt2"]
    assert sections("optimizers") == ["bandwidth"] + ["gpt2"] * len(CASES)
    assert sections("gpt2", "optimizers") == sections("optimizers")
    assert sections("mlp", "sparse") == ["bandwidth"] + ["mlp"] * len(CASES) + ["sparse"]
    assert set(sections()) == {"bandwidth", *SECTIONS} - {"optimizers"}
    assert {case.optimizer for case in CASES} == {
        n for n, row in TABLE.items() if not formula(row.rule).of_matrices
    }


def test_bandwidth_job():
    (record,) = jobs(TINY, ["mlp"])[0].run()
    assert record.moved == 3 * 4 * 64
    assert len(record.rounds) == 3


def test_ratios_are_of_the_same_round():
    ours, theirs = took("schuss", [1.0, 10.0, 1.0]), took("torch default", [2.0, 20.0, 2.0])
    assert theirs.times(ours) == 2.0
    assert ours.seconds == 1.0
    # twice as slow in one round, as fast in two: the medians alone would say otherwise
    assert took("a", [2.0, 1.0, 5.0]).times(took("b", [1.0, 1.0, 5.0])) == 1.0


def test_fraction_of_the_bandwidth():
    record = took("schuss", [1.0, 2.0], moved=80, machine=(100.0, 50.0))
    assert record.fraction == pytest.approx(0.8)


def full_report():
    report = Report(MACHINE, {"quick": True})
    report.add(
        [
            Timing("bandwidth", "", "torch.add", "torch.add", (0.1,), 10**10),
            Timing("gpt2", "GPT-2 shapes", "AdamW", "schuss", (0.05, 0.05), 3 * 10**9, (7.5e10, 7.5e10)),
            Timing("gpt2", "GPT-2 shapes", "AdamW", "torch default", (0.2, 0.2), 3 * 10**9, (7.5e10, 7.5e10)),
            Timing("gpt2", "GPT-2 shapes", "Lion", "schuss", problem="off by 7 times"),
            took("schuss", [1e-5]),
            took("torch fused", [4.4e-5]),
            Timing("first-step", "small MLP", "AdamW", processes.COLD, (1.0,)),
            Timing("sparse", "embedding", "Adam", sparse.DENSE, (0.1,)),
            Timing("sparse", "embedding", "Adam", sparse.OURS, (0.002,)),
            Timing("numpy", "dict", "Adam", arrays.OURS, (0.02,)),
            Timing("numpy", "dict", "Adam", arrays.THEIRS, (0.3,)),
            Peak("AdamW", "schuss", 10**9, 10**9),
            Skipped("memory", "no /proc"),
        ]
    )
    return report


def test_a_report_comes_back_from_json(tmp_path):
    report = full_report()
    report.save(tmp_path / "a.json")
    assert load(tmp_path / "a.json") == report


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"machine": {}, "timings": [{"optimizer": 1}], "peaks": []}']
)
def test_another_file_is_no_report(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match="not what `schuss bench --json` writes"):
        load(tmp_path / "a.json")


def test_tables():
    shown = {grid.title: grid for grid in grids(full_report())}
    large = shown["One step, float32: GPT-2 shapes"]
    assert large.heads == ("optimizer", "schuss", "GB/s", "of torch.add's", "torch default")
    assert large.rows == (
        ("AdamW", "50.0 ms", "60.0", "80 %", "200 ms (4.00×)"),
        ("Lion", "wrong", "", "", ""),
    )
    assert large.below == "Wrong, so not timed: schuss, Lion: off by 7 times."
    assert shown["One step, float32: small MLP"].rows == (("AdamW", "10.0 µs", "44.0 µs (4.40×)"),)
    assert shown["Sparse gradients: embedding"].rows[1] == (sparse.OURS, "2.00 ms", "2 %")
    assert shown["One step, float64: dict"].rows == (("Adam", "20.0 ms", "300 ms (15.0×)"),)
    assert shown["First step of AdamW in a new process"].rows == (("small MLP", "1.00 s"),)
    peak = next(grid for title, grid in shown.items() if title.startswith("Peak memory"))
    assert peak.rows == (("schuss", "1.00 GB", "100 %"),)


def test_every_table_is_rectangular():
    for grid in grids(full_report()):
        assert {len(row) for row in grid.rows} == {len(grid.heads)}


def test_markdown_names_the_machine():
    text = markdown(full_report())
    assert text.startswith(
        "A processor (AVX2), 4 cores, 2 threads; Linux x86_64; Python 3.11.7, torch 2.13.0."
    )
    assert "torch.add moves 100 GB/s" in headline(full_report())
    assert "| AdamW | 50.0 ms | 60.0 | 80 % | 200 ms (4.00×) |" in text
    assert "memory: skipped, no /proc." in text


def test_remarks():
    report = Report(MACHINE, interrupted=True)
    assert remarks(report) == ["Interrupted: only what was measured until then is shown."]
    assert grids(report) == []


def test_durations():
    assert [duration(s) for s in (2.5, 0.0999, 2e-7)] == ["2.50 s", "99.9 ms", "200 ns"]


def test_gradients_of_the_check_decide_every_sign():
    m = [np.zeros(shape) for shape in check.SHAPES]
    for step in check.gradients("float64"):
        for k, g in enumerate(step):
            assert (np.abs(0.9 * m[k] + 0.1 * g) > 1e-3).all()
            m[k] = 0.99 * m[k] + 0.01 * g


def test_low_precision_and_clipping():
    """Every contender is right by the check, and timed."""
    records = [record for title in precision.PARTS for record in precision.measure(title, "precision", TINY)]
    assert [record.contender for record in records] == [*precision.LOW_PRECISION, *precision.CLIPPING]
    assert all(len(record.rounds) == TINY.rounds and not record.problem for record in records)
    report = Report(MACHINE, {}, timings=records)
    assert [len(grid.rows) for grid in grids(report)] == [6, 3]
    assert all(grid.rows[0][2] == "100 %" for grid in grids(report))


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.bfloat16, dict(lr=2 * precision.RATE)),
        (torch.bfloat16, dict(lr=precision.RATE, betas=(0.9, 0.9), rounding="stochastic", eps=0.1)),
        (torch.float32, dict(lr=precision.RATE, maximize=True)),
    ],
)
def test_wrong_steps_in_low_precision_are_not_timed(dtype, options):
    made = precision.disagreement(lambda weights: schuss.torch.AdamW(weights, **options).step, dtype)
    assert made.startswith("off by")
