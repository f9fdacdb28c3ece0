"""Students of U-Nets: before training the ancestral sampler, and whole after a trip to disk."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sigdeg.cli import main
from sigdeg.denoiser import NetworkDenoiser
from sigdeg.distillation import distill
from sigdeg.errors import SigdegError
from sigdeg.integrations import load_teacher
from sigdeg.networks import ResidualMLP
from sigdeg.prediction import OF_DATA_STD
from sigdeg.sampling import sample
from sigdeg.schedule import DiscreteVP, VPLinear
from sigdeg.signature import PartialSignature
from sigdeg.steps import EulerMaruyama, Exponential, StochasticTaylor
from sigdeg.student import SignatureStudent
from sigdeg.workflows.evaluate import check_pair

SCHEDULE = DiscreteVP.from_alphas_cumprod(torch.cumprod(1 - torch.linspace(1e-4, 0.4, 20), 0))


def busy_mlp():
    network = ResidualMLP(3, 3, width=16, blocks=2)
    nn.init.normal_(network.head.weight)
    return network


def close(a, b, tolerance=1e-11):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("order", [1, 2, 5])
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample", "mlp"])
def test_an_untrained_student_is_the_exponential_step(unet, prediction, clip, order):
    """At order 1 that is the ancestral sampler; the last step is the final denoise."""
    torch.manual_seed(order)
    kind = "v_prediction" if prediction == "mlp" else prediction
    network = busy_mlp() if prediction == "mlp" else unet(2)
    shape = (3,) if prediction == "mlp" else (2, 8, 8)
    denoiser = NetworkDenoiser(network.double().eval(), SCHEDULE, kind, clip)
    student = SignatureStudent.from_denoiser(
        denoiser, shape[0], order, sample_shape=shape, lookahead=0.0, residual_noise=None
    )
    x = torch.randn(4, *shape, dtype=torch.float64)
    together = [(1.0, 0.62), (0.62, 0.1), (0.05, 0.0)]
    apart = (torch.tensor([1.0, 0.4, 0.3, 0.06]), torch.tensor([0.5, 0.3, 0.05, 0.0]))
    for t, s in [*together, tuple(v.double() for v in apart)]:
        signature = PartialSignature.sample(
            torch.as_tensor(t - s), x.shape, order, dtype=torch.float64
        )
        with torch.no_grad():
            ours = student(x, t, s, signature)
            theirs = Exponential(denoiser, order)(x, t, s, signature)
        close(ours, theirs)
        if order == 1:
            longer = PartialSignature(signature.dt, torch.randn(4, 3, *shape, dtype=torch.float64))
            longer.coefficients[:, 0] = signature.coefficients[:, 0]
            close(student(x, t, s, longer), theirs)


@pytest.mark.parametrize("prediction", OF_DATA_STD)
def test_an_untrained_preconditioned_student_keeps_the_scale_of_its_teacher(prediction):
    """They assume the data's spread: their student is the exponential step for such data."""
    torch.manual_seed(0)
    denoiser = NetworkDenoiser(busy_mlp().double(), VPLinear(), prediction, data_std=0.7)
    student = SignatureStudent.from_denoiser(
        denoiser, 3, order=4, lookahead=0.0, residual_noise=None
    )
    x = torch.randn(5, 3, dtype=torch.float64)
    signature = PartialSignature.sample(0.25, x.shape, 4, dtype=torch.float64)
    theirs = Exponential(denoiser, order=4, data_std=0.7)(x, 0.6, 0.35, signature)
    close(student(x, 0.6, 0.35, signature), theirs)


@pytest.mark.parametrize("order", [1, 2, 6])
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.0), (1.0, 0.3), (0.3, 0.02), (0.02, 0.0)])
def test_an_untrained_student_carries_gaussian_data_exactly(t, s, order):
    r"""A zero `edm` network is the exact denoiser of N(0, v): marginals map to marginals.

    The step is then linear, $x_s = \Phi x_t + \sum_k w_k c_k$, and
    $\Phi^2 n_t^2 + \sum_k w_k^2 = n_s^2$ with $n^2 = \alpha^2 v + \sigma^2$.
    """
    schedule, v = VPLinear(), 0.6**2
    denoiser = NetworkDenoiser(ResidualMLP(1, 1, 8, 1).double(), schedule, "edm", data_std=0.6)
    student = SignatureStudent.from_denoiser(denoiser, 1, order, lookahead=0.0, residual_noise=None)
    x = torch.zeros(order + 1, 1, dtype=torch.float64)
    x[0] = 1
    c = torch.zeros(order + 1, order, 1, dtype=torch.float64)
    c[1:, :, 0] = torch.eye(order)
    with torch.no_grad():
        phi, *w = student(x, t, s, PartialSignature(torch.tensor(t - s), c)).flatten()
    n2 = [
        schedule.alpha(time) ** 2 * v + schedule.sigma(time) ** 2
        for time in torch.tensor([t, s], dtype=torch.float64)
    ]
    close(phi**2 * n2[0] + sum(value**2 for value in w), n2[1])


