"""Flags of the scripts: the released names and defaults, explained."""

import pytest

from disa.commands.families import MAR
from tests.helpers.scripts import FLAGS, script


def different(script):
    """Where we differ: `auto` takes cuda where there is one, and eval.py need not be told what it is for."""
    return {
        **({} if "Harmon" in script else {"device": "auto"}),
        **({"evaluate": True} if script.endswith("eval.py") else {}),
    }


@pytest.mark.parametrize("name", FLAGS)
def test_every_released_flag_has_its_released_default(name):
    released = FLAGS[name]
    every = script(name).get_parser()._actions
    assert [action.dest for action in every if not action.option_strings] == (["config"] if "Harmon" in name else [])
    actions = {action.option_strings[0].removeprefix("--"): action for action in every if action.option_strings}
    assert released.keys() <= actions.keys()
    assert {flag: actions[flag].default for flag in released} == {**released, **different(name)}
    switches = [flag for flag, default in released.items() if isinstance(default, bool)]
    assert [flag for flag in released if actions[flag].nargs == 0] == switches


@pytest.mark.parametrize("name", FLAGS)
def test_every_flag_is_explained(name):
    parser = script(name).get_parser()
    assert [action.option_strings for action in parser._actions if not action.help] == []
    assert all(flag in parser.format_help() for flag in parser._option_string_actions)


def test_pinned_memory_can_be_switched_off():
    assert [MAR.parse(flags).pin_mem for flags in ((), ("--pin_mem",), ("--no_pin_mem",))] == [True, True, False]
