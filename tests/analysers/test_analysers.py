"""A lab's own numbers: from one class in its own package to the file, the stream, rules and pictures."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import settings
from test_analyse import forget_results
from test_docs import examples
from test_field import LINEAR

import realtime_skyseg as sky
from realtime_skyseg.analysers import RunningAnalyser, View
from realtime_skyseg.analysers.running import MOST_FAILURES, MOST_LATE, RESERVED
from realtime_skyseg.cli import main
from realtime_skyseg.config import validate
from realtime_skyseg.errors import SettingsError
from realtime_skyseg.records import FRAME_QUANTITIES, OBJECT_DTYPE
from realtime_skyseg.segmentation.model import load_model
from realtime_skyseg.storage import layout, recover
from realtime_skyseg.streaming.messages import CountsMessage, HeaderMessage, ImageMessage, LateMessage

#: Analysers that do not do as they should.
ODD = """
import time
import numpy as np
from realtime_skyseg.analysers import Analyser, Quantity

class Raises(Analyser):
    quantities = (Quantity("raised", "f4", np.nan, of="frame"),)
    def __call__(self, view):
        raise SystemExit("no")

class Nothing(Analyser):
    quantities = (Quantity("nothing", "f4", np.nan, of="frame"),)
    def __call__(self, view):
        return {"nothing": float("nan")}

class Shape(Analyser):
    quantities = (Quantity("odd", "f4", np.nan, of="object"), Quantity("other", "f4", np.nan, of="map", cell_px=4))
    def __call__(self, view):
        return {"odd": np.zeros(len(view.objects) + 1)}

class Sleeps(Analyser):
    quantities = (Quantity("slept", "i4", -1, "s", "how long it slept", of="frame"),)
    pace = "when_idle"
    def __call__(self, view):
        time.sleep(1)
        return {"slept": 1}

class Slow(Analyser):
    quantities = (Quantity("slow", "f4", np.nan, of="frame"),)
    def __call__(self, view):
        time.sleep(0.03)
        return {"slow": 1.0}

class Taken(Analyser):
    quantities = (Quantity("count", "f4", np.nan, of="frame"),)

class Diameter(Analyser):
    quantities = (Quantity("diameter", "f4", np.nan, of="object"),)

class LateObjects(Analyser):
    quantities = (Quantity("mine", "f4", np.nan, of="object"),)
    pace = "when_idle"

class Sure(Analyser):
    quantities = (Quantity("sureness", "f4", np.nan, "", "mean probability inside the mask", of="frame"),)
    needs = frozenset({"probability"})
    def __call__(self, view):
        inside = view.probability[view.mask == 1]
        return {"sureness": inside.mean() if len(inside) else np.nan}

