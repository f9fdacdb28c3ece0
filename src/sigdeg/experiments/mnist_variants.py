"""Beside the main table of MNIST: the class-conditional variant, and networks of other sizes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sigdeg.experiments.mnist_bench import Digits
from sigdeg.experiments.mnist_networks import CLASSES, unet
from sigdeg.experiments.mnist_presets import WIDTHS
from sigdeg.grids import join_rows, refine
from sigdeg.integrations import load_teacher, save_latent_pipeline
from sigdeg.report import image_grid
from sigdeg.results import Row, Summary, count_calls, make_row, single, summarise
from sigdeg.rng import Stream, derive_generator, seeded
from sigdeg.sampling import network_calls
from sigdeg.timing import paired_seconds

__all__ = ["guided_rows", "scale_rows", "size_rows"]

SCALE_REFINEMENT = 4  # fine steps to a coarse one


def guided_rows(bench: Digits) -> list[Row]:
    """The class-conditional variant: a guided teacher of two calls a step, its student of one.

    The teacher goes on from the unconditional one, whose network gets an embedding of classes.
    """
    guided = bench.settings.guided
    if guided is None:
        return []
    out, config = bench.out / "guided", guided.config
    network = seeded(bench.seed, lambda: unet(bench.settings.widths, classes=CLASSES))
    known = bench.teacher.denoiser.get_submodule("network")
    network.load_state_dict(known.state_dict(), strict=False)
    # None starts as the unconditional teacher; the classes apart, or they would be slow to part.
    with torch.no_grad():
        network.get_parameter("class_embedding.weight")[-1] = 0
    trained = bench.train_unet(
        "conditional teacher", network, guided.teacher, out / "teacher-training", bench.train_set[1]
    )
    save_latent_pipeline(trained, bench.scheduler, bench.decoder, out / "teacher")
    teacher, classes = load_teacher(out / "teacher").to(bench.device), torch.arange(CLASSES)
    spec, step = guided.spec, teacher.guided(guided.scale).step
    student = bench.make_student(spec, bench.seed, teacher.denoiser)
    given = student.grid(), student.order, config, {"class_labels": classes}
    cache = bench.add_source(spec.teacher, step, *given)
    result = bench.train(spec, bench.seed, student, config=config, cache=cache)
    student = result.student.to(bench.device)
    wanted = classes[torch.cat([shard["row"] for shard in cache.shards])]

    def metrics(latents: Tensor) -> dict[str, Summary]:
        pictures = bench.decode(latents)
        right = bench.judges.extractors[0].probabilities(pictures).argmax(1) == wanted
        accuracy = single(float(right.double().mean()), len(right))
        return summarise([bench.judges.measure(pictures)["metrics"]]) | {"accuracy": accuracy}

    def draw(classes: Tensor, stream: Stream) -> Tensor:
        march = bench.march(student, student.grid(), class_labels=classes.to(bench.device))
        with torch.no_grad():
            return march(len(classes), derive_generator(bench.seed, stream))

    study = f"A digit of each class, guidance {guided.scale:g}"
    calls, steps = round(cache.paths.teacher_nfe), max(spec.steps)
    label, drawn = count_calls(steps), draw(wanted, Stream.MNIST_CLASSES)
    told = {"study": study, "variant": count_calls(calls)}
    found = metrics(cache.ends)
    rows = [
        make_row("teacher", teacher.denoiser, calls, found, order=1, seeds=1, **told),
        bench.student_row(spec, steps, [result], metrics(drawn), study=study, variant=label),
    ]
    sets = [(bench.decode(draw(classes.repeat_interleave(4), Stream.MNIST_CLASSES)) + 1) / 2]
    image_grid(sets, bench.out / "figures" / "guided.png", 8, [f"student, {label}"])
    return rows


def scale_rows(bench: Digits) -> list[Row]:
    """How much the weak teacher is to guide, and from when on: against the training images."""
    weak = bench.settings.weak
    if weak is None:
        return []
    rows = []
    finest = torch.tensor(bench.settings.times, dtype=torch.float64)
    for scale, until in bench.settings.scales:
        step: Any = bench.teacher.guided(scale, until, bench.weak).step
        power = weak.matching.fine_power
        times = join_rows(refine(step.schedule, finest, SCALE_REFINEMENT, power))
        value = bench.validate(f"scale {scale:g} until {until:g}", bench.march(step, times))
        row = make_row(
            "teacher",
            step.denoiser,
            network_calls(step, times),
            {"fid_train": single(value, bench.settings.tried)},
            study="Scale of the guidance, against training images",
            variant=f"{scale:g} below t = {until:g}",
        )
        rows.append(row)
    return rows


def size_rows(bench: Digits) -> list[Row]:
    """What networks of other sizes cost, untrained: time does not depend on the weights."""
    if not bench.settings.sized:
        return []
    sizes = [(f"{name} width", w, 1) for name, w in WIDTHS.items()]
    sizes += [(f"quarter width, {n} blocks", WIDTHS["quarter"], n) for n in (2, 3)]
    latents = torch.randn(bench.settings.timing_n, *bench.shape, device=bench.device)
    networks = {name: unet(w, n).to(bench.device) for name, w, n in sizes}

    @torch.no_grad()
    def call(network: torch.nn.Module) -> Any:
        return network(latents, 500)

    calls: dict[str, Callable[[], object]] = {
        name: partial(call, network) for name, network in networks.items()
    }
    seconds = paired_seconds(calls | {"decoder": partial(bench.decode, latents)})
    decoding = seconds.pop("decoder")
    rows = []
    for name, taken in seconds.items():
        metrics = {"ms_a_call": single(1000 * taken / len(latents), len(latents))}
        for steps in (10, 5, 1):
            gain = (1001 * taken + decoding) / (steps * taken + decoding)
            metrics[f"speedup_{steps}"] = single(gain, len(latents))
        told = {"study": "Sizes: what a call costs, and 1,001 calls over so many"}
        rows.append(make_row("teacher", networks[name], 1, metrics, variant=name, **told))
    return rows
