"""The examples in docs/ run as they stand."""

import doctest
import re
import runpy
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import nbformat
import pytest
from conftest import settings
from test_guests import KerasModel
from test_service import free_address, noisy_discs
from test_training import write_labelled

import realtime_skyseg as sky
from realtime_skyseg import notebook
from realtime_skyseg.analysis import segmenter
from realtime_skyseg.cli import main
from realtime_skyseg.preparation import preparation
from realtime_skyseg.service import service
from realtime_skyseg.streaming import control, subscriber

DOCS = Path(__file__).parents[1] / "docs"


def examples(page: str) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_the_readers_of_the_stream(tmp_path: Path, which: int) -> None:
    """Each in a process of its own, on a run that starts once it has joined."""
    address = free_address()
    code = examples("stream.md")[which]
    code = "import realtime_skyseg as sky\n" + code.replace("tcp://127.0.0.1:5555", address)
    code = code.replace("Subscriber()", f"Subscriber({address!r})")
    (tmp_path / "reader.py").write_text(code)
    reader = subprocess.Popen([sys.executable, tmp_path / "reader.py"], stdout=subprocess.PIPE, text=True)
    stream = {"address": address, "wait_for_subscribers": 1}
    sky.Service(settings(tmp_path, {"limit": 5, "rate_hz": 5}, stream=stream)).run()
    output, _ = reader.communicate(timeout=60)
    assert reader.returncode == 0
    assert re.search(r"^4 \d+", output, re.MULTILINE), output
    if which == 2:
        assert "end: ok" in output


def test_reading_a_run_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = sky.Service(settings(tmp_path, {"limit": 12})).run()
    code = re.sub(r'open_run\(".*?"\)', f"open_run({summary.run_file!r})", examples("run-file.md")[0])
    (tmp_path / "read.py").write_text(code)
    runpy.run_path(str(tmp_path / "read.py"))
    assert "finished 12 compact" in capsys.readouterr().out


def test_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one, in a kernel of its own."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    summary = sky.Service(settings(tmp_path / "runs", {"path": "bundled", "limit": 12}, record={"name": "film"})).run()
    with sky.open_run(summary.run_file) as run:
        cv2.imwrite(str(tmp_path / "frame.png"), run.raw[0])
        count = int(run.table["count"][0])
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in examples("notebook.md")])
    nbformat.write(notebook, tmp_path / "page.ipynb")
    execute = "from nbclient.cli import NbClientApp; NbClientApp.launch_instance()"
    command = [sys.executable, "-c", execute, "--inplace", "--timeout=120", "page.ipynb"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    notebook = nbformat.read(tmp_path / "page.ipynb", 4)
    shown = [[output for output in cell["outputs"] if output["output_type"] != "stream"] for cell in notebook["cells"]]
    kinds = [[kind for output in outputs for kind in output["data"]] for outputs in shown]
    assert set(kinds[0]) == {"text/html", "text/plain"}
    assert f"{count} skyrmions" in shown[0][0]["data"]["text/html"]
    assert "<img" in shown[0][0]["data"]["text/html"]
    assert "image/png" in kinds[1]
    assert "<img" in shown[2][0]["data"]["text/html"]
    said = "".join(output["text"] for output in notebook["cells"][3]["outputs"] if output["output_type"] == "stream")
    assert re.search(r"D = [\d.e-]+ ± [\d.e-]+ px\^2/s", said)
    assert "diffusion_px2_per_s" in shown[3][0]["data"]["text/html"]
    assert "image/png" in kinds[4]
    assert cv2.imread(str(tmp_path / "outlines.png")) is not None


def test_an_imported_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("frame.png", noisy_discs(0))
    KerasModel(2, 1, 3, 2).save(Path("my_model.keras"))
    assert main(["import", "my_model.keras"]) == 0
    Path("look.py").write_text(examples("keras.md")[0])
    runpy.run_path("look.py")
    assert cv2.imread("outlines.png") is not None


def test_fine_tuning_on_a_few_images(tmp_path: Path) -> None:
    """The settings of docs/train.md, for a few steps."""
    data = write_labelled(tmp_path / "my", n=5)
    settings = ["--set", f"images={data / 'images'}", "--set", f"labels={data / 'labels'}", "--set", "steps=4"]
    settings += ["--set", "crop_px=64", "--set", f"out={tmp_path / 'mine.safetensors'}"]
    assert main(["train", str(DOCS.parent / "configs" / "finetune.yaml"), *settings]) == 0
    assert sky.Segmenter.load(str(tmp_path / "mine.safetensors"), "torch")(noisy_discs(0)).count == 6


def test_the_camera_driver(tmp_path: Path) -> None:
    """The example is a camera, gives its frames, and ends; as a package it is found by its name."""
    package = tmp_path / "my_lab"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "noise.py").write_text(examples("camera-driver.md")[0])
    info = tmp_path / "my_lab-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my_lab\nVersion: 1\n")
    entry = re.findall(
        r"```toml\n# .*?\n\[project\.entry-points\.\"(.*?)\"\]\n(.*?)```", _page("camera-driver.md"), re.DOTALL
    )
    (info / "entry_points.txt").write_text(f"[{entry[0][0]}]\n{entry[0][1].replace(chr(34), '')}")
    config = tmp_path / "run.yaml"
    config.write_text(
        "camera: {driver: noise, rate_hz: 200, frames: 7}\nanalysis: {policy: every}\n"
        f"stream: {{enabled: false}}\nrecord: {{folder: '{tmp_path}', name: run}}\n"
    )
    command = [
        sys.executable,
        "-c",
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from realtime_skyseg.cli import main; sys.exit(main())",
    ]
    done = subprocess.run([*command, "run", str(config)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with sky.open_run(tmp_path / "run.h5") as run:
        assert run.n_frames == 7


def _page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def test_every_link_leads_somewhere() -> None:
    pages = [DOCS.parent / "README.md", *DOCS.glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\((?!http)(.*?)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_no_thread_outlives_the_examples() -> None:
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("skyseg-")]


def test_the_examples_in_docstrings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a service that runs, a run file that was prepared, and an image."""
    monkeypatch.chdir(tmp_path)
    for name, camera in {"run": "loop: true, rate_hz: 20", "short": "limit: 8"}.items():
        Path(f"{name}.yaml").write_text(
            f"camera: {{driver: replay, path: bundled, {camera}}}\nstream: {{address: 'tcp://127.0.0.1:0'}}\n"
            "control: {address: 'tcp://127.0.0.1:0'}\n"
        )
    prepare = {"background": "rolling_median", "median_frames": 3, "median_every": 2}
    made = settings(tmp_path, {"limit": 8}, stream={"enabled": False}, prepare=prepare)
    path = sky.Service(made).run().run_file
    with sky.open_run(path) as run:
        image = run.raw[0]
    modules = [sky, control, notebook, preparation, segmenter, service, subscriber]
    with sky.Service(sky.load_config("run.yaml")).start() as running:
        names = {"running": running, "path": path, "image": image, "settings": made.prepare}
        names["segmenter"] = sky.Segmenter.load("compact")
        for module in modules:
            assert doctest.testmod(module, extraglobs=names).failed == 0, module.__name__
        running.stop()
    files = {file for file in Path(sky.__file__).parent.rglob("*.py") if ">>> " in file.read_text(encoding="utf-8")}
    assert files == {Path(str(module.__file__)) for module in modules}, "every one was tried"
