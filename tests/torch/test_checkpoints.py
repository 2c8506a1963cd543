"""Save, load and continue: within Schuss, to and from torch.optim, and with state replaced by hand."""

import copy
import io
import pickle
from collections import defaultdict
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch
import torch.multiprocessing

import schuss.torch

SHAPES = [(3, 4), (7,), ()]
STEPS = 4


@pytest.fixture(autouse=True)
def _float64(float64_default):
    """Torch's own scalars in float64, as its weights here."""


@pytest.fixture
def fresh(noise):
    def make(dtype=torch.float64):
        return [noise(*shape, seed=k).to(dtype).requires_grad_() for k, shape in enumerate(SHAPES)]

    return make


@pytest.fixture
def steps(noise):
    """`steps(optimizer, weights, first, last)`: take these steps, with gradients that depend on the number alone."""

    def take(optimizer, weights, first, last):
        for step in range(first, last):
            for k, w in enumerate(weights):
                w.grad = noise(*w.shape, seed=100 * step + k).to(w.dtype)
            optimizer.step()

    return take


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_same(weights, others, exactly=True):
    for w, other in zip(weights, others, strict=True):
        if exactly:
            assert torch.equal(w, other)
        else:
            torch.testing.assert_close(w.detach(), other.detach(), rtol=1e-12, atol=1e-12)


def copies(weights):
    return [w.detach().clone().requires_grad_() for w in weights]


def test_ours_continues_ours(case, fresh, steps):
    whole, first = fresh(), fresh()
    steps(case.ours(whole), whole, 0, 2 * STEPS)
    saved = case.ours(first)
    steps(saved, first, 0, STEPS)
    second = copies(first)
    loaded = case.ours(second)
    loaded.load_state_dict(through_a_file(saved.state_dict()))
    steps(loaded, second, STEPS, 2 * STEPS)
    assert_same(whole, second)


@pytest.mark.parametrize("makers", [("theirs", "ours", "theirs"), ("ours", "theirs", "ours")])
def test_there_and_back(makers, torch_case, fresh, steps):
    whole, moved = fresh(), fresh()
    steps(getattr(torch_case, makers[0])(whole), whole, 0, 3 * STEPS)
    optimizer = getattr(torch_case, makers[0])(moved)
    for leg, maker in enumerate(makers):
        if leg:
            moved = copies(moved)
            saved = through_a_file(optimizer.state_dict())
            optimizer = getattr(torch_case, maker)(moved)
            optimizer.load_state_dict(saved)
        steps(optimizer, moved, STEPS * leg, STEPS * (leg + 1))
    assert_same(whole, moved, exactly=False)


def test_the_layout_is_torchs(torch_case, fresh, steps):
    mine, other = fresh(), fresh()
    ours, theirs = torch_case.ours(mine), torch_case.theirs(other)
    for optimizer, weights in ((ours, mine), (theirs, other)):
        steps(optimizer, weights, 0, 2)
    a, b = ours.state_dict(), theirs.state_dict()
    assert a.keys() == {*b, "state_entries"}
    assert a["state"].keys() == b["state"].keys()
    for key in b["state"]:
        expected = {name for name, value in b["state"][key].items() if value is not None}
        assert {name for name, value in a["state"][key].items() if value is not None} == expected
        for name in expected:
            assert a["state"][key][name].shape == b["state"][key][name].shape
    for mine_group, their_group in zip(a["param_groups"], b["param_groups"], strict=True):
        assert their_group.keys() <= mine_group.keys()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_state_is_never_cast(dtype, plain, fresh, steps):
    """16-bit weights, float32 state: torch's own loading would cast the state to 16 bits."""
    whole, first = fresh(dtype), fresh(dtype)
    steps(plain.ours(whole), whole, 0, 6)
    saved = plain.ours(first)
    steps(saved, first, 0, 3)
    second = copies(first)
    loaded = plain.ours(second)
    loaded.load_state_dict(through_a_file(saved.state_dict()))
    for w, v in zip(first, second, strict=True):
        for slot in plain.rule.slots_of(w.dim()):
            name = plain.row.names[slot]
            assert loaded.state[v][name].dtype == torch.float32
            assert torch.equal(loaded.state[v][name], saved.state[w][name])
    steps(loaded, second, 3, 6)
    assert_same(whole, second)


