"""What this computer is."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def computer() -> dict[str, Any]:
    """What the figures hold for."""
    from realtime_skyseg.segmentation.openvino_engine import capabilities

    packages = {}
    for name in ("realtime_skyseg", "numpy", "opencv-python", "torch", "openvino", "tensorrt", "h5py", "pyzmq"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "processor": _processor(),
        "arithmetic": capabilities(),
        "instructions": _instructions(),
        "cores": os.cpu_count(),
        "memory_GB": _memory_GB(),
        "packages": packages,
        "busy": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def _instructions() -> list[str]:
    """What of this processor's instructions matters to networks, where the system tells."""
    listed = Path("/proc/cpuinfo")
    words = set(listed.read_text().split()) if listed.is_file() else set()
    return sorted(word for word in words if word.startswith(("avx", "amx", "fma", "asimd", "bf16", "i8mm")))


def _memory_GB() -> float | None:
    if hasattr(os, "sysconf"):
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    if sys.platform == "win32":
        import ctypes

        size = ctypes.c_ulonglong()
        ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(size))
        return round(size.value * 1024 / 1e9, 1)
    return None


def _processor() -> str:
    with_name = Path("/proc/cpuinfo")
    if with_name.is_file():
        for line in with_name.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
