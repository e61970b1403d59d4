"""The watch over leaks sees what it should: it is the other tests' fixture `no_leaks`."""

from pathlib import Path

import conftest
import h5py
import pytest
import zmq

pytest_plugins = ["pytester"]

LEAKS = {
    "a thread": "threading.Thread(target=threading.Event().wait, args=(6,)).start()",
    "a socket": "kept.append(zmq.Context().socket(zmq.PUB)); kept[0].bind('tcp://127.0.0.1:0')",
    "an HDF5 file": "kept.append(h5py.File('left.h5', 'w'))",
}


@pytest.mark.parametrize(("what", "code"), LEAKS.items(), ids=LEAKS)
def test_a_leak_fails_its_test(pytester: pytest.Pytester, what: str, code: str) -> None:
    pytester.makeconftest(Path(conftest.__file__).read_text(encoding="utf-8"))
    pytester.makepyfile(f"import threading\nimport h5py\nimport zmq\nkept = []\ndef test_leaks():\n    {code}\n")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", timeout=60)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*left open: *"])


def test_what_is_closed_is_no_leak(tmp_path: Path) -> None:
    context = zmq.Context()
    context.socket(zmq.PUB).close()
    context.term()
    h5py.File(tmp_path / "closed.h5", "w").close()
