"""A part stands in its whole where torch's own strided views say."""

import json
import math

import pytest
import torch
from torch import Generator, Tensor

from sigdeg.errors import SigdegError
from sigdeg.pipelines.views import View
from tests.pipelines.films import CHANNELS, PICTURES, SIDE, pack

FILMS = (2, PICTURES, CHANNELS, SIDE, SIDE)
WAYS = {  # how a part may be cut out of a whole, given their numbers
    "packed": ((PICTURES, CHANNELS, SIDE, SIDE), pack),
    "turned": ((CHANNELS, PICTURES, SIDE, SIDE), lambda x: x.transpose(1, 2)),
    "all of it": ((PICTURES, CHANNELS, SIDE, SIDE), lambda x: x),
}


def numbered(*shape: int) -> Tensor:
    return torch.arange(math.prod(shape)).reshape(shape)


@pytest.mark.parametrize("way", WAYS)
def test_a_view_is_found_by_where_its_numbers_stand(way):
    part, turn = WAYS[way]
    whole = turn(numbered(*FILMS))
    places = whole.flatten().argsort().reshape(2, -1)  # of each number of the films
    view = View.fit(places, FILMS[1:], tuple(whole.shape[1:]))
    values = torch.randn(FILMS, generator=Generator().manual_seed(0))
    assert torch.equal(view.take(turn(values)), values)
    assert torch.equal(view.put(torch.zeros_like(turn(values)), values), turn(values))
    assert View.read(json.loads(json.dumps(view.written))) == view
    assert math.prod(part) == math.prod(view.sizes)


def test_a_window_of_two_axes_is_a_view_and_what_is_beside_it_stays():
    whole = torch.randn(2, 3, 4, 5, generator=Generator().manual_seed(0))
    cut = numbered(2, 3, 4, 5)[:, 1:, :, 1:3]
    view = View.fit(cut.reshape(2, -1), tuple(cut.shape[1:]), (3, 4, 5))
    assert (view.sizes, view.strides, view.begin) == ((8, 2), (5, 1), 21)  # rows of 5 follow on
    assert torch.equal(view.take(whole), whole[:, 1:, :, 1:3])
    other = torch.zeros(2, 2, 4, 2)
    filled = view.put(whole, other)
    assert torch.equal(filled[:, 1:, :, 1:3], other)
    filled[:, 1:, :, 1:3] = whole[:, 1:, :, 1:3]
    assert torch.equal(filled, whole)


@pytest.mark.parametrize(
    "places",
    [
        torch.tensor([[0, 1, 3, 2]]),  # in no order
        torch.tensor([[3, 2, 1, 0]]),  # backwards
        torch.tensor([[0, 1, 2, 4]]),
        torch.tensor([[0, 1, 2, 3], [4, 5, 7, 6]]),  # of samples that are not alike
    ],
)
def test_what_stands_at_no_strides_is_no_view(places):
    assert View.fit(places, (4,), (4,)) is None


def test_a_whole_of_another_shape_is_refused():
    view = View.fit(torch.arange(6)[None], (6,), (2, 3))
    with pytest.raises(SigdegError, match=r"states of shape \(3, 3\) where .* knows \(2, 3\)"):
        view.take(torch.zeros(1, 3, 3))


@pytest.mark.parametrize(
    "changed",
    [
        *({"begin": 1}, {"begin": -1}, {"part": [5]}, {"strides": [0]}, {"strides": [2]}),
        *({"sizes": [7], "part": [7]}, {"sizes": [2, 3], "strides": [1, 1]}, {"sizes": [6, 1]}),
        {"whole": [2**24] * 8, "strides": [0]},
    ],
)
def test_a_view_that_is_no_part_of_its_whole_is_refused(changed):
    view = View.fit(torch.arange(6)[None], (6,), (2, 3))
    with pytest.raises(SigdegError, match="are no part "):
        View.read({**view.written, **changed})
