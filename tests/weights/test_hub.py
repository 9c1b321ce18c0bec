"""Files of the Hugging Face hub."""

from pathlib import Path

import huggingface_hub
import pytest

from disa.weights.hub import hub_file, hub_folder


def test_files_and_folders_come_by_the_hubs_own_functions(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *asked: f"/cache/{'/'.join(asked)}")
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda asked, allow_patterns: f"/cache/{asked}/{len(allow_patterns)}"
    )
    assert hub_file("me/mar", "mar.pth") == Path("/cache/me/mar/mar.pth")
    assert hub_folder("me/mar", ("*.json", "*.txt")) == Path("/cache/me/mar/2")


@pytest.mark.parametrize("error", [OSError("no network\nmore"), ValueError("no network"), RuntimeError("no network")])
def test_what_fails_is_one_sentence(monkeypatch, error):
    def fail(*_, **__):
        raise error

    for function, call in (("hf_hub_download", hub_file), ("snapshot_download", hub_folder)):
        monkeypatch.setattr(huggingface_hub, function, fail)
        with pytest.raises(OSError, match=r"^me/mar could not be fetched from the hub \(no network\)$"):
            call("me/mar", "mar.pth")


def test_offline_a_file_that_is_not_in_the_cache_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError, match="me/mar could not be fetched from the hub"):
        hub_file("me/mar", "mar.pth")
