"""The benchmark that counts launches, on small models and few steps."""

import json

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import launches
from benchmarks.launches import Counts, Generation, Meter, count, find_recipe
from disa import Guidance, StepSchedule
from tests.helpers.scripts import exit_code

SHORT = {"schedule": StepSchedule(4, 4), "guidance": Guidance(2.0, "constant", 0.5)}  # guided in the second half


@pytest.fixture
def meter():
    with FakeTensorMode(), Meter() as counting:
        yield counting


def test_memory_is_counted_until_its_last_view_is_gone(meter):
    first = torch.empty(1000, device="cuda")
    second = torch.empty(500, device="cuda")
    del second
    view = first[10:]
    del first
    third = torch.empty(100, device="cuda")
    assert meter.memory == 4 * 1100
    del view
    assert meter.memory == 4 * 100
    assert meter.here.peak == 4 * 1500
    on_host = torch.empty(10_000)
    assert meter.here.peak == 4 * 1500
    del third, on_host


def test_kernels_are_counted_and_views_are_not(meter):
    x = torch.empty(4, 8, device="cuda", dtype=torch.float16)
    y = x.view(8, 4)[1:].T
    torch.empty(0, device="cuda").add(1)  # nothing to launch
    assert meter.here.launches == 0
    x.add_(1)
    assert (meter.here.launches, meter.here.other_bytes) == (1, 2 * 32 * 2)  # read and written
    x.T @ x
    assert meter.here.flops == 2 * 8 * 4 * 8
    assert meter.here.product_bytes == 2 * (32 + 32 + 64)
    assert meter.here.seconds["H100"] == pytest.approx((128 + 256) / 3.35e12)
    assert meter.here.launches == 2
    assert y.shape == (4, 7)


@pytest.mark.parametrize(
    ("wait", "waits", "copies"),
    [
        (lambda x: x.sum().item(), 1, 0),
        (lambda x: bool((x > 0).all()), 1, 0),
        (lambda x: x.cpu(), 1, 1),
        (lambda _: torch.ones(3).to("cuda"), 1, 1),
        (lambda _: torch.ones(3).to("cuda", non_blocking=True), 0, 1),
        (lambda x: x.copy_(torch.ones(3)), 1, 1),
        (lambda x: x.copy_(torch.ones(3), non_blocking=True), 0, 1),
        (lambda x: x.to(torch.float64) + 1, 0, 0),
    ],
)
def test_the_host_waits_where_cuda_says_so(meter, wait, waits, copies):
    wait(torch.empty(3, device="cuda"))
    assert (meter.here.synchronizations, meter.here.copies) == (waits, copies)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "more"), [("mar_fashion", {"num_iter": 2}), ("flowar_fashion", {})])
def test_what_is_counted_once_for_all_is_what_all_ask_for(name, more, monkeypatch):
    settings = {**SHORT, **more, **({"guidance": Guidance(2.0)} if name == "mar_fashion" else {})}
    short = count(name, 1, "float16", **settings)
    monkeypatch.setattr(Meter, "once", lambda _self, _seen, _key, function, *args: function(*args))
    full = count(name, 1, "float16", **settings)
    assert short.launches == full.launches
    for key in ("launches", "synchronizations", "copies", "flops", "product_bytes", "other_bytes", "peak"):
        assert getattr(short.total, key) == getattr(full.total, key)
    assert short.total.seconds == pytest.approx(full.total.seconds)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("mar_fashion", {"loop", "encoder", "decoder", "head", "VAE"}),
        ("flowar_fashion", {"loop", "backbone", "head", "VAE"}),
        ("xar_fashion", {"loop", "backbone", "head", "VAE"}),
        ("harmon_fashion", {"loop", "language model", "encoder", "decoder", "head", "VAE"}),
    ],
)
def test_no_generation_waits_and_more_evaluations_take_more(name, parts):
    short = {"num_iter": 4} if find_recipe(name).sampling.num_iter else {}
    few, many = (count(name, 1, "float32", schedule=StepSchedule(n, n), **short) for n in (4, 8))
    assert few.parts.keys() == parts
    assert few.total.synchronizations == many.total.synchronizations == 0
    assert few.total.launches < many.total.launches < 2 * few.total.launches
    assert few.parts["head"].flops < many.parts["head"].flops
    assert all(few.parts[part].flops == many.parts[part].flops for part in parts - {"loop", "head"})
    assert few.total.predict("H100", 1) == few.total.launches * 5e-6  # launch-bound
    assert {part: sum(steps) for part, steps in few.launches.items()} == {
        part: counts.launches for part, counts in few.parts.items()
    }
    assert few.total.launches == sum(counts.launches for part, counts in few.parts.items() if part != "VAE")


