"""The report, opened in headless Chromium: it filters, opens fast, and asks nobody for anything."""

import io
import os
import re
import shutil
import socket
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onediff.data.manifest import build_manifest, write_manifest
from onediff.data.sample import Sample, encode_sample
from onediff.errors import UserError
from onediff.evaluation.report import PairImages, shard_images, write_report
from onediff.evaluation.report.images import thumbnail
from onediff.evaluation.report.page import rankings
from onediff.evaluation.scoring import Scores, score

KINDS = ("add", "remove", "none")
WORDS = ["a", "the", "red", "blue", "cube", "sphere", "has", "appeared", "gone", "left", "right", "top"]
# Looked up here: the tests that score do so with an empty PATH, which spares the start of Java.
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def image(shade: int, kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    noise = np.random.default_rng(shade).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((320, 240), Image.Resampling.BICUBIC).save(out, kind)
    return out.getvalue()


def made(pairs: int) -> tuple[dict[str, list[str]], dict[str, str], dict[str, str]]:
    """References, predictions and change types of that many pairs."""
    rng = np.random.default_rng(0)
    texts = [" ".join(row) for row in rng.choice(WORDS, (4 * pairs, 7))]
    ids = [f"pair-{i}" for i in range(pairs)]
    references = {pair: texts[4 * i : 4 * i + 3] for i, pair in enumerate(ids)}
    return (
        references,
        {pair: texts[4 * i + 3] for i, pair in enumerate(ids)},
        {p: KINDS[i % 3] for i, p in enumerate(ids)},
    )


@pytest.fixture(scope="module")
def without_java() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "")
        patch.delenv("JAVA_HOME", raising=False)
        yield score(*made(60)[:2], "spot-the-diff", change_types=made(60)[2], bootstrap=50)


def opened(page: Path, folder: Path, view: str = "") -> str:
    """The page's DOM after its scripts have run in headless Chromium, at the view named after `#`."""
    if BROWSER is None:
        pytest.skip("no Chromium here; Debian's package is `chromium`")
    command = [
        *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", f"--user-data-dir={folder / 'profile'}"),
        *("--dump-dom", f"{page.as_uri()}#{view}"),
    ]
    return subprocess.run(
        command, capture_output=True, check=True, timeout=300, text=True, env=os.environ | {"PATH": os.defpath}
    ).stdout


def cards(dom: str) -> list[str]:
    """The ids of the pairs that are drawn, in their order."""
    return re.findall(r'<article><div class="head"><span>[^<]*</span><span class="id">([^<]*)</span>', dom)


def test_gallery_filters_and_sorts(without_java: Scores, tmp_path: Path) -> None:
    references, predictions, types = made(60)
    page = tmp_path / "report.html"
    images = {"pair-1": PairImages(image(1), image(2, "PNG"), image(3, "PNG"), None)}
    write_report(page, without_java, references, predictions, types, images=images.get)
    dom = opened(page, tmp_path, "type=remove&sort=best&metric=ROUGE-L&low=20")
    ranks = rankings(without_java)
    rouge = ranks["columns"]["ROUGE-L"]
    expected = [i for i in range(60) if types[f"pair-{i}"] == "remove" and round(float(rouge[i]), 4) >= 0.2]
    expected.sort(key=lambda i: ranks["ranks"]["best"][i])
    assert cards(dom) == [f"pair-{i}" for i in expected]
    assert f"{len(expected)} of 60 pairs" in dom
    assert 0 < len(expected) < 20
    dom = opened(page, tmp_path, "text=pair-1&sort=worst")
    assert set(cards(dom)) == {"pair-1"} | {f"pair-{i}" for i in range(10, 20)}
    assert len(re.findall(r'<img[^>]* src="data:image/jpeg;base64,', dom)) == 3
    assert 'alt="attention map"' in dom


def test_published_numbers_stand_beside_ours_with_their_sources(without_java: Scores, tmp_path: Path) -> None:
    references, predictions, types = made(60)
    page = tmp_path / "report.html"
    write_report(page, without_java, references, predictions, types, beside={"baseline": without_java})
    dom = opened(page, tmp_path)
    table = dom[dom.index('<table id="scores">') : dom.index("</table>")]
    assert 'href="https://arxiv.org/abs/2407.05645"' in table
    cider = re.sub(r"<[^>]+>", " ", next(row for row in table.split("<tr>") if "<td>CIDEr</td>" in row)).split()
    mine = f"{100 * without_java.scores['CIDEr']:.1f}"
    assert cider[0:2] == ["CIDEr", mine]
    assert cider[-4:] == [mine, "35.1", "56.6", "71.1"]
    assert "Java is not installed" in dom


