"""What is said where an optional dependency is missing."""

import pytest

from disa.runtime.distributed import USER_ERRORS
from disa.runtime.extras import MissingExtra, extra
from tests.helpers.scripts import exit_code


def use(name):
    with extra("eval"):
        return __import__(name)


@pytest.mark.parametrize("module", ["a_package", "a_package.a_module"])
def test_a_missing_package_is_one_sentence(module, capsys):
    assert exit_code(lambda: use(module)) == 2
    sentence = "error: a_package is not installed; pip install 'disa[eval]'\n"
    assert capsys.readouterr().err == sentence
    with pytest.raises(MissingExtra) as error:
        use(module)
    assert isinstance(error.value.__cause__, ModuleNotFoundError)
    assert issubclass(MissingExtra, (ImportError, USER_ERRORS))


def test_what_is_installed_is_imported():
    assert use("json").dumps([]) == "[]"


def test_another_error_of_an_import_is_kept(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("raise TypeError('theirs')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TypeError, match="theirs"):
        use("broken_package")
