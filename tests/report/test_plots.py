"""The plots, read back by their pixels: colours say which method was drawn, and where."""

from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from sigdeg.errors import SigdegError
from sigdeg.report import (
    histogram_plot,
    image_grid,
    quality_plot,
    scatter_plot,
    training_plot,
    trajectories_plot,
)
from sigdeg.report.plots import log_axis
from sigdeg.report.style import METHODS, colour, use_style
from sigdeg.results import role_of

QUALITY = {"metric": "fid", "label": "FID", "lower_is_better": True}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def where(path: Path, label: str) -> np.ndarray:
    """The (line, column) of every pixel in exactly the colour of a method."""
    return np.argwhere((pixels(path) == np.round(255 * np.array(to_rgb(colour(label))))).all(-1))


def points(method: str, *values: tuple[int, float]) -> list[dict[str, Any]]:
    return [
        {
            "method": method,
            "role": role_of(method),
            "nfe": nfe,
            "metrics": {"fid": {"mean": mean, "std": abs(mean) / 20}},
        }
        for nfe, mean in values
    ]


def test_a_method_has_one_colour_everywhere() -> None:
    assert colour("teacher, 300 steps") == colour("Teacher") == METHODS["teacher"].colour
    assert colour("student, 5 steps") == colour("sig-deg") == METHODS["sig-deg"].colour
    assert colour("real data") == colour("data")
    assert colour("sde-dpm-solver++ 2M") != colour("dpm-solver++ 2M")
    assert len({look.colour for look in METHODS.values()}) == len(METHODS)


# Machado, Oliveira and Fernandes (2009): full deuteranopia and protanopia, on linear RGB.
BLINDNESS = {
    "none": np.eye(3),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
}


@pytest.mark.parametrize("kind", BLINDNESS)
def test_the_main_colours_stay_apart_for_the_colour_blind(kind: str) -> None:
    def lab(name: str) -> np.ndarray:
        """CIELAB, white point D65, of the colour as that eye sees it."""
        rgb = np.array(to_rgb(METHODS[name].colour))
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        to_xyz = np.array(
            [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
        )
        x, y, z = np.cbrt(to_xyz @ (BLINDNESS[kind] @ linear).clip(0, 1) / [0.9505, 1, 1.089])
        return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])

    for a, b in combinations(("teacher", "sig-deg", "untrained", "data"), 2):
        assert np.linalg.norm(lab(a) - lab(b)) > 15, (a, b)  # 2 is a just noticeable difference


def test_quality_falls_from_left_to_right(tmp_path: Path) -> None:
    path = tmp_path / "new/quality.png"
    rows = points("sig-deg", (1, 100.0), (10, 1.0)) + points("teacher", (300, 1.0))
    quality_plot(rows, {"fid": {"mean": 0.5}}, QUALITY, path)
    plot = where(path, "student")
    plot = plot[plot[:, 1] < 1100]  # the legend is on the right
    left, right = plot[plot[:, 1].argmin()], plot[plot[:, 1].argmax()]
    assert left[0] < right[0]
    teacher = where(path, "teacher")
    assert teacher[:, 1].min() > right[1]
    assert len(where(path, "untrained")) == 0
    quality_plot(rows + points("untrained", (5, 50.0)), None, QUALITY, path)
    assert len(where(path, "untrained"))


def test_quality_survives_what_a_logarithm_does_not(tmp_path: Path) -> None:
    path = tmp_path / "quality.png"
    rows = points("sig-deg", (1, -0.5), (2, 0.0), (3, float("nan"))) + points("ddim", (5, 1.0))
    quality_plot([*rows, {"method": "teacher", "metrics": {}}], {}, QUALITY, path)
    assert len(where(path, "student"))
    assert len(where(path, "teacher")) == 0


@pytest.mark.parametrize("top", [1.01, 1.5, 3.0, 4.9, 5.1, 9.0, 50.0, 1e3, 1e5])
@pytest.mark.parametrize("low", [0.0021, 0.0065, 1.0, 7.0])
def test_an_axis_has_ticks_to_read_whatever_the_range(low: float, top: float) -> None:
    axes = Figure().subplots()
    axes.plot([0, 1], [low, low * top])
    log_axis(axes, "y")
    bottom, ceiling = axes.get_ylim()
    assert 2 <= sum(bottom <= tick <= ceiling for tick in axes.get_yticks()) <= 12


def test_training_curves_stand_in_the_colour_of_their_network(tmp_path: Path) -> None:
    path = tmp_path / "training.png"
    curve = [(step, 1 / (1 + step), None) for step in range(100)]
    training_plot({"teacher": curve, "student, 5 steps": [(s, x, x) for s, x, _ in curve]}, path)
    assert where(path, "teacher")[:, 1].max() < where(path, "student")[:, 1].min()


