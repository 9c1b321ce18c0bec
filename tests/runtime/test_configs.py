"""Harmon's configs: found here and in the package."""

import pytest

from disa.runtime.configs import read_config
from disa.runtime.files import BUNDLED

NAME = "configs/models/harmon_fashion.py"


def test_a_config_of_the_package_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = read_config(NAME, ("model", "schedule"))
    assert config == read_config(BUNDLED / NAME, ())
    assert config["schedule"] == {"upper": 40, "lower": 8, "strategy": "linear"}
    assert type(config) is type(config["schedule"]) is dict


def test_a_file_here_comes_before_that_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).parent.mkdir(parents=True)
    (tmp_path / NAME).write_text("model = 'mine'")
    assert read_config(NAME, ("model",)) == {"model": "mine"}


def test_options_replace_what_the_file_says():
    options = {"schedule.lower": 4, "defaults": {"cfg": 2.0}}
    config = read_config(NAME, ("schedule",), options)
    assert config["schedule"] == {"upper": 40, "lower": 4, "strategy": "linear"}
    assert config["defaults"] == {"image_size": 32, "num_iter": 16, "cfg": 2.0}


def test_what_a_config_lacks_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"harmon_fashion\.py says nothing on data, training; see the examples"):
        read_config(NAME, ("model", "data", "training"))
    with pytest.raises(FileNotFoundError, match=r"there is no config configs/models/mine\.py; the folders of configs/"):
        read_config("configs/models/mine.py", ())
    for text in ("model =", "raise KeyError", "_base_ = 'yours.py'"):
        (tmp_path / "mine.py").write_text(text)
        with pytest.raises(ValueError, match=r"mine\.py cannot be read as a config \(.+\)$"):
            read_config(tmp_path / "mine.py", ())


def test_the_familys_folder_shows_the_packages_configs():
    shown = BUNDLED.parents[1] / "Harmon_DiSA" / "configs"
    assert shown.is_symlink()
    assert shown.resolve() == BUNDLED / "configs"
