"""A loaded model is a value like any other: it can be copied, and saved with its methods' names."""

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import DATA
from strangers import make_rows, origin, registry_with, write_rows
from torch import Tensor, nn

import qload
from qload.errors import MethodError, UnknownMethodError
from qload.registry import Registry, find_method

IDS = torch.tensor([[1, 2, 3, 4]])


def logits(model: Any) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(IDS).logits
    return found


def save_and_load(model: nn.Module) -> Any:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("path", sorted(DATA.iterdir()), ids=lambda path: path.name)
def test_a_copy_computes_the_same_and_shares_no_tensor(path: Path) -> None:
    model = qload.load(path)
    copied = copy.deepcopy(model)
    assert torch.equal(logits(copied), logits(model))
    assert {tensor.data_ptr() for tensor in copied.parameters()}.isdisjoint(
        tensor.data_ptr() for tensor in model.parameters()
    )
    first, second = (made.model.layers[0].self_attn.q_proj for made in (model, copied))
    assert second.treatment.method is first.treatment.method


@pytest.mark.parametrize("path", sorted(DATA.iterdir()), ids=lambda path: path.name)
def test_a_saved_model_computes_the_same(path: Path) -> None:
    model = qload.load(path)
    loaded = save_and_load(model)
    assert torch.equal(logits(loaded), logits(model))
    assert qload.report(loaded) == qload.report(model)
    assert loaded.lm_head.scheme == model.lm_head.scheme
    assert loaded.lm_head.treatment.method.name == model.lm_head.treatment.method.name


def test_a_pickle_names_the_method_and_holds_no_hook() -> None:
    method = Registry.discover().method("gptq")
    assert pickle.loads(pickle.dumps(method)) == method
    assert pickle.loads(pickle.dumps(method.runtime)).method == method
    assert b"dequantize" not in pickle.dumps(method.runtime)
    assert copy.deepcopy(method) is method


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    write_rows(tmp_path)
    return tmp_path


def test_a_method_of_a_registry_made_by_hand(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is copied like any other; what saves it must be read where it is installed."""
    registry = registry_with(make_rows(qload_embedding=look_up))
    model = qload.load(rows, registry=registry)
    assert torch.equal(logits(copy.deepcopy(model)), logits(model))
    with pytest.raises(UnknownMethodError, match="'rows'"):
        save_and_load(model)
    monkeypatch.setattr(Registry, "discover", lambda prefer: registry)
    assert torch.equal(logits(save_and_load(model)), logits(model))


def look_up(layer: Any, ids: Tensor) -> Tensor:
    rows: Tensor = layer.values[ids] * layer.row_scale[ids, None]
    return rows


def test_of_several_methods_of_a_name_a_pickle_takes_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    origins = [origin("rows", make_rows(), name) for name in ("one", "two")]
    monkeypatch.setattr(Registry, "discover", lambda prefer: Registry(origins, prefer=prefer))
    assert find_method("rows", "rows_module", "two").origin.distribution == "two"
    monkeypatch.setattr(Registry, "discover", lambda prefer: Registry(origins[:1], prefer=prefer))
    with pytest.raises(MethodError, match="is not the one that was pickled"):
        find_method("rows", "rows_module", "two")


def test_another_distributions_method_of_the_same_name_is_not_taken() -> None:
    """Its layers would compute with what another package means by the same scheme."""
    stranger = registry_with(make_rows(), "rows").method("rows")
    pickled = pickle.dumps(stranger)
    assert stranger.origin.target == "rows_module"
    with pytest.raises(MethodError, match="is not the one that was pickled") as caught:
        pickle.loads(pickled.replace(b"\x04rows", b"\x04gptq"))
    assert "install dist" in str(caught.value)