@pytest.mark.parametrize(
    "way", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy], ids=["pickle", "deepcopy"]
)
def test_a_copied_optimizer_continues_alike(way, case, fresh, steps):
    weights = fresh()
    optimizer = case.ours(weights)
    steps(optimizer, weights, 0, STEPS)
    twin, twins = way((optimizer, weights))
    assert [id(p) for p in twin.param_groups[0]["params"]] == [id(w) for w in twins]
    steps(optimizer, weights, STEPS, 2 * STEPS)
    steps(twin, twins, STEPS, 2 * STEPS)
    assert_same(weights, twins)


def test_saving_changes_nothing_and_is_not_changed_by_stepping_on_another(plain, fresh, steps):
    weights = fresh()
    optimizer = plain.ours(weights)
    steps(optimizer, weights, 0, 2)
    saved = optimizer.state_dict()
    kept = copy.deepcopy(saved)
    others = fresh()
    other = plain.ours(others)
    other.load_state_dict(saved)
    steps(other, others, 2, 4)
    for key, entry in kept["state"].items():
        for name, value in entry.items():
            torch.testing.assert_close(saved["state"][key][name], value, rtol=0, atol=0)


def test_momentum_resumes_where_it_was(fresh, steps):
    """The first velocity is undampened; a resumed one is not the first."""

    def make(p, cls):
        return cls(p, lr=0.1, momentum=0.9, dampening=0.5)

    whole, first = fresh(), fresh()
    steps(make(whole, torch.optim.SGD), whole, 0, 4)
    saved = make(first, torch.optim.SGD)
    steps(saved, first, 0, 1)
    second = copies(first)
    loaded = make(second, schuss.torch.SGD)
    loaded.load_state_dict(saved.state_dict())
    steps(loaded, second, 1, 4)
    assert_same(whole, second, exactly=False)


def test_momentum_switched_on_after_some_steps(fresh, steps):
    """The first velocity is the gradient, whenever momentum begins."""
    weights = []
    for cls in (schuss.torch.SGD, torch.optim.SGD):
        mine = fresh()
        optimizer = cls(mine, lr=0.1, dampening=0.5)
        steps(optimizer, mine, 0, 2)
        optimizer.param_groups[0]["momentum"] = 0.9
        steps(optimizer, mine, 2, 5)
        weights.append(mine)
    assert_same(*weights, exactly=False)


def test_loading_before_the_first_step(plain, fresh, steps):
    weights = fresh()
    optimizer = plain.ours(weights)
    optimizer.load_state_dict(through_a_file(plain.ours(fresh()).state_dict()))
    steps(optimizer, weights, 0, 3)
    straight = fresh()
    steps(plain.ours(straight), straight, 0, 3)
    assert_same(weights, straight)


def test_the_loaded_hyperparameters_rule(fresh, steps):
    weights, others = fresh(), fresh()
    loaded = schuss.torch.Adam(weights, lr=0.5)
    loaded.load_state_dict(schuss.torch.Adam(others, lr=0.0).state_dict())
    steps(loaded, weights, 0, 2)
    assert_same(weights, others)


def test_a_schedule_is_configuration_and_its_step_is_state(fresh, steps):
    def rate(n):
        return 0.1 / (1 + n)

    whole, first = fresh(), fresh()
    steps(schuss.torch.Adam(whole, lr=rate), whole, 0, 6)
    saved = schuss.torch.Adam(first, lr=rate)
    steps(saved, first, 0, 3)
    second = copies(first)
    loaded = schuss.torch.Adam(second, lr=rate)
    loaded.load_state_dict(through_a_file(saved.state_dict()))
    assert loaded.param_groups[0]["lr"] == rate(3)
    steps(loaded, second, 3, 6)
    assert_same(whole, second)


