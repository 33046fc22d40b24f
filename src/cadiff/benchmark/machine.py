"""The device that training takes, and how much memory was held at the most."""

from __future__ import annotations

import gc
import os
import sys

import torch

STATUS, RESET = "/proc/self/status", "/proc/self/clear_refs"


def training_device() -> torch.device:
    """Where the stages run: the GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def forget_peak(device: torch.device) -> None:
    """Gives back what the last case left, and starts the count of the peak anew."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    elif os.access(RESET, os.W_OK):
        with open(RESET, "w", encoding="ascii") as file:
            file.write("5")  # Linux: the peak of the resident set begins again


def peak_memory(device: torch.device) -> tuple[int, int]:
    """Bytes at the peak since `forget_peak`: of tensors, and held by PyTorch; on a CPU the resident set of the process.

    Where the system cannot forget (not Linux), it is the peak since the process began; 0 where it does not say (Windows).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    if os.path.exists(STATUS):
        with open(STATUS, encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    held = int(line.split()[1]) * 1024
                    return held, held
    if sys.platform == "win32":
        return 0, 0
    import resource  # not on Windows

    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return held, held