def test_no_request_leaves_and_captions_are_only_text(without_java: Scores, tmp_path: Path) -> None:
    references, predictions, types = made(60)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(1)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/x"
        evil = f'</script><script>document.title="owned"</script><img src="{address}"> <!--<script>'
        write_report(
            tmp_path / "report.html",
            without_java,
            references | {"pair-0": [evil]},
            predictions | {"pair-0": evil},
            types,
        )
        dom = opened(tmp_path / "report.html", tmp_path, "text=pair-0")
        with pytest.raises(TimeoutError):
            server.accept()
    assert "<title>owned" not in dom
    assert "pair-0" in cards(dom)
    assert "default-src 'none'" in dom
    assert not re.findall(r'<(?:img|script|link|iframe|source|object)[^>]*(?:src|href|data)="(?!data:)[^"]', dom)


def test_of_many_pairs_one_page_is_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    references, predictions, types = made(1500)
    references = {pair: captions[:1] for pair, captions in references.items()}
    found = score(references, predictions, change_types=types, meteor=False)
    # A thumbnail costs milliseconds to make; the page's size is what counts here.
    ready = thumbnail(image(0), 96)
    monkeypatch.setattr("onediff.evaluation.report.page.thumbnail", lambda data, side: ready)
    images = PairImages(b"", b"", b"", b"")
    write_report(tmp_path / "report.html", found, references, predictions, types, images=lambda pair: images)
    assert (tmp_path / "report.html").stat().st_size < 18_000_000
    dom = opened(tmp_path / "report.html", tmp_path, "sort=surprising")
    assert len(cards(dom)) == 24


def test_a_pair_surprises_where_the_metrics_disagree(without_java: Scores) -> None:
    found = rankings(without_java)
    first = int(np.argmin(found["ranks"]["surprising"]))
    cider, rouge = found["columns"]["CIDEr"], found["columns"]["ROUGE-L"]

    def gap(i: int) -> float:
        """Between the shares of pairs below, where equal ones count half."""
        return abs(np.mean(np.sign(cider[i] - cider)) - np.mean(np.sign(rouge[i] - rouge)))

    assert gap(first) == pytest.approx(max(gap(i) for i in range(60)))
    assert found["ranks"]["best"][int(np.argmax(cider))] == 0
    assert set(found["ranks"]["worst"]) == set(range(60))


def test_size_is_bounded_and_the_page_says_so(without_java: Scores, tmp_path: Path) -> None:
    references, predictions, types = made(60)
    page = tmp_path / "report.html"
    images = PairImages(image(1), image(2))
    write_report(page, without_java, references, predictions, types, images=lambda pair: images, image_bytes=50_000)
    text = page.read_text()
    left_out = re.search(r"(\d+) pairs are shown without images to bound", text)
    assert left_out is not None
    assert text.count('"images":') == 60 - int(left_out[1]) > 0
    assert text.count("data:image/jpeg") * 1000 < 50_000 * 2


def test_images_come_from_shards(without_java: Scores, tmp_path: Path) -> None:
    folder = tmp_path / "set" / "test"
    folder.mkdir(parents=True)
    before, after = image(1), image(2, "PNG")
    with tarfile.open(folder / "set-test-000000.tar", "w") as tar:
        for key, roles in (("a", {"before": before, "after": after}), ("b", {"image": before})):
            sample = Sample(key, "set", "difference" if key == "a" else "caption", "test", ("x",), images=roles)
            for name, data in encode_sample(sample, key):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    write_manifest(build_manifest(folder))
    source = shard_images(folder, {"a", "b", "absent"})
    assert source("a") == PairImages(before, after)
    assert source("b") is None
    assert source("absent") is None
    assert thumbnail(b"no image", 64) is None


def test_reports_do_not_mix_rules(without_java: Scores, tmp_path: Path) -> None:
    references, predictions, _ = made(60)
    other = score(references, predictions, "spot-the-diff-joined", meteor=False)
    with pytest.raises(UserError, match="different protocol"):
        write_report(tmp_path / "x.html", without_java, references, predictions, beside={"other": other})
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        write_report(tmp_path / "file" / "x.html", without_java, references, predictions)
