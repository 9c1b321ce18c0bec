"""Settings of a generation under the names of the commands' flags, and ids to images."""

import dataclasses
import json
import re

import pytest
import torch

from disa import Guidance, StepSchedule
from disa.acceleration.caching import Caching
from disa.acceleration.feature_cache import Extrapolation
from disa.generation.generators import LabelGenerator, PromptGenerator, Sampling, image_seed, image_shape
from disa.grouping import Grouping
from disa.models.vae import SpaceToDepth
from disa.runtime.fingerprint import fingerprint
from tests.conftest import small_mar, small_xar

CPU = torch.device("cpu")
DIFFUSION = Sampling(64, StepSchedule(50, 5, "cosine"), "DDIM", Guidance(2.9, "constant"), 0.9, 7)
FLOW = Sampling(None, StepSchedule(25, 15, "two-stage"), "heun", Guidance(2.4, "linear", 0.7), 1.0, 0)


UNUSUAL = Guidance(2.0, "linear", 0.8, 0.125, 1.05)
GROUPED = Sampling(4, StepSchedule(), guidance=UNUSUAL, grouping=Grouping("gtr", "stages"), caching=Caching(9, 3, 4))
INTERVAL = Sampling(None, StepSchedule(), "euler", UNUSUAL, extrapolation=Extrapolation(3, 2, 2))


@pytest.mark.parametrize(
    "sampling", [DIFFUSION, FLOW, GROUPED, INTERVAL], ids=["diffusion", "flow", "grouped", "interval"]
)
def test_settings_lead_back_to_the_sampling(sampling):
    assert Sampling.from_dict(sampling.to_dict()) == sampling
    assert Sampling.from_dict(json.loads(json.dumps(sampling.to_dict()))) == sampling


def test_settings_have_the_names_and_the_order_of_the_flags():
    """The names of progress files are made from them."""
    assert list(DIFFUSION.to_dict().items()) == [
        ("num_iter", 64),
        ("diff_sampler", "DDIM"),
        ("diff_upper_steps", 50),
        ("diff_lower_steps", 5),
        ("diff_annealing_strategy", "cosine"),
        ("cfg", 2.9),
        ("cfg_schedule", "constant"),
        ("temperature", 0.9),
        ("seed", 7),
    ]
    assert [*FLOW.to_dict()][:2] == ["flow_sampler", "flow_upper_steps"]
    assert FLOW.to_dict()["guidance"] == 0.7


def test_settings_that_are_not_everywhere_are_named_where_they_are():
    own = {"guidance": 0.8, "guidance_min_time": 0.125, "skip_guidance_below": 1.05}
    own |= {"token_order": "gtr", "tokens_per_step": "stages"}
    own |= {"cache_tokens": 9, "cache_conditions": 3, "cache_first": 4}
    assert GROUPED.to_dict() == {**Sampling(4, StepSchedule(), guidance=Guidance(2.0)).to_dict(), **own}
    assert "token_order" not in INTERVAL.to_dict()
    assert {"feature_every": 3, "feature_order": 2, "feature_fresh": 2}.items() <= INTERVAL.to_dict().items()
    assert "-skip1.05-features3order2fresh2-temperature1" in INTERVAL.name()
    assert GROUPED.name() == (
        "ar4-DiSA-linear-50to5-cfg2linear-guidance0.8-from0.125-skip1.05-gtr-stages-cache9-3-4-temperature1-seed1"
    )
    assert dataclasses.replace(DIFFUSION, grouping=Grouping("halton")).name() == DIFFUSION.name().replace(
        "constant", "constant-halton-cosine"
    )
    with pytest.raises(ValueError, match="there is no setting token_order here"):
        Sampling.from_dict({**FLOW.to_dict(), "token_order": "gtr"})
    with pytest.raises(ValueError, match="there is no setting feature_every here"):
        Sampling.from_dict({**DIFFUSION.to_dict(), "feature_every": 2})


