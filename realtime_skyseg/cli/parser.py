"""What each command of `skyseg` takes."""

import argparse
import sys
from importlib.metadata import entry_points
from pathlib import Path

import realtime_skyseg
from realtime_skyseg.cli.clients import dashboard_command, keys_command, tell_command, watch_command
from realtime_skyseg.cli.files import (
    analyse_command,
    annotate_command,
    check_command,
    info_command,
    napari_command,
    pick_command,
    pictures_command,
    recover_command,
    table_command,
)
from realtime_skyseg.cli.models import (
    bench_command,
    calibrate_command,
    evaluate_command,
    export_command,
    import_command,
    models_command,
    quantise_command,
    threshold_command,
    train_command,
)
from realtime_skyseg.cli.runs import demo_command, run_command, sweep_command

_KINDS = ("input", "prepared", "mask", "overlay")  # as `exports.Kind`
_ENGINES = ("auto", "tensorrt", "torch", "openvino", "openvino-int8")


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands, those of other packages too."""
    parser = argparse.ArgumentParser(
        prog="skyseg", description="Live segmentation of magnetic skyrmions in Kerr microscopy."
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log what happens to stderr")
    parser.add_argument("--version", action="version", version=f"skyseg {realtime_skyseg.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    settings = argparse.ArgumentParser(add_help=False)
    settings.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="replace a value of the settings"
    )
    run_options = argparse.ArgumentParser(add_help=False, parents=[settings])
    run_options.add_argument("--json", action="store_true", help="print the summary as one JSON object last")
    run_options.add_argument("--log", type=Path, metavar="FILE", help="log what happens, one JSON object per line")
    run_options.add_argument("--plot", type=_picture, metavar="PNG", help="draw the run when it has ended")

    command = commands.add_parser("demo", parents=[run_options], help="the main job on the bundled synthetic recording")
    command.set_defaults(command=demo_command)
    command = commands.add_parser("run", parents=[run_options], help="the service, until the camera ends or Ctrl-C")
    command.add_argument("config", type=Path, help="YAML settings")
    command.set_defaults(command=run_command)

    command = commands.add_parser("sweep", parents=[run_options], help="a field programme with its rules")
    command.add_argument(
        "config", type=Path, nargs="?", help="YAML settings, or a run file whose experiment is repeated"
    )
    command.add_argument("--resume", type=Path, metavar="FILE", help="go on with an experiment that broke off")
    command.add_argument("--accept-changes", action="store_true", help="go on with other settings than the file's")
    command.add_argument("--dry-run", action="store_true", help="the rules decide, but nothing is done about it")
    command.add_argument("--check", type=Path, metavar="FILE", help="decide a finished run again, and compare")
    command.set_defaults(command=sweep_command)

    command = commands.add_parser("watch", help="print a running service's stream")
    command.add_argument("address", nargs="?", help="of the service, tcp://HOST:PORT; default: that of the settings")
    command.add_argument("--once", action="store_true", help="leave at the end of the run")
    command.add_argument("--keys", type=Path, metavar="DIR", help="this client's keys, where the service asks for them")
    command.set_defaults(command=watch_command)

    command = commands.add_parser("dashboard", help="a page to begin a run, look at it, and at finished ones")
    command.add_argument("address", nargs="?", help="of a running service, tcp://HOST:PORT; absent: the page begins "
                         "one, or looks at tcp://127.0.0.1:5555 if a service is there")  # fmt: skip
    command.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR",
                         help="where finished runs are sought; default: %(default)s")  # fmt: skip
    command.add_argument("--control", nargs="?", const="", metavar="ADDRESS", help="the page may ask for fields, "
                         "notes and the end of the run; default address: the one that the run tells")  # fmt: skip
    command.add_argument("--port", type=int, default=8080, help="of the page; default: %(default)s")
    command.add_argument("--open", action="store_true", help="open it in a browser")
    command.add_argument("--keys", type=Path, metavar="DIR", help="this client's keys, where the service asks for them")
    command.set_defaults(command=dashboard_command)

    command = commands.add_parser("tell", help="ask something of a running service over its control socket")
    command.add_argument("do", help="status, stop, mark, set_field, enter_field, safe_field, demagnetise, pulse, "
                         "pause, resume, abort, take_background")  # fmt: skip
    command.add_argument("values", nargs="*", metavar="KEY=VALUE", help="for example field_mT=12.5")
    command.add_argument("--address", help="of the control socket; default: tcp://127.0.0.1:5556")
    command.add_argument("--wait", type=float, nargs="?", const=60.0, metavar="SECONDS",
                         help="until the field is there, at most so long (60)")  # fmt: skip
    command.add_argument("--keys", type=Path, metavar="DIR", help="this client's keys, where the service asks for them")
    command.set_defaults(command=tell_command)

    command = commands.add_parser("keys", help="make keys, so that other computers may connect")
    command.add_argument("folder", type=Path, help="of the service's keys; made if absent")
    command.add_argument("--client", default="client", metavar="NAME", help="make keys for a client of this name")
    command.set_defaults(command=keys_command)

    command = commands.add_parser("check", parents=[settings], help="validate settings without touching hardware")
    command.add_argument("config", type=Path, help="YAML settings")
    command.add_argument("--hardware", action="store_true", help="open and read every device too; sets nothing")
    command.add_argument("--plot", type=_picture, metavar="PNG", help="draw the field programme")
    command.set_defaults(command=check_command)

    command = commands.add_parser("info", help="look into a run file")
    command.add_argument("file", type=Path)
    command.add_argument("--plot", type=_picture, metavar="PNG", help="draw the run")
    command.add_argument("--show", action="append", metavar="WHAT", help="with --plot: this instead; may be repeated: "
                         "frame, counts, loop, cells, distances, gr, sq, tracks, msd, vanhove, rare, pins, dwell, "
                         "mobility, map:QUANTITY, histogram:QUANTITY")  # fmt: skip
    command.add_argument("--frame", type=int, metavar="N", help="with --plot: this frame; else that of most objects")
    command.add_argument("--check", action="store_true", help="verify the checksums of every frame, mask and row")
    command.set_defaults(command=info_command)

    command = commands.add_parser(
        "analyse", parents=[settings], help="offline: recordings, folders of images, or run files that lack results"
    )
    command.add_argument("input", type=Path, nargs="+", help="a recording, a folder of images, or a finished run file")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the new run files")
    command.add_argument("--settings", type=Path, metavar="CONFIG", help="YAML settings of a run, for recordings")
    command.add_argument("--model", help="a shipped model or a file; default: that of the settings or of the run file")
    command.add_argument("--engine", choices=_ENGINES, help="default: as the model's")
    command.add_argument(
        "--accept-other", action="store_true", help="fill in results that may differ from those of the live run"
    )
    command.add_argument(
        "--again",
        action="store_true",
        help="all frames of a run file, with its settings as changed here",
    )
    command.add_argument("--pictures", action="append", default=[], choices=_KINDS, help="and write these of each "
                         "frame to DIR/NAME.zip, with CSV tables; may be repeated")  # fmt: skip
    command.add_argument("--show", action="append", default=[], metavar="WHAT", help="and a picture of these of each "
                         "frame, as of info --show; may be repeated")  # fmt: skip
    command.add_argument("--json", action="store_true", help="print a summary as one JSON object per input, last")
    command.set_defaults(command=analyse_command)

    command = commands.add_parser("recover", help="rescue run files that were killed, cut or damaged")
    command.add_argument("file", type=Path, nargs="+", help="NAME.h5.partial; what is whole goes to NAME.recovered.h5")
    command.add_argument("--json", action="store_true", help="print what was rescued as one JSON object per file, last")
    command.set_defaults(command=recover_command)

    command = commands.add_parser("table", help="export a run's numbers as CSV or Parquet")
    command.add_argument("file", type=Path)
    command.add_argument("--objects", action="store_true", help="one line per object instead")
    command.add_argument("--tracks", action="store_true", help="one line per skyrmion and its way instead")
    command.add_argument("--steps", action="store_true", help="one line per step of the field programme instead")
    command.add_argument("--events", action="store_true", help="one line per event of the run instead")
    command.add_argument("--all", action="store_true", help="of frames: clocks and checks, too")
    command.add_argument("--ask", action="append", default=[], metavar="ANALYSER", help="ask this analyser "
                         "now: a name, or 'NAME: {KEY: VALUE}'; may be repeated")  # fmt: skip
    command.add_argument("--keep", action="append", default=[], metavar="NAME=LOW:HIGH", help="of objects: only those "
                         "within; may be repeated")  # fmt: skip
    command.add_argument("--no-border", action="store_true", help="of objects: none that touch the image's border")
    command.add_argument("--plot", type=_picture, metavar="PNG", help="draw the programme's outcome, and print its "
                         "nucleation and annihilation fields, instead of lines")  # fmt: skip
    command.add_argument("--out", type=Path, metavar="FILE", help="NAME.csv or NAME.parquet; default: CSV to standard "
                         "output")  # fmt: skip
    command.set_defaults(command=table_command)

    command = commands.add_parser("pictures", help="export a run as pictures, label stacks and videos")
    command.add_argument("file", type=Path)
    command.add_argument("--out", type=Path, metavar="DIR|ZIP", help="pictures of each frame, and CSV tables")
    command.add_argument("--kind", action="append", choices=_KINDS, help="of --out; "
                         "may be repeated; default: all")  # fmt: skip
    command.add_argument("--frame", type=int, action="append", metavar="N", help="of --out; may be repeated; default: "
                         "all")  # fmt: skip
    command.add_argument("--show", action="append", default=[], metavar="WHAT", help="of --out: a picture of "
                         "these, as of info --show, too; may be repeated")  # fmt: skip
    command.add_argument("--labels", type=Path, metavar="TIFF", help="a stack of object numbers, for ImageJ and napari")
    command.add_argument("--by-track", action="store_true", help="of --labels: tracks, the same in all frames")
    command.add_argument("--video", type=Path, metavar="MP4|AVI", help="outlines, time, field and count")
    command.add_argument("--rate-hz", type=float, default=25.0, help="of --video; default: %(default)s")
    command.set_defaults(command=pictures_command)

    command = commands.add_parser("pick", help="choose the frames of runs that a person should label next")
    command.add_argument("run", type=Path, nargs="+", help="run files")
    command.add_argument("--frames", type=int, default=20, metavar="N", help="how many; default: %(default)s")
    command.add_argument("--apart", type=float, default=1.0, metavar="SECONDS", help="least time between two of a run; "
                         "default: %(default)s")  # fmt: skip
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder of images and labels")
    command.set_defaults(command=pick_command)
    command = commands.add_parser("annotate", help="correct the labels of skyseg pick in napari, which "
                                  "`pip install realtime_skyseg[napari]` brings")  # fmt: skip
    command.add_argument("folder", type=Path, help="of skyseg pick")
    command.set_defaults(command=annotate_command)
    command = commands.add_parser("napari", help="look at a run in napari, which `pip install realtime_skyseg[napari]` "
                                  "brings")  # fmt: skip
    command.add_argument("file", type=Path)
    command.add_argument("--frame", type=int, metavar="N", help="that is shown first")
    command.set_defaults(command=napari_command)

    command = commands.add_parser("models", help="list the shipped models")
    command.set_defaults(command=models_command)

    command = commands.add_parser("train", parents=[settings], help="train a model on labelled images")
    command.add_argument("config", type=Path, help="YAML settings of the training")
    command.add_argument("--preview", type=Path, metavar="PNG", help="only draw what the network would learn from")
    command.add_argument(
        "--leave-out", action="store_true", help="train once per fold on all others, and score on the one left out"
    )
    command.set_defaults(command=train_command)

    command = commands.add_parser("evaluate", help="score a model on labelled images")
    command.add_argument("--images", type=Path, required=True, help="folder of images")
    command.add_argument("--labels", type=Path, required=True, help="folder of label pictures of the same names")
    command.add_argument("--label-values", metavar="N=CLASS,...", help="meaning of single-channel labels; instances: "
                         "any above 0 is a skyrmion")  # fmt: skip
    command.add_argument("--table", type=Path, help="CSV with the columns image, source_id, fold")
    command.add_argument("--fold", type=int, action="append", help="only this fold; may be repeated")
    command.add_argument("--model", default="compact", help="a shipped model or a file; default: %(default)s")
    command.add_argument("--engine", default="auto", choices=_ENGINES, help="default: %(default)s")
    command.add_argument(
        "--invert", action="store_true", help="score on inverted images: bright skyrmions instead of dark"
    )
    command.add_argument("--zoom", type=float, default=1.0, metavar="FACTOR", help="score on shrunk or enlarged images")
    command.add_argument("--noise", type=float, default=0.0, metavar="SIGMA", help="add noise, in 8 bit grey levels")
    command.add_argument("--json", type=Path, metavar="FILE", help="write all figures, per source and image too")
    command.add_argument("--plot", type=Path, metavar="DIR", help="draw curves and the worst images")
    command.set_defaults(command=evaluate_command)

    command = commands.add_parser("bench", help="latency of this computer, stage by stage, engine by engine")
    command.add_argument(
        "--model", action="append", help="a shipped model or a file; may be repeated; default: compact"
    )
    command.add_argument("--engine", action="append", choices=_ENGINES, help="may be repeated")
    command.add_argument("--size", action="append", metavar="HEIGHTxWIDTH", help="of the frames; may be repeated; "
                         "default: those of the recording")  # fmt: skip
    command.add_argument("--rate-hz", action="append", metavar="HZ", help="a number, or max: as fast as it goes; may "
                         "be repeated; default: 25")  # fmt: skip
    command.add_argument("--seconds", type=float, default=10.0, help="of each run; default: %(default)s")
    command.add_argument("--source", default="bundled", help="a recording; default: %(default)s")
    command.add_argument("--objects", type=int, metavar="N", help="make frames of N dark discs in noise instead, of "
                         "512x672 px or --size")  # fmt: skip
    command.add_argument("--saturation", action="store_true", help="search the highest rate without a missed frame")
    command.add_argument("--against", action="store_true", help="time the peers beside ours: the reference U-Nets in "
                         "TensorFlow, eager torch, a naive loop")  # fmt: skip
    command.add_argument("--rounds", type=int, default=5, help="of --against; default: %(default)s")
    command.add_argument("--tensorflow", default=sys.executable, metavar="PYTHON", help="the Python that has it, for "
                         "--against; default: this one")  # fmt: skip
    command.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    command.add_argument("--plot", type=_picture, metavar="PNG", help="draw histograms of the latencies")
    command.set_defaults(command=bench_command)

    command = commands.add_parser("export", help="build a model's engine ahead of a run, or write it as an ONNX file")
    command.add_argument("model", help="a shipped model or a file")
    command.add_argument("--engine", required=True, choices=(*_ENGINES, "onnx"), help="onnx: half precision inside")
    command.add_argument("--size", default="512x672", metavar="HEIGHTxWIDTH", help="of frames; default: %(default)s")
    command.add_argument("--out", type=Path, metavar="FILE", help="onnx only; default: MODEL-HEIGHTxWIDTH.onnx")
    command.set_defaults(command=export_command)

    command = commands.add_parser("calibrate", help="find out how far a model's counts can be believed, and keep that "
                                  "in its file")  # fmt: skip
    command.add_argument("model", help="a shipped model or a file")
    command.add_argument(
        "--images", type=Path, required=True, help="folder of images that the model did not learn from"
    )
    command.add_argument("--labels", type=Path, required=True, help="folder of label pictures of the same names")
    command.add_argument("--table", type=Path, required=True, help="CSV with the columns image, source_id, fold")
    command.add_argument("--left-out", metavar="NAME-without-{fold}.safetensors", help="models of the same kind that "
                         "have not seen a fold, as train --leave-out makes them; they look at it instead")  # fmt: skip
    command.add_argument("--more", type=Path, action="append", default=[], metavar="DIR", help="made images, of "
                         "skyseg simulate --folder; may be repeated")  # fmt: skip
    command.add_argument("--engine", default="auto", choices=_ENGINES, help="default: %(default)s")
    command.add_argument("--seed", type=int, default=1, help="of all chance; default: %(default)s")
    command.add_argument("--out", type=Path, required=True, metavar="MODEL", help="the model file with what was found")
    command.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    command.add_argument("--plot", type=_picture, metavar="PNG", help="draw reliability, reasons and errors")
    command.set_defaults(command=calibrate_command)
    command = commands.add_parser("quantise", help="give a model a graph in 8 bits, which OpenVINO runs faster")
    command.add_argument("model", help="a shipped model or a file; the graph is written beside it")
    command.add_argument("--images", type=Path, required=True, help="folder of images to calibrate on")
    command.add_argument("--labels", type=Path, required=True, help="folder of label pictures of the same names")
    command.add_argument("--table", type=Path, help="CSV with the columns image, source_id, fold")
    command.add_argument("--fold", type=int, action="append", help="only this fold; may be repeated")
    command.set_defaults(command=quantise_command)

    command = commands.add_parser("import", help="turn a lab's .keras model into one of the product's")
    command.add_argument("file", type=Path, help="the .keras file")
    command.add_argument("--out", type=Path, help="the model file to write; default: FILE.safetensors")
    command.add_argument(
        "--classes",
        default="skyrmion,defect,background",
        help="what its outputs mean, in its order; default: %(default)s",
    )
    command.set_defaults(command=import_command)

    command = commands.add_parser("threshold", help="make a model that binarises by a threshold")
    command.add_argument("out", type=Path, help="the model file to write")
    command.add_argument("--level", type=float, default=0.25, help="distance from the median, in units of the spread "
                         "between the 1st and 99th percentile; default: %(default)s")  # fmt: skip
    command.add_argument("--blur-px", type=float, default=1.5, help="sigma of the blur before; default: %(default)s")
    command.add_argument("--bright", action="store_true", help="skyrmions are bright; default: dark")
    command.set_defaults(command=threshold_command)

    for entry in entry_points(group="realtime_skyseg.commands"):  # each reads its own arguments
        command = commands.add_parser(entry.name, add_help=False, help=f"see `skyseg {entry.name} --help`")
        command.set_defaults(command=_added, added=entry)
    return parser


def _added(options: argparse.Namespace) -> int:
    """A command of another package: a function that takes the arguments after its name, and returns an exit status."""
    status: int = options.added.load()(options.rest)
    return status


def _picture(text: str) -> Path:
    """A file that a picture can be written to: known before the run, not after it."""
    path = Path(text)
    if path.suffix.lower() not in (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".eps"):
        raise argparse.ArgumentTypeError(f"'{text}' is no picture; allowed: a name that ends in .png, .pdf or .svg")
    if path.is_dir() or (path.parent.exists() and not path.parent.is_dir()):
        raise argparse.ArgumentTypeError(f"'{text}' cannot be a file")
    return path
