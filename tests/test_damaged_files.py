"""A fuzzer of files: whatever happened to one that is read, it is one line or nothing at all.

Each case takes a folder that is whole, damages one file of it, and reads. Right is a `SigdegError`
of one line with exit code 2, or the very same result as before. For files whose content is the
user's own (a pipeline of diffusers, samples, results) other content is another result, which must
be of use.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Generator, nn

from sigdeg.codec import Decoder, load_decoder, save_decoder
from sigdeg.datasets import rough_bergomi_split
from sigdeg.denoiser import GaussianDenoiser
from sigdeg.discrete import (
    Ancestral,
    DiscretisedGaussian,
    ExactDenoiser,
    GreyLevels,
    Latent,
    MixtureStudent,
    as_token_model,
)
from sigdeg.discrete.distill import train_student
from sigdeg.distillation import distill
from sigdeg.errors import SigdegError
from sigdeg.files import save_json, save_tensors
from sigdeg.integrations import load_model, load_teacher
from sigdeg.networks import Autoencoder, ResidualMLP, TokenMLP
from sigdeg.pipelines import load_pipeline, save_student
from sigdeg.pipelines.trace import call_pipeline
from sigdeg.planning.spectrum import Spectrum
from sigdeg.report import write_report
from sigdeg.rng import seeded
from sigdeg.runs import remember
from sigdeg.schedule import VPLinear
from sigdeg.steps import Exponential
from sigdeg.student import SignatureStudent
from sigdeg.workflows.plan.sources import find_source
from tests.pipelines.student import student_of

SCHEDULE = VPLinear()
HOSTILE = [
    None, True, -1, 0, 2, 10**9, 10**30, -0.5, 1e300, math.nan, math.inf, -math.inf,
    "", "abc", "../x", [], [1, 2], ["a"], {}, {"a": 1}, [[1]], "\0\n", [10**9, 10**9],
]  # fmt: skip
TYPES = [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.uint8]


class Reader(NamedTuple):
    """What reads files of a folder: the files, what comes of them, and whether they are sealed."""

    files: list[str]
    read: Callable[[Path], Any]
    sealed: bool


def student(seed: int = 0) -> SignatureStudent:
    network = ResidualMLP(SignatureStudent.in_channels(2, 2), 2, 4, 1)
    for i, p in enumerate(network.parameters()):
        nn.init.uniform_(p, -0.1, 0.1, generator=Generator().manual_seed(100 * seed + i))
    covariance = torch.tensor([[1.0, 0.4], [0.4, 0.5]])
    times = (1.0, 0.6, 0.3, 0.0)
    return SignatureStudent(
        network, SCHEDULE, 2, covariance=covariance, lookahead=0.5, steps=(3,), times=times
    )


def run(folder: Path, seed: int = 0) -> dict[str, Any]:
    """A distillation, or going on with what the folder holds; what came of it."""
    found = distill(
        student(),
        Exponential(GaussianDenoiser(0.0, 0.5, SCHEDULE)),
        folder,
        iterations=4,
        batch_size=4,
        checkpoint_every=2,
        paths=8,
        held_out=2,
        shard_size=4,
        refinement=2,
        seed=seed,
        judge=4,
        tracker="none",
        device="cpu",
        progress=False,
    )
    return {"history": found.history, "verdict": found.verdict, **found.student.state_dict()}


def token_student(seed: int = 0) -> MixtureStudent:
    """A student of four grey pixels."""
    latent = {"kind": "uniform", "size": 1}
    network = seeded(seed, lambda: TokenMLP(4, 3, 8, 1, latent=latent))
    return MixtureStudent(network, DiscretisedGaussian(3), 4, Latent())


def run_tokens(folder: Path, seed: int = 0) -> dict[str, Any]:
    """A distillation of tokens from the teacher's own samples; what came of it."""
    law = torch.tensor([[0, 1, 2, 0], [2, 1, 0, 0]])
    found = train_student(
        token_student(),
        Ancestral(ExactDenoiser(law, torch.ones(2), DiscretisedGaussian(3))),
        folder,
        iterations=4,
        batch_size=4,
        latents=2,
        checkpoint_every=2,
        paths=20,
        path_steps=2,
        seed=seed,
        tracker="none",
        device="cpu",
        progress=False,
    )
    return {"history": found.history, "losses": found.losses, **found.student.state_dict()}


def pipeline(folder: Path) -> None:
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(4, 8),
        norm_num_groups=2,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=10)).save_pretrained(folder)


