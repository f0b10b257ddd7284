"""DeepSpeed without the experiment tracker that its autotuner imports: two seconds of every rank's start.

Import it from here: `from onediff.parallel.lean import deepspeed`.
"""

import sys

_absent = "mlflow" not in sys.modules
if _absent:
    sys.modules["mlflow"] = None  # type: ignore[assignment]  # importing it now raises ImportError, which DeepSpeed expects
try:
    import deepspeed as deepspeed
finally:
    if _absent:
        del sys.modules["mlflow"]
