"""Panels and sentences as HTML."""

import base64
import io
import re

import numpy as np
from PIL import Image

from disa.web import show
from disa.web.drawing import Panel

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8))


def test_a_picture_comes_back_from_its_address():
    head, _, body = show.data_url(NOISE).partition(",")
    assert head == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(body))).tobytes() == NOISE.tobytes()


def test_panels_say_where_they_are():
    half = [Panel("With DiSA", 16, 3, [NOISE]), Panel("Without DiSA", 16)]
    text = show.panels(half)
    assert "AR step 3 of 16" in text
    assert "AR step 0 of 16" in text
    assert text.count("<img") == 1
    assert text.count("busy") == 1
    assert "seconds" not in text


def test_finished_panels_have_numbers_and_what_disa_saves():
    done = [Panel("With DiSA", 16, 16, [NOISE] * 3, 384, 1.25), Panel("Without DiSA", 16, 16, [NOISE] * 3, 640, 2.5)]
    text = show.panels(done)
    assert "<b>384</b> network evaluations per picture (NFE)" in text
    assert "<b>2.5</b> seconds" in text
    assert "From the same seeds, DiSA took 40% fewer network evaluations and was 2.0 times as fast." in text
    assert "busy" not in text
    assert text.count("--columns: 2") == 2
    assert re.findall(r'data-panel="(\d)" data-index="(\d)"', text) == [(p, i) for p in "01" for i in "012"]


def test_what_disa_does_not_save_is_said_too():
    more = [Panel("a", 1, 1, [NOISE], 40, 2.0), Panel("b", 1, 1, [NOISE], 20, 1.0)]
    assert "DiSA took 100% more network evaluations and was 2.0 times as slow." in show.panels(more)
    assert "DiSA took" not in show.panels(more[:1])


def test_only_small_pictures_are_enlarged_without_smoothing():
    large = NOISE.resize((256, 256))
    assert 'class="panel small"' in show.panels([Panel("a", 1, 1, [NOISE], 1, 1.0)])
    assert 'class="panel"' in show.panels([Panel("a", 1, 1, [large], 1, 1.0)])


def test_what_somebody_wrote_stays_text():
    assert "<b>" not in show.wrong("<b>bold</b>")
    assert "<b>" not in show.note("<b>bold</b>")
    assert show.note("") == ""
