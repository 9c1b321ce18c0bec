"""The page in a real browser: load, draw, compare, edit, ask, wrong input; and what its server does not do."""

import base64
import io
import json
import os
import re
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="gradio is not installed here; `make test-web` has it")

import torch

from benchmarks import web
from benchmarks.settings import compared
from benchmarks.web import all_of, draw, open_page, wait
from disa import Pipeline, StepSchedule

pytestmark = pytest.mark.slow

if web.find_browser() is None and "BROWSER_NEEDED" not in os.environ:
    pytest.skip("there is no Chromium with its driver", allow_module_level=True)

MODELS = ["mar_fashion", "flowar_fashion", "harmon_fashion"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the server runs and has its temporary files."""
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def address(folder):
    """The page's. In the end the server has ended well, said nothing of errors, and left no file behind."""
    before = {path.name for path in folder.iterdir()}
    with web.served(folder, *MODELS) as found:
        yield found
    log = (folder / "log").read_text()
    assert "rror" not in log, log
    assert {path.name for path in folder.iterdir()} == {*before, "log"}


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    with web.browsing(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(window, address):
    """A page that was just opened."""
    open_page(window, address)
    return window


def one(page, selector):
    return wait(lambda: all_of(page, selector))[0]


def write(page, selector, text):
    """Write `text` into a field, in place of what is there, and leave the field."""
    field = one(page, selector)
    field.send_keys("\ue009a\ue000", text, "\ue004")  # Ctrl-A; Tab


def texts(page, selector):
    """The texts of elements, at one moment: pictures and numbers are replaced as they come."""
    return page.execute_script(f"return [...document.querySelectorAll({selector!r})].map(one => one.innerText)")


def is_shown(page, selector):
    """Whether there is such an element and it can be seen."""
    return page.execute_script("return !!document.querySelector(arguments[0])?.offsetParent", selector)


def message(page):
    """What the page says above the pictures."""
    return " ".join(texts(page, "#message p"))


def pictures(page, panel):
    """The pictures in a panel, as arrays."""
    selector = f"#result img[data-panel='{panel}']"
    found = page.execute_script("return [...document.querySelectorAll(arguments[0])].map(one => one.src)", selector)
    assert all(source.startswith("data:image/png;base64,") for source in found)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))) for source in found]


def choose(page, name):
    """Choose a model."""
    one(page, "#model input").click()
    wait(lambda: [option for option in all_of(page, "[role=option]") if option.text.strip("✓ \n") == name])[0].click()


def few_steps(page, num_iter=4):
    """Set what is quick, and what is seldom wrong."""
    if num_iter:
        write(page, "#num_iter input[type=number]", str(num_iter))
    write(page, "#upper input[type=number]", "4")
    write(page, "#lower input[type=number]", "2")


