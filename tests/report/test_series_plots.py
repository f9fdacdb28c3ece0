"""The plots of time series, read back from their figures and their pixels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from PIL import Image

from sigdeg.errors import SigdegError
from sigdeg.report import diffusion_plot, marginals_plot, paths_plot, series
from sigdeg.report.style import colour

LABELS = ["data", "teacher", "student"]
DATES = torch.arange(1, 13) / 12
WALKS = torch.randn(3, 500, 2, 12, generator=torch.Generator().manual_seed(0)).cumsum(-1)
NAMED = dict(zip(LABELS, WALKS, strict=True))

PLOTS: dict[str, Callable[[Path], None]] = {
    "paths": lambda path: paths_plot(
        {label: (x / 5).exp() for label, x in NAMED.items()}, DATES, ("price", "variance"), path
    ),
    "marginals": lambda path: marginals_plot({k: x[:, 0] for k, x in NAMED.items()}, DATES, path),
    "diffusion": lambda path: diffusion_plot(
        {k: (DATES.flip(0), x.mT) for k, x in NAMED.items()}, ("price", "variance"), path
    ),
}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that would have been saved."""
    figures: list[Figure] = []
    monkeypatch.setattr(series, "save", lambda figure, *_: figures.append(figure))
    return figures


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes if axes.axison]


def blend(label: str, alpha: float) -> np.ndarray:
    """A translucent colour on white."""
    return 255 * (1 - alpha + alpha * np.array(to_rgb(colour(label))))


def commonest(image: Image.Image) -> tuple[int, ...]:
    """The commonest colour that is neither white nor grey."""
    return max((count, rgb) for count, rgb in image.getcolors() if np.ptp(rgb) > 10)[1]


