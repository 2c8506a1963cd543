"""Sparse gradients: torch's own sparse optimizers where there are any, and every rule on the touched rows alone."""

import pytest
import torch

import schuss.torch

# Torch's own sparse Adagrad builds its tensors without saying whether to check them, and torch warns of that.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")

ROWS, WIDTH = 12, 3
TOUCHED = [[5, 0, 5, 9], [2, 9, 2, 2], [], [0, 1, 11, 5]]


@pytest.fixture(autouse=True)
def _float64(float64_default):
    """Torch's own scalars in float64, as its weights here."""


def sparse(noise, rows, seed, coalesced=False, width=(WIDTH,), dtype=torch.float64):
    g = torch.sparse_coo_tensor(
        torch.tensor([rows], dtype=torch.int64),
        noise(len(rows), *width, seed=seed).to(dtype),
        (ROWS, *width),
        check_invariants=True,
    )
    return g.coalesce() if coalesced else g


def path(optimizer, weight, noise, coalesced):
    for seed, rows in enumerate(TOUCHED):
        weight.grad = sparse(noise, rows, seed, coalesced)
        values = weight.grad._values().clone()
        optimizer.step()
        assert torch.equal(weight.grad._values(), values), "a gradient was written to"
        assert weight.grad.is_sparse
    return weight.detach()


SAME = [
    pytest.param(lambda p: schuss.torch.Adam(p), lambda p: torch.optim.SparseAdam(p), id="SparseAdam"),
    pytest.param(
        lambda p: schuss.torch.Adam(p, lr=0.1, betas=(0.5, 0.9), eps=1e-3, maximize=True),
        lambda p: torch.optim.SparseAdam(p, lr=0.1, betas=(0.5, 0.9), eps=1e-3, maximize=True),
        id="SparseAdam-options",
    ),
    pytest.param(lambda p: schuss.torch.SGD(p, lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1), id="SGD"),
    pytest.param(
        lambda p: schuss.torch.SGD(p, lr=0.1, maximize=True),
        lambda p: torch.optim.SGD(p, lr=0.1, maximize=True),
        id="SGD-up",
    ),
    pytest.param(lambda p: schuss.torch.Adagrad(p), lambda p: torch.optim.Adagrad(p), id="Adagrad"),
    pytest.param(
        lambda p: schuss.torch.Adagrad(p, lr=0.1, lr_decay=0.1, initial_accumulator_value=0.3, eps=1e-3),
        lambda p: torch.optim.Adagrad(p, lr=0.1, lr_decay=0.1, initial_accumulator_value=0.3, eps=1e-3),
        id="Adagrad-options",
    ),
]


