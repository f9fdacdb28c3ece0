"""MNIST, the paper's images (4.1.2, C.3): diffusion of latents, distilled to a few calls.

An autoencoder takes digits to latents of 4 x 8 x 8, a U-Net diffuses those, students are distilled
from it by the path that any latent pipeline takes (`load_teacher`, `distill`), and all are judged
by samples decoded to images, against the test images. What the presets train stands in
`mnist_presets.py`.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Generator, Tensor

from sigdeg.codec import load_decoder, save_decoder
from sigdeg.distillation import Distilled
from sigdeg.experiments import paper
from sigdeg.experiments.bench import Spec
from sigdeg.experiments.mnist_bench import Digits
from sigdeg.experiments.mnist_judges import EXTRACTORS
from sigdeg.experiments.mnist_networks import BATCH
from sigdeg.experiments.mnist_presets import PRESETS, Settings
from sigdeg.experiments.mnist_variants import guided_rows, scale_rows, size_rows
from sigdeg.files import save_model, save_tensors
from sigdeg.grids import coarse_grid, fine_grid, join_rows
from sigdeg.integrations import SOLVERS, Solver, solver_grids
from sigdeg.metrics import nearest_neighbours, path_error, total_variation
from sigdeg.networks import network_config
from sigdeg.paths import SharedPaths
from sigdeg.report import image_grid
from sigdeg.results import count_calls, grid_name, make_row, single
from sigdeg.rng import Stream, derive_generator, randn
from sigdeg.sampling import network_calls
from sigdeg.steps import Exponential, Step

__all__ = ["PRESETS", "Mnist", "Settings", "run"]

POWERS = (1.0, 1.5, 2.0, 3.0)  # grids of the ancestral sampler
PIPELINE = 50  # steps that diffusers' `LDMPipeline` takes when it is not told how many
SHOWN = 32  # samples in a figure
NEAREST = 1000  # samples whose nearest training image is looked for


class Mnist(Digits):
    """The rows and figures."""

    name = "mnist"
    title = "MNIST: latents of handwritten digits"
    presets = PRESETS
    quality = ("fid", "Fréchet distance, features of an MNIST classifier")
    rivals = ("fid", "fid_2")  # no claim rests on one of them alone
    paper = paper.MNIST

    @property
    def summary(self) -> str:
        n, real = self.settings.n, len(self.test_set[0])
        return f"Draws of {n:,} samples against {real:,} test images."

    def fill(self) -> None:
        settings = self.settings
        distilled = self.distill_all(settings.specs)
        taught = list(self.sources)
        for row in (*guided_rows(self), *scale_rows(self), *size_rows(self)):
            self.add(row)
        whole = self.add_whole_teacher()
        teachers = {name: self.add_teacher(name) for name in taught}
        if settings.peers:
            pipeline = self.add_pipeline()
            self.over[f"the pipeline's {count_calls(self.rows[pipeline]['nfe'])}"] = pipeline
        self.over[count_calls(self.rows[whole]["nfe"])] = whole
        for spec, results in distilled.items():
            for steps in (*spec.steps, *(settings.also if not spec.study else ())):
                self.add_student(spec, steps, results[0])
        for steps in settings.peers:
            self.add_ancestral(steps)
            for method in SOLVERS:
                self.add_solver(method, steps)
        for calls in settings.guided_peers:
            for method in SOLVERS:
                self.add_guided_peer(method, calls)
        self.main = next(spec for spec in settings.specs if not spec.study)
        self.reference = teachers[self.main.teacher]
        self.student = distilled[self.main][0].student

    def add_whole_teacher(self) -> int:
        """The paper's teacher, all uniform steps of its scheduler: what speed is compared with."""
        steps, step = self.settings.train_steps, self.teachers[""]
        columns = {"steps": steps, "order": 1, "seeds": 1}
        fine = fine_grid(step.schedule, steps)
        return self.add_step("teacher", step, fine, {}, grid="uniform", **columns)

    def add_teacher(self, name: str) -> int:
        """A teacher as students see it; its samples are the ends of the cached paths."""
        step, cache, n = self.teachers[name], self.sources[name], self.settings.n
        ends, grid = cache.ends, join_rows(cache.paths.rows)
        parts = ends.split(n)[: min(self.settings.draws, len(ends) // n)]
        sets = [partial(torch.clone, part) for part in parts]
        metrics, classes = self.judge_sets(" ".join(filter(None, [name, "teacher"])), sets)
        self.classes[name] = classes
        metrics["tv"] = single(total_variation(classes, self.shares), len(ends))
        columns = {"steps": round(cache.paths.teacher_nfe), "order": 1, "seeds": 1}
        told = {"grid": "chosen", "teacher": name or None}
        return self.add_step("teacher", step, grid, metrics, **told, **columns)

    def add_pipeline(self) -> int:
        """The saved pipeline as its user runs it: its own scheduler's sampler."""
        scheduler, network = self.scheduler, self.teacher.denoiser.get_submodule("network")
        steps = min(PIPELINE, self.settings.train_steps)

        @torch.no_grad()
        def draw(n: int, generator: Generator) -> Tensor:
            noise = randn((n, *self.shape), generator, torch.float32, self.device)
            batches = []
            for x in noise.split(BATCH):
                scheduler.set_timesteps(steps)
                for t in scheduler.timesteps:
                    step = scheduler.step(network(x, t).sample, t, x, generator=generator)
                    x = step.prev_sample
                batches.append(x)
            return torch.cat(batches)

        columns = {"order": 1, "seeds": 1}
        found, own = self.judge("pipeline", draw), self.teacher.denoiser
        row = make_row("teacher", own, steps, found, grid="the pipeline's own", **columns)
        return self.add(row, draw)

    def add_student(self, spec: Spec, steps: int, result: Distilled) -> int:
        """A student at one of its step counts."""
        student, grid = result.student.to(self.device), result.student.grid(steps)
        cache, draw = self.sources[spec.teacher], self.march(student, grid)
        once = 1 if spec.iterations and not spec.start else None  # students of side tables
        metrics, classes = self.judge_sets(f"{spec.slug} at {steps}", self.draws(draw, once))
        for key, shares in (("tv", self.shares), ("tv_teacher", self.classes[spec.teacher])):
            metrics[key] = single(total_variation(classes, shares), self.settings.n)
        if steps in student.steps:  # only those grids are every so many of the cached times
            shared = SharedPaths(cache, grid, student.order)
            batch = shared.held_out(self.settings.config.held_out).to(self.device)
            with torch.no_grad():
                replayed = batch.replay(student, grid)
            metrics["path"] = single(path_error(replayed, batch.states[:, -1]), len(replayed))
        told = {"grid": "chosen", "elastic": student.elastic}
        return self.add(self.student_row(spec, steps, [result], metrics, **told), draw)

    def add_ancestral(self, steps: int) -> None:
        """The untrained student, which is the ancestral sampler."""
        step = Exponential(self.teacher.denoiser)
        grids = {grid_name(p): coarse_grid(step.schedule, steps, power=p) for p in POWERS}
        self.add_best("untrained", {name: (step, grid) for name, grid in grids.items()})

    def add_guided_peer(self, method: str, calls: int) -> None:
        """A training-free solver of the guided teacher, with all the steps that the calls allow."""
        denoiser = self.teachers["guided"].denoiser
        most: dict[str, tuple[Step, Tensor]] = {}
        for steps in range(calls, 0, -1):
            for grid in solver_grids(method, steps):
                solver = Solver(denoiser, method, grid, steps)
                if network_calls(solver, solver.grid) <= calls:
                    most.setdefault(grid, (solver, solver.grid))
        self.add_best(method, most, "guided")

    def results(self) -> dict[str, Any]:
        return {
            **super().results(),
            "reconstruction": self.reconstruction(),
            "extractor": self.judges.references[0].describe(),
            "extractors": self.judges.describe(),
            "nearest": self.nearest(),
        }

    def save_student(self) -> None:
        """Save it, and what was trained as the package ships it."""
        super().save_student()
        if not self.settings.shipped:
            self.ship()

    def ship(self) -> None:
        """The models in half precision, in a folder, as the package ships them."""
        folder = self.out / "pretrained"
        copy.deepcopy(self.student).half().save_pretrained(folder / "mnist")
        for (_, name), extractor in zip(EXTRACTORS.values(), self.judges.extractors, strict=True):
            network = copy.deepcopy(extractor.network).half()
            save_model(folder / name, network_config(network), network.state_dict())
        for name in ("teacher", "weak") if self.settings.weak else ("teacher",):
            shutil.copytree(self.out / name, folder / f"mnist-{name}", dirs_exist_ok=True)
        for file in folder.glob("*/unet/*.safetensors"):
            save_tensors(file, {name: value.half() for name, value in load_file(file).items()})
        decoder = load_decoder(folder / "mnist-teacher" / "vqvae").half()
        for place in (folder / "mnist-teacher" / "vqvae", folder / "mnist" / "decoder"):
            save_decoder(decoder, place)

    def nearest(self) -> dict[str, float]:
        """Mean distance, in pixels, from images to their nearest training image.

        Samples much nearer than test images are would be training images learnt by heart.
        """

        def work(_: int) -> dict[str, Any]:
            cache, student = self.sources[self.main.teacher], self.student
            teacher = f"teacher, {count_calls(round(cache.paths.teacher_nfe))}"
            sets = {"test": self.test_set[0], teacher: self.decode(cache.ends[:NEAREST])}
            for steps in student.steps:
                generator = derive_generator(self.seed, Stream.MNIST_NEAREST)
                drawn = self.march(student, student.grid(steps))(NEAREST, generator)
                sets[f"student, {count_calls(steps)}"] = self.decode(drawn)
            return {
                name: float(nearest_neighbours(pictures[:NEAREST], self.train_set[0]).mean())
                for name, pictures in sets.items()
            }

        return self.recall("nearest", work)[0]

    def draw_figures(self) -> Mapping[str, str]:
        """Figure 4 of the paper, the same seeds side by side; and reconstructions."""
        folder, student = self.out / "figures", self.student
        cache, shown = self.sources[self.main.teacher], {}
        teacher = f"teacher, {count_calls(round(cache.paths.teacher_nfe))}"
        for steps in sorted(student.steps, reverse=True):
            grid = student.grid(steps)
            shared = SharedPaths(cache, grid, student.order)
            batch = shared.held_out(SHOWN).to(self.device)
            shown[teacher] = batch.states[:, -1]
            with torch.no_grad():
                shown[f"student, {count_calls(steps)}"] = batch.replay(student, grid)
        digits = [(self.decode(latents) + 1) / 2 for latents in shown.values()]
        image_grid(digits, folder / "digits.png", 4, list(shown))
        originals = self.test_set[0][:SHOWN]
        with torch.no_grad():
            again = self.decoder.autoencoder(originals)
        pairs = [(part + 1) / 2 for part in (originals, again)]
        image_grid(pairs, folder / "reconstructions.png", 8, ["data", "reconstructed"])
        guided = {"guided": "Four digits of each class asked for, from the guided student."}
        return {
            **(guided if self.settings.guided else {}),
            "digits": "The same seeds: digit i of every set is driven by the same Brownian path "
            "(the paper's Figure 4).",
            "reconstructions": "Test images, and what the autoencoder makes of them.",
        }


run = Mnist.run
