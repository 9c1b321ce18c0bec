"""batch_text2image.py: through kills and ranks, GenEval's folders, lists of every kind, refusals."""

import json

import numpy as np
import pytest
from PIL import Image
from tqdm import tqdm

from disa.generation.images import is_whole
from tests.commands.harmon.conftest import CONFIG, FOLDER, QUICK, refused
from tests.helpers.processes import TORCHRUN, kill_when, run, start

PROMPTS = [f"a {light}{name}" for light in ("", "dark ") for name in ("bag", "coat", "dress", "sneaker")]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("".join(json.dumps({"tag": "one", "prompt": prompt, "include": []}) + "\n" for prompt in PROMPTS))
    return path


def images(folder):
    return {path.relative_to(folder): np.array(Image.open(path), int) for path in sorted(folder.rglob("*.png"))}


def same(one, other):
    """Whether the same files hold the same images, to rounding."""
    return one.keys() == other.keys() and max(abs(image - other[path]).max() for path, image in one.items()) <= 1


def times(folder, pattern="*"):
    return {path: path.stat().st_mtime_ns for path in folder.rglob(pattern) if path.is_file()}


@pytest.mark.slow
@pytest.mark.distributed
def test_kills_leave_whole_images_and_ranks_go_on(call, checkpoint, data, tmp_path):
    flags = [*QUICK, "--data", data, "--layout", "geneval", "--batch_size", 1, "--num_iter", 8]
    killed = tmp_path / "killed"
    words = ["scripts/batch_text2image.py", CONFIG, "--device", "cpu", "--checkpoint", checkpoint, *flags]
    words += ["--output", killed]
    kill_when(start(*words, cwd=FOLDER), lambda: len(list(killed.glob("*/samples/[0-9]*.png"))) >= 6)
    made = {path: time for path, time in times(killed, "*.png").items() if not path.name.startswith(".")}
    assert 6 <= len(made) < len(PROMPTS) * 4
    assert all(map(is_whole, made))

    ended = run(*TORCHRUN, *words, cwd=FOLDER)
    assert ended.stdout == f"the images of {len(PROMPTS)} prompts are in {killed}\n"
    assert ended.stderr.count("attends with") == 1
    assert made.items() <= times(killed).items()
    assert not list(killed.rglob("*.part*"))
    assert call("batch_text2image", *flags, "--batch_size", 7, "--output", tmp_path / "whole").code == 0
    assert same(images(killed), images(tmp_path / "whole"))
    before = times(killed, "*.png")
    assert call("batch_text2image", *flags, "--output", killed).code == 0
    assert times(killed, "*.png") == before


def test_geneval_finds_its_folders(call, data, tmp_path):
    data.write_text("\n".join(data.read_text().splitlines()[:2]))
    flags = ["--data", data, "--layout", "geneval", "--output", tmp_path / "out"]
    assert call("batch_text2image", *QUICK, *flags).code == 0
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    one = ["grid.png", "metadata.jsonl", *(f"samples/000{i}.png" for i in range(4))]
    assert found == [f"0000{prompt}/{name}" for prompt in (0, 1) for name in one] + ["settings.json"]
    folder = tmp_path / "out" / "00001"
    assert json.loads((folder / "metadata.jsonl").read_text()) == {"tag": "one", "prompt": "a coat", "include": []}
    grid, last = np.array(Image.open(folder / "grid.png")), np.array(Image.open(folder / "samples" / "0003.png"))
    assert grid.shape == (64, 64)
    assert (grid[32:, 32:] == last).all()
    said = json.loads(Image.open(folder / "samples" / "0003.png").text["disa"])
    assert (said["prompt"], said["image"], said["seed"], said["upper_steps"]) == ("a coat", 7, 1, 4)


