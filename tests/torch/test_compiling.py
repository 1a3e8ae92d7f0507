"""Every layer is one graph to the compiler, which computes what the layer computes, and waits for nothing."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from jobs.compiling import compile_linears
from samples import DATA, SWEEPS_ALL, is_sound, samples
from torch import Tensor, nn
from torch._dynamo.utils import counters
from worlds import World

import qload
from qload.geometry import Kind
from qload.torch import Experts, Layer, VocabParallelEmbedding

FEW = (
    *("ct-w4a16-g128-asym", "ct-fp8-static", "gptq-4bit-g32-sym-descact", "torchao-int8dyn-int8w", "bnb-nf4-dq"),
    *("hf-gptoss-mxfp4", "ct-qwen3moe-w4a16", "autoround-gguf-q4_k_m"),
)
"""Of each kind of arithmetic one: a graph takes seconds to make. QLOAD_SWEEP=all takes all that there are."""
SOUND = [path for path in samples() if is_sound(path)]
EVERY = [path for path in SOUND if SWEEPS_ALL or path.name in FEW]
MIXTURES = [path for path in EVERY if "moe" in path.name or "gptoss" in path.name]
TABLES = [pytest.param({}, id="kernels"), pytest.param({"kernels": ()}, id="no kernels")]

checkpoints = pytest.mark.parametrize("path", EVERY, ids=lambda path: path.name)
mixtures = pytest.mark.parametrize("path", MIXTURES, ids=lambda path: path.name)
tables = pytest.mark.parametrize("options", TABLES)


@pytest.fixture(autouse=True)
def _forgetting() -> Iterator[None]:
    """No graph of one test counts in another."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def load(path: Path, **options: Any) -> Any:
    torch.manual_seed(0)
    return qload.load(path, **options)


def list_kinds(model: nn.Module, is_packed: bool = False) -> Iterator[Layer]:
    """A layer of each kind that computes alone, by class, scheme and parts; or of those alone that have kernels."""
    seen = set()
    for layer in model.modules():
        if (
            isinstance(layer, Layer)
            and layer.geometry.kind not in (Kind.KV_CACHE, Kind.EXPERTS)
            and (layer.packed is not None or not is_packed)
        ):
            kind = (type(layer), repr(layer.scheme), len(layer.geometry.parts), layer.path.name)
            if kind not in seen:
                seen.add(kind)
                yield layer


def make_input(layer: Layer, count: int) -> Tensor:
    if isinstance(layer, VocabParallelEmbedding):
        return torch.randint(0, layer.num_embeddings, (count,))
    return torch.randn(count, layer.local.in_features, dtype=layer.dtype)


def compile_whole(module: Any, backend: str = "aot_eager") -> Callable[..., Any]:
    torch._dynamo.reset()
    counters.clear()
    compiled: Callable[..., Any] = torch.compile(module, fullgraph=True, backend=backend)
    return compiled


def check_same(found: Tensor, expected: Tensor, layer: Layer) -> None:
    """Bit by bit; where a layer computes by strips, of which a graph makes one, up to the order of sums."""
    assert found.dtype == expected.dtype
    if layer.packed is None:
        assert torch.equal(found, expected)
    else:
        error = (found.double() - expected.double()).norm()
        assert error <= torch.finfo(found.dtype).eps * expected.double().norm()


@checkpoints
@tables
def test_a_layer_is_one_graph_that_answers_the_same_whatever_the_batch(path: Path, options: dict[str, Any]) -> None:
    """A kernel that leaves large batches to the dense weight has a second graph for them, and no more."""
    for layer in list_kinds(load(path, **options), is_packed=not options):
        compiled = compile_whole(layer)
        first = make_input(layer, 4)
        torch._dynamo.mark_dynamic(first, 0)
        for x in (first, make_input(layer, 3), make_input(layer, 9), make_input(layer, 300)):
            with torch.inference_mode():
                check_same(compiled(x), layer(x), layer)
        assert counters["stats"]["unique_graphs"] <= 1 + (layer.packed is not None)


@checkpoints
@tables
def test_gradients_of_inputs_pass_through_one_graph(path: Path, options: dict[str, Any]) -> None:
    for layer in list_kinds(load(path, **options), is_packed=not options):
        if layer.geometry.kind is Kind.EMBEDDING:
            continue
        x, compiled = make_input(layer, 4), compile_whole(layer)
        gradients = list[Tensor]()
        for forward in (layer, compiled):
            leaf = x.clone().requires_grad_()
            gradients += torch.autograd.grad(forward(leaf).square().sum(), leaf)
        check_same(gradients[1], gradients[0], layer)
        assert counters["stats"]["unique_graphs"] == 1


