"""What every row of the MNIST benchmark needs: data, networks, teachers' paths, and judges."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sigdeg.codec import Decoder, load_decoder
from sigdeg.denoiser import Denoiser, NetworkDenoiser
from sigdeg.distillation import DistillConfig, Distilled
from sigdeg.errors import extra
from sigdeg.experiments.bench import Benchmark, Draw, Spec
from sigdeg.experiments.mnist_judges import EXTRACTORS, Judges, images, shipped_extractor
from sigdeg.experiments.mnist_networks import (
    BATCH,
    CLASSES,
    in_batches,
    train_autoencoder,
    train_classifier,
    unet,
)
from sigdeg.experiments.mnist_presets import Settings
from sigdeg.files import SHIPPED
from sigdeg.grids import refine
from sigdeg.integrations import from_scheduler, load_teacher, save_latent_pipeline
from sigdeg.metrics import ClassifierExtractor, class_histogram
from sigdeg.paths import CachedPaths, TeacherPaths
from sigdeg.results import Summary, summarise
from sigdeg.rng import Stream, derive_generator, seeded
from sigdeg.student import SignatureStudent
from sigdeg.training import TrainConfig, train_teacher

__all__ = ["Digits"]


class Digits(Benchmark[Settings]):
    """Networks, teacher paths and judges of a run."""

    batch = BATCH
    sources: dict[str, CachedPaths]  # paths that students learn from, by teacher

    def read(self, data_dir: Path | None) -> None:
        self.train_set, self.test_set = images("train", data_dir), images("test", data_dir)

    def prepare(self) -> None:
        settings, self.timing_n = self.settings, self.settings.timing_n
        self.teachers, self.sources = {}, {}
        self.classes: dict[str, Tensor] = {}  # what share each has, by teacher
        extractors = [self.extractor(name) for name in EXTRACTORS]
        self.judges = Judges(extractors, self.train_set, self.test_set)
        self.codec = self.decoder = self.autoencoder()
        self.shares = class_histogram(self.train_set[1], CLASSES)
        self.latents = in_batches(self.decoder.autoencoder, "encode", self.train_set[0])
        self.shape = tuple(self.latents.shape[1:])
        folders = self.teacher_folders()
        self.teacher = load_teacher(folders[0]).to(self.device)
        # One more coefficient than the students see: the energy score needs noise.
        order = 1 + max(spec.order for spec in settings.specs)
        given = torch.tensor(settings.times, dtype=torch.float64), order
        self.add_source("", self.teacher.step, *given, settings.config)
        if (weak := settings.weak) is not None:
            self.weak = load_teacher(folders[1]).to(self.device)
            guided = self.teacher.guided(weak.scale, weak.until, self.weak)
            self.add_source("guided", guided.step, *given, weak.matching)

    def extractor(self, name: str) -> ClassifierExtractor:
        """A classifier that judges, trained if the preset says how and else the shipped one."""
        kind, folder = EXTRACTORS[name]
        config = self.settings.classifiers.get(name)
        if config is None:
            return shipped_extractor(name)
        config = dataclasses.replace(config, seed=self.seed + config.seed)
        trained, history = train_classifier(
            *self.train_set, self.out / f"{folder}-training", config, **self.options, kind=kind
        )
        self.curves[folder.replace("mnist-", "")] = history.tolist()
        # As it is shipped: its digest must be the same.
        return ClassifierExtractor(trained.half().float(), name)

    def autoencoder(self) -> Decoder:
        """The autoencoder, trained or the shipped teacher's."""
        if self.settings.shipped:
            return load_decoder(SHIPPED / "mnist-teacher" / "vqvae")
        config = dataclasses.replace(self.settings.autoencoder, seed=self.seed)
        folder = self.out / "autoencoder-training"
        trained, history = train_autoencoder(self.train_set[0], folder, config, **self.options)
        self.curves["autoencoder"] = history.tolist()
        return Decoder(trained)

    def teacher_folders(self) -> list[Path]:
        """Folders of the teacher and, where there is one, of the weak teacher."""
        with extra("diffusers"):
            import diffusers

        settings, out, weak = self.settings, self.out, self.settings.weak
        self.scheduler = diffusers.DDPMScheduler(
            num_train_timesteps=settings.train_steps,
            prediction_type="v_prediction",
            clip_sample=False,
        )
        if settings.shipped:
            return [SHIPPED / "mnist-teacher", SHIPPED / "mnist-weak"]
        network = seeded(self.seed, lambda: unet(settings.widths))
        network = self.train_unet("teacher", network, settings.teacher, out / "teacher-training")
        save_latent_pipeline(network, self.scheduler, self.decoder, out / "teacher")
        if weak is None:
            return [out / "teacher"]
        seed = self.seed + weak.teacher.seed
        network = seeded(seed, lambda: unet(weak.widths))
        network = self.train_unet("weak", network, weak.teacher, out / "weak-training")
        diffusers.DDPMPipeline(network, self.scheduler).save_pretrained(out / "weak")
        return [out / "teacher", out / "weak"]

    def train_unet(
        self,
        name: str,
        network: torch.nn.Module,
        config: TrainConfig,
        folder: Path,
        labels: Tensor | None = None,
    ) -> Any:
        """A trained U-Net of latents; the configuration's seed is counted from the run's."""
        trained, history = train_teacher(
            NetworkDenoiser(network, from_scheduler(self.scheduler), "v_prediction"),
            self.latents,
            folder,
            config,
            labels=labels,
            seed=self.seed + config.seed,
            time_power=2.0,
            **self.options,
        )
        self.curves[name] = history.tolist()
        return trained.network

    def add_source(
        self,
        name: str,
        step: Any,
        grid: Tensor,
        order: int,
        config: DistillConfig,
        condition: Mapping[str, Tensor] | None = None,
    ) -> CachedPaths:
        """A teacher and its paths over students' times."""
        rows = list(refine(step.schedule, grid, config.refinement, config.fine_power))
        options: dict[str, Any] = {"device": self.device, "condition": condition or {}}
        self.teachers[name] = step
        self.sources[name] = CachedPaths(
            TeacherPaths(step, rows, self.shape, order, **options),
            self.out / (f"{name}-paths" if name else "paths"),
            config.paths,
            self.seed + self.settings.shipped,  # not those that the student has learned from
            config.held_out,
            config.shard_size,
            self.options["progress"],
        )
        return self.sources[name]

    def make_student(
        self, spec: Spec, seed: int, denoiser: Denoiser | None = None, **options: Any
    ) -> SignatureStudent:
        times = self.settings.times[:: (len(self.settings.times) - 1) // max(spec.steps)]
        covariance = torch.cov(self.latents.flatten(1).double().T) if spec.lookahead else None
        return super().make_student(
            spec, seed, denoiser, times=times, sample_shape=self.shape, covariance=covariance
        )

    def distill(self, spec: Spec, seed: int) -> Distilled:
        """Distil one student from the shared paths, or let one go on by distribution matching."""
        settings = self.settings
        if settings.shipped:
            known = SignatureStudent.from_pretrained(SHIPPED / "mnist")
            return Distilled(known, torch.empty(0, 3), seconds=0.0, teacher_nfe=0.0)
        if spec.start is None:
            before, config = None, dataclasses.replace(settings.config, q=spec.q)
            student = self.make_student(spec, seed, self.teacher.denoiser)
        else:
            before = self.distill(spec.start, seed)
            student = before.student.at_times(before.student.grid(max(spec.steps)), spec.steps)
            weak = settings.weak if spec.teacher else None
            config = weak.matching if weak else settings.matching
        cache, iterations = self.sources[spec.teacher], spec.iterations or config.iterations
        found = self.train(spec, seed, student, config=config, cache=cache, iterations=iterations)
        if before is None or spec.start is None:
            return found
        other = before.teacher_nfe if spec.start.teacher != spec.teacher else 0
        return dataclasses.replace(
            found, seconds=found.seconds + before.seconds, teacher_nfe=found.teacher_nfe + other
        )

    def decode(self, latents: Tensor) -> Tensor:
        """Images in [-1, 1], on the CPU."""
        return self.teacher.codec.decode(latents.to(self.device)).clamp(-1, 1).cpu()

    def time(self, draw: Draw) -> Tensor:
        """Draw images, not latents alone."""
        return self.teacher.codec.decode(super().time(draw))

    def draws(self, draw: Draw, count: int | None = None) -> list[Callable[[], Tensor]]:
        """Independent sets of latents (default: as many as the preset wants)."""
        return [
            partial(draw, self.settings.n, derive_generator(self.seed, Stream.MNIST_DRAWS, i))
            for i in range(count or self.settings.draws)
        ]

    def judge_sets(
        self, name: str, sets: Sequence[Callable[[], Tensor]]
    ) -> tuple[dict[str, Summary], Tensor]:
        """Metrics and class shares of several sets of latents, against the test images."""
        found = self.recall(name, lambda i: self.judges.measure(self.decode(sets[i]())), len(sets))
        shares = torch.tensor([f["classes"] for f in found], dtype=torch.float64).mean(0)
        return summarise([f["metrics"] for f in found]), shares

    def judge(self, name: str, draw: Draw) -> dict[str, Summary]:
        return self.judge_sets(name, self.draws(draw, self.settings.peer_draws))[0]

    def score(self, draw: Draw) -> float:
        """The Fréchet distance by the first features to training images, of one draw."""
        generator = derive_generator(self.seed, Stream.MNIST_VALIDATION)
        return self.judges.score(self.decode(draw(self.settings.tried, generator)))

    def floor(self) -> dict[str, Summary]:
        """The metrics of training images, disjoint sets as large as a draw."""
        return self.judges.floor(self.settings.n, self.settings.draws, self.seed)

    def reconstruction(self) -> dict[str, Summary]:
        """The metrics of decoded latents of training images."""
        parts = self.latents.split(self.settings.n)[: self.settings.draws]
        return summarise([self.judges.measure(self.decode(part))["metrics"] for part in parts])
