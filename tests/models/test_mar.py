"""MAR against the reference outputs, and what a generation promises."""

import pytest
import torch

from disa import Guidance, ImageNoise, StepSchedule, build_model
from disa.diffusion import SOLVERS
from disa.grouping import ORDERS, TOKENS_PER_STEP, Grouping
from disa.models.mar import MAR, HeadNetwork
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


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("tokens_per_step", TOKENS_PER_STEP)
@pytest.mark.parametrize("num_iter", [1, 3, 7, 16])
def test_every_token_is_sampled_once_in_its_groups_order(order, tokens_per_step, num_iter, monkeypatch):
    grouping, wanted, traces = Grouping(order, tokens_per_step), [], []
    decode = MAR.decode
    monkeypatch.setattr(MAR, "decode", lambda *args: wanted.append(args[3][:2]) or decode(*args))
    generate([5, 6], num_iter=num_iter, grouping=grouping, on_step=traces.append)
    assert [one.shape[1] for one in wanted] == [trace.tokens for trace in traces]
    assert len(wanted) == num_iter
    orders, left = grouping.arrange(ImageNoise([5, 6]).orders(16), (4, 4)), 16
    for group, next_left in zip(wanted, grouping.left((4, 4), num_iter), strict=True):
        assert torch.equal(group, orders[:, next_left:left].sort().values)
        left = next_left
    assert left == 0


@pytest.mark.parametrize("order", ORDERS)
def test_an_image_depends_on_its_seed_alone_in_every_order(order):
    together, alone = (generate(seeds, grouping=Grouping(order, "stages")) for seeds in ([5, 6], [6]))
    assert relative_error(alone, together[1:].numpy()) < 1e-4


def rows_through(monkeypatch, **settings):
    """The latents of two images, and how many rows backbone and head took at each AR step, and the head each time."""
    backbone, head, encode, predict = [], [], MAR.encode, HeadNetwork.predict
    monkeypatch.setattr(MAR, "encode", lambda *args: backbone.append(len(args[1])) or encode(*args))
    monkeypatch.setattr(HeadNetwork, "predict", lambda *args: head.append(len(args[1])) or predict(*args))
    latents = generate([1, 2], **settings)
    monkeypatch.undo()
    return latents, backbone, head


class BothBranches(Guidance):
    """Takes both branches where one is enough."""

    def at(self, progress):
        scale = super().at(progress)
        return 1 + 1e-9 if scale == 1 else scale


def test_the_unconditional_branch_is_not_computed_where_guidance_is_skipped(monkeypatch):
    """Cosine groups of 16 tokens in 4 AR steps leave 14, 11, 6 and 0 (1): scales are 1.25, 1.625, 2.25 and 2.875."""
    arguments = (3.0, "linear", 1.0, 0.0, 1.7)
    skipped, backbone, head = rows_through(monkeypatch, guidance=Guidance(*arguments))
    assert backbone == [2, 2, 4, 4]
    assert head == [2] * (6 + 4) + [4] * (3 + 2)
    both, backbone, head = rows_through(monkeypatch, guidance=BothBranches(*arguments))
    assert backbone == [4, 4, 4, 4]
    assert head == [4] * (6 + 4 + 3 + 2)
    assert relative_error(skipped, both.numpy()) < 1e-5
    assert relative_error(skipped, generate([1, 2], guidance=Guidance(3.0)).numpy()) > 1e-2


def test_skipping_guidance_everywhere_is_none():
    skipped = generate([1, 2], guidance=Guidance(1.5, "constant", skip_below=1.6))
    assert torch.equal(skipped, generate([1, 2], guidance=Guidance()))


@pytest.mark.parametrize("sampler", SOLVERS)
def test_guidance_applies_between_its_times(sampler, monkeypatch):
    """Where times lie beyond those visited, nothing changes; else the head takes one branch beyond."""
    settings = {"sampler": sampler, "num_iter": 1, "schedule": StepSchedule(6, 6)}
    times = [t / 1000 for t in SOLVERS[sampler].times(6)]
    everywhere = generate([1, 2], guidance=Guidance(3.0, "constant"), **settings)
    around = Guidance(3.0, "constant", max(times), min(times))
    assert torch.equal(everywhere, generate([1, 2], guidance=around, **settings))
    within = Guidance(3.0, "constant", 0.9, 0.3)
    latents, _, head = rows_through(monkeypatch, guidance=within, **settings)
    assert head == [4 if 0.3 <= t <= 0.9 else 2 for t in sorted(times, reverse=True)]
    assert {2, 4} == set(head)
    assert relative_error(latents, everywhere.numpy()) > 1e-2
    nowhere = Guidance(3.0, "constant", 0.0005, 0.0004)
    plain = generate([1, 2], guidance=Guidance(), **settings)
    assert relative_error(generate([1, 2], guidance=nowhere, **settings), plain.numpy()) < 1e-5


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"num_iter": 17}, "num_iter is 17"),
        ({"num_iter": 0}, "num_iter is 0"),
        ({"sampler": "Euler"}, "'Euler'"),
        ({"temperature": -1.0}, "temperature is -1"),
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
