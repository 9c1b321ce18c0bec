"""MAR against the reference outputs, and what a generation promises."""

import pytest
import torch

from disa import Guidance, ImageNoise, StepSchedule, build_model
from disa.diffusion import SOLVERS
from disa.weights.verify import manifest
from tests.conftest import SMALL_MAR, ReplayedNoise, load_json, load_reference, relative_error, small_mar

CASES = load_json("mar/index.json")


@pytest.mark.parametrize("name", ["mar_base", "mar_large", "mar_huge"])
def test_released_parameter_names_shapes_and_order(name):
    with torch.device("meta"):
        state = build_model(name).state_dict()
    # The order matters too: the optimiser's state in a checkpoint goes by it.
    assert [(key, list(value.shape)) for key, value in state.items()] == list(manifest(name)["parameters"].items())


@pytest.fixture(scope="module")
def network():
    return load_reference("mar/network.npz")


def positions(mask):
    """Known positions of a mask, ascending."""
    return (mask == 0).nonzero()[:, 1].view(len(mask), -1)


def test_encoder_and_decoder(network):
    model, known = small_mar(), positions(network["mask"])
    everywhere = torch.arange(16).expand(3, -1)
    with torch.no_grad():
        encoded = model.encode(network["tokens"], known, model.class_emb(network["labels"]))
        decoded = model.decode(encoded, known, everywhere)
        some = model.decode(encoded, known, everywhere[:, [2, 3, 11]])
    assert relative_error(encoded, network["encoder"].numpy()) < 1e-5
    assert relative_error(decoded, network["decoder"].numpy()) < 1e-5
    assert relative_error(some, network["decoder"][:, [2, 3, 11]].numpy()) < 1e-5


def test_head(network):
    with torch.no_grad():
        out = small_mar().diffloss.net(network["head_x"], network["head_t"], network["head_z"])
    assert relative_error(torch.cat(out, dim=-1), network["head_out"].numpy()) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_whole_generation(case):
    recorded = load_reference(f"mar/sample_{case}.npz")
    arch, head, sample = CASES[case]["arch"], CASES[case]["head"], CASES[case]["sample"]
    names = {"img_size": "image_size", "patch_size": "patch_size", "vae_embed_dim": "latent_channels"}
    traces = []
    latents = small_mar(**{names[key]: value for key, value in arch.items()}).generate(
        recorded["labels"],
        num_iter=sample["num_iter"],
        schedule=StepSchedule(
            head["diff_upper_steps"], head.get("diff_lower_steps", 1), head.get("diff_annealing_strategy", "linear")
        ),
        sampler=head["diff_sampler"],
        guidance=Guidance(sample["cfg"], sample["cfg_schedule"]),
        temperature=sample["temperature"],
        noise=ReplayedNoise(recorded),
        on_step=traces.append,
    )
    assert relative_error(latents, recorded["latents"].numpy()) < 1e-4
    assert [trace.evaluations for trace in traces] == recorded["head_evaluations"].tolist()
    assert [trace.step for trace in traces] == list(range(sample["num_iter"]))
    assert sum(trace.tokens for trace in traces) == 16


def test_training_loss_and_gradient():
    recorded = load_reference("mar/training_loss.npz")
    model = small_mar().train()
    loss = model(recorded["latents"], recorded["labels"], recorded["mask"], recorded["timesteps"], recorded["noise"])
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert loss.item() == pytest.approx(recorded["loss"].item(), rel=1e-4)
    assert norm.item() == pytest.approx(recorded["grad_norm"].item(), rel=1e-4)


def test_gradient_checkpointing_changes_nothing():
    recorded = load_reference("mar/training_loss.npz")
    arguments = (recorded["latents"], recorded["labels"], recorded["mask"], recorded["timesteps"], recorded["noise"])
    gradients = []
    for checkpointing in (False, True):
        model = small_mar(grad_checkpointing=checkpointing).train()
        model(*arguments).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.equal(*gradients)


