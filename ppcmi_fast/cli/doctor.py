"""`ppcmi doctor`: what is installed, what this machine can do, and the command that cures what is missing."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from ppcmi_fast import environment as env

_REINSTALL = "pip install --force-reinstall --no-deps ."


def _line(console: Console, name: str, value: str, style: str = "") -> None:
    console.print(Text.assemble((f"{name:<18}", "dim"), (value, style)), soft_wrap=True)


def _instruction_set() -> str:
    from ppcmi_fast.ops.kernels import cpu_extension

    return str(cpu_extension().isa())


def _kernel_state(loaded: dict[str, bool], cuda: bool) -> list[tuple[str, str, str]]:
    cpu_ok = loaded["_cpu"]
    cpu = (
        f"present, running {_instruction_set()}"
        if cpu_ok
        else f'missing; ops need backend="torch"; cure, in the checkout: {_REINSTALL} (needs a C++ compiler)'
    )
    if loaded["_cuda"]:
        gpu, style = "present", "green"
    elif cuda:
        gpu, style = (
            f"missing; cure, in the checkout where nvcc is: {_REINSTALL} -C cmake.define.PPCMI_CUDA=ON",
            "yellow",
        )
    else:
        gpu, style = "missing; not needed, torch sees no CUDA device", ""
    return [("CPU kernels", cpu, "green" if cpu_ok else "yellow"), ("CUDA kernels", gpu, style)]


def examine(console: Console) -> None:
    """Print the findings. Nothing found missing is an error: the exit code stays 0."""
    try:
        facts = env.describe_environment()
    except ImportError as error:
        _line(console, "torch", f"cannot be loaded ({error}); cure: pip install torch", "red")
        return
    missing = 0
    _line(console, "ppcmi-fast", str(facts["ppcmi_fast"]))
    _line(console, "Python", f"{facts['python']} on {facts['system']}")
    for name, found in facts["libraries"].items():
        _line(console, name, str(found))
    _line(console, "CPU", f"{facts['cpu']}, {facts['cores']} cores usable, {facts['threads']} threads")
    _line(console, "ISA", ", ".join(facts["isa"]) or "not known here")
    memory = facts["memory_gib"]
    _line(console, "memory", f"{memory} GiB" if memory else "not known here")
    cuda = facts["cuda"]
    if cuda["available"]:
        _line(console, "CUDA", f"{cuda['built_for']}: {', '.join(cuda['devices'])}", "green")
    elif cuda["built_for"]:
        _line(
            console, "CUDA", f"torch is built for {cuda['built_for']}, no device or driver answers", "yellow"
        )
    else:
        _line(console, "CUDA", "this torch is built without it; PyTorch offers builds with it")
    for name, value, style in _kernel_state(facts["kernels"], cuda["available"]):
        missing += style == "yellow"
        _line(console, name, value, style)
    for extra in env.extras():
        if extra.missing:
            missing += 1
            _line(
                console,
                f"extra {extra.name}",
                f"lacks {', '.join(extra.missing)}; cure: {extra.cure}",
                "yellow",
            )
        else:
            _line(console, f"extra {extra.name}", "complete", "green")
    _line(console, "", "nothing is missing" if not missing else f"{missing} to look at above", "bold")
