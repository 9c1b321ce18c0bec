"""Caches of backbones: exact where every pass is full or nothing changed, fewer rows elsewhere, the images' own."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from disa import Guidance, ImageNoise, StepSchedule
from disa.acceleration import Captured, compile_blocks
from disa.acceleration.caching import BackboneCache, Caching, Slots
from disa.acceleration.capture import EagerGraph
from disa.acceleration.compile import lacking
from disa.grouping import Grouping
from disa.models.layers import Block
from tests.conftest import relative_error, small_mar
from tests.models.test_harmon import small_harmon

MODELS = {"mar": small_mar, "harmon": small_harmon}
BOTH = Caching(3, 3, 2)


def generate(name, seeds=(1, 2), model=None, **settings):
    model = model or MODELS[name]()
    settings = {"num_iter": 8, "schedule": StepSchedule(3, 2), "guidance": Guidance(3.0), **settings}
    if name == "mar":
        return model.generate(torch.tensor(seeds) % 10, noise=ImageNoise(seeds), **settings)
    ids = torch.tensor([[5, 9, 2 + seed] for seed in seeds] + [[7, 3, 1]] * len(seeds) * settings["guidance"].active)
    return model.generate(input_ids=ids, noise=ImageNoise(seeds), **settings)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("caching", [Caching(1, 1, 1), Caching(9, 9, 8), Caching(1, 9, 8), Caching(9, 1, 8)])
def test_it_is_exact_where_every_pass_is_full(name, caching):
    assert relative_error(generate(name, caching=caching), generate(name).numpy()) <= 1e-5


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("caching", [Caching(2, 1, 2), Caching(1, 2, 2)])
def test_each_cache_alone_changes_images_a_little(name, caching):
    """By less than what another seed does."""
    plain, cached = generate(name), generate(name, caching=caching)
    assert 1e-4 < relative_error(cached, plain.numpy()) < 0.5 * relative_error(plain.flip(0), plain.numpy())


def rows_of(monkeypatch, name, **settings):
    """Images and rows that MAR's blocks computed at each AR step: those of the encoder's first, and the decoder's."""
    seen, forward = {"encoder": [], "decoder": []}, Block.forward
    model = MODELS[name]()
    mar = model if name == "mar" else model.mar
    firsts = {mar.encoder_blocks[0]: "encoder", mar.decoder_blocks[0]: "decoder"}

    def watch(block, x, *others):
        if block in firsts:
            seen[firsts[block]].append(tuple(x.shape[:2]))
        return forward(block, x, *others)

    monkeypatch.setattr(Block, "forward", watch)
    generate(name, model=model, **settings)
    return seen["encoder"], seen["decoder"]


@pytest.mark.parametrize("name", MODELS)
def test_what_each_ar_step_computes(name, monkeypatch):
    """Cosine groups of 16 tokens in 8 AR steps are of 1, 1, 1, 2, 3, 2, 3 and 3; 4 rows are the buffer's."""
    encoder, decoder = rows_of(monkeypatch, name, caching=BOTH)
    # Full passes are the first two, and every third one after the second.
    assert encoder == [(4, 4), (4, 5), (2, 4 + 1), (2, 4 + 1), (4, 9), (2, 4 + 3), (2, 4 + 2), (4, 17)]
    few = [(2, 4 + known + wanted) for known, wanted in ((1, 1), (1, 2), (3, 2), (2, 3))]
    assert decoder == [(4, 20), (4, 20), *few[:2], (4, 20), *few[2:], (4, 20)]


def test_of_unchanged_inputs_a_cached_pass_is_the_full_one():
    """The decoder's rows once more; tokens that are new to an encoder of one layer, and to the language model."""
    model, generator = small_mar(depth=1), torch.Generator().manual_seed(0)
    tokens, order = (
        torch.randn(2, 16, 16, generator=generator),
        torch.stack([torch.randperm(16, generator=generator)] * 2),
    )
    known, wanted, of_class = order[:, :6], order[:, 6:9], model.class_emb(torch.tensor([1, 2]))
    cache = BackboneCache(Caching(2), 4)
    with torch.no_grad():
        encoded = model.encode(tokens, known, of_class)
        model.encode(tokens, known[:, :4], of_class, None, cache)
        expected = model.decode(encoded, known, wanted, None, cache)
        cache.full = False
        new = model.encode(tokens, known[:, 4:], of_class, None, cache)
        again = model.decode(encoded[:, [0, 1, 2, 3, 7, 8]], known[:, 3:5], wanted, None, cache)
    assert relative_error(new, encoded[:, [0, 1, 2, 3, 8, 9]].numpy()) < 1e-5
    assert relative_error(again, expected.numpy()) < 1e-5