def test_all_that_the_page_loads_is_its_servers_and_there(page, address):
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    own = ("data:", "blob:", "chrome:", "chrome-untrusted:")  # of the browser, whose first tab has a page of its own
    asked = [url for url in asked if not url.startswith(own)]
    assert len(asked) > 20
    assert {url for url in asked if not url.startswith(f"{address}/")} == set()
    answers = [e["params"]["response"] for e in events if e["method"] == "Network.responseReceived"]
    assert {answer["url"] for answer in answers if answer["status"] >= 400} == set()
    assert [entry["message"] for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert all_of(page, "h1")[0].text.startswith("DiSA")
    assert all_of(page, "footer") == [] or "gradio" not in all_of(page, "footer")[0].text.lower()


def test_a_click_draws_with_disa_and_without_step_by_step(page):
    seen = set()

    def done():
        seen.update(text.strip() for text in texts(page, "#result .numbers"))
        return len(all_of(page, "#result .numbers b")) == 4

    one(page, "#draw").click()
    wait(done)
    assert len([text for text in seen if re.fullmatch(r"AR step \d+ of 16", text)]) > 3
    numbers = texts(page, "#result .numbers b")
    recipes = compared("mar_fashion")
    assert [int(number) for number in numbers[::2]] == [recipes["DiSA"].nfe, recipes["without DiSA"].nfe]
    assert all(float(seconds) > 0 for seconds in numbers[1::2])
    assert "DiSA took 41% fewer network evaluations" in texts(page, ".verdict")[0]
    torch.set_num_threads(1)
    pipe = Pipeline.from_pretrained("mar_fashion", device="cpu")
    for panel, name in enumerate(("DiSA", "without DiSA")):
        sampling = recipes[name].sampling
        call = {"schedule": sampling.schedule, "num_iter": 16, "guidance": sampling.guidance}
        (ours,) = pipe(labels=[9], seeds=[1], **call).images
        (theirs,) = pictures(page, panel)
        assert (theirs == np.asarray(ours)).all()
    style = "return getComputedStyle(document.querySelector('#result img')).imageRendering"
    assert page.execute_script(style) == "pixelated"
    assert one(page, "#result img").size["width"] > 300


def test_several_seeds_and_a_class_by_name(page):
    few_steps(page)
    write(page, "#label input", "bag")
    write(page, "#seeds input, #seeds textarea", "5, 6")
    draw(page)
    assert [len(pictures(page, panel)) for panel in (0, 1)] == [2, 2]
    pipe = Pipeline.from_pretrained("mar_fashion", device="cpu")
    ours = pipe(labels=["bag"], seeds=[5, 6], num_iter=4, schedule=StepSchedule(4, 2)).images
    assert (np.stack(pictures(page, 0)) == np.stack(list(map(np.asarray, ours)))).all()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"#seeds input, #seeds textarea": "one"}, "the seeds are 'one'; whole numbers are needed, such as 1 2 3"),
        ({"#label input": "bagg"}, "mar_fashion has no class 'bagg'; its classes are 0 to 9; did you mean bag?"),
        (
            {"#upper input[type=number]": "3"},
            "the first count is 3, below the last count 8; the first must be at least the last",
        ),
    ],
    ids=["seeds", "class", "counts"],
)
def test_wrong_input_is_one_sentence_in_the_page(fields, sentence, page):
    for selector, text in fields.items():
        write(page, selector, text)
    one(page, "#draw").click()
    assert wait(lambda: message(page)) == sentence
    assert all_of(page, "#result img") == []
    open_page(page, page.current_url)
    few_steps(page)
    draw(page)  # it goes on
    assert message(page) == ""


def test_more_ar_steps_than_tokens_are_never_taken(page):
    few_steps(page, 65)
    one(page, "#draw").click()
    shown = wait(lambda: "of 64" in texts(page, "#result .numbers")[0] or message(page) or all_of(page, ".toast-body"))
    assert shown
    one(page, "#stop").click()


def paint(page):
    """Paint the upper half of the canvas."""
    script = """
        const board = document.querySelector('#canvas canvas'), box = board.getBoundingClientRect();
        board.setPointerCapture = () => {};
        const at = (type, x, y) => board.dispatchEvent(new PointerEvent(type, {
            clientX: box.left + x * box.width, clientY: box.top + y * box.height, buttons: 1, bubbles: true}));
        at('pointerdown', 0.01, 0.01);
        for (let row = 0; row < 4; row++) {
            at('pointermove', 0.01, (row + 0.5) / 8); at('pointermove', 0.99, (row + 0.5) / 8);
        }
        at('pointerup', 0.99, 0.45);
    """
    page.execute_script(script)


def canvas_is_empty(page):
    return bool(all_of(page, "#canvas .board.empty"))


def test_a_painted_half_is_drawn_anew_and_the_other_stays(page):
    few_steps(page)
    one(page, "#redraw").click()
    assert wait(lambda: message(page)) == "there is no picture yet; draw one, or open your own"
    draw(page)
    assert message(page) == ""
    (before,) = pictures(page, 0)
    wait(lambda: not canvas_is_empty(page))
    one(page, "#redraw").click()
    assert wait(lambda: message(page)) == "nothing is painted; paint in the picture what is to be drawn anew"
    paint(page)
    write(page, "#label input", "bag")
    one(page, "#redraw").click()
    wait(lambda: not (pictures(page, 0)[0] == before).all())
    wait(lambda: len(all_of(page, "#result .numbers b")) == 4 and not all_of(page, "#result .busy"))
    pipe = Pipeline.from_pretrained("mar_fashion", device="cpu")
    mask = Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 32, 16))
    for panel, schedule in enumerate((StepSchedule(4, 2), compared("mar_fashion")["without DiSA"].sampling.schedule)):
        (after,) = pictures(page, panel)
        call = {"labels": ["bag"], "seeds": [1], "num_iter": 4, "schedule": schedule}
        assert after.tobytes() == pipe.edit(Image.fromarray(before), mask, **call).images[0].tobytes()
        change = np.abs(after.astype(int) - before)
        assert change[20:].mean() < change[:16].mean() / 4  # the VAE is not lossless


