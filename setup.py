"""Builds d2proj's one library of compiled ops (all else about the package is in pyproject.toml).

The library speaks LibTorch's stable ABI alone, so it is neither a Python extension module nor tied
to the torch that it was built against: `d2proj/libd2proj.so`, loaded by `d2proj/ops/_ext.py`, in a
wheel tagged py3-none-linux. That is also why torch.utils.cpp_extension is not used: it wants a CUDA
build of torch to compile CUDA kernels, and to import torch to find its headers.

Environment variables:

    D2PROJ_CUDA           0: no CUDA kernels; 1: fail without nvcc; unset: CUDA if nvcc is found
    CUDA_HOME             where to look for nvcc before PATH and /usr/local/cuda
    TORCH_CUDA_ARCH_LIST  as torch's: "8.0;9.0+PTX" (spaces or semicolons; 9.0a is allowed)
    CXX, CXXFLAGS         the C++ compiler, and flags put after ours (for sanitizers, say)
    MAX_JOBS              how many compilers run at once (default: the number of cores)
    D2PROJ_BUILD_DIR      where objects are kept between builds (default: build/ops)
"""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
BUILD_DIR = ROOT / os.environ.get("D2PROJ_BUILD_DIR", "build/ops")
LIBRARY = "libd2proj.so"
MIN_TORCH = (2, 10)
# The stable ABI that the sources may use, 2.10.0's: newer headers hide what came later.
TORCH_TARGET_VERSION = "0x020a000000000000ULL"
DEFAULT_ARCHS = ("8.0", "9.0", "10.0")


def fail(message: str) -> NoReturn:
    """Stop the build with one sentence instead of a traceback."""
    sys.exit(f"error: {message}")


def find_torch() -> tuple[Path, str]:
    """Folder and version of the torch to build against, found without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.origin:
        fail(
            f"d2proj's ops are compiled against torch's headers, and {sys.executable} has no "
            "torch: install torch>=2.10 first, or leave build isolation on (no "
            "--no-build-isolation) so that pip brings one for the build"
        )
    root = Path(spec.origin).parent
    match = re.search(r"__version__ = '([^']+)'", (root / "version.py").read_text())
    version = match.group(1) if match else "0"
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    if numbers < MIN_TORCH:
        fail(
            f"d2proj needs torch>=2.10 (the first with the stable ABI it uses), "
            f"found {version} in {root}"
        )
    return root, version


def run_text(*command: str) -> str:
    """The command's stdout and stderr; a failure ends the build with them."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        fail(f"`{shlex.join(command)}` failed: {done.stdout.strip()}")
    return done.stdout


class Cuda:
    """What nvcc offers: its path, version, architectures and the folder of its static runtime."""

    def __init__(self, nvcc: str) -> None:
        self.nvcc = nvcc
        version = re.search(r"release (\d+\.\d+)", run_text(nvcc, "--version"))
        self.version = version.group(1) if version else "unknown"
        self.supported = {
            int(n) for n in re.findall(r"compute_(\d+)", run_text(nvcc, "--list-gpu-arch"))
        }
        self.archs = self._archs(os.environ.get("TORCH_CUDA_ARCH_LIST", ""))
        self.lib_dir = self._find_runtime()

    def _archs(self, wanted: str) -> list[str]:
        if wanted.strip():
            return re.split(r"[;\s]+", wanted.strip())
        archs = [arch for arch in DEFAULT_ARCHS if int(arch.replace(".", "")) in self.supported]
        return [*archs[:-1], archs[-1] + "+PTX"]

    def _find_runtime(self) -> Path:
        # nvcc may be a wrapper script far from its toolkit, so it is asked where its toolkit is.
        top = re.search(r"TOP=(\S+)", run_text(self.nvcc, "--dryrun", "-c", "x.cu"))
        home = Path(top.group(1)).resolve() if top else Path(self.nvcc).resolve().parent.parent
        for folder in ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"):
            if (home / folder / "libcudart_static.a").is_file():
                return home / folder
        fail(
            f"nvcc is {self.nvcc}, but its toolkit {home} has no libcudart_static.a "
            "(set D2PROJ_CUDA=0 to build without)"
        )

    def arch_flags(self) -> list[str]:
        """Machine code for every architecture, and PTX for later GPUs where +PTX asks for it."""
        flags = []
        for arch in self.archs:
            name, _, ptx = arch.partition("+")
            if not re.fullmatch(r"\d+\.\d[af]?", name) or ptx not in ("", "PTX"):
                fail(
                    f"TORCH_CUDA_ARCH_LIST: expected entries like 8.0, 9.0a or 10.0+PTX, "
                    f"got {arch!r}"
                )
            number = name.replace(".", "")
            if int(re.sub(r"\D", "", number)) not in self.supported:
                fail(
                    f"TORCH_CUDA_ARCH_LIST asks for {name}, which nvcc {self.version} cannot "
                    "compile for"
                )
            flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
            if ptx:
                flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
        return flags


