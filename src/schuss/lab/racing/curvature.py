"""`--diagnose`: the curvature under each task's winner, measured once and kept with the race."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from schuss.lab.racing.plan import Plan, digest
from schuss.lab.racing.store import Store
from schuss.lab.tasks.task import Task


class Lane(Protocol):
    """What is needed of a task on its way through a race."""

    task: Task
    spec: str
    plan: Plan


def look_into(lanes: Sequence[Lane], tasks: Sequence[Mapping[str, Any]], store: Store) -> None:
    """Measure what the store does not hold yet, here, while nothing else runs."""
    from schuss.lab.diagnose.section import curvature_of

    for lane, task in zip(lanes, tasks, strict=True):
        key = _key(lane, task)
        if key is None or store.note(key) is not None:
            continue
        chosen = lane.plan.chosen[task["verdict"]["take"]]
        contestant = chosen.contestant
        found = curvature_of(
            *(lane.task, contestant.entry, lane.spec, chosen.parameters),
            batch_size=contestant.batch_size,
            schedule=contestant.schedule,
            seed=lane.plan.seeds["tune"][0],
        )
        store.write_note(key, json.dumps(found, allow_nan=False))


def attach(lanes: Sequence[Lane], tasks: Sequence[dict[str, Any]], store: Store) -> None:
    """Put what is kept into the tasks' reports; nothing where no winner was measured."""
    for lane, task in zip(lanes, tasks, strict=True):
        key = _key(lane, task)
        kept = None if key is None else store.data(key)
        if kept is not None:
            task["curvature"] = kept


def _key(lane: Lane, task: Mapping[str, Any]) -> str | None:
    take = task["verdict"]["take"]
    if take is None or take not in lane.plan.chosen:
        return None
    chosen, seed = lane.plan.chosen[take], lane.plan.seeds["tune"][0]
    return f"curvature {digest(lane.plan.fingerprint, chosen.id, seed, 'own schedule')}"
