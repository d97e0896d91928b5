"""Every script can be imported: names that have moved show here, not when somebody needs it."""

from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STANDALONE = {"generate.py", "convert_weights.py"}  # run as files, and tested as commands
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "scripts").rglob("*.py")
    if path.name not in STANDALONE
)


@pytest.mark.parametrize("module", MODULES)
def test_a_script_can_be_imported(module):
    import_module(module)
