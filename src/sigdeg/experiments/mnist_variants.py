"""Beside the main table of MNIST: the class-conditional variant, and networks of other sizes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from sigdeg.distillation import distill
from sigdeg.experiments.mnist_networks import BATCH, CLASSES, unet
from sigdeg.experiments.mnist_presets import WIDTHS
from sigdeg.grids import refine
from sigdeg.integrations import load_teacher, save_latent_pipeline
from sigdeg.report import image_grid
from sigdeg.results import Row, count_calls, make_row, single, summarise
from sigdeg.rng import Stream, derive_generator, seeded
from sigdeg.sampling import sample
from sigdeg.timing import paired_seconds

if TYPE_CHECKING:
    from sigdeg.experiments.mnist import Bench

__all__ = ["guided_rows", "scale_rows", "size_rows"]

SCALE_REFINEMENT = 4  # fine steps to a coarse one


def guided_rows(bench: Bench) -> list[Row]:
    """The class-conditional variant: a guided teacher of two calls a step, its student of one.

    The teacher goes on from the unconditional one, whose network gets an embedding of classes.
    """
    guided = bench.settings.guided
    if guided is None:
        return []
    out, config = bench.out / "guided", guided.config
    network = seeded(
        bench.seed, lambda: unet(bench.settings.widths, bench.settings.blocks, CLASSES)
    )
    known = bench.teacher.denoiser.get_submodule("network")
    network.load_state_dict(known.state_dict(), strict=False)
    # None starts as the unconditional teacher; the classes apart, or they would be slow to part.
    with torch.no_grad():
        network.get_parameter("class_embedding.weight")[-1] = 0
    trained = bench.train_unet(
        "conditional teacher", network, guided.teacher, out / "teacher-training", bench.train[1]
    )
    save_latent_pipeline(trained, bench.scheduler, bench.decoder, out / "teacher")
    teacher = load_teacher(out / "teacher").to(bench.device)
    step: Any = teacher.guided(guided.scale).step
    classes = torch.arange(CLASSES)
    student = bench.student(guided.spec, teacher)
    grid = student.grid()
    _, cache, calls = bench.source(
        step, grid, student.order, config, out / "paths", {"class_labels": classes}
    )
    result = distill(
        student,
        step,
        out / "student",
        config,
        judge=0,
        cache=cache,
        seed=bench.seed,
        **bench.options,
    )
    distilled = result.student.to(bench.device)
    ends = cache.ends
    wanted = classes[torch.cat([shard["row"] for shard in cache.shards])]
    with torch.no_grad():
        drawn = sample(
            distilled,
            grid,
            tuple(ends.shape),
            generator=derive_generator(bench.seed, Stream.MNIST_CLASSES),
            batch_size=BATCH,
            class_labels=wanted.to(bench.device),
        )
    rows = []
    for method, model, nfe, latents in (
        ("teacher", teacher.denoiser, calls, ends),
        ("sig-deg", distilled, len(grid) - 1, drawn),
    ):
        found = bench.decode(latents)
        metrics = summarise([bench.measure(found)["metrics"]])
        own = bench.extractors[0].probabilities(found).argmax(1)
        metrics["accuracy"] = single(float((own == wanted).double().mean()), len(own))
        rows.append(
            make_row(
                method,
                model,
                nfe,
                metrics,
                order=guided.spec.order if method == "sig-deg" else 1,
                seeds=1,
                study=f"A digit of each class, guidance {guided.scale:g}",
                variant=count_calls(nfe),
                teacher_nfe=result.teacher_nfe if method == "sig-deg" else None,
            )
        )
    picked = torch.arange(CLASSES).repeat_interleave(4)
    with torch.no_grad():
        shown = sample(
            distilled,
            grid,
            (len(picked), *bench.shape),
            seeds=range(len(picked)),
            class_labels=picked.to(bench.device),
        )
    sets = [(bench.decode(shown) + 1) / 2]
    image_grid(
        sets, bench.out / "figures" / "guided.png", 8, [f"student, {count_calls(len(grid) - 1)}"]
    )
    return rows


def scale_rows(bench: Bench) -> list[Row]:
    """How much the weak teacher is to guide, and from when on: against the training images."""
    weak = bench.settings.weak
    if weak is None:
        return []
    rows = []
    finest = torch.tensor(bench.settings.times, dtype=torch.float64)
    for scale, until in bench.settings.scales:
        step: Any = bench.teacher.guided(scale, until, bench.weak).step
        grid = refine(step.schedule, finest, SCALE_REFINEMENT, weak.matching.fine_power)
        times = torch.cat([grid[0], *(row[1:] for row in grid[1:])])
        value = bench.validate(f"scale {scale:g} until {until:g}", bench.march(step, times))
        calls = step.denoiser.calls(times[:-1])
        more = {
            "study": "Scale of the guidance, against training images",
            "variant": f"{scale:g} below t = {until:g}",
        }
        metrics = {"fid_train": single(value, bench.settings.tried)}
        rows.append(make_row("teacher", step.denoiser, calls, metrics, **more))
    return rows


def size_rows(bench: Bench) -> list[Row]:
    """What networks of other sizes cost, untrained: time does not depend on the weights."""
    if not bench.settings.sized:
        return []
    sizes = [(f"{name} width", w, bench.settings.blocks) for name, w in WIDTHS.items()]
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
    for name, own in seconds.items():
        metrics = {"ms_a_call": single(1000 * own / len(latents), len(latents))}
        for steps in (10, 5, 1):
            gain = (1001 * own + decoding) / (steps * own + decoding)
            metrics[f"speedup_{steps}"] = single(gain, len(latents))
        more = {
            "study": "Sizes: what a call costs, and 1,001 calls over so many",
            "variant": name,
        }
        rows.append(make_row("teacher", networks[name], 1, metrics, **more))
    return rows
