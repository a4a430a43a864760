"""setup.py: what it refuses, how the wheel is tagged (nothing is compiled: CI builds it)."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import setuptools

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def setup_py(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """setup.py as a module, with setuptools.setup itself left out."""
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    spec = importlib.util.spec_from_file_location("d2proj_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fake_nvcc(folder: Path, archs: str = "80 90 100") -> Path:
    """An nvcc that answers questions and has the layout of a toolkit."""
    (folder / "bin").mkdir(parents=True)
    (folder / "lib64").mkdir()
    (folder / "lib64" / "libcudart_static.a").touch()
    nvcc = folder / "bin" / "nvcc"
    lines = "\n".join(f"compute_{arch}" for arch in archs.split())
    nvcc.write_text(
        "#!/bin/sh\ncase $1 in\n"
        "--version) echo 'Cuda compilation tools, release 12.9, V12.9.1';;\n"
        f"--list-gpu-arch) echo '{lines}';;\n"
        f"--dryrun) echo '#$ TOP={folder}';;\nesac\n"
    )
    nvcc.chmod(0o755)
    return nvcc


def test_missing_torch_is_one_sentence(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"error: .*install torch>=2\.10"):
        setup_py.find_torch()


def test_torch_is_found_but_not_imported() -> None:
    from d2proj.utils.testing import run_python

    code = (
        "import setuptools, sys; setuptools.setup = lambda **_: None\n"
        "import runpy; names = runpy.run_path('setup.py'); names['find_torch']()\n"
        "assert 'torch' not in sys.modules"
    )
    done = run_python(code, {})
    assert done.returncode == 0, done.stderr


def test_old_torch_is_refused(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    (tmp_path / "torch" / "version.py").write_text("__version__ = '2.9.1'\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    with pytest.raises(SystemExit, match=r"needs torch>=2.10 .* found 2.9.1"):
        setup_py.find_torch()


def test_cuda_switch(setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_nvcc(tmp_path / "cuda")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setenv("D2PROJ_CUDA", "0")
    assert setup_py.find_cuda() is None
    monkeypatch.setenv("D2PROJ_CUDA", "yes")
    with pytest.raises(SystemExit, match="D2PROJ_CUDA: expected 0, 1 or unset, got 'yes'"):
        setup_py.find_cuda()
    monkeypatch.delenv("D2PROJ_CUDA")
    cuda = setup_py.find_cuda()
    assert cuda.version == "12.9"
    assert cuda.archs == ["8.0", "9.0", "10.0+PTX"]


def test_cuda_insisted_on_without_nvcc(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("D2PROJ_CUDA", "1")
    monkeypatch.setattr(setup_py.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="D2PROJ_CUDA=1, but no nvcc was found"):
        setup_py.find_cuda()


def test_architectures(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nvcc = str(fake_nvcc(tmp_path / "old", "80 86"))
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    assert setup_py.Cuda(nvcc).archs == ["8.0+PTX"]  # no more than this nvcc can do
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0 8.6+PTX")
    assert setup_py.Cuda(nvcc).arch_flags() == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_86,code=sm_86",
        "-gencode=arch=compute_86,code=compute_86",
    ]
    for wrong, message in (("9.0", "nvcc 12.9 cannot compile for"), ("Hopper", "got 'Hopper'")):
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", wrong)
        with pytest.raises(SystemExit, match=message):
            setup_py.Cuda(nvcc).arch_flags()


def test_wheel_is_for_every_python(setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    base = setup_py.bdist_wheel
    monkeypatch.setattr(base, "get_tag", lambda self: ("cp311", "cp311", "linux_x86_64"))
    wheel = setup_py.PlatformWheel.__new__(setup_py.PlatformWheel)
    assert wheel.get_tag() == ("py3", "none", "linux_x86_64")


def test_sdist_holds_what_the_build_reads() -> None:
    manifest = (ROOT / "MANIFEST.in").read_text()
    suffixes = {path.suffix for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    for suffix in suffixes:
        assert f"*{suffix}" in manifest, f"MANIFEST.in leaves out csrc/**/*{suffix}"
