"""Environments of baselines that clash with ours: made once, under build/baselines."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

FOLDER = Path("build/baselines")
# What GGML does not switch on by itself in a build that is not for "native". Native would take AMX
# too, whose Q8_0 products crash (llama-cpp-python 0.3.36).
_GGML_OF_CPU_FLAG = {
    "avx_vnni": "GGML_AVX_VNNI",
    "avx512f": "GGML_AVX512",
    "avx512vbmi": "GGML_AVX512_VBMI",
    "avx512_vnni": "GGML_AVX512_VNNI",
    "avx512_bf16": "GGML_AVX512_BF16",
}


def python_of(name: str, say: Callable[[str], None]) -> Path:
    """Return the Python of an environment, made first if it is missing or not what it should be.

    Args:
        name: Of its requirements, NAME.txt beside this file.
        say: Told what takes long.

    Raises:
        subprocess.CalledProcessError: If it could not be made.
    """
    folder = FOLDER / name
    python = folder / "bin" / "python"
    made_from = folder / "made-from.txt"
    requirements = Path(__file__).with_name(f"{name}.txt")
    variables = {"CMAKE_ARGS": _cmake_args()}
    wanted = requirements.read_text(encoding="utf-8") + f"# {variables}\n"
    if made_from.exists() and made_from.read_text(encoding="utf-8") == wanted:
        return python
    say(f"making the environment {folder}: minutes, but only once")
    make = [sys.executable, "-m", "venv", "--clear", str(folder)]
    install = [str(python), "-m", "pip", "install", "--quiet", "--requirement", str(requirements)]
    for command in (make, install):
        subprocess.run(
            command, check=True, capture_output=True, text=True, env=os.environ | variables
        )
    made_from.write_text(wanted, encoding="utf-8")
    return python


def requirements() -> dict[str, list[str]]:
    """Return what each environment is made from."""
    files = sorted(Path(__file__).parent.glob("*.txt"))
    return {path.stem: path.read_text(encoding="utf-8").split() for path in files}


def _cmake_args() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    flags = next(line for line in lines if line.startswith("flags")).split()
    options = [option for flag, option in _GGML_OF_CPU_FLAG.items() if flag in flags]
    return " ".join(["-DGGML_NATIVE=OFF", *(f"-D{option}=ON" for option in options)])
