"""FlowAR against the reference outputs, and what a generation promises."""

import itertools

import pytest
import torch

from disa import Guidance, ImageNoise, StepSchedule, build_model
from disa.flow import SOLVERS
from disa.models.flowar import flow_times
from disa.models.rotary import grid_rope
from disa.weights.load import load_into
from disa.weights.verify import manifest
from tests.conftest import ReplayedNoise, load_json, load_reference, relative_error, small_flowar

CASES = load_json("flowar/index.json")
TINY = {"image_size": 64, "scales": (1, 2, 4), "num_classes": 10}


@pytest.mark.parametrize("name", ["flowar_small", "flowar_large", "flowar_huge"])
def test_released_parameter_names_shapes_and_order(name):
    with torch.device("meta"):
        state = build_model(name).state_dict()
    assert [(key, list(value.shape)) for key, value in state.items()] == list(manifest(name)["parameters"].items())


def test_released_tables_are_rebuilt():
    model = small_flowar(**TINY)
    load_into(
        model,
        {
            **model.state_dict(),
            "mask": torch.full((1, 1, 9, 9), -torch.inf),
            "encoder_blocks.0.attn.rope.freqs": torch.zeros(4),
        },
        "file",
    )


@pytest.mark.parametrize(("prefix", "cross_attention"), [("self", False), ("cross", True)])
def test_flow_head(prefix, cross_attention):
    recorded, rope = load_reference("flowar/flow_head.npz"), grid_rope(8, 64)
    head = small_flowar(cross_attention=cross_attention).flownet
    with torch.no_grad():
        velocity = head.predict(recorded[f"{prefix}_x"], recorded[f"{prefix}_t"], recorded[f"{prefix}_condition"], rope)
    assert relative_error(velocity, recorded[f"{prefix}_velocity"].numpy()) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_whole_generation(case):
    recorded, settings = load_reference(f"flowar/sample_{case}.npz"), CASES[case]["sample"]
    traces = []
    latents = small_flowar(cross_attention=CASES[case]["model"]["cross"]).generate(
        recorded["labels"],
        schedule=StepSchedule(settings["flow_upper_steps"], settings["flow_lower_steps"]),
        guidance=Guidance(settings["cfg"], "linear", max_time=settings["guidance"]),
        noise=ReplayedNoise(recorded),
        on_step=traces.append,
    )
    assert relative_error(latents, recorded["latents"].numpy()) < 1e-4
    assert [trace.diffusion_steps for trace in traces] == recorded["nominal_steps"].tolist()
    assert [trace.evaluations for trace in traces] == recorded["flow_evaluations"].tolist()
    assert [trace.tokens for trace in traces] == [1, 4, 16, 64, 256]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_loss_and_gradient(checkpointing):
    recorded = load_reference("flowar/training_loss.npz")
    model = small_flowar(grad_checkpointing=checkpointing).train(checkpointing)
    noise = {kind: [recorded[f"{kind}_{i}"] for i in range(5)] for kind in ("time", "noise")}
    loss = model(recorded["latents"], recorded["labels"], noise["time"], noise["noise"])
    loss.backward()
    norm = torch.nn.utils.get_total_norm(
        [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    )
    assert loss.item() == pytest.approx(recorded["loss"].item(), rel=1e-4)
    assert norm.item() == pytest.approx(recorded["grad_norm"].item(), rel=1e-4)


def test_flow_times_are_those_of_every_recorded_count():
    assert len(flow_times(50)) == 51
    assert flow_times(50)[25] == pytest.approx(0.5)
    assert flow_times(1) == (1, 0)
    for steps in (5, 9, 15, 25, 49):
        times = flow_times(steps)
        assert times[0] == 1
        assert times[-1] == 0
        assert len(times) == steps // 2 * 2 + 1
        assert all(a > b for a, b in itertools.pairwise(times))


def generate(model, seeds, **settings):
    labels = torch.arange(len(seeds)) % 10
    settings = {
        "schedule": StepSchedule(8, 4),
        "guidance": Guidance(2.0, max_time=0.7),
        "noise": ImageNoise(seeds),
        **settings,
    }
    return model.generate(labels, **settings)


@pytest.mark.parametrize("sampler", SOLVERS)
def test_an_image_depends_on_its_seed_alone(sampler):
    model = small_flowar(**TINY)
    together = generate(model, [5, 6, 7], sampler=sampler)
    assert torch.equal(together, generate(model, [5, 6, 7], sampler=sampler))
    alone = model.generate(
        torch.tensor([2]),
        schedule=StepSchedule(8, 4),
        sampler=sampler,
        guidance=Guidance(2.0, max_time=0.7),
        noise=ImageNoise([7]),
    )
    torch.testing.assert_close(alone[0], together[2], rtol=1e-3, atol=1e-4)


def test_two_generations_can_interleave_and_leave_nothing_behind():
    model, inner = small_flowar(**TINY), []
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain = generate(model, [1, 2])
    attributes = {id(module): set(vars(module)) for module in model.modules()}
    crossed = generate(model, [1, 2], on_step=lambda trace: inner.append(generate(model, [trace.step + 10])))
    assert torch.equal(crossed, plain)
    assert len(inner) == 3
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {id(module): set(vars(module)) for module in model.modules()} == attributes


def rows_through_the_head(model, **settings):
    rows = []
    hook = model.flownet.register_forward_hook(lambda _, __, output: rows.append(output.shape[0] * output.shape[1]))
    generate(model, [1], **settings)
    hook.remove()
    return sum(rows)


def test_the_unconditional_half_is_left_out_where_guidance_is_off():
    model = small_flowar()
    times = [flow_times(count) for count in (50, 41, 32, 23, 15)]
    both = sum(2 * side**2 * (len(times[i]) - 1) for i, side in enumerate(model.scales))
    rows = rows_through_the_head(model, schedule=StepSchedule(50, 15), guidance=Guidance(2.4, max_time=0.7))
    assert both == 11428
    assert rows <= 0.89 * both
    assert rows_through_the_head(model, schedule=StepSchedule(50, 15), guidance=Guidance(1.0)) == both / 2


@pytest.mark.parametrize(("image_size", "scales"), [(512, (1, 2, 4, 8, 16, 32)), (64, (1, 3, 4)), (16, (1,))])
def test_any_grid(image_size, scales):
    model = small_flowar(image_size=image_size, scales=scales, latent_channels=8, num_classes=10)
    with torch.no_grad():
        assert generate(model, [1], schedule=StepSchedule(3, 2)).shape == (1, 8, scales[-1], scales[-1])
        assert model(torch.randn(2, 8, scales[-1], scales[-1]), torch.tensor([0, 1])).isfinite()


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"scales": (1, 2, 8)}, "scales are \\(1, 2, 8\\); they must ascend and end at"),
        ({"scales": (1, 4, 2, 16)}, "must ascend"),
        ({"width": 66}, "width is 66; it must be a multiple"),
        ({"head_width": 160}, "head_width is 160; it must be a multiple of 64"),
        ({"depth": 0}, "depth is 0; it must be at least 1"),
        ({"label_drop_prob": 2.0}, "label_drop_prob is 2.0; it must be in"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(overrides, named):
    with pytest.raises(ValueError, match=named):
        build_model("flowar", **overrides)


def test_impossible_settings_are_refused():
    model = small_flowar(**TINY)
    with pytest.raises(ValueError, match="sampler is 'DiSA'; allowed are euler"):
        generate(model, [1], sampler="DiSA")
    with pytest.raises(ValueError, match=r"labels are in 11\.\.11; this model knows 0\.\.9"):
        model.generate(torch.tensor([11]), noise=ImageNoise([1]))
    with torch.no_grad():
        model.z_proj.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        generate(model, [1])


@pytest.mark.parametrize("sampler", SOLVERS)
def test_evaluations_are_known_beforehand(sampler):
    model, traces = small_flowar(**TINY), []
    schedule = StepSchedule(9, 1)
    generate(model, [1], sampler=sampler, schedule=schedule, on_step=traces.append)
    assert model.nfe(schedule, sampler) == [trace.evaluations for trace in traces]


def test_bfloat16_stays_close():
    model = small_flowar(**TINY)
    exact = generate(model, [1, 2])
    assert (generate(model.bfloat16(), [1, 2]) - exact).norm() < 0.1 * exact.norm()