def test_flat_folder_has_a_grid_a_prompt(call, data, tmp_path):
    lists = {"strings.json": json.dumps(PROMPTS[:2]), "lines.jsonl": "\n".join(map(json.dumps, PROMPTS[:2]))}
    lists["objects.json"] = json.dumps([{"prompt": prompt, "id": i} for i, prompt in enumerate(PROMPTS[:2])])
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        flags = ["--data", tmp_path / name, "--output", tmp_path / "out"]
        assert call("batch_text2image", *QUICK, *flags).code == 0  # the same prompts
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["000000.png", "000001.png", "settings.json"]
    data.write_text("\n".join(data.read_text().splitlines()[:2]))
    flags = ["--data", data, "--layout", "geneval", "--output", tmp_path / "tree", "--batch_size", 3]
    assert call("batch_text2image", *QUICK, *flags).code == 0
    for prompt in (0, 1):
        grid = np.array(Image.open(tmp_path / "out" / f"00000{prompt}.png"), int)
        assert abs(grid - np.array(Image.open(tmp_path / "tree" / f"0000{prompt}" / "grid.png"), int)).max() <= 1
    said = json.loads(Image.open(tmp_path / "out" / "000001.png").text["disa"])
    assert (said["prompt"], said["grid_size"]) == ("a coat", 2)


def test_other_prompts_or_settings_do_not_share_a_folder(call, tmp_path):
    def generate(prompts, *flags):
        (tmp_path / "list.json").write_text(json.dumps(prompts))
        where = ["--data", tmp_path / "list.json", "--output", tmp_path / "out"]
        return call("batch_text2image", *QUICK, "--grid_size", 1, *where, *flags)

    assert generate(PROMPTS[:2]).code == 0
    before = times(tmp_path / "out")
    assert refused(generate(PROMPTS[:3]), "prompts: '")
    assert refused(generate(PROMPTS[:2], "--cfg", "2"), "cfg: 3.0 there, 2.0 now")
    assert times(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("flags", "expected"),
    [(["--layout", "geneval"], [2, 4, 6, 8]), ([], [1 / 4, 1 / 2, 3 / 4, 1, 5 / 4, 3 / 2, 7 / 4, 2])],
    ids=["geneval", "flat"],
)
def test_the_bar_moves_with_the_ar_steps(call, tmp_path, monkeypatch, flags, expected):
    moved, update = [], tqdm.update
    monkeypatch.setattr("tqdm.tqdm.update", lambda bar, n=1: (update(bar, n), moved.append(bar.n))[0])
    (tmp_path / "list.json").write_text(json.dumps(PROMPTS[:2]))
    batch = 4 if flags else 2
    words = ["--data", tmp_path / "list.json", "--output", tmp_path / "out", "--batch_size", batch, *flags]
    assert call("batch_text2image", *QUICK, *words).code == 0
    assert list(dict.fromkeys(n for n in moved if n)) == pytest.approx(expected)


BAD = {
    "no list": ("nowhere.json", None, "there is no --data"),
    "no JSON": ("list.json", "a bag\n", "cannot be read as JSON"),
    "empty list": ("list.json", "[]", "holds no list of prompts"),
    "no list of prompts": ("list.json", '"a bag"', "holds no list of prompts"),
    "no prompt": ("list.json", '["a bag", {"text": "a coat"}]', "entry 1 of --data"),
    "empty prompt": ("list.json", '["a bag", ""]', "a prompt is empty"),
    "long prompt": ("list.jsonl", json.dumps("very " * 600), "the prompt 'very very"),
    "broken line": ("list.jsonl", '"a bag"\n{"prompt":', "cannot be read as JSON"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_lists_end_in_one_sentence_and_no_folder(call, tmp_path, case):
    name, text, named = BAD[case]
    if text is not None:
        (tmp_path / name).write_text(text)
    assert refused(call("batch_text2image", *QUICK, "--data", tmp_path / name, "--output", tmp_path / "out"), named)
    assert not (tmp_path / "out").exists()


def test_bad_settings_leave_no_folder(call, data, tmp_path):
    for flags, named in (
        (["--num_iter", "65"], "num_iter is 65"),
        (["--image_size", "30"], "image_size is 30"),
        (["--seed", "-1"], "seed is -1"),
    ):
        assert refused(call("batch_text2image", *QUICK, "--data", data, "--output", tmp_path / "out", *flags), named)
    assert not (tmp_path / "out").exists()
