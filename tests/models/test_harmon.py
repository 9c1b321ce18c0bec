"""Harmon against the reference outputs, and what its prompts and caches must keep apart."""

import pytest
import torch

from disa import Guidance, ImageNoise, StepSchedule, build_model
from disa.data.text import TextTokenizer
from disa.grouping import ORDERS, Grouping
from disa.models.harmon import IGNORED, Harmon
from disa.weights.verify import manifest
from tests.conftest import SMALL_MAR, ReplayedNoise, fill, load_json, load_reference, relative_error

INDEX = load_json("harmon/index.json")
SCHEDULE = StepSchedule(8, 3)  # of the recorded draws


def small_harmon(**mar):
    """The small Harmon of the reference outputs, with their weights."""
    return fill(build_model("harmon", mar={**SMALL_MAR, **mar}, llm=INDEX["llm"], vae="space_to_depth"))


@pytest.mark.parametrize("name", INDEX["samples"])
def test_generation_matches_the_reference(name):
    settings, recorded = INDEX["samples"][name], load_reference(f"harmon/sample_{name}.npz")
    traces = []
    latents = small_harmon().generate(
        input_ids=recorded["input_ids"],
        attention_mask=recorded["attention_mask"],
        image_shape=tuple(settings["image_shape"]),
        num_iter=settings["num_iter"],
        schedule=SCHEDULE,
        guidance=Guidance(settings["cfg"], settings["cfg_schedule"]),
        noise=ReplayedNoise(recorded),
        on_step=traces.append,
    )
    assert relative_error(latents / 0.2325, recorded["latents_over_scale"].numpy()) <= 1e-4
    assert len(traces) == settings["num_iter"]
    assert sum(trace.tokens for trace in traces) == settings["image_shape"][0] * settings["image_shape"][1]


def test_visual_features_match_the_reference():
    model, recorded = small_harmon(), load_reference("harmon/visual_feature.npz")
    tokens = recorded["tokens"].flatten(1, 2)
    with torch.no_grad():
        encoded = model.mar.encode(tokens, torch.arange(16).expand(2, -1), model.mar.fake_latent.expand(2, -1))
        seen = model.visual_features(recorded["tokens"].permute(0, 3, 1, 2))
    assert relative_error(encoded, recorded["encoder"].numpy()) <= 1e-5
    assert relative_error(seen, recorded["projected"].numpy()) <= 1e-5


@pytest.mark.parametrize("name", ["harmon_0.5b", "harmon_1.5b"])
def test_names_and_shapes_are_the_released_ones(name):
    with torch.device("meta"):
        model = build_model(name)
    known = manifest(name)
    parameters = {key: list(value.shape) for key, value in model.named_parameters()}
    assert parameters == known["parameters"]
    assert {key: list(value.shape) for key, value in model.state_dict().items() if key not in parameters} == known[
        "buffers"
    ]


def pad(rows):
    length = max(map(len, rows))
    return (
        torch.tensor([[*row, *[0] * (length - len(row))] for row in rows]),
        torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows]),
    )


def draw(model, prompts, seeds, **settings):
    ids, mask = pad([*prompts, *[[7, 3, 1]] * len(prompts)])
    return model.generate(
        input_ids=ids,
        attention_mask=mask,
        num_iter=4,
        schedule=SCHEDULE,
        noise=ImageNoise(seeds),
        **{"guidance": Guidance(3.0), **settings},
    )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", [(4, 6), (3, 5)])
def test_grids_of_any_shape_in_every_order(order, shape, monkeypatch):
    model, wanted = small_harmon(), []
    decode = type(model.mar).decode
    monkeypatch.setattr(type(model.mar), "decode", lambda *args: wanted.append(args[3][0]) or decode(*args))
    grouping = Grouping(order, "stages")
    draw(model, [[5, 9]], [1], image_shape=shape, grouping=grouping)
    length = shape[0] * shape[1]
    order, left = grouping.arrange(ImageNoise([1]).orders(length), shape)[0], [length, *grouping.left(shape, 4)]
    for group, before, after in zip(wanted, left[:-1], left[1:], strict=True):
        assert torch.equal(group, order[after:before].sort().values)


def test_prompts_are_read_once_with_both_branches_and_once_without(monkeypatch):
    """As guidance grows from 1 to 3, two of four AR steps are below 1.7, and take the conditional branch alone."""
    model, prompts, attended, read = small_harmon(), [[5, 9], [17, 33, 2, 8, 8]], [], []
    attend, prefill = Harmon.attend, Harmon.prefill
    monkeypatch.setattr(Harmon, "attend", lambda *args: attended.append(len(args[1])) or attend(*args))
    monkeypatch.setattr(Harmon, "prefill", lambda *args: read.append(len(args[1])) or prefill(*args))
    skipped = draw(model, prompts, [1, 2], guidance=Guidance(3.0, skip_below=1.7))
    assert (attended, read) == ([2, 2, 4, 4], [2, 4])

    class BothBranches(Guidance):
        def at(self, progress):
            scale = super().at(progress)
            return 1 + 1e-9 if scale == 1 else scale

    both = draw(model, prompts, [1, 2], guidance=BothBranches(3.0, skip_below=1.7))
    assert (attended[4:], read[2:]) == ([4, 4, 4, 4], [4])
    assert relative_error(skipped, both.numpy()) < 1e-5
    assert relative_error(skipped, draw(model, prompts, [1, 2]).numpy()) > 1e-2