def results(folder: Path) -> None:
    row = {"method": "sig-deg", "steps": 2, "nfe": 2, "seconds": 0.5, "speedup": 3.0, "params": 9}
    value = {
        "rows": [
            {**row, "metrics": {"w1": {"mean": 0.1, "std": 0.01, "n": 3}}},
            {**row, "method": "teacher", "nfe": 40, "metrics": {"w1": 0.2}, "variant": "slow"},
        ],
        "floor": {"w1": {"mean": 0.05, "std": 0.0, "n": 3}},
        "quality": {"metric": "fid", "label": "FID", "lower_is_better": True},
        "title": "A run",
        "student": "student",
        "example": {"steps": 2},
        "versions": {"torch": "2"},
        "figures": [{"file": "figures/a.png", "caption": "A"}],
    }
    save_json(folder / "results.json", value)
    save_json(folder / "config.json", {"seed": 1, "batch": [1, 2]})
    (folder / "figures").mkdir()
    Image.new("RGB", (9, 7), (1, 2, 3)).save(folder / "figures/a.png")


def read_student(folder: Path) -> dict[str, Any]:
    found = SignatureStudent.from_pretrained(folder)
    return {"times": torch.tensor(found.times), "clip": found.clip, **found.state_dict()}


def read_tokens(folder: Path) -> dict[str, Any]:
    found = load_model(folder)
    told: Any = found.denoiser
    grid = {"steps": found.grid.steps, "codec": str(found.codec), "latent": str(told.latent)}
    return {"process": str(told.process.config()), **grid, **told.state_dict()}


def read_decoder(folder: Path) -> dict[str, Any]:
    return dict(load_decoder(folder).state_dict())


def read_pipeline(folder: Path) -> None:
    """Loaded, a teacher can be called."""
    teacher = load_teacher(folder)
    x = torch.zeros(1, *teacher.shape)
    with torch.no_grad():
        teacher.denoiser(x, torch.tensor(0.5, dtype=torch.float64))


def read_pipeline_student(folder: Path) -> None:
    """Loaded, a student draws."""
    call_pipeline(load_pipeline(folder), {"output_type": "np"}, 4, Generator().manual_seed(0))


def read_spectrum(file: str, folder: Path) -> None:
    found = find_source(str(folder / file))
    assert isinstance(found, Spectrum)
    found.warnings()


def read_series(folder: Path) -> dict[str, Any]:
    split = rough_bergomi_split(0, 20, 3, cache=folder / "series.safetensors")
    return {"train": split.train, "mean": split.mean}


def read_remembered(folder: Path) -> dict[str, Any]:
    return remember(folder / "judged" / "a.json", dict)


CHECKPOINT, SECONDS = "checkpoints/last.safetensors", "checkpoints/seconds.json"
SHARDS = ["paths/paths-00000.safetensors", "paths/paths-00001.safetensors"]
TOKENS = "samples/0000.safetensors"
PIPELINE = ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"]
SPECTRA = ["a.npy", "a.json", "a.csv", "a.safetensors"]
READERS = {
    "student": Reader(["config.json", "model.safetensors"], read_student, True),
    "decoder": Reader(["config.json", "diffusion_pytorch_model.safetensors"], read_decoder, True),
    "run": Reader([CHECKPOINT, SECONDS, "config.json", "verdict.json", *SHARDS], run, True),
    "tokens": Reader(["config.json", "model.safetensors"], read_tokens, True),
    "tokens-run": Reader([CHECKPOINT, SECONDS, "config.json", TOKENS], run_tokens, True),
    "series": Reader(["series.safetensors"], read_series, True),
    "judged": Reader(["judged/a.json"], read_remembered, True),
    "pipeline": Reader(
        [*PIPELINE, "unet/diffusion_pytorch_model.safetensors"], read_pipeline, False
    ),
    "pipeline-student": Reader(
        ["sigdeg.json", *PIPELINE, "unet/diffusion_pytorch_model.safetensors"],
        read_pipeline_student,
        False,
    ),
    "results": Reader(["results.json", "config.json", "figures/a.png"], write_report, False),
    **{name: Reader([name], partial(read_spectrum, name), False) for name in SPECTRA},
}


