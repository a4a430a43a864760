"""The compiled library: what it may depend on, and what is said when it cannot be loaded."""

import ctypes
import json
import re
import struct
from pathlib import Path

import pytest
import torch

from d2proj import info
from d2proj.ops import _ext
from d2proj.utils.testing import run_python

# From torch, C shims with a stability promise alone; no c10::, at::, torch:: C++ symbols.
TORCH_SHIM = re.compile(r"(aoti_torch|torch)_[A-Za-z0-9_]+")
# The C++ runtime, libgcc and libc (named, so that a new dependency is noticed).
CXX_RUNTIME = re.compile(
    r"_ZNK?S[abdiost]|_ZSt|_ZT[ISTV]N?(St|10__cxxabiv1)|_ZTIPKc"
    r"|_Zn[aw]m|_Zd[al]Pv"
    r"|__cxa_|__gxx_personality_v0|_Unwind_|__dynamic_cast|__cpu_model"
    r"|__cpu_indicator_init|__gmon_start__|_ITM_"
)
ABI_CXX = re.compile(r"N?K?(3c10|2at|5torch|6caffe2)")


def undefined_symbols(path: Path) -> dict[str, bool]:
    """Undefined dynamic symbols of a 64-bit little-endian ELF file; True for weak ones."""
    data = path.read_bytes()
    assert data[:6] == b"\x7fELF\x02\x01"
    (table,) = struct.unpack_from("<Q", data, 40)
    entry_size, count = struct.unpack_from("<HH", data, 58)
    sections = [
        struct.unpack_from("<IIQQQQIIQQ", data, table + i * entry_size) for i in range(count)
    ]
    found = {}
    for _, kind, _, _, offset, size, link, _, _, item in sections:
        if kind != 11:  # SHT_DYNSYM
            continue
        names = sections[link][4]
        for at in range(offset, offset + size, item):
            name, info_, _, section, _, _ = struct.unpack_from("<IBBHQQ", data, at)
            if section == 0 and name:
                end = data.index(b"\0", names + name)
                found[data[names + name : end].decode()] = info_ >> 4 == 2
    return found


@pytest.fixture(scope="module")
def symbols() -> dict[str, bool]:
    found = undefined_symbols(_ext.LIBRARY)
    assert any(name.startswith("torch_") for name in found)  # the reader reads
    return found


def test_no_cxx_abi_of_torch_and_no_python(symbols: dict[str, bool]) -> None:
    mangled = {name for name in symbols if name.startswith("_Z")}
    assert not {name for name in mangled if ABI_CXX.search(name)}
    assert not {name for name in symbols if name.startswith(("Py", "_Py"))}


def test_only_shims_and_the_runtime_libraries(symbols: dict[str, bool]) -> None:
    process = ctypes.CDLL(None)  # Python itself has libc, libm, libpthread and libdl
    for name in symbols:
        if TORCH_SHIM.fullmatch(name) or CXX_RUNTIME.match(name):
            continue
        assert hasattr(process, name), f"{name} is neither a shim nor the C library's"


def test_cuda_shims_are_weak(symbols: dict[str, bool]) -> None:
    """A library with CUDA kernels must load where torch has none of the CUDA shims."""
    for name, weak in symbols.items():
        if "cuda" in name and name.startswith(("aoti_torch_", "torch_")):
            assert weak or "device_type" in name, name


def test_build_info_is_readable_without_loading() -> None:
    info_ = _ext.build_info()
    assert set(info_) == {"torch", "compiler", "cuda", "archs"}
    assert json.dumps(info_)


@pytest.mark.parametrize("content", [None, b"not a library"])
def test_unusable_library_is_explained_on_use(tmp_path: Path, content: bytes | None) -> None:
    library = tmp_path / "libd2proj.so"
    if content is not None:
        library.write_bytes(content)
    code = """
import torch
import d2proj.ops
try:
    d2proj.ops.roi_align(torch.ones(1, 1, 4, 4), torch.zeros(1, 5), 2)
except RuntimeError as error:
    print(error)
"""
    done = run_python(code, {"D2PROJ_LIBRARY": str(library), "D2PROJ_REQUIRE_EXT": "0"})
    assert done.returncode == 0, done.stderr
    assert str(library) in done.stdout
    assert f"running: torch {torch.__version__}" in done.stdout
    assert "Traceback" not in done.stderr
    required = run_python(
        "import d2proj.ops", {"D2PROJ_LIBRARY": str(library), "D2PROJ_REQUIRE_EXT": "1"}
    )
    assert required.returncode != 0
    assert "ImportError: d2proj's compiled ops are not available" in required.stderr


def test_info_lists_every_op_with_its_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    assert info.main([]) == 0
    printed = capsys.readouterr().out
    assert "detectron2" in printed
    assert str(_ext.LIBRARY) in printed
    table = info.kernels()
    assert {"CPU", "autograd", "autocast", "fake"} <= set(table["roi_align"])
    assert all("CPU" in found and "fake" in found for found in table.values())
    has_cuda = _ext.build_info()["cuda"] is not None
    for name, found in table.items():
        assert ("CUDA" in found) == (has_cuda and name not in info.CPU_ONLY)
    assert info.main(["--require-cuda-kernels"]) == (0 if has_cuda else 1)