def test_prompts_of_different_lengths_in_one_batch_give_what_each_gives_alone():
    model, prompts = small_harmon(), [[5, 9], [17, 33, 2, 8, 8, 41, 3], [90, 91, 92, 93]]
    together = draw(model, prompts, [1, 2, 3], image_shape=(4, 6))
    for i, prompt in enumerate(prompts):
        alone = draw(model, [prompt], [i + 1], image_shape=(4, 6))
        assert relative_error(together[i : i + 1], alone.numpy()) <= 1e-4
    assert (
        relative_error(together[:1], draw(model, [[6, 9]], [1], image_shape=(4, 6)).numpy()) > 1e-2
    )  # the prompt matters


def test_a_prompt_is_read_without_a_mask_and_its_padding_is_never_looked_at():
    model = small_harmon()
    ids, mask = pad([[5, 9, 17], [4]])
    others = torch.where(mask.bool(), ids, 99)  # other tokens as padding
    torch.manual_seed(0)
    encoded, masks = torch.randn(2, 4 + 3, 48), []
    forward = model.llm.model.forward
    model.llm.model.forward = lambda **inputs: masks.append(inputs.get("attention_mask")) or forward(**inputs)
    with torch.no_grad():
        read = [model.attend(encoded, model.prefill(one, mask)) for one in (ids, others)]
    assert masks[0] is masks[2] is None
    assert torch.equal(*read)
    later = torch.ones(7, 7).tril().bool()
    expected = torch.cat([mask.bool()[:, None].expand(-1, 7, -1), later.expand(2, -1, -1)], dim=2)
    assert torch.equal(masks[1][:, 0] == 0, expected)
    assert torch.equal(masks[1][:, 0] == -torch.inf, ~expected)
    assert masks[1].stride()[2] % 16 == 0  # or the kernel copies it


def test_flash_attention_is_told_which_tokens_are_padding():
    model = small_harmon()
    model.llm.config._attn_implementation = "flash_attention_2"
    seen = model._mask(torch.tensor([[True, True], [True, False]]), 3, torch.float32)
    assert seen.tolist() == [[True] * 5, [True, False, True, True, True]]


def test_reading_leaves_no_trace_in_the_prompts_cache():
    model = small_harmon()
    ids, mask = pad([[5, 9, 17], [4]])
    prompt, untouched = model.prefill(ids, mask), model.prefill(ids, mask)
    torch.manual_seed(0)
    first, second = torch.randn(2, 4 + 3, 48), torch.randn(2, 4 + 9, 48)
    with torch.no_grad():
        expected = model.attend(second, untouched)
        model.attend(first, prompt)
        model.attend(second, prompt)
        assert torch.equal(model.attend(second, prompt), expected)
    assert prompt.cache.get_seq_length() == 3


def test_two_generations_interleave():
    model = small_harmon()
    alone = [draw(model, [[5, 9]], [seed]) for seed in (1, 2)]
    inner = []

    def start_another(trace):
        if trace.step == 1:
            inner.append(draw(model, [[5, 9]], [2]))

    assert torch.equal(draw(model, [[5, 9]], [1], on_step=start_another), alone[0])
    assert torch.equal(inner[0], alone[1])


def training_batch(seed=0):
    """Arguments of `Harmon.forward`: two images to draw, and two to be asked about."""
    latents = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(seed))
    image_token, length = 127, 16 + SMALL_MAR["buffer_size"]
    asked = torch.tensor([[5, *[image_token] * length, 9, 17, 2], [5, *[image_token] * length, 8, 33, 2]])
    labels = torch.full_like(asked, IGNORED)
    labels[:, -2:] = asked[:, -2:]
    ids, mask = pad([[5, 9, 17], [4]])
    answering = {
        "latents": latents,
        "input_ids": asked,
        "attention_mask": torch.ones_like(asked),
        "labels": labels,
        "image_token": image_token,
    }
    return {"latents": latents, "input_ids": ids, "attention_mask": mask}, answering


def test_training_losses_reach_every_trained_parameter():
    model = small_harmon().train()
    model(*training_batch()).backward()
    missed = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    assert missed == []


