"""A model is one object: it draws in the user's units, and its folder gives it back."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from sigdeg import SignatureStudent, VPLinear, sample
from sigdeg.codec import Decoder, Identity, Standardise
from sigdeg.conditions import Classes, Unconditional
from sigdeg.denoiser import GaussianDenoiser
from sigdeg.errors import SigdegError
from sigdeg.files import SHIPPED
from sigdeg.grids import Grid, coarse_grid
from sigdeg.integrations import as_teacher, load_teacher
from sigdeg.model import Card, Model, as_model
from sigdeg.networks import Autoencoder, ResidualMLP
from tests.tiny import tiny_unet

SCHEDULE = VPLinear()


def student(shape: tuple[int, ...] = (3,), **options: Any) -> SignatureStudent:
    torch.manual_seed(0)
    network = ResidualMLP(SignatureStudent.in_channels(shape[0], 2), shape[0], 8, 1)
    options = {"steps": (4, 2), "data_std": 1.0, "sample_shape": shape, **options}
    return SignatureStudent(network, SCHEDULE, shape[0], 2, **options).eval()


def teacher(**options: Any) -> Model:
    torch.manual_seed(0)
    network = ResidualMLP(3, 3, 8, 1)
    torch.nn.init.normal_(network.head.weight)
    return as_teacher(network, SCHEDULE, (3,), "edm", data_std=1.0, name="own", **options)


class TestSample:
    """The samples are those of `sample`, decoded."""

    def test_seeds_say_which(self) -> None:
        own = student()
        model = as_model(own)
        expected = sample(own, own.grid(2), (5, 3), seeds=range(7, 12))
        assert torch.equal(model.sample(5, 2, seed=7), expected)
        assert torch.equal(model.sample(5, 2, seeds=[7, 8, 9, 10, 11]), expected)
        torch.testing.assert_close(model.sample(5, 2, seed=7, batch_size=2), expected)
        shared = torch.Generator().manual_seed(1)
        drawn = model.sample(5, generator=shared)
        again = torch.Generator().manual_seed(1)
        assert torch.equal(drawn, sample(own, own.grid(), (5, 3), generator=again))
        with pytest.raises(SigdegError, match="either seed, of the first sample, or seeds"):
            model.sample(2, seed=0, seeds=[0, 1])

    def test_own_units(self) -> None:
        mean, std = torch.randn(1, 3), torch.tensor([[2.0, 0.0, 1e-3]])
        model = dataclasses.replace(as_model(student()), codec=Standardise(mean, std))
        states = as_model(student()).sample(4, seed=0)
        expected = (mean + std * states[:, None]).float()
        torch.testing.assert_close(model.sample(4, seed=0), expected)

    def test_the_shipped_model_draws_digits(self) -> None:
        model = Model.from_pretrained("mnist")
        assert isinstance(model.codec, Decoder)
        assert model.sample(2, 1, seed=0).shape == (2, 1, 28, 28)
        own = SignatureStudent.from_pretrained("mnist")
        states = sample(own, own.grid(1), (2, 4, 8, 8), seeds=range(2))
        assert torch.equal(model.sample(2, 1, seed=0), model.decode(states))

    def test_a_teacher_draws_too(self) -> None:
        """Data of one point, at 2: whatever is drawn is 2."""
        model = as_model(GaussianDenoiser(2.0, 1e-6, SCHEDULE), (1,))
        torch.testing.assert_close(model.sample(3, 20, seed=0), torch.full((3, 1), 2.0))
        with pytest.raises(SigdegError, match="grid has 120 steps, got 500"):
            model.sample(1, 500)

    def test_what_is_asked_of_no_classes(self) -> None:
        with pytest.raises(SigdegError, match="knows no classes: leave label out"):
            as_model(student()).sample(1, label=0)


class TestConditions:
    """Labels in turn, one of them, or none."""

    def test_classes(self) -> None:
        known = Classes((0, 2, 5), null=1)
        assert known()["class_labels"].tolist() == [0, 2, 5]
        assert known(5)["class_labels"].tolist() == [0, 2, 5, 0, 2]
        assert known(2, label=5)["class_labels"].tolist() == [5, 5]
        assert known.none(2)["class_labels"].tolist() == [1, 1]
        with pytest.raises(SigdegError, match="label must be one of the 3 classes, got 1"):
            known(1, label=1)
        with pytest.raises(SigdegError, match="asked for by its label, got prompt"):
            known(1, prompt="a cat")
        with pytest.raises(SigdegError, match="not known which class means none"):
            Classes((0, 1)).none(1)

    def test_a_model_of_one_law(self) -> None:
        known = Unconditional()
        assert known() == known(3) == known.none(2) == {}


class TestStandardise:
    def test_there_and_back(self) -> None:
        series = 1e4 + torch.randn(50, 2, 7, generator=torch.Generator().manual_seed(0)).double()
        series[:, 1, 0] = 3.0  # the same in all of them
        codec = Standardise.of(series)
        states = codec.encode(series)
        assert states.shape == (50, 14)
        assert states.dtype == torch.float32
        moving = states.std(0) > 0
        assert moving.tolist() == [True] * 7 + [False] + [True] * 6
        torch.testing.assert_close(states.mean(0), torch.zeros(14), rtol=0, atol=1e-4)
        torch.testing.assert_close(states.std(0)[moving], torch.ones(13))
        torch.testing.assert_close(codec.decode(states.double()), series, rtol=0, atol=1e-4)

    @pytest.mark.parametrize("bad", [torch.tensor([-1.0]), torch.tensor([torch.nan])])
    def test_no_deviations(self, bad: Tensor) -> None:
        with pytest.raises(SigdegError, match="no deviation is below 0"):
            Standardise(torch.zeros(1), bad)


class TestFolder:
    """What was saved comes back, whole or not at all."""

    def test_of_a_student(self, tmp_path: Path) -> None:
        card = Card(teacher="t", guidance=1.5, verdict="fine", teacher_calls=12.0, seed=3)
        codec = Standardise(torch.full((3,), 5.0), torch.full((3,), 2.0))
        model = dataclasses.replace(
            as_model(student()), codec=codec, conditions=Classes((1, 2), 0), card=card
        )
        model.save_pretrained(tmp_path / "m")
        again = Model.from_pretrained(tmp_path / "m")
        assert again.card == dataclasses.replace(card, name="m")
        assert again.conditions == model.conditions
        assert again.grid == model.grid
        assert again.shape == (3,)
        assert SignatureStudent.from_pretrained(tmp_path / "m").origin == card.written
        states = as_model(student()).sample(4, seed=0)
        plain = dataclasses.replace(again, conditions=Unconditional())
        torch.testing.assert_close(plain.sample(4, seed=0), 5 + 2 * states)
        with pytest.raises(SigdegError, match="is of another model: choose another folder"):
            as_model(student()).save_pretrained(tmp_path / "m")
        shutil.rmtree(tmp_path / "m" / "decoder")
        with pytest.raises(SigdegError, match="samples would be in other units"):
            Model.from_pretrained(tmp_path / "m")

    def test_of_a_students_own_save(self, tmp_path: Path) -> None:
        own = student()
        own.origin = {"teacher": "t", "guidance": 2.0, "what is not known": 1}
        own.save_pretrained(tmp_path / "student")
        model = Model.from_pretrained(tmp_path)  # of the run that made it
        assert (model.card.teacher, model.card.guidance) == ("t", 2.0)
        assert isinstance(model.codec, Identity)
        assert torch.equal(model.sample(2, seed=0), as_model(own).sample(2, seed=0))

    def test_of_a_teacher(self, tmp_path: Path) -> None:
        codec = Standardise(torch.zeros(3), torch.full((3,), 2.0))
        model = dataclasses.replace(teacher(clip=0.9), codec=codec)
        model.save_pretrained(tmp_path / "t")
        for again in (Model.from_pretrained(tmp_path / "t"), load_teacher(str(tmp_path / "t"))):
            assert torch.equal(again.sample(3, 5, seed=0), model.sample(3, 5, seed=0))
            assert again.name == "own"
        config = json.loads((tmp_path / "t" / "config.json").read_text())
        (tmp_path / "t" / "config.json").write_text(json.dumps({**config, "clip": 0.5}))
        with pytest.raises(SigdegError, match=r"config\.json was changed or damaged"):
            Model.from_pretrained(tmp_path / "t")

    def test_a_network_and_a_schedule_of_ones_own(self, tmp_path: Path) -> None:
        class Own(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Linear(3, 3)

            def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
                out: Tensor = self.layer(x)
                return out

        model = as_teacher(Own(), SCHEDULE, (3,))
        model.save_pretrained(tmp_path)
        with pytest.raises(SigdegError, match="a network of your own has to be passed"):
            Model.from_pretrained(tmp_path)
        again = Model.from_pretrained(tmp_path, network=Own())
        assert torch.equal(again.sample(3, 5, seed=0), model.sample(3, 5, seed=0))

    def test_what_cannot_be_saved(self, tmp_path: Path) -> None:
        exact = as_model(GaussianDenoiser(0.0, 1.0, SCHEDULE), (1,))
        with pytest.raises(SigdegError, match="GaussianDenoiser cannot be saved"):
            exact.save_pretrained(tmp_path / "m")
        guided = teacher().guided(2.0, weak=teacher())
        with pytest.raises(SigdegError, match="guidance is not saved"):
            guided.save_pretrained(tmp_path / "m")
        assert not (tmp_path / "m").exists()

    @pytest.mark.parametrize(
        "changed", [{"conditions": {"labels": ["a"]}}, {"origin": {"guidance": "2"}}]
    )
    def test_what_is_of_another_kind(self, changed: dict[str, Any], tmp_path: Path) -> None:
        student().save_pretrained(tmp_path, **changed)
        with pytest.raises(SigdegError, match="must be a"):
            Model.from_pretrained(tmp_path)


class Table(nn.Module):
    """A network that looks whole timesteps up."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(1000, 3)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        out: Tensor = x + self.rows(timestep)
        return out