def test_a_generation_has_the_settings_of_its_sampling():
    """In seven AR steps of sixteen tokens, orders and groups differ; those of the other kind of model have none."""
    sampling = Sampling(7, StepSchedule(2, 1))
    others = [dataclasses.replace(sampling, grouping=Grouping(*names)) for names in (("gtr",), ("random", "stages"))]
    others += [dataclasses.replace(sampling, caching=Caching(9, 9, 1))]
    plain, *changed = (LabelGenerator(small_mar(), SpaceToDepth(), one, CPU)([3]) for one in (sampling, *others))
    assert all((plain - images).abs().max() > 1e-3 for images in changed)
    sampling = Sampling(None, StepSchedule(4, 4), "euler")
    others = [
        dataclasses.replace(sampling, extrapolation=Extrapolation(*numbers)) for numbers in ((2, 0), (2, 1), (2, 0, 1))
    ]
    plain, *changed = (LabelGenerator(small_xar(), SpaceToDepth(), one, CPU)([3]) for one in (sampling, *others))
    assert all((plain - images).abs().max() > 1e-2 for images in changed)


@pytest.fixture
def file(tmp_path):
    """A step schedule of three AR steps, made for the weights of `small_mar` in float32 and float16."""
    path, model = tmp_path / "schedule.json", small_mar()
    sampling = {"sampler": "DiSA", "cfg": 2.5, "guidance": 1.0, "temperature": 1.0}
    weights = {dtype: fingerprint(model, getattr(torch, dtype)) for dtype in ("float32", "float16")}
    times = [[0, 333, 666, 950], [0, 950], [0]]
    path.write_text(json.dumps({"weights": weights, "sampling": sampling, "counts": [4, 2, 1], "times": times}))
    return str(path)


def test_a_step_schedule_is_a_setting(file):
    settings = {**Sampling(3, StepSchedule(), guidance=Guidance(2.5)).to_dict(), "step_schedule": file}
    sampling = Sampling.from_dict(settings)
    assert sampling.schedule == StepSchedule.load(file)
    counted = {"diff_upper_steps": 4, "diff_lower_steps": 1, "diff_annealing_strategy": sampling.schedule.strategy}
    assert sampling.to_dict() == {**settings, **counted}
    assert Sampling.from_dict(sampling.to_dict()) == sampling
    assert sampling.name() == f"ar3-DiSA-{sampling.schedule.strategy}-4to1-cfg2.5linear-temperature1-seed1"
    assert Sampling.from_dict({name: value for name, value in settings.items() if name not in counted}) == sampling
    with pytest.raises(ValueError, match="nothing says what diff_upper_steps, diff_lower_steps"):
        Sampling.from_dict({k: v for k, v in settings.items() if k not in counted and k != "step_schedule"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cfg": 3.0}, "for cfg 2.5, not 3.0"),
        ({"guidance": 0.9}, "for guidance 1.0, not 0.9"),
        ({"temperature": 0.9}, "for temperature 1.0, not 0.9"),
        ({"diff_sampler": "DDIM"}, "for sampler DiSA, not DDIM"),
        ({"num_iter": 4}, "is for 3 AR steps, and there are 4"),
    ],
)
def test_a_step_schedule_is_refused_for_other_settings(file, change, message):
    settings = {**Sampling(3, StepSchedule(), guidance=Guidance(2.5)).to_dict(), "step_schedule": file, **change}
    with pytest.raises(ValueError, match=re.escape(message)):
        Sampling.from_dict(settings)
    forced = {**settings, "step_schedule": f"force:{file}"}
    if change.keys() & {"diff_sampler", "num_iter"}:
        with pytest.raises(ValueError, match=re.escape(message)):
            Sampling.from_dict(forced)
    else:
        assert Sampling.from_dict(forced).to_dict().items() >= {**change, "step_schedule": f"force:{file}"}.items()


def test_a_step_schedule_is_refused_for_other_weights(file):
    model, vae = small_mar(), SpaceToDepth()
    sampling = Sampling(3, StepSchedule.load(file), guidance=Guidance(2.5))
    generator = LabelGenerator(model, vae, sampling, CPU)
    assert generator.nfe_per_step == [4, 2, 1]
    images = generator([3, 14])
    own = dataclasses.replace(sampling, schedule=StepSchedule(counts=(4, 2, 1)))  # `even` times for these counts
    assert torch.equal(images, LabelGenerator(model, vae, own, CPU)([3, 14]))
    LabelGenerator(small_mar().half(), vae, sampling, CPU)
    other = small_mar(num_classes=9)
    with pytest.raises(ValueError, match="for weights"):
        LabelGenerator(other, vae, sampling, CPU)
    forced = dataclasses.replace(sampling, schedule=StepSchedule.load(f"force:{file}"))
    assert LabelGenerator(other, vae, forced, CPU).nfe == 7