def test_trajectories_run_from_noise_on_the_left(tmp_path: Path) -> None:
    path = tmp_path / "trajectories.png"
    times = torch.linspace(1, 0, 11)
    fan = torch.linspace(-1, 1, 300)[:, None] * (1 - times)  # all at 0 at time 1
    trajectories_plot({"teacher": (times, fan)}, path)
    drawn = (pixels(path) != 255).any(-1) & (np.ptp(pixels(path).astype(int), axis=-1) > 40)
    columns = np.flatnonzero(drawn.any(0))
    spread = [
        np.ptp(np.flatnonzero(drawn[:, c])) for c in (columns[40], columns[len(columns) // 2])
    ]
    assert spread[0] < spread[1] / 3
    with pytest.raises(SigdegError, match=r"must have shape \(n, 11\)"):
        trajectories_plot({"teacher": (times, fan.T)}, path)


def test_histograms_share_their_axes(tmp_path: Path) -> None:
    path = tmp_path / "histograms.png"
    draw = np.random.default_rng(0).normal(size=20_000)
    histogram_plot({"teacher": draw, "student": torch.tensor(draw) / 4}, None, path)
    image = pixels(path).astype(int)
    orange = (image[..., 0] > image[..., 2] + 60).nonzero()
    blue = (image[..., 2] > image[..., 0] + 60).nonzero()
    # A quarter of the width, four times the height.
    assert np.ptp(orange[0]) == pytest.approx(np.ptp(blue[0]) / 4, rel=0.1)
    assert np.ptp(orange[1]) > 2.5 * np.ptp(blue[1])


def test_samples_in_the_plane_share_the_axes_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "scatter.png"
    corners = torch.tensor([[x, y] for x in (-1.0, 1.0) for y in (-1.0, 1.0)]).repeat(50, 1)
    scatter_plot({"teacher": corners, "student": corners / 2}, path)
    image = pixels(path).astype(int)
    orange = (image[..., 0] > image[..., 2] + 60).nonzero()
    blue = (image[..., 2] > image[..., 0] + 60).nonzero()
    for axis in (0, 1):
        assert np.ptp(orange[axis]) == pytest.approx(2 * np.ptp(blue[axis]), rel=0.1)


def test_image_grid_keeps_order_and_values(tmp_path: Path) -> None:
    path = tmp_path / "grid.png"
    levels = torch.tensor([0.0, 0.2, 0.4, 0.6])
    first = levels[:, None, None].expand(4, 8, 8)
    second = torch.zeros(4, 3, 8, 8)
    second[:, 0] = levels[:, None, None] + 0.2
    image_grid([first, second], path, columns=2, titles=["teacher", "student"])
    image = pixels(path).astype(int)

    def centre(mask: np.ndarray) -> tuple[float, float]:
        return tuple(np.argwhere(mask).mean(0))

    def grey(level: float) -> tuple[float, float]:
        return centre((abs(image - 255 * level) <= 1).all(-1))

    def red(level: float) -> tuple[float, float]:
        return centre((abs(image - [255 * level, 0, 0]) <= 1).all(-1))

    assert grey(0.2)[1] > grey(0.4)[1] + 50  # the second stands right of the third
    assert grey(0.2)[0] < grey(0.4)[0] - 50  # and a line higher
    assert grey(0.6)[0] == pytest.approx(grey(0.4)[0], abs=3)
    assert red(0.8)[0] == pytest.approx(grey(0.6)[0], abs=3)  # same place in the other set
    assert red(0.8)[1] - red(0.6)[1] == pytest.approx(grey(0.6)[1] - grey(0.4)[1], abs=3)


@pytest.mark.parametrize(
    ("images", "titles"),
    [
        ([np.zeros((4, 2, 8, 8))], None),
        ([np.zeros((8, 8))], None),
        ([np.zeros((4, 8, 8))], ["a", "b"]),
    ],
)
def test_image_grid_refuses_what_it_cannot_show(tmp_path: Path, images: Any, titles: Any) -> None:
    with pytest.raises(SigdegError, match="images"):
        image_grid(images, tmp_path / "grid.png", titles=titles)
    assert list(tmp_path.iterdir()) == []


def test_style_leaves_no_trace(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    with use_style():
        assert matplotlib.rcParams["axes.grid"]
    training_plot({"teacher": [(0, 1.0, None)]}, tmp_path / "training.png")
    assert dict(matplotlib.rcParams) == before


def test_a_loss_below_zero_is_shown_as_it_is(tmp_path: Path) -> None:
    """Some losses are: a logarithm would hide them, or fail."""
    curve = [(k, 1.0 - k / 100, -0.5) for k in range(100, 300, 100)]
    training_plot({"student": curve}, tmp_path / "training.png")
    assert (tmp_path / "training.png").stat().st_size > 0