def test_gradient_checkpointing_keeps_less_for_the_same_gradients():
    gradients, kept = [], []

    def keep(tensor):
        kept[-1] += tensor.numel()
        return tensor

    for recompute in (False, True):
        model = small_harmon(grad_checkpointing=recompute).train()
        model.mar.grad_checkpointing = True  # so that only the language models differ
        torch.manual_seed(0)
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(*training_batch())
        loss.backward()
        gradients.append(
            {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
        )
    assert kept[1] < kept[0] / 2
    torch.testing.assert_close(gradients[1], gradients[0])


def test_padding_does_not_change_the_losses():
    model, latents = small_harmon(), torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 16).index_fill(1, torch.arange(10), 1)
    given = {"mask": mask, "timesteps": torch.full((32,), 400), "noise": torch.ones(32, 16)}
    losses = [
        model.text_to_image_loss(latents, torch.tensor([ids]), torch.tensor([valid]), **given)
        for ids, valid in (([5, 9], [1, 1]), ([5, 9, 3, 3], [1, 1, 0, 0]), ([5, 9, 3, 3], [1, 1, 1, 1]))
    ]
    torch.testing.assert_close(losses[0], losses[1])
    assert not torch.isclose(losses[0], losses[2])


def test_gradients_into_the_visual_features_are_scaled():
    image_token, length = 127, 16 + SMALL_MAR["buffer_size"]
    asked = torch.tensor([[5, *[image_token] * length, 9, 17]])
    labels = torch.full_like(asked, IGNORED)
    labels[:, -1:] = 17
    gradients = []
    for training in (False, True):
        model = small_harmon().train(training)
        latents = torch.ones(1, 16, 4, 4)
        model.image_to_text_loss(latents, asked, torch.ones_like(asked), labels, image_token).backward()
        gradients.append(model.mar.z_proj.weight.grad)
    torch.testing.assert_close(0.1 * gradients[0], gradients[1])


def test_angles_stay_float32_in_half_types():
    model, far = small_harmon(), torch.tensor([[4000]])
    exact = model.llm.model.rotary_emb(torch.zeros(1, 1, 64), far)
    model.bfloat16()
    half = model.llm.model.rotary_emb(torch.zeros(1, 1, 64), far)
    assert model.llm.model.rotary_emb.inv_freq.dtype == torch.float32
    assert model.proj_in[0].weight.dtype == torch.bfloat16
    torch.testing.assert_close(half, exact)


def test_bfloat16_reads_what_float32_reads():
    model, generator = small_harmon(), torch.Generator().manual_seed(0)
    ids, mask, encoded = *pad([[5, 9, 17]]), torch.randn(1, 12, 48, generator=generator)
    with torch.no_grad():
        exact = model.attend(encoded, model.prefill(ids, mask))
        model.bfloat16()
        half = model.attend(encoded.bfloat16(), model.prefill(ids, mask))
    assert relative_error(half.float(), exact.numpy()) < 0.02


def test_impossible_settings_are_refused():
    model, noise = small_harmon(), ImageNoise([1])
    ids = torch.tensor([[5, 9]])
    for settings, named in (
        ({}, "either prompts or input_ids"),
        ({"prompts": ["a dog"]}, "no text tokenizer"),
        ({"input_ids": ids}, "1 rows; with guidance"),
        ({"input_ids": ids.repeat(2, 1), "image_shape": (16, 16)}, "positions, and the language model has 256"),
        ({"input_ids": ids.repeat(2, 1), "num_iter": 17}, "num_iter is 17"),
    ):
        with pytest.raises(ValueError, match=named):
            model.generate(**{"num_iter": 4, "noise": noise, **settings})
    with pytest.raises(ValueError, match="image tokens; an image takes 20"):
        model.answer(torch.zeros(1, 16, 4, 4), ids, 127)


def test_prompts_and_their_ids_give_the_same_image():
    model = build_model("harmon_fashion").eval()
    model.text = TextTokenizer.load("disa/bundled/harmon_fashion_tokenizer.json")
    settings = {"num_iter": 2, "schedule": StepSchedule(3, 2), "noise": ImageNoise([1])}
    ids, mask = model.text.text_to_image_prompts(["a bright sneaker"], guided=True)
    assert torch.equal(
        model.generate(["a bright sneaker"], **settings), model.generate(input_ids=ids, attention_mask=mask, **settings)
    )


def test_the_vae_is_a_known_one_whose_latents_fit():
    with pytest.raises(ValueError, match="vae is 'kl8'; allowed are kl16, fashion, space_to_depth"):
        build_model("harmon", mar=SMALL_MAR, llm=INDEX["llm"], vae="kl8")
    with pytest.raises(ValueError, match=r"mar\.latent_channels is 16; the latents of its VAE, fashion, have 8"):
        build_model("harmon", mar=SMALL_MAR, llm=INDEX["llm"], vae="fashion")
