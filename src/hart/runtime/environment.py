"""The environment for a bug report: versions, devices and settings, without secrets.

`environment` imports only torch, in a separate process; if torch is missing, broken or hangs, the report says so.
"""

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import hart.errors
from hart.runtime.files import cache_folder
from hart.runtime.launch import cpu_cores

DISTRIBUTION = "hart-hypernet"
PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "sentencepiece",
    "safetensors",
    "huggingface-hub",
    "accelerate",
    "peft",
    "deepspeed",
    "bitsandbytes",
    "datasets",
    "pyarrow",
    "numpy",
    "pydantic",
    "fastapi",
    "uvicorn",
)
TORCH_SECONDS = 120
VARIABLES = re.compile(
    r"(HF|HUGGINGFACE|TRANSFORMERS|HART|TORCH|PYTORCH|CUDA|NCCL|GLOO|OMP|MKL|DS|ACCELERATE|TOKENIZERS)_\w+"
    r"|WORLD_SIZE|RANK|LOCAL_RANK|MASTER_ADDR|MASTER_PORT"
)
"""Names of the environment variables that affect hart."""
_SECRET = {"TOKEN", "TOKENS", "KEY", "KEYS", "SECRET", "PASSWORD", "PASS", "AUTH", "CREDENTIALS"}
"""Parts of the names of variables whose values are secret."""
_SECRET_VALUE = re.compile(r"//[^/@\s]*@|\bhf_\w{8,}")
HIDDEN = "(set, hidden)"

_TORCH = """
import json, torch
distributed = torch.distributed.is_available()
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
made = []
for index in range(count):
    properties = torch.cuda.get_device_properties(index)
    with torch.cuda.device(index):
        half = torch.cuda.is_bf16_supported()
    memory = round(properties.total_memory / 2**30, 1)
    made.append({"name": properties.name, "memory_gib": memory, "bfloat16": half})
print(json.dumps({
    "version": torch.__version__,
    "threads": torch.get_num_threads(),
    "cpu": torch.backends.cpu.get_cpu_capability(),
    "cuda": torch.version.cuda,
    "gpus": made,
    "gloo": distributed and torch.distributed.is_gloo_available(),
    "nccl": distributed and torch.distributed.is_nccl_available(),
}))
"""


def environment(*, seconds: float = TORCH_SECONDS) -> dict[str, Any]:
    """The report, JSON-ready.

    Args:
        seconds: time limit for the import of torch.
    """
    return {
        "hart": {"version": version_of(DISTRIBUTION), "folder": str(_package()), "commit": _commit()},
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "system": {
            "platform": platform.platform(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "cpus_usable": cpu_cores(),
            "memory_gib": _memory(),
        },
        "packages": {name: version_of(name) for name in PACKAGES},
        "torch": _torch(seconds),
        "environment": variables(os.environ),
        "caches": {"hart": _hart_cache(), "hugging face": _hub_cache()},
    }


def host_facts(processes: int = 1) -> dict[str, Any]:
    """Facts beside the configuration that measured numbers depend on, without the machine's name."""
    import torch
    import transformers

    from hart.runtime.devices import select_device

    device = select_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "hart": version_of(DISTRIBUTION) or "not installed",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
        "cores": cpu_cores(),
        "processes": processes,
    }


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution; None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def variables(given: "os._Environ[str] | dict[str, str]") -> dict[str, str]:
    """The environment variables that affect hart, by name, with secret values hidden."""
    return {
        name: HIDDEN if _SECRET & set(name.split("_")) or _SECRET_VALUE.search(value) else value
        for name, value in sorted(given.items())
        if VARIABLES.fullmatch(name)
    }


def _torch(seconds: float) -> dict[str, Any]:
    """Facts about torch and its devices, or, under `problem`, the reason why it cannot be imported."""
    if version_of("torch") is None:
        return {"problem": "is not installed"}
    try:
        done = subprocess.run([sys.executable, "-c", _TORCH], capture_output=True, text=True, timeout=seconds)
        found: dict[str, Any] = json.loads(done.stdout.strip().rpartition("\n")[2])
        return found
    except subprocess.TimeoutExpired:
        return {"problem": f"could not be imported within {seconds:g} seconds"}
    except OSError as error:
        return {"problem": f"cannot be tried ({error})"}
    except ValueError:
        said = (done.stderr.strip().splitlines() or [f"its process ended with status {done.returncode}"])[-1]
        return {"problem": f"cannot be imported ({said})"}


def _package() -> Path:
    return Path(hart.errors.__file__).resolve().parent


def _commit() -> str | None:
    """The commit of the package's git checkout, marked if files have changed; None without a checkout."""
    root = _package().parents[1]
    if not (root / ".git").exists() or _package() != root / "src" / "hart":
        return None  # installed; a repository around it is not ours
    try:
        words = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(words, capture_output=True, text=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, ValueError, OSError):  # not on every system
        return None


def _hart_cache() -> str:
    try:
        return str(cache_folder())
    except hart.errors.HartError as error:
        return f"none ({error})"


def _hub_cache() -> str | None:
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except Exception:  # the report must also work for a damaged installation
        return None
    return str(HF_HUB_CACHE)