def test_weights_that_never_had_a_gradient_have_no_state(plain, fresh, steps):
    weights = fresh()
    optimizer = plain.ours(weights)
    for k in (0, 2):
        weights[k].grad = torch.ones_like(weights[k])
    optimizer.step()
    others = copies(weights)
    loaded = plain.ours(others)
    loaded.load_state_dict(through_a_file(optimizer.state_dict()))
    for group in (weights, others):
        for w in group:
            w.grad = torch.ones_like(w)
    optimizer.step()
    loaded.step()
    assert_same(weights, others)


def test_counts_beyond_float32s(fresh, steps):
    """A float32 count would stop at 2²⁴; ours goes on, also through a checkpoint."""
    weights = fresh()
    optimizer = schuss.torch.Adam(weights)
    steps(optimizer, weights, 0, 1)
    for w in weights:
        optimizer.state[w]["step"] = torch.tensor(2.0**24)
    steps(optimizer, weights, 1, 4)
    assert [optimizer.state[w]["step"].item() for w in weights] == [2**24 + 3] * 3
    others = copies(weights)
    loaded = schuss.torch.Adam(others)
    loaded.load_state_dict(through_a_file(optimizer.state_dict()))
    steps(loaded, others, 4, 5)
    assert loaded.state[others[0]]["step"].item() == 2**24 + 4


# State that is changed from outside


def compare_after(change, torch_case, fresh, steps):
    """Change the state of ours and of torch's in the same way: they go on alike."""
    found = []
    for make in (torch_case.ours, torch_case.theirs):
        weights = fresh()
        optimizer = make(weights)
        steps(optimizer, weights, 0, 3)
        change(optimizer, weights)
        steps(optimizer, weights, 3, 6)
        found.append(weights)
    assert_same(*found, exactly=False)


def slot_names(case, weight):
    return [case.row.names[slot] for slot in case.rule.slots_of(weight.dim())]


def test_a_replaced_slot_is_honoured(torch_case, fresh, steps):
    def change(optimizer, weights):
        for name in slot_names(torch_case, weights[1]):
            optimizer.state[weights[1]][name] = torch.full_like(optimizer.state[weights[1]][name], 0.25)

    compare_after(change, torch_case, fresh, steps)


def test_a_slot_changed_in_place_is_honoured(torch_case, fresh, steps):
    def change(optimizer, weights):
        for name in slot_names(torch_case, weights[0]):
            optimizer.state[weights[0]][name].mul_(0.5)

    compare_after(change, torch_case, fresh, steps)


def test_an_entry_that_is_a_new_dict_is_honoured(torch_case, fresh, steps):
    def change(optimizer, weights):
        old = optimizer.state[weights[0]]
        optimizer.state[weights[0]] = {k: v.clone() * 1 if v is not None else v for k, v in old.items()}
        for name in slot_names(torch_case, weights[0]):
            optimizer.state[weights[0]][name].zero_()

    if torch_case.row.rule.state or torch_case.rule.slots:
        compare_after(change, torch_case, fresh, steps)


def test_a_step_count_set_by_hand_is_honoured(torch_case, fresh, steps):
    if not torch_case.row.counts_steps:
        pytest.skip("keeps no count")

    def change(optimizer, weights):
        optimizer.state[weights[0]]["step"] = torch.tensor(40.0)
        optimizer.state[weights[1]]["step"].fill_(70.0)

    compare_after(change, torch_case, fresh, steps)


STARTS_AT_CONSTRUCTION = {"Adagrad"}  # torch's cannot begin again from an empty state


def test_a_cleared_state_begins_again(torch_case, fresh, steps):
    if torch_case.name in STARTS_AT_CONSTRUCTION:
        pytest.skip("torch's own fails")
    compare_after(lambda optimizer, weights: optimizer.state.clear(), torch_case, fresh, steps)


def test_a_new_state_begins_again(torch_case, fresh, steps):
    if torch_case.name in STARTS_AT_CONSTRUCTION:
        pytest.skip("torch's own fails")

    def change(optimizer, weights):
        optimizer.state = defaultdict(dict)

    compare_after(change, torch_case, fresh, steps)


