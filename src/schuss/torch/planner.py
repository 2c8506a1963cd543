"""How the weights of an optimizer come by a plan: their state checked, and made where there is none."""

from __future__ import annotations

from collections.abc import Container, Iterable
from itertools import chain
from typing import Any

import torch

from schuss.compile.formula import AVERAGE
from schuss.core.hyperparameters import Group
from schuss.core.matrices import check_matrix
from schuss.core.options import formula_of
from schuss.core.storage import weight_storage
from schuss.rules import Rule
from schuss.torch import checkpoints, checks, sharded, storage
from schuss.torch.counts import Counts
from schuss.torch.hyperparameters import Hyperparameters
from schuss.torch.kinds import Kinds
from schuss.torch.plan import Item, Plan
from schuss.torch.state import State

Tensor = torch.Tensor

# What to do with what is no matrix.
GROUPS = (
    "schuss.torch.groups(model, matrix='auto') gives AdamW what is none; or give such weights a group with a rule of "
    "their own: {'params': ..., 'rule': 'AdamW', 'lr': 1e-3}."
)


class Planner:
    """Makes plans and state. `optimizer` is the one whose groups and state they are for: a wrapper may have its own."""

    def __init__(self, kinds: Kinds, hyperparameters: Hyperparameters, counts: Counts) -> None:
        self.kinds, self.hyperparameters, self.counts = kinds, hyperparameters, counts

    def begin_at_construction(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the state of weights whose rule has it before the first step."""
        groups = [group for group in optimizer.param_groups for _ in group["params"]]
        begun = [k for k, group in enumerate(groups) if self.kinds.of(group).row.state_at_construction]
        if begun:
            self._begin(optimizer, begun, range(len(groups)))

    def plan(
        self, optimizer: torch.optim.Optimizer, weights: list[Tensor], gradients: list[Any], rules: list[Rule]
    ) -> Plan:
        """How these weights take steps with gradients like these; `rules` are by group."""
        groups = optimizer.param_groups
        group_of = [k for k, group in enumerate(groups) for _ in group["params"]]
        present = [k for k, gradient in enumerate(gradients) if gradient is not None]
        whole = {k for k in present if gradients[k].layout != torch.sparse_coo}
        of_group = [formula_of(rule, group) for rule, group in zip(rules, groups, strict=True)]
        formulas = {k: of_group[group_of[k]].for_axes(rules[group_of[k]], weights[k].dim()) for k in present}
        sharded.check_whole([weights[k] for k in present if formulas[k].passes])
        for k in present:
            kind, rule = self.kinds.of(groups[group_of[k]]), rules[group_of[k]]
            shape_chooses = rule.variant_of(weights[k].dim()) != rule.variant or rule.shapes
            names = [kind.row.names[slot] for slot in rule.slots_of(weights[k].dim())]
            together = [*kind.together, *(name for name in names if shape_chooses)]
            check_matrix(
                formulas[k],
                f"Weight {k}",
                weights[k].shape,
                weights[k].is_complex(),
                GROUPS,
                k not in whole,
            )
            entry = optimizer.state.get(weights[k], {})
            if rule.shapes or formulas[k].of_rows:
                checks.check_real(k, weights[k], kind.row.name)
            checks.check(k, weights[k], gradients[k], entry, [*names, AVERAGE], kind.check.parts, together)
        found = self._begin(optimizer, present, whole)
        items = [
            Item(weights[k], slots, stored, formulas[k], group_of[k], k)
            for k, (stored, slots) in zip(present, found, strict=True)
        ]
        plan = Plan(items, gradients)
        plan.state = optimizer.state
        return plan

    def _begin(
        self, optimizer: torch.optim.Optimizer, present: Iterable[int], whole: Container[int]
    ) -> list[tuple[tuple[str, ...], list[Tensor]]]:
        """Give the weights that are `present` what their rule remembers, where they have none.

        Return the storage of each, weight and slots, and the tensors of its slots and of their auxiliary buffers. State
        in int8 needs the `whole` of a gradient: where rows come alone, it is in float32.
        """
        if not isinstance(optimizer.state, State):
            optimizer.state = State(optimizer.state)
        groups, state = optimizer.param_groups, optimizer.state
        weights: list[Tensor] = list(chain.from_iterable(group["params"] for group in groups))
        group_of: list[Group] = [group for group in groups for _ in group["params"]]
        if not self.counts.stands_for(weights, self.kinds.scalars):
            self._renew_counts(optimizer, weights, group_of)
        found: list[tuple[tuple[str, ...], list[Tensor]]] = []
        for k in present:
            weight, group = weights[k], group_of[k]
            row, rule = self.kinds.of(group).row, self.hyperparameters.rule(group)
            averaged = group["ema_decay"] is not None
            first = self.hyperparameters.start(group, rule).initial()
            stored = weight_storage(storage.name_of(weight), group["rounding"], group["compensated"])
            own = rule.slots_of(weight.dim())
            slots = {row.names[slot]: first.get(slot, 0.0) for slot in own}
            shapes = {row.names[slot]: rule.shapes[slot] for slot in own if slot in rule.shapes}
            # Blocks would cross from row to row.
            in_blocks = k in whole and not formula_of(rule, group).for_axes(rule, weight.dim()).of_rows
            if slots or averaged or row.counts_steps or storage.rest_dtype(stored) or weight in state:
                entry = state[weight]
                # An average that begins alone takes no count with it: the weight has its own.
                begun = bool(slots) or entry.get(AVERAGE) is not None
                precise = [row.names[slot] for slot in (*rule.precise, *rule.shapes)]
                asked = group["state_dtype"]
                new = storage.begin(entry, weight, slots, averaged, asked, in_blocks, precise, shapes)
                new = new or id(weight) in self.counts.unmoved
                steps = max(group["step"], begun) if begun or not averaged else 0
                self.counts.remember(k, entry, row, first, new, steps)
            else:
                entry = {}
                self.counts.at_least(k, group["step"])
            names = [*slots, *([AVERAGE] if averaged else [])]
            found.append(storage.arrays(weight, stored, entry, names))
        return found

    def _renew_counts(
        self, optimizer: torch.optim.Optimizer, weights: list[Tensor], group_of: list[Group]
    ) -> None:
        known, state = set(map(id, self.counts.weights)), optimizer.state
        # In a group with averages, a weight that has none has had no step.
        averaged = {id(g) for w, g in zip(weights, group_of, strict=True) if AVERAGE in state.get(w, ())}
        self.counts.renew(weights, self.kinds.scalars)
        self.drop_unstepped(optimizer)
        for k, (weight, group) in enumerate(zip(weights, group_of, strict=True)):
            row = self.kinds.of(group).row
            if not row.counts_steps:  # a checkpoint has the group's count alone
                if id(weight) not in known and id(group) not in averaged:
                    self.counts.at_least(k, group["step"])
            elif weight in state and "step" in state[weight]:
                self.counts.remember(k, state[weight], row, {}, False, 0)

    def drop_unstepped(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop the state that construction made of weights that were replaced before a step, as FSDP does."""
        groups, state = optimizer.param_groups, optimizer.state
        if any(self.kinds.of(group).row.state_at_construction for group in groups):
            for one in checkpoints.strays(groups, state):
                if not float(state[one].get("step", 0)):
                    del state[one]
