"""Imports point one way, and what need not be loaded is not."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "audiolitefocus"
# Every part may import those before it; parts on one line do not import each other. A file that is
# named stands apart from its folder.
ORDER = [
    {"validation", "__version__"},
    {"config", "atomic", "habits", "ops"},
    {"audio", "runtime", "attention"},
    {"reuse", "parallel.settings"},
    {"options", "models"},
    {"checkpoints", "codec", "steps"},
    {"display"},
    {"output"},
    {"interop", "lora"},
    {"diffusion"},
    {"parallel"},
    {"loaded"},
    {"pipeline"},
    {"batch", "check", "training"},
    {"web"},
    {"cli"},
    {"__main__"},
]
LEVEL = {part: level for level, parts in enumerate(ORDER) for part in parts}


def part_of(names: list[str]) -> str:
    """The part that a module belongs to."""
    file = ".".join(names[:2])
    return file if file in LEVEL else names[0]


def test_imports_point_one_way():
    for path in PACKAGE.rglob("*.py"):
        here = part_of(list(path.relative_to(PACKAGE).with_suffix("").parts))
        if here == "__init__":  # names the public parts of all others
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                "audiolitefocus"
            ):
                names = node.module.split(".")[1:] or [alias.name for alias in node.names]
                there = part_of(names)
                assert there == here or LEVEL[there] < LEVEL[here], f"{path.name}: {node.module}"


def test_the_library_and_its_options_load_no_torch():
    program = "import audiolitefocus, audiolitefocus.options, audiolitefocus.cli, sys; "
    program += "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
