"""Tensor names: the module that a tensor belongs to, and its name below it."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

Modules = Mapping[str, Mapping[str, str]]
"""The tensors that each module stores itself: the names that they are stored under, by their names below it."""

_BELOW_WEIGHT = re.compile(r"^(?P<module>.*?)\.(?P<leaf>weight\..+|[^.]+)$")
_WEIGHT = "weight"
_INNER = ".weight."
# What stands beside a weight under a name of its own: all else in a stack's names says what of its weight it is.
_BESIDE = ("weight", "bias", "input", "output", "activation")


def split_name(name: str) -> tuple[str, str]:
    """(module, leaf); what follows `weight.` belongs to the leaf: `q_proj.weight.absmax` is q_proj's.

    A name without a module gives an empty one.
    """
    if _INNER not in name:
        module, _, leaf = name.rpartition(".")
    else:
        match = _BELOW_WEIGHT.match(name)
        module, leaf = (match["module"], match["leaf"]) if match else ("", name)
    # An empty module's name has no dot after it: all of `.weight` is the leaf.
    return (module, leaf) if module else ("", name)


def join_name(module: str, leaf: str, modules: Modules) -> str:
    """The name that a module's tensor is stored under; of one that is not stored, as its others are named."""
    stored = modules.get(module, {})
    if leaf in stored:
        return stored[leaf]
    below, beside = spell_name(module, leaf)
    return below if not module or all(name.startswith(f"{module}.") for name in stored.values()) else beside


def spell_name(module: str, leaf: str) -> tuple[str, str]:
    """The names that a module's tensor can have: below its own, and as a stack's that is one module's parameter."""
    below = f"{module}.{leaf}" if module else leaf
    return below, module + leaf.removeprefix(_WEIGHT) if leaf.startswith(_WEIGHT) else f"{module}_{leaf}"


def group_below(modules: Modules, chosen: Collection[str]) -> Modules:
    """The tensors of the modules right below each of the chosen ones, under names such as `k_proj.weight`."""
    groups: dict[str, dict[str, str]] = defaultdict(dict)
    for module, stored in modules.items():
        above, _, last = module.rpartition(".")
        if above in chosen:
            groups[above].update({f"{last}.{leaf}": name for leaf, name in stored.items()})
    return dict(groups)


def list_children(modules: Iterable[str]) -> Mapping[str, Sequence[str]]:
    """The modules right below each name, by their last words."""
    children: dict[str, list[str]] = defaultdict(list)
    for module in modules:
        above, _, last = module.rpartition(".")
        if above:
            children[above].append(last)
    return children


def group_tensors(names: Iterable[str], deep: Collection[str]) -> Modules:
    """The tensors below each module that stores some itself, in the order of the names; `deep` have over two axes.

    The tensors of a stack of experts are named as parameters of one module are: `experts.down_proj_blocks`, or
    `experts.down_proj` and `experts.down_proj_scale`. Here they are those of a module of the stack's name, and
    called as a linear layer's: `blocks`, or `weight` and `weight_scale`.
    """
    groups: dict[str, dict[str, str]] = {}
    for name in names:
        module, _, leaf = name.rpartition(".")
        if not module or _INNER in name:
            module, leaf = split_name(name)
        stored = groups.get(module)
        if stored is None:
            groups[module] = {leaf: name}
        else:
            stored[leaf] = name
    if deep:
        _part_stacks(groups, deep)
    return groups


def _part_stacks(groups: dict[str, dict[str, str]], deep: Collection[str]) -> None:
    """Give each stack of experts a module of its own."""
    leaves: dict[str, list[str]] = defaultdict(list)
    for name in deep:
        module, leaf = split_name(name)
        if not leaf.startswith(_WEIGHT):
            leaves[module].append(leaf)
    for module, found in leaves.items():
        stored = groups[module]
        for stack in sorted(_find_stacks(found, stored)):
            path = f"{module}.{stack}" if module else stack
            if path not in groups:
                _part(stored, stack, groups.setdefault(path, {}))
    for module in [module for module in leaves if not groups[module]]:
        del groups[module]


def _part(stored: dict[str, str], stack: str, apart: dict[str, str]) -> None:
    """Take the tensors of a stack out of those of a module."""
    for leaf, below in _below(stack, list(stored)):
        if below not in apart:
            apart[below] = stored.pop(leaf)


def _find_stacks(leaves: Collection[str], others: Collection[str]) -> set[str]:
    """The names that begin those of tensors in three dimensions, and of others beside them."""
    found = {_find_stack(leaf, others) for leaf in leaves}
    return {stack for stack in found if stack is not None and stack != _WEIGHT}


def _find_stack(leaf: str, others: Collection[str]) -> str | None:
    """The most words at a name's beginning that another name begins with, too."""
    words = leaf.split("_")
    starts = ("_".join(words[:count]) for count in range(len(words), 0, -1))
    beside = [other for other in others if other != leaf]
    return next((start for start in starts if any(f"{other}_".startswith(f"{start}_") for other in beside)), None)


def _below(stack: str, leaves: Collection[str]) -> Iterator[tuple[str, str]]:
    """The tensors of a stack, and what a linear layer would call them."""
    for leaf in leaves:
        rest = leaf.removeprefix(f"{stack}_")
        if leaf == stack:
            yield leaf, _WEIGHT
        elif rest != leaf:
            yield leaf, rest if stack not in leaves or rest.startswith(_BESIDE) else f"{_WEIGHT}_{rest}"


def group_texts(tables: Iterable[Mapping[str, object]]) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    """What the metadata of several files says of each name below each module; what is no text is left out."""
    groups: dict[str, dict[str, tuple[str, ...]]] = defaultdict(dict)
    for table in tables:
        for name, text in table.items():
            if isinstance(text, str) and "." in name:
                module, leaf = split_name(name)
                texts = groups[module].get(leaf, ())
                groups[module][leaf] = texts if text in texts else (*texts, text)
    return dict(groups)