class TestTeachers:
    """What is a teacher: a pipeline in memory, a network, a model."""

    def test_a_network_and_a_scheduler(self) -> None:
        scheduler = diffusers.DDPMScheduler(prediction_type="v_prediction", clip_sample_range=2.0)
        model = as_teacher(Table(), scheduler, (3,), timesteps="integer")
        own: Any = model.denoiser
        assert (own.prediction_type, own.clip, own.timesteps) == ("v_prediction", 2.0, "integer")
        assert model.name == "Table"
        assert model.sample(2, 4, seed=0).shape == (2, 3)
        with pytest.raises(SigdegError, match="dynamic thresholding"):
            as_teacher(Table(), diffusers.DDPMScheduler(thresholding=True), (3,))

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ((None, SCHEDULE, (3,)), "None is no network"),
            ((Table, SCHEDULE, (3,)), "is no network: give a module"),
            ((Table(), "ddpm", (3,)), "no schedule is known for str"),
            ((Table(), VPLinear, (3,)), "no schedule is known"),
            ((Table(), SCHEDULE, 3), r"such as shape=\(3, 32, 32\), got 3"),
            ((Table(), SCHEDULE, ()), r"got \(\)"),
            ((Table(), SCHEDULE, (-3,)), r"got \(-3,\)"),
            ((Table(), SCHEDULE, (3,), "epsilon", -1), "clip must be above 0, got -1"),
        ],
    )
    def test_what_is_none(self, given: tuple[Any, ...], said: str) -> None:
        clip = {"clip": given[4]} if len(given) > 4 else {}
        with pytest.raises(SigdegError, match=said):
            as_teacher(*given[:4], **clip)

    def test_what_can_be_asked_of_a_model(self) -> None:
        assert load_teacher(teacher()).name == "own"
        with pytest.raises(SigdegError, match="told the shape of its samples"):
            as_model(GaussianDenoiser(0.0, 1.0, SCHEDULE))
        with pytest.raises(SigdegError, match="without a denoiser"):
            _ = as_model(student()).denoiser
        with pytest.raises(SigdegError, match="is a student: the teacher is guided"):
            as_model(student()).guided(2.0)

    def test_a_grid_of_every_so_many_times(self) -> None:
        finest = coarse_grid(SCHEDULE, 6)
        grid = Grid(tuple(finest.tolist()))
        assert torch.equal(grid.at(), finest)
        assert torch.equal(grid.at(3), finest[::2])
        assert torch.equal(grid.at(1), finest[[0, 6]])
        with pytest.raises(SigdegError, match="this model's grid has 6 steps, got 7"):
            grid.at(7)
        with pytest.raises(SigdegError, match="steps must be at least 1, got 0"):
            grid.at(0)
        with pytest.raises(SigdegError, match="was distilled for 6 steps, got 3"):
            Grid(grid.times, (6,)).at(3)