class Latent(Analyser):
    quantities = (Quantity("latent", "f4", np.nan, "", "channels per cell, and px of a cell", of="frame"),)
    needs = frozenset({"features", "probability"})
    pace = "when_idle"
    def __call__(self, view):
        channels, rows, columns = view.features.shape
        assert view.features.std() > 0 and 0 <= view.probability.min() <= view.probability.max() <= 1
        return {"latent": channels + view.image.shape[1] / columns / 1000}
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with the analysers of docs/analyser.md, and odd ones, as pip would install it."""
    package, info = tmp_path / "lab" / "my_lab", tmp_path / "lab" / "my_lab-1.dist-info"
    package.mkdir(parents=True)
    info.mkdir()
    one, two, _ = examples("analyser.md")
    (package / "__init__.py").touch()
    (package / "extras.py").write_text(one)
    (package / "more.py").write_text(two)
    (package / "odd.py").write_text(ODD)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my_lab\nVersion: 1\n")
    names = {"mean_grey": "extras:MeanGrey", "depth": "more:Depth", "density": "more:Density"}
    names |= {name.lower(): f"odd:{name}" for name in re.findall(r"class (\w+)\(Analyser", ODD)}
    lines = [f"{name} = my_lab.{place}" for name, place in names.items()]
    (info / "entry_points.txt").write_text("\n".join(["[realtime_skyseg.analysers]", *lines]) + "\n")
    monkeypatch.syspath_prepend(tmp_path / "lab")
    yield tmp_path
    import sys

    for name in [name for name in sys.modules if name.split(".")[0] == "my_lab"]:
        del sys.modules[name]


ALL: dict[str, Any] = {"mean_grey": None, "depth": {}, "density": {"every": 4}}


def test_a_new_number_is_everywhere(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = settings(lab, {"limit": 12, "rate_hz": 20}, stream={"wait_for_subscribers": 1}, analysers=ALL)
    with sky.Service(made).start() as running:
        with sky.Subscriber(running.address) as stream:
            heard = list(stream.every(20))
        path = running.wait().run_file

    # the run file
    with h5py.File(path) as file:
        column = file["entry/frames/mean_grey"]
        assert column.attrs["description"] == "mean grey level of the sample"
        assert json.loads(file["entry/frames/result_crc32"].attrs["covers"])[-1] == "mean_grey"
    with sky.open_run(path) as run:
        assert not any(run.problem(frame) for frame in range(12))
        expected = [run.raw[k][run.mask[k] != 3].mean() for k in range(12)]
        np.testing.assert_allclose(run.table["mean_grey"], expected, rtol=1e-5)
        assert run.objects(3)["depth"].dtype == np.float32
        rows, maps = run.analyser("density")
        assert len(rows) == len(maps["density"]) >= 2
        assert (np.diff(rows["frame"]) >= 4).all()
        np.testing.assert_allclose(
            maps["density"][0][0, 0], (run.mask[int(rows["frame"][0])][:16, :16] == 1).mean(), rtol=1e-6
        )
        assert run.summary
        assert run.summary["analysers"]["mean_grey"]["frames"] == 12
        assert run.summary["analysers"]["mean_grey"]["ms"]["p50"] < 20
        table = run.table

    # the stream
    header = next(message for message in heard if isinstance(message, HeaderMessage))
    assert [one["name"] for one in header.quantities] == ["mean_grey", "depth", "density"]
    images = [message for message in heard if isinstance(message, ImageMessage)]
    counts = [message for message in heard if isinstance(message, CountsMessage)]
    assert [message.model_extra["mean_grey"] for message in images] == pytest.approx(list(table["mean_grey"]))
    assert counts[3].model_extra == {"mean_grey": pytest.approx(table["mean_grey"][3])}
    assert images[0].objects.dtype.names == (*(OBJECT_DTYPE.names or ()), "depth")

    # info, picture, table
    assert main(["info", path, "--plot", str(lab / "run.png")]) == 0
    assert "mean grey level of the sample" in capsys.readouterr().out
    assert (lab / "run.png").stat().st_size > 50_000
    assert main(["table", path]) == 0
    assert "mean_grey" in capsys.readouterr().out.splitlines()[0]


def test_a_rule_can_wait_for_it_and_be_decided_again(lab: Path) -> None:
    """The film turns bright once its field passes zero."""
    field = {"driver": "twin", "unit": "V", "calibration": LINEAR, "limit_mT": [-6, 6], "slew_mT_per_s": 50,
             "tolerance_mT": 0.1, "initial_mT": 4.5}  # fmt: skip
    camera = {"driver": "twin", "rate_hz": 40, "height_px": 96, "width_px": 128,
              "sample": {"kind": "film", "start": "saturated", "start_mT": 4.5}}  # fmt: skip
    rule = {"rule": "stop_when", "when": {"quantity": "mean_grey", "at_least": -1e6}}
    tree: dict[str, Any] = {
        "camera": camera, "field": field, "analysers": {"mean_grey": {}},
        "stream": {"enabled": False}, "record": {"folder": str(lab), "name": "run"},
        "experiment": {"frames": 2, "rules": [rule], "programme": [
            {"do": "staircase", "from_mT": 4.5, "to_mT": 2, "step_mT": 0.5}]},
    }  # fmt: skip
    tree["field"]["calibration"] = {"date": "2026-11-26", "note": "n", "table": [[-10, -10], [10, 10]]}
    summary = sky.Service(validate(tree)).run()
    assert summary.status == "ok", summary.message
    with sky.open_run(summary.run_file) as run:
        assert run.experiment
        assert b"mean_grey is" in run.experiment["decisions"]["reason"][0]
    assert main(["sweep", "--check", summary.run_file]) == 0
    rule["when"]["quantity"] = "grey"
    with pytest.raises(SettingsError, match=r"rules.0.when.quantity: 'grey' is not found .*, field_mT, mean_grey"):
        validate(tree)


def test_it_is_filled_in_and_rescued(lab: Path) -> None:
    """Bit for bit what it was live."""
    summary = sky.Service(settings(lab, {"limit": 8}, analysers=ALL)).run()
    gaps = forget_results(Path(summary.run_file), lab / "gaps.h5", [2, 3, 4])
    with h5py.File(gaps, "r+") as file:
        file["entry/frames/mean_grey"][2:5] = np.nan
    assert main(["analyse", str(gaps), "--out", str(lab / "out")]) == 0
    cut = lab / "cut.h5.partial"
    cut.write_bytes(Path(summary.run_file).read_bytes())
    rescued = recover(cut)
    with sky.open_run(summary.run_file) as whole:
        for path in (lab / "out" / "gaps.h5", rescued.path):
            with sky.open_run(path) as run:
                np.testing.assert_array_equal(run.table["mean_grey"], whole.table["mean_grey"])
                assert not any(run.problem(frame) for frame in range(8))
                assert "depth" in (run.objects().dtype.names or ())
                assert run.analyser("density")[1]["density"].shape == whole.analyser("density")[1]["density"].shape


def test_odd_ones_are_counted_said_and_switched_off(lab: Path) -> None:
    names = ("raises", "nothing", "shape", "sleeps", "slow")
    made = settings(lab, {"limit": 30, "rate_hz": 15}, analysers=dict.fromkeys(names))
    summary = sky.Service(made).run()
    assert summary.status == "ok"
    assert summary.frames["analysed"] == 30
    told = summary.analysers
    assert told["raises"] | {"ms": 0} == {"frames": 10, "failed": 10, "empty": 0, "switched_off": True, "ms": 0}
    assert told["shape"]["failed"] == MOST_FAILURES
    assert (told["nothing"]["failed"], told["nothing"]["empty"]) == (0, 30)
    assert told["slow"]["frames"] == MOST_LATE
    assert 1 <= told["sleeps"]["frames"] <= 3
    with sky.open_run(summary.run_file) as run:
        said = [(event["kind"], event["message"].split("'")[1]) for event in run.events]
        assert np.isnan(run.table["raised"]).all()
        assert (run.table["count"] > 0).all()
        assert np.isnan(run.objects()["odd"]).all()
        assert list(run.analyser("sleeps")[0]["slept"]) == [1] * len(run.analyser("sleeps")[0])
    assert set(said) == {
        ("analyser_failed", "raises"), ("analyser_off", "raises"), ("analyser_failed", "shape"),
        ("analyser_off", "shape"), ("analyser_off", "slow"),
    }  # fmt: skip


def test_no_quantity_takes_the_name_of_a_column() -> None:
    columns = {*layout.FRAME_COLUMNS, *layout.RESULT_COLUMNS, *layout.OBJECT_COLUMNS}
    assert columns <= RESERVED | set(FRAME_QUANTITIES)


def test_what_comes_late_is_published(lab: Path) -> None:
    made = settings(lab, {"limit": 40, "rate_hz": 15}, stream={"wait_for_subscribers": 1}, analysers={"sleeps": {}})
    with sky.Service(made).start() as running, sky.Subscriber(running.address) as stream:
        late = [message for message in stream.every(20) if isinstance(message, LateMessage)]
    assert [message.values for message in late][:1] == [{"slept": 1}]


def test_the_probability_of_the_network(lab: Path) -> None:
    summary = sky.Service(settings(lab, {"limit": 2}, analysers={"sure": None})).run()
    with sky.open_run(summary.run_file) as run:
        assert (run.table["sureness"] > 0.7).all()


def test_the_features_of_the_network_beside_the_path(lab: Path) -> None:
    """Of the prepared image, though the path goes on with the next one."""
    prepare = {"background": "rolling_median", "median_frames": 3, "median_every": 1}
    made = settings(lab, {"limit": 40, "rate_hz": 10}, prepare=prepare, analysers={"latent": None})
    summary = sky.Service(made).run()
    shape = load_model("compact").shape
    with sky.open_run(summary.run_file) as run:
        rows, _ = run.analyser("latent")
    assert len(rows) >= 2
    cell = shape.unshuffle * 2**shape.depth
    np.testing.assert_allclose(rows["latent"], shape.channels(shape.depth) + cell / 1000, atol=2e-3)


@pytest.mark.parametrize(
    ("analysers", "sentence"),
    [
        ({"mean_gray": {}}, "analysers.driver: 'mean_gray' is not among the installed analysers; allowed: "),
        ({"density": {"evry": 4}}, "analysers.density.evry: unknown key; did you mean 'every'?"),
        ({"density": {"every": "x"}}, "analysers.density.every: 'x' is not allowed: input should be a valid integer"),
        ({"taken": {}}, "analysers.taken: 'count' is a quantity of another one; allowed: a new name"),
        ({"diameter": {}}, "'diameter' declares 'diameter' of 'object'; allowed: a new name"),
        ({"lateobjects": {}}, "'lateobjects' declares 'mine' of objects; allowed: pace every_frame"),
    ],
)
def test_wrong_settings_are_one_sentence(lab: Path, analysers: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings(lab, {}, analysers=analysers)
    assert sentence in str(caught.value)


def test_an_answer_is_checked() -> None:
    """Of each kind of answer what becomes of it."""
    from realtime_skyseg.analysers import Analyser, Quantity

    class Anything(Analyser):
        quantities = (Quantity("a", "f4", np.nan, of="frame"), Quantity("m", "f4", np.nan, of="map", cell_px=4))
        answer: Any = None

        def __call__(self, view: View) -> Any:
            return self.answer

    one = Anything(Anything.Settings())
    view = View(
        0, 0.0, np.nan, np.zeros((10, 12), np.uint8), np.zeros((10, 12), np.uint8), np.empty(2, OBJECT_DTYPE), {}
    )
    for answer, values, failed in (
        ({"a": np.float64(1.1)}, {"a": float(np.float32(1.1))}, 0), ({}, {}, 0), ({"a": True}, {"a": 1.0}, 0),
        ({"b": 1}, {}, 1), ({"a": "x"}, {}, 1), ({"a": [1, 2]}, {}, 1), (None, {}, 1), ({"a": 1j}, {}, 1),
        ({"m": np.zeros((3, 3))}, {}, 0), ({"m": np.zeros((2, 3))}, {}, 1), ({"m": np.array(["x"] * 9)}, {}, 1),
    ):  # fmt: skip
        running = RunningAnalyser("any", one)
        one.answer = answer
        found = running(view)
        assert (found.values, running.failed, len(found.events)) == (values, failed, failed), answer
