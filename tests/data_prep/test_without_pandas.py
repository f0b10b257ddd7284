"""pyarrow does not import pandas, and works with it all the same."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
from data_prep.without_pandas import hide_pandas
hide_pandas()
import pyarrow as pa
texts = pa.array(["a", "b"])
assert "pandas" not in sys.modules
assert list(pa.table({"text": texts}).to_pandas()["text"]) == ["a", "b"]
import pandas
assert pa.array(pandas.Series(["c"])).to_pylist() == ["c"]
"""


def test_pandas_is_imported_only_when_it_is_asked_for():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
