"""Pieces: what each part's hooks see of tensors that are cut, kept whole, or stored once for each part."""

import torch

from qload.declare import channel_scale, packed, tensor_scale
from qload.geometry import Geometry, Part, column, single
from qload.layout import in_, out
from qload.torch.pieces import select_pieces

GEOMETRY = Geometry(8, (Part("a", 12), Part("b", 4)))
LOCAL = column(GEOMETRY, 1, 2).local(GEOMETRY)


def test_a_tensor_that_is_kept_whole_is_cut_by_the_layers_parts_and_not_by_the_ranks() -> None:
    specs = (
        packed("values", out(), in_(), dtypes=("I8",)),
        channel_scale("whole", out(whole=True)),
        tensor_scale("scale"),
    )
    pieces = select_pieces(specs, GEOMETRY, LOCAL)
    assert [piece.out_features for piece in pieces] == [6, 2]
    values, whole = torch.arange(8)[:, None].expand(8, 8), torch.arange(16)
    assert [values[piece.indices["values"]][:, 0].tolist() for piece in pieces] == [list(range(6)), [6, 7]]
    assert [whole[piece.indices["whole"]].tolist() for piece in pieces] == [list(range(12)), list(range(12, 16))]
    assert [torch.arange(2)[piece.indices["scale"]].item() for piece in pieces] == [0, 1]


def test_parts_that_end_with_whole_units_are_one_piece() -> None:
    words = packed("words", out(2), in_(), dtypes=("I8",))
    assert [piece.out_features for piece in select_pieces((words,), GEOMETRY, LOCAL)] == [8]
    words = packed("words", out(4), in_(), dtypes=("I8",))
    assert [piece.out_features for piece in select_pieces((words,), GEOMETRY, LOCAL)] == [6, 2]


def test_solid_tensors_are_pieces_of_what_is_stored() -> None:
    """Each part packs its own rows, and a padded one has no more of them than are stored."""
    words = packed("words", out(2, solid=True), in_(), dtypes=("U8",))
    pieces = select_pieces((words,), GEOMETRY, GEOMETRY)
    assert [piece.out_features for piece in pieces] == [12, 4]
    assert [torch.arange(8)[piece.indices["words"][0]].tolist() for piece in pieces] == [list(range(6)), [6, 7]]
    table, padded = single(12, 8), single(64, 8)
    assert [piece.out_features for piece in select_pieces((words,), table, padded)] == [12]
