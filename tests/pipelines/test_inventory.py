"""The table of pipeline classes is what comes of them."""

import json

import diffusers
import pytest

from tests.pipelines.inventory import FAULT, PAGE, RESULTS, WORKS, attempt, classes, page

TOLD = json.loads(RESULTS.read_text())
WORK = [name for name, (outcome, _) in TOLD["classes"].items() if outcome == WORKS]
QUICK = (
    "DanceDiffusionPipeline",  # its layers see more than the state
    "MarigoldDepthPipeline",  # the state stands behind an image
)


def test_the_page_shows_the_table():
    assert PAGE.read_text() == page(TOLD)
    assert all(outcome != FAULT for outcome, _ in TOLD["classes"].values())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in WORK]
)
def test_what_works_works(name):
    assert list(attempt(name)) == TOLD["classes"][name]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_class_has_a_row():
    assert diffusers.__version__ == TOLD["diffusers"], "another diffusers: make the table anew"
    assert sorted(classes()) == sorted(TOLD["classes"])
