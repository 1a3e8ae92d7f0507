"""Linear layers on real ranks against torch.nn.Linear on one process: outputs, and gradients of x, weight and bias."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from jobs.linears import Case, Result, compute
from torch import Tensor, nn
from worlds import World

from qload.geometry import Part, column, replicated, row
from qload.torch.layers.flow import Flow

Worlds = Callable[[int], World]
IN, OUT, HEAD, HEADS = 12, 48, 2, 24
PARTS = (("gate_proj", 24), ("up_proj", 48), ("down_proj", 12))
FLAGS = ("bias", "skip_bias_add", "return_bias")


def make(size: int, kind: str, sizes: tuple[Any, ...], flags: dict[str, bool], **shares: Any) -> Case:
    """A case whose weight's rows are divided as `rows` says, unless `columns` or nothing is, with random values."""
    torch.manual_seed(len(kind) + size)
    outputs = shares.pop("out", OUT)
    whole_out, whole_in = torch.arange(outputs), torch.arange(IN)
    rows, columns = shares.get("rows", [whole_out] * size), shares.get("columns", [whole_in] * size)
    given = shares.get("outputs", [whole_out] * size)
    pull = torch.randn(2, 3, outputs, dtype=torch.float64)
    pulls = [pull if len(each) == outputs else torch.randn(2, 3, len(each), dtype=torch.float64) for each in given]
    return Case(
        kind,
        sizes,
        shares.get("options", flags),
        torch.randn(outputs, IN, dtype=torch.float64),
        torch.randn(outputs, dtype=torch.float64),
        torch.randn(2, 3, IN, dtype=torch.float64),
        rows,
        columns,
        rows,
        shares.get("inputs", [whole_in] * size),
        given,
        pulls,
        flags,
    )


def combine(*names: str) -> Iterator[dict[str, bool]]:
    for values in product((False, True), repeat=len(names)):
        yield dict(zip(names, values, strict=True))


def even(count: int, size: int, offset: int = 0) -> list[Tensor]:
    return list((torch.arange(count) + offset).chunk(size))


def merge(*parts: list[Tensor]) -> list[Tensor]:
    return [torch.cat(each) for each in zip(*parts, strict=True)]


def heads_of(kv: int, size: int, offset: int) -> list[Tensor]:
    """The rows of keys or values that each rank has, of `kv` heads after `offset` rows."""
    if kv >= size:
        return even(kv * HEAD, size, offset)
    own = [rank * kv // size for rank in range(size)]
    return [torch.arange(head * HEAD, head * HEAD + HEAD) + offset for head in own]


def columns(size: int) -> Iterator[Case]:
    for flags in combine("gather_output", *FLAGS):
        rows = even(OUT, size)
        given = {} if flags["gather_output"] else {"outputs": rows}
        yield make(size, "column", (IN, OUT), flags, rows=rows, **given)


def rows(size: int) -> Iterator[Case]:
    for flags in combine("input_is_parallel", *FLAGS):
        shares = even(IN, size)
        given = {"inputs": shares} if flags["input_is_parallel"] else {}
        yield make(size, "row", (IN, OUT), flags, columns=shares, **given)


def merged(size: int) -> Iterator[Case]:
    ends = [sum(count for _, count in PARTS[:number]) for number in range(len(PARTS))]
    shares = merge(*(even(count, size, end) for (_, count), end in zip(PARTS, ends, strict=True)))
    for flags in combine("gather_output", *FLAGS):
        given = {} if flags["gather_output"] else {"outputs": shares}
        yield make(size, "merged", (IN, PARTS), flags, rows=shares, out=84, **given)


def attention(size: int) -> Iterator[Case]:
    for kv in (each for each in (24, 3, 2, 1) if each % size == 0 or size % each == 0):
        query, key = HEADS * HEAD, kv * HEAD
        shares = merge(even(query, size), heads_of(kv, size, query), heads_of(kv, size, query + key))
        for flags in combine("gather_output", *FLAGS):
            given = {} if flags["gather_output"] else {"outputs": shares}
            yield make(size, "qkv", (IN, HEAD, HEADS, kv), flags, rows=shares, out=query + 2 * key, **given)


def copies(size: int) -> Iterator[Case]:
    for flags in combine(*FLAGS):
        yield make(size, "replicated", (IN, OUT), flags)


def any_flow(size: int) -> Iterator[Case]:
    """Every way to divide a layer, with every way to hand it x and to hand y on."""
    cuts = {column: {"rows": even(OUT, size)}, row: {"columns": even(IN, size)}, replicated: {}}
    for sharding, given in cuts.items():
        for flags in combine("input_is_parallel", "gather_output", *FLAGS):
            shares: dict[str, Any] = dict(given)
            shares |= {"inputs": even(IN, size)} if flags["input_is_parallel"] else {}
            shares |= {} if flags["gather_output"] else {"outputs": even(OUT, size)}
            flow = Flow(**{name: value for name, value in flags.items() if name != "bias"})
            options = {"bias": flags["bias"], "sharding": sharding, "flow": flow}
            yield make(size, "any", (IN, [Part("", OUT)]), flags, options=options, **shares)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("cases", [columns, rows, merged, attention, copies, any_flow])
def test_a_layer_is_one_of_one_process(worlds: Worlds, cases: Callable[[int], Iterator[Case]], size: int) -> None:
    made = list(cases(size))
    answers = worlds(size).run(compute, made)
    for number, case in enumerate(made):
        compare(case, [answer[number] for answer in answers])


def compare(case: Case, results: list[Result]) -> None:
    """Outputs and gradients of all ranks with those of one layer; of what several hold, the sum of their gradients."""
    flags = case.flags
    adds = flags["bias"] and (flags["return_bias"] or not flags["skip_bias_add"])
    beside = flags["bias"] and flags["return_bias"] and flags["skip_bias_add"]
    layer, x = dense(case), case.x.clone().requires_grad_()
    y = layer(x) if adds else x @ layer.weight.T
    pulls = zip(case.outputs, case.pull, strict=True)
    whole = all(len(each) == y.shape[-1] for each in case.outputs)
    loss = (y * case.pull[0]).sum() if whole else sum((y[..., each] * pull).sum() for each, pull in pulls)
    loss.backward()  # type: ignore[union-attr]
    for rank, result in enumerate(results):
        bias = case.bias[case.outputs[rank]] if beside else None
        close(result.y, (y.detach() - (case.bias if beside else 0))[..., case.outputs[rank]])
        assert (result.beside is None) == (bias is None)
        close(result.beside, bias) if bias is not None else None
        close(result.x, x.grad[..., case.inputs[rank]])  # type: ignore[index]
    check_shares(case.rows, [each.weight for each in results], layer.weight.grad, case.columns)
    if flags["bias"]:
        gradient = layer.bias.grad if adds else 0 * case.bias
        check_shares(case.entries, [each.bias for each in results], gradient, None)


def dense(case: Case) -> nn.Linear:
    layer = nn.Linear(case.weight.shape[1], case.weight.shape[0], dtype=torch.float64)
    layer.weight.data, layer.bias.data = case.weight.clone(), case.bias.clone()
    return layer


def check_shares(places: list[Tensor], shares: list[Any], whole: Any, columns: list[Tensor] | None) -> None:
    """Ranks that have all rows have all their gradient; of others the shares make it up, summed where they overlap."""
    if all(len(each) == len(whole) for each in places):
        for rank, share in enumerate(shares):
            close(share, whole if columns is None else whole[:, columns[rank]])
        return
    total = torch.zeros_like(whole)
    for place, share in zip(places, shares, strict=True):
        total.index_add_(0, place, share)
    close(total, whole)


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