def route(experts: Experts, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    up = experts.gate_up_proj
    count = up.geometry.experts or 0
    ids = torch.stack([torch.randperm(count)[:2] for _ in range(tokens)])
    return torch.randn(tokens, up.local.in_features, dtype=up.dtype), ids, torch.rand(tokens, 2).to(up.dtype)


def find_experts(model: nn.Module) -> Experts | None:
    return next((module for module in model.modules() if isinstance(module, Experts)), None)


@mixtures
@tables
def test_experts_are_one_graph_for_a_token_and_one_for_any_number(path: Path, options: dict[str, Any]) -> None:
    """Sums of two terms have one order, so that not a bit may differ."""
    experts = find_experts(load(path, **options))
    if experts is None:
        return
    compiled = compile_whole(experts)
    for tokens in (1, 2, 3, 9):
        routed = route(experts, tokens)
        with torch.inference_mode():
            assert torch.equal(compiled(*routed), experts(*routed))
    assert counters["stats"]["unique_graphs"] == 2


@pytest.mark.parametrize("name", ["gptq-4bit-g128-asym", "gptq-qwen3moe-4bit-g128", "hf-gptoss-mxfp4"])
def test_a_model_decodes_the_same_tokens_from_one_graph(name: str) -> None:
    model = load(DATA / name)
    plain = decode(model, model.forward)
    assert decode(model, compile_whole(model.forward)) == plain
    # A cache of sliding windows counts what it has seen: its first number is another graph.
    assert counters["stats"]["unique_graphs"] <= 2


def decode(model: Any, forward: Callable[..., Any], steps: int = 5) -> list[int]:
    """The tokens that `forward` chooses one after another, once the model has seen a prompt."""
    transformers = pytest.importorskip("transformers")
    cache = transformers.StaticCache(config=model.config, max_cache_len=32)
    ids, chosen = torch.arange(5, 11)[None], []
    with torch.inference_mode():
        logits = model(ids, past_key_values=cache, use_cache=True).logits
        for step in range(steps):
            chosen.append(logits[:, -1:].argmax(-1))
            place = torch.tensor([[ids.shape[1] + step]])
            logits = forward(chosen[-1], past_key_values=cache, position_ids=place, use_cache=True).logits
    return [int(token) for token in chosen]


@pytest.mark.parametrize("name", ["gptq-qwen3moe-4bit-g128"])
def test_generating_with_a_static_cache_gives_the_same_tokens(name: str) -> None:
    """transformers compiles decoding where the cache is static; here with the backend that needs no C++ compiler."""
    transformers = pytest.importorskip("transformers")
    model, ids = load(DATA / name), torch.arange(5, 11)[None]
    options = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    plain = model.generate(ids, **options)
    config = transformers.CompileConfig(fullgraph=True, backend="aot_eager", mode=None)
    config._compile_all_devices = True
    found = model.generate(ids, cache_implementation="static", compile_config=config, **options)
    assert torch.equal(found, plain)
    assert counters["stats"]["unique_graphs"] > 0


@pytest.mark.parametrize("path", SOUND, ids=lambda path: path.name)
def test_no_layer_looks_at_what_a_device_has_in_a_forward(path: Path) -> None:
    """On the meta device there is nothing to look at: what asks for values, or shapes that depend on them, fails."""
    model = load(path, kernels=())
    experts = find_experts(model)
    for layer in list_kinds(model):
        x = make_input(layer, 3)
        assert layer.to("meta")(x.to("meta")).shape[0] == 3
    if experts is not None:
        routed = route(experts, 1)
        found = experts.to("meta")(*(each.to("meta") for each in routed))
        assert found.shape == routed[0].shape


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("name", ["gptq-4bit-g128-asym", "gptq-qwen3moe-4bit-g128", "hf-gptoss-mxfp4"])
def test_a_decoded_token_is_captured_in_a_cuda_graph(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    model = load(DATA / name, device="cuda")
    ids, place = torch.tensor([[7]], device="cuda"), torch.zeros(1, 1, dtype=torch.int64, device="cuda")
    cache = transformers.StaticCache(config=model.config, max_cache_len=32)
    mask = torch.ones(1, 1, 1, 32, dtype=torch.bool, device="cuda")
    options = {"past_key_values": cache, "position_ids": place, "attention_mask": mask, "use_cache": True}
    with torch.inference_mode():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                cache.reset()
                expected = model(ids, **options).logits.clone()
        torch.cuda.current_stream().wait_stream(stream)
        cache.reset()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = model(ids, **options).logits
        cache.reset()
        graph.replay()
    assert torch.allclose(logits, expected, rtol=1e-2, atol=1e-2)


def test_layers_that_talk_to_other_ranks_are_one_graph(worlds: Callable[[int], World]) -> None:
    weight, x = torch.randn(8, 16), torch.randn(3, 16)
    for answers in worlds(2).run(compile_linears, weight, x):
        for compiled, plain in answers:
            assert torch.equal(compiled, plain)
            assert torch.allclose(plain, x @ weight.T, atol=1e-4)