def test_one_weights_state_removed_begins_again(torch_case, fresh, steps):
    if torch_case.name in STARTS_AT_CONSTRUCTION:
        pytest.skip("torch's own fails")

    def change(optimizer, weights):
        optimizer.state.pop(weights[1], None)

    compare_after(change, torch_case, fresh, steps)


def test_adagrad_begins_again_from_an_empty_state(fresh, steps):
    weights, straight = fresh(), fresh()
    optimizer = schuss.torch.Adagrad(weights, initial_accumulator_value=0.5)
    steps(optimizer, weights, 0, 2)
    for w, s in zip(weights, straight, strict=True):
        w.data.copy_(s.data)
    optimizer.state.clear()
    steps(optimizer, weights, 0, 2)
    steps(schuss.torch.Adagrad(straight, initial_accumulator_value=0.5), straight, 0, 2)
    assert_same(weights, straight)


def test_load_hooks_are_called(fresh):
    weights = fresh()
    optimizer = schuss.torch.Adam(weights)
    called = []
    optimizer.register_load_state_dict_pre_hook(lambda o, s: called.append("before"))
    optimizer.register_load_state_dict_post_hook(lambda o: called.append("after"))
    optimizer.register_state_dict_pre_hook(lambda o: called.append("save before"))
    optimizer.register_state_dict_post_hook(lambda o, s: called.append("save after"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert called == ["save before", "save after", "before", "after"]


# Checkpoints that do not fit


def snapshot(optimizer):
    return copy.deepcopy(optimizer.state_dict())


def assert_refused(optimizer, state, match):
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=match):
        optimizer.load_state_dict(state)
    after = optimizer.state_dict()
    assert before["param_groups"] == after["param_groups"]
    torch.testing.assert_close(after["state"], before["state"], rtol=0, atol=0)


def test_another_optimizers_checkpoint_is_refused(fresh, steps):
    weights, others = fresh(), fresh()
    optimizer, other = schuss.torch.Adam(weights), schuss.torch.RMSprop(others)
    steps(optimizer, weights, 0, 1)
    steps(other, others, 0, 1)
    assert_refused(
        optimizer, other.state_dict(), r"'square_avg'; Adam stores 'exp_avg'.*another optimizer's\?"
    )


def test_other_shapes_are_refused_by_key(fresh, steps, noise):
    weights, others = (
        fresh(),
        [noise(3, 4).requires_grad_(), noise(9).requires_grad_(), noise().requires_grad_()],
    )
    optimizer, other = schuss.torch.Adam(weights), schuss.torch.Adam(others)
    steps(optimizer, weights, 0, 1)
    steps(other, others, 0, 1)
    assert_refused(
        optimizer,
        other.state_dict(),
        r"'exp_avg' of weight 1 has shape \(9,\), the weight \(7,\)\. Is the model",
    )


@pytest.mark.parametrize("name", ["exp_avg", "step"])
def test_state_without_numbers_is_refused(name):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = schuss.torch.AdamW([weight])
    weight.grad = torch.ones(3)
    optimizer.step()
    saved = optimizer.state_dict()
    saved["state"][0][name] = saved["state"][0][name].to("meta")
    with pytest.raises(ValueError, match=f"'{name}' of weight 0"):
        optimizer.load_state_dict(saved)


def test_other_groups_are_refused(fresh):
    optimizer = schuss.torch.Adam(fresh())
    other = schuss.torch.Adam(fresh()[:2])
    assert_refused(optimizer, other.state_dict(), r"groups of \[2\] weights, this optimizer of \[3\]")


def test_a_checkpoint_with_impossible_hyperparameters_is_refused(fresh):
    optimizer = schuss.torch.Adam(fresh())
    state = snapshot(optimizer)
    state["param_groups"][0]["betas"] = (0.9, 1.0)
    assert_refused(optimizer, state, r"beta2=1\.0 is not in \[0, 1\)")


def test_how_a_step_is_run_is_not_in_a_checkpoint():
    """Of two optimizers with the same state one may be captured in a graph, and the other not."""
    weight = torch.nn.Parameter(torch.ones(3))
    saved = torch.optim.Adam([weight], foreach=True).state_dict()
    optimizer = schuss.torch.Adam([weight], capturable=True)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["capturable"] is True
    assert optimizer.param_groups[0]["foreach"] is None


# Checkpoints of others, and of earlier versions


def as_older_torch(state):
    """Counts as plain numbers, as torch.optim had them."""
    for entry in state["state"].values():
        if "step" in entry:
            entry["step"] = int(entry["step"])


def as_tensors(state):
    """Rates as tensors, and scalars as tensors of one number."""
    for group in state["param_groups"]:
        group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)
    for entry in state["state"].values():
        for name in entry.keys() & {"step", "mu_product", "eta", "mu"}:
            entry[name] = entry[name].reshape(1)


