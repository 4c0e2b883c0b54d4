"""Where the repository's own files lie, for tests that read them or start programs."""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
REFERENCE_TREES = json.loads((Path(__file__).parent / "reference_trees.json").read_text(encoding="utf-8"))
