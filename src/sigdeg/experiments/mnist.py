"""MNIST, the paper's images (4.1.2, C.3): diffusion of latents, distilled to a few calls.

An autoencoder takes digits to latents of 4 x 8 x 8, a U-Net diffuses those, students are distilled
from it by the path that any latent pipeline takes (`load_teacher`, `distill`), and all are judged
by samples decoded to images, against the test images. What the presets train stands in
`mnist_presets.py`.
"""

from __future__ import annotations

import copy
import dataclasses
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Generator, Tensor

from sigdeg.codec import Decoder, load_decoder, save_decoder
from sigdeg.datasets import load_mnist
from sigdeg.denoiser import NetworkDenoiser
from sigdeg.distillation import (
    CachedPaths,
    DistillConfig,
    Distilled,
    SharedPaths,
    TeacherPaths,
    distill,
)
from sigdeg.errors import extra
from sigdeg.experiments import paper
from sigdeg.experiments.mnist_networks import (
    BATCH,
    CLASSES,
    in_batches,
    train_autoencoder,
    train_classifier,
    unet,
)
from sigdeg.experiments.mnist_presets import DEFAULT, PRESETS, Settings, Spec
from sigdeg.experiments.mnist_variants import guided_rows, scale_rows, size_rows
from sigdeg.files import SHIPPED, save_model, save_tensors
from sigdeg.grids import coarse_grid, fine_grid, refine
from sigdeg.integrations import (
    SOLVERS,
    Solver,
    load_teacher,
    save_latent_pipeline,
    solver_grids,
    solver_times,
)
from sigdeg.metrics import (
    Activations,
    ClassifierExtractor,
    Reference,
    Statistics,
    ambiguous,
    class_histogram,
    feature_metrics,
    frechet_distance,
    nearest_neighbours,
    path_error,
    total_variation,
)
from sigdeg.metrics.extractors import load_classifier
from sigdeg.model import Model
from sigdeg.networks import Classifier, Mixer, network_config
from sigdeg.report import image_grid, write_report
from sigdeg.results import (
    Row,
    Summary,
    add_equal_quality,
    add_rivals,
    add_speed,
    count_calls,
    grid_name,
    make_row,
    save_results,
    single,
    summarise,
)
from sigdeg.rng import Stream, derive_generator, randn, seeded
from sigdeg.runs import claim_folder, remember
from sigdeg.sampling import sample
from sigdeg.schedule import from_scheduler
from sigdeg.steps import Exponential, Step
from sigdeg.student import SignatureStudent
from sigdeg.timing import paired_seconds
from sigdeg.training import TrainConfig, resolve_device, train_teacher

__all__ = ["DEFAULT", "PRESETS", "Settings", "images", "run"]

POWERS = (1.0, 1.5, 2.0, 3.0)  # grids of the ancestral sampler
PIPELINE = 50  # steps that diffusers' `LDMPipeline` takes when it is not told how many
# What judges by name: how it is built and where it comes from. Nothing is chosen with the second.
EXTRACTORS: dict[str, tuple[type[Classifier], str]] = {
    "mnist": (Classifier, "mnist-classifier"),
    "mnist-2": (Mixer, "mnist-classifier-2"),
}
JUDGES = ("fid", "fid_2")  # no claim rests on one of them alone
# Training images that everything is chosen against; the tables are of the test images.
VALIDATION = 10_000
SHOWN = 32  # samples in a figure
NEAREST = 1000  # samples whose nearest training image is looked for

Draw = Callable[[int, Generator], Tensor]


def images(split: Any, data_dir: Path | None) -> tuple[Tensor, Tensor]:
    """MNIST as images (n, 1, 28, 28) in [-1, 1] and labels (n,)."""
    pixels, labels = load_mnist(split, data_dir)
    return torch.from_numpy(pixels)[:, None].float() / 127.5 - 1, torch.from_numpy(labels).long()


