"""`audiolitefocus convert` for people who run from a checkout; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.argv.insert(1, "convert")

from audiolitefocus.cli import main  # noqa: E402

main()