class TestPipelines:
    """A pipeline in memory is the teacher that its folder is."""

    def pipeline(self, **options: Any) -> Any:
        torch.manual_seed(0)
        network = tiny_unet(2, **options)
        return diffusers.DDPMPipeline(network, diffusers.DDPMScheduler())

    def test_the_same_samples(self, tmp_path: Path) -> None:
        pipeline = self.pipeline()
        pipeline.save_pretrained(tmp_path / "p")
        memory, folder = load_teacher(pipeline), load_teacher(tmp_path / "p")
        assert memory.shape == (2, 8, 8)
        assert torch.equal(memory.sample(2, 3, seed=0), folder.sample(2, 3, seed=0))
        again = load_teacher(diffusers.DDPMPipeline.from_pretrained(tmp_path / "p"))
        assert again.name == folder.name == "p"

    def test_latents_and_classes(self) -> None:
        unet = self.pipeline(num_class_embeds=4).unet
        blocks = {"block_out_channels": (4,), "latent_channels": 2, "norm_num_groups": 2}
        decoder = diffusers.AutoencoderKL(**blocks, scaling_factor=0.5)
        model = load_teacher(
            diffusers.LDMPipeline(decoder, unet, diffusers.DDIMScheduler()), null_class=3
        )
        assert model.conditions == Classes((0, 1, 2), 3)
        assert model.sample(2, 2, seed=0, label=1).shape == (2, 3, 8, 8)
        assert model.guided(2.0).sample(2, 2, seed=0).shape == (2, 3, 8, 8)

    def test_others_are_refused(self) -> None:
        with pytest.raises(SigdegError, match="a Autoencoder is neither a Model"):
            load_teacher(Autoencoder(latent_channels=1, width=8, size=8))
        with pytest.raises(SigdegError, match="time_embedding_type must be positional"):
            load_teacher(self.pipeline(time_embedding_type="fourier"))


