"""What the page's controls ask of a pipeline, and what they refuse."""

import base64
import dataclasses
import io
import re

import numpy as np
import pytest
from PIL import Image

from disa import Pipeline, StepSchedule
from disa.pipeline.arguments import check_settings
from disa.tables.recipes import bundled_settings
from disa.web import asking, show
from disa.web.asking import WITH, WITHOUT, Asked

NAMES = ["mar_fashion", "flowar_fashion", "xar_fashion", "harmon_fashion"]
BAG = Asked("bag", "1 2", 16, 20, 4, "cosine", 2.0)


@pytest.fixture(scope="module")
def pipes():
    return {name: Pipeline.from_pretrained(name, device="cpu") for name in NAMES}


def recipe(name, pipe):
    """The controls as the page sets them: the recipe with DiSA."""
    sampling = pipe.sampling
    schedule = sampling.schedule
    shown = "a bag" if name == "harmon_fashion" else "8"
    counts = sampling.num_iter or 1, schedule.upper, schedule.lower, schedule.strategy
    return Asked(shown, "1", *counts, sampling.guidance.scale)


@pytest.mark.parametrize("name", NAMES)
def test_the_controls_as_they_are_set_at_first_are_the_recipes(name, pipes):
    pipe, recipes = pipes[name], bundled_settings(name)
    asked = asking.calls(pipe, recipe(name, pipe), {})
    assert list(asked) == [WITH, WITHOUT]
    for title, row in ((WITH, "disa"), (WITHOUT, "full")):
        call = {key: value for key, value in asked[title].items() if key not in ("labels", "prompts", "seeds")}
        ours = check_settings(pipe, call)
        theirs = recipes[row]
        assert pipe.model.nfe(**ours.steps) == pipe.model.nfe(**theirs.steps)
        assert dataclasses.replace(ours, schedule=theirs.schedule) == theirs


def test_controls_become_arguments(pipes):
    asked = asking.calls(pipes["mar_fashion"], BAG, {})
    same = {"labels": ["bag"], "seeds": [1, 2], "guidance": 2.0, "num_iter": 16}
    assert asked == {
        WITH: {**same, "schedule": StepSchedule(20, 4, "cosine")},
        WITHOUT: {**same, "schedule": StepSchedule(40, 40)},
    }
    assert list(asking.calls(pipes["mar_fashion"], dataclasses.replace(BAG, compare=False), {})) == [WITH]
    assert asking.calls(pipes["mar_fashion"], dataclasses.replace(BAG, shown=" 8 "), {})[WITH]["labels"] == [8]
    assert "num_iter" not in asking.calls(pipes["flowar_fashion"], BAG, {})[WITH]
    assert asking.calls(pipes["harmon_fashion"], BAG, {})[WITH]["prompts"] == ["bag"]


def test_a_calibrated_schedule_is_one_of_those_at_hand_and_no_path(pipes):
    own = StepSchedule(counts=(4, 2))
    chosen = dataclasses.replace(BAG, strategy="own.json")
    assert asking.calls(pipes["mar_fashion"], chosen, {"own.json": own})[WITH]["schedule"] is own
    with pytest.raises(ValueError, match=r"the strategy is '/etc/passwd'; allowed are linear, .*, own\.json"):
        asking.calls(pipes["mar_fashion"], dataclasses.replace(BAG, strategy="/etc/passwd"), {"own.json": own})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"shown": " "}, "nothing says what to draw; choose a class"),
        ({"shown": "bagg"}, "mar_fashion has no class 'bagg'; its classes are 0 to 9; did you mean bag?"),
        ({"shown": "10"}, "a label is 10; mar_fashion knows 0 to 9"),
        ({"seeds": "1 two"}, "the seeds are '1 two'; whole numbers are needed, such as 1 2 3"),
        ({"seeds": ""}, "the seeds are ''; whole numbers are needed, such as 1 2 3"),
        ({"seeds": "-1"}, "the seeds are '-1'; whole numbers are needed, such as 1 2 3"),
        ({"seeds": str(2**64)}, "a seed is 18446744073709551616; seeds are whole numbers in [0, 2^64)"),
        ({"seeds": "1 " * 17}, "there are 17 seeds; 16 are the most at a time"),
        ({"num_iter": 65}, "the number of AR steps is 65; an image has 64 tokens"),
        ({"num_iter": 0}, "the number of AR steps is 0; at least 1 AR step is needed"),
        ({"upper": 3}, "the first count is 3, below the last count 4; the first must be at least the last"),
        ({"lower": 0}, "the last count is 0; at least 1 diffusion step is needed"),
        ({"guidance": -1.0}, "the guidance scale is -1.0; it must be a finite number ≥ 0 (1 is no guidance)"),
    ],
)
def test_what_is_wrong_is_one_sentence_in_the_pages_words(change, sentence, pipes):
    pipe = pipes["mar_fashion"]
    with pytest.raises(ValueError, match=r"\w") as error:
        pipe(**asking.calls(pipe, dataclasses.replace(BAG, **change), {})[WITH])
    shown = re.sub(r"<[^>]+>", "", show.wrong(error.value)).replace("&#x27;", "'")
    assert shown == sentence


