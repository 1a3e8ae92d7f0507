"""A mixture's experts: two stacks of linear layers with a gate between them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qload.geometry import Geometry, Kind, Part, Sharding, column, row
from qload.layout import Dim
from qload.plan import Source
from qload.quantization import Treatment
from qload.torch.dtypes import dtype_code
from qload.torch.kernels import Groups
from qload.torch.kernels.grouped import is_ahead
from qload.torch.layers.flow import Flow
from qload.torch.layers.grouping import GroupedProjection, Mixture
from qload.torch.layers.routing import Routing, must_be_static
from qload.torch.parallel import copy, reduce
from qload.torch.sites import Site

Gate = Callable[[Tensor], Tensor]


class ExpertLinear(GroupedProjection):
    """One linear layer for each expert, stored as a stack. `interleaved` parts alternate row by row."""

    def __init__(
        self,
        experts: int,
        in_features: int,
        parts: Sequence[Part],
        site: Site,
        *,
        sources: Sequence[Source],
        sharding: Sharding,
        treatment: Treatment | None = None,
        bias: bool = False,
        interleaved: bool = False,
    ) -> None:
        dtype = dtype_code(site.dtype)
        geometry = Geometry(in_features, tuple(parts), experts, Kind.EXPERTS, dtype, bias, interleaved)
        treatment = treatment or site.treat(sources, Kind.LINEAR, ("Linear",))
        super().__init__(geometry, sources, site, treatment, sharding)


class Experts(nn.Module):
    """Experts of `hidden_size` with a fused gate and up projection of `intermediate_size` each, or the latter alone.

    `gate` turns what is projected [..., 2 * intermediate_size], or half of it, into [..., intermediate_size].
    """

    def __init__(self, gate_up_proj: ExpertLinear, down_proj: ExpertLinear, gate: Gate) -> None:
        super().__init__()
        self.gate_up_proj = gate_up_proj
        self.down_proj = down_proj
        self.gate = gate
        self._mixture = Mixture()
        for layer in (gate_up_proj, down_proj):
            layer.join_mixture(self._mixture)
        self.settle_flows()

    def settle_flows(self) -> None:
        """Let the layers hand on to each other what each rank has, where the first one's outputs are divided."""
        is_divided = Dim.OUT in self.gate_up_proj.divided
        self.gate_up_proj.set_flow(Flow(gather_output=not is_divided))
        self.down_proj.set_flow(Flow(input_is_parallel=is_divided))
        self._mixture.is_summed = self.is_summed

    def forward(self, hidden: Tensor, expert_ids: Tensor, expert_weights: Tensor) -> Tensor:
        """hidden [tokens, hidden_size], ids and weights [tokens, k], alike on all ranks, into [tokens, hidden_size]."""
        group = self.gate_up_proj.group
        if not self.is_summed:
            return apply_one_by_one(self, hidden, expert_ids, expert_weights)
        hidden, expert_weights = copy(hidden, group), copy(expert_weights, group)
        return reduce(self.compute(hidden, expert_ids, expert_weights), group)

    @property
    def is_summed(self) -> bool:
        """Whether each rank computes some of what the output is the sum of: some experts, or features of each."""
        up, down = self.gate_up_proj.divided, self.down_proj.divided
        return Dim.EXPERT in up or (Dim.OUT in up and Dim.IN in down) or self.gate_up_proj.group.size == 1

    def compute(self, hidden: Tensor, expert_ids: Tensor, expert_weights: Tensor) -> Tensor:
        """This rank's share of `forward`, to be summed: without what other ranks' experts or features add."""
        apply = self.gate_up_proj.hooks.apply_experts
        is_apart = self.gate_up_proj.apart or self.down_proj.apart
        if apply is None or is_apart or self.down_proj.hooks.runtime is not self.gate_up_proj.hooks.runtime:
            return apply_one_by_one(self, hidden, expert_ids, expert_weights)
        return apply(self, hidden, expert_ids, expert_weights)

    def visit(self, x: Tensor, expert: int | Tensor, asked: Tensor | None = None) -> Tensor:
        """What an expert of this rank makes of x [tokens, hidden_size]; with `asked` [tokens, 1], the others are zeros.

        The expert is a number, or one on the device, for which nobody waits.
        """
        up, down = self.gate_up_proj, self.down_proj
        made = self.gate((up.compute if self.is_summed else up.project)(x, expert))
        made = made if asked is None else torch.where(asked, made, 0)
        return (down.compute if self.is_summed else down.project)(made, expert)

    def can_group(self, hidden: Tensor, weights: Tensor) -> bool:
        """Whether tokens are visited by `visit_groups`, with those weights: gradients go through each expert alone."""
        if torch.is_grad_enabled() and (hidden.requires_grad or weights.requires_grad):
            return False
        up, down = self.gate_up_proj, self.down_proj
        return (
            up.can_group(hidden) and down.can_group(hidden) and is_ahead(hidden, weights.numel(), up.local.experts or 0)
        )

    def visit_groups(self, x: Tensor, groups: Groups) -> Tensor:
        """What this rank's experts make of x [rows, hidden_size], sorted by them; of rows of none of them, anything."""
        return self.down_proj.compute_groups(self.gate(self.gate_up_proj.compute_groups(x, groups)), groups)


