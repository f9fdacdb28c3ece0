"""Teachers of our own: labels, withheld ones, and where the times of the batch lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from sigdeg.denoiser import NetworkDenoiser
from sigdeg.errors import SigdegError
from sigdeg.networks import class_labels
from sigdeg.schedule import VPLinear, expand
from sigdeg.training import job, train_teacher
from sigdeg.training.teacher import DenoisingObjective, Drawn

SCHEDULE = VPLinear()
STD = 0.5
MEANS = torch.tensor([-2.0, 0.5, 3.0])
N = 600


class Affine(nn.Module):
    r"""Posterior mean of $N(\mu_c, 0.5^2)$ with $\mu_c$ to be learned, the last one for none."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.means = nn.Parameter(torch.zeros(classes + 1, 1))

    def forward(self, x: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        t = timestep.double()  # of this schedule the timestep is the time
        alpha, sigma = expand(SCHEDULE.alpha(t), x), expand(SCHEDULE.sigma(t), x)
        mean = self.means[class_labels]
        return mean + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * mean)


def dataset() -> tuple[Tensor, Tensor]:
    """Classes in the ratio 1 : 2 : 3."""
    labels = torch.tensor([0, 1, 1, 2, 2, 2]).repeat(N // 6)
    noise = torch.randn(N, 1, generator=torch.Generator().manual_seed(0))
    return MEANS[labels][:, None] + STD * noise, labels


def run(folder: Path, denoiser: NetworkDenoiser | None = None, **options: Any) -> Any:
    data, labels = dataset()
    arguments: dict[str, Any] = {
        "labels": labels,
        "iterations": 250,
        "batch_size": 128,
        "learning_rate": 0.1,
        "warmup": 5,
        "ema": 0.9,
        "tracker": "none",
        "device": "cpu",
        "progress": False,
        **options,
    }
    denoiser = denoiser or NetworkDenoiser(Affine(), SCHEDULE, "sample")
    return train_teacher(denoiser, arguments.pop("data", data), folder, **arguments)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[Drawn]:
    """All batches the objective is shown, held-out ones included."""
    forward, seen = DenoisingObjective.forward, []

    def watched(self: DenoisingObjective, batch: Drawn) -> dict[str, Tensor]:
        seen.append(batch)
        return forward(self, batch)

    monkeypatch.setattr(DenoisingObjective, "forward", watched)
    return seen


def test_a_conditional_teacher_learns_the_class_means(tmp_path: Path) -> None:
    """The best means are those of the samples, class by class, and of all of them for none."""
    denoiser = NetworkDenoiser(Affine(), SCHEDULE, "sample")
    learned, _ = run(tmp_path, denoiser)
    data, labels = dataset()
    kept = slice(0, N - N // 20)
    data, labels = data[kept], labels[kept]
    expected = [data[labels == k].mean() for k in range(3)]
    means = learned.network.means.squeeze().tolist()
    assert means == pytest.approx([float(v) for v in (*expected, data.mean())], abs=0.12)
    assert bool((denoiser.network.means == 0).all())  # the one that was given stays as it is


def test_labels_are_those_of_the_samples_or_withheld(tmp_path: Path, batches: list[Drawn]) -> None:
    data, labels = 10 * dataset()[1][:, None].float(), dataset()[1]
    run(tmp_path, data=data, labels=labels, iterations=120, batch_size=250)
    assert len(batches) > 120
    drawn = torch.cat([batch[3]["class_labels"] for batch in batches])
    own = (torch.cat([batch[0] for batch in batches]) / 10).squeeze().long()
    withheld = drawn == 3  # one more than the largest
    assert torch.equal(drawn[~withheld], own[~withheld])
    # A share of 30,000 draws has a standard deviation of 0.0017.
    assert float(withheld.float().mean()) == pytest.approx(0.1, abs=0.008)
    for k in range(3):  # whatever the class
        assert float(withheld[own == k].float().mean()) == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize(("unlabelled", "kept"), [(0.0, True), (1.0, False)])
def test_none_or_all_labels_are_withheld(
    tmp_path: Path, batches: list[Drawn], unlabelled: float, kept: bool
) -> None:
    run(tmp_path, iterations=3, unlabelled=unlabelled)
    drawn = torch.cat([batch[3]["class_labels"] for batch in batches])
    assert bool(((drawn < 3) == kept).all())


def test_without_labels_the_network_is_called_without(tmp_path: Path, batches: list[Drawn]) -> None:
    class Plain(nn.Linear):
        def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
            return super().forward(x)

    run(tmp_path, NetworkDenoiser(Plain(1, 1), SCHEDULE), labels=None, iterations=2)
    assert all(batch[3] == {} for batch in batches)


@pytest.mark.parametrize("power", [1.0, 2.0, 0.5])
def test_times_are_bent_and_the_loss_is_taken_there(
    tmp_path: Path, batches: list[Drawn], power: float
) -> None:
    r"""$t_i = t_{min} + (t_{max} - t_{min}) ((i + U_i) / n)^p$, and the target is the data."""
    times = []

    class Recorder(NetworkDenoiser):
        def output(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
            times.append(t)
            return super().output(x, t, **condition)

    denoiser = Recorder(Affine(), SCHEDULE, "sample")
    run(tmp_path, denoiser, iterations=2, time_power=power)
    for (_, _, position, _), t in zip(batches, times, strict=True):
        n = len(position)
        assert torch.equal((position * n).floor(), torch.arange(n, dtype=torch.float64))
        expected = SCHEDULE.t_min + (SCHEDULE.t_max - SCHEDULE.t_min) * position**power
        torch.testing.assert_close(t, expected, rtol=1e-12, atol=1e-12)
    clean, noise, position, condition = batches[0]
    t = times[0]
    alpha, sigma = expand(SCHEDULE.alpha(t), clean), expand(SCHEDULE.sigma(t), clean)
    said = denoiser.network(alpha * clean + sigma * noise, t, **condition)
    loss = DenoisingObjective(denoiser, power)(batches[0])["loss"]
    torch.testing.assert_close(loss, ((said - clean) ** 2).mean(), rtol=1e-5, atol=1e-6)


def test_interrupted_it_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"iterations": 20, "checkpoint_every": 5, "time_power": 2.0}
    whole, history = run(tmp_path / "whole", **options)
    update, steps = job.ema_update, []

    def stop(*arguments: Any) -> None:
        steps.append(1)
        if len(steps) == 13:
            raise KeyboardInterrupt
        update(*arguments)

    monkeypatch.setattr(job, "ema_update", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", **options)
    again, rest = run(tmp_path / "parts", **options)
    assert len(steps) == 13 + 20 - 10
    assert torch.equal(again.network.means, whole.network.means)
    assert torch.equal(rest, history)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"time_power": 2.0}, "time_power"),
        ({"unlabelled": 0.2}, "unlabelled"),
        ({"labels": dataset()[1].flip(0)}, "labels"),
    ],
)
def test_another_run_is_refused(tmp_path: Path, change: dict[str, Any], word: str) -> None:
    run(tmp_path, iterations=1)
    with pytest.raises(SigdegError, match=rf"another run \(it differs in {word}\)"):
        run(tmp_path, iterations=1, **change)