def run(
    out: Path,
    preset: str = DEFAULT,
    seed: int = 0,
    device: str | None = None,
    data_dir: Path | None = None,
    progress: bool = True,
) -> Path:
    """Run the benchmark and write `results.json`, figures and the report into a folder.

    The same call resumes an interrupted run.

    Raises:
        SigdegError: If the data are not found or damaged, or the folder holds another run.
    """
    settings = PRESETS[preset]
    train, test = images("train", data_dir), images("test", data_dir)
    identity = {"experiment": "mnist", "preset": preset, "seed": seed}
    device = resolve_device(device)
    claim_folder(out, "config.json", {**identity, **dataclasses.asdict(settings)})
    bench = Bench(settings, train, test, out, seed, device, progress)
    distilled = {spec: bench.distil(spec) for spec in settings.specs}

    rows: list[Row] = guided_rows(bench) + scale_rows(bench)
    timed: dict[int, Callable[[], Tensor]] = {}  # by the index of the row

    def add(draw: Draw, row: Row) -> None:
        if not row.get("study"):
            n, own = settings.timing_n, derive_generator(seed, Stream.MNIST_TIMING)
            timed[len(rows)] = lambda: bench.teacher.codec.decode(draw(n, own))
        rows.append(row)

    rows += size_rows(bench)
    first = len(rows)
    add(*bench.reference_row())
    for guided in bench.sources:
        add(*bench.teacher_row(guided))
    pipeline = [len(rows)] if settings.peers else []
    if settings.peers:
        add(*bench.pipeline_row())
    for spec, result in distilled.items():
        for steps in (*spec.steps, *(settings.also if not spec.study else ())):
            add(*bench.student_row(spec, steps, result))
    for steps in settings.peers:
        add(*bench.ancestral_row(steps))
        for method in SOLVERS:
            add(*bench.peer_row(method, steps))
    for calls in settings.guided_peers:
        for method in SOLVERS:
            add(*bench.guided_peer_row(method, calls))
    spec = next(spec for spec in settings.specs if not spec.study)
    learned_from = first + 1 + list(bench.sources).index(spec.guided)
    over = {f"the pipeline's {count_calls(rows[i]['nfe'])}": i for i in pipeline}
    over[count_calls(rows[first]["nfe"])] = first
    add_speed(rows, paired_seconds(timed), learned_from, over)
    add_rivals(rows, JUDGES)
    add_equal_quality(rows, JUDGES)

    main, source = distilled[spec].student, bench.sources[spec.guided]
    main.save_pretrained(out / "student")
    save_decoder(bench.decoder, out / "student" / "decoder")
    if not settings.shipped:
        bench.ship(main)
    save_results(
        out,
        {
            **identity,
            "title": "MNIST: latents of handwritten digits",
            "summary": f"Draws of {settings.n:,} samples against {len(test[0]):,} test images.",
            "quality": {
                "metric": "fid",
                "label": "Fréchet distance, features of an MNIST classifier",
                "lower_is_better": True,
            },
            "rows": rows,
            "paper": paper.MNIST,
            "floor": bench.floor(),
            "reconstruction": bench.reconstruction(),
            "extractor": bench.references[0].describe(),
            "extractors": bench.describe_extractors(),
            "training": bench.curves
            | {
                f"student, {'/'.join(map(str, spec.steps))} steps": result.history.tolist()
                for spec, result in distilled.items()
                if not spec.study
            },
            "nearest": bench.nearest(main, source),
            "figures": bench.figures(main, source),
            "student": "student",
            "example": {"steps": 5},
            "timing_n": settings.timing_n,
        },
        device,
    )
    return write_report(out)


def slugify(name: str) -> str:
    """A name as that of a file."""
    return re.sub("[^a-z0-9]+", "-", name)


def frechet_at_shares(seen: Activations, reference: Reference, shares: Tensor) -> float:
    """The Fréchet distance of samples that count so much that each class has its real share.

    It tells how digits look whichever of them are drawn. Classes are the extractor's own.
    """
    classes = seen.probabilities.argmax(1)
    weighted = Statistics.of(seen.features, (shares / class_histogram(classes, CLASSES))[classes])
    return frechet_distance(weighted, reference.statistics)


