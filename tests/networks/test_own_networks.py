"""Networks of any kind get a student by the same call as U-Nets, or one line says what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, UNet1DModel
from torch import Tensor, nn

from sigdeg.denoiser import NetworkDenoiser
from sigdeg.distillation import distill
from sigdeg.errors import SigdegError
from sigdeg.integrations import from_scheduler
from sigdeg.networks import Widened
from sigdeg.sampling import sample
from sigdeg.steps import Exponential
from sigdeg.student import SignatureStudent

SCHEDULE = from_scheduler(DDPMScheduler())


class Convolutional(nn.Module):
    """Two convolutions with a way around them; another layer, of the time, comes first."""

    def __init__(self, dims: int, channels: int = 3) -> None:
        super().__init__()
        conv: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        self.clock = nn.Linear(1, 8)
        self.entry = conv(channels, 8, 3, padding=1, padding_mode="circular")
        self.exit = conv(8, channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        told = self.clock(t[:, None] / 1000)
        h = self.entry(x) + told.reshape(*told.shape, *[1] * (x.ndim - 2))
        out: Tensor = x + self.exit(h.tanh())
        return out


class Joined(nn.Module):
    """A table of times beside a vector, in one linear layer; classes if it is told."""

    def __init__(self, classes: int = 0) -> None:
        super().__init__()
        self.time = nn.Embedding(1000, 8)
        self.kind = nn.Embedding(classes, 8) if classes else None
        self.body = nn.Sequential(nn.Linear(8 + 5, 16), nn.Tanh(), nn.Linear(16, 5))

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        told = self.time(t)
        if self.kind is not None:
            told = told + self.kind(class_labels)
        out: Tensor = self.body(torch.cat([told, x], 1))
        return out


class Tokens(nn.Module):
    """A linear layer of each date's features, as transformers have it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.embed(x.transpose(1, 2)) + (t / 1000)[:, None, None]
        out: Tensor = self.head(h.tanh()).transpose(1, 2)
        return out


class Flat(nn.Module):
    """All of a sample in one vector."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 12))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.layers(x.flatten(1)).unflatten(1, (3, 4))
        return out


class Last(nn.Module):
    """A layer whose features are a state's last dimension, or another when it is turned."""

    def __init__(self, layer: nn.Module, turned: int = 0) -> None:
        super().__init__()
        self.layer, self.turned = layer, turned

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.layer(x.mT).mT if self.turned else self.layer(x)
        return out


