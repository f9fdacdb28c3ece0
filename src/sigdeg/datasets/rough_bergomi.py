r"""Rough Bergomi: a stock whose volatility is rough, simulated by the hybrid scheme.

$$ Y_t = \sqrt{2a + 1} \int_0^t (t - s)^a \, dW_s, \qquad
   V_t = \xi \exp\left(\eta Y_t - \tfrac{\eta^2}{2} t^{2a + 1}\right), \qquad
   \frac{dS_t}{S_t} = \sqrt{V_t} \left(\rho \, dW_t + \sqrt{1 - \rho^2} \, dW^\perp_t\right). $$

$Y$ is a Volterra process of variance $t^{2a + 1}$, Hurst exponent $a + 1/2$.

References:
    Bayer, Friz, Gatheral, *Pricing under rough volatility* (2016), for the model.
    Bennedsen, Lunde, Pakkanen, *Hybrid scheme for Brownian semistationary processes* (2017).
    Sig-DEG (arXiv 2508.16939), sections 4.1.3 and C.4.1, for the benchmark.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from sigdeg.errors import SigdegError, check_least
from sigdeg.files import read_identified, save_tensors

__all__ = ["RoughBergomi", "SeriesSplit", "rough_bergomi_split"]

CHUNK = 2**28  # bytes; a chunk of paths takes 2 to 3 times as many at its peak


@dataclass(frozen=True)
class RoughBergomi:
    r"""The model; the defaults are those of the benchmark (C.4.1).

    Arguments:
        xi: Forward variance $\xi = E V_t$, positive.
        eta: Volatility of volatility $\eta$.
        rho: Correlation $\rho$ of price and volatility, in [-1, 1].
        a: Exponent of the kernel, in (-1/2, 1/2); the Hurst exponent is $a + 1/2$.
        horizon: The last date T, in years.
        spot: The price $S_0$.

    Raises:
        SigdegError: If a parameter is out of its range.
    """

    xi: float = 0.235**2
    eta: float = 1.9
    rho: float = -0.9
    a: float = -0.35
    horizon: float = 1.0
    spot: float = 1.0

    def __post_init__(self) -> None:
        if not -1 <= self.rho <= 1:
            raise SigdegError(f"rho must lie between -1 and 1, got {self.rho}")
        if not -0.5 < self.a < 0.5:
            raise SigdegError(f"a must lie strictly between -1/2 and 1/2, got {self.a}")
        # Within these bounds nothing overflows, whatever the steps.
        for name in ("xi", "horizon", "spot"):
            if not 1e-50 <= getattr(self, name) <= 1e50:
                raise SigdegError(
                    f"{name} must lie between 1e-50 and 1e50, got {getattr(self, name)}"
                )
        if not abs(self.eta) <= 1e50:
            raise SigdegError(f"eta must lie between -1e50 and 1e50, got {self.eta}")

    def sample(
        self, n: int, generator: Generator, dates: int = 25, steps_per_date: int = 20
    ) -> Tensor:
        r"""Draw paths of log-price and log-variance at equidistant dates up to the horizon.

        The hybrid scheme with $\kappa = 1$ on steps of length $h$: the kernel is exact over the
        last step, where it is singular, and its average over each step before,

        $$ Y_{ih} \approx \sqrt{2a + 1} \Big( \int_{(i-1)h}^{ih} (ih - s)^a dW_s + h^a
           \sum_{k=2}^{i} \frac{k^{a+1} - (k-1)^{a+1}}{a + 1} \Delta W_{i-k} \Big), \qquad
           \Delta W_j = W_{(j+1)h} - W_{jh}, $$

        a convolution, done by FFT. The log-price moves by the exact Gaussian step of a variance
        frozen over each step, so that the price is a martingale at any step length.

        Arguments:
            n: The number of paths.
            generator: The stream of the noise, on the device to compute on.
            dates: Dates, at least 2; time 0, where nothing is random, is none of them.
            steps_per_date: Steps of the scheme between two dates.

        Returns:
            Log-prices and log-variances, float64 with shape (n, 2, dates), on the generator's
            device.

        Raises:
            SigdegError: If there are fewer than 1 path, 2 dates or 1 step.
        """
        if n < 1:
            raise SigdegError(f"n must be at least 1 path, got {n}")
        check_least(dates, 2, "dates")
        check_least(steps_per_date, 1, "steps_per_date")
        steps = dates * steps_per_date
        rows = max(1, CHUNK // (64 * steps))
        series = torch.empty(n, 2, dates, dtype=torch.float64, device=generator.device)
        for part in series.split(rows):
            steps_of_part = self._chunk(len(part), generator, steps)
            part.copy_(steps_of_part[..., steps_per_date - 1 :: steps_per_date])
        return series

    def _chunk(self, n: int, generator: Generator, steps: int) -> Tensor:
        a, h, device = self.a, self.horizon / steps, generator.device
        normal = torch.randn(3, n, steps, generator=generator, device=device, dtype=torch.float64)
        # W and I, the singular integral over the same step: covariance h^(a+1) / (a + 1).
        dW = math.sqrt(h) * normal[0]
        slope = h**a / (a + 1)
        rest = h ** (2 * a + 1) * (a / (a + 1)) ** 2 / (2 * a + 1)
        last = slope * dW + math.sqrt(rest) * normal[1]
        k = torch.arange(1, steps + 1, device=device, dtype=torch.float64)
        kernel = h**a * (k ** (a + 1) - (k - 1) ** (a + 1)) / (a + 1)
        kernel[0] = 0  # the last step is exact
        size = 2 * steps
        spectrum = torch.fft.rfft(dW, size) * torch.fft.rfft(kernel, size)
        Y = math.sqrt(2 * a + 1) * (last + torch.fft.irfft(spectrum, size)[:, :steps])
        t = h * k
        log_variance = math.log(self.xi) + self.eta * Y - self.eta**2 / 2 * t ** (2 * a + 1)
        variance = torch.cat(
            [torch.full_like(dW[:, :1], self.xi), log_variance[:, :-1].exp()], dim=1
        )
        noise = self.rho * dW + math.sqrt((1 - self.rho**2) * h) * normal[2]
        log_price = (variance.sqrt() * noise - variance * (h / 2)).cumsum(1) + math.log(self.spot)
        return torch.stack([log_price, log_variance], dim=1)


class SeriesSplit(NamedTuple):
    r"""The benchmark's data: paths of shape (n, 2, dates), and how to standardise them.

    Arguments:
        train: 60% of the paths.
        validation: 20% of them.
        test: The last 20%.
        mean: Mean of the training paths, coordinate by coordinate, shape (2, dates).
        std: Their standard deviation, alike.
    """

    train: Tensor
    validation: Tensor
    test: Tensor
    mean: Tensor
    std: Tensor

    def standardise(self, series: Tensor) -> Tensor:
        r"""Paths (n, 2, dates) as what a network sees, float32 with shape (n, 2 dates)."""
        return ((series - self.mean) / self.std).flatten(1).float()

    def restore(self, x: Tensor) -> Tensor:
        """The inverse: log-price and log-variance, float64 with shape (n, 2, dates)."""
        return x.double().reshape(len(x), *self.mean.shape) * self.std + self.mean


def rough_bergomi_split(
    seed: int,
    n: int = 100_000,
    dates: int = 25,
    model: RoughBergomi | None = None,
    cache: Path | None = None,
) -> SeriesSplit:
    """Draw the benchmark's paths, or read them from the file that an earlier call wrote.

    Arguments:
        seed: Seeds the draw; the same seed gives the same paths.
        n: Paths in all, at least 10: 60% to train, 20% to validate, 20% to test.
        dates: Dates of a path.
        model: The model, the benchmark's by default.
        cache: File to keep the paths in, with a digest.

    Raises:
        SigdegError: If the file is damaged or holds other paths, or a coordinate hardly varies.
    """
    if n < 10:
        raise SigdegError(f"a split needs at least 10 paths, got {n}")
    model = model or RoughBergomi()
    identity = json.dumps({"seed": seed, "n": n, "dates": dates, "model": asdict(model)})
    if cache is not None and cache.exists():
        series = read_identified(cache, identity)["series"]
    else:
        series = model.sample(n, Generator().manual_seed(seed), dates)
        if cache is not None:
            save_tensors(cache, {"series": series}, {"identity": identity})
    train, validation, test = series.split([n - 2 * (n // 5), n // 5, n // 5])
    mean, std = train.mean(0), train.std(0)
    if not bool((std > 1e-9 * mean.abs()).all()):
        raise SigdegError("the paths hardly vary, so they cannot be standardised: raise eta or xi")
    return SeriesSplit(train, validation, test, mean, std)
