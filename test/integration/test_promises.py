"""The table of promises names tests that exist."""
import re

import pytest

from cri import ROOT

pytestmark = pytest.mark.once("a table")


def test_every_test_of_the_table_exists():
    text = (ROOT / "test" / "README.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    promises = {p for line in rows for p in re.findall(r"\b[RS]\d+\b", line.split("|")[1])}
    assert promises >= {f"R{i}" for i in range(1, 12)} | {f"S{i}" for i in range(1, 12)}
    missing = []
    for line in rows:
        source = ""
        for name in re.findall(r"`([^`]+)`", line):
            if name.endswith(".py") and not name.startswith("check_"):
                path = ROOT / "test" / "integration" / name
                source = path.read_text() if path.exists() else missing.append(name) or ""
            elif re.fullmatch(r"test_\w+", name):
                if f"def {name}(" not in source:
                    missing.append(name)
            elif re.fullmatch(r"(unit|fuzz)/.*\.c", name) and not (ROOT / "test" / name).exists():
                missing.append(name)
    assert not missing, missing
