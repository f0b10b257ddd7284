"""The worst of translated English, kept out of sources, configurations and pages: `python tests/project/plain_english.py`.

Prints one line for each place, as ruff does, and ends with 1 if there is any.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

HOUSE = Path(__file__).parents[2]
READ = ("*.md", "Makefile", "setup.py", "pyproject.toml", "docs/*.md", "configs/**/*.yaml")
READ += tuple(f"{package}/**/*.py" for package in ("onediff", "launcher", "data_prep", "benchmarks", "tests"))

SAY = {
    r"\bin the \w+ in which (is|are)\b": "put the subject first: `in the precision that … uses`",
    r"\b(is|are|was|were) (not )?to be (had|found|seen)\b": "`is available`, `was missing`",
    r"\blast so many\b": "`the last N`",
    r"\bso many\b": "`N`, `that many`, `every few`",
    r"\bwhether none\b": "`whether any`, or turn the sentence round",
    r"\bnotwithstanding\b": "`whatever … says`, `despite`",
    r"\bfor ever\b": "`forever`",
    r"\bin vain\b": "`without success`, or say what happens",
    r"\bon (every|all) ranks? alike\b": "`on every rank`",
    r"\banew\b(?! =)": "`again`, `start over`, `rebuilt`, `recomputed`",
    r"\bhence\b(?! with)": "`so`",
    r"\b(thereby|hereby|herewith|whereupon|thereupon|hitherto|henceforth|wherein|thereof)\b": "`so`, `then`, `in which`",
    r"\bso that \w+( \w+){0,4} alike\b": "`so that … are the same`",
    r"\b(mend|mends|mended|mending)\b": "`fix`",
    r"\bpictures?\b": "`image`",
    r"\b(row maker|RowMaker)\b": "`processor`",
    r"\bfrom of old\b|\bof old\b": "`older`, `before`",
    r"\bit is that\b.{0,40}\bwhich\b": "drop the `it is`",
    r"\bcannot help\b": "say what happens",
    r"\bwith one another\b": "`with each other`",
    r"\bgets? along without\b": "`does not need`",
    r"\bover against\b": "`compared with`",
    r"\bsuch a one\b": "`one of those`",
    r"\bcomes? into being\b": "`is created`",
    r"\bthe half of\b": "`half of`",
    r"\bin the course of\b": "`during`",
    r"\bmakes? good\b(?! \w)": "`restores`, `replaces`",
    r"\bone and the same\b": "`the same`",
    r"\bdistributes? itself\b|\blets? itself be\b": "use the passive",
    r"\bRaises \w+ where\b": "`Raises … when`",
    r"(?-i:\bNone) where\b": "`None if`",
    r"\bwhere there (is|are) none\b": "`if there is none`",
    r"\binform(s|ed)? oneself\b": "`reads`, `asks`",
    r"\bwithout a word\b": "`silently`, `without a warning`",
    r"\bfor want of\b": "`for lack of`",
    r"\bby heart\b": "`memorised`",
    r"\bheld against\b": "`compared with`, `validated against`",
    r"\bstands? in (it|the|train)\b|\bwhat stands\b": "`is in`, `contains`",
    r"\bgo(es)? on with\b": "`continues with`",
    r"\b(taken|takes?) up again\b": "`resumed`",
    r"\bsaid once\b": "`logged once`",
    r"\bin one go\b": "`together`, `at once`",
    r"\b(is|was|are|were) led (to|from)\b": "`redirected`",
    r"\bis the truth\b": "`is the source of truth`, `counts`",
    r"\bwhere (it|that) is known\b": "`if it is known`",
    r"\bwith an eye on\b": "`while checking`",
    r"\bgoes? without\b(?! saying)": "`has none`, `lacks`",
    r"\bnone of (this|its|their) (machine|runs?)\b": "`not one of`",
    r"\bone (token|row|caption|line|file) a (place|row|pair|rank|step|image|model)\b": "`one … per …`",
    r"\bpassed over\b": "`skipped`",
    r"\bshar(e|es|ed|ing) out\b": "`divide`, `split`, `partition`",
    r"\bcut over\b": "`split over`, `sharded over`",
    r", in words\b": "drop it, or `as text`",
    r"\bcannot be had\b": "`is not available`",
    r"\b(GB|MB|KB|ms|seconds?|bytes|FLOPs?) a (node|rank|gigabyte|sample|caption|step|image|pair|token)\b": "`per`",
    r"\bgo(es)? on (from|at|where)\b(?! step)": "`continues`, `resumes`",
    r"\b(is|are|was|were) given back\b|\bgives? back\b": "`returns`, `releases`",
    r"\bwhat (is|are|was) given\b": "name it",
    r"\bof the same kind as\b": "`like`",
    r"\blies? elsewhere\b": "`is remote`",
    r"\b(is|are) no (plain|regular|valid)\b": "`is not a`",
    r"\bin a process of (its|their) own\b": "`in its own process`",
    r"\ban order of (its|their) own\b": "`a random order`",
    r"\bwhat (came|becomes?|became) of\b": "`the outcome of`",
    r"\bturned around\b": "`in reverse order`",
    r"\b(bring|brings|brought) along\b": "`ships`, `includes`",
    r"\b(not )?to be trusted\b": "`can (not) be trusted`",
    r"\bfalsif(y|ies|ied)\b": "`distorts`",
    r"\b(let|lets|letting) go of\b": "`frees`, `releases`",
    r"\bwhat else the machine\b": "`other work on the machine`",
    r"\bfurther on\b(?! the)": "`ahead`, `later`",
}
"""A pattern, which begins with a word, and what to write instead."""

ANY = re.compile(rf"\b(?=\w)(?:{'|'.join(SAY)})", re.IGNORECASE)
"""Finds the lines to look at: one search of each file takes a sixth of the time of one for each line and pattern."""

EXEMPT = {
    "tests/project/plain_english.py": "",
    "tests/project/test_plain_english.py": "",
    "onediff/config/renamed.py": r"picture|mend|row maker",  # the old names of keys
    "tests/config/test_renamed.py": r"picture|mend|row maker",
    "onediff/evaluation/items/grammar.py": r"picture",  # captions, in the words of people
    "data_prep/compose/words.py": r"picture",  # captions, in the words of people
    "data_prep/readers/columns.py": r"picture",  # columns of tables by others
    "docs/results.md": r"picture",  # what models say
    "configs/data": r"picture",  # instructions, in the words of people
}
"""Where a word is meant: a file or folder, and the patterns that may stand there (all, where empty)."""


def faults(name: str, text: str) -> Iterator[str]:
    """`file:line:column: 'words': what to write`, for each place in the text of the file `name`."""
    pardoned = [allowed for place, allowed in EXEMPT.items() if name.startswith(place)]
    for number in sorted({text.count("\n", 0, found.start()) for found in ANY.finditer(text)}):
        line = text.split("\n")[number]
        for pattern, instead in SAY.items():
            for found in re.finditer(pattern, line, re.IGNORECASE):
                if not any(re.search(allowed, found[0], re.IGNORECASE) for allowed in pardoned):
                    yield f"{name}:{number + 1}:{found.start() + 1}: {found[0].strip()!r}: write {instead}"


def main() -> int:
    """Every place in the project, printed; 1 if there is one."""
    files = sorted({file for pattern in READ for file in HOUSE.glob(pattern)})
    lines = [line for file in files for line in faults(str(file.relative_to(HOUSE)), file.read_text(encoding="utf-8"))]
    print("\n".join(lines) or f"{len(files)} files in plain English")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
