"""Run by `make wheel` with the Python of an environment that has the package installed, outside the source tree."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import sys

import torch

import ppcmi_fast
from ppcmi_fast import SiteKey, ops

place = str(ppcmi_fast.__file__)
assert place.startswith(sys.prefix), f"expected the installed package, got {place}"
assert importlib.metadata.version("ppcmi-fast") == ppcmi_fast.__version__

files = importlib.resources.files("ppcmi_fast")
for name in ("py.typed", "report/template.html.j2"):
    assert files.joinpath(name).is_file(), f"{name} is missing from the wheel"

params = SiteKey(bytes(range(32)), "check").klt_params("image", 4, 64)
x = torch.randn(2, 64, 9, 7)
codes = ops.klt_quantize(x, params, bits=4, backend="cpu")
expected = ops.klt_quantize(x, params, bits=4, backend="torch")
assert codes.shape == (2, 32, 9, 7), codes.shape
assert (codes == expected).float().mean() > 0.999, "the compiled kernel and torch disagree"
sys.stdout.write(f"ppcmi-fast {ppcmi_fast.__version__}: the wheel is whole and its kernels answer\n")
