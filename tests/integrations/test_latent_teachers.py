"""Teachers of latents and teachers with classes, against diffusers' own pipeline and network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMPipeline, LDMPipeline, UNet2DModel, VQModel
from torch import Tensor, nn

from sigdeg.codec import Decoder, Identity
from sigdeg.conditions import Classes, Unconditional
from sigdeg.errors import SigdegError
from sigdeg.grids import refine
from sigdeg.integrations import load_guided, load_teacher, save_latent_pipeline
from sigdeg.model import Model
from sigdeg.networks import Autoencoder, set_null_class
from sigdeg.paths import TeacherPaths
from sigdeg.sampling import march
from sigdeg.signature import PartialSignature
from sigdeg.steps import Exponential
from sigdeg.student import SignatureStudent

BLOCKS = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (4, 8),
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
    "latent_channels": 2,
    "norm_num_groups": 2,
    "sample_size": 16,
}
MakeUnet = Callable[..., UNet2DModel]
MakePipeline = Callable[..., Any]


def autoencoder(kind: str) -> Any:
    torch.manual_seed(1)
    if kind == "KL":
        return AutoencoderKL(**BLOCKS, scaling_factor=0.7).eval()
    return VQModel(**BLOCKS, num_vq_embeddings=32, scaling_factor=0.4).eval()


def close(first: Tensor, second: Tensor) -> None:
    """Equal up to the rounding of kernels, which depends on where weights lie in memory."""
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(num_train_timesteps=12, beta_end=0.4, clip_sample=False)


def ancestral(teacher: Model, n: int) -> Tensor:
    """March the teacher's step over its own timesteps, on the noise torch hands out."""
    N = len(teacher.denoiser.schedule.log_snrs)
    grid = torch.arange(N, -1, -1, dtype=torch.float64) / N
    x = torch.randn(n, *teacher.shape)
    noise = (PartialSignature(torch.tensor(1 / N), torch.randn(x.shape)[:, None]) for _ in range(N))
    with torch.no_grad():
        return march(teacher.step, x, grid, noise)


