"""Experiments on a running service: programme, rules, requests, kills, and what the run file says of them."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
import yaml
from conftest import settings
from test_field import LINEAR, POSIX, Supply, within
from test_field import supply as supply
from test_rules import HOSTILE
from test_service import noisy_discs

import realtime_skyseg as sky
from realtime_skyseg.cli import main
from realtime_skyseg.config import Config, validate
from realtime_skyseg.errors import ControlError, RunFileError, SettingsError
from realtime_skyseg.experiment import fields, redecide, transitions
from realtime_skyseg.quantities import row_dtype
from realtime_skyseg.segmentation.threshold import save_threshold
from realtime_skyseg.storage import layout, tables

#: A little of everything; two seconds on a recording at 40 frames per second.
PROGRAMME: list[dict[str, Any]] = [
    {"do": "staircase", "name": "up", "from_mT": 0, "to_mT": 30, "step_mT": 10},
    {"do": "ramp", "to_mT": 10, "rate_mT_per_s": 80, "step_mT": 10},
    {"do": "hold", "field_mT": 5, "frames": 3, "ac": {"amplitude_mT": 2, "frequency_hz": 4, "periods": 1}},
    {"do": "demagnetise", "amplitude_mT": 8, "ratio": 0.3, "dwell_s": 0.02},
]


def film(folder: Path) -> dict[str, Any]:
    """A camera that sees 6 discs for 20 frames, none for 20, and so on; and a model that finds them."""
    recording, model = folder / "film.npy", folder / "threshold.safetensors"
    if not recording.exists():
        save_threshold(model)
        empty = np.random.default_rng(0).normal(128, 12, (20, 96, 128)).clip(0, 255).astype(np.uint8)
        np.save(recording, np.concatenate([[noisy_discs(k) for k in range(20)], empty]))
    return {"camera": {"path": str(recording), "loop": True}, "analysis": {"policy": "latest", "model": str(model)}}


def config(folder: Path, supply: Supply, rate_hz: float = 40, **experiment: Any) -> Config:
    seen = film(folder)
    return settings(
        folder,
        seen["camera"] | {"rate_hz": rate_hz},
        analysis=seen["analysis"],
        measure={"min_area_px": 60},
        field=supply.settings(),
        record={"flush_s": 0.1},
        experiment={"settle_s": 0.02, "frames": 2, "programme": PROGRAMME, **experiment},
    )


def written(supply: Supply) -> list[float]:
    """The fields in the log of a supply that another process may be writing at this moment."""
    log = supply.folder / "log"
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    return [10 * float(line.split()[-1]) for line in lines]


def texts(rows: np.ndarray, name: str) -> list[str]:
    return [value.decode() for value in rows[name]]


def table(path: str | Path) -> dict[str, Any]:
    with sky.open_run(path) as run:
        experiment = run.experiment
    assert experiment is not None
    return experiment


@contextmanager
def running(config: Config) -> Iterator[sky.Service]:
    service = sky.Service(config)
    thread = threading.Thread(target=service.run)
    thread.start()
    try:
        within(20, lambda: service.experiment and service.experiment.status()["step"] is not None)
        yield service
    finally:
        service.stop()
        thread.join()


def test_a_programme_and_what_the_file_says(tmp_path: Path, supply: Supply) -> None:
    rules = [{"rule": "stop_when", "when": {"quantity": "count", "at_least": 10_000}}]
    service = sky.Service(config(tmp_path, supply, rules=rules))
    summary = service.run()
    assert (summary.status, summary.message) == ("ok", "")
    assert service.experiment
    assert service.experiment.outcome
    assert service.experiment.outcome.status == "complete"
    steps = table(summary.run_file)["steps"]
    assert list(steps["target_mT"]) == [0, 10, 20, 30, 20, 10, 5, 0]
    assert texts(steps, "kind") == ["staircase"] * 4 + ["ramp"] * 2 + ["hold", "demagnetise"]
    assert list(steps["direction"][1:7]) == [1, 1, 1, -1, -1, -1]
    assert set(steps["turn_mT"][4:7]) == {30}
    assert set(texts(steps, "end")) == {"complete"}
    with sky.open_run(summary.run_file) as run:
        frames = run.table
        kinds = [event["kind"] for event in run.events]
    for row in steps[[0, 1, 2, 3, 6]]:
        own = frames[row["first_frame"] : row["last_frame"] + 1]
        own = own[own["count"] >= 0][-int(row["frames"]) :]
        assert (np.abs(own["field_mT"] - row["target_mT"]) < 0.5).all()
        assert (own["received_ns"] > row["settled_ns"]).all()
        assert row["count"] == pytest.approx(own["count"].mean())
        assert row["count_std"] == pytest.approx(own["count"].std(ddof=1))
        assert row["field_mT"] == pytest.approx(own["field_mT"].mean())
    assert supply.field_mT == 0
    moves = supply.log()
    speeds = np.abs(np.diff(moves[:, 1])) / np.maximum(np.diff(moves[:, 0]), 1e-3)
    assert speeds.max() <= 500 * 1.3  # the log's own time is that after the call
    assert "experiment_ended" in kinds[-3:]
    assert redecide(summary.run_file) == []
    with h5py.File(summary.run_file) as file:
        group = file[layout.EXPERIMENT]
        assert group.attrs["NX_class"] == "NXcollection"
        plot = group["steps"]
        assert plot.attrs["NX_class"] == "NXdata"
        assert {plot.attrs["signal"], *plot.attrs["axes"], *plot.attrs["auxiliary_signals"]} <= set(plot)
        assert plot["field_mT"].attrs["units"] == "mT"


#: Raises the field once, at the tenth result that it sees.
MOVES_ONCE = """
def decide(results):
    return 22.0 if len(results) == 10 else None