def build(folder: Path, seed: int) -> None:
    """Whole folders of every kind; another seed gives others of the same form."""
    student(seed).save_pretrained(folder / "student")
    torch.manual_seed(seed)
    save_decoder(Decoder(Autoencoder(latent_channels=1, width=8, size=8)), folder / "decoder")
    run(folder / "run", seed)
    tokens = as_token_model(token_student(seed), steps=(2, 1))
    codec = GreyLevels(3, 2, 2)
    dataclasses.replace(tokens, codec=codec).save_pretrained(folder / "tokens")
    run_tokens(folder / "tokens-run", seed)
    pipeline(folder / "pipeline")
    save_student(student_of("ddpm", str(seed))[0], folder / "pipeline-student")
    results(folder / "results")
    rough_bergomi_split(seed, 20, 3, cache=folder / "series" / "series.safetensors")
    save_json(folder / "judged" / "config.json", {"seed": seed})
    draws = {"draws": [{"w1": 0.5 + seed}] * 2}
    remember(folder / "judged" / "judged" / "a.json", lambda: draws)
    x = torch.randn(9, 3, generator=Generator().manual_seed(seed))
    for name in SPECTRA:
        (folder / name).mkdir()
    np.save(folder / "a.npy" / "a.npy", x.numpy())
    save_json(folder / "a.json" / "a.json", {"eigenvalues": [2.0, 1.0], "samples": 9})
    (folder / "a.csv" / "a.csv").write_text("1.5,0.5,0.25\n")
    save_tensors(folder / "a.safetensors" / "a.safetensors", {"x": x})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    made = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("others")
    for seed, folder in enumerate(made):
        build(folder, seed)
    return made


# --- Damage -------------------------------------------------------------------------------------


def truncate(file: Path, other: Path, luck: random.Random) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: luck.randrange(len(data))])


def lengthen(file: Path, other: Path, luck: random.Random) -> None:
    file.write_bytes(file.read_bytes() + luck.randbytes(luck.randrange(1, 20)))


def flip(file: Path, other: Path, luck: random.Random) -> None:
    data = bytearray(file.read_bytes())
    data[luck.randrange(len(data))] ^= 1 << luck.randrange(8)
    file.write_bytes(data)


def overwrite(file: Path, other: Path, luck: random.Random) -> None:
    """A block of noise, or of zeros, as a broken disk leaves it."""
    data = bytearray(file.read_bytes())
    start = luck.randrange(len(data))
    block = data[start : start + 64]
    noise = bytes(len(block)) if luck.random() < 0.5 else luck.randbytes(len(block))
    data[start : start + 64] = noise
    file.write_bytes(data)


def garbage(file: Path, other: Path, luck: random.Random) -> None:
    deep = 100_000
    whole = [b"", b"{}", b"[]", b"null", b"\xff\xfe", b"[" * deep + b"]" * deep, luck.randbytes(99)]
    whole += [b'{"a":' * deep + b"1" + b"}" * deep, (2**63).to_bytes(8, "little") + b"{}"]
    file.write_bytes(luck.choice(whole))


def replace(file: Path, other: Path, luck: random.Random) -> None:
    """By the same file of another, or by a file of another kind."""
    shutil.copyfile(other, file)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to every value of a JSON value but itself."""
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in parts:
        yield (*path, key)
        if isinstance(part, dict | list):
            yield from leaves(part, (*path, key))


def edit(file: Path, other: Path, luck: random.Random) -> None:
    """A value of a JSON file replaced by a hostile one, or left out."""
    whole = place = json.loads(file.read_text())
    path = luck.choice(list(leaves(whole)))
    for key in path[:-1]:
        place = place[key]
    if luck.random() < 0.15:
        del place[path[-1]]
    else:
        place[path[-1]] = luck.choice(HOSTILE)
    file.write_text(json.dumps(whole))


def retype(file: Path, other: Path, luck: random.Random) -> None:
    """Whole safetensors of other types, shapes, values, names or metadata."""
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata() or {}
    tensors = {name: value.clone() for name, value in load_file(file).items()}
    name, kind = luck.choice(sorted(tensors)), luck.randrange(8)
    value = tensors[name]
    if kind == 0:
        del tensors[name]
    elif kind == 1:
        tensors[name] = value.flatten()[: value.numel() // 2].clone()
    elif kind == 2:
        dtype = luck.choice(TYPES)
        tensors = {key: part.to(dtype) for key, part in tensors.items()}
    elif kind == 3 and value.is_floating_point() and value.numel():
        value.view(-1)[luck.randrange(value.numel())] = luck.choice([math.nan, math.inf, 1e30])
    elif kind == 4:
        tensors[f"{name}.more"] = value.clone()
    elif kind == 5:
        tensors[name] = value * 5
    elif kind == 6:
        metadata |= {luck.choice(["step", "digest", "identity", "run"]): luck.choice(["-5", "1e9"])}
    else:
        tensors[name[::-1]] = tensors.pop(name)
    save_file(tensors, file, metadata if luck.random() < 0.7 else None)


ANY = (truncate, lengthen, flip, flip, overwrite, garbage, replace)


def damage(file: Path, other: Path, luck: random.Random) -> str:
    """Damage a file in a way that fits its kind; says how."""
    more = {".json": (edit,) * 6, ".safetensors": (retype,) * 6}.get(file.suffix, ())
    how = luck.choice((*ANY, *more))
    how(file, other, luck)
    return how.__name__


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return bool(one == other)


def verdict(reader: Reader, folder: Path, whole: Any) -> str:
    """What reading damaged files came to: `refused`, `same` and `other`, or what is wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = reader.read(folder)
        except SigdegError as error:
            if "\n" in str(error) or error.exit_code != 2 or not str(error):
                return f"WRONG message {type(error).__name__}: {str(error)!r}"
            return "refused"
        except Exception as error:
            return f"WRONG {type(error).__name__}: {str(error)[:200]!r}"
    if not reader.sealed:
        return "other"
    return "same" if same(found, whole) else "WRONG: silently another result"