def test_a_click_on_a_picture_takes_it_to_the_canvas(page):
    few_steps(page)
    write(page, "#seeds input, #seeds textarea", "1 2")
    draw(page)
    wait(lambda: not canvas_is_empty(page))
    pixels = "return document.querySelector('#canvas canvas').toDataURL()"
    first = page.execute_script(pixels)
    all_of(page, "#result img")[3].click()
    wait(lambda: page.execute_script(pixels) != first)


def test_a_picture_of_ones_own_comes_to_the_canvas_and_a_text_does_not(page, tmp_path):
    Image.fromarray(np.full((28, 28), 200, np.uint8)).save(tmp_path / "own.jpg")
    (tmp_path / "own.png").write_text("no picture")
    one(page, "#canvas input").send_keys(str(tmp_path / "own.png"))
    assert wait(lambda: message(page)).startswith("this is no picture that can be read")
    assert canvas_is_empty(page)
    one(page, "#canvas input").send_keys(str(tmp_path / "own.jpg"))
    wait(lambda: not canvas_is_empty(page))
    assert message(page) == ""
    middle = "return [...document.querySelector('#canvas canvas').getContext('2d').getImageData(224, 224, 1, 1).data]"
    assert wait(lambda: page.execute_script(middle)[0]) in range(195, 206)


def test_harmon_draws_a_prompt_and_answers(page):
    choose(page, "harmon_fashion")
    wait(lambda: is_shown(page, "#prompt textarea, #prompt input"))
    write(page, "#prompt textarea, #prompt input", "a purple bag")
    few_steps(page, 8)
    one(page, "#draw").click()
    assert wait(lambda: message(page)).startswith("the model has learned no purple;")
    wait(lambda: len(all_of(page, "#result .numbers b")) == 4)
    wait(lambda: not canvas_is_empty(page))
    write(page, "#question textarea, #question input", "What is this?")
    one(page, "#ask").click()
    answer = "return document.querySelector('#answer textarea, #answer input').value"
    assert wait(lambda: len(page.execute_script(answer)) > 2)  # it comes word by word
    write(page, "#question textarea, #question input", " ")
    one(page, "#ask").click()
    assert wait(lambda: message(page)) == "nothing is asked; write a question"


def test_another_model_has_other_controls(page):
    choose(page, "flowar_fashion")
    wait(lambda: not is_shown(page, "#num_iter"))
    assert not is_shown(page, "#canvas")
    few_steps(page, None)
    draw(page)
    assert len(pictures(page, 1)) == 1


def test_what_is_stopped_stops_and_the_next_is_drawn(page):
    write(page, "#upper input[type=number]", "100")
    write(page, "#num_iter input[type=number]", "64")
    one(page, "#draw").click()
    wait(lambda: all_of(page, "#result img"))
    one(page, "#stop").click()
    few_steps(page)

    def again():  # a click before the stop has come through does nothing
        one(page, "#draw").click()
        time.sleep(1)
        return "of 4" in "".join(texts(page, "#result .numbers")) or texts(page, "#result .numbers b")

    wait(again)
    wait(lambda: len(texts(page, "#result .numbers b")) == 4)
    assert texts(page, ".verdict")[0].startswith("From the same seeds")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("file=/etc/passwd", None),
        ("file/etc/passwd", None),
        ("proxy=http://127.0.0.1/", None),
        ("openapi.json", None),
        ("upload", b"a=b"),
        ("run/predict", b'{"data": [], "fn_index": 0}'),
        ("call/_draw", b'{"data": []}'),
        ("vibe-edit", b"{}"),
        ("../etc/passwd", None),
    ],
)
def test_what_the_page_does_not_need_is_not_there(path, body, address):
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(f"{address}/gradio_api/{path}", body, timeout=20)
    assert error.value.code == 404
