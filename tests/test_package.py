"""The package as a whole: what importing it costs, which way its imports run, what its documents say and promise."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

import ppcmi_fast

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ppcmi_fast"
MAX_LINES = 450
IMPORT_SECONDS = 0.3

# From the top down (docs/architecture.md): a module imports from its own layer or from one below it.
LAYERS = (
    {"cli"},
    {"federation", "serve", "report", "privacy", "baselines", "benchmark", "experiments"},
    {"mapper", "codec", "data", "labels", "metrics", "training"},
    {"klt", "keys", "key_schedule", "sealing", "wire"},
    {"ops"},
    {"_cpu", "_cuda"},
    {"environment", "errors", "interrupt"},
)
RANK = {part: len(LAYERS) - i for i, layer in enumerate(LAYERS) for part in layer}

# Importing any of these costs more than the whole package may, so each is imported where it is used.
HEAVY = ("monai", "matplotlib", "jinja2", "scipy", "PIL", "rich", "typer", "pydantic", "cryptography")


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imported_parts(path: Path) -> Iterator[tuple[int, str]]:
    """(line, part of the package) of every import in a module, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            part = rest.partition(".")[0]
            # `from ppcmi_fast import __version__` reads the package's own module, which is empty of work.
            if package == "ppcmi_fast" and part and part != "__version__":
                yield node.lineno, part


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def test_version_is_the_distributions() -> None:
    assert version("ppcmi-fast") == ppcmi_fast.__version__
    assert f"## {ppcmi_fast.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_public_names_are_there() -> None:
    for name in ppcmi_fast.__all__:
        assert getattr(ppcmi_fast, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ppcmi_fast.nothing  # noqa: B018


def test_import_costs_little_beside_torch() -> None:
    def seconds(statement: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", statement], check=True)
        return time.perf_counter() - start

    def added(pairs: int) -> list[float]:
        return [-seconds("import torch") + seconds("import torch, ppcmi_fast") for _ in range(pairs)]

    seconds("import torch, ppcmi_fast")  # reads the files into memory
    samples = added(3)
    if statistics.median(samples) >= IMPORT_SECONDS:
        samples += added(6)  # a busy machine deserves a second look
    assert statistics.median(samples) < IMPORT_SECONDS


def test_import_loads_nothing_heavy() -> None:
    statement = f"import sys, ppcmi_fast; print([m for m in {HEAVY} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", statement], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_downward(path: Path) -> None:
    part = part_of(path)
    if part == "__init__":
        return  # names everything public, and imports it on first use only
    assert part in RANK, f"{part}: give it a layer here and in docs/architecture.md"
    for line, target in imported_parts(path):
        assert target in RANK, f"{path}:{line}: {target} has no layer"
        assert RANK[target] <= RANK[part], f"{path}:{line}: {part} imports {target}, which is above it"


def test_parts_of_one_layer_do_not_import_each_other_in_a_circle() -> None:
    uses: dict[str, set[str]] = {}
    for path in modules():
        if (part := part_of(path)) != "__init__":
            uses.setdefault(part, set()).update(t for _, t in imported_parts(path) if t != part)
    while uses:
        leaves = {part for part, targets in uses.items() if not targets & uses.keys()}
        assert leaves, f"a circle of imports among {sorted(uses)}"
        uses = {part: targets for part, targets in uses.items() if part not in leaves}


def test_modules_are_of_a_readable_length() -> None:
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in modules()}
    assert {name: n for name, n in lengths.items() if n > MAX_LINES} == {}


def documents() -> list[Path]:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "csrc").rglob("*.md")]
    sources = [*modules(), *PACKAGE.rglob("*.j2"), *(ROOT / "examples").rglob("*.py")]
    return sorted(page for page in pages + sources if page.name != "INTERFACES.md")


TRANSFORM = re.compile(r"\b(transform\w*|klt|orthogonal\w*|mixing|hadamard|haar|permut\w+)\b", re.IGNORECASE)
PROMISE = re.compile(r"\b(encrypt(s|ed|ing)?|secure(s|d|ly)?|unbreakable|tamper-?proof)\b", re.IGNORECASE)


def overpromises(text: str) -> list[str]:
    """Sentences that call the orthogonal transform what it is not."""
    sentences = re.split(r"(?<=[.!?:;])\s|\n\s*\n|\n\s*[-*|]|\|", text)
    return [" ".join(s.split()) for s in sentences if TRANSFORM.search(s) and PROMISE.search(s)]


def test_no_document_calls_the_transform_encryption() -> None:
    found = {str(p.relative_to(ROOT)): bad for p in documents() if (bad := overpromises(p.read_text()))}
    assert found == {}


def test_the_search_for_overpromises_finds_them() -> None:
    assert overpromises("Latents are\nencrypted by the transform. Files are encrypted at rest.") == [
        "Latents are encrypted by the transform."
    ]
    assert overpromises("An orthogonal mixing is obfuscation, not encryption.") == []


def test_the_readme_says_what_the_keys_do_not_give() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    assert "obfuscation and separation between sites, not encryption" in text


def test_python_in_the_readme_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/architecture.md"])
def test_links_between_documents_lead_somewhere(page: str) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", (ROOT / page).read_text())
    assert [t for t in targets if not ((ROOT / page).parent / t).exists()] == []


def test_constraints_pin_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(d for group in project["optional-dependencies"].values() for d in group),
    ]
    names = {re.split(r"[<>=\[;]", line)[0].strip() for line in wanted} - {"ppcmi-fast"}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {line.partition("==")[0] for line in lines if line and not line.startswith("#")}
    assert names - pins == set()
    assert "torch==2.13.0" in lines