@pytest.mark.parametrize("change", [as_older_torch, as_tensors])
def test_the_forms_that_torchs_checkpoints_have(change, torch_case, fresh, steps):
    whole, moved = fresh(), fresh()
    steps(torch_case.theirs(whole), whole, 0, 2 * STEPS)
    optimizer = torch_case.theirs(moved)
    steps(optimizer, moved, 0, STEPS)
    state = copy.deepcopy(optimizer.state_dict())
    change(state)
    moved = copies(moved)
    optimizer = torch_case.ours(moved)
    optimizer.load_state_dict(state)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(optimizer, moved, STEPS, 2 * STEPS)
    assert_same(whole, moved, exactly=False)


def test_buffers_that_have_not_begun_are_none_in_torchs_checkpoints(fresh, steps):
    weights = fresh()
    optimizer = schuss.torch.SGD(weights, lr=0.1, momentum=0.9)
    state = snapshot(optimizer)
    state["state"] = {k: {"momentum_buffer": None} for k in range(3)}
    optimizer.load_state_dict(state)
    steps(optimizer, weights, 0, 2)
    others = fresh()
    steps(schuss.torch.SGD(others, lr=0.1, momentum=0.9), others, 0, 2)
    assert_same(weights, others)


def test_steps_that_torch_took_count_for_a_schedule(fresh, steps):
    """torch.optim keeps our group's count in its checkpoint, and does not go on with it."""
    weights = fresh()
    ours = schuss.torch.Adam(weights, lr=lambda n: 0.1 / (1 + n))
    steps(ours, weights, 0, 2)
    theirs = torch.optim.Adam(weights)
    theirs.load_state_dict(ours.state_dict())
    steps(theirs, weights, 2, 5)
    ours.load_state_dict(theirs.state_dict())
    assert ours.param_groups[0]["step"] == 5
    assert ours.param_groups[0]["lr"] == 0.1 / 6


def test_an_older_checkpoint_of_ours_is_read():
    """Saved before a checkpoint said how many entries it has; bfloat16 with what rounding took, and an average."""
    weights = [torch.zeros(2, 3, dtype=torch.bfloat16), torch.zeros(4), torch.ones(2)]
    weights = [w.requires_grad_() for w in weights]
    optimizer = schuss.torch.NAdam(
        [{"params": weights[:1]}, {"params": weights[1:]}], lr=0.5, compensated=True, ema_decay=0.9
    )
    saved = torch.load(Path(__file__).with_name("nadam_0.pt"), weights_only=True)
    assert saved.keys() == {"state", "param_groups"}
    optimizer.load_state_dict(saved)
    again = optimizer.state_dict()
    assert again["param_groups"] == saved["param_groups"]
    torch.testing.assert_close(again["state"], saved["state"], rtol=0, atol=0)
    assert again["state_entries"] == dict.fromkeys(
        ["average", "exp_avg", "exp_avg_sq", "mu_product", "step"], 2
    ) | {"rest": 1}
    for w in weights:
        w.grad = torch.ones_like(w)
    optimizer.step()
    assert [int(optimizer.state[w]["step"]) for w in weights] == [4, 4, 1]