def test_the_language_model_goes_on_where_it_was():
    model, encoded = small_harmon(), torch.randn(2, 4 + 7, 48, generator=torch.Generator().manual_seed(0))
    ids, mask = torch.tensor([[5, 9, 17], [4, 0, 0]]), torch.tensor([[1, 1, 1], [1, 0, 0]])
    with torch.no_grad():
        prompt = model.prefill(ids, mask)
        expected = model.attend(encoded, prompt)
        read = prompt.fork(2)
        model.attend(encoded[:, : 4 + 5], read, keep=True)
        model.attend(encoded[:, [0, 1, 2, 3, 9]], read, keep=True)
        alone = read.fork(1)
        first = model.attend(encoded[:1, [0, 1, 2, 3, 10]], alone, keep=True)
        both = model.attend(encoded[:, [0, 1, 2, 3, 10]], read)
    for found, rows in ((first, slice(1)), (both, slice(2))):
        assert relative_error(found, expected[rows][:, [0, 1, 2, 3, 10]].numpy()) < 1e-5
    lengths = [one.cache.get_seq_length() for one in (prompt, read, alone)]
    assert lengths == [one.mask.shape[1] for one in (prompt, read, alone)] == [3, 3 + 6, 3 + 7]


def test_slots_take_rows_and_give_all():
    """Two images of both branches, one head, one number each; the buffer is one row."""
    keys = torch.arange(12.0).view(4, 1, 3, 1)
    slots = Slots(1).open(full=True, half=True, places=None)
    assert slots.update(keys, -keys)[0] is keys
    slots.open(full=False, half=False, places=None)
    found = slots.update(torch.tensor([100.0, 101, 102, 103]).view(2, 1, 2, 1), torch.zeros(2, 1, 2, 1))
    assert found[0].flatten(1).tolist() == [[100, 1, 2, 101], [102, 4, 5, 103]]
    assert found[1].flatten(1).tolist() == [[0, -1, -2, 0], [0, -4, -5, 0]]
    slots.open(full=False, half=False, places=torch.tensor([[2, 0]]))
    found = slots.update(torch.tensor([7.0, 8]).view(1, 1, 2, 1), torch.ones(1, 1, 2, 1))
    assert found[0].flatten().tolist() == [8, 1, 7, 101]
    assert keys.flatten().tolist() == list(range(12))


def branches(caching, scales):
    """What each AR step asks of a backbone whose conditions are the position, and 100 · step more without the class."""
    asked, found = [], []
    cache = BackboneCache(caching, 0)

    def backbone(_, known, wanted, both, cache):
        asked.append((cache.full, both, known[0].tolist(), wanted[0].tolist()))
        z = wanted[..., None].float()
        return torch.cat([z, z + 100 * len(asked)]) if both else z

    orders = torch.tensor([[3, 1, 4, 0, 2, 5]])
    for step, guided in enumerate(scales):
        left = len(scales) - 1 - step
        known, wanted, later = orders[:, left + 1 :], orders[:, left : left + 1], orders[:, :left]
        z = cache.conditions(backbone, step, torch.zeros(1, 6, 1), known, wanted, later, guided)
        assert z.shape == (1 + guided, 1, 1)
        found.append((z[-1] - z[0]).item())
    return asked, found


def test_the_difference_of_branches_is_that_of_the_last_unconditional_pass():
    asked, found = branches(Caching(1, 3, 2), [True] * 6)
    assert [both for _, both, *_ in asked] == [True, True, False, False, True, False]
    assert all(full for full, *_ in asked)
    assert found == [100, 200, 200, 200, 500, 500]
    assert asked[1][2:] == ([5], [2, 3, 1, 4, 0])  # and of positions that come later
    assert asked[2][2:] == ([2, 5], [0])


