"""Medical-Diff-VQA: chest X-rays of a patient at two times, and the differences in the main one."""

from __future__ import annotations

from collections.abc import Iterator

from data_prep.readers import Inputs, Reader, Row, split_name
from data_prep.readers.files import field_of
from data_prep.readers.tables import table_rows
from onediff.errors import UserError


def rows(inputs: Inputs) -> Iterator[Row]:
    """The questions about a difference; the others are about one image."""
    base = inputs.annotations
    if base is None or not (base / "mimic_pair_questions.csv").is_file():
        raise UserError("--annotations: name the folder with mimic_pair_questions.csv and mimic_all.csv")
    image_of: dict[str, str] = {}
    for where, row in table_rows(base / "mimic_all.csv"):
        study, dicom = (str(field_of(row, name, where)) for name in ("study_id", "dicom_id"))
        image_of.setdefault(study, dicom)
    for where, row in table_rows(base / "mimic_pair_questions.csv"):
        if field_of(row, "question_type", where) != "difference":
            continue
        study, reference, patient = (str(field_of(row, name, where)) for name in ("study_id", "ref_id", "subject_id"))
        split, question = split_name(field_of(row, "split", where)), field_of(row, "question", where)
        id = f"{study}-{reference}"
        if absent := [name for name in (reference, study) if name not in image_of]:
            yield Row(where, id, split, {}, fault=f"mimic_all.csv has no image of study {absent[0]}")
            continue
        folder = f"files/p{patient[:2]}/p{patient}"
        images: dict[str, str | bytes] = {
            role: f"{folder}/s{name}/{image_of[name]}.jpg" for role, name in (("before", reference), ("after", study))
        }
        answer = str(field_of(row, "answer", where))
        yield Row(where, id, split, images, (answer,), instruction=question, meta={"patient": patient})


READER = Reader(
    name="medical-diff-vqa",
    summary="chest X-rays at two times, 164k questions about the difference (MIMIC-Diff-VQA)",
    source="https://physionet.org/content/medical-diff-vqa/1.0.1/",
    licence="PhysioNet Credentialed Health Data License 1.5.0",
    layout="--annotations DIR/{mimic_pair_questions,mimic_all}.csv; --images the folder of MIMIC-CXR-JPG that holds files/ "
    "(as PhysioNet's page and the authors' code describe it: github.com/Holipori/EKAID)",
    rows=rows,
    published=True,
)
