"""Usage: summary.py DIR PART...

Adds up what test/run left in a directory; prints what failed and the closing line. Exit status 1 when anything failed, a PART (a file
there) is missing, or nothing ran.
"""
import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

MESSAGE = 1000  # characters of an error; the rest stands further up

out = Path(sys.argv[1])
passed = failed = skipped = 0
for xml in sorted(out.glob("*.xml")):
    for case in ET.parse(xml).getroot().iter("testcase"):
        if case.find("skipped") is not None:
            skipped += 1
        elif case.find("failure") is not None or case.find("error") is not None:
            failed += 1
            print(f"failed: {xml.stem}: {case.get('classname', '')} {case.get('name')}")
            for why in [*case.findall("failure"), *case.findall("error")]:
                print("    " + (why.get("message") or why.text or "")[:MESSAGE].replace("\n", "\n    "))
        else:
            passed += 1
for report in sorted(out.glob("critest-*/summary.json")):
    found = json.loads(report.read_text())
    passed += sum(s["state"] == "passed" for s in found["specs"])
    skipped += sum(s["known"] for s in found["specs"])  # those that test/conformance/known lists
    failed += len(found["unexpected"])
    for what in found["unexpected"]:
        print(f"failed: {report.parent.name}: {what}")
checks = out / "checks"
for line in checks.read_text().splitlines() if checks.exists() else []:
    state, _, name = line.partition(" ")
    passed, failed, skipped = passed + (state == "pass"), failed + (state == "fail"), skipped + (state == "skip")
    if state == "fail":
        print(f"failed: {name}")
for want in sys.argv[2:]:
    if not (out / want).exists():
        print(f"failed: {want} is missing: that part did not run")
        failed += 1
print(f"{passed} passed, {failed} failed, {skipped} skipped")
sys.exit(1 if failed or not passed else 0)
