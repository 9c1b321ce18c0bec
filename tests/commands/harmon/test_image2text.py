"""image2text.py: the picture that the model gets, the answer as it comes, refusals."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms.functional import to_pil_image

from disa.data.transforms import open_image, to_signed
from disa.models.vae import AutoencoderKL, SpaceToDepth
from disa.pipeline import fit_image
from tests.commands.harmon.conftest import refused

COLOUR, GREY = AutoencoderKL(widths=(32,) * 5), SpaceToDepth()


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (60, 30), "white").save(path)
    return path


def test_image_is_padded_with_grey_in_the_middle(photo):
    fitted = fit_image(open_image(photo), 64, 64, COLOUR)
    assert fitted.shape == (1, 3, 64, 64)
    assert fitted[0, :, 32, :].eq(1).all()  # as wide as it was
    assert all(torch.allclose(fitted[0, :, row], torch.tensor(127 / 127.5 - 1)) for row in (0, 12, 52, 63))
    assert fitted[0, 0, :, 5].eq(1).sum() in range(30, 35)  # half as high
    tall = fit_image(open_image(photo).rotate(90, expand=True), 64, 32, COLOUR)
    assert tall.shape == (1, 3, 64, 32)
    assert tall.eq(1).all()


def test_small_models_see_what_training_saw(photo):
    pixels = torch.randint(256, (28, 28), dtype=torch.uint8)
    seen = to_signed(F.pad(pixels, (2, 2, 2, 2)))  # as `fashion_mnist` pads
    for picture in (pixels, F.pad(pixels, (2, 2, 2, 2))):
        assert torch.equal(fit_image(to_pil_image(picture).convert("RGB"), 32, 32, GREY)[0, 0], seen)
    shrunk = fit_image(open_image(photo), 32, 32, GREY)
    assert shrunk.shape == (1, 1, 32, 32)
    assert shrunk[0, 0, 8:24].eq(1).all()
    assert shrunk[0, 0, :8].eq(-1).all()
    assert shrunk[0, 0, 24:].eq(-1).all()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK", "I;16"])
def test_every_kind_of_picture_is_opened(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode in ("CMYK", "I;16") else "a.png")
    Image.new(mode, (8, 6)).save(path)
    assert (open_image(path).mode, open_image(path).size) == ("RGB", (8, 6))


def test_photographs_stand_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert open_image(tmp_path / "a.jpg").size == (4, 8)


def test_answer_comes_in_pieces_and_is_greedy(call, photo, monkeypatch):
    pieces = []
    monkeypatch.setattr("transformers.TextStreamer.on_finalized_text", lambda _, text, **__: pieces.append(text))
    result = call("image2text", "--image", photo, "--prompt", "What is this?", "--max_new_tokens", 30)
    assert result.code == 0
    assert len(pieces) > 1
    first = "".join(pieces)
    pieces.clear()
    call("image2text", "--image", photo, "--prompt", "What is this?", "--max_new_tokens", 30)
    assert "".join(pieces) == first
    assert "<|im" not in first


def test_answer_ends_with_the_context(call, photo):
    flags = ["--image", photo, "--prompt", "What is this?", "--max_new_tokens", 10000, "--image_size", "64"]
    assert call("image2text", *flags).code == 0


BAD = {
    "no image": (["--image", "nowhere.jpg"], "nowhere.jpg cannot be read as an image"),
    "no picture": (["--image", "{folder}/text.jpg"], "text.jpg cannot be read as an image"),
    "cut short": (["--image", "{folder}/cut.png"], "cut.png cannot be read as an image"),
    "folder": (["--image", "{folder}"], "cannot be read as an image"),
    "empty prompt": (["--prompt", " "], "the prompt is empty"),
    "long prompt": (["--prompt", "very " * 600], "too many; shorten the prompt"),
    "image size": (["--image_size", "33"], "image_size is 33; a multiple of 4 is needed"),
    "no answer": (["--max_new_tokens", "0"], "max_new_tokens is 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_sentence(call, photo, tmp_path, case):
    (tmp_path / "text.jpg").write_text("a photo")
    Image.effect_noise((64, 64), 50).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:1000])
    flags, named = BAD[case]
    result = call("image2text", "--image", photo, *[flag.format(folder=tmp_path) for flag in flags])
    assert refused(result, named)
    assert result.out == ""
