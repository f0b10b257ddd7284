"""Captions by real ranks: the same at any number and cut, each pair once, whoever dies in the middle."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from models import TINY, tiny_config
from places import SUPPORT
from processes import end, run_ranks, start_ranks
from streams import PROMPT, make_processor, tokenizer, write_set

from onediff.config.evaluation import EvaluationConfig
from onediff.config.model import ModelConfig
from onediff.data.heldout import HeldOut
from onediff.data.rows import TokenRow
from onediff.errors import UserError
from onediff.evaluation.answers import Answer, AnswerFile, read_answers
from onediff.evaluation.generate import CaptioningJob, caption_split
from onediff.evaluation.run import asked_by
from onediff.model.onediff import OneDiffModel
from onediff.model.saved import save_model
from onediff.parallel.topology import Topology
from onediff.ranks import Ranks

WORKER = SUPPORT / "evaluate_worker.py"
PAIRS, BAD = 13, 4
SECONDS = 400
"""Longest time that ranks may take on a busy machine."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "set"
    write_set(folder, [6, PAIRS - 6], "pair", {BAD: "bad_image"})
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model whose heads divide by four."""
    import torch

    torch.manual_seed(0)
    config = ModelConfig.model_validate(TINY | {"language": {**TINY["language"]}})
    config.language.config["num_key_value_heads"] = 4
    folder = tmp_path_factory.mktemp("model") / "saved"
    save_model(OneDiffModel(config).eval(), tiny_config(), PROMPT, tokenizer(), folder, {})
    return folder


def words(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    options = ["split=train", "batch_size=2", "max_new_tokens=10", "bootstrap=0", *more]
    return ["evaluate", str(model), "--data", str(data), "--out", str(out), *options]


@pytest.fixture(scope="module")
def one(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one rank gives. It is asked for CUDA graphs, which no other is, and has no GPU."""
    out = tmp_path_factory.mktemp("one") / "out"
    run_ranks(WORKER, words(model, data, out, "cuda_graphs=true"), 1, SECONDS)
    return out


def captions(folder: Path) -> dict[str, str]:
    lines = (folder / "predictions.jsonl").read_text().split("\n")
    return {record["id"]: record["caption"] for record in map(json.loads, filter(None, lines))}


def written(folder: Path) -> list[dict[str, str]]:
    """Every whole line in the files of all ranks."""
    texts = [file.read_text().rpartition("\n")[0] for file in sorted(folder.glob("captions.rank*.jsonl"))]
    return [json.loads(line) for text in texts for line in text.split("\n") if line]


def scores(folder: Path) -> dict[str, object]:
    return {
        key: value for key, value in json.loads((folder / "scores.json").read_text()).items() if key != "generation"
    }


def test_every_pair_has_a_caption_and_a_map_and_a_bad_image_is_named(one):
    found = captions(one)
    assert list(found) == [f"set/{number}" for number in range(PAIRS)]
    assert len(set(found.values())) > 3
    assert found[f"set/{BAD}"] == ""
    assert [line.split(":")[0] for line in scores(one)["unreadable"]] == [f"set/{BAD}"]
    assert all("attention" in line for line in written(one) if line["id"] != f"set/{BAD}")
    page = (one / "report.html").read_text()
    assert page.count('"images":["data:') == PAIRS and page.count("data:image/jpeg") == 4 * (PAIRS - 1) + 1


def test_a_rerun_names_a_bad_image_again_and_captions_it_once_its_shard_is_repaired(tmp_path):
    spoilt, out = tmp_path / "set", tmp_path / "out"
    write_set(spoilt, [4], "pair", {1: "bad_image"})
    tar = spoilt / "train/part-000.tar"

    def caption() -> tuple[list[str], list[int]]:
        heldout, asked = HeldOut.open(spoilt / "train"), list[int]()

        def answer(rows: list[TokenRow]) -> list[str]:
            asked.append(len(rows))
            return [f"caption {len(asked)}"] * len(rows)

        job = CaptioningJob(heldout, make_processor(), out, by="me", batch_size=2, answer=answer)
        for label in ("captions", "before-twice"):
            caption_split(replace(job, label=label), Topology(Ranks(), 1, None))
        assert set(read_answers(out, "captions", "me")) == set(heldout.references)
        return heldout.unreadable, asked

    out.mkdir()
    lines, asked = caption()
    assert [line.split(":")[0] for line in lines] == ["set/1"] and asked == [1, 2, 1, 2]
    assert caption() == (lines, []), "nothing is captioned again"
    tar.unlink()
    write_set(tmp_path / "sound/set", [4], "pair")
    shutil.copy(tmp_path / "sound/set/train/part-000.tar", tar)
    assert caption() == ([], [2, 2])
    assert len(written(out)) == 5


def test_cuda_graphs_are_in_the_scores_if_used_and_never_in_what_captions_depend_on(one, data):
    assert json.loads((one / "scores.json").read_text())["generation"]["cuda_graphs"] is False
    plain, graphs, beams = (
        asked_by(EvaluationConfig(split="train", **more), data)
        for more in ({}, {"cuda_graphs": True}, {"num_beams": 2})
    )
    assert plain == graphs != beams


def test_a_model_cut_over_two_ranks_gives_the_same(one, model, data, tmp_path):
    run_ranks(WORKER, words(model, data, tmp_path / "out", "tensor=2"), 2, SECONDS)
    assert captions(tmp_path / "out") == captions(one)
    assert scores(tmp_path / "out") == scores(one)