def test_training_draws_its_own_masks_and_drops_labels():
    model = small_mar(label_drop_prob=0.5, mask_ratio_min=0.5).train()
    torch.manual_seed(0)
    assert all(8 <= model._masked_count(16) <= 16 for _ in range(50))
    model(torch.randn(64, 16, 4, 4), torch.zeros(64, dtype=torch.long)).backward()
    assert model.fake_latent.grad.abs().sum() > 0
    assert model.class_emb.weight.grad[0].abs().sum() > 0
    assert model.class_emb.weight.grad[1:].abs().sum() == 0


@pytest.mark.parametrize("patch_size", [1, 2])
def test_patchify_and_back(patch_size):
    model = build_model("mar", **{**SMALL_MAR, "patch_size": patch_size})
    latents = torch.randn(2, 16, 4, 4)
    assert torch.equal(model.unpatchify(model.patchify(latents)), latents)


def generate(seeds, sampler="DiSA", **settings):
    return small_mar().generate(
        torch.tensor([seed % 10 for seed in seeds]),
        **{"num_iter": 4, "schedule": StepSchedule(6, 2), "guidance": Guidance(2.0), **settings},
        sampler=sampler,
        noise=ImageNoise(seeds),
    )


@pytest.mark.parametrize("sampler", SOLVERS)
def test_an_image_depends_on_its_seed_alone(sampler):
    together, reordered, alone = generate([5, 6, 7], sampler), generate([7, 5], sampler), generate([5], sampler)
    assert relative_error(reordered, together[[2, 0]].numpy()) < 1e-4
    assert relative_error(alone, together[:1].numpy()) < 1e-4
    assert not torch.allclose(together[0], together[1], atol=1e-2)


@pytest.mark.parametrize("sampler", SOLVERS)
def test_generation_is_bit_for_bit_repeatable(sampler):
    assert torch.equal(generate([1, 2], sampler), generate([1, 2], sampler))


@pytest.mark.parametrize("sampler", SOLVERS)
def test_every_sampler_is_guided(sampler):
    plain, weak, strong = (
        generate([1, 2], sampler, guidance=Guidance(scale, "constant")) for scale in (1.0, 1.0001, 3.0)
    )
    assert torch.allclose(
        plain, weak, atol=1e-2, rtol=1e-2
    )  # the guided path at almost no guidance is the unguided one
    assert not torch.allclose(plain, strong, atol=1e-1)


def test_default_sampler_ignores_the_annealing():
    few = generate([1], "default", schedule=StepSchedule(6, 1))
    assert torch.equal(few, generate([1], "default", schedule=StepSchedule(6, 6)))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"num_iter": 17}, "num_iter is 17"),
        ({"num_iter": 0}, "num_iter is 0"),
        ({"sampler": "Euler"}, "'Euler'"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"guidance": Guidance(2.0, max_time=0.5)}, "max_time"),
    ],
)
def test_impossible_settings_are_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        generate([1], **settings)


def test_unknown_label_is_refused():
    with pytest.raises(ValueError, match=r"0\.\.9"):
        small_mar().generate(torch.tensor([10]), noise=ImageNoise([0]))


def test_nan_is_not_returned():
    model = small_mar()
    model.diffloss.net.final_layer.linear.bias.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="NaN"):
        model.generate(torch.tensor([1]), num_iter=2, schedule=StepSchedule(2, 1), noise=ImageNoise([0]))


@pytest.mark.parametrize(
    ("overrides", "named"),
    [({"image_size": 60}, "image_size is 60"), ({"width": 50}, "width is 50"), ({"colour": 1}, "colour")],
)
def test_sizes_that_do_not_fit_are_refused(overrides, named):
    with pytest.raises(ValueError, match=named):
        build_model("mar", **{**SMALL_MAR, **overrides})


def test_bfloat16_stays_close():
    reference = generate([1, 2])
    model = small_mar().to(torch.bfloat16)
    latents = model.generate(
        torch.tensor([1, 2]),
        num_iter=4,
        schedule=StepSchedule(6, 2),
        guidance=Guidance(2.0),
        sampler="DiSA",
        noise=ImageNoise([1, 2]),
    )
    assert latents.dtype == torch.float32
    assert (latents - reference).norm() / reference.norm() < 0.1
