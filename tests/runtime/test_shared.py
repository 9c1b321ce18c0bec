"""Where the weights that all families share are looked for."""

from pathlib import Path

import pytest

from disa.runtime import shared
from disa.runtime.shared import FAMILIES, places, shared_folder

KL16 = Path("pretrained_models", "vae", "kl16.ckpt")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout that holds the package, with the folders of its families."""
    for family in FAMILIES:
        (tmp_path / "checkout" / family).mkdir(parents=True)
    monkeypatch.setattr(shared, "PACKAGE", tmp_path / "checkout")
    monkeypatch.delenv("DISA_WEIGHTS", raising=False)
    return tmp_path / "checkout"


def test_families_share_one_folder_at_the_top_of_the_checkout(checkout, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    for here in (checkout, *(checkout / family for family in FAMILIES), tmp_path / "elsewhere"):
        monkeypatch.chdir(here)
        assert shared_folder() == checkout / "pretrained_models"
        assert checkout / KL16 in places(KL16)


def test_an_installed_package_has_its_folder_here_or_above_a_familys(checkout, tmp_path, monkeypatch):
    monkeypatch.setattr(shared, "PACKAGE", tmp_path / "site-packages")
    monkeypatch.chdir(tmp_path)
    assert shared_folder() == Path("pretrained_models")
    monkeypatch.chdir(checkout / "xAR_DiSA")
    assert shared_folder() == checkout / "pretrained_models"


def test_a_variable_names_another_folder(checkout, tmp_path, monkeypatch):
    monkeypatch.setenv("DISA_WEIGHTS", str(tmp_path / "weights"))
    assert shared_folder() == tmp_path / "weights"
    assert places(KL16)[1] == tmp_path / "weights" / "vae" / "kl16.ckpt"
    assert checkout / KL16 in places(KL16)  # what is there is found all the same


def test_places_are_here_then_the_shared_folder_then_the_families(checkout, monkeypatch):
    monkeypatch.chdir(checkout / "FlowAR_DiSA")
    found = places(KL16)
    assert found[:2] == [KL16, checkout / KL16]
    assert [checkout / family / KL16 for family in FAMILIES] == found[-4:]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("path", ["kl16.ckpt", "weights/kl16.ckpt", "./kl16.ckpt", "/pretrained_models/kl16.ckpt"])
def test_other_paths_are_what_they_are(path):
    assert places(path) == [Path(path)]