def test_the_shipped_student_stands_beside_its_teacher(tmp_path: Path) -> None:
    """Their decoder is one: without it the student is refused, in a line that names it."""
    copy = tmp_path / "digits"
    for file in (SHIPPED / "mnist").rglob("*.*"):
        place = copy / file.relative_to(SHIPPED / "mnist")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.read_bytes())
    with pytest.raises(SigdegError, match="mnist-teacher/vqvae holds no readable config"):
        Model.from_pretrained(copy)


class Walk:
    """A step that no path drives: it moves by numbers from its noise."""

    process = SCHEDULE

    def noise(self, t: Any, s: Any, shape: Any, generator: Any = None, **kind: Any) -> Tensor:
        return torch.ones(tuple(shape), dtype=kind.get("dtype"), device=kind.get("device"))

    def calls(self, t: float, s: float) -> int:
        return 1

    def __call__(self, x: Tensor, t: Any, s: Any, noise: Tensor, /, **condition: Any) -> Tensor:
        return x + noise


def test_a_model_of_another_kind_of_noise() -> None:
    """Whatever drives its step it draws; what needs a path says so."""
    model = Model(Walk(), (2,), Grid((1.0, 0.5, 0.0)))
    start = VPLinear().prior((3, 2), [torch.Generator().manual_seed(k) for k in range(3)])
    torch.testing.assert_close(model.sample(3, seed=0), start + 2)
    with pytest.raises(SigdegError, match="is a Walk: no path drives it"):
        _ = model.gaussian