def guided_name(guided: bool) -> str | None:
    """How rows of results tell of guidance by a weak teacher."""
    return "guided" if guided else None


class Source(NamedTuple):
    """What a student learns from.

    Arguments:
        step: Its teacher's fine step.
        cache: Paths of that teacher.
        calls: Network calls behind each.
    """

    step: Exponential
    cache: CachedPaths
    calls: int


class Bench:
    """Networks, teacher paths and folder of a run: what every row needs."""

    def __init__(
        self,
        settings: Settings,
        train: tuple[Tensor, Tensor],
        test: tuple[Tensor, Tensor],
        out: Path,
        seed: int,
        device: str,
        progress: bool,
    ) -> None:
        self.settings, self.train, self.test = settings, train, test
        self.out, self.seed, self.device = out, seed, device
        self.options: dict[str, Any] = {"device": device, "progress": progress}
        self.curves: dict[str, Any] = {}
        self.classes: dict[bool, Tensor] = {}  # what share each has, by teacher: guided or not
        self.extractors = [self.extractor(name) for name in EXTRACTORS]
        self.references = [Reference.from_images(test[0], own) for own in self.extractors]
        self.validation = Statistics.of(self.extractors[0].features(train[0][:VALIDATION]))
        self.decoder = self.autoencoder()
        self.shares = class_histogram(train[1], CLASSES)
        self.latents = in_batches(self.decoder.autoencoder, "encode", train[0])
        self.shape = tuple(self.latents.shape[1:])
        folders = self.teachers()
        self.teacher = load_teacher(folders[0]).to(device)
        self.step = self.teacher.step
        # One more coefficient than the students see: the energy score needs noise.
        order = 1 + max(spec.order for spec in settings.specs)
        seen = torch.tensor(settings.times, dtype=torch.float64), order
        self.sources = {False: self.source(self.step, *seen, settings.config, out / "paths")}
        weak = settings.weak
        if weak is not None:
            self.weak = load_teacher(folders[1]).to(device)
            guided = self.teacher.guided(weak.scale, weak.until, self.weak).step
            folder = out / "guided-paths"
            self.sources[True] = self.source(guided, *seen, weak.matching, folder)

    def extractor(self, name: str) -> ClassifierExtractor:
        """A classifier that judges, trained if the preset says how and else the shipped one."""
        kind, folder = EXTRACTORS[name]
        config = self.settings.classifiers.get(name)
        if config is None:
            return ClassifierExtractor(load_classifier(SHIPPED / folder), name)
        config = dataclasses.replace(config, seed=self.seed + config.seed)
        trained, history = train_classifier(
            *self.train, self.out / f"{folder}-training", config, **self.options, kind=kind
        )
        self.curves[folder.replace("mnist-", "")] = history.tolist()
        # As it is shipped: its digest must be the same.
        return ClassifierExtractor(trained.half().float(), name)

    def describe_extractors(self) -> list[dict[str, Any]]:
        """Which they are, how often they are right on the test images and how often unsure."""
        return [
            reference.describe()
            | {
                "accuracy": float(
                    (reference.probabilities.argmax(1) == self.test[1]).double().mean()
                ),
                "ambiguous": ambiguous(reference.probabilities),
            }
            for reference in self.references
        ]

    def autoencoder(self) -> Decoder:
        """The autoencoder, trained or the shipped teacher's."""
        if self.settings.shipped:
            return load_decoder(SHIPPED / "mnist-teacher" / "vqvae")
        config = dataclasses.replace(self.settings.autoencoder, seed=self.seed)
        folder = self.out / "autoencoder-training"
        trained, history = train_autoencoder(self.train[0], folder, config, **self.options)
        self.curves["autoencoder"] = history.tolist()
        return Decoder(trained)

    def teachers(self) -> list[Path]:
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
        network = seeded(self.seed, lambda: unet(settings.widths, settings.blocks))
        network = self.train_unet("teacher", network, settings.teacher, out / "teacher-training")
        save_latent_pipeline(network, self.scheduler, self.decoder, out / "teacher")
        if weak is None:
            return [out / "teacher"]
        own = self.seed + weak.teacher.seed
        network = seeded(own, lambda: unet(weak.widths, settings.blocks))
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

    def source(
        self,
        step: Any,
        grid: Tensor,
        order: int,
        config: DistillConfig,
        folder: Path,
        condition: Mapping[str, Tensor] | None = None,
    ) -> Source:
        """Simulate a teacher's paths over students' times."""
        rows = refine(step.schedule, grid, config.refinement, config.fine_power)
        cache = CachedPaths(
            TeacherPaths(
                step, list(rows), self.shape, order, device=self.device, condition=condition or {}
            ),
            folder,
            config.paths,
            self.seed + self.settings.shipped,  # not those that the student has learned from
            config.held_out,
            config.shard_size,
            self.options["progress"],
        )
        return Source(step, cache, round(cache.paths.teacher_nfe))

    def student(self, spec: Spec, teacher: Model) -> SignatureStudent:
        """An untrained student."""
        return SignatureStudent.from_denoiser(
            teacher.denoiser,
            self.shape[0],
            spec.order,
            steps=spec.steps,
            times=self.settings.times[:: (len(self.settings.times) - 1) // max(spec.steps)],
            sample_shape=self.shape,
            covariance=torch.cov(self.latents.flatten(1).double().T) if spec.lookahead else None,
            lookahead=spec.lookahead,
            residual_noise=spec.residual_noise,
        )

    def distil(self, spec: Spec) -> Distilled:
        """Distil one student from the shared paths, or let one go on by distribution matching."""
        if self.settings.shipped:
            known = SignatureStudent.from_pretrained(SHIPPED / "mnist")
            return Distilled(known, torch.empty(0, 3), seconds=0.0, teacher_nfe=0.0)
        settings, source = self.settings, self.sources[spec.guided]
        weak = settings.weak if spec.guided else None
        if spec.start:
            before = self.distil(spec.start)
            grid = before.student.grid(max(spec.steps))
            start = before.student.at_times(grid, spec.steps)
            config = weak.matching if weak else settings.matching
        else:
            start = self.student(spec, self.teacher)
            config = dataclasses.replace(settings.config, q=spec.q)
        found = distill(
            start,
            source.step,
            self.out / "students" / spec.slug,
            config,
            judge=0,
            cache=source.cache,
            iterations=spec.iterations or config.iterations,
            seed=self.seed,
            **self.options,
        )
        if not spec.start:
            return found
        nfe = found.teacher_nfe + (before.teacher_nfe if spec.start.guided != spec.guided else 0)
        seconds = found.seconds + before.seconds
        return dataclasses.replace(found, seconds=seconds, teacher_nfe=nfe)

    def march(self, step: Step, grid: Tensor) -> Draw:
        """How a step marched over a grid draws n latents."""

        def draw(n: int, generator: Generator) -> Tensor:
            return sample(step, grid, (n, *self.shape), generator=generator, batch_size=BATCH)

        return draw

    def decode(self, latents: Tensor) -> Tensor:
        """Images in [-1, 1], on the CPU."""
        return self.teacher.codec.decode(latents.to(self.device)).clamp(-1, 1).cpu()

    def measure(self, pictures: Tensor) -> dict[str, Any]:
        """What both extractors make of a set of images: metrics, and by the first class shares."""
        return self.measure_seen([own.extract(pictures) for own in self.extractors])

    def measure_seen(self, seen: Sequence[Activations]) -> dict[str, Any]:
        """The same of what they have seen already; metrics of the second end in `_2`."""
        metrics: dict[str, float] = {}
        shares = class_histogram(self.test[1], CLASSES)
        for end, own, reference in zip(("", "_2"), seen, self.references, strict=True):
            found = feature_metrics(own, reference)
            found["fid_shares"] = frechet_at_shares(own, reference, shares)
            found["ambiguous"] = ambiguous(own.probabilities)
            metrics |= {f"{key}{end}": value for key, value in found.items()}
        classes = class_histogram(seen[0].probabilities.argmax(1), CLASSES)
        return {"metrics": metrics, "classes": classes.tolist()}

    def draws(self, draw: Draw, count: int | None = None) -> list[Callable[[], Tensor]]:
        """Independent sets of latents (default: as many as the preset wants)."""
        return [
            partial(draw, self.settings.n, derive_generator(self.seed, Stream.MNIST_DRAWS, i))
            for i in range(count or self.settings.draws)
        ]

    def judge(
        self, name: str, sets: Sequence[Callable[[], Tensor]]
    ) -> tuple[dict[str, Summary], Tensor]:
        """Metrics and class shares of several sets of latents, against the test images."""
        slug = slugify(f"{name} {self.settings.n}")

        def compute(latents: Callable[[], Tensor]) -> dict[str, Any]:
            return self.measure(self.decode(latents()))

        found = [
            remember(self.out / "judged" / f"{slug}-{i}.json", partial(compute, latents))
            for i, latents in enumerate(sets)
        ]
        shares = torch.tensor([f["classes"] for f in found], dtype=torch.float64).mean(0)
        return summarise([f["metrics"] for f in found]), shares

    def validate(self, name: str, draw: Draw) -> float:
        """The Fréchet distance that choices go by: first features, training images, one draw."""
        n, slug = self.settings.tried, slugify(name)

        def compute() -> dict[str, Any]:
            pictures = self.decode(draw(n, derive_generator(self.seed, Stream.MNIST_VALIDATION)))
            found = self.extractors[0].features(pictures)
            return {"fid": frechet_distance(found, self.validation)}

        return float(remember(self.out / "chosen" / f"{slug}.json", compute)["fid"])

    def floor(self) -> dict[str, Summary]:
        """The metrics of training images, disjoint sets as large as a draw."""
        order = torch.randperm(
            len(self.train[0]), generator=derive_generator(self.seed, Stream.MNIST_FLOOR)
        )
        parts = order.split(self.settings.n)[: self.settings.draws]
        return summarise([self.measure(self.train[0][rows])["metrics"] for rows in parts])

    def reconstruction(self) -> dict[str, Summary]:
        """The metrics of decoded latents of training images."""
        parts = self.latents.split(self.settings.n)[: self.settings.draws]
        return summarise([self.measure(self.decode(part))["metrics"] for part in parts])

    def reference_row(self) -> tuple[Draw, Row]:
        """The paper's teacher, all uniform steps of its scheduler: what speed is compared with."""
        steps = self.settings.train_steps
        draw = self.march(self.step, fine_grid(self.step.schedule, steps))
        more = {"steps": steps, "grid": "uniform", "order": 1, "seeds": 1}
        return draw, make_row("teacher", self.teacher.denoiser, steps + 1, {}, **more)

    def teacher_row(self, guided: bool) -> tuple[Draw, Row]:
        """A teacher as students see it; its samples are the ends of the cached paths."""
        step, cache, calls = self.sources[guided]
        ends = cache.ends
        draws = min(self.settings.draws, len(ends) // self.settings.n)
        parts = ends.split(self.settings.n)
        name = "guided teacher" if guided else "teacher"
        sets = [partial(parts.__getitem__, i) for i in range(draws)]
        metrics, classes = self.judge(name, sets)
        self.classes[guided] = classes
        metrics["tv"] = single(total_variation(classes, self.shares), len(ends))
        rows = cache.paths.rows
        grid = torch.cat([rows[0], *(row[1:] for row in rows[1:])])
        more = {"grid": "chosen", "order": 1, "seeds": 1, "teacher": guided_name(guided)}
        return self.march(step, grid), make_row("teacher", step.denoiser, calls, metrics, **more)

    def pipeline_row(self) -> tuple[Draw, Row]:
        """The saved pipeline as its user runs it: its own scheduler's sampler."""
        scheduler = self.scheduler
        network: Any = self.teacher.denoiser.get_submodule("network")
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

        metrics, _ = self.judge("pipeline", self.draws(draw, self.settings.peer_draws))
        more = {"grid": "the pipeline's own", "order": 1, "seeds": 1}
        return draw, make_row("teacher", self.teacher.denoiser, steps, metrics, **more)

    def student_row(self, spec: Spec, steps: int, result: Distilled) -> tuple[Draw, Row]:
        """A student at one of its step counts."""
        student, grid = result.student.to(self.device), result.student.grid(steps)
        cache, shares = self.sources[spec.guided].cache, self.classes[spec.guided]
        draw = self.march(student, grid)
        once = 1 if spec.iterations and not spec.start else None  # students of side tables
        metrics, classes = self.judge(f"{spec.slug} at {steps}", self.draws(draw, once))
        metrics["tv"] = single(total_variation(classes, self.shares), self.settings.n)
        metrics["tv_teacher"] = single(total_variation(classes, shares), self.settings.n)
        if steps in student.steps:  # only those grids are every so many of the cached times
            shared = SharedPaths(cache, grid, student.order)
            batch = shared.held_out(self.settings.config.held_out).to(self.device)
            with torch.no_grad():
                replayed = batch.replay(student, grid)
            metrics["path"] = single(path_error(replayed, batch.states[:, -1]), len(replayed))
        return draw, make_row(
            "sig-deg",
            student,
            steps,
            metrics,
            order=spec.order,
            head=spec.residual_noise,
            elastic=student.elastic,
            q=spec.q,
            grid="chosen",
            seeds=1,
            train_seconds=result.seconds or None,  # the shipped student does not tell
            teacher_nfe=result.teacher_nfe or None,
            teacher=guided_name(spec.guided),
            study=spec.study or None,
            variant=spec.variant or None,
        )

    def best_row(
        self, method: str, calls: int, draws: Mapping[str, Draw], guided: bool = False
    ) -> tuple[Draw, Row]:
        """A training-free sampler on the grid that comes closest to the training images."""
        name = f"guided {method} {calls}" if guided else f"{method} {calls}"
        tried = {grid: self.validate(f"{name} {grid}", draw) for grid, draw in draws.items()}
        best = min(tried, key=lambda grid: tried[grid])
        sets = self.draws(draws[best], self.settings.peer_draws)
        metrics, _ = self.judge(f"{name} {best}", sets)
        denoiser = self.sources[guided].step.denoiser
        more: dict[str, Any] = {"grid": best, "tried": len(tried), "seeds": 1}
        return draws[best], make_row(
            method, denoiser, calls, metrics, teacher=guided_name(guided), **more
        )

    def ancestral_row(self, steps: int) -> tuple[Draw, Row]:
        """The untrained student, which is the ancestral sampler."""
        step = Exponential(self.teacher.denoiser)
        grids = {grid_name(p): coarse_grid(step.schedule, steps, power=p) for p in POWERS}
        draws = {name: self.march(step, grid) for name, grid in grids.items()}
        return self.best_row("untrained", steps, draws)

    def solver(self, method: str, grid: str, steps: int, guided: bool = False) -> Draw:
        """How a training-free solver draws n latents."""
        step = Solver(self.sources[guided].step.denoiser, method, grid, steps)
        return self.march(step, step.grid)

    def peer_row(self, method: str, steps: int) -> tuple[Draw, Row]:
        """A training-free solver."""
        grids = solver_grids(method, steps)
        return self.best_row(method, steps, {g: self.solver(method, g, steps) for g in grids})

    def guided_peer_row(self, method: str, calls: int) -> tuple[Draw, Row]:
        """A training-free solver of the guided teacher, with all the steps that the calls allow."""
        denoiser = self.sources[True].step.denoiser
        most: dict[str, dict[str, int]] = {}
        for steps in range(calls, 0, -1):
            for grid in solver_grids(method, steps):
                times = solver_times(denoiser.schedule, method, grid, steps)
                if (spent := denoiser.calls(times)) <= calls:
                    most.setdefault(grid, {"steps": steps, "nfe": spent})
        draws = {
            grid: self.solver(method, grid, own["steps"], guided=True) for grid, own in most.items()
        }
        draw, row = self.best_row(method, calls, draws, guided=True)
        own = most[str(row["grid"])]
        row.update({"steps": own["steps"], "nfe": own["nfe"]})
        return draw, row

    def ship(self, student: SignatureStudent) -> None:
        """The models in half precision, in a folder, as the package ships them."""
        folder = self.out / "pretrained"
        copy.deepcopy(student).half().save_pretrained(folder / "mnist")
        for (_, name), extractor in zip(EXTRACTORS.values(), self.extractors, strict=True):
            network = copy.deepcopy(extractor.network).half()
            save_model(folder / name, network_config(network), network.state_dict())
        for name in ("teacher", "weak")[: len(self.sources)]:
            shutil.copytree(self.out / name, folder / f"mnist-{name}", dirs_exist_ok=True)
        for file in folder.glob("*/unet/*.safetensors"):
            save_tensors(file, {name: value.half() for name, value in load_file(file).items()})
        decoder = load_decoder(folder / "mnist-teacher" / "vqvae").half()
        for place in (folder / "mnist-teacher" / "vqvae", folder / "mnist" / "decoder"):
            save_decoder(decoder, place)

    def nearest(self, student: SignatureStudent, source: Source) -> dict[str, float]:
        """Mean distance, in pixels, from images to their nearest training image.

        Samples much nearer than test images are would be training images learnt by heart.
        """

        def compute() -> dict[str, Any]:
            teacher = f"teacher, {count_calls(source.calls)}"
            sets = {"test": self.test[0], teacher: self.decode(source.cache.ends[:NEAREST])}
            for steps in student.steps:
                draw = self.march(student, student.grid(steps))
                own = draw(NEAREST, derive_generator(self.seed, Stream.MNIST_NEAREST))
                sets[f"student, {count_calls(steps)}"] = self.decode(own)
            return {
                name: float(nearest_neighbours(pictures[:NEAREST], self.train[0]).mean())
                for name, pictures in sets.items()
            }

        return remember(self.out / "judged" / "nearest.json", compute)

    def figures(self, student: SignatureStudent, source: Source) -> list[dict[str, str]]:
        """Figure 4 of the paper, the same seeds side by side; and reconstructions."""
        folder = self.out / "figures"
        shown = {}
        for steps in sorted(student.steps, reverse=True):
            grid = student.grid(steps)
            shared = SharedPaths(source.cache, grid, student.order)
            batch = shared.held_out(SHOWN).to(self.device)
            shown[f"teacher, {count_calls(source.calls)}"] = batch.states[:, -1]
            with torch.no_grad():
                shown[f"student, {count_calls(steps)}"] = batch.replay(student, grid)
        digits = [(self.decode(latents) + 1) / 2 for latents in shown.values()]
        image_grid(digits, folder / "digits.png", 4, list(shown))
        originals = self.test[0][:SHOWN]
        with torch.no_grad():
            again = self.decoder.autoencoder(originals)
        pairs = [(part + 1) / 2 for part in (originals, again)]
        image_grid(pairs, folder / "reconstructions.png", 8, ["data", "reconstructed"])
        guided = {
            "file": "figures/guided.png",
            "caption": "Four digits of each class asked for, from the guided student.",
        }
        return [
            *([guided] if self.settings.guided else []),
            {
                "file": "figures/digits.png",
                "caption": "The same seeds: digit i of every set is driven by the same Brownian "
                "path (the paper's Figure 4).",
            },
            {
                "file": "figures/reconstructions.png",
                "caption": "Test images, and what the autoencoder makes of them.",
            },
        ]
