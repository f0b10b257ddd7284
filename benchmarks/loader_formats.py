"""Prepares files that peers of `loader.py` need besides the shards: their own formats, or a description of the folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = {
    "litdata": """
import sys, webdataset
from pathlib import Path
from litdata.streaming.writer import BinaryWriter
folder = Path(sys.argv[1])
(folder.parent / "litdata").mkdir()
writer = BinaryWriter(str(folder.parent / "litdata"), chunk_bytes="16MB")
for i, sample in enumerate(webdataset.WebDataset([str(p) for p in sorted(folder.glob("*.tar"))], shardshuffle=False)):
    writer[i] = {"before": sample["before.jpg"], "after": sample["after.jpg"], "json": sample["json"]}
writer.done()
writer.merge()
""",
    "grain": """
import sys, webdataset
from pathlib import Path
from array_record.python.array_record_module import ArrayRecordWriter
folder = Path(sys.argv[1])
writer = ArrayRecordWriter(str(folder.parent / "pairs.array_record"), "group_size:1")
for sample in webdataset.WebDataset([str(p) for p in sorted(folder.glob("*.tar"))], shardshuffle=False):
    before, after = sample["before.jpg"], sample["after.jpg"]
    writer.write(len(before).to_bytes(4, "little") + before + after)
writer.close()
""",
    "streaming": """
import sys, webdataset
from pathlib import Path
from streaming import MDSWriter
folder = Path(sys.argv[1])
columns = {"before": "bytes", "after": "bytes", "json": "bytes"}
with MDSWriter(out=str(folder.parent / "mds"), columns=columns) as out:
    for sample in webdataset.WebDataset([str(p) for p in sorted(folder.glob("*.tar"))], shardshuffle=False):
        out.write({"before": sample["before.jpg"], "after": sample["after.jpg"], "json": sample["json"]})
""",
    "energon": """
import sys
from pathlib import Path
from megatron.energon.epathlib import EPath
from megatron.energon.flavors import BaseWebdatasetFactory
folder = Path(sys.argv[1])
BaseWebdatasetFactory.prepare_dataset(
    EPath(str(folder)), sorted(p.name for p in folder.glob("*.tar")), split_parts_ratio=[("train", 1.0)], workers=1
)
(folder / ".nv-meta" / "dataset.yaml").write_text(
    "__module__: megatron.energon\\n__class__: CrudeWebdataset\\n"
)
""",
}
"""Python that reads the shards of a folder, by package."""


def prepare(package: str, folder: Path, python: Path) -> None:
    """Writes the files for `package` into `folder` or next to it, with an interpreter that has the package."""
    if package not in CODE:
        return
    done = subprocess.run([str(python), "-c", CODE[package], str(folder)], capture_output=True, text=True, timeout=300)
    if done.returncode:
        sys.exit(f"{package}: {done.stderr[-2000:]}")
