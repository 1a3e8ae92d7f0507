"""Sites: a name, and a rank that is there."""

import pytest
from samples import make_quantization

from qload.errors import LayoutError
from qload.torch import Site
from qload.torch.parallel import Group

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}


@pytest.mark.parametrize(("rank", "size"), [(0, 0), (2, 2), (-1, 2)])
def test_a_rank_that_is_not_there_raises(rank: int, size: int) -> None:
    with pytest.raises(LayoutError, match="there is no"):
        Site(make_quantization(GPTQ), "layer", Group(rank, size))