@pytest.mark.slow
def test_a_batch_moves_more_bytes_by_as_many_launches():
    one, many = (count("xar_fashion", batch, "bfloat16", **SHORT).total for batch in (1, 4))
    assert one.launches == many.launches
    assert many.other_bytes > 2 * one.other_bytes
    assert many.flops > 3 * one.flops
    assert many.peak > one.peak > 3.7e6  # the weights alone take so much


@pytest.mark.slow
def test_a_replay_is_one_launch():
    settings = {"num_iter": 3, "schedule": StepSchedule(9, 9)}
    eager, captured = (count("mar_fashion", 1, "float16", graphs, **settings) for graphs in (False, True))
    assert captured.parts["head"].launches < 0.1 * eager.parts["head"].launches
    assert captured.parts["decoder"].launches < 0.5 * eager.parts["decoder"].launches
    assert captured.parts["encoder"].launches == eager.parts["encoder"].launches


def test_a_model_without_a_recipe_is_refused():
    with pytest.raises(ValueError, match=r"model is 'mar'; there are recipes with DiSA of mar_base, .*xar_fashion"):
        find_recipe("mar")


def test_tables_compare_two_commits():
    def generation(kernels, batch, dtype, captured=False):
        seconds = dict.fromkeys(launches.CHIPS, 1.0)
        counts = Counts(kernels, flops=1e12, other_bytes=1e9 * kernels, peak=2**30, seconds=seconds)
        parts = {"head": counts, "VAE": Counts(peak=2**31)}
        return Generation("mar_base", batch, dtype, captured, parts, {"head": [kernels, 0], "VAE": [0, 0]})

    now = [generation(100, 1, "float16"), generation(100, 2, "float16"), generation(100, 2, "float32")]
    now.append(generation(7, 1, "float16", captured=True))
    before = [generation(400, 1, "float16"), generation(400, 2, "float16"), generation(400, 2, "float32")]
    text = launches.write_tables(now, before, "abc")
    lines = [line for line in text.splitlines() if line.startswith("| mar_base")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0][2:6] == ["400", "100", "0.25", "7"]
    assert cells[2][-4:] == ["2.0", "2.0", "1.0", "1.0"]  # decoding takes the most memory
    assert "commit abc" in text
    assert all(len(line) <= 120 for line in text.splitlines() if not line.startswith("|"))
    assert "before" not in launches.write_tables(now, [], None)
    assert Generation.from_dict(json.loads(json.dumps(launches.asdict(now[0])))) == now[0]


@pytest.mark.slow
def test_the_command_writes_tables_and_counts(tmp_path, capsys):
    out, counts = tmp_path / "launches.md", tmp_path / "launches.json"
    launches.main(["--model", "flowar_fashion", "--batch", "3", "--json", str(counts), "--out", str(out)])
    assert out.read_text() == capsys.readouterr().out[:-1]
    found = [Generation.from_dict(one) for one in json.loads(counts.read_text())["generations"]]
    assert [(one.batch, one.dtype, one.captured) for one in found] == [
        (1, "float16", False),
        (3, "float16", False),
        (3, "float32", False),
        (1, "float16", True),
    ]


def test_an_impossible_batch_is_refused(capsys):
    assert exit_code(lambda: launches.main(["--batch", "0"])) == 2
    assert "--batch is 0" in capsys.readouterr().err