def test_names_of_folders():
    assert DIFFUSION.name() == "ar64-DDIM-cosine-50to5-cfg2.9constant-temperature0.9-seed7"
    assert FLOW.name() == "heun-two-stage-25to15-cfg2.4linear-guidance0.7-temperature1-seed0"
    assert Sampling(2, StepSchedule(9, 9), "default").name() == "ar2-default-9-cfg1linear-temperature1-seed1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cfg": None}, "nothing says what cfg shall be"),
        ({"scales": 0.9}, "there is no setting scales here"),
        ({"token_order": "spiral"}, "order is 'spiral'; allowed are random, halton, gtr"),
        ({"cache_tokens": 0}, "Caching.tokens is 0"),
        ({"tokens_per_step": 3}, "tokens_per_step is 3; a value like 'cosine' is needed"),
        ({"skip_guidance_below": 0.5}, "skip_below is 0.5"),
        ({"num_iter": 3.5}, "num_iter is 3.5; a value like 1 is needed"),
        ({"seed": True}, "seed is True"),
        ({"cfg": "2.9"}, "cfg is '2.9'; a value like 1.0 is needed"),
        ({"diff_lower_steps": 51}, "upper is 50, below lower = 51"),
        ({"diff_annealing_strategy": "lineer"}, "strategy is 'lineer'"),
        ({"seed": -1}, "seed is -1; it must be in [0, 2^32)"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    settings = {**Sampling(64, StepSchedule(50, 5)).to_dict(), **change}
    with pytest.raises(ValueError, match=re.escape(message)):
        Sampling.from_dict({name: value for name, value in settings.items() if value is not None})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_iter": 0}, "num_iter is 0; at least 1 AR step is needed"),
        ({"temperature": -0.5}, "temperature is -0.5; it must be a finite number ≥ 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"seed": -1}, "seed is -1; it must be in [0, 2^32)"),
        ({"seed": 2**32}, "seed is 4294967296; it must be in [0, 2^32)"),
    ],
)
def test_settings_check_themselves_when_they_are_built(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Sampling(**{"num_iter": 4, "schedule": StepSchedule(), **change})
    Sampling(None, StepSchedule(), temperature=0.0, seed=2**32 - 1)


def test_an_image_depends_on_its_id_and_the_seed_alone():
    generator = LabelGenerator(small_mar(), SpaceToDepth(), Sampling(2, StepSchedule(2, 1)), CPU)
    whole = generator([3, 14])
    assert whole.shape == (2, 1, 16, 16)
    torch.testing.assert_close(generator([14]), whole[1:], rtol=1e-4, atol=1e-5)
    assert (whole[0] - whole[1]).abs().max() > 1e-2
    assert generator.labels([3, 14, 20]).tolist() == [3, 4, 0]
    assert generator.clock.seconds.keys() == {"generation", "decoding"}
    reseeded = LabelGenerator(generator.model, generator.vae, Sampling(2, StepSchedule(2, 1), seed=2), CPU)
    assert (reseeded([3]) - whole[:1]).abs().max() > 1e-2


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_generating_and_decoding_are_under_autocast_where_it_is_asked_for(dtype):
    seen = []

    class Decoder(SpaceToDepth):
        def decode(self, latents):
            seen.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
            return super().decode(latents)

    model = small_mar()
    model.z_proj.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    images = LabelGenerator(model, Decoder(), Sampling(1, StepSchedule(1, 1)), CPU, dtype)([0])
    assert set(seen) == {dtype or torch.float32}
    assert images.dtype == torch.float32  # the weights'
    assert not torch.is_autocast_enabled("cpu")


def test_a_block_that_autocast_makes_infinite_is_made_again_without_it():
    seen = []

    class Broken(SpaceToDepth):
        def decode(self, latents):
            seen.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
            return super().decode(latents) * (1 if seen[-1] == torch.float32 else float("inf"))

    generator = LabelGenerator(small_mar(), Broken(), Sampling(1, StepSchedule(1, 1)), CPU, torch.bfloat16)
    plain = LabelGenerator(generator.model, SpaceToDepth(), generator.sampling, CPU)
    torch.testing.assert_close(generator([0, 1]), plain([0, 1]), rtol=1e-4, atol=1e-5)
    assert seen == [torch.bfloat16, torch.float32]
    assert generator.retried == {"float32": 2}


def test_evaluations_at_each_ar_step():
    mar = LabelGenerator(small_mar(), SpaceToDepth(), Sampling(4, StepSchedule(8, 2)), CPU)
    assert mar.nfe_per_step == mar.model.nfe(StepSchedule(8, 2), "DiSA", 4)
    assert len(mar.nfe_per_step) == 4
    assert mar.nfe == sum(mar.nfe_per_step)
    xar = LabelGenerator(small_xar(), SpaceToDepth(), Sampling(None, StepSchedule(8, 2), "euler"), CPU)
    assert xar.nfe_per_step == [8, 6, 4, 2]


def test_pixels_that_are_not_finite_are_refused():
    class Broken(SpaceToDepth):
        def decode(self, latents):
            return super().decode(latents) * float("nan")

    generator = LabelGenerator(small_mar(), Broken(), Sampling(1, StepSchedule(1, 1)), CPU)
    with pytest.raises(FloatingPointError, match="NaN or infinite pixels"):
        generator([0])


def test_prompts_need_a_text_tokenizer():
    model = small_mar()
    model.vae, model.text, model.llm = SpaceToDepth(), None, torch.nn.Module()
    model.llm.config = type("Config", (), {"max_position_embeddings": 99})
    model.image_tokens = lambda shape: shape[0] * shape[1]
    with pytest.raises(ValueError, match=r"the model has no text tokenizer; attach one \(model.text\)"):
        PromptGenerator(model, ["a bag"], Sampling(2, StepSchedule(2, 1)), CPU, image_shape=(2, 2))


def test_seeds_differ_between_images_and_runs():
    seeds = {image_seed(seed, image_id) for seed in range(50) for image_id in range(50)}
    assert len(seeds) == 2500
    assert image_seed(1, 2) == 2**32 + 2
    with pytest.raises(ValueError, match="seed is -1"):
        image_seed(-1, 0)
    with pytest.raises(ValueError, match="the image id is 4294967296"):
        image_seed(0, 2**32)


def test_shapes_of_images_in_tokens():
    assert image_shape(512, 16) == (32, 32)
    assert image_shape("64x96", 16) == (4, 6)
    for wrong in ("100", "64x", "0", "64x96x32", "-16"):
        with pytest.raises(ValueError, match=f"image_size is {wrong}; a multiple of 16 is needed, .* like 64x96"):
            image_shape(wrong, 16)


def test_a_block_with_nan_is_made_again_in_higher_precision(capsys):
    """Below float32 this model overflows as float16 does; in bfloat16 it still does where `hard` says so."""
    model = small_mar()

    class Overflows(SpaceToDepth):
        hard = False

        def decode(self, latents):
            broken = latents.dtype == torch.float16 or (self.hard and latents.dtype == torch.bfloat16)
            return super().decode(latents) * (float("nan") if broken else 1)

    generator = LabelGenerator(model.half(), Overflows(), Sampling(1, StepSchedule(1, 1)), CPU)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    assert generator([0, 1]).dtype == torch.float16
    assert generator.retried == {"bfloat16": 2}
    assert "NaN or infinity in images 0 to 1; they are made again in bfloat16" in capsys.readouterr().err
    generator.vae.hard = True
    assert generator([5]).isfinite().all()
    assert generator.retried == {"bfloat16": 2, "float32": 1}
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_a_batch_that_does_not_fit_is_halved_and_images_stay_the_same(capsys):
    sizes = []

    class Small(LabelGenerator):
        def arguments(self, ids):
            sizes.append(len(ids))
            if len(ids) > 2:
                raise torch.OutOfMemoryError("full")
            return super().arguments(ids)

    sampling = Sampling(2, StepSchedule(2, 1))
    whole = LabelGenerator(small_mar(), SpaceToDepth(), sampling, CPU)
    halved = Small(whole.model, whole.vae, sampling, CPU)
    torch.testing.assert_close(halved([*range(7)]), whole([*range(7)]), rtol=1e-4, atol=1e-5)
    assert sizes == [7, 4, 2, 2, 2, 1]
    assert "4 images do not fit in memory; from now on 2 at a time" in capsys.readouterr().err
    halved([*range(3)])
    assert sizes[6:] == [2, 1]


def test_a_single_image_that_does_not_fit_is_an_error():
    class Full(SpaceToDepth):
        def decode(self, latents):
            del latents
            raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        LabelGenerator(small_mar(), Full(), Sampling(1, StepSchedule(1, 1)), CPU)([0, 1])