def find_cuda() -> Cuda | None:
    """The CUDA compiler to use, or None for a library with CPU kernels alone."""
    wanted = os.environ.get("D2PROJ_CUDA", "")
    if wanted not in ("", "0", "1"):
        fail(f"D2PROJ_CUDA: expected 0, 1 or unset, got {wanted!r}")
    if wanted == "0":
        return None
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [f"{home}/bin/nvcc"] if home else []
    nvcc = next(
        filter(None, map(shutil.which, [*candidates, "nvcc", "/usr/local/cuda/bin/nvcc"])), None
    )
    if nvcc is None and wanted == "1":
        fail("D2PROJ_CUDA=1, but no nvcc was found in CUDA_HOME, on PATH or in /usr/local/cuda")
    return Cuda(nvcc) if nvcc else None


def find_cxx() -> str:
    """The C++ compiler."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    for name in names:
        if shutil.which(shlex.split(name)[0]):
            return name
    fail(
        f"d2proj's ops need a C++ compiler; none of {', '.join(names)} was found "
        "(install g++ or set CXX)"
    )


def find_ninja() -> str:
    """The ninja on PATH, or the one of the ninja package."""
    ninja = shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))
    if ninja is None and importlib.util.find_spec("ninja"):
        import ninja as package

        ninja = str(Path(package.BIN_DIR) / "ninja")
    if ninja is None:
        fail("d2proj's ops are built with ninja, which was not found: pip install ninja")
    return ninja


def write_if_changed(path: Path, text: str) -> None:
    """Write a file, unless it has that text already: then ninja rebuilds nothing for it."""
    if not path.is_file() or path.read_text() != text:
        path.write_text(text)


def write_ninja(torch_root: Path, torch_version: str, cuda: Cuda | None) -> Path:
    """Write BUILD_DIR/build.ninja and return the path of the library that it builds."""
    cxx = find_cxx()
    extra = os.environ.get("CXXFLAGS", "")
    include = torch_root / "include"
    info = {
        "torch": torch_version,
        "compiler": run_text(*shlex.split(cxx), "--version").splitlines()[0],
        "cuda": cuda.version if cuda else None,
        "archs": cuda.archs if cuda else [],
    }
    BUILD_DIR.mkdir(parents=True, exist_ok=True)
    encoded = json.dumps(json.dumps(info, sort_keys=True))
    write_if_changed(BUILD_DIR / "build_info.h", f"#define D2PROJ_BUILD_INFO {encoded}\n")
    # Ops register themselves, so nothing has to be found by name; what is hidden cannot clash.
    exports = BUILD_DIR / "exports.map"
    write_if_changed(exports, "{ global: d2proj_build_info; local: *; };\n")

    common = (
        f"-std=c++17 -O3 -DNDEBUG -DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"
        f" -I{ROOT / 'csrc'} -I{BUILD_DIR} -isystem {include}"
    )
    host = "-fPIC -fvisibility=hidden -fvisibility-inlines-hidden -Wall -Wextra -Wno-psabi"
    lines = [
        "ninja_required_version = 1.8",
        f"cflags = {common} {host} {extra}",
        "rule cxx",
        f"  command = {cxx} -MMD -MF $out.d $cflags -c $in -o $out",
        "  deps = gcc",
        "  depfile = $out.d",
        "  description = CXX $in",
    ]
    libs = f"-L{torch_root / 'lib'} -Wl,--no-as-needed -ltorch -ltorch_cpu -lc10 -Wl,--as-needed"
    if cuda:
        host_flags = ",".join([*shlex.split(host.replace("-Wextra", "")), *shlex.split(extra)])
        lines += [
            f"nvflags = {common} -Xcompiler={host_flags} --expt-relaxed-constexpr --threads 2"
            f" -ccbin {shlex.split(cxx)[-1]} {' '.join(cuda.arch_flags())}",
            "rule nvcc",
            f"  command = {cuda.nvcc} -MD -MF $out.d $nvflags -c $in -o $out",
            "  deps = gcc",
            "  depfile = $out.d",
            "  description = NVCC $in",
        ]
        libs += f" -L{cuda.lib_dir} -lcudart_static -lpthread -ldl -lrt"
    lines += [
        "rule link",
        f"  command = {cxx} -shared {extra} $in -o $out -Wl,--version-script={exports} {libs}",
        "  description = LINK $out",
    ]
    objects = []
    # The slow CUDA files first, so that none of them is left over for the end.
    sources = sorted(ROOT.glob("csrc/*/*.cu")) if cuda else []
    for source in [*sources, *sorted(ROOT.glob("csrc/*.cpp")), *sorted(ROOT.glob("csrc/*/*.cpp"))]:
        target = BUILD_DIR / f"{source.stem}{source.suffix}.o"
        objects.append(target)
        lines.append(f"build {target}: {'nvcc' if source.suffix == '.cu' else 'cxx'} {source}")
    library = BUILD_DIR / LIBRARY
    lines.append(f"build {library}: link {' '.join(map(str, objects))}")
    (BUILD_DIR / "build.ninja").write_text("\n".join(lines) + "\n")
    return library


class BuildOps(build_ext):
    """Builds the library with ninja, in a folder that stays: a second build is incremental."""

    def get_ext_filename(self, fullname: str) -> str:
        """The library's place in the package; no Python tag, for it uses nothing of Python's."""
        return str(Path(*fullname.split(".")[:-1]) / LIBRARY)

    def build_extension(self, ext: Extension) -> None:
        """Compile and put the library where setuptools expects the extension."""
        torch_root, torch_version = find_torch()
        cuda = find_cuda()
        kind = (
            f"CPU and CUDA {cuda.version} kernels for {' '.join(cuda.archs)}"
            if cuda
            else "CPU kernels"
        )
        print(f"building {LIBRARY}: {kind}, against torch {torch_version}", flush=True)
        library = write_ninja(torch_root, torch_version, cuda)
        jobs = os.environ.get("MAX_JOBS") or str(len(os.sched_getaffinity(0)))
        command = [find_ninja(), "-C", str(BUILD_DIR), "-j", jobs, str(library)]
        if subprocess.run(command, check=False).returncode:
            fail("the ops did not compile; the compiler's own message is above")
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        # A new file, then a rename: a process that has the old library mapped keeps it.
        fresh = target.with_suffix(".new")
        shutil.copy2(library, fresh)
        fresh.replace(target)


class PlatformWheel(bdist_wheel):
    """One wheel for every Python: the library has no Python symbols."""

    def get_tag(self) -> tuple[str, str, str]:
        """`py3-none-<platform>`."""
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("d2proj._ops", sources=[])],
    cmdclass={"build_ext": BuildOps, "bdist_wheel": PlatformWheel},
)
