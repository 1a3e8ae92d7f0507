"""The staging buffer: its slabs are of a fixed number and size, and are the host's whatever the caller's default device is."""

import pytest
import torch
from samples import DEMO

import qload
from qload.errors import QloadError
from qload.torch.loading.load import choose_device
from qload.torch.loading.staging import Staging

CPU = torch.device("cpu")


def test_a_slab_is_lent_to_one_at_a_time() -> None:
    staging = Staging(CPU, 64, 2)
    with staging.borrow() as first, staging.borrow() as second:
        assert first.buffer.data_ptr() != second.buffer.data_ptr()
        places = {first.buffer.data_ptr(), second.buffer.data_ptr()}
    for _ in range(5):
        with staging.borrow() as slab:
            assert slab.buffer.data_ptr() in places
            assert len(slab.buffer) == 64


def test_the_default_device_does_not_matter() -> None:
    with torch.device("meta"):
        model = qload.load(DEMO, dtype=torch.float32)  # whose norms are cast, and pass through the buffer
    assert {tensor.device for tensor in (*model.parameters(), *model.buffers())} == {CPU}


def test_a_device_is_named_with_its_number_and_holds_data() -> None:
    assert choose_device("cpu") == CPU
    with pytest.raises(QloadError, match="a device that holds data"):
        choose_device("meta")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there() -> None:
    with pytest.raises(QloadError, match=r"cuda: the device cannot be used .*; name one"):
        choose_device("cuda")