"""


def test_decisions_are_events_with_their_inputs(tmp_path: Path, supply: Supply) -> None:
    (tmp_path / "mine.py").write_text(MOVES_ONCE)
    rules = [
        {"rule": "python", "file": str(tmp_path / "mine.py"), "window_frames": 10},
        {"rule": "stop_when", "when": {"quantity": "field_mT", "at_least": 20, "dwell_frames": 1},
         "back_off_mT": 3, "then_frames": 4},
    ]  # fmt: skip
    hold = [{"do": "hold", "field_mT": 5, "frames": 500}]
    service = sky.Service(config(tmp_path, supply, programme=hold, rules=rules))
    summary = service.run()
    assert service.experiment
    assert service.experiment.outcome
    assert service.experiment.outcome.status == "stopped"
    experiment = table(summary.run_file)
    assert texts(experiment["steps"], "end") == ["stopped", "complete"]
    assert experiment["steps"]["frames"][1] == 4
    decisions = experiment["decisions"]
    assert texts(decisions, "rule") == ["0.python", "1.stop_when"]
    assert list(decisions["acted"]) == [1, 1]
    assert list(decisions["old_mT"]) == [5, 22]
    assert decisions["new_mT"][0] == 22
    assert 16 <= decisions["new_mT"][1] <= 19
    with sky.open_run(summary.run_file) as run:
        events = [json.loads(event["message"]) for event in run.events if event["kind"] == "decision"]
        counts = run.table["count"]
    for row, event in zip(decisions, events, strict=True):
        assert event["rule"] == row["rule"].decode()
        assert (event["old_mT"], event["new_mT"], event["acted"]) == (row["old_mT"], row["new_mT"], True)
        assert event["inputs"]["count"] == counts[row["frame"]]
        assert 0 < event["inputs"]["age_s"] < 1
    assert redecide(summary.run_file) == []


def test_another_decision_is_told(tmp_path: Path, supply: Supply) -> None:
    """Deciding again finds a file whose decisions, results or Python rule were changed."""
    (tmp_path / "mine.py").write_text(MOVES_ONCE)
    rule = {"rule": "python", "file": str(tmp_path / "mine.py"), "window_frames": 10}
    hold = [{"do": "hold", "field_mT": 5, "frames": 20}]
    path = sky.Service(config(tmp_path, supply, programme=hold, rules=[rule])).run().run_file
    assert redecide(path) == []
    (tmp_path / "mine.py").write_text(MOVES_ONCE.replace("22.0", "23.0"))
    found = redecide(path)
    assert any("is not the one that the run used" in line for line in found)
    assert any("rule 0 answered 22 to frame " in line and "in the file, 23 again" in line for line in found), found
    assert any("decision 0: new_mT is 22.0 in the file, 23.0 again" in line for line in found), found
    (tmp_path / "mine.py").write_text(MOVES_ONCE)
    with h5py.File(path, "r+") as file:
        counts = file[layout.FRAMES]["count"]
        counts[:] = np.array(counts) + 1
    assert any("step 0: count is " in line for line in redecide(path))
    assert main(["sweep", "--check", path]) == 1
    assert main(["analyse", path, "--out", str(tmp_path / "differs")]) == 1
    (tmp_path / "mine.py").unlink()
    assert main(["analyse", path, "--out", str(tmp_path / "no_rule")]) == 2
    assert (tmp_path / "no_rule" / Path(path).name).exists()  # what analyse is for is done all the same


def test_a_dry_run_decides_and_does_nothing(tmp_path: Path, supply: Supply) -> None:
    rule = {"rule": "stop_when", "when": {"quantity": "field_mT", "at_least": 15, "dwell_frames": 1}}
    programme = [{"do": "list", "fields_mT": [5, 20, 10]}]
    service = sky.Service(config(tmp_path, supply, programme=programme, rules=[rule], dry_run=True))
    path = service.run().run_file
    experiment = table(path)
    assert list(experiment["steps"]["target_mT"]) == [5, 20, 10]
    assert list(experiment["decisions"]["acted"]) == [0]
    assert redecide(path) == []


def test_a_rule_does_not_get_past_the_limits(tmp_path: Path, supply: Supply) -> None:
    (tmp_path / "mine.py").write_text("def decide(results):\n    return [81.0, -1.0, 31.0][len(results) % 3]\n")
    rules = [{"rule": "python", "file": str(tmp_path / "mine.py")}]
    hold = [{"do": "hold", "field_mT": 5, "frames": 8, "limit_mT": [0, 30]}]
    path = sky.Service(config(tmp_path, supply, programme=hold, rules=rules)).run().run_file
    experiment = table(path)
    assert not experiment["decisions"]["acted"].any()
    assert all(text.startswith("refused: ") for text in texts(experiment["decisions"], "reason"))
    assert (
        "refused: 31 mT, allowed: 0 to 30 mT"
        in experiment["decisions"]["reason"][0].decode()
        + experiment["decisions"]["reason"][1].decode()
        + experiment["decisions"]["reason"][2].decode()
    )
    assert supply.log()[:, 1].max() == 5


def test_requests(tmp_path: Path, supply: Supply) -> None:
    programme = [{"do": "list", "fields_mT": [5, 10, 15], "frames": 15}]
    with running(config(tmp_path, supply, programme=programme)) as service:
        assert service.experiment
        with sky.Control(service.control_address) as control:
            control.ask("pause")
            within(5, lambda: control.ask("status")["status"]["experiment"]["state"] == "paused")
            within(5, lambda: service.field and service.field.latest.settled)
            before, stood_at_mT = control.ask("status")["status"], supply.field_mT
            time.sleep(1.0)
            after = control.ask("status")["status"]
            assert after["experiment"]["step"] == before["experiment"]["step"]
            assert supply.field_mT == stood_at_mT
            for do, values in (("set_field", {"field_mT": 1.0}), ("demagnetise", {"amplitude_mT": 1.0})):
                with pytest.raises(ControlError, match=f"{do}: a field programme has the magnet; allowed: pause, "):
                    control.ask(do, **values)
            control.ask("resume")
            within(10, lambda: control.ask("status")["status"]["experiment"]["step"] == 2)
            control.ask("abort")
            within(5, lambda: service.experiment and service.experiment.outcome)
        assert service.experiment.outcome
        assert service.experiment.outcome.status == "aborted"
        within(5, lambda: supply.field_mT == 0)
    assert redecide(service.run_file) == []
    with sky.open_run(service.run_file) as run:
        kinds = [event["kind"] for event in run.events]
    assert [kind for kind in kinds if kind.startswith("experiment")] == [
        "experiment_paused", "experiment_resumed", "experiment_ended",
    ]  # fmt: skip


ON_THE_WAY = [  # a programme whose field is on its way for seconds, and the slew rate of the magnet
    ([{"do": "ramp", "from_mT": 0, "to_mT": 60, "rate_mT_per_s": 20, "step_mT": 60}], 500),
    ([{"do": "list", "fields_mT": [0, 60]}], 20),
]


@pytest.mark.parametrize(("programme", "slew_mT_per_s"), ON_THE_WAY)
def test_a_pause_on_the_way(
    tmp_path: Path, supply: Supply, programme: list[dict[str, Any]], slew_mT_per_s: float
) -> None:
    """The field stands where the pause meets it: it goes neither back nor on."""
    tree = config(tmp_path, supply, programme=programme).model_dump(mode="json")
    tree["field"] |= {"slew_mT_per_s": slew_mT_per_s, "read_every_ms": 40}
    with running(validate(tree)) as service:
        assert service.experiment
        for at_mT in (10, 20):
            within(10, lambda at_mT=at_mT: supply.field_mT > at_mT)  # type: ignore[misc]
            before_mT = supply.field_mT
            service.experiment.pause()
            within(5, lambda: service.experiment and service.experiment.status()["state"] == "paused")
            within(5, lambda: service.field and service.field.latest.settled)
            stood_at_mT = supply.field_mT
            time.sleep(0.3)
            assert before_mT <= supply.field_mT == stood_at_mT < 60
            service.experiment.resume()
        within(10, lambda: service.experiment and service.experiment.outcome)
        assert service.experiment.outcome
        assert service.experiment.outcome.status == "complete"
    set_mT = supply.log()[:, 1]
    assert (np.diff(set_mT[: set_mT.argmax() + 1]) >= 0).all()
    assert redecide(service.run_file) == []


def test_requests_about_a_programme_that_is_not_there(tmp_path: Path, supply: Supply) -> None:
    service = sky.Service(config(tmp_path, supply).model_copy(update={"experiment": None}))
    thread = threading.Thread(target=service.run)
    thread.start()
    within(20, lambda: service.control_address and service.run_file.name)
    try:
        with sky.Control(service.control_address) as control, pytest.raises(ControlError, match="no field programme"):
            control.ask("pause")
    finally:
        service.stop()
        thread.join()


@pytest.mark.parametrize(
    ("changes", "rate_hz", "sentence"),
    [
        ({"max_age_s": 0.1, "interlocks": {"dead_man_s": 0.4}}, 1, "no fresh result for 0.4 s (interlocks.dead_man_s)"),
        ({"interlocks": {"hot_mT": 8, "hot_s": 0.3}}, 40, "beyond 8 mT for 0.3 s (interlocks.hot_s)"),
        ({"interlocks": {"max_duration_s": 0.7}}, 40, "longer than 0.7 s (interlocks.max_duration_s)"),
    ],
)
def test_interlocks_end_in_the_safe_state(
    tmp_path: Path,
    supply: Supply,
    changes: dict[str, Any],
    rate_hz: float,
    sentence: str,
) -> None:
    programme = [{"do": "hold", "field_mT": 10, "frames": 1000}]
    summary = sky.Service(config(tmp_path, supply, rate_hz, programme=programme, **changes)).run()
    assert (summary.status, summary.exit_status) == ("fault", 1)
    assert sentence in summary.message
    assert supply.field_mT == 0
    assert redecide(summary.run_file) == []


def test_a_supply_that_fails_ends_the_experiment(tmp_path: Path, supply: Supply) -> None:
    with running(config(tmp_path, supply, programme=[{"do": "hold", "field_mT": 10, "frames": 1000}])) as service:
        within(5, lambda: supply.field_mT == 10)
        (supply.folder / "stuck").write_text("7")
        within(5, lambda: service.experiment and service.experiment.outcome)
        assert service.experiment
        assert service.experiment.outcome
        assert service.experiment.outcome.message == "the magnet has a fault"
        (supply.folder / "stuck").unlink()
    assert supply.field_mT == 0


def test_a_camera_that_ends_ends_the_experiment(tmp_path: Path, supply: Supply) -> None:
    whole = config(tmp_path, supply, programme=[{"do": "hold", "field_mT": 10, "frames": 1000}])
    tree = whole.model_dump(mode="json")
    tree["camera"] |= {"limit": 30}
    summary = sky.Service(validate(tree)).run()
    assert summary.status == "stopped"
    assert texts(table(summary.run_file)["steps"], "end") == ["aborted"]
    assert supply.field_mT == 0


@POSIX
def test_a_killed_sweep_goes_on_at_the_next_step(
    tmp_path: Path,
    supply: Supply,
    capsys: pytest.CaptureFixture[str],
) -> None:
    targets = list(range(5, 75, 5))
    tree = config(tmp_path, supply, programme=[{"do": "list", "fields_mT": targets, "frames": 4}]).model_dump(
        mode="json"
    )
    tree["experiment"]["rules"] = [{"rule": "stop_when", "when": {"quantity": "field_mT", "at_least": 65,
                                                                  "dwell_frames": 1}}]  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
    paths = os.pathsep.join(sys.path)
    sweep = subprocess.Popen(
        [sys.executable, "-m", "realtime_skyseg.cli", "sweep", str(tmp_path / "run.yaml")],
        env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        within(60, lambda: len(outputs := written(supply)) > 1 and outputs[-1] >= 35)
    finally:
        sweep.send_signal(signal.SIGKILL)
        sweep.wait()
    within(5, lambda: supply.field_mT == 0)
    within(5, (supply.folder / "closed").exists)
    killed = tmp_path / "run.h5.partial"
    before = table(killed)["steps"]
    assert list(before["target_mT"]) == targets[: len(before)]
    assert 3 <= len(before) < 8
    assert redecide(killed) == []

    assert main(["sweep", "--resume", str(killed), "--json"]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["run_file"] == str(tmp_path / "run-2.h5")
    after = table(record["run_file"])["steps"]
    assert list(after["target_mT"])[:-1] == targets[len(before) : targets.index(65) + 1]
    assert list(after["number"]) == list(range(len(before), len(before) + len(after)))
    assert record["experiment"]["status"] == "stopped"
    assert redecide(record["run_file"]) == []
    with pytest.raises(SettingsError, match=r"is over \(stopped\); allowed: one that broke off"):
        sky.Service(validate(tree), resume=Path(record["run_file"])).run()


CHANGES = [
    (lambda tree: tree["experiment"].update(programme=[{"do": "hold", "field_mT": -70}]), "experiment.programme"),
    (lambda tree: tree["field"].update(calibration=LINEAR | {"table": [[-10, 100], [10, -100]]}), "field.calibration"),
    (lambda tree: tree["field"].update(limit_mT=[-80, 41]), "field.limit_mT"),
    (lambda tree: tree["experiment"]["interlocks"].update(dead_man_s=3), "experiment.interlocks"),
    (lambda tree: Path(tree["experiment"]["rules"][0]["file"]).write_text("def decide(results): return -60.0"),
     "the Python rule in '"),
]  # fmt: skip


def test_a_run_goes_on_only_with_what_it_was_made_with(tmp_path: Path, supply: Supply) -> None:
    (tmp_path / "mine.py").write_text("def decide(results): return None")
    rules = [{"rule": "python", "file": str(tmp_path / "mine.py")}]
    parts = [{"do": "hold", "field_mT": 20, "frames": 10}, {"do": "hold", "field_mT": 30, "frames": 5}]
    made = config(tmp_path, supply, programme=parts, rules=rules)
    killed = tmp_path / "run.h5"
    with running(made) as service:
        within(10, lambda: service.experiment and service.experiment.table)
        with sky.Control(service.control_address) as control:
            control.ask("stop")
    with h5py.File(killed, "r+") as file:  # as if it had been killed there
        told, columns = file[f"{layout.EXPERIMENT}/inputs"], layout.EXPERIMENT_TABLES["inputs"]
        rows = tables.read(told, columns)
        tables.replace(told, columns, rows[: int(np.argmax(rows["told"] == 5))])
    for change, name in CHANGES:
        (tmp_path / "mine.py").write_text("def decide(results): return None")
        tree = made.model_dump(mode="json")
        change(tree)
        with pytest.raises(
            SettingsError, match=r"--resume: not as '.*' was made with: .*; allowed: the same, or "
        ) as e:
            sky.Service(validate(tree), resume=killed).run()
        assert name in str(e.value)
    (tmp_path / "mine.py").write_text("def decide(results): return None")
    tree = made.model_dump(mode="json")
    tree["experiment"]["interlocks"]["dead_man_s"] = 3
    summary = sky.Service(validate(tree), resume=killed, accept_changes=True).run()
    assert summary.status == "ok"
    assert table(summary.run_file)["accepted_changes"] == "experiment.interlocks"
    with sky.open_run(summary.run_file) as run:
        assert "experiment_changed" in [event["kind"] for event in run.events]
    summary = sky.Service(made, resume=killed).run()
    assert (summary.status, table(summary.run_file)["accepted_changes"]) == ("ok", "")


#: What the field has to be brought to zero for within a second, whatever the rule does meanwhile.
LOCKS: list[dict[str, float]] = [{"max_duration_s": 2.0}, {"hot_mT": 20, "hot_s": 1.5}]


@pytest.mark.parametrize("name", [
    "blocks for ever", "sys.exit", "os._exit", "memory", "recursion", "leaves threads", "nan", "numpy", "list",
    "is slow", "prints without end", "changes its inputs",
])  # fmt: skip
def test_interlocks_act_beside_a_hostile_rule(tmp_path: Path, supply: Supply, name: str) -> None:
    imports = "import os, sys, threading, time\nimport numpy as np\n"
    body = HOSTILE[name][0].replace("1.5", "25.0")
    wait = "if len(results) < 5: return None"
    (tmp_path / "mine.py").write_text(f"{imports}def decide(results):\n    {wait}\n    {body}\n")
    rules = [{"rule": "python", "file": str(tmp_path / "mine.py"), "limit_s": 60}]
    hold = [{"do": "hold", "field_mT": 30, "frames": 100_000}]
    locks = LOCKS[len(name) % 2]
    service = sky.Service(config(tmp_path, supply, programme=hold, rules=rules, interlocks=locks))
    summary = service.run()
    assert summary.exit_status == 1
    assert f"interlocks.{max(locks, key=lambda key: key != 'hot_mT')}" in summary.message
    assert supply.field_mT == 0
    times, fields = supply.log().T
    with sky.open_run(summary.run_file) as run:
        begun = run.experiment["inputs"]["time_ns"][0] / 1e9 if run.experiment else 0.0
    due = begun + 2.0 if "max_duration_s" in locks else times[np.argmax(fields >= 20)] + 1.5
    late = times[np.argmax((times > due - 0.1) & (np.r_[0, np.diff(fields)] < -1e-6) & (fields < 25 - 1e-6))] - due
    print(f"{name}: {1e3 * late:.0f} ms late")  # noqa: T201
    assert -0.1 < late < 1.5, late


def test_sweep_from_the_command_line(
    tmp_path: Path,
    supply: Supply,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rules = [{"rule": "on_event", "events": ["nucleation", "annihilation"], "clip_s": 0.2, "dwell_frames": 1,
              "present_count": 3}]  # fmt: skip
    programme = [{"do": "staircase", "name": "up", "from_mT": 0, "to_mT": 30, "step_mT": 10, "frames": 4}]
    tree = config(tmp_path, supply, programme=programme, rules=rules, present_count=3).model_dump(mode="json")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
    assert main(["check", str(tmp_path / "run.yaml"), "--plot", str(tmp_path / "plan.png")]) == 0
    assert "# experiment: 4 steps, " in capsys.readouterr().out
    assert main(["sweep", str(tmp_path / "run.yaml"), "--json", "--plot", str(tmp_path / "loop.png")]) == 0
    out = capsys.readouterr().out
    record = json.loads(out.splitlines()[-1])
    assert record["experiment"]["status"] == "complete"
    assert record["experiment"]["steps"] == 4
    path = record["run_file"]
    with sky.open_run(path) as run:
        counts, raw = run.table["count"], run.raw[()]
        marks = [row["frame"] for row in run.experiment["decisions"] if b"span_s" in row["inputs"]]
    assert set(counts[counts >= 0]) == {0, 6}
    clip = tifffile.imread(record["experiment"]["clips"][0])
    assert 8 <= len(clip) <= len(raw)
    first = next(k for k in range(len(raw)) if np.array_equal(raw[k], clip[0]))
    assert np.array_equal(raw[first : first + len(clip)], clip)
    assert first <= marks[0] < first + len(clip)
    assert main(["table", path, "--steps"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert dict(zip(lines[0].split(","), lines[4].split(","), strict=True))["part"] == "up"
    assert main(["table", path, "--plot", str(tmp_path / "again.png")]) == 0
    for picture in ("plan", "loop", "again"):
        assert (tmp_path / f"{picture}.png").stat().st_size > 10_000
    steps_and_decisions = f"{len(table(path)['decisions'])} decisions and 4 steps were decided again, no differences"
    for again in (["sweep", "--check", path], ["analyse", path, "--out", str(tmp_path / "filled"), "--json"]):
        assert main(again) == 0
        out = capsys.readouterr().out
        assert f"{path}: {steps_and_decisions}\n" in out
    assert json.loads(out.splitlines()[-1])["redecided"]["differences"] == []
    again = ["sweep", path, "--set", "record.name=again", "--dry-run", "--json"]
    assert main(again) == 0  # repeated from its own file
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(table(record["run_file"])["steps"]["target_mT"]) == [0, 10, 20, 30]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [([], "allowed: skyseg sweep CONFIG, or skyseg sweep --resume FILE"), (["plain.yaml"], "no section experiment")],
)
def test_wrong_use_of_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str],
    sentence: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("plain.yaml").write_text("camera: {driver: replay, path: bundled}\n")
    assert main(["sweep", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_a_file_without_experiment(tmp_path: Path) -> None:
    summary = sky.Service(settings(tmp_path, {"limit": 3})).run()
    with pytest.raises(RunFileError, match="has no experiment"):
        redecide(summary.run_file)
    assert main(["table", summary.run_file, "--steps"]) == 2


def test_settings_may_include_others(tmp_path: Path) -> None:
    (tmp_path / "rig.yaml").write_text(
        "camera: {driver: replay, path: bundled, rate_hz: 5}\nanalysis: {policy: every}\n"
    )
    (tmp_path / "run.yaml").write_text("include: rig.yaml\ncamera: {rate_hz: 7}\n")
    found = sky.load_config(tmp_path / "run.yaml")
    assert found.camera.model_extra == {"path": "bundled", "rate_hz": 7}
    assert found.analysis.policy == "every"
    (tmp_path / "rig.yaml").write_text("include: run.yaml\n")
    with pytest.raises(SettingsError, match=r"'rig\.yaml' has an include too"):
        sky.load_config(tmp_path / "run.yaml")


def test_the_same_programme_on_the_demo_camera(tmp_path: Path) -> None:
    """One line of the settings is another one: the rig."""
    pytest.importorskip("mm_test_adapters")
    pytest.importorskip("mmpycorex")
    configs = Path(__file__).parents[2] / "configs"
    text = (configs / "sweep_loop.yaml").read_text(encoding="utf-8")
    for rig in ("sweep_rig_twin.yaml", "sweep_rig_demo.yaml"):
        (tmp_path / rig).write_text((configs / rig).read_text(encoding="utf-8"))
    assert text.count("include: sweep_rig_twin.yaml") == 1
    (tmp_path / "sweep.yaml").write_text(text.replace("include: sweep_rig_twin.yaml", "include: sweep_rig_demo.yaml"))
    assert (
        sky.load_config(tmp_path / "sweep.yaml").experiment == sky.load_config(configs / "sweep_loop.yaml").experiment
    )
    # In a process of its own: there is one MMCore per process.
    done = subprocess.run(
        [sys.executable, "-m", "realtime_skyseg.cli", "sweep", str(tmp_path / "sweep.yaml"), "--json",
         "--set", f"record.folder={tmp_path}", "--set", "stream.address=tcp://127.0.0.1:0",
         "--set", "experiment.programme.0.to_mT=3.5", "--set", "experiment.rules.0.change=1000000"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    steps = table(record["run_file"])["steps"]
    assert list(steps["target_mT"]) == [4.5, 4, 3.5, 4, 4.5]
    assert np.abs(steps["field_mT"] - steps["target_mT"]).max() < 0.1
    assert redecide(record["run_file"]) == []


def test_the_examples_of_the_docs(tmp_path: Path, supply: Supply, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/scripting.md: a run in ten lines, and a rule, on the camera and supply of these tests."""
    page = (Path(__file__).parents[2] / "docs" / "scripting.md").read_text(encoding="utf-8")
    run, rule, _ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (rules,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("my_rule.py").write_text(rule)
    experiment = yaml.safe_load(rules)["experiment"]
    experiment["programme"][0] |= {"field_mT": 1, "limit_mT": [0.5, 25], "frames": 20}
    Path("configs").mkdir()
    tree = config(tmp_path, supply, **experiment).model_dump(mode="json")
    Path("configs/sweep_loop.yaml").write_text(yaml.safe_dump(tree))
    run = run.replace('"experiment.frames=4"', '"experiment.programme.0.frames=4"')
    found = {}
    exec(run, found)
    decisions = found["decisions"]
    assert len(found["steps"]) == 1
    assert len(decisions) >= 1
    refused = [text for text, acted in zip(texts(decisions, "reason"), decisions["acted"], strict=True) if not acted]
    assert all("allowed: 0.5 to 25 mT" in text for text in refused)  # where it arrives at the limit
    assert decisions["new_mT"].min() < 0.9


def test_nucleation_and_annihilation_fields() -> None:
    rows = [  # field, direction, count, cycle
        (3.0, -1, 0, 0), (2.5, -1, 0, 0), (2.0, -1, 4, 0), (2.5, 1, 3, 0), (3.0, 1, 0.3, 0),
        (2.5, -1, 0.5, 1), (2.0, -1, 0, 1), (1.5, -1, 9, 1),
    ]  # fmt: skip
    steps = np.zeros(len(rows), row_dtype(layout.STEP_COLUMNS))
    for row, (field_mT, direction, count, cycle) in zip(steps, rows, strict=True):
        row["field_mT"], row["direction"], row["count"], row["cycle"], row["frames"] = (
            field_mT, direction, count, cycle, 3
        )  # fmt: skip
    found = transitions(steps)
    assert [(one.kind, one.direction, one.field_mT, one.half_mT) for one in found] == [
        ("nucleation", -1, 2.25, 0.25), ("annihilation", 1, 2.75, 0.25), ("nucleation", -1, 1.75, 0.25),
    ]  # fmt: skip
    nucleation, annihilation = fields(found)
    assert (nucleation["field_mT"], nucleation["n"]) == (2.0, 2)
    assert nucleation["uncertainty_mT"] == pytest.approx(np.sqrt(0.125 / 2 + 0.25**2 / 3))
    assert annihilation["uncertainty_mT"] == pytest.approx(0.25 / np.sqrt(3))


@POSIX
def test_keys_of_the_terminal(tmp_path: Path, supply: Supply) -> None:
    pty = pytest.importorskip("pty")
    tree = config(tmp_path, supply, programme=[{"do": "hold", "field_mT": 20, "frames": 10_000}]).model_dump(
        mode="json"
    )
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
    ours, theirs = pty.openpty()
    sweep = subprocess.Popen(
        [sys.executable, "-m", "realtime_skyseg.cli", "sweep", str(tmp_path / "run.yaml")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm", "COLUMNS": "100"},
        stdin=theirs, stdout=theirs, stderr=subprocess.STDOUT,
    )  # fmt: skip
    os.close(theirs)
    shown = bytearray()

    def read() -> None:
        try:
            while data := os.read(ours, 4096):
                shown.extend(data)
        except OSError:
            return  # it has ended

    reader = threading.Thread(target=read)
    reader.start()
    try:
        within(60, lambda: b"p pause, r resume, a abort" in shown)
        within(10, lambda: written(supply)[-1] == 20)
        for key, sign in ((b"p", b"paused"), (b"r", b"runs, step 0"), (b"a", b"aborted")):
            del shown[:]
            os.write(ours, key)
            within(10, lambda sign=sign: sign in shown)  # type: ignore[misc]
        sweep.wait(20)
    finally:
        sweep.kill()
        sweep.wait()
        reader.join(5)
        os.close(ours)
    assert sweep.returncode == 0
    within(5, lambda: written(supply)[-1] == 0)