def test_torchs_distributed_checkpoints_go_in_and_out(fresh, steps):
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    def trained(seed, first, last, saved=None):
        torch.manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        model[1].bias.requires_grad_(False)
        optimizer = schuss.torch.AdamW(model.parameters(), lr=0.1)
        if saved is not None:
            model.load_state_dict(saved[0])
            set_optimizer_state_dict(model, optimizer, saved[1])
        for step in range(first, last):
            optimizer.zero_grad()
            model(torch.full((2, 3), 1.0 + step)).square().sum().backward()
            optimizer.step()
        return copy.deepcopy([model.state_dict(), get_optimizer_state_dict(model, optimizer)])

    whole = trained(0, 0, 6)
    parts = trained(1, 3, 6, trained(0, 0, 3))
    assert parts[1]["param_groups"] == whole[1]["param_groups"]
    torch.testing.assert_close(parts[0], whole[0], rtol=0, atol=0)
    torch.testing.assert_close(parts[1]["state"], whole[1]["state"], rtol=0, atol=0)
    assert set(whole[1]["state"]) == {"0.weight", "0.bias", "1.weight"}


# Weights and counts that others put in their place


def test_weights_replaced_before_the_first_step_have_no_state(plain, fresh, steps):
    """As Accelerate does for FSDP: placeholders while the model is wrapped, then the wrapped weights."""
    weights = fresh()
    optimizer = plain.ours([w.detach().clone().requires_grad_() for w in weights])
    optimizer.param_groups[0]["params"] = [torch.empty(1) for _ in weights]
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[0]["params"] = list(weights)
    optimizer.load_state_dict(optimizer.state_dict())
    steps(optimizer, weights, 0, 2)
    straight = fresh()
    steps(plain.ours(straight), straight, 0, 2)
    assert_same(weights, straight)
    assert set(optimizer.state) <= set(weights)


def test_a_stepped_weights_state_is_not_left_behind_in_silence(fresh, steps):
    weights = fresh()
    optimizer = schuss.torch.Adagrad(weights)
    steps(optimizer, weights, 0, 1)
    optimizer.param_groups[0]["params"] = fresh()
    with pytest.raises(
        ValueError, match=r"state of a tensor of shape \(3, 4\) that is in no parameter group"
    ):
        optimizer.state_dict()


@pytest.mark.parametrize("name", ["Adam", "NAdam"])
def test_counts_in_shared_memory_are_counted_together(name, fresh, steps):
    """As A3C's optimizers: workers step the same weights, and have state and counts in common."""
    found = []
    for module in (torch.optim, schuss.torch):
        weights = fresh()
        workers = [getattr(module, name)(weights, lr=0.1) for _ in range(2)]
        shared = {"step": torch.zeros(1), "exp_avg": 0, "exp_avg_sq": 0, "mu_product": torch.ones(1)}
        for w in weights:
            entry = {
                key: (value.clone() if isinstance(value, torch.Tensor) else torch.zeros_like(w)).detach()
                for key, value in shared.items()
                if name == "NAdam" or key != "mu_product"
            }
            for tensor in entry.values():
                tensor.share_memory_()
            for worker in workers:
                worker.state[w].update(entry)
        for step in range(4):
            steps(workers[step % 2], weights, step, step + 1)
        for w in weights:
            assert workers[0].state[w]["step"] is workers[1].state[w]["step"]
            assert workers[0].state[w]["step"].is_shared()
            assert workers[0].state[w]["step"].item() == 4
        found.append(weights)
    assert_same(*found, exactly=False)


def test_what_is_sent_to_another_process_goes_on_counting_here(fresh, steps):
    """Sending moves tensors to shared memory, the counts too: no view of another memory may be left in the state."""
    weights, straight = fresh(), fresh()
    optimizer = schuss.torch.NAdam(weights)
    steps(optimizer, weights, 0, 2)
    ForkingPickler.dumps((optimizer, weights))
    assert weights[0].is_shared()
    steps(optimizer, weights, 2, 4)
    expected = schuss.torch.NAdam(straight)
    steps(expected, straight, 0, 4)
    assert_same(weights, straight)
    torch.testing.assert_close(
        optimizer.state_dict()["state"], expected.state_dict()["state"], rtol=1e-6, atol=0
    )
