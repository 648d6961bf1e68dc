"""Reads an exposition of metrics as Prometheus does, and says what is in it.

Usage: exposition.py text|openmetrics < PAGE

Prints a JSON array of samples. Fails where the page is not what the format wants.
"""

import json
import sys

from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics

read = {
    "text": parser.text_string_to_metric_families,
    "openmetrics": openmetrics.text_string_to_metric_families,
}[sys.argv[1]]

# Before it is read: a reader that is lenient sees a family twice.
page = sys.stdin.read()
declared = [line.split(" ")[2] for line in page.splitlines() if line.startswith("# TYPE ")]
twice = {name for name in declared if declared.count(name) > 1}
assert not twice, f"declared twice: {twice}"

samples, seen = [], set()
for family in read(page):
    assert family.type != "unknown", f"{family.name} has no type"
    assert family.documentation, f"{family.name} says nothing of itself"
    for sample in family.samples:
        key = (sample.name, tuple(sorted(sample.labels.items())))
        assert key not in seen, f"given twice: {key}"
        seen.add(key)
        if family.type == "counter":
            assert sample.name.endswith("_total"), sample.name
        samples.append(
            {
                "family": family.name,
                "type": family.type,
                "name": sample.name,
                "labels": sample.labels,
                "value": str(sample.value),
                "exemplar": sample.exemplar.labels if sample.exemplar else None,
            }
        )
assert samples, "there is nothing in it"
json.dump(samples, sys.stdout)
