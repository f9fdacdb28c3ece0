"""The network that recognises latents: it hears both inputs, and each sample for itself."""

from __future__ import annotations

import pytest
import torch

from sigdeg.errors import SigdegError
from sigdeg.networks import TokenRecognition


def test_clean_and_noised_tokens_reach_mean_and_variance() -> None:
    torch.manual_seed(0)
    network = TokenRecognition((4, 12), 3, 5, width=6).double()
    clean, x = (torch.randint(3, (4, 48)) for _ in range(2))
    found = network(clean, x)
    assert [value.shape for value in found] == [(4, 5), (4, 5)]
    sum((value * torch.randn_like(value)).sum() for value in found).backward()
    for name, parameter in network.named_parameters():
        assert float(parameter.grad.abs().max()) > 0, name
    for other in (network((clean + 1) % 3, x), network(clean, (x + 1) % 3)):
        for own, moved in zip(found, other, strict=True):
            assert float((own - moved).detach().abs().amax(1).min()) > 1e-6
    for own, alone in zip(found, network(clean[2:3], x[2:3]), strict=True):
        torch.testing.assert_close(own[2:3], alone)


def test_variances_are_bounded() -> None:
    network = TokenRecognition((4, 4), 2, 3, width=4)
    x = torch.zeros(1, 16, dtype=torch.int64)
    for bias, bound in ((1e4, 2.0), (-1e4, -8.0)):
        with torch.no_grad():
            network.head.bias.fill_(bias)
        assert bool((network(x, x)[1] == bound).all())


def test_images_that_do_not_divide_are_refused() -> None:
    with pytest.raises(SigdegError, match="28 x 27 do not divide into patches of 4"):
        TokenRecognition((28, 27), 2, 3)
