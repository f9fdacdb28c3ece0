"""The path of a run as a function of its starting noise."""

import pytest
import torch
from torch import Generator, Tensor

from sigdeg import PartialSignature, SigdegError
from sigdeg.pipelines.noise import BITS, PathNoise, path_seed
from tests.pipelines.student import seeded

GRID = torch.tensor([1.0, 0.6, 0.3, 0.1, 0.0], dtype=torch.float64)


def starts(n: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(n, *(shape or (4, 8, 8)), generator=seeded(seed))


def test_a_seed_is_63_signs_of_the_noise():
    assert path_seed(starts(1, seed=3)[0]) == 3430653375538304521
    alternating = torch.tensor([1.0, -1.0] * 32)[:BITS]
    assert path_seed(alternating) == sum(2**i for i in range(0, BITS, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_neither_precision_nor_scale_changes_it(dtype: torch.dtype):
    x = starts(8)
    assert [path_seed(row) for row in (14.6 * x).to(dtype)] == [path_seed(row) for row in x]


def test_few_numbers_count_with_all_their_digits():
    x = starts(200, 2)
    assert len({path_seed(row) for row in x}) == 200
    assert path_seed(x[0]) == path_seed(x[0].double()) != path_seed(x[0] * 2)


def test_paths_are_independent_of_the_noise_that_seeds_them():
    x = starts(2000)
    seeds = [path_seed(row) for row in x]
    assert len(set(seeds)) == len(seeds)
    bits = torch.tensor([[seed >> i & 1 for i in range(BITS)] for seed in seeds]).double()
    error = 0.5 / bits.numel() ** 0.5
    assert abs(float(bits.mean()) - 0.5) < 4 * error
    noise, some = PathNoise(GRID, 2), x[:300]
    c = torch.stack([noise.step(k, some) for k in (0, 3)])
    error = some.numel() ** -0.5
    for drawn in c.unbind(2):
        for step in drawn:
            assert abs(float((step * some).mean())) < 4 * error
            assert abs(float(step.var()) - 1) < 4 * error * 2**0.5
    assert abs(float((c[0] * c[1]).mean())) < 4 * error


def test_a_sample_has_its_path_in_any_batch_and_order():
    x, whole = starts(3), PathNoise(GRID, 2)
    paths = [whole.step(k, x) for k in range(4)]
    alone = PathNoise(GRID, 2)
    alone.start(x[1:2])
    for k in (3, 0, 2, 1):
        assert torch.equal(alone.step(k, x[1:2]), paths[k][1:2])
    assert len({float(path.flatten()[0]) for path in paths}) == 4


def test_a_step_that_is_drawn_beforehand_is_the_same():
    x, noise, other = starts(2), PathNoise(GRID, 2), PathNoise(GRID, 2)
    noise.prepare(0, x.shape[1:])  # nothing is known of the samples yet
    for k in range(4):
        assert torch.equal(noise.step(k, x), other.step(k, x))
        noise.prepare(k + 1, x.shape[1:])
        assert noise.drawn.keys() == {k, k + 1} - {4}


def test_copies_for_guidance_see_the_path_of_their_sample():
    x, noise = starts(2), PathNoise(GRID, 3)
    doubled = noise.step(0, torch.cat([x, x]))
    assert torch.equal(doubled, torch.cat([noise.step(0, x)] * 2))
    assert not torch.equal(doubled[0], doubled[1])


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_steps_are_over_the_same_path(count: int):
    x, fine, coarse = starts(2), PathNoise(GRID, 3), PathNoise(GRID[:: 4 // count], 3, GRID)
    h = (GRID[:-1] - GRID[1:]).float()
    for k in range(count):
        parts = range(k * 4 // count, (k + 1) * 4 // count)
        joined = PartialSignature.fold([PartialSignature(h[j], fine.step(j, x)) for j in parts])
        assert torch.equal(coarse.step(k, x), joined.coefficients)


def test_a_generator_a_sample_gives_its_path():
    def drawn(x: Tensor, generators: Generator | list[Generator]) -> Tensor:
        return PathNoise(GRID, 2, None, generators).step(0, x)

    x = starts(2)
    own = drawn(x, [seeded(1), seeded(2)])
    assert torch.equal(own[1:], drawn(2 * x[1:].flip(-1), [seeded(2)]))
    assert torch.equal(own[:1], drawn(x, seeded(1))[:1])
    assert not torch.equal(own, PathNoise(GRID, 2).step(0, x))


def test_generators_and_samples_that_do_not_match_are_refused():
    for generators in ([seeded(1), seeded(2)], []):
        with pytest.raises(SigdegError, match=f"{len(generators)} generators .* 3 samples"):
            PathNoise(GRID, 2, None, generators).step(0, starts(3))
