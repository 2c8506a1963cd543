"""A training step that goes through torch.compile takes the optimizer's step as it is."""

import pytest
import torch

import schuss.torch


@pytest.mark.filterwarnings("ignore")  # the tracer's own, of torch's making
def test_a_compiled_training_step_is_the_plain_one():
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))

    def trained(wrap):
        torch.manual_seed(1)
        model = torch.nn.Linear(8, 8)
        optimizer = schuss.torch.AdamW(model.parameters(), lr=1e-2)

        def step():
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

        step = wrap(step)
        for _ in range(3):
            step()
        return model.weight.detach()

    compiled = trained(lambda step: torch.compile(step, backend="eager"))
    assert torch.equal(compiled, trained(lambda step: step))
