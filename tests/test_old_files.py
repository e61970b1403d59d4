"""What earlier versions wrote is read as they meant it: run files, messages, settings."""

import base64
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from test_analyse import forget_results

import realtime_skyseg as sky
from realtime_skyseg.cli import main
from realtime_skyseg.config import validate
from realtime_skyseg.streaming.messages import decode

DATA = Path(__file__).parent / "data"

#: A run with a field programme and what version 0.1 read from it, before tables were groups of columns.
OLD_RUN, TOLD = DATA / "run-1.h5", json.loads((DATA / "run-1.json").read_text())


def plain(rows: np.ndarray) -> dict[str, list[Any]]:
    return {
        name: [value.decode() if isinstance(value, bytes) else value for value in rows[name].tolist()]
        for name in rows.dtype.names or ()
    }


def test_an_old_run_file() -> None:
    with sky.open_run(OLD_RUN) as run:
        assert hashlib.sha256(run.raw[()].tobytes()).hexdigest() == TOLD["raw"]
        assert hashlib.sha256(run.mask[()].tobytes()).hexdigest() == TOLD["mask"]
        assert hashlib.sha256(run.objects().tobytes()).hexdigest() == TOLD["objects"]
        table = plain(run.table)
        for name, column in TOLD["table"].items():
            np.testing.assert_array_equal(table[name], column, name)
        experiment = {k: plain(v) if isinstance(v, np.ndarray) else v for k, v in (run.experiment or {}).items()}
        # NaN is not equal to itself, but its text is.
        assert json.dumps(experiment, sort_keys=True) == json.dumps(TOLD["experiment"], sort_keys=True)
        assert (run.events, run.summary, run.provenance) == (TOLD["events"], TOLD["summary"], TOLD["provenance"])
        assert not any(run.problem(frame) for frame in range(run.n_frames))
        validate(run.config)


def test_an_old_run_file_is_filled_in(tmp_path: Path) -> None:
    old = tmp_path / "old.h5"
    shutil.copy(OLD_RUN, old)
    with h5py.File(old, "r+") as file:
        file["entry/frames/skipped"][3:6] = 1
    assert main(["analyse", str(old), "--out", str(tmp_path / "out")]) == 0
    with sky.open_run(tmp_path / "out" / "old.h5") as run:
        assert not run.table["skipped"].any()
        assert not any(run.problem(frame) for frame in range(run.n_frames))


def test_an_old_run_in_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 0.1 said `segment_gb` and `NAME.segments`."""
    record = {"folder": str(tmp_path), "name": "run", "segment_gb": 1e-4}
    config = validate(
        {"camera": {"driver": "replay", "path": "bundled"}, "stream": {"enabled": False}, "record": record}
    )
    with monkeypatch.context() as then:
        then.setattr("realtime_skyseg.storage.layout.VOLUMES", (".segments",))
        summary = sky.Service(config).run()
    assert (tmp_path / "run.segments" / "1.h5").exists()
    shutil.copytree(tmp_path / "run.segments", tmp_path / "partly" / "run.segments")
    partly = forget_results(Path(summary.run_file), tmp_path / "partly" / "run.h5", [3, 4, 5])
    assert main(["analyse", str(partly), "--out", str(tmp_path / "out")]) == 0
    with sky.open_run(tmp_path / "out" / "run.h5") as run, sky.open_run(summary.run_file) as old:
        np.testing.assert_array_equal(run.mask[()], old.mask[()])
        assert not [p for frame in range(run.n_frames) if (p := run.problem(frame))]


def test_an_old_run_file_is_rescued(tmp_path: Path) -> None:
    cut = tmp_path / "cut.h5.partial"
    cut.write_bytes(OLD_RUN.read_bytes()[:700_000])
    assert main(["recover", str(cut)]) in (0, 1)
    with sky.open_run(tmp_path / "cut.recovered.h5") as run:
        assert run.table["written"].sum() > 40
        assert not any(run.problem(frame) for frame in range(run.n_frames))


def test_old_messages() -> None:
    for line in (DATA / "stream-1.jsonl").read_text().splitlines():
        decode([base64.b64decode(part) for part in json.loads(line)])