class SortedExperts(Experts):
    """Experts whose tokens come sorted: as many for each, one expert's after another's, and weighted already."""

    def forward(self, hidden: Tensor) -> Tensor:  # type: ignore[override]
        """hidden [experts * tokens, hidden_size] into as much; tokens of zeros, which give zeros, are left out."""
        experts = self.gate_up_proj.geometry.experts or 1
        is_grouped = must_be_static(hidden, are_few=True) and self.can_group(hidden, hidden[:, :1])
        visit = self._visit_sorted if is_grouped else self._visit_blocks
        if is_grouped or must_be_static(hidden, len(hidden) <= 2 * experts):
            if not self.is_summed:
                return visit(hidden, experts)
            group = self.gate_up_proj.group
            return reduce(visit(copy(hidden, group), experts), group)
        ids = torch.arange(experts, device=hidden.device).repeat_interleave(len(hidden) // experts)
        rows = torch.nonzero(hidden.any(-1)).squeeze(-1)
        found = super().forward(hidden[rows], ids[rows, None], torch.ones_like(hidden[rows, :1]))
        return torch.zeros_like(hidden).index_copy(0, rows, found)

    def _visit_sorted(self, hidden: Tensor, experts: int) -> Tensor:
        """This rank's share of `forward`, of all experts at once; tokens of zeros are as those of other ranks."""
        shard, count = self.gate_up_proj.shard.experts, self.gate_up_proj.local.experts or 0
        numbers = torch.arange(experts, device=hidden.device).repeat_interleave(len(hidden) // experts)
        ids = torch.where(hidden.any(-1), numbers, -1).unsqueeze(-1)
        routing = Routing(ids, torch.ones_like(hidden[:, :1]), shard.start, count, is_whole=False)
        return routing.visit_groups(self.visit_groups, hidden)

    def _visit_blocks(self, hidden: Tensor, experts: int) -> Tensor:
        """This rank's share of `forward`, each expert with all that is its own: nobody asks what of it is zero."""
        own, asked = self.gate_up_proj.shard.experts, hidden.any(-1, keepdim=True)
        blocks, masks = (each.unflatten(0, (experts, -1)) for each in (hidden, asked))
        made = [self.visit(blocks[own.start + at], at, masks[own.start + at]) for at in range(own.size)]
        padding = (0, 0, 0, 0, own.start, experts - own.start - own.size)
        return torch.where(asked, F.pad(torch.stack(made), padding).flatten(0, 1), 0)


def apply_one_by_one(experts: Experts, hidden: Tensor, expert_ids: Tensor, expert_weights: Tensor) -> Tensor:
    """Compute each chosen expert on the tokens that chose it, and sum by weight; in the hidden dtype.

    Where what ranks have is summed, of this rank's share alone. A method's own hook may come back to it. In compiled
    code, and for a few tokens on a device, the host does not wait to see which experts are chosen; nor does it where an
    operator computes all experts at once.
    """
    shard, up_proj = experts.gate_up_proj.shard.experts, experts.gate_up_proj
    count = up_proj.local.experts or 0
    is_whole = count == up_proj.geometry.experts
    routing = Routing(expert_ids, expert_weights, shard.start, count, is_whole)
    if experts.can_group(hidden, expert_weights):
        return routing.visit_groups(experts.visit_groups, hidden)
    return routing.visit(experts.visit, hidden)


def make_experts(
    experts: int,
    hidden_size: int,
    intermediate_size: int,
    site: Site,
    *,
    gate: Gate,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
) -> Experts:
    """Experts that a checkpoint stores one by one: `<site>.<expert>.<name>` for each of the three names."""
    fused = [Part(name, intermediate_size) for name in names[:2]]
    return Experts(
        ExpertLinear(
            experts,
            hidden_size,
            fused,
            site.at("gate_up_proj"),
            sources=expert_sources(site, experts, names[:2]),
            sharding=column,
        ),
        ExpertLinear(
            experts,
            intermediate_size,
            [Part(names[2], hidden_size)],
            site.at("down_proj"),
            sources=expert_sources(site, experts, names[2:]),
            sharding=row,
        ),
        gate,
    )


def expert_sources(site: Site, experts: int, names: Sequence[str]) -> tuple[Source, ...]:
    """The modules of experts that are stored one by one."""
    return tuple(
        Source(site.at(f"{expert}.{name}").name, number, expert=expert)
        for expert in range(experts)
        for number, name in enumerate(names)
    )