class Given(nn.Module):
    """A network that gives what it is told to."""

    def __init__(self, give: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.give = give

    def forward(self, x: Tensor, t: Tensor) -> Any:
        return self.give(x)


def unet_1d() -> nn.Module:
    """Of diffusers: the state is joined with features of the time before the first layer."""
    return UNet1DModel(
        sample_size=16,
        in_channels=2,
        out_channels=2,
        extra_in_channels=64,
        block_out_channels=(32, 32),
        down_block_types=("DownBlock1DNoSkip", "DownBlock1D"),
        up_block_types=("UpBlock1D", "UpBlock1DNoSkip"),
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, Any]]] = {
    "1-D": (lambda: Convolutional(1), (3, 25), {}),
    "2-D": (lambda: Convolutional(2), (3, 6, 5), {}),
    "3-D": (lambda: Convolutional(3), (3, 4, 4, 4), {}),
    "table of times": (Joined, (5,), {"timesteps": "integer"}),
    "tokens": (Tokens, (3, 7), {}),
    "flat": (Flat, (3, 4), {}),
    "diffusers in 1-D": (unet_1d, (2, 16), {}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_student_starts_as_its_teacher_and_learns_from_its_new_inputs(
    name: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    make, shape, options = NETWORKS[name]
    network = make()
    denoiser = NetworkDenoiser(network, SCHEDULE, "epsilon", **options).eval()
    student = SignatureStudent.from_denoiser(
        denoiser, shape[0], 2, steps=(2,), sample_shape=shape, lookahead=0.0, residual_noise=None
    )
    assert student.timesteps == denoiser.timesteps
    inner = student.network
    assert isinstance(inner, Widened)
    x, t = torch.randn(4, *shape), torch.tensor([3, 400, 30, 999])
    t = t if options else t.float()
    more = torch.randn(4, student.in_channels(shape[0], 2) - shape[0], *shape[1:])
    out, expected = inner(torch.cat([x, more], 1), t), network(x, t)
    values = [v if isinstance(v, Tensor) else v[0] for v in (out, expected)]
    assert torch.equal(*values)
    (values[0] ** 2).mean().backward()  # type: ignore[no-untyped-call]  # of torch
    assert inner.beside.weight.grad is not None
    assert float(inner.beside.weight.grad.abs().max()) > 0
    drawn = sample(student, student.grid(), (3, *shape), seeds=range(3))
    with torch.no_grad():
        inner.beside.weight.normal_()
    student.save_pretrained(tmp_path)
    again = SignatureStudent.from_pretrained(tmp_path, network=make())
    moved = [sample(s, s.grid(), (3, *shape), seeds=range(3)) for s in (student, again)]
    assert torch.equal(*moved)
    assert not torch.allclose(moved[0], drawn)
    if "diffusers" in name:  # which is built by itself
        assert torch.equal(
            sample(
                SignatureStudent.from_pretrained(tmp_path),
                student.grid(),
                (3, *shape),
                seeds=range(3),
            ),
            moved[0],
        )
    else:
        with pytest.raises(SigdegError, match="a network of your own has to be passed"):
            SignatureStudent.from_pretrained(tmp_path)


def test_classes_are_told_and_distilled(tmp_path: Path) -> None:
    """From a bare module to a distilled student of classes, in three calls."""
    denoiser = NetworkDenoiser(Joined(classes=2), SCHEDULE, timesteps="integer")
    with pytest.raises(SigdegError, match=r"cannot be called .* \(condition= gives what else"):
        SignatureStudent.from_denoiser(denoiser, 5)
    told = {"class_labels": torch.zeros(1, dtype=torch.long)}
    student = SignatureStudent.from_denoiser(denoiser, 5, 1, steps=(2,), condition=told)
    options: dict[str, Any] = {"iterations": 2, "paths": 16, "batch_size": 8, "refinement": 2}
    options |= {
        "condition": {"class_labels": torch.arange(2)},
        "tracker": "none",
        "device": "cpu",
        "progress": False,
    }
    matched = distill(student, Exponential(denoiser), tmp_path / "m", matching=1.0, q=0, **options)
    assert bool(matched.history.isfinite().all())
    found = distill(student, Exponential(denoiser), tmp_path / "run", **options).student
    again = SignatureStudent.from_pretrained(tmp_path / "run" / "student", network=Joined(2))
    labels = torch.tensor([0, 1, 1])
    drawn = [
        sample(s, s.grid(), (3, 5), seeds=range(3), class_labels=labels) for s in (found, again)
    ]
    assert torch.equal(*drawn)


class Hidden(nn.Module):
    """What sees the state is no layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.last = nn.Parameter(torch.ones(3)), nn.Linear(3, 3)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.last(2 * self.scale * x)
        return out


def test_what_has_no_layer_to_widen_is_refused() -> None:
    for network, options, line in (
        (Hidden(), {}, "as they come in; build a network with"),
        (Tokens(), {"sample_shape": (3, 4, 4)}, "cannot be called on a state of shape"),
        (Last(nn.Linear(4, 4)), {"sample_shape": (3, 4)}, "its first dimension, as they come in"),
        (Last(nn.Conv1d(4, 4, 1), 1), {"sample_shape": (3, 4)}, "its first dimension"),
    ):
        with pytest.raises(SigdegError, match=line) as caught:
            SignatureStudent.from_denoiser(NetworkDenoiser(network, SCHEDULE), 3, **options)
        assert "\n" not in str(caught.value)


def test_conditions_that_the_teacher_lacks_are_named(tmp_path: Path) -> None:
    class Prompted(nn.Linear):
        def forward(self, x: Tensor, t: Tensor, prompt: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x) + prompt

    denoiser = NetworkDenoiser(Prompted(3, 3), SCHEDULE)
    told = {"prompt": torch.zeros(1, 3)}
    student = SignatureStudent.from_denoiser(denoiser, 3, 1, steps=(2,), condition=told)
    with pytest.raises(SigdegError, match="the teacher is told 'prompt' too: give condition="):
        distill(student, Exponential(denoiser), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_outputs_that_do_not_fit_the_state_are_refused() -> None:
    x, t = torch.ones(2, 3, 5), torch.tensor(0.5, dtype=torch.float64)
    shape = r"makes \({}\) of a state of shape \(3, 5\)"
    for give, line in (
        (lambda x: torch.cat([x, x[:, :1]], 1), shape.format("4, 5")),  # no learned variance
        (lambda x: x[:, :1], shape.format("1, 5")),  # would be broadcast
        (lambda x: x[..., :1], shape.format("3, 1")),
        (lambda x: {"mean": x}, "got a dict"),
        (lambda x: None, "got a NoneType"),
    ):
        with pytest.raises(SigdegError, match=line):
            NetworkDenoiser(Given(give), SCHEDULE)(x, t)
    plain, both = (
        NetworkDenoiser(Given(give), SCHEDULE)(x, t)
        for give in (lambda x: x, lambda x: (torch.cat([x, 9 * x], 1),))
    )
    assert torch.equal(plain, both)