def test_stochastic_taylor_differentiates_through_attention(unet):
    """Forward mode against central differences of the reverse drift."""
    denoiser = NetworkDenoiser(unet(1).double(), SCHEDULE).requires_grad_(False)
    torch.manual_seed(1)
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    t, s = torch.tensor(0.53, dtype=torch.float64), 0.47
    signature = PartialSignature.sample(t - s, x.shape, 2, dtype=torch.float64)
    W, A, h, eps = signature.W, signature.time_integral, t - s, 1e-5
    g, before, after = (SCHEDULE.diffusion(v) for v in (t, t + eps, t - eps))
    direction = denoiser.reverse_drift(x + eps * g * A, t) - denoiser.reverse_drift(
        x - eps * g * A, t
    )
    expected = (
        EulerMaruyama(denoiser)(x, t, s, signature)
        + (after - before) / (2 * eps) * (h * W - A)
        + direction / (2 * eps)
    )
    close(StochasticTaylor(denoiser)(x, t, s, signature), expected, 1e-7)


@pytest.fixture
def student(unet):
    """A student whose added weights are not zero, as after training."""
    denoiser = NetworkDenoiser(unet(1), SCHEDULE, "v_prediction", clip=1.0)
    student = SignatureStudent.from_denoiser(
        denoiser,
        1,
        3,
        lookahead=0.0,
        residual_noise="energy",
        steps=(4, 2),
        sample_shape=(1, 8, 8),
    )
    torch.manual_seed(2)
    with torch.no_grad():
        student.network.beside.weight.add_(0.1 * torch.randn_like(student.network.beside.weight))
    return student.eval()


def draw(student, steps=4):
    return sample(student, student.grid(steps), (3, *student.sample_shape), seeds=[5, 6, 7])


