"""A call of a pipeline: images, their settings, AR steps, editing, and what is refused."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from disa import Guidance, ImageNoise, StepSchedule
from disa.acceleration.feature_cache import Extrapolation
from disa.data.transforms import to_signed, to_uint8
from disa.grouping import Grouping
from disa.models.vae import AutoencoderKL
from disa.pipeline import OUTPUT_TYPES
from disa.tables.recipes import bundled_settings
from tests.helpers.pipelines import CLASSES, LOW, NAMES, asked, call, load, same


@pytest.mark.parametrize("name", NAMES)
def test_a_call_gives_pictures_that_are_what_their_seeds_say(name):
    out = call(name, 9, 8, seeds=[1, 2])
    assert [(one.mode, one.size) for one in out.images] == [("L", (32, 32))] * 2
    assert out.seeds == [1, 2]
    assert out.seconds > 0
    assert same(call(name, 9, 8, seeds=[1, 2]), out)
    other = call(name, 9, 8, seeds=[1, 3]).images
    assert other[1].tobytes() != out.images[1].tobytes()
    assert np.abs(np.asarray(other[0], float) - np.asarray(out.images[0], float)).max() <= 1


@pytest.mark.parametrize("name", CLASSES)
def test_a_call_without_settings_is_the_models_recipe_with_disa(name):
    pipe, sampling = load(name), bundled_settings(name)["disa"]
    model = pipe.model
    own = {"guidance": sampling.guidance, "temperature": sampling.temperature, **sampling.steps}
    latents = model.generate(torch.tensor([9]), noise=ImageNoise([7]), **own)
    ours = pipe(labels=["ankle boot"], seeds=[7], output_type="latent")
    assert torch.allclose(ours.images, latents, atol=1e-3)
    assert ours.nfe == sum(model.nfe(*sampling.steps.values()))
    assert pipe.sampling == sampling


def test_harmon_draws_by_its_recipe():
    assert load("harmon_fashion").sampling == bundled_settings("harmon_fashion")["disa"]


def test_names_and_numbers_of_classes_are_the_same():
    by_number, by_name = (load("mar_fashion")(labels=labels, seeds=[1, 2], num_iter=2, schedule=LOW) for labels in (
        torch.tensor([9, 8]), ["Ankle Boot", "bag"]))  # fmt: skip
    assert same(by_number, by_name)


def test_one_label_takes_any_number_of_images_whose_seeds_are_told():
    torch.manual_seed(3)
    out = call("flowar_fashion", 8, num_images=3)
    assert len(out.images) == len(set(out.seeds)) == 3
    assert same(call("flowar_fashion", 8, seeds=out.seeds), out)
    torch.manual_seed(3)
    assert call("flowar_fashion", 8, num_images=3).seeds == out.seeds
    assert len(call("flowar_fashion", 8, 9).seeds) == 2


def test_output_types_hold_the_same_image():
    latent, tensor, pil = (call("xar_fashion", 8, seeds=[1], output_type=kind).images for kind in OUTPUT_TYPES[::-1])
    assert torch.equal(load("xar_fashion").vae.decode(latent).detach(), tensor)
    assert np.array_equal(to_uint8(tensor)[0, 0].numpy(), np.asarray(pil[0]))


def test_settings_reach_the_model():
    plain = call("mar_fashion", 9, seeds=[1])
    model = load("mar_fashion").model
    assert plain.nfe == sum(model.nfe(LOW, "DiSA", 4))
    scale = load("mar_fashion").sampling.guidance.scale
    assert same(call("mar_fashion", 9, seeds=[1], guidance=scale), plain)
    assert same(call("mar_fashion", 9, seeds=[1], guidance=Guidance(scale)), plain)
    changed = (
        {"guidance": 1.0},
        {"num_iter": 5},
        {"temperature": 0.5},
        {"sampler": "DDIM"},
        {"grouping": Grouping("halton")},
        {"schedule": StepSchedule(5, 2)},
    )
    for settings in changed:
        assert not same(call("mar_fashion", 9, seeds=[1], **settings), plain), settings
    extrapolated = call("flowar_fashion", 9, seeds=[1], schedule=StepSchedule(8, 8), extrapolation=Extrapolation(4))
    assert not same(extrapolated, call("flowar_fashion", 9, seeds=[1], schedule=StepSchedule(8, 8)))
    assert not same(call("harmon_fashion", 9, seeds=[1], negative_prompt="a bag"), call("harmon_fashion", 9, seeds=[1]))
    assert load("mar_fashion").sampling.num_iter == 16  # a call changes nothing


def test_harmon_draws_in_other_sizes():
    assert call("harmon_fashion", 8, seeds=[1], image_size="16x24").images[0].size == (24, 16)


def test_words_that_the_small_harmon_has_not_learned_are_told():
    with pytest.warns(UserWarning, match="harmon_fashion: the model has learned no red, dog; it knows") as told:
        call("harmon_fashion", 8, prompts=["a red dog"], num_images=1)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call("harmon_fashion", 8, seeds=[1])


def test_large_images_are_decoded_in_tiles():
    pipe = dataclasses.replace(load("harmon_fashion"), vae=AutoencoderKL(widths=(8,) * 5).eval())
    latents = torch.randn(1, 16, 8, 12)
    with torch.no_grad():
        whole, seen = pipe.vae.decode(latents), []
        pipe.vae.decoder.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape[2:])))
        pipe.enable_tiling(64)
        assert pipe.vae.decode(latents).shape == whole.shape
        assert set(seen) == {(4, 4)}
        pipe.enable_tiling(None)
        assert torch.equal(pipe.vae.decode(latents), whole)
    for side in (16, 0, -64, 64.0, True):
        with pytest.raises(ValueError, match=f"side is {side}; a tile has at least 32 pixels"):
            pipe.enable_tiling(side)
    load("harmon_fashion").enable_tiling()  # of `SpaceToDepth`, nothing to do


def test_batches_change_no_image(monkeypatch):
    whole = call("xar_fashion", 8, 9, 8, seeds=[1, 2, 3], output_type="tensor")
    sizes = []
    generate = load("xar_fashion").model.generate

    def counted(labels, **settings):
        sizes.append(len(labels))
        return generate(labels, **settings)

    monkeypatch.setattr(load("xar_fashion").model, "generate", counted)
    parts = call("xar_fashion", 8, 9, 8, seeds=[1, 2, 3], output_type="tensor", batch_size=2)
    assert sizes == [2, 1]
    assert torch.allclose(parts.images, whole.images, atol=1e-4)


# ------------------------------------------------------------------------------------------------------- its AR steps


@pytest.mark.parametrize("name", NAMES)
def test_each_step_shows_the_latents_so_far_and_where_they_are(name):
    steps = []

    def keep(step):
        steps.append((step, step.latents(), step.preview()))

    out = call(name, 8, 9, seeds=[1, 2], output_type="latent", callback_on_step_end=keep)
    assert [step.step for step, *_ in steps] == list(range(4))
    assert sum(step.evaluations for step, *_ in steps) == out.nfe
    assert torch.equal(steps[-1][1], out.images)
    shown = torch.zeros(2, 64, dtype=torch.bool)
    for step, latents, preview in steps:
        assert step.seeds == [1, 2]
        assert [one.size for one in preview] == [(32, 32)] * 2
        if name == "flowar_fashion":
            assert step.positions is None
            continue
        shown.scatter_(1, step.positions, True)
        assert torch.equal(latents.flatten(2).abs().sum(1) > 0, shown)
        places = shown[:, None].expand(-1, latents.shape[1], -1)
        assert torch.equal(latents.flatten(2)[places], out.images.flatten(2)[places])
    assert shown.all() or name == "flowar_fashion"


def test_previews_of_flowar_become_finer():
    latents = []
    call("flowar_fashion", 8, seeds=[1], callback_on_step_end=lambda step: latents.append(step.latents()))
    for one, side in zip(latents, (1, 2, 4, 8), strict=True):
        blocks = torch.nn.functional.interpolate(one[..., :: 8 // side, :: 8 // side], (8, 8))
        assert torch.equal(one, blocks)


@pytest.mark.parametrize("name", NAMES)
def test_false_stops_and_gives_what_is_there(name):
    latents = []

    def second(step):
        latents.append(step.latents())
        return step.step < 1

    out = call(name, 8, 9, 8, seeds=[1, 2, 3], output_type="latent", batch_size=2, callback_on_step_end=second)
    assert len(latents) == 2
    assert out.seeds == [1, 2]
    assert torch.equal(out.images, latents[1])
    assert 0 < out.nfe < call(name, 8, seeds=[1]).nfe


def test_only_false_stops():
    whole = call("xar_fashion", 8, seeds=[1])
    for nothing in (None, 0, True):
        assert same(call("xar_fashion", 8, seeds=[1], callback_on_step_end=lambda _, nothing=nothing: nothing), whole)


def test_halved_blocks_stop_together(monkeypatch):
    model, seen = load("xar_fashion").model, []
    generate = model.generate

    def small(labels, **settings):
        if len(labels) > 1:
            raise torch.OutOfMemoryError
        return generate(labels, **settings)

    monkeypatch.setattr(model, "generate", small)
    out = call("xar_fashion", 8, 9, seeds=[1, 2], callback_on_step_end=lambda step: bool(seen.append(step.step)))
    assert seen == [0]
    assert len(out.images) == 2


# ------------------------------------------------------------------------------------------------------------ editing


LOST = 5  # of 255, what the VAE changes at the most, on average


def half():
    """White on the right."""
    mask = np.zeros((32, 32), np.uint8)
    mask[:, 17:] = 1
    return Image.fromarray(mask)


@pytest.mark.parametrize("name", ["mar_fashion", "harmon_fashion"])
def test_editing_keeps_what_the_mask_leaves_and_draws_the_rest(name):
    pipe, start = load(name), call(name, 9, seeds=[1]).images[0]
    settings = {**asked(name, 8), "num_iter": 4, "schedule": LOW}
    latents = pipe.edit(start, half(), **settings, seeds=[3, 4], output_type="latent").images
    with torch.no_grad():
        before = pipe.vae.encode(to_signed(pil_to_tensor(start))[None])
    for one in latents:
        assert torch.allclose(one[..., :4], before[0, ..., :4], atol=1e-6)
        assert (one[..., 4:] - before[0, ..., 4:]).abs().mean() > 0.1
    assert not torch.equal(*latents)
    out = pipe.edit(start, half(), **settings, seeds=[3, 4])
    with torch.no_grad():
        decoded = to_uint8(pipe.vae.decode(latents))
    assert [np.asarray(one).tobytes() for one in out.images] == [one.numpy().tobytes() for one in decoded]
    for one in out.images:
        change = np.abs(np.asarray(one, float) - np.asarray(start, float))
        assert change[:, :12].mean() <= LOST < 10 < change[:, 16:].mean()
    assert out.images[0].tobytes() != out.images[1].tobytes()
    steps = []
    pipe.edit(start, half(), **asked(name, 8), seeds=[3], num_iter=4, schedule=LOW, callback_on_step_end=steps.append)
    places = torch.cat([step.positions[0] for step in steps])
    assert sorted(places.tolist()) == [i for i in range(64) if i % 8 >= 4]  # 17 lies within the tokens from 16 on


def test_edits_look_at_what_is_known():
    """With the label of neither half, the new one depends on the old one."""
    pipe, images = load("mar_fashion"), load("mar_fashion")(labels=["bag", "trouser"], seeds=[1, 1]).images
    black = Image.new("L", (32, 32))
    right = [
        pipe.edit(one, half(), labels=["bag"], seeds=[5], guidance=1.0, num_iter=8).images[0].crop((16, 0, 32, 32))
        for one in (*images, black)
    ]
    assert len({one.tobytes() for one in right}) == 3


def test_there_are_no_more_ar_steps_than_tokens_to_draw():
    mask = Image.new("L", (32, 32))
    mask.putpixel((5, 5), 255)
    steps = []
    pipe = load("mar_fashion")
    pipe.edit(mask, mask, labels=[8], seeds=[1], schedule=LOW, callback_on_step_end=steps.append)
    assert [step.positions.tolist() for step in steps] == [[[9]]]


def test_outpainting_with_harmon_takes_other_sizes():
    mask = Image.new("L", (40, 32), 255)
    mask.paste(0, (0, 0, 32, 32))
    start = Image.new("L", (40, 32))
    start.paste(call("harmon_fashion", 8, seeds=[1]).images[0])
    out = load("harmon_fashion").edit(start, mask, prompts=["a bag"], seeds=[1], num_iter=4, schedule=LOW).images[0]
    assert out.size == (40, 32)
    change = np.abs(np.asarray(out, float) - np.asarray(start, float))
    assert change[:, :28].mean() <= LOST  # the VAE sees beyond the mask


@pytest.mark.parametrize(
    ("name", "image", "mask", "sentence"),
    [
        ("flowar_fashion", Image.new("L", (32, 32)), half(), "only MAR and Harmon can edit"),
        ("mar_fashion", Image.new("L", (40, 32)), Image.new("L", (40, 32), 255), "makes images of 32 pixels"),
        ("mar_fashion", Image.new("L", (32, 32)), Image.new("L", (16, 32)), "must be of one size"),
        ("mar_fashion", Image.new("L", (32, 32)), Image.new("L", (32, 32)), "the mask is black everywhere"),
        ("mar_fashion", "bag.png", half(), "image is str; a PIL image is needed"),
    ],
)
def test_an_impossible_edit_is_refused(name, image, mask, sentence):
    with pytest.raises(ValueError, match=sentence):
        load(name).edit(image, mask, labels=[1], seeds=[1])


# ----------------------------------------------------------------------------------------------------- wrong arguments


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"labels": "bag"}, r"labels is 'bag'; give a list, labels=\['bag'\]"),
        ({"labels": 8}, r"labels is 8; give a list, labels=\[8\]"),
        ({"labels": []}, "labels is empty"),
        ({}, r"mar_fashion takes labels, .*give labels=\[…\]"),
        ({"prompts": ["a bag"]}, "mar_fashion takes labels"),
        ({"labels": [1], "prompts": ["a bag"]}, "mar_fashion takes labels"),
        ({"labels": ["bagg"]}, r"no class 'bagg'; its classes are 0 to 9; did you mean bag\?"),
        ({"labels": ["zebra"]}, "no class 'zebra'; its classes are 0 to 9$"),
        ({"labels": [10]}, "a label is 10; mar_fashion knows 0 to 9"),
        ({"labels": [-1]}, "a label is -1"),
        ({"labels": [1.5]}, r"a label is 1\.5"),
        ({"labels": [True]}, "a label is True"),
        ({"labels": [1, 2], "seeds": [1]}, "the number of seeds is 1, and 2 labels or prompts are given"),
        ({"labels": [1, 2], "seeds": [1, 2, 3]}, "the number of seeds is 3, and 2 labels"),
        ({"labels": [1, 2], "num_images": 3}, "num_images is 3, and 2 labels"),
        ({"labels": [1], "seeds": [1], "num_images": 1}, "both seeds and num_images"),
        ({"labels": [1], "seeds": 1}, r"seeds is 1; give a list, seeds=\[1\]"),
        ({"labels": [1], "seeds": "12"}, "seeds is '12'; give a list"),
        ({"labels": [1], "seeds": []}, "the number of seeds is 0"),
        ({"labels": [1], "seeds": [-1]}, "a seed is -1"),
        ({"labels": [1], "seeds": ["1"]}, "a seed is '1'"),
        ({"labels": [1], "num_images": 0}, "num_images is 0"),
        ({"labels": [1], "num_images": 2.0}, r"num_images is 2\.0"),
        ({"labels": [1], "guidance": "high"}, "guidance is 'high'; needed is Guidance or int or float"),
        ({"labels": [1], "guidance": -1.0}, r"Guidance\.scale is -1\.0"),
        ({"labels": [1], "guidance": True}, "guidance is True"),
        ({"labels": [1], "num_iter": 0}, "num_iter is 0"),
        ({"labels": [1], "num_iter": 65}, "num_iter is 65; an image has 64 tokens"),
        ({"labels": [1], "temperature": -1.0}, "temperature is -1"),
        ({"labels": [1], "sampler": "euler"}, "euler"),
        ({"labels": [1], "schedule": "nowhere.json"}, "there is no step schedule nowhere.json"),
        ({"labels": [1], "schedule": 5}, "schedule is 5; needed is StepSchedule or str"),
        ({"labels": [1], "guidence": 2.0}, r"no setting guidence; there are .*; did you mean guidance\?"),
        ({"labels": [1], "extrapolation": Extrapolation(2)}, "no setting extrapolation"),
        ({"labels": [1], "output_type": "np"}, "output_type is 'np'; allowed are pil, tensor, latent"),
        ({"labels": [1], "batch_size": 0}, "batch_size is 0"),
        ({"labels": [1], "image_size": 64}, "image_size is 64; mar_fashion makes images of 32 pixels per side"),
    ],
)
def test_a_wrong_argument_is_one_sentence(arguments, sentence, monkeypatch):
    monkeypatch.setattr(load("mar_fashion").model, "generate", None)  # before any work
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        load("mar_fashion")(**arguments)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"prompts": "a bag"}, r"prompts is 'a bag'; give a list, prompts=\['a bag'\]"),
        ({"prompts": [8]}, r"prompts are \[8\]; texts are needed"),
        ({"prompts": [" "]}, "a prompt is empty"),
        ({"labels": [8]}, "harmon_fashion takes prompts"),
        ({"prompts": ["a bag"], "image_size": 30}, "image_size is 30; a multiple of 4"),
        ({"prompts": ["a bag"], "num_iter": 65}, "num_iter is 65"),
    ],
)
def test_a_wrong_argument_of_harmon_is_one_sentence(arguments, sentence, monkeypatch):
    monkeypatch.setattr(load("harmon_fashion").model, "generate", None)
    with pytest.raises(ValueError, match=sentence):
        load("harmon_fashion")(**arguments)


def test_flow_models_take_no_number_of_ar_steps():
    with pytest.raises(ValueError, match="xar_fashion has no setting num_iter"):
        load("xar_fashion")(labels=[1], num_iter=8)


def test_an_output_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        call("xar_fashion", 8, seeds=[1]).seeds = []
