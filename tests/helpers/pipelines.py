"""Pipelines of the bundled models, loaded once, and calls of them with few steps."""

from disa import Pipeline, StepSchedule
from disa.data.fashion import FASHION_CLASSES

CLASSES = ["mar_fashion", "flowar_fashion", "xar_fashion"]
NAMES = [*CLASSES, "harmon_fashion"]
LOW = StepSchedule(4, 2)
pipes: dict[str, Pipeline] = {}


def load(name):
    """A bundled pipeline, loaded once."""
    if name not in pipes:
        pipes[name] = Pipeline.from_pretrained(name, device="cpu")
    return pipes[name]


def asked(name, *labels):
    """What to show, of any family."""
    names = [FASHION_CLASSES[label] for label in labels]
    return {"prompts": [f"a {one}" for one in names]} if name == "harmon_fashion" else {"labels": labels}


def call(name, *labels, **settings):
    """A call with few steps."""
    few = {"num_iter": 4} if name in ("mar_fashion", "harmon_fashion") else {}
    return load(name)(**{**asked(name, *labels), "schedule": LOW, **few, **settings})


def same(ours, theirs):
    return [one.tobytes() for one in ours.images] == [one.tobytes() for one in theirs.images]