def test_words_that_the_small_harmon_has_never_seen_are_told(pipes):
    harmon = pipes["harmon_fashion"]
    assert asking.unknown(harmon, "a bright bag") == ""
    assert asking.unknown(harmon, "a purple bag").startswith("the model has learned no purple; it knows")
    assert asking.unknown(pipes["mar_fashion"], "purple") == ""


def test_what_a_model_can_do(pipes):
    assert [name for name in NAMES if asking.can_edit(pipes[name])] == ["mar_fashion", "harmon_fashion"]
    assert [name for name in NAMES if asking.can_answer(pipes[name])] == ["harmon_fashion"]
    assert asking.most_ar_steps(pipes["mar_fashion"]) == asking.most_ar_steps(pipes["harmon_fashion"]) == 64
    assert asking.class_choices(pipes["xar_fashion"])[8] == ("bag", "8")
    assert asking.class_choices(pipes["harmon_fashion"]) == []


def test_painted_squares_become_a_mask(pipes):
    image = Image.new("L", (32, 32))
    mask = np.asarray(asking.mask_of([0, 15], image, pipes["mar_fashion"]))
    assert mask.shape == (32, 32)
    assert set(np.unique(mask)) == {0, 255}
    assert (mask[:4, :4] == 255).all()
    assert (mask[4:8, 28:] == 255).all()
    assert (mask == 255).sum() == 2 * 16


@pytest.mark.parametrize("cells", [None, [], 5, "", [64], [-1], ["0"], [True], [0.0], {"path": "/etc/passwd"}])
def test_what_is_no_painting_is_refused(cells, pipes):
    with pytest.raises(ValueError, match=r"nothing is painted; |a painted square is .*; the picture has 64"):
        asking.mask_of(cells, Image.new("L", (32, 32)), pipes["mar_fashion"])


def sent(image, form="PNG"):
    """A picture as the browser sends it."""
    file = io.BytesIO()
    image.save(file, form)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def test_a_picture_of_ones_own_is_fitted_as_in_training(pipes):
    bag = Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8))
    fitted = asking.read_picture(sent(bag), pipes["mar_fashion"])
    assert (fitted.mode, fitted.size) == ("L", (32, 32))
    assert (np.asarray(fitted)[2:30, 2:30] == np.asarray(bag)).all()
    assert (np.asarray(fitted)[:2] == 0).all()
    large = asking.read_picture(sent(Image.new("RGBA", (300, 200), (255, 255, 255, 0))), pipes["harmon_fashion"])
    assert large.size == (32, 32)
    assert np.asarray(large).max() == 0  # transparent


@pytest.mark.parametrize(
    "data",
    [
        *(None, "", "/etc/passwd", "file:///etc/passwd", {"path": "/etc/passwd"}, "data:image/png;base64,AAAA"),
        *(
            "data:image/png;base64,§",
            sent(Image.new("L", (8, 8)), "GIF"),
            sent(Image.effect_noise((32, 32), 99))[:-400],
        ),
        sent(Image.new("1", (4096, 1025))),
    ],
)
def test_what_is_no_picture_is_refused(data, pipes):
    with pytest.raises(ValueError, match="this is no picture that can be read"):
        asking.read_picture(data, pipes["mar_fashion"])
