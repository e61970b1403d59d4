"""What a user types wrongly, and what she is told. Nothing is recorded, and there is no traceback."""

import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from test_service import noisy_discs

from realtime_skyseg.cli import main

RUN = "run run.yaml --set stream.enabled=false --set control.enabled=false"

#: What she types after `skyseg`, and what the sentence says. The status is 2 in all of these.
MISTAKES = [
    ("run nowhere.yaml", "settings file 'nowhere.yaml' cannot be read: No such file or directory"),
    ("run video.avi", "settings file 'video.avi' cannot be read: it is no text; a recording goes to camera.path"),
    ("run empty.yaml", "settings file 'empty.yaml' holds nothing; allowed: a mapping of keys to values"),
    ("run list.yaml", "settings file 'list.yaml' holds a list; allowed: a mapping of keys to values"),
    ("run deep.yaml", "settings file 'deep.yaml': not valid YAML (it is nested too deeply)"),
    ("run twice.yaml", "not valid YAML ('camera' stands there twice)"),
    ("run broken.yaml", "settings file 'broken.yaml', line 1, column"),
    ("run nocamera.yaml", "camera: this key is missing"),
    (
        f"{RUN} --set camera.rate_hz=0",
        "camera.rate_hz: 0 is not allowed: input should be 'recorded' or 'max' or greater than 0",
    ),
    (f"{RUN} --set camera.rate_hz=fast", "camera.rate_hz: 'fast' is not allowed: input should be 'recorded' or 'max'"),
    (f"{RUN} --set camera.rate_hz=yes", "camera.rate_hz: 'yes' is not allowed"),
    (
        f"{RUN} --set camera.rate_hz=recorded",
        "camera.rate_hz: 'recorded' is not possible because images (folder) states no rate",
    ),
    (f"{RUN} --set camera.path=nowhere.tif", "camera.path: nowhere.tif does not exist; allowed: a folder of images"),
    (f"{RUN} --set camera.path=~/nowhere", "/nowhere does not exist"),
    (f"{RUN} --set camera.path={'n' * 300}.tif", "camera.path: "),
    (f"{RUN} --set camera.path=run.yaml", "camera.path: run.yaml has the unsupported suffix '.yaml'"),
    (f"{RUN} --set camera.path=empty", "camera.path: the folder empty holds no images"),
    (f"{RUN} --set camera.path=empty.tif", "empty.tif: frame 0 cannot be read: the file is empty"),
    (f"{RUN} --set camera.path=notes.tif", "notes.tif: frame 0 cannot be read: not a TIFF file"),
    (f"{RUN} --set camera.path=tiny.npy", "camera: its frames have 8 x 9 px; allowed: sides of 16 px or more"),
    (f"{RUN} --set camera.path=complex.npy", "its pixels are complex128; allowed: integers and floats"),
    (
        f"{RUN} --set camera.path=two.h5",
        "camera.dataset: two.h5 holds 2 arrays that can be frames; allowed: one of /a, /b",
    ),
    (
        f"{RUN} --set camera.path=two.h5 --set camera.dataset=c",
        "camera.dataset: 'c' is no array in two.h5; allowed: /a, /b",
    ),
    (f"{RUN} --set camera.channel=1", "camera.channel: '1' is not in images; allowed: 0"),
    (f"{RUN} --set camera.z=-1", "camera.z: -1 is not allowed: input should be greater than or equal to 0"),
    (f"{RUN} --set camera.limit=1.5", "camera.limit: 1.5 is not allowed: input should be a valid integer"),
    (f"{RUN} --set camera.loop=maybe", "camera.loop: 'maybe' is not allowed: input should be a valid boolean"),
    (f"{RUN} --set camera.speed=2", "camera.speed: unknown key; allowed: path, rate_hz"),
    (f"{RUN} --set camera.pth=images", "camera.pth: unknown key; did you mean 'path'?"),
    (f"{RUN} --set camera=3", "camera: 3 is not allowed: input should be a mapping of keys to values"),
    (f"{RUN} --set camera.driver=replya", "camera.driver: 'replya' is not among the installed cameras; allowed: "),
    (f"{RUN} --set field.driver=manul", "field.limit_mT: this key is missing"),
    (f"{RUN} --set foo=1", "foo: unknown key; allowed: camera, field"),
    (f"{RUN} --set foo", "--set 'foo': allowed: key=value, for example camera.rate_hz=25"),
    (
        f"{RUN} --set analysis.policy=fast",
        "analysis.policy: 'fast' is not allowed: input should be 'latest' or 'every'",
    ),
    (f"{RUN} --set analysis.threads=x", "analysis.threads: 'x' is not allowed: input should be a valid integer"),
    (
        f"{RUN} --set analysis.model=nope",
        "analysis.model: 'nope' is neither a shipped model nor a file; allowed: accurate, accurate-0.1, compact",
    ),
    (f"{RUN} --set analysis.model=notes.tif", "model notes.tif cannot be read as safetensors"),
    (f"{RUN} --set analysis.engine=cuda", "analysis.engine: 'cuda' is not allowed: input should be 'auto', 'tensorrt'"),
    (
        f"{RUN} --set measure.pixel_size_um=-1",
        "measure.pixel_size_um: -1 is not allowed: input should be greater than 0",
    ),
    (
        f"{RUN} --set measure.min_area_px=true",
        "measure.min_area_px: True is not allowed: true and false are no numbers",
    ),
    (
        f"{RUN} --set prepare.background=gone.tif",
        "prepare.background: 'gone.tif' cannot be read as an image: gone.tif does not exist",
    ),
    (
        f"{RUN} --set prepare.background=tiny.npy",
        "prepare.background: 'tiny.npy' is 3 x 8 x 9 px; allowed: the frames' 96 x 128",
    ),
    (f"{RUN} --set stream.address=tcp://x", "stream.address: 'tcp://x' is not allowed: should be tcp://HOST:PORT"),
    (f"{RUN} --set record.name=a/b", "record.name: 'a/b' is not allowed: a file name has no /"),
    (f"{RUN} --set record.name=a:b", "record.name: 'a:b' is not allowed: a file name has no /"),
    (f"{RUN} --set record.name=CON", "record.name: 'CON' is not allowed: this is the name of a device on Windows"),
    (f"{RUN} --set record.name=-rf", "record.name: '-rf' is not allowed"),
    (f"{RUN} --plot picture.xyz", "'picture.xyz' is no picture; allowed: a name that ends in .png, .pdf or .svg"),
    ("check nowhere.yaml", "settings file 'nowhere.yaml' cannot be read"),
    ("check run.yaml --set camera.path=nowhere", "camera.path: nowhere does not exist"),
    ("info nowhere.h5", "run file 'nowhere.h5' does not exist"),
    ("info two.h5", "'two.h5' is not a run file of this product"),
    ("info notes.tif", "'notes.tif' cannot be opened as a run file"),
    ("table nowhere.h5", "run file 'nowhere.h5' does not exist"),
    ("recover nowhere.h5.partial", "run file 'nowhere.h5.partial' does not exist"),
    ("analyse nowhere --out out", "camera.path: nowhere does not exist"),
    ("analyse images --out out --again", "--again: 'images' is no run file"),
    ("analyse images --out out --set analysis.modell=x", "analysis.modell: unknown key; did you mean 'model'?"),
    ("tell foo", "'foo' is no request; allowed: status, stop, set_field"),
    ("tell mark message", "'message': allowed: KEY=VALUE"),
    ("tell status --wait", "--wait: 'status' moves no field"),
    ("sweep run.yaml", "'run.yaml' has no section experiment"),
    ("sweep", "sweep needs settings: allowed: skyseg sweep CONFIG"),
    ("evaluate --images nowhere --labels images", "images: 'nowhere' is not a folder"),
    ("import notes.tif", "model file 'notes.tif' cannot be read as a .keras file"),
]


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Path]:
    """A folder with what the mistakes are made with."""
    before = Path.cwd()
    os.chdir(tmp_path)
    Path("images").mkdir()
    for index in range(3):
        cv2.imwrite(f"images/{index}.png", noisy_discs(index))
    Path("empty").mkdir()
    Path("run.yaml").write_text("camera: {driver: replay, path: images, rate_hz: max}\n")
    for name, text in {
        "empty.yaml": "", "list.yaml": "- a\n- b\n", "deep.yaml": "[" * 3000, "broken.yaml": "camera: {path: [}\n",
        "twice.yaml": "camera: {driver: replay}\ncamera: {driver: twin}\n", "nocamera.yaml": "analysis: {}\n",
        "empty.tif": "", "notes.tif": "no picture",
    }.items():  # fmt: skip
        Path(name).write_text(text)
    Path("video.avi").write_bytes(b"RIFF\xff\xfe\x00\x80")
    np.save("tiny.npy", np.arange(3 * 72, dtype=np.uint8).reshape(3, 8, 9))
    np.save("complex.npy", np.zeros((2, 32, 32), complex))
    with h5py.File("two.h5", "w") as file:
        file["a"] = file["b"] = np.zeros((2, 32, 32), np.uint8)
        del file["b"]
        file["b"] = np.ones((2, 32, 32), np.uint8)
    yield tmp_path
    os.chdir(before)


@pytest.mark.parametrize(("typed", "sentence"), MISTAKES, ids=str)
def test_a_mistake_is_one_sentence_with_status_2(
    workplace: Path, capsys: pytest.CaptureFixture[str], typed: str, sentence: str
) -> None:
    try:
        status = main(typed.split())
    except SystemExit as ended:  # argparse
        status = int(ended.code or 0)
    told = capsys.readouterr().err
    assert sentence in told
    assert status == 2
    assert "Traceback" not in told
    assert not list(workplace.glob("runs/*"))


def test_there_are_enough() -> None:
    assert len(MISTAKES) >= 60
