"""Data sets at URLs: a real HTTP server, commands, a failing server, and the local cache."""

import functools
import http.server
import json
import multiprocessing
import os
import shlex
import sys
import threading
import time
from pathlib import Path

import fsspec
import pytest
from streams import make_processor, row_at, stream, write_set

from onediff.config.data import CacheConfig, DataSet
from onediff.data import remote
from onediff.data.cache import ShardCache
from onediff.data.manifest import FILE, build_manifest, read_manifest, write_manifest
from onediff.data.stream import Source, Stream
from onediff.errors import UserError


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; the first `failing` answers per file are 503, `short` ones break off in the middle."""

    asked: list[str] = []
    failing = 0
    short = 0

    def do_GET(self):
        name = self.path.rpartition("/")[2]
        self.asked.append(name)
        if self.asked.count(name) <= self.failing:
            return self.send_error(503)
        if self.asked.count(name) <= self.short:
            data = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            return self.wfile.flush()
        return super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def folder(tmp_path):
    """A data set of twelve shards with manifest and checksums, as `onediff data index` leaves it."""
    split = write_set(tmp_path / "sets" / "texts", [3, 1, 7, 2, 4, 1, 3, 3, 5, 1, 2, 6])
    write_manifest(build_manifest(split, checksums=True))
    return split


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    monkeypatch.setattr(Handler, "asked", [])
    monkeypatch.setattr(Handler, "failing", 0)
    monkeypatch.setattr(Handler, "short", 0)
    handler = functools.partial(Handler, directory=str(tmp_path / "sets"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, args=(0.05,)).start()
        yield f"http://127.0.0.1:{serving.server_port}/texts"
        serving.shutdown()


def rows(path: str, cache: CacheConfig, indexes: int = 38) -> list:
    data_set = DataSet(path=path)
    source = Source.open("texts", data_set.folder, 1, 0, 8, cache=cache)
    made = Stream([source], make_processor(), False, 0, 20)
    return [row_at(made, 0, index).ids for index in range(indexes)]


def copies(cache: CacheConfig) -> list[Path]:
    return sorted(Path(cache.folder).glob("*.tar"))


def test_http_and_pipes_give_the_same_rows_as_the_folder(tmp_path, folder, server):
    expected = [row_at(stream({folder: 1.0}, 1), 0, index).ids for index in range(38)]
    cache = CacheConfig(folder=str(tmp_path / "cache"))
    assert rows(server, cache) == expected
    assert len(copies(cache)) == 12
    assert Handler.asked.count("part-002.tar") == 1
    assert rows(server, cache) == expected
    assert Handler.asked.count("part-002.tar") == 1, "the second reading needs the copies only"
    piped = CacheConfig(folder=str(tmp_path / "piped"))
    assert rows(f"pipe:cat {shlex.quote(str(folder.parent))}/{{}}", piped) == expected


def test_an_object_store_is_read(tmp_path, monkeypatch):
    """Uses moto's server, which behaves like Amazon's."""
    from moto.server import ThreadedMotoServer

    split = write_set(tmp_path / "sets" / "few", [3, 2])
    write_manifest(build_manifest(split, checksums=True))
    expected = [row_at(stream({split: 1.0}, 1), 0, index).ids for index in range(5)]
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        keys = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}
        for name, value in {"AWS_ENDPOINT_URL": f"http://{host}:{port}", **keys}.items():
            monkeypatch.setenv(name, value)
        store = fsspec.filesystem("s3")
        store.mkdir("bucket")
        store.put(str(split.parent), "bucket/few", recursive=True)
        assert rows("s3://bucket/few", CacheConfig(folder=str(tmp_path / "cache")), 5) == expected
        with pytest.raises(UserError, match=r"s3://bucket/none: cannot be fetched, tries: 1, last error: no such file"):
            remote.fetched("s3://bucket/none")
    finally:
        server.stop()


def test_what_a_store_lacks_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"gs://bucket/one: .*run: pip install 'onediff\[gs\]'"):
        remote.fetched("gs://bucket/one")
    with pytest.raises(UserError, match=r"ais://bucket/one: Protocol not known: ais; use `pipe:`"):
        remote.fetched("ais://bucket/one")


def test_the_cache_stays_within_its_limit(tmp_path, folder, server):
    """Four shards fit; the least recently used is evicted, and fetched again when needed."""
    sizes = [shard.bytes for shard in read_manifest(folder).shards]
    limit = max(sizes) * 4
    cache = CacheConfig(folder=str(tmp_path / "cache"), gigabytes=limit / 1e9)
    source = Source.open("texts", DataSet(path=server).folder, 1, 0, 8, cache=cache)
    for shard in (0, 1, 2, 0, 3, 4, 0, 5):
        assert source.shards.read(shard, 0)["json"]
        assert sum(path.stat().st_size for path in copies(cache)) <= limit
    assert Handler.asked.count("part-000.tar") == 1, "it was used all the time"
    assert not [path for path in copies(cache) if path.name.endswith("part-001.tar")]
    assert source.shards.read(1, 0)["json"]
    assert Handler.asked.count("part-001.tar") == 2
    with pytest.raises(UserError, match=r"raise data\.cache\.gigabytes"):
        rows(server, CacheConfig(folder=str(tmp_path / "small"), gigabytes=1e-6))


def test_failed_transfers_are_retried(tmp_path, folder, server, monkeypatch):
    monkeypatch.setattr(Handler, "failing", 2)
    monkeypatch.setattr(Handler, "short", 3)
    expected = [row_at(stream({folder: 1.0}, 1), 0, index).ids for index in range(38)]
    cache = CacheConfig(folder=str(tmp_path / "cache"))
    assert rows(server, cache) == expected
    assert Handler.asked.count("part-002.tar") == 4
    assert not list(Path(cache.folder).glob(".part-*"))


def test_what_cannot_be_fetched_is_one_line(tmp_path, folder, server, monkeypatch):
    cache = CacheConfig(folder=str(tmp_path / "cache"))
    with pytest.raises(
        UserError,
        match=r"http://.*/nothing/train/manifest.json: cannot .* 1, last error: no such file",
    ):
        rows(server.replace("texts", "nothing"), cache)
    shard = folder / "part-002.tar"
    shard.write_bytes(shard.read_bytes().replace(b"texts", b"tests"))
    with pytest.raises(
        UserError, match=r"part-002.tar: cannot be fetched, tries: 5.*SHA-256 differs from the manifest"
    ) as bad:
        rows(server, cache)
    assert "\n" not in str(bad.value)
    shard.write_bytes(b"short")
    with pytest.raises(UserError, match="5 bytes, but the manifest promises"):
        rows(server, cache)
    assert not list(Path(cache.folder).glob(".part-*"))
    assert not [path for path in copies(cache) if path.name.endswith("part-002.tar")]
    with pytest.raises(UserError, match="the command exited with code 3"):
        remote.fetched("pipe:echo; exit 3")


def test_a_command_without_output_is_killed(monkeypatch):
    monkeypatch.setattr(remote, "STALL", 0.1)
    monkeypatch.setattr(remote, "TRIES", 1)
    began = time.monotonic()
    with pytest.raises(UserError, match=r"no byte for 0.1 s"):
        remote.fetched("pipe:sleep 50")
    assert time.monotonic() - began < 20


def test_a_manifest_names_urls_but_no_commands(tmp_path, folder, server):
    """A local manifest with remote shards. Manifests may be untrusted, so they cannot start commands."""
    expected = [row_at(stream({folder: 1.0}, 1), 0, index).ids for index in range(38)]
    here = tmp_path / "here" / "train"
    here.mkdir(parents=True)
    fields = json.loads((folder / FILE).read_text())
    for shard in fields["shards"]:
        shard["url"] = f"{server}/train/{shard['name']}"
    (here / FILE).write_text(json.dumps(fields))
    assert write_manifest(read_manifest(here)).read_text().count(server) == 12
    assert rows(str(here.parent), CacheConfig(folder=str(tmp_path / "cache"))) == expected
    for url in (f"pipe:touch {tmp_path}/made", "s3://bucket/$(touch made)", "file:///etc/passwd"):
        fields["shards"][0]["url"] = url
        (here / FILE).write_text(json.dumps(fields))
        with pytest.raises(UserError, match="not a plain https, s3"):
            read_manifest(here)
    with pytest.raises(UserError, match="where the name of a file goes"):
        _ = DataSet(path="pipe:cat /sets").folder


def read_all(url: str, cache: CacheConfig, seed: int, done) -> None:
    source = Source.open("texts", DataSet(path=url).folder, 4, seed, 8, cache=cache)
    for lane in range(4):
        for position in range(40):
            place = source.lanes.at(lane, position)
            assert source.shards.read(place.shard, place.sample)["json"]
    done.put(os.getpid())


def test_processes_share_the_cache(tmp_path, folder, server):
    """Three processes in three orders through a cache that holds a third of the shards; a fourth died in a download."""
    limit = sum(shard.bytes for shard in read_manifest(folder).shards) / 3
    cache = CacheConfig(folder=str(tmp_path / "cache"), gigabytes=limit / 1e9)
    Path(cache.folder).mkdir()
    left_behind = Path(cache.folder) / ".part-dead"
    left_behind.write_bytes(bytes(1000))
    context = multiprocessing.get_context("fork")
    done = context.Queue()
    readers = [context.Process(target=read_all, args=(server, cache, seed, done)) for seed in range(3)]
    for reader in readers:
        reader.start()
    try:
        assert len({done.get(timeout=300) for _ in readers}) == 3
    finally:
        for reader in readers:
            reader.kill()
            reader.join()
    assert not left_behind.exists()
    assert sum(path.stat().st_size for path in copies(cache)) <= limit
    index_files = {path.name for path in Path(cache.folder).glob("*.index")}
    assert index_files == {f"{path.name}.index" for path in copies(cache)}


def test_the_cache_is_in_the_temporary_folder_by_default():
    assert ShardCache(CacheConfig()).folder.name == f"onediff-shards-{os.getuid()}"
