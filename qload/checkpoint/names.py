"""Tensor names: the module that a tensor belongs to, and its name below it."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

_BELOW_WEIGHT = re.compile(r"^(?P<module>.*?)\.(?P<leaf>weight\..+|[^.]+)$")


def split_name(name: str) -> tuple[str, str]:
    """(module, leaf); what follows `weight.` belongs to the leaf: `q_proj.weight.absmax` is q_proj's.

    A name without a module gives an empty one.
    """
    if ".weight." not in name:
        module, _, leaf = name.rpartition(".")
    else:
        match = _BELOW_WEIGHT.match(name)
        module, leaf = (match["module"], match["leaf"]) if match else ("", name)
    # An empty module's name has no dot after it: all of `.weight` is the leaf.
    return (module, leaf) if module else ("", name)


def group_names(names: Iterable[str]) -> Mapping[str, tuple[str, ...]]:
    """The leaves below each module that stores tensors itself, in the order of the names."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        module, leaf = split_name(name)
        groups[module].append(leaf)
    return {module: tuple(leaves) for module, leaves in groups.items()}


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
