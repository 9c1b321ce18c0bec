"""batch_text2image.py: through kills and ranks, GenEval's folders, lists of every kind, refusals."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from disa.generation import is_whole
from tests.harmon.conftest import CONFIG, FOLDER, QUICK, refused

ENV = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")} | {"OMP_NUM_THREADS": "1"}
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


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_kills_leave_whole_images_and_ranks_go_on(call, checkpoint, data, tmp_path):
    flags = [*QUICK, "--data", data, "--layout", "geneval", "--batch_size", 1, "--num_iter", 8]
    killed = tmp_path / "killed"
    words = ["scripts/batch_text2image.py", CONFIG, "--device", "cpu", "--checkpoint", checkpoint, *flags, "--output", killed]
    words = [str(word) for word in words]
    process = subprocess.Popen([sys.executable, *words], cwd=FOLDER, env=ENV, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 120
        while len(list(killed.glob("*/samples/[0-9]*.png"))) < 6:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait()
    made = {path: time for path, time in times(killed).items() if path.suffix == ".png" and not path.name.startswith(".")}
    assert 6 <= len(made) < len(PROMPTS) * 4 and all(map(is_whole, made))

    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *words]
    ended = subprocess.run(two, cwd=FOLDER, env=ENV, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"{len(PROMPTS)} prompts are drawn in {killed}\n" and ended.stderr.count("attends with") == 1
    assert made.items() <= times(killed).items() and not list(killed.rglob("*.part*"))
    assert call("batch_text2image", *flags, "--batch_size", 7, "--output", tmp_path / "whole").code == 0
    assert same(images(killed), images(tmp_path / "whole"))
    before = times(killed)
    assert call("batch_text2image", *flags, "--output", killed).code == 0
    assert {path: time for path, time in times(killed).items() if path.suffix == ".png"} == {
        path: time for path, time in before.items() if path.suffix == ".png"
    }


def test_geneval_finds_its_folders(call, data, tmp_path):
    data.write_text("\n".join(data.read_text().splitlines()[:2]))
    assert call("batch_text2image", *QUICK, "--data", data, "--layout", "geneval", "--output", tmp_path / "out").code == 0
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    one = ["grid.png", "metadata.jsonl", *(f"samples/000{i}.png" for i in range(4))]
    assert found == [f"0000{prompt}/{name}" for prompt in (0, 1) for name in one] + ["settings.json"]
    folder = tmp_path / "out" / "00001"
    assert json.loads((folder / "metadata.jsonl").read_text()) == {"tag": "one", "prompt": "a coat", "include": []}
    grid, last = np.array(Image.open(folder / "grid.png")), np.array(Image.open(folder / "samples" / "0003.png"))
    assert grid.shape == (64, 64) and (grid[32:, 32:] == last).all()
    said = json.loads(Image.open(folder / "samples" / "0003.png").text["disa"])
    assert (said["prompt"], said["image"], said["seed"], said["upper_steps"]) == ("a coat", 7, 1, 4)


def test_flat_folder_has_a_grid_a_prompt(call, data, tmp_path):
    lists = {"strings.json": json.dumps(PROMPTS[:2]), "lines.jsonl": "\n".join(map(json.dumps, PROMPTS[:2]))}
    lists["objects.json"] = json.dumps([{"prompt": prompt, "id": i} for i, prompt in enumerate(PROMPTS[:2])])
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        assert call("batch_text2image", *QUICK, "--data", tmp_path / name, "--output", tmp_path / "out").code == 0  # the same prompts
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["000000.png", "000001.png", "settings.json"]
    data.write_text("\n".join(data.read_text().splitlines()[:2]))
    call("batch_text2image", *QUICK, "--data", data, "--layout", "geneval", "--output", tmp_path / "tree", "--batch_size", 3)
    for prompt in (0, 1):
        grid = np.array(Image.open(tmp_path / "out" / f"00000{prompt}.png"), int)
        assert abs(grid - np.array(Image.open(tmp_path / "tree" / f"0000{prompt}" / "grid.png"), int)).max() <= 1
    said = json.loads(Image.open(tmp_path / "out" / "000001.png").text["disa"])
    assert (said["prompt"], said["grid_size"]) == ("a coat", 2)


def test_other_prompts_or_settings_do_not_share_a_folder(call, tmp_path):
    def draw(prompts, *flags):
        (tmp_path / "list.json").write_text(json.dumps(prompts))
        return call("batch_text2image", *QUICK, "--grid_size", 1, "--data", tmp_path / "list.json", "--output", tmp_path / "out", *flags)

    assert draw(PROMPTS[:2]).code == 0
    before = times(tmp_path / "out")
    assert refused(draw(PROMPTS[:3]), "prompts: '")
    assert refused(draw(PROMPTS[:2], "--cfg", "2"), "cfg: 3.0 there, 2.0 now")
    assert times(tmp_path / "out") == before


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
