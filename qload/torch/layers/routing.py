"""How tokens get to the experts that they chose: one expert after another, or without looking at what they chose.

All ways give the same numbers up to the order in which a token's experts are summed. Where the host is not to wait for
the device, or a graph is made of what is computed, every token is taken as if it could have chosen any expert.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qload.torch.kernels.groups import Groups, sort_rows
from qload.torch.waiting import must_not_wait

Visit = Callable[[Tensor, int | Tensor, Tensor | None], Tensor]
"""What an expert of this rank, by its number here, makes of tokens; with a mask [tokens, 1], of those it has alone."""
VisitGroups = Callable[[Tensor, Groups], Tensor]
"""What all experts of this rank make of tokens that are sorted by them."""


@dataclass(frozen=True, slots=True)
class Routing:
    """The choices of some tokens: ids and weights [tokens, k] of experts, of which a rank has `count` from `first` on.

    `is_whole` says that the rank has all of them.
    """

    ids: Tensor
    weights: Tensor
    first: int
    count: int
    is_whole: bool

    def visit(self, visit: Visit, hidden: Tensor) -> Tensor:
        """hidden [tokens, features] into as much: what the rank's experts make of it, by weight, in its dtype."""
        if not must_be_static(hidden, self.are_few):
            return self._visit_chosen(visit, hidden)
        return self._visit_pairs(visit, hidden) if self.are_few else self._visit_all(visit, hidden)

    def visit_groups(self, visit: VisitGroups, hidden: Tensor) -> Tensor:
        """As `visit`, of all experts at once: each pair of a token and its expert is a row, and rows are sorted.

        What an operator leaves in rows of other ranks' experts may be no number, so that they are not merely weighted.
        """
        if not self.ids.numel():
            return torch.zeros_like(hidden)
        local = self.ids - self.first
        owned = (local >= 0) & (local < self.count)
        order, groups = sort_rows(torch.where(owned, local, self.count).flatten(), self.count)
        made = visit(hidden[order // self.ids.shape[1]], groups)
        pairs = torch.empty_like(made).index_copy(0, order, made).unflatten(0, self.ids.shape)
        pairs = torch.where(owned.unsqueeze(-1), pairs, 0)
        return (pairs * self.weights.unsqueeze(-1)).to(hidden.dtype).sum(1)

    @property
    def are_few(self) -> bool:
        """Whether the pairs of a token and its expert are known to be no more than the rank's experts."""
        if not torch.compiler.is_compiling():
            return self.ids.numel() <= self.count
        # A graph for any number of tokens cannot go through them one by one.
        is_known = torch.fx.experimental.symbolic_shapes.statically_known_true
        return any(is_known(len(self.ids) == tokens) for tokens in range(self.count // self.ids.shape[1] + 1))

    def _visit_chosen(self, visit: Visit, hidden: Tensor) -> Tensor:
        """One expert after another, each with the tokens that chose it: the host waits to see which are chosen."""
        output = torch.zeros_like(hidden)
        ids, order = self.ids.flatten().sort(stable=True)
        chosen, counts = ids.unique_consecutive(return_counts=True)
        sizes = counts.tolist()
        tokens, weights = (order // self.ids.shape[1]).split(sizes), self.weights.flatten()[order].split(sizes)
        for expert, rows, weight in zip(chosen.tolist(), tokens, weights, strict=True):
            if 0 <= expert - self.first < self.count:
                made = visit(hidden[rows], expert - self.first, None)
                output.index_add_(0, rows, (made * weight[:, None]).to(output.dtype))
        return output

    def _visit_pairs(self, visit: Visit, hidden: Tensor) -> Tensor:
        """Each token with each of its experts, whose tensors are picked on the device."""
        places, owned = self._localize()
        rows = []
        for token, (experts, mine) in enumerate(zip(places.unbind(), owned.unbind(), strict=True)):
            x, total = hidden[token : token + 1], torch.zeros_like(hidden[:1])
            for choice, expert in enumerate(experts.unbind()):
                made = visit(x, expert, None) * self.weights[token, choice]
                made = made if self.is_whole else torch.where(mine[choice], made, 0)
                total = total + made.to(total.dtype)
            rows.append(total)
        return torch.cat(rows) if rows else torch.zeros_like(hidden)

    def _localize(self) -> tuple[Tensor, Tensor]:
        """The number here of each expert that was chosen, and whether it is here; of others, that of some one."""
        local = self.ids - self.first
        owned = (local >= 0) & (local < self.count)
        return (local if self.is_whole else torch.where(owned, local, 0)), owned

    def _visit_all(self, visit: Visit, hidden: Tensor) -> Tensor:
        """Every expert with all tokens, those that did not choose it as zeros: scales that all tokens share stay."""
        output = torch.zeros_like(hidden)
        for expert in range(self.count):
            chosen = self.ids == self.first + expert
            asked, weight = chosen.any(-1, keepdim=True), (self.weights * chosen).sum(-1, keepdim=True)
            made = visit(torch.where(asked, hidden, 0), expert, asked) * weight
            output = output + torch.where(asked, made, 0).to(output.dtype)
        return output


def must_be_static(x: Tensor, are_few: bool) -> bool:
    """Whether nobody asks which expert x is for: in graphs, and for few tokens, wherever the host waits for a device.

    There the waiting costs more than to compute twice an expert that two tokens chose.
    """
    return must_not_wait(x) or (are_few and x.device.type != "cpu")
