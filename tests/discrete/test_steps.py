"""Steps on tokens: through the sampler that all models share."""

import torch

from sigdeg.discrete import Absorbing, ExactDenoiser, as_token_model


def test_two_equal_bits_are_lost_as_often_as_they_move_together() -> None:
    """In N equal steps both masks fall at once in 1 of N, and then differ in half of the cases."""
    support, n = torch.tensor([[0, 0], [1, 1]]), 8000
    model = as_token_model(ExactDenoiser(support, torch.ones(2), Absorbing(2)))
    for steps in (1, 2, 4):
        drawn = model.sample(n, steps, seed=0)
        assert set(drawn.unique().tolist()) == {0, 1}
        unequal = float((drawn[:, 0] != drawn[:, 1]).double().mean())
        assert abs(unequal - 0.5 / steps) < 4 * (0.25 / n) ** 0.5
    assert torch.equal(model.sample(n, steps, seed=0, batch_size=333), drawn)


def test_what_is_given_is_kept() -> None:
    support = torch.tensor([[0, 0, 0], [1, 1, 0]])
    model = as_token_model(ExactDenoiser(support, torch.ones(2), Absorbing(2)))
    drawn = model.sample(64, 1, seed=0, prefix=[1])
    assert torch.equal(drawn, support[1].expand(64, 3))
