"""The benchmark of the GPU kernels, as far as it goes without a GPU: its words, its counts and its tables."""

import itertools
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from schuss.bench import gpu, grids, jobs, precision, timing
from schuss.bench.report import Driver, Report, Skipped, Timing, load
from schuss.bench.sizes import FULL, Sizes, gpt2, small
from schuss.cli import bench

TINY = Sizes(
    rounds=2,
    short_rounds=3,
    least=0.0,
    processes=1,
    large=gpt2(layers=1, width=4, vocabulary=7, context=3),
    add=64,
    device=small(2, 50, "few weights"),
)
MACHINE = dict(processor="p", instructions="i", cores=1, threads=1, system="s", python="3", packages={})


def test_a_gigabyte_of_weights_is_measured():
    assert 4 * FULL.device.elements >= 1e9
    assert str(FULL.device) == "1.07 GB of weights (4 tensors, 268M weights)"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(bench, "QUICK", TINY)
    ended = CliRunner().invoke(bench.command, ["--quick", "--only", "gpu"])
    assert ended.exit_code == 0
    assert "gpu: skipped, there is no CUDA or ROCm device here." in ended.output
    assert len([job for job in jobs.jobs(TINY) if job.section == "gpu"]) == 1


def test_with_a_gpu_every_optimizer_is_measured(monkeypatch):
    monkeypatch.setattr(gpu, "missing", lambda: "")
    titles = [job.title for job in jobs.jobs(TINY, ["gpu"]) if job.section == "gpu"]
    assert titles[0] == "GPU: AdamW"
    assert titles[-1] == "GPU: GPT-2 shapes"
    assert len(titles) == len(set(titles)) == len(gpu.CASES) + len(precision.PARTS) + 1


def test_too_little_memory_skips_an_optimizer_and_no_more(monkeypatch):
    monkeypatch.setattr(gpu, "missing", lambda: "")

    def large(section, sizes):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.\nMore.")

    (found,) = gpu.guarded(large)("gpu", TINY)
    assert found == Skipped(
        "gpu", "the GPU has too little free memory (CUDA out of memory. Tried to allocate 1 GiB.)"
    )


def test_what_a_profile_counts():
    device = ["launch", "Memcpy HtoD (Pinned -> Device)", "Optimizer.step#AdamW.step"] * 10
    calls = ["Optimizer.step#AdamW.step", "cuLaunchKernelEx", "cudaMemcpyAsync", "aten::copy_"] * 10
    found = gpu.counted("AdamW", "schuss", device, [*calls, "cudaDeviceSynchronize"], 5e-5, 10)
    assert found == Driver("AdamW", "schuss", kernels=1, copies=1, waits=0, host=5e-5)
    waiting = ["cudaStreamSynchronize", "cudaMemcpy"] * 10
    assert gpu.counted("AdamW", "x", device, [*calls, *waiting, "cudaDeviceSynchronize"], 1.0, 10).waits == 2


def test_contenders_take_turns():
    calls, clock = [], itertools.count(1)
    actions = {name: lambda name=name: calls.append(name) for name in "ab"}

    def seconds(action, times):
        action()
        return next(clock)

    assert timing.in_turn(actions, 2, seconds=seconds) == {"a": (1, 4), "b": (2, 3)}
    assert "".join(calls) == "abab" + "ab" + "ba"


@pytest.fixture
def measured(monkeypatch):
    """A report of the GPU's section, with the CPU in its place and a clock that ticks evenly."""

    def tick(action, times):
        action()
        return 1e-3

    monkeypatch.setattr(gpu, "device_seconds", tick)
    monkeypatch.setattr(gpu, "host_seconds", tick)
    monkeypatch.setattr(
        gpu,
        "profiled",
        lambda optimizer, name, step, host: Driver(optimizer, name, kernels=1, copies=1, waits=0, host=host),
    )
    report = Report(MACHINE)
    for case in gpu.CASES:
        report.add(gpu.speed(case, "gpu", TINY, "cpu"))
    for title in precision.PARTS:
        found = precision.measure(title, "gpu", TINY, seconds=tick)
        report.add(replace(one, section="gpu-precision") for one in found)
    report.add(gpu.driver("gpu", TINY, "cpu"))
    return report


def test_every_optimizer_is_right_and_compared_with_a_copy(measured, tmp_path):
    ours = [t for t in measured.timings if t.contender == "schuss"]
    assert not [t.problem for t in measured.timings if t.problem]
    assert {str(case) for case in gpu.CASES} == {t.optimizer for t in ours}
    large = [t for t in ours if t.workload == str(TINY.device)]
    # AdamW moves 28 bytes a weight in the time in which the copy moves 8.
    assert next(t.fraction for t in large if t.optimizer == "AdamW") == pytest.approx(28 / 8)
    text = grids.markdown(measured)
    assert "| optimizer | schuss | GB/s | of copy's | torch fused |" in text
    assert "What a step of AdamW asks of the GPU's driver" in text
    for contender in ("schuss", "torch fused", "schuss, clipped", "torch, clipped"):
        assert f"| {contender} | 1 | 1 | 0 | 1.00 ms |" in text
    assert "| AdamW | per step | of torch fused, bfloat16 |" in text
    assert "| schuss, stochastic rounding, int8 state | 1.00 ms | 100 % |" in text
    measured.save(tmp_path / "a.json")
    assert grids.markdown(load(tmp_path / "a.json")) == text


def test_a_wrong_contender_is_not_timed(monkeypatch):
    monkeypatch.setattr(gpu, "device_seconds", lambda action, times: 1e-3)
    monkeypatch.setattr(
        gpu, "contenders", lambda case: {"schuss": lambda weights: torch.optim.SGD(weights, lr=1.0)}
    )
    (found,) = gpu.speed(gpu.HEADLINE, "gpu", TINY, "cpu")
    assert isinstance(found, Timing)
    assert "off by" in found.problem
    assert not found.rounds