@pytest.mark.long
@pytest.mark.parametrize("tensor", [1, 2, 4])
def test_four_ranks_give_the_same(one, model, data, tmp_path, tensor):
    run_ranks(WORKER, words(model, data, tmp_path / "out", f"tensor={tensor}"), 4, SECONDS)
    assert captions(tmp_path / "out") == captions(one)
    assert scores(tmp_path / "out") == scores(one)


@pytest.mark.parametrize(
    ("tensor", "dies"), [(1, 1), *(pytest.param(2, dies, marks=pytest.mark.long) for dies in (0, 1))]
)
def test_a_rank_killed_in_the_middle_and_a_rerun_lose_and_double_nothing(
    one, model, data, tmp_path, monkeypatch, tensor, dies
):
    """Pairs divided among two ranks, or one model split over both, where rank 1 only computes and rank 0 writes."""
    out, asked = tmp_path / "out", words(model, data, tmp_path / "out", f"tensor={tensor}")
    monkeypatch.setenv("DIES", str(dies))
    ranks = start_ranks(WORKER, asked, 2, tmp_path)
    try:
        assert ranks[dies].wait(SECONDS) == -9
        assert ranks[1 - dies].wait(SECONDS) != 0, "it cannot end well alone"
    finally:
        end(ranks)
    half = written(out)
    assert 0 < len(half) < PAIRS
    if tensor == 1 or dies == 0:
        assert (out / f"captions.rank{dies}.jsonl").read_text().endswith("half a li")
    # What is there is not asked again; answers by another model do not count.
    kept = half[0]
    assert kept["id"] == "set/0"
    mine = (out / "captions.rank0.jsonl").read_text().split("\n")
    other = {"id": half[-1]["id"], "caption": "by another", "by": "another"}
    mine[0] = json.dumps(kept | {"caption": "kept as it was"}) + "\n" + json.dumps(other)
    (out / "captions.rank0.jsonl").write_text("\n".join(mine))
    monkeypatch.delenv("DIES")
    run_ranks(WORKER, asked, 2, SECONDS)
    assert captions(out) == captions(one) | {"set/0": "kept as it was"}
    assert sorted(line["id"] for line in written(out) if line["by"] != "another") == sorted(captions(one))


def test_in_bf16_a_saved_model_says_what_it_says_in_fp32(model, data):
    """Three tokens of four pairs; a tie may turn one of them."""
    import torch

    from onediff.data.images import open_upright
    from onediff.evaluation.captioner import Captioner

    heldout, said = HeldOut.open(data / "train", 4), {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        captioner = Captioner(model, "cpu", precision=precision)
        assert {parameter.dtype for parameter in captioner.model.parameters()} == {dtype}
        pairs = [heldout.sample(pair).images for pair in heldout.references]
        shown = [[open_upright(pair[role], 10**8) for role in ("before", "after")] for pair in pairs]
        said[precision] = captioner.answer([captioner.processor.prompt(both, None) for both in shown], max_new_tokens=3)
    assert sum(one == two for one, two in zip(said["fp32"], said["bf16"], strict=True)) >= 3
    assert len(set(said["bf16"])) > 1


def test_answers_of_all_ranks_are_read_and_half_a_line_is_open(tmp_path):
    with AnswerFile(tmp_path, "captions", 0, "me") as out:
        out.write({"a": Answer("one\u2028line"), "b": Answer("", "map")})
    with AnswerFile(tmp_path, "captions", 1, "me") as out:
        out.write({"b": Answer("later")})
    with (tmp_path / "captions.rank1.jsonl").open("a") as out:
        out.write('{"id": "c", "capt')
    assert read_answers(tmp_path, "captions", "me") == {"a": Answer("one\u2028line"), "b": Answer("", "map")}
    assert read_answers(tmp_path, "captions", "other") == {}
    with AnswerFile(tmp_path, "captions", 1, "me") as out:
        out.write({"c": Answer("whole")})
    assert read_answers(tmp_path, "captions", "me")["c"] == Answer("whole")
    (tmp_path / "captions.rank2.jsonl").write_text("[1]\n")
    with pytest.raises(UserError, match=r"rank2\.jsonl: line 1 is not an answer"):
        read_answers(tmp_path, "captions", "me")


def test_the_table_is_in_hundreds_and_shows_intervals_beside_the_model():
    from onediff.evaluation.files import References
    from onediff.evaluation.metrics import chosen
    from onediff.evaluation.protocols import protocol
    from onediff.evaluation.run import table
    from onediff.evaluation.scoring import score_all

    references = {str(n): [f"the {word} is gone"] for n, word in enumerate(("cup", "door", "lamp"))}
    captions = {"0": "the cup is gone", "1": "the door is open", "2": "a lamp"}
    quick = chosen(without=("meteor",))
    ours, baseline = score_all(References(references), [captions, captions], protocol("plain"), quick, bootstrap=20)
    head, *rows = table({"model": ours, "baseline": baseline}).splitlines()
    assert head.split() == ["×100", "model", "95", "%", "interval", "baseline"]
    (cider,) = [row.split() for row in rows if row.startswith("CIDEr ")]
    low, high = (f"{100 * end:.1f}" for end in ours.intervals["CIDEr"])
    value = f"{100 * ours.scores['CIDEr']:.1f}"
    assert cider == ["CIDEr", value, low, "–", high, value]
    (alone,) = score_all(References(references), [captions], protocol("plain"), quick)
    assert table({"model": alone}).startswith("×100")
