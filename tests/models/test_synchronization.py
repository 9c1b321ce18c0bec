"""No generation waits for its GPU: on fake CUDA tensors, everything that would is an error."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from disa import Guidance, StepSchedule, build_model
from disa.acceleration import Captured
from disa.acceleration.caching import Caching
from disa.acceleration.feature_cache import Extrapolation
from disa.grouping import Grouping

WAITING = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "item")
SHORT = {"schedule": StepSchedule(4, 2), "guidance": Guidance(2.0)}


class NoWaiting(TorchDispatchMode):
    """Raises where the host would wait for the device; counts copies to it."""

    copies = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[-1]
        devices = {leaf.device.type for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        if name in WAITING and "cuda" in devices:
            raise AssertionError(f"{name} waits for the GPU")
        out = func(*args, **(kwargs or {}))
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor) and leaf.numel()]
        reached = {leaf.device.type for leaf in results} | devices
        if name in ("_to_copy", "copy_") and reached == {"cpu", "cuda"}:
            assert "cuda" not in devices or name == "copy_", "a result was copied to the host"
            self.copies += 1
        return out


class OneLaunch:
    """Stands for a captured graph, whose replays compute nothing."""

    def capture(self, function):
        return function()

    def replay(self):
        pass


class FakeNoise:
    """Noise on the fake device."""

    def __init__(self, batch):
        self.batch = batch

    def normal(self, _, draws, tokens, channels):
        return torch.empty(draws, self.batch, tokens, channels, device="cuda")

    def orders(self, length):
        return torch.empty(self.batch, length, dtype=torch.long, device="cuda")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("mar_fashion", {"num_iter": 4}),
        ("mar_fashion", {"num_iter": 4, "sampler": "DPM_Solver++2M"}),
        ("flowar_fashion", {}),
        ("flowar_fashion", {"sampler": "heun"}),
        ("xar_fashion", {"sampler": "euler_maruyama"}),
        ("flowar_fashion", {"extrapolation": Extrapolation(2, 1), "guidance": Guidance(2.0, "constant", 0.7, 0.2)}),
        ("xar_fashion", {"extrapolation": Extrapolation(2, 0), "sampler": "heun"}),
        ("harmon_fashion", {"num_iter": 4}),
        ("mar_fashion", {"num_iter": 4, "grouping": Grouping("halton", "stages")}),
        ("mar_fashion", {"num_iter": 4, "grouping": Grouping("gtr", "stages")}),
        ("harmon_fashion", {"num_iter": 4, "guidance": Guidance(2.0, "linear", 0.9, 0.1, 1.5)}),
        ("mar_fashion", {"num_iter": 4, "caching": Caching(2, 2, 1)}),
        ("harmon_fashion", {"num_iter": 4, "caching": Caching(2, 2, 1)}),
    ],
)
@pytest.mark.parametrize("captured", [False, True])
def test_a_generation_never_waits(name, settings, captured, monkeypatch):
    """With captured graphs the first one does, to compare them."""
    sampler = "DiSA" if name in ("mar_fashion", "harmon_fashion") else "euler"
    with torch.device("meta"):
        build_model(name).nfe(
            SHORT["schedule"], settings.get("sampler", sampler), settings.get("num_iter")
        )  # keeps times
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("cuda"):
            model = build_model(name).eval()
            ids = torch.ones(4, 12, dtype=torch.long)
        # Labels come from the host; whoever has them on the GPU has checked them.
        inputs = (
            {"input_ids": ids} if name.startswith("harmon") else {"labels": torch.zeros(2, dtype=torch.long).cuda()}
        )
        if captured:
            monkeypatch.setattr("disa.acceleration.capture._difference", lambda *_: 0.0)
            run = Captured(OneLaunch)
            for module in model.modules():
                module.run = run
            model.generate(**inputs, **{**SHORT, **settings}, noise=FakeNoise(2))
            assert run.captures
        with NoWaiting() as watched:
            latents = model.generate(**inputs, **{**SHORT, **settings}, noise=FakeNoise(2))
    assert latents.device.type == "cuda"
    # The times, once, before the loop; and Halton's sequence.
    assert watched.copies <= 1 + (settings.get("grouping", Grouping()).order == "halton")
