"""The training of the bundled models' VAE, in a few steps on a few images."""

import json

import pytest
import torch
from PIL import Image

from benchmarks.making_of import vae as making
from disa.data.transforms import to_signed
from tests.conftest import load_reference


@pytest.fixture
def few(monkeypatch):
    images = load_reference("fashion_test_60.npz")["images"]
    monkeypatch.setattr(making, "fashion_mnist", lambda *_: (images, None))
    monkeypatch.setattr(making, "SPACES", making.SPACES[:1])
    return images


def arguments(folder, **changes):
    settings = {"steps": 5, "batch_size": 8, "output": folder, "save_seconds": 0, "export_steps": 100, **changes}
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


def test_pixel_loss_counts_edges():
    flat, edge = torch.full((1, 1, 4, 4), 0.5), torch.zeros(1, 1, 4, 4)
    edge[..., 2:] = 1.0
    nothing = torch.zeros(1, 1, 4, 4)
    assert making.pixel_loss(flat, nothing) == pytest.approx(0.5)
    assert making.pixel_loss(edge, nothing) == pytest.approx(0.5 + 1 / 3)  # one of three differences in each row


def test_losses_of_discriminator_and_posterior():
    assert making.discriminator_loss(torch.tensor([2.0]), torch.tensor([-1.5])) == 0  # told apart by a margin
    assert making.discriminator_loss(torch.tensor([0.0]), torch.tensor([0.5])) == pytest.approx(2.5)
    assert making.kl_loss(torch.zeros(1, 4, 2, 2)) == 0
    moments = torch.cat([torch.full((1, 2, 1, 1), 3.0), torch.full((1, 2, 1, 1), -2.0)], dim=1)
    gaussian = torch.distributions.Normal(3.0, torch.tensor(-1.0).exp())
    wanted = torch.distributions.kl_divergence(gaussian, torch.distributions.Normal(0.0, 1.0))
    assert making.kl_loss(moments) == pytest.approx(wanted)


def test_batches_continue_where_they_stopped():
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1).expand(10, 2, 2)
    whole = making.batches(images, 3, 0, seed=0)
    seen = [next(whole) for _ in range(7)]
    again = making.batches(images, 3, 4, seed=0)
    assert all(torch.equal(next(again), batch) for batch in seen[4:])
    first, second = (torch.cat(seen[i : i + 3])[:, 0, 0, 0].tolist() for i in (0, 3))
    assert len(set(first)) == len(set(second)) == 9
    assert first != second


@torch.no_grad()
def test_normalizing_changes_latents_but_no_image(few):
    torch.manual_seed(0)
    vae, images = making.build(), to_signed(few)[:, None]
    making.initialize(vae)
    vae.quant_conv.bias.uniform_(-2, 2)
    before, moments = vae.decode(vae.encode(images)), vae.moments(images)
    making.normalize(vae, images)
    latents = vae.encode(images)
    assert latents.mean((0, 2, 3)).abs().max() < 1e-5
    assert latents.std().item() == pytest.approx(1, rel=1e-4)
    assert torch.allclose(vae.decode(latents), before, atol=1e-4)
    # The posterior's deviation, in units of the mean's, is what it was.
    spread = moments.chunk(2, dim=1)[0]
    std = (spread - spread.mean((0, 2, 3), keepdim=True)).std()
    log_variances = (one.chunk(2, dim=1)[1] for one in (vae.moments(images), moments))
    assert torch.allclose(next(log_variances) + 2 * std.log(), next(log_variances), atol=1e-4)


def test_it_learns_and_asks_the_discriminator_late(few, tmp_path):
    torch.manual_seed(0)
    args = making.parse(arguments(tmp_path, steps=60, lr=0.02, adversarial_from=0.5))
    training, images = making.Training(args, torch.device("cpu")), to_signed(few[:8])[:, None]
    start = [parameter.clone() for parameter in training.discriminator.parameters()]
    losses = [training.advance(images) for _ in range(30)]
    assert losses[-1]["pixels"] < 0.6 * losses[0]["pixels"]
    assert all(map(torch.equal, start, training.discriminator.parameters()))
    assert "discriminator" in training.advance(images)
    assert not any(map(torch.equal, start, training.discriminator.parameters()))


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_an_interrupted_training_ends_as_an_uninterrupted_one(tmp_path, monkeypatch):
    making.main(arguments(tmp_path / "whole"))
    advance = making.Training.advance

    def stop(training, images):
        if training.step == 3:
            raise KeyboardInterrupt
        return advance(training, images)

    monkeypatch.setattr(making.Training, "advance", stop)
    with pytest.raises(KeyboardInterrupt):
        making.main(arguments(tmp_path / "parts"))
    monkeypatch.setattr(making.Training, "advance", advance)
    making.main(arguments(tmp_path / "parts"))
    whole, parts = (torch.load(tmp_path / name / "training.pth", weights_only=True) for name in ("whole", "parts"))
    assert whole["step"] == parts["step"] == 5
    for key in ("vae", "discriminator", "ema"):
        assert all(torch.equal(whole[key][name], parts[key][name]) for name in whole[key])
    told = json.loads((tmp_path / "whole" / "measured.json").read_text())
    assert told["fashion-classifier distance"] > 10
    assert Image.open(tmp_path / "whole" / "step000005.png").size == (12 * 130 - 2, 8 * 130 - 2)
    path = tmp_path / "whole" / "fashion_vae.safetensors"
    assert making.load_exported(path).scale == 1
    assert path.stat().st_size < 1.5e6


@pytest.mark.usefixtures("few")
def test_a_batch_beyond_the_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match="batch_size is 61; there are 60 images"):
        making.main(arguments(tmp_path, batch_size=61))