def fuzz(folders: tuple[Path, Path], place: Path, cases: range) -> dict[str, int]:
    """Damage a file for each case and count the verdicts; fails on any that is wrong."""
    whole, others = folders
    known = {name: reader.read(whole / name) for name, reader in READERS.items()}
    files = [(name, file) for name, reader in READERS.items() for file in reader.files]
    elsewhere = [others / name / file for name, file in files]
    counts: dict[str, int] = {}
    wrong = []
    for case in cases:
        luck = random.Random(case)
        name, file = files[case % len(files)]
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(whole / name, place)
        other = luck.choice([others / name / file, luck.choice(elsewhere)])
        how = damage(place / file, other, luck)
        found = verdict(READERS[name], place, known[name])
        counts[found.split(" ")[0]] = counts.get(found.split(" ")[0], 0) + 1
        if found.startswith("WRONG"):
            wrong.append(f"case {case}, {name}/{file}, {how}: {found}")
    assert not wrong, "\n".join(wrong)
    return counts


def test_a_damaged_file_is_one_line_or_nothing(folders: tuple[Path, Path], tmp_path: Path) -> None:
    counts = fuzz(folders, tmp_path / "place", range(72))
    assert counts["refused"] > 30


@pytest.mark.parametrize("key", ["_digest", "_run", "draws"])
def test_every_key_of_what_was_found_counts(
    folders: tuple[Path, Path], tmp_path: Path, key: str
) -> None:
    """One letter of its name is enough: that of the digest too."""
    folder = shutil.copytree(folders[0] / "judged", tmp_path / "judged")
    file = folder / "judged" / "a.json"
    file.write_text(file.read_text().replace(f'"{key}"', f'"{key[:-1]}_"'))
    assert verdict(READERS["judged"], folder, None) == "refused"


UNET: list[tuple[str, Any]] = [
    ("time_embedding_type", 0),
    ("freq_shift", {}),
    ("up_block_types", [0, 0]),
    ("down_block_types", [math.nan] * 2),
    ("act_fn", []),
    ("in_channels", -1),
    ("attn_norm_num_groups", True),
    ("add_attention", 0),
    ("downsample_padding", [1, 2]),  # seen only when it is called
    ("sample_size", [8]),
    ("sample_size", "8"),
    ("sample_size", 10**30),
    ("norm_eps", math.inf),
    ("norm_num_groups", 3),
    ("layers_per_block", 10**9),  # would be built without end
    ("block_out_channels", [4, 10**5]),  # would take 360 GB
    ("num_class_embeds", 10**12),
]
SCHEDULER: list[tuple[str, Any]] = [
    ("clip_sample", "no"),
    ("clip_sample_range", "abc"),
    ("clip_sample_range", {}),
    ("num_train_timesteps", 10**9),
    ("beta_start", None),
    ("beta_end", -1),
    ("beta_start", math.nan),
    ("trained_betas", []),
    ("trained_betas", 0.5),
    ("prediction_type", []),
    ("rescale_betas_zero_snr", "x"),
    ("_class_name", []),
]
WRONG = [("unet/config.json", *case) for case in UNET]
WRONG += [("scheduler/scheduler_config.json", *case) for case in SCHEDULER]


@pytest.mark.parametrize(("file", "key", "value"), WRONG)
def test_a_pipeline_with_a_parameter_of_a_wrong_kind(
    folders: tuple[Path, Path], tmp_path: Path, file: str, key: str, value: Any
) -> None:
    """Refused when it is loaded, whatever diffusers would make of it; nothing large is built."""
    folder = shutil.copytree(folders[0] / "pipeline", tmp_path / "pipeline")
    config = {**json.loads((folder / file).read_text()), key: value}
    (folder / file).write_text(json.dumps(config))
    assert verdict(READERS["pipeline"], folder, None) == "refused"


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_a_thousand_damaged_files(folders: tuple[Path, Path], tmp_path: Path, part: int) -> None:
    counts = fuzz(folders, tmp_path / "place", range(1000 + 100 * part, 1100 + 100 * part))
    print(counts)
