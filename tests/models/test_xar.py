"""xAR against the reference outputs, and what a generation promises."""

import pytest
import torch

from disa import Guidance, ImageNoise, StepSchedule, build_model
from disa.flow import SOLVERS
from disa.weights.load import load_into
from disa.weights.verify import manifest
from tests.conftest import ReplayedNoise, load_json, load_reference, relative_error, small_xar

CASES = load_json("xar/index.json")
TINY = {"image_size": 64, "num_classes": 10}


@pytest.mark.parametrize("name", ["xar_base", "xar_large", "xar_huge"])
def test_released_parameter_names_shapes_and_order(name):
    with torch.device("meta"):
        state = build_model(name).state_dict()
    assert [(key, list(value.shape)) for key, value in state.items()] == list(manifest(name)["parameters"].items())


def test_released_tables_are_rebuilt():
    model = small_xar(**TINY)
    tables = {f"decoder_blocks.1.attn.rope.{name}": torch.zeros(2) for name in ("freqs", "freqs_cos", "freqs_sin")}
    load_into(model, {**model.state_dict(), **tables, "mask": torch.zeros(1, 1, 16, 16)}, "file")


@pytest.mark.parametrize("case", CASES)
def test_whole_generation(case):
    recorded, settings = load_reference(f"xar/sample_{case}.npz"), CASES[case]
    traces = []
    latents = small_xar().generate(
        recorded["labels"],
        schedule=StepSchedule(settings["flow_upper_steps"], settings["flow_lower_steps"]),
        guidance=Guidance(settings["cfg"], "linear"),
        noise=ReplayedNoise(recorded),
        on_step=traces.append,
    )
    assert relative_error(latents, recorded["latents"].numpy()) < 1e-4
    assert [trace.diffusion_steps for trace in traces] == recorded["nominal_steps"].tolist()
    assert [trace.evaluations for trace in traces] == recorded["flow_evaluations"].tolist()


def test_training_loss_and_gradient():
    recorded = load_reference("xar/training_loss.npz")
    model = small_xar()
    loss = model(recorded["latents"], recorded["labels"], recorded["time"].view(4, 2), recorded["noise"])
    loss.backward()
    norm = torch.nn.utils.get_total_norm(
        [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    )
    assert loss.item() == pytest.approx(recorded["loss"].item(), rel=1e-4)
    assert norm.item() == pytest.approx(recorded["grad_norm"].item(), rel=1e-4)


@pytest.mark.parametrize("cells_per_side", [1, 2, 4, 8, 16])
def test_cells_and_back(cells_per_side):
    model = small_xar(cells_per_side=cells_per_side)
    grid = torch.arange(2 * 3 * 256.0).view(2, 3, 16, 16)
    cells = model.to_cells(grid)
    side = 16 // cells_per_side
    assert cells.shape == (2, cells_per_side**2, side**2, 3)
    assert torch.equal(cells[0, 0, :, 0].view(side, side), grid[0, 0, :side, :side])  # the first cell, row by row
    assert torch.equal(model.from_cells(cells), grid)


def generate(model, seeds, **settings):
    labels = torch.arange(len(seeds)) % 10
    settings = {"schedule": StepSchedule(6, 3), "guidance": Guidance(2.0), "noise": ImageNoise(seeds), **settings}
    return model.generate(labels, **settings)


@pytest.mark.parametrize("sampler", SOLVERS)
def test_an_image_depends_on_its_seed_alone(sampler):
    model = small_xar(**TINY)
    together = generate(model, [5, 6, 7], sampler=sampler)
    assert torch.equal(together, generate(model, [5, 6, 7], sampler=sampler))
    alone = model.generate(
        torch.tensor([2]), schedule=StepSchedule(6, 3), sampler=sampler, guidance=Guidance(2.0), noise=ImageNoise([7])
    )
    torch.testing.assert_close(alone[0], together[2], rtol=1e-3, atol=1e-4)


def test_two_generations_can_interleave_and_leave_nothing_behind():
    model, inner = small_xar(**TINY), []
    plain = generate(model, [1, 2])
    attributes = {id(module): set(vars(module)) for module in model.modules()}
    crossed = generate(model, [1, 2], on_step=lambda trace: inner.append(generate(model, [trace.step + 10])))
    assert torch.equal(crossed, plain)
    assert len(inner) == 4
    assert {id(module): set(vars(module)) for module in model.modules()} == attributes


def test_the_unconditional_half_is_left_out_where_guidance_is_off():
    model, rows = small_xar(), []
    model.pred.register_forward_hook(lambda _, __, output: rows.append(output.shape[0] * output.shape[1]))
    generate(model, [1], schedule=StepSchedule(50, 15), guidance=Guidance(2.7))
    assert sum(rows) <= 0.82 * 16896
    assert sum(rows) == 50 * 64 + 2 * (38 + 26 + 15) * 64 + 2 * 3 * 64  # finished cells go through once more


@pytest.mark.parametrize(("image_size", "cells_per_side"), [(256, 1), (256, 4), (256, 8), (256, 16), (512, 2), (64, 4)])
def test_any_grid(image_size, cells_per_side):
    model = small_xar(image_size=image_size, cells_per_side=cells_per_side, latent_channels=8, num_classes=10, depth=1)
    side, traces = image_size // 16, []
    assert generate(model, [1], schedule=StepSchedule(2, 1), on_step=traces.append).shape == (1, 8, side, side)
    assert [trace.tokens for trace in traces] == [(side // cells_per_side) ** 2] * cells_per_side**2
    with torch.no_grad():
        assert model(torch.randn(2, 8, side, side), torch.tensor([0, 1])).isfinite()


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"cells_per_side": 3}, "cells_per_side is 3; it must divide"),
        ({"width": 66}, "width is 66; it must be a multiple"),
        ({"num_heads": 0}, "num_heads is 0; it must be at least 1"),
        ({"attn_dropout": -1.0}, "attn_dropout is -1.0; it must be in"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(overrides, named):
    with pytest.raises(ValueError, match=named):
        build_model("xar", **overrides)


def test_impossible_settings_are_refused():
    model = small_xar(**TINY)
    with pytest.raises(ValueError, match="sampler is 'DDIM'; allowed are euler"):
        generate(model, [1], sampler="DDIM")
    with pytest.raises(ValueError, match=r"labels are in -1\.\.-1; this model knows 0\.\.9"):
        model.generate(torch.tensor([-1]), noise=ImageNoise([1]))
    with torch.no_grad():
        model.pred.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        generate(model, [1])


@pytest.mark.parametrize("sampler", SOLVERS)
def test_evaluations_are_known_beforehand(sampler):
    model, traces = small_xar(**TINY), []
    schedule = StepSchedule(5, 1)
    generate(model, [1], sampler=sampler, schedule=schedule, on_step=traces.append)
    assert model.nfe(schedule, sampler) == [trace.evaluations for trace in traces]


def test_bfloat16_stays_close():
    model = small_xar(**TINY)
    exact = generate(model, [1, 2])
    assert (generate(model.bfloat16(), [1, 2]) - exact).norm() < 0.1 * exact.norm()
