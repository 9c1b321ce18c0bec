"""Names that somebody typed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping

# A setting as the library calls it -> what a user may call it: flags of the commands, of which one has one, and so the
# keys of recipes.
SETTINGS: dict[str, tuple[str, ...]] = {
    "scale": ("cfg",),
    "schedule": ("cfg_schedule",),
    "max_time": ("guidance",),
    "min_time": ("guidance_min_time",),
    "skip_below": ("skip_guidance_below",),
    "upper": ("diff_upper_steps", "flow_upper_steps", "upper_steps"),
    "lower": ("diff_lower_steps", "flow_lower_steps", "lower_steps", "num_step", "num_sampling_steps"),
    "strategy": ("diff_annealing_strategy", "flow_annealing_strategy", "annealing_strategy"),
    "sampler": ("diff_sampler", "flow_sampler", "sampler"),
    "num_images": ("num_images", "images"),
    "save_epochs": ("save_last_freq",),
    "eval_epochs": ("eval_freq",),
    **{name: (f"cache_{name}",) for name in ("tokens", "conditions", "first")},
    **{name: (f"feature_{name}",) for name in ("every", "order", "fresh")},
}


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """Return "; did you mean X?" with the allowed name most like `name` in any case; nothing if none is."""
    known = {one.lower(): one for one in allowed}
    return "".join(f"; did you mean {known[one]}?" for one in difflib.get_close_matches(name.lower(), known, 1))


def user_name(message: str, known: Collection[str], own: Mapping[str, str] | None = None) -> tuple[str, str] | None:
    """Find what the user calls the setting that an error's message begins with ("Guidance.scale is -1 …").

    Args:
        known: the user's names.
        own: setting -> the user's name, which comes before those of SETTINGS.

    Returns:
        The name, and the message from the setting on, without it where both are the same; None if there is no name.
    """
    if (found := re.match(r"(?:[A-Z]\w*\.)?(\w+) (?:is|are) ", message)) is None:
        return None
    setting, said = found[1], message[found.start(1) :]
    given = [*([own[setting]] if own and setting in own else []), *SETTINGS.get(setting, ()), setting]
    name = next((name for name in given if name in known), None)
    if name is None:
        return None
    return name, said.removeprefix(setting) if name == setting else f": {said}"
