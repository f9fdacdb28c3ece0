r"""What networks predict: eight kinds, each one row of one table.

Around every network stand three numbers of the noise level,

$$ E[x_0 | x_t] = c_{skip}\, x_t + c_{out}\, F(c_{in}\, x_t), $$

the preconditioning of Karras et al. (*Elucidating the design space*, arXiv 2206.00364), whatever it
predicts:

| prediction | the output $F$ is the mean of | $1 / c_{in}$ | $c_{skip}$ | $c_{out}$ |
|---|---|---|---|---|
| `epsilon` | $\varepsilon$ | 1 | $1 / \alpha$ | $-\sigma / \alpha$ |
| `v_prediction` | $\alpha \varepsilon - \sigma x_0$ | 1 | $\alpha / q^2$ | $-\sigma / q^2$ |
| `sample` | $x_0$ | 1 | 0 | 1 |
| `score` | $-\varepsilon / \sigma$ | 1 | $1 / \alpha$ | $\sigma^2 / \alpha$ |
| `flow` | $\varepsilon - x_0$ | 1 | $1 / p$ | $-\sigma / p$ |
| `flow_to_data` | $x_0 - \varepsilon$ | 1 | $1 / p$ | $\sigma / p$ |
| `edm` | what is left | $n$ | $\alpha v / n^2$ | $\sigma \sqrt v / n$ |
| `edm_v` | its negative | $n$ | $\alpha v / n^2$ | $-\sigma \sqrt v / n$ |

given $x_t$, with $p = \alpha + \sigma$, $q^2 = \alpha^2 + \sigma^2$ and
$n^2 = \alpha^2 v + \sigma^2$. `edm` is theirs for any $\alpha$: with data of variance $v$ the
network sees unit variance and predicts unit variance at every time. With $v = 1$, `edm_v` is
`v_prediction` for the variance-preserving state $x / q$.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from torch import Tensor

from sigdeg.errors import SigdegError

__all__ = ["OF_DATA_STD", "Preconditioning", "Prediction", "network_target", "preconditioning"]

Prediction = Literal[
    "epsilon", "v_prediction", "sample", "score", "flow", "flow_to_data", "edm", "edm_v"
]
OF_DATA_STD = ("edm", "edm_v")  # that assume the data's standard deviation


class Preconditioning(NamedTuple):
    r"""A row of the table at one noise level, $c_{skip}$ and $c_{out}$ over one denominator.

    Numbers, or tensors that broadcast against a state.
    """

    size: Tensor | float
    skip: Tensor | float
    out: Tensor | float
    norm: Tensor | float

    def scale(self, x: Tensor) -> Tensor:
        r"""The state as the network sees it, $c_{in} x$."""
        return x / self.size if isinstance(self.size, Tensor) else x

    def mean(self, output: Tensor, x: Tensor) -> Tensor:
        r"""$E[x_0 | x_t = x]$ of the network's output."""
        return (self.skip * x + self.out * output) / self.norm


def preconditioning(
    alpha: Tensor, sigma: Tensor, prediction: Prediction, data_std: float = 0.5
) -> Preconditioning:
    r"""The table at a noise level.

    Arguments:
        alpha: Signal scale.
        sigma: Noise scale.
        prediction: What the network predicts.
        data_std: $\sqrt v$, the data's standard deviation that `edm` and `edm_v` assume.

    Raises:
        SigdegError: If the prediction is unknown.
    """
    match prediction:
        case "epsilon":
            return Preconditioning(1, 1, -sigma, alpha)
        case "v_prediction":
            return Preconditioning(1, alpha, -sigma, alpha**2 + sigma**2)
        case "sample":
            return Preconditioning(1, 0, 1, 1)
        case "score":
            return Preconditioning(1, 1, sigma**2, alpha)
        case "flow":
            return Preconditioning(1, 1, -sigma, alpha + sigma)
        case "flow_to_data":
            return Preconditioning(1, 1, sigma, alpha + sigma)
        case "edm" | "edm_v":
            n2 = alpha**2 * data_std**2 + sigma**2
            n = n2.sqrt()
            out = sigma * data_std * n
            return Preconditioning(n, alpha * data_std**2, out if prediction == "edm" else -out, n2)
    raise SigdegError(f"unknown prediction {prediction!r}: choose from {get_args(Prediction)}")


def network_target(
    clean: Tensor,
    noise: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    prediction: Prediction,
    data_std: float = 0.5,
) -> Tensor:
    r"""What a network of a kind is trained to predict, given $x_0$ and $\varepsilon$.

    The output whose posterior mean is $x_0$ itself at $x_t = \alpha x_0 + \sigma \varepsilon$:

    $$ F = \frac{1 - c_{skip} \alpha}{c_{out}} x_0 - \frac{c_{skip} \sigma}{c_{out}} \varepsilon. $$

    Arguments:
        clean: $x_0$, shape (batch, \*).
        noise: $\varepsilon$, shape (batch, \*).
        alpha: Signal scale, broadcast against `clean`.
        sigma: Noise scale, broadcast against `clean`.
        prediction: What the network predicts.
        data_std: The data's standard deviation, for `edm` and `edm_v` only.
    """
    alpha, sigma = alpha.double(), sigma.double()  # near the data the first weight cancels
    _, skip, out, norm = preconditioning(alpha, sigma, prediction, data_std)
    of_clean, of_noise = (norm - skip * alpha) / out, skip * sigma / out
    return of_clean.to(clean) * clean - of_noise.to(clean) * noise