def test_a_pass_with_few_rows_knows_the_last_group_alone():
    asked, _ = branches(Caching(3, 1, 2), [True] * 6)
    assert [full for full, *_ in asked] == [True, True, False, False, True, False]
    assert asked[2] == (False, True, [2], [0])
    assert asked[3] == (False, True, [0], [4])
    assert asked[4] == (True, True, [4, 0, 2, 5], [1])


def test_a_branch_that_was_left_out_is_computed_in_full():
    """Guidance may begin later, or the caches' intervals differ."""
    asked, found = branches(Caching(9, 1, 1), [False, False, True, True, False, True])
    assert [one[:2] for one in asked] == [
        (True, False),
        (False, False),
        (True, True),
        (False, True),
        (False, False),
        (True, True),
    ]
    assert found == [0, 0, 300, 400, 0, 600]
    asked, found = branches(Caching(9, 2, 1), [False, True, True, True, True, True])
    assert [one[:2] for one in asked] == [
        (True, False),
        (True, True),
        (True, True),
        (False, False),
        (True, True),
        (False, False),
    ]
    assert found == [0, 200, 300, 300, 500, 500]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "settings",
    [{"guidance": Guidance(3.0, skip_below=1.7)}, {"grouping": Grouping("gtr", "stages")}, {"guidance": Guidance()}],
)
def test_an_image_depends_on_its_seed_alone(name, settings):
    settings |= {"caching": BOTH}
    together, alone = generate(name, (5, 6), **settings), generate(name, (6,), **settings)
    assert relative_error(alone, together[1:].numpy()) < 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_nothing_outlives_a_generation(name):
    """Another one may run in its midst, and the next one in other precision."""
    model, inner = MODELS[name](), []
    alone = [generate(name, seeds, model, caching=BOTH) for seeds in ((1, 2), (3,))]

    def start_another(trace):
        if trace.step == 3:
            inner.append(generate(name, (3,), model, caching=BOTH))

    assert torch.equal(generate(name, (1, 2), model, caching=BOTH, on_step=start_another), alone[0])
    assert torch.equal(inner[0], alone[1])
    half = generate(name, (3,), model.bfloat16(), caching=BOTH)
    assert half.dtype == torch.float32
    assert relative_error(half, alone[1].numpy()) < 0.2


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("caching", [BOTH, Caching(1, 3, 2)])
def test_captured_graphs_change_nothing(name, caching):
    """Where keys and values are kept, the decoder runs eagerly."""
    model = MODELS[name]()
    expected = [generate(name, seeds, model, caching=caching) for seeds in ((1, 2), (3, 4))]
    captured = Captured(EagerGraph)
    for module in model.modules():
        module.run = captured
    generate(name, (5, 6), model, caching=caching)
    assert captured.captures
    for seeds, latents in zip(((1, 2), (3, 4)), expected, strict=True):
        torch.testing.assert_close(generate(name, seeds, model, caching=caching), latents, rtol=1e-5, atol=1e-5)
    assert captured.on


@pytest.mark.slow
@pytest.mark.skipif(lacking(torch.device("cpu")) is not None, reason="needs a C++ compiler")
@pytest.mark.parametrize("name", MODELS)
def test_compiled_blocks_change_nothing(name):
    model = MODELS[name]()
    expected = [generate(name, seeds, model, caching=BOTH) for seeds in ((1, 2), (3, 4, 5))]
    compile_blocks(model)
    for seeds, latents in zip(((1, 2), (3, 4, 5)), expected, strict=True):
        torch.testing.assert_close(generate(name, seeds, model, caching=BOTH), latents, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_a_generation_asks_for_fewer_flops(name):
    counted = []
    for caching in (Caching(), Caching(3, 1, 1), Caching(1, 3, 1), Caching(3, 3, 1)):
        with FlopCounterMode(display=False) as flops:
            generate(name, schedule=StepSchedule(1, 1), caching=caching)
        counted.append(flops.get_total_flops())
    plain, tokens, conditions, both = (one / counted[0] for one in counted)
    assert plain == 1
    assert both < tokens < 0.8
    assert both < conditions < 0.8
    assert both < 0.65


@pytest.mark.parametrize("name", ["tokens", "conditions", "first"])
def test_impossible_intervals_are_refused(name):
    with pytest.raises(ValueError, match=rf"Caching\.{name} is 0; at least 1 AR step"):
        Caching(**{name: 0})
