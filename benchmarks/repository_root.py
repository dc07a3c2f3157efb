"""Importing this puts the repository's root on the path, where demo/ lies beside benchmarks/."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
