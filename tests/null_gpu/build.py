"""Build the null GPU for the torch of this Python: `python build.py FOLDER`. Takes seconds.

Needs gcc with the headers of libc; those of CUDA come with torch's wheels. Imports no torch.
"""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

SOURCES = Path(__file__).parent / "src"
RUNTIME, DRIVER = "libnullgpu.so", "libcuda.so.1"
STUBBED = re.compile(r"(?:cublas|cusolver|cusparse|cufft|nccl)\w+")


def find_obstacle() -> str | None:
    """Return why the null GPU cannot be built here; None if it can."""
    if missing := [tool for tool in ("gcc", "nm") if shutil.which(tool) is None]:
        return f"the null GPU needs {' and '.join(missing)}"
    libc = subprocess.run(["gcc", "-E", "-include", "pthread.h", "-x", "c", "/dev/null"], capture_output=True)
    if libc.returncode:
        return "the null GPU needs the headers of libc (Debian: apt install g++)"
    if not (_torch_folder() / "lib" / "libtorch_cuda.so").is_file():
        return "the null GPU needs a build of torch for CUDA"
    if not all((folder / file).is_file() for folder, file in _headers().items()):
        return "the null GPU needs a build of torch for CUDA 13, with the wheels that it depends on"
    return None


def build(folder: Path) -> Path:
    """Compile everything into `folder`, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    stubs = folder / "stubs.c"
    stubs.write_text("".join(f"__attribute__((weak)) int {name}(void) {{ return 0; }}\n" for name in _names_to_stub()))
    gcc = ["gcc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", *(f"-I{path}" for path in _headers())]
    runtime = [SOURCES / f"{name}.c" for name in ("streams", "memory", "kernels", "device", "libraries")]
    subprocess.run([*gcc, *runtime, stubs, "-o", folder / RUNTIME, "-lpthread"], check=True)
    subprocess.run([*gcc, f"-Wl,-soname,{DRIVER}", SOURCES / "driver.c", "-o", folder / DRIVER], check=True)
    return folder


def _torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    return Path(next(iter(spec.submodule_search_locations)))


def _headers() -> dict[Path, str]:
    """Return the folders with the headers of CUDA, and a file that must be in each."""
    packages = _torch_folder().parent
    return {
        packages / "nvidia/cu13/include": "cuda_runtime_api.h",
        packages / "triton/backends/nvidia/include": "crt/host_defines.h",
    }


def _names_to_stub() -> list[str]:
    """Return the functions of the stubbed libraries that the libraries of torch call."""
    names: set[str] = set()
    for library in ("libtorch_cuda.so", "libtorch_cuda_linalg.so", "libtorch_python.so"):
        file = _torch_folder() / "lib" / library
        symbols = subprocess.run(["nm", "-D", "--undefined-only", file], capture_output=True, text=True, check=True)
        names.update(STUBBED.findall(symbols.stdout))
    return sorted(names)


if __name__ == "__main__":
    if obstacle := find_obstacle():
        sys.exit(obstacle)
    build(Path(sys.argv[1]))
