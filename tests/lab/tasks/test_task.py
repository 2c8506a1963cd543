import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from schuss.lab.tasks import load
from schuss.lab.tasks.data import leaves, source
from schuss.lab.tasks.task import Task


def squared(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def a_task(**changes):
    x = torch.arange(100.0).unsqueeze(1)
    given = {"name": "line", "model": lambda: nn.Linear(1, 1), "loss": squared, "train": (x, x), "epochs": 1}
    return Task(**given | changes)


class Numbers(Dataset):
    def __len__(self):
        return 100

    def __getitem__(self, i):
        return torch.tensor([float(i)]), torch.tensor([float(i)])


class Endless(IterableDataset):
    def __iter__(self):
        for i in range(8):
            yield torch.tensor([float(i)]), torch.rand(1)


def seen(batches):
    return torch.cat([batch[0] for batch in batches]).flatten().tolist()


def test_splits_part_all_rows_and_never_change():
    task = a_task()
    parts = [task.rows(name).index.tolist() for name in ("train", "validation", "test")]
    assert sorted(i for part in parts for i in part) == list(range(100))
    assert [len(part) for part in parts] == [70, 15, 15]
    assert parts == [a_task().rows(name).index.tolist() for name in ("train", "validation", "test")]
    assert parts[2][:6] == [0, 4, 5, 24, 30, 34]  # written down once: for ever


def test_given_splits_are_left_alone_and_the_missing_one_is_carved_from_train():
    held = (torch.zeros(7, 1), torch.zeros(7, 1))
    task = a_task(test=held)
    assert [task.length(name) for name in ("train", "validation", "test")] == [85, 15, 7]
    assert task.how.startswith("Validation carved from train")


def test_an_epoch_shows_every_row_once_in_an_order_of_seed_and_epoch_alone():
    rows = a_task().rows("train")
    first = seen(rows.batches(16, seed=3, epoch=0))
    assert sorted(first) == [float(i) for i in rows.index]
    torch.rand(5)  # nothing that happens elsewhere matters
    assert first == seen(rows.batches(16, seed=3, epoch=0))
    assert first != seen(rows.batches(16, seed=3, epoch=1))
    assert first != seen(rows.batches(16, seed=4, epoch=0))
    assert first == seen(rows.batches(5, seed=3, epoch=0))  # whatever the batch size


@pytest.mark.parametrize("batch_size", [1, 32, 70])
def test_a_run_sees_as_many_examples_whatever_the_batch_size(batch_size):
    task = a_task(epochs=3)
    steps = task.total_steps(batch_size)
    stream = task.stream(0, batch_size)
    assert sum(len(next(stream)[0]) for _ in range(steps)) == 3 * 70


@pytest.mark.parametrize(
    "data",
    [
        (np.arange(100.0)[:, None], np.arange(100.0)[:, None]),
        [torch.arange(100.0).unsqueeze(1), torch.arange(100.0).unsqueeze(1)],
        Numbers(),
        DataLoader(Numbers(), batch_size=3, shuffle=True),
    ],
)
def test_every_kind_of_data_with_a_length_gives_the_same_rows(data):
    rows = source("train", data)
    assert sorted(seen(rows.batches(9, seed=0))) == [float(i) for i in range(100)]


def test_a_list_of_batches_is_taken_as_it_is():
    batches = [{"x": torch.ones(2), "y": torch.zeros(2)}, {"x": torch.ones(3), "y": torch.zeros(3)}]
    stream = source("train", batches)
    assert [len(batch["x"]) for batch in stream.batches(9, seed=0)] == [2, 3]
    pairs = [(torch.ones(2, 1), torch.ones(2, 1))]
    assert seen(source("train", pairs).batches(9)) == [1, 1]


def test_dicts_stay_dicts():
    rows = source("train", {"x": torch.arange(4), "y": {"z": torch.arange(4) * 2}})
    batch = next(rows.batches(4))
    assert batch["y"]["z"].tolist() == [0, 2, 4, 6]


def test_a_stream_repeats_and_leaves_the_numbers_of_training_alone():
    stream = source("train", DataLoader(Endless(), batch_size=2))
    once = [tuple(leaf.tolist() for leaf in leaves(batch)) for batch in stream.batches(0, seed=1)]
    torch.manual_seed(7)
    free = torch.rand(2)
    torch.manual_seed(7)
    drawn, again = [], []
    for batch in stream.batches(0, seed=1):
        again.append(tuple(leaf.tolist() for leaf in leaves(batch)))
        drawn.append(torch.rand(1).item())
    assert once == again
    assert drawn[:2] == free.tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "is not a name"),
        ({"name": 3}, "name=3 is not a name"),
        ({"model": torch.nn.Linear(1, 1)}, "model='Linear' is not a function that builds a model"),
        ({"loss": 3}, "loss=3 is not a function"),
        ({"metric": "accuracy"}, "metric='accuracy' is not a function"),
        ({"batch_size": "64"}, "batch_size='64' is not an integer ≥ 1"),
        ({"epochs": math.inf}, "epochs=inf is not a finite number"),
        ({"epochs": None, "steps": 1.5}, "steps=1.5 is not an integer ≥ 1"),
        ({"best": "most"}, "best='most' is not 'max' or 'min'"),
        ({"batch_size": 0}, "batch_size=0 is not an integer ≥ 1"),
        ({"epochs": -1}, "epochs=-1 is not a finite number greater than 0"),
        ({"epochs": None}, "Give exactly one of them"),
        ({"steps": 5}, "Give exactly one of them"),
        ({"train": ()}, "is not data"),
        ({"train": []}, "is not data"),
        ({"train": {"x": torch.zeros(3), "y": "words"}}, "It takes a table"),
        ({"train": 7}, "is not data"),
        ({"train": torch.zeros(0, 2)}, "There is nothing in it to learn from"),
        ({"train": (torch.zeros(3), torch.zeros(4))}, "must have the same length"),
        ({"train": iter([1, 2])}, "It can be read only once"),
        ({"train": list}, "A stream cannot be split"),
        ({"train": list, "validation": torch.ones(2), "test": torch.ones(2)}, "give steps= instead"),
        ({"train": torch.zeros(2, 1)}, "enough to split"),
    ],
)
def test_what_no_race_could_run_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        a_task(**changes)


def test_an_unknown_task_lists_the_known():
    with pytest.raises(ValueError, match=r"task='nope' is not one of .*digits.*mnist"):
        load("nope")


def test_an_unknown_setting_of_a_task_lists_the_known():
    with pytest.raises(ValueError, match=r"After digits: it takes model=\."):
        load("digits:size=3")
    with pytest.raises(ValueError, match="model='huge' is not 'mlp' or 'convnet'"):
        load("digits:model=huge")