def test_a_saved_student_draws_the_same_samples_to_the_bit(student, tmp_path):
    student.save_pretrained(tmp_path / "new" / "student")
    again = SignatureStudent.from_pretrained(tmp_path / "new" / "student")
    assert sorted(p.name for p in (tmp_path / "new" / "student").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    assert not again.training
    for steps in (4, 3, 2):
        assert torch.equal(draw(again, steps), draw(student, steps))
    alone = sample(again, again.grid(4), (1, 1, 8, 8), seeds=[6])
    torch.testing.assert_close(alone, draw(again)[1:2], rtol=0, atol=1e-5)


def test_half_precision_weights_load_into_single_precision(student, tmp_path):
    student.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for seal in ("_weights", "_digest"):  # as before there were digests
        drop(tmp_path, seal)
    save_file({name: v.half() for name, v in weights.items()}, tmp_path / "model.safetensors")
    again = SignatureStudent.from_pretrained(tmp_path)
    own = again.network.state_dict()
    assert all(torch.equal(own[name], v.half().float()) for name, v in weights.items())
    torch.testing.assert_close(draw(again), draw(student), rtol=0, atol=0.02)


class Own(nn.Module):
    """A network of a user's own class."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2 * 3 + 16, 2)

    def forward(self, x, timestep):
        return self.layer(x) + timestep[:, None]


def test_a_network_of_ones_own_is_saved_and_passed_when_loading(tmp_path):
    student = SignatureStudent(Own(), VPLinear(), 2)
    student.save_pretrained(tmp_path)
    again = SignatureStudent.from_pretrained(tmp_path, network=Own())
    assert torch.equal(draw(again, 10), draw(student, 10))
    with pytest.raises(SigdegError, match=r"unknown network class 'Own': .* has to be passed"):
        SignatureStudent.from_pretrained(tmp_path)


def edit(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def drop(folder, key):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    del config[key]
    file.write_text(json.dumps(config))


def reweigh(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


def swap_for_pickle(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04N.")


BROKEN = {
    "no config": (lambda f: (f / "config.json").unlink(), "no readable config.json"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "no readable config.json"),
    "a list": (lambda f: (f / "config.json").write_text("[1]"), "no JSON object"),
    "another kind": (lambda f: edit(f, format="bert"), "holds no sigdeg student"),
    "a teacher": (lambda f: drop(f, "format"), "holds no sigdeg student"),
    "no network": (lambda f: drop(f, "network"), "does not fit a student: network is missing"),
    "no channels": (lambda f: drop(f, "channels"), "does not fit a student: .*channels"),
    "a strange key": (lambda f: edit(f, colour=1), "does not fit a student: .*colour"),
    "unknown class": (lambda f: edit(f, network={"class": "Net"}), "unknown network class 'Net'"),
    "unknown schedule": (lambda f: edit(f, schedule={"kind": "X"}), "unknown schedule 'X'"),
    "no order": (lambda f: edit(f, order=0), "order must be at least 1"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "safetensors is missing: weights"),
    "pickle": (swap_for_pickle, r"pytorch_model\.bin is a pickle and is never opened"),
    "truncated": (cut, "not a whole safetensors file"),
    "of text": (lambda f: (f / "model.safetensors").write_text("no"), "not a whole safetensors"),
    "wrong shape": (
        lambda f: reweigh(f, lambda w: w.update({"network.conv_in.bias": torch.zeros(9)})),
        r"network\.conv_in\.bias has shape \(9,\) in .*, the network needs \(8,\)",
    ),
    "missing weight": (
        lambda f: reweigh(f, lambda w: w.pop("network.conv_in.bias")),
        r"network\.conv_in\.bias is missing from",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_student_is_refused_in_one_line(case, student, tmp_path):
    student.save_pretrained(tmp_path)
    break_it, message = BROKEN[case]
    break_it(tmp_path)
    with pytest.raises(SigdegError, match=message) as caught:
        SignatureStudent.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_student_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(SigdegError, match="neither a folder, nor one of mnist"):
        SignatureStudent.from_pretrained(tmp_path / "nowhere")


def test_a_saved_pipeline_becomes_a_saved_student(teacher_folder, tmp_path):
    """The whole way on a tiny scale: load, distil to 4 steps, sample, load again, sample again."""
    teacher = load_teacher(teacher_folder)
    start = SignatureStudent.from_denoiser(
        teacher.denoiser,
        1,
        2,
        steps=(4,),
        sample_shape=teacher.shape,
        lookahead=0.0,
        residual_noise=None,
    )
    result = distill(
        start,
        Exponential(teacher.denoiser),
        tmp_path / "run",
        iterations=20,
        warmup=2,
        batch_size=16,
        learning_rate=5e-3,
        paths=64,
        held_out=16,
        refinement=4,
        ema=0.5,
        tracker="none",
        device="cpu",
        progress=False,
        judge=0,
    )
    # The loss is measured in units of the untrained student's own, so that it starts at 1.
    assert result.history[-1, 2] < 0.9
    samples = draw(result.student)
    assert bool(torch.isfinite(samples).all())
    assert not torch.equal(samples, draw(start))
    again = SignatureStudent.from_pretrained(tmp_path / "run" / "student")
    assert torch.equal(draw(again), samples)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"timesteps": 21}, "has other noise levels than other"),
        ({"prediction_type": "v_prediction"}, "prediction type epsilon, other v_prediction"),
        ({"unet": {"channels": 2}}, r"samples of shape \(1, 8, 8\), other \(2, 8, 8\)"),
        ({"unet": {"num_class_embeds": 2}}, r"classes None, other \[0, 1\]"),
    ],
    ids=str,
)
def test_another_teacher_is_not_its_teacher(
    made, message, teacher_folder, pipeline, unet, tmp_path, capsys
):
    """On the command line too, where it is judged and where it goes on; nothing is written."""
    teacher = load_teacher(teacher_folder)
    student = SignatureStudent.from_denoiser(
        teacher.denoiser, 1, 1, steps=(2,), sample_shape=teacher.shape
    )
    check_pair(student, teacher)
    student.save_pretrained(tmp_path / "student")
    made = {key: unet(**value) if key == "unet" else value for key, value in made.items()}
    other = tmp_path / "other"
    pipeline(**made).save_pretrained(other)
    with pytest.raises(SigdegError, match=message):
        check_pair(student, load_teacher(other))
    out, start = ["--out", str(tmp_path / "out")], str(tmp_path / "student")
    for command in (["evaluate", start, str(other)], ["distill", str(other), "--start", start]):
        assert (
            main([*command, *out, "--steps", "2"] if command[0] == "distill" else command + out)
            == 2
        )
        assert "it is not its teacher" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