class TestLatents:
    """An `LDMPipeline`, with an autoencoder of diffusers or of this package."""

    @pytest.mark.parametrize("kind", ["KL", "VQ"])
    def test_samples_equal_those_of_the_pipeline(
        self, kind: str, unet: MakeUnet, tmp_path: Path
    ) -> None:
        """DDIM at eta = 1 and its decoder, on the same numbers."""
        pipeline = LDMPipeline(autoencoder(kind), unet(2), scheduler())
        pipeline.set_progress_bar_config(disable=True)
        pipeline.save_pretrained(tmp_path / "latent")
        teacher = load_teacher(tmp_path / "latent")
        assert teacher.shape == (2, 8, 8)
        assert teacher.conditions == Unconditional()
        assert isinstance(teacher.step, Exponential)
        torch.manual_seed(3)
        images = pipeline(3, eta=1.0, num_inference_steps=12, output_type="np").images
        torch.manual_seed(3)
        ours = teacher.codec.decode(ancestral(teacher, 3))
        assert ours.shape == (3, 3, 16, 16)
        shown = (ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        torch.testing.assert_close(shown, torch.from_numpy(images), rtol=0, atol=1e-4)
        assert shown.std() > 1e-2

    @pytest.mark.parametrize("kind", ["KL", "VQ"])
    def test_what_we_write_diffusers_reads(self, kind: str, unet: MakeUnet, tmp_path: Path) -> None:
        network, decoder = unet(2), Decoder(autoencoder(kind))
        save_latent_pipeline(network, scheduler(), decoder, tmp_path)
        pipeline = LDMPipeline.from_pretrained(tmp_path)
        x, scale = torch.randn(2, 2, 8, 8), decoder.autoencoder.config.scaling_factor
        close(pipeline.unet(x, 3).sample, network(x, 3).sample)
        theirs = pipeline.vqvae.decode(x / scale).sample
        close(load_teacher(tmp_path).codec.decode(x), theirs)
        assert pipeline.scheduler.config.num_train_timesteps == 12

    def test_with_our_own_autoencoder(self, unet: MakeUnet, tmp_path: Path) -> None:
        torch.manual_seed(0)
        own = Autoencoder(latent_channels=2, width=8, size=28).eval()
        own.mean.fill_(0.3)
        network = unet(2)
        save_latent_pipeline(network, scheduler(), Decoder(own), tmp_path / "own")
        teacher = load_teacher(tmp_path / "own")
        assert teacher.name == "own"
        assert teacher.shape == own.latent_shape == (2, 8, 8)
        assert isinstance(teacher.codec, Decoder)
        z = torch.randn(3, 2, 8, 8)
        close(teacher.codec.decode(z), own.decode(z))
        loaded: Any = teacher.codec.autoencoder
        image = torch.rand(1, 1, 28, 28)
        close(loaded.encode(image), own.encode(image))
        close(teacher.denoiser.network(z, 4).sample, network(z, 4).sample)

    def test_a_model_of_pixels_decodes_to_itself(self, teacher_folder: Path) -> None:
        teacher, x = load_teacher(teacher_folder), torch.randn(2, 1, 8, 8)
        assert teacher.codec == Identity()
        assert teacher.codec.decode(x) is x

    def test_it_moves_as_a_whole(self, unet: MakeUnet, tmp_path: Path) -> None:
        save_latent_pipeline(unet(2), scheduler(), Decoder(autoencoder("KL")), tmp_path)
        teacher = load_teacher(tmp_path)
        assert teacher.to("meta") is teacher
        assert isinstance(teacher.codec, Decoder)
        for module in (teacher.denoiser, teacher.codec):
            assert {p.device.type for p in module.parameters()} == {"meta"}

    def test_another_decoder_is_refused(self, unet: MakeUnet, tmp_path: Path) -> None:
        save_latent_pipeline(unet(2), scheduler(), Decoder(autoencoder("KL")), tmp_path)
        config = tmp_path / "vqvae" / "config.json"
        saved = json.loads(config.read_text())
        config.write_text(json.dumps({**saved, "_class_name": "AutoencoderDC"}))
        with pytest.raises(SigdegError, match=r"vqvae holds a AutoencoderDC, a decoder is one of"):
            load_teacher(tmp_path)
        config.unlink()
        with pytest.raises(SigdegError, match=r"vqvae holds no readable config\.json"):
            load_teacher(tmp_path)


class TestClasses:
    """A U-Net with `num_class_embeds`, whose last embedding is said to stand for no class."""

    @pytest.fixture
    def teacher(self, unet: MakeUnet, pipeline: MakePipeline, tmp_path: Path) -> Model:
        pipeline(unet=unet(num_class_embeds=4)).save_pretrained(tmp_path / "classes")
        teacher = load_teacher(tmp_path / "classes", null_class=3)
        # As it starts the network hardly listens to its embeddings.
        network: Any = teacher.denoiser.network
        nn.init.normal_(network.class_embedding.weight, std=20.0)
        return teacher

    @pytest.fixture
    def moved(self) -> Callable[..., Tensor]:
        def step(step: Exponential, labels: list[int]) -> Tensor:
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(3, 1, 8, 8, generator=generator)
            noise = PartialSignature.sample(0.1, x.shape, 1, generator)
            with torch.no_grad():
                return step(x, 0.6, 0.5, noise, class_labels=torch.tensor(labels))

        return step

    def test_guidance_lies_between_and_beyond(
        self, teacher: Model, moved: Callable[..., Tensor]
    ) -> None:
        assert teacher.conditions == Classes((0, 1, 2), 3)
        conditional = moved(teacher.step, [0, 1, 2])
        unconditional = moved(teacher.step, [3, 3, 3])
        assert (conditional - unconditional).abs().amax((1, 2, 3)).min() > 1e-2
        close(moved(teacher.guided(1.0).step, [0, 1, 2]), conditional)
        close(moved(teacher.guided(0.0).step, [0, 1, 2]), unconditional)

    @pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
    @pytest.mark.parametrize("by", ["classes", "weaker version"])
    def test_it_guides_first_and_clips_last_as_schedulers_do(
        self,
        unet: MakeUnet,
        pipeline: MakePipeline,
        tmp_path: Path,
        by: str,
        prediction: str,
    ) -> None:
        """The scheduler's own `pred_original_sample` of the guided output, at all its timesteps."""
        options = {"prediction_type": prediction, "timesteps": 100, "beta_end": 0.2}
        classes = 4 if by == "classes" else None
        made = pipeline(unet=unet(num_class_embeds=classes), **options)
        weak = pipeline(unet=unet(layers_per_block=2), **options)
        if classes:
            nn.init.normal_(made.unet.class_embedding.weight, std=20.0)
        for folder, saved in (("one", made), ("weak", weak)):
            saved.save_pretrained(tmp_path / folder)
        if classes:
            teacher = load_teacher(tmp_path / "one", null_class=3).guided(3.0)
        else:
            weaker = load_teacher(tmp_path / "weak")
            teacher = load_teacher(tmp_path / "one").guided(3.0, weak=weaker)
        guided: Any = getattr(teacher.step, "denoiser", None)
        clipped = 0.0
        labels, none = torch.tensor([2, 0, 1]), torch.tensor([3, 3, 3])
        asked = {"class_labels": labels} if classes else {}
        generator = torch.Generator().manual_seed(0)
        for k in range(99, -1, -7):
            t = torch.tensor((k + 1) / 100, dtype=torch.float64)
            x = torch.randn(3, 1, 8, 8, generator=generator)
            with torch.no_grad():
                output = made.unet(x, k, **asked).sample
                other = made.unet(x, k, none) if classes else weak.unet(x, k)
                told = other.sample + 3 * (output - other.sample)
                right = made.scheduler.step(told, k, x).pred_original_sample
                ours = guided(x, t, **asked)
            torch.testing.assert_close(ours, right, rtol=0, atol=1e-5)
            clipped += float((ours.abs() == 0.7).double().mean())
        assert 1 < clipped < 14  # of 15 batches: the clip is felt, and not everywhere

    def test_a_student_of_a_guided_clipping_teacher_stays_in_the_clip(
        self, unet: MakeUnet, pipeline: MakePipeline, tmp_path: Path
    ) -> None:
        pipeline(unet=unet(num_class_embeds=4)).save_pretrained(tmp_path)
        teacher = load_teacher(tmp_path, null_class=3)
        nn.init.normal_(teacher.denoiser.network.get_parameter("class_embedding.weight"), std=20.0)
        student = SignatureStudent.from_denoiser(
            teacher.denoiser,
            1,
            2,
            steps=(2,),
            sample_shape=(1, 8, 8),
            lookahead=0.0,
            residual_noise=None,
        )
        rows = list(refine(student.schedule, student.grid(), 3))
        generator = torch.Generator().manual_seed(0)
        guided, condition = teacher.guided(4.0).step, teacher.conditions()
        paths = TeacherPaths(guided, rows, (1, 8, 8), 2, condition=condition)
        batch = paths.draw(4, generator)
        for ends in (batch.states[:, -1], batch.replay(student, student.grid())):
            assert float(ends.detach().abs().max()) == pytest.approx(0.7)
        assert paths.teacher_nfe == 2 * 6

    def test_a_weaker_version_guides(
        self, teacher_folder: Path, unet: MakeUnet, pipeline: MakePipeline, tmp_path: Path
    ) -> None:
        r"""$D_{weak} + w (D - D_{weak})$ inside the clip, which comes last."""
        pipeline(unet=unet(layers_per_block=2)).save_pretrained(tmp_path / "weak")
        teacher, weak = load_teacher(teacher_folder), tmp_path / "weak"
        x, t = torch.randn(3, 1, 8, 8), torch.tensor(0.4)
        with torch.no_grad():
            found: Any = [load_teacher(f).denoiser for f in (teacher_folder, weak)]
            one, other = found
            one.clip = other.clip = None
            one, other = one(x, t), other(x, t)
            guided = teacher.guided(1.5, weak=load_teacher(weak)).step.denoiser(x, t)
        expected = (other + 1.5 * (one - other)).clamp(-0.7, 0.7)
        torch.testing.assert_close(guided, expected, rtol=1e-4, atol=1e-4)
        again = load_guided(teacher_folder, 1.5, 0.8, weak)
        told = (again.card.guidance, again.card.guidance_until, again.card.weak)
        assert told == (1.5, 0.8, "weak")
        assert {p.device.type for p in again.to("meta").step.parameters()} == {"meta"}
        with pytest.raises(SigdegError, match="guides by a scale: give guidance"):
            load_guided(teacher_folder, weak=weak)

    def test_what_is_no_weaker_version_is_refused(
        self, teacher_folder: Path, unet: MakeUnet, pipeline: MakePipeline, tmp_path: Path
    ) -> None:
        others = {
            "shape": pipeline(unet=unet(channels=3)),
            "classes": pipeline(unet=unet(num_class_embeds=4)),
            "levels": pipeline(timesteps=7),
        }
        for name, other in others.items():
            other.save_pretrained(tmp_path / name)
        for name in ("shape", "classes"):
            with pytest.raises(SigdegError, match=r"with None: it is no version of it"):
                load_guided(teacher_folder, 2.0, weak=tmp_path / name)
        with pytest.raises(SigdegError, match="has other noise levels than"):
            load_guided(teacher_folder, 2.0, weak=tmp_path / "levels")

    @pytest.mark.parametrize("n", [1, 10])
    def test_all_classes_are_classes_unless_one_is_said_to_mean_none(
        self, n: int, unet: MakeUnet, pipeline: MakePipeline, tmp_path: Path
    ) -> None:
        pipeline(unet=unet(num_class_embeds=n)).save_pretrained(tmp_path / "ten")
        teacher = load_teacher(tmp_path / "ten")
        assert teacher.conditions == Classes(tuple(range(n)))
        words = "one class" if n == 1 else f"ten is not known .*--null-class {n - 1}"
        with pytest.raises(SigdegError, match=words) as caught:
            teacher.guided(2.0)
        assert "\n" not in str(caught.value)
        wrong: Any
        for wrong in (n, -1, True, 0.0, "0"):
            with pytest.raises(SigdegError, match="null_class must be one of"):
                load_teacher(tmp_path / "ten", null_class=wrong)
        student = SignatureStudent.from_denoiser(
            teacher.denoiser, 1, 1, steps=(2,), sample_shape=(1, 8, 8)
        )
        student.save_pretrained(tmp_path / "student")
        assert SignatureStudent.from_pretrained(tmp_path / "student").class_labels == list(range(n))

    def test_what_means_none_may_be_any_and_stays_known(
        self, unet: MakeUnet, pipeline: MakePipeline, tmp_path: Path
    ) -> None:
        """Through the student's file and the teacher's; diffusers still reads the latter."""
        pipeline(unet=unet(num_class_embeds=4)).save_pretrained(tmp_path / "t")
        teacher = load_teacher(tmp_path / "t", null_class=0)
        assert teacher.conditions == Classes((1, 2, 3), 0)
        guided: Any = getattr(teacher.guided(2.0).step, "denoiser", None)
        assert guided.unconditional["class_labels"].tolist() == [0]
        student = SignatureStudent.from_denoiser(
            teacher.denoiser, 1, 1, steps=(2,), sample_shape=(1, 8, 8)
        )
        student.save_pretrained(tmp_path / "student")
        again = SignatureStudent.from_pretrained(tmp_path / "student")
        assert again.class_labels == [1, 2, 3]
        network: Any = teacher.denoiser.network
        network.save_pretrained(tmp_path / "t" / "unet")
        assert load_teacher(tmp_path / "t").conditions == Classes((1, 2, 3), 0)
        assert DDPMPipeline.from_pretrained(tmp_path / "t").unet.config["null_class"] == 0

    def test_in_students_of_before_the_last_one_means_none(
        self, teacher: Model, unet: MakeUnet, tmp_path: Path
    ) -> None:
        """Their networks had a wider first layer, and did not note what means none."""
        network = unet(in_channels=SignatureStudent.in_channels(1, 1), num_class_embeds=4)
        set_null_class(network, 3)
        student = SignatureStudent(
            network, teacher.denoiser.schedule, 1, 1, steps=(2,), sample_shape=(1, 8, 8)
        )
        student.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        assert config["network"]["config"].pop("null_class") == 3
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert SignatureStudent.from_pretrained(tmp_path).class_labels == [0, 1, 2]

    def test_guidance_of_a_model_without_classes_is_refused(self, teacher_folder: Path) -> None:
        teacher = load_teacher(teacher_folder)
        assert teacher.conditions == Unconditional()
        with pytest.raises(SigdegError, match="tiny knows no classes: guidance needs") as caught:
            teacher.guided(1.0)
        assert "\n" not in str(caught.value)
