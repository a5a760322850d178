"""Adds up what test/run left in a directory; prints what failed and the closing line. Exit status 1 when anything failed or nothing ran."""
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

out = Path(sys.argv[1])
passed = failed = skipped = 0
for xml in sorted(out.glob("*.xml")):
    for case in ET.parse(xml).getroot().iter("testcase"):
        if case.find("skipped") is not None:
            skipped += 1
        elif case.find("failure") is not None or case.find("error") is not None:
            failed += 1
            print(f"failed: {xml.stem}: {case.get('classname', '')} {case.get('name')}")
        else:
            passed += 1
checks = out / "checks"
for line in checks.read_text().splitlines() if checks.exists() else []:
    if line.startswith("pass "):
        passed += 1
    else:
        failed += 1
        print(f"failed: {line[5:]}")
for want in ("unit-asan.xml", "integration.xml"):
    if not (out / want).exists():
        print(f"failed: {want} is missing: that part did not run")
        failed += 1
print(f"{passed} passed, {failed} failed, {skipped} skipped")
sys.exit(1 if failed or not passed else 0)
