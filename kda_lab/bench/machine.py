"""What a measurement ran on, in words that name no host and no path."""

import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch


def now() -> str:
    """UTC, to the second: `2026-11-24T00:31:00Z`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _nvidia_smi(fields: str) -> list[str]:
    """One GPU's `fields` as nvidia-smi prints them, or nothing when it cannot."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, f"--query-gpu={fields}", "--format=csv,noheader,nounits", "-i", "0"]
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [x.strip() for x in out.stdout.splitlines()[0].split(",")] if out.stdout else []


class Clocks:
    """Collects the SM and memory clocks seen during a run (MHz)."""

    def __init__(self) -> None:
        self.sm: list[int] = []
        self.memory: list[int] = []

    def look(self) -> None:
        seen = _nvidia_smi("clocks.sm,clocks.mem")
        if len(seen) == 2 and all(x.isdigit() for x in seen):
            self.sm.append(int(seen[0]))
            self.memory.append(int(seen[1]))

    def seen(self) -> dict[str, list[int]]:
        """Lowest and highest of each: `{"sm_mhz": [345, 1980], "memory_mhz": [3201, 3201]}`."""
        pairs = {"sm_mhz": self.sm, "memory_mhz": self.memory}
        return {name: [min(x), max(x)] for name, x in pairs.items() if x}


def cpu_name() -> str:
    """The processor's model name and cores in use, e.g. `Intel(R) Xeon(R) ..., 2 cores`."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [s for s in info.read_text().splitlines() if s.startswith("model name")]
        name = models[0].split(":", 1)[1].strip() if models else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


def fingerprint(clocks: Clocks | None = None) -> dict:
    """gpu, driver, cuda, torch, clocks; on a machine without a GPU gpu and driver are "" and cpu is named."""
    if not torch.cuda.is_available():
        return dict(gpu="", driver="", cuda="", torch=torch.__version__, clocks={}, cpu=cpu_name())
    driver = _nvidia_smi("driver_version")
    return dict(
        gpu=torch.cuda.get_device_name(),
        driver=driver[0] if driver else "unknown",
        cuda=torch.version.cuda,
        torch=torch.__version__,
        clocks=clocks.seen() if clocks else {},
        sms=torch.cuda.get_device_properties(0).multi_processor_count,
    )