@pytest.mark.parametrize(
    ("name", "alpha", "columns"), [("paths", 0.2, 3), ("marginals", 0.35, 1), ("diffusion", 0.5, 3)]
)
def test_a_small_file_holds_the_same_figure_every_time(
    name: str, alpha: float, columns: int, tmp_path: Path
) -> None:
    before = dict(matplotlib.rcParams)
    files = [tmp_path / "new/one.png", tmp_path / "two.png"]
    for file in files:
        PLOTS[name](file)
    assert dict(matplotlib.rcParams) == before
    assert files[0].read_bytes() == files[1].read_bytes()
    with Image.open(files[0]) as image:
        picture = image.convert("RGB")
    assert len(picture.getcolors()) <= 48
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    # A palette chosen badly paints the green band of the data in the blue of the students.
    width, height = picture.size
    first = picture.crop((0, 0, width // columns, height))
    np.testing.assert_allclose(commonest(first), blend("data", alpha), atol=6)
    if columns > 1:
        last = picture.crop((width - width // columns, 0, width, height))
        np.testing.assert_allclose(commonest(last), blend("student", alpha), atol=6)


def test_some_paths_stand_before_the_quantiles_of_all(drawn: list[Figure], tmp_path: Path) -> None:
    price = torch.arange(1.0, 102)[torch.randperm(101, generator=torch.Generator().manual_seed(1))]
    paths = torch.stack([price[:, None] * DATES, 1000 * price[:, None] * DATES], dim=1)
    given = {"data": paths, "teacher": paths.numpy(), "student": 10 * paths}
    paths_plot(given, DATES, ("price", "variance"), tmp_path / "paths.png")
    (figure,) = drawn
    assert titles(figure) == ["data", "teacher", "student", "", "", ""]
    grid = np.array(figure.axes).reshape(2, 3)
    assert [axes.get_ylabel() for axes in grid[:, 0]] == ["price", "variance"]
    for row, unit in zip(grid, (1, 1000), strict=True):
        for axes, label, factor in zip(row, given, (1, 1, 10), strict=True):
            scale = unit * factor * DATES.numpy()
            *lines, median = axes.lines
            np.testing.assert_allclose(
                [line.get_ydata() for line in lines], scale * price[:16, None].numpy(), rtol=1e-6
            )
            np.testing.assert_allclose(median.get_ydata(), 51 * scale, rtol=1e-6)
            (band,) = axes.collections
            edges = band.get_paths()[0].vertices
            last = edges[np.isclose(edges[:, 0], 1), 1]
            assert last.min() == pytest.approx(6 * scale[-1])
            assert last.max() == pytest.approx(96 * scale[-1])
            tints = {to_hex(band.get_facecolor()[0]), *(line.get_color() for line in lines)}
            assert tints == {colour(label)}
            assert axes.get_yscale() == "log"
            assert axes.get_ylim() == row[0].get_ylim()
    assert grid[0, 0].get_ylim() != grid[1, 0].get_ylim()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["5% to 95%", "median"]


def test_marginals_are_densities_on_the_bins_of_the_data(
    drawn: list[Figure], tmp_path: Path
) -> None:
    uniform = torch.linspace(0, 1, 10_001)[:, None] * (1 + DATES)
    far = torch.where(torch.arange(10_001)[:, None] % 2 == 0, uniform, uniform + 100)
    marginals_plot(
        {"data": uniform, "teacher": uniform / 2, "student": far, "student, 1 call": uniform},
        DATES,
        tmp_path / "marginals.png",
    )
    (figure,) = drawn
    assert titles(figure)[:3] == ["t = 0.0833", "t = 0.167", "t = 0.25"]
    assert len(titles(figure)) == 12  # of the 15 places
    for axes, date in zip(figure.axes, DATES.tolist(), strict=False):
        data, teacher, student, second = axes.patches
        # From the 1% to the 99% quantile and a tenth of that width more on both sides.
        edges = (1 + date) * np.linspace(-0.088, 1.088, 41)
        for patch in axes.patches:
            np.testing.assert_allclose(patch.get_data().edges, edges, rtol=1e-5)
        middle = slice(4, 36)  # where the uniform law has its whole density
        density = data.get_data().values
        np.testing.assert_allclose(density[middle], 1 / (1 + date), rtol=0.01)
        mass = [(p.get_data().values * np.diff(edges)).sum() for p in axes.patches]
        np.testing.assert_allclose(mass, [1, 1, 0.5, 1], rtol=1e-3)
        np.testing.assert_allclose(teacher.get_data().values[4:19], 2 / (1 + date), rtol=0.01)
        tints = [p.get_facecolor() if p.get_fill() else p.get_edgecolor() for p in axes.patches]
        assert [to_hex(tint) for tint in tints] == [
            colour(label) for label in ("data", "teacher", "student", "student")
        ]
        assert data.get_fill()
        assert not teacher.get_fill()
        assert student.get_linestyle() != second.get_linestyle()
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["data", "teacher", "student", "student, 1 call"]


def test_trajectories_run_from_noise_on_the_left(drawn: list[Figure], tmp_path: Path) -> None:
    times = {"teacher": torch.linspace(1, 0, 101), "student": torch.tensor([1.0, 0.4, 0.0])}
    slopes = torch.linspace(-1, 1, 40)[:, None, None] * torch.tensor([1.0, 5.0])
    panels = {k: (t, slopes * (1 - t[:, None])) for k, t in times.items()}
    panels["student"] = (times["student"], 2 * panels["student"][1])
    diffusion_plot(panels, ("log price, t = 1", "variance"), tmp_path / "diffusion.png")
    (figure,) = drawn
    grid = np.array(figure.axes).reshape(2, 2)
    assert [axes.get_title(loc="left") for axes in grid[0]] == ["teacher", "student"]
    assert [axes.get_ylabel() for axes in grid[:, 0]] == ["log price\nt = 1", "variance"]
    for j, (label, (t, x)) in enumerate(panels.items()):
        for i, axes in enumerate(grid[:, j]):
            lines = [line.get_xydata() for line in axes.lines]
            np.testing.assert_allclose(
                lines, torch.stack([t.expand(16, -1), x[:16, :, i]], dim=-1), atol=1e-6
            )
            assert {line.get_color() for line in axes.lines} == {colour(label)}
            assert {line.get_marker() for line in axes.lines} == {"None" if j == 0 else "o"}
            left, right = axes.get_xlim()
            assert left >= 1 > 0 >= right
            assert axes.get_ylim() == grid[i, 0].get_ylim()
    assert grid[1, 0].get_ylim()[0] == pytest.approx(5 * grid[0, 0].get_ylim()[0])


ONE, TWO, SIX = np.ones((9, 12)), np.ones((9, 2, 12)), np.ones((9, 12, 6))
SPOILT = np.where(np.arange(12) == 3, np.nan, ONE)


@pytest.mark.parametrize(
    ("plot", "arguments", "message"),
    [
        (paths_plot, ({"data": ONE}, DATES, "SV"), r"'data' must have shape \(n, 2, 12\)"),
        (paths_plot, ({"data": TWO}, DATES, "S"), r"\(n, 1, 12\), got \(9, 2, 12\)"),
        (paths_plot, ({"data": TWO, "a": 0 * TWO}, DATES, "SV"), "'a' must be positive"),
        (paths_plot, ({}, DATES, "SV"), "at least one label"),
        (marginals_plot, ({"a": ONE.T}, DATES), r"'a' must have shape \(n, 12\), got \(12, 9\)"),
        (marginals_plot, ({"a": ONE[:0]}, DATES), r"got \(0, 12\)"),
        (marginals_plot, ({"a": SPOILT}, DATES), "'a' must be finite"),
        (marginals_plot, ({}, DATES), "at least one label"),
        (diffusion_plot, ({"a": (DATES, SIX)}, "abc"), r"\(n, 12, 3\), got \(9, 12, 6\)"),
        (diffusion_plot, ({"a": (DATES[1:], SIX)}, "abcdef"), r"\(n, 11, 6\)"),
        (diffusion_plot, ({}, "abc"), "at least one label"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    plot: Callable[..., None], arguments: tuple[Any, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SigdegError, match=message):
        plot(*arguments, tmp_path / "plot.png")
    assert list(tmp_path.iterdir()) == []