@pytest.mark.parametrize("labels", [torch.zeros(N - 1).long(), torch.zeros(N, 1).long()])
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, labels: Tensor) -> None:
    with pytest.raises(SigdegError, match="600 samples need as many labels, got") as caught:
        run(tmp_path / "run", labels=labels)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("unlabelled", "labels"), [(0.1, [0, 1, 2]), (0.0, [0, 1, 2, 3])])
def test_a_unet_is_told_what_its_withheld_labels_were(
    tmp_path: Path, unlabelled: float, labels: list[int]
) -> None:
    network = UNet2DModel(
        sample_size=4,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(4, 4),
        norm_num_groups=2,
        attention_head_dim=2,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        num_class_embeds=4,
    )
    untrained = NetworkDenoiser(network, SCHEDULE)
    data = torch.randn(N, 1, 4, 4)
    options: dict[str, Any] = {"iterations": 1, "batch_size": 4, "data": data}
    trained, _ = run(tmp_path, untrained, unlabelled=unlabelled, **options)
    assert class_labels(trained.network) == labels
    assert class_labels(network) == [0, 1, 2, 3]
    with pytest.raises(SigdegError, match="null_class must be one of 0 to 3"):
        run(tmp_path / "full", untrained, labels=torch.arange(N) % 4, **options)
    assert not (tmp_path / "full").exists()
