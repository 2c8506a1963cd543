"""`--diagnose`: the curvature under each task's winner, measured once and stored with the race."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from schuss.lab.racing.assemble import TaskRace
from schuss.lab.racing.plan import digest
from schuss.lab.racing.store import Store


def measure_winners(races: Sequence[TaskRace], tasks: Sequence[Mapping[str, Any]], store: Store) -> None:
    """Measure what the store does not hold yet, here, while nothing else runs."""
    from schuss.lab.diagnose.section import curvature_of

    for race, task in zip(races, tasks, strict=True):
        key = _key(race, task)
        if key is None or store.get(key) is not None:
            continue
        chosen = race.plan.chosen[task["verdict"]["take"]]
        contestant = chosen.contestant
        found = curvature_of(
            *(race.task, contestant.entry, race.spec, chosen.parameters),
            batch_size=contestant.batch_size,
            schedule=contestant.schedule,
            seed=race.plan.seeds["tune"][0],
        )
        store.put(key, found)


def attach(races: Sequence[TaskRace], tasks: Sequence[dict[str, Any]], store: Store) -> None:
    """Put what is stored into the tasks' reports; nothing where no winner was measured."""
    for race, task in zip(races, tasks, strict=True):
        key = _key(race, task)
        found = None if key is None else store.get(key)
        if found is not None:
            task["curvature"] = found


def _key(race: TaskRace, task: Mapping[str, Any]) -> str | None:
    take = task["verdict"]["take"]
    if take is None or take not in race.plan.chosen:
        return None
    chosen, seed = race.plan.chosen[take], race.plan.seeds["tune"][0]
    return f"curvature {digest(race.plan.fingerprint, chosen.id, seed, 'own schedule')}"
