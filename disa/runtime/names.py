"""Names that somebody typed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """Return "; did you mean X?" with the allowed name most like `name` in any case; nothing if none is."""
    known = {one.lower(): one for one in allowed}
    return "".join(f"; did you mean {known[one]}?" for one in difflib.get_close_matches(name.lower(), known, 1))