@pytest.mark.parametrize("coalesced", [True, False])
@pytest.mark.parametrize(("ours", "theirs"), SAME)
def test_torchs_sparse_optimizers(ours, theirs, coalesced, noise):
    mine, other = (noise(ROWS, WIDTH).requires_grad_() for _ in range(2))
    found, expected = (
        path(ours([mine]), mine, noise, coalesced),
        path(theirs([other]), other, noise, coalesced),
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("coalesced", [True, False])
def test_touched_rows_move_as_by_a_dense_step_and_no_others(case, coalesced, noise):
    """One step: the touched rows go where a dense step takes them (their weight decay with them)."""
    weight, dense = (noise(ROWS, WIDTH).requires_grad_() for _ in range(2))
    start = weight.detach().clone()
    lazily = case.ours([weight])
    weight.grad = sparse(noise, TOUCHED[0], 1, coalesced)
    if case.sparse_refusal:
        with pytest.raises(RuntimeError, match=case.sparse_refusal):
            lazily.step()
        assert torch.equal(weight.detach(), start)
        return
    # Adam's page takes SparseAdam's ε for sparse gradients unless another is asked for.
    like = {"eps_position": "uncorrected"} if case.name == "Adam" and "eps_position" not in case.own else {}
    usual = case.ours([dense], **like)
    dense.grad = weight.grad.to_dense()
    lazily.step()
    usual.step()
    rows = sorted(set(TOUCHED[0]))
    untouched = [k for k in range(ROWS) if k not in rows]
    torch.testing.assert_close(weight.detach()[rows], dense.detach()[rows], rtol=1e-12, atol=1e-14)
    assert torch.equal(weight.detach()[untouched], start[untouched])
    first = case.rule.initial()
    for slot in case.rule.slots:
        name = case.row.names[slot]
        mine, other = lazily.state[weight][name], usual.state[dense][name]
        torch.testing.assert_close(mine[rows], other[rows], rtol=1e-12, atol=1e-14)
        assert (mine[untouched] == first.get(slot, 0.0)).all()


def test_all_rows_touched_is_a_dense_path(case, noise):
    if case.sparse_refusal:
        pytest.skip("refused")
    weight, dense = (noise(ROWS, WIDTH).requires_grad_() for _ in range(2))
    like = {"eps_position": "uncorrected"} if case.name == "Adam" and "eps_position" not in case.own else {}
    lazily, usual = case.ours([weight]), case.ours([dense], **like)
    for seed in range(6):
        weight.grad = sparse(noise, list(range(ROWS)), seed)
        dense.grad = weight.grad.to_dense()
        lazily.step()
        usual.step()
    torch.testing.assert_close(weight.detach(), dense.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("lies", ["contiguous", "transposed", "sliced"])
def test_weights_of_any_layout(lies, sample, noise):
    start = noise(ROWS, WIDTH)
    weight = {
        "contiguous": start.clone(),
        "transposed": start.mT.contiguous().mT,
        "sliced": torch.full((ROWS, 2 * WIDTH), torch.nan, dtype=torch.float64)[:, ::2].copy_(start),
    }[lies].requires_grad_()
    expected = start.clone().requires_grad_()
    torch.testing.assert_close(
        path(sample.ours([weight]), weight, noise, False),
        path(sample.ours([expected]), expected, noise, False),
    )


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_rows_of_any_shape(shape, sample, noise):
    weight, dense = (noise(ROWS, *shape).requires_grad_() for _ in range(2))
    weight.grad = sparse(noise, [3, 3, 7], 1, width=shape)
    dense.grad = weight.grad.to_dense()
    sample.ours([weight]).step()
    sample.ours([dense]).step()
    torch.testing.assert_close(weight.detach()[[3, 7]], dense.detach()[[3, 7]], rtol=1e-12, atol=1e-14)


def test_more_sparse_dimensions(sample, noise):
    weight, dense = (noise(4, 5, 2).requires_grad_() for _ in range(2))
    start = weight.detach().clone()
    where = torch.tensor([[0, 3, 3, 0], [4, 1, 1, 0]])
    weight.grad = torch.sparse_coo_tensor(where, noise(4, 2, seed=1), (4, 5, 2), check_invariants=True)
    dense.grad = weight.grad.to_dense()
    sample.ours([weight]).step()
    sample.ours([dense]).step()
    touched = torch.zeros(4, 5, dtype=torch.bool)
    touched[where[0], where[1]] = True
    torch.testing.assert_close(weight.detach()[touched], dense.detach()[touched], rtol=1e-12, atol=1e-14)
    assert torch.equal(weight.detach()[~touched], start[~touched])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
def test_dtypes(dtype, noise):
    weight, dense = (noise(ROWS, WIDTH).to(dtype).requires_grad_() for _ in range(2))
    weight.grad = sparse(noise, [1, 4], 1, dtype=dtype)
    dense.grad = weight.grad.to_dense()
    for w in (weight, dense):
        schuss.torch.AdamW([w], lr=0.1).step()
    assert torch.equal(weight.detach()[[1, 4]], dense.detach()[[1, 4]])


def test_sparse_and_dense_weights_and_gradients_by_turns(sample, noise):
    """The way of a weight may change from one step to the next."""
    table, linear = noise(ROWS, WIDTH).requires_grad_(), noise(5).requires_grad_()
    dense_table, dense_linear = noise(ROWS, WIDTH).requires_grad_(), noise(5).requires_grad_()
    mixed, usual = sample.ours([table, linear]), sample.ours([dense_table, dense_linear])
    for seed in range(5):
        every = sparse(noise, list(range(ROWS)), seed)
        table.grad = every if seed % 2 else every.to_dense()
        dense_table.grad = every.to_dense()
        linear.grad = dense_linear.grad = noise(5, seed=seed)
        mixed.step()
        usual.step()
    torch.testing.assert_close(table.detach(), dense_table.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(linear.detach(), dense_linear.detach(), rtol=1e-12, atol=1e-14)


def test_a_refusal_of_one_weight_moves_none(noise):
    """L2 decay in the sparse weight's group stops the whole step, before anything is written."""
    linear, table = noise(5).requires_grad_(), noise(ROWS, WIDTH).requires_grad_()
    optimizer = schuss.torch.Adam([{"params": [linear]}, {"params": [table], "weight_decay": 0.1}])
    linear.grad, table.grad = noise(5, seed=1), sparse(noise, [1], 2)
    before = linear.detach().clone(), table.detach().clone()
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"would need every row.*Set weight_decay=0"):
            optimizer.step()
    assert torch.equal(linear, before[0])
    assert torch.equal(table, before[1])
    assert optimizer.param_groups[0]["step"] == 0
    assert all(float(entry.get("step", 0)) == 0 for entry in optimizer.state.values())
    optimizer.param_groups[1]["weight_decay"] = 0.0
    optimizer.step()
    assert not torch.equal(table, before[1])


def test_an_embedding_trains():
    torch.manual_seed(0)
    embedding = torch.nn.Embedding(50, 4, sparse=True)
    optimizer = schuss.torch.Adam(embedding.parameters(), lr=0.1)
    start = embedding.weight.detach().clone()
    for _ in range(100):
        optimizer.zero_grad()
        loss = (embedding(torch.tensor([3, 8, 3])) - 1).square().sum()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-2
    moved = (embedding.weight.detach() != start).any(dim=1).nonzero().reshape(-1).tolist()
    assert moved == [3, 8]


def test_an_empty_gradient_moves_nothing(plain, noise):
    if plain.sparse_refusal:
        pytest.skip("refused")
    weight = noise(ROWS, WIDTH).requires_grad_()
    start = weight.detach().clone()
    optimizer = plain.ours([weight], weight_decay=0.0) if plain.name != "Rprop" else plain.ours([weight])
    weight.grad = sparse(noise, [], 0)
    optimizer.step()
    assert torch.equal(weight, start)
