"""Shards behind URLs: http by Python's own server, S3 by moto's."""

from __future__ import annotations

import functools
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.shards import jpeg, write_shards

from stvit_cli.data.shards import index as shards_index
from stvit_cli.data.shards import open_shards, storage
from stvit_cli.data.shards.find import ShardOptions, find_shard_images
from stvit_cli.data.shards.reader import Reader
from stvit_cli.errors import UserError

pytest.importorskip("aiohttp")


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Python's server, which sends complete files; with ``Range`` too, as object stores do."""

    ranges = True
    failures = 0

    def do_GET(self) -> None:
        path, asked = Path(self.translate_path(self.path)), self.headers.get("Range")
        if type(self).failures:
            type(self).failures -= 1
            self.send_error(503)
            return
        if not asked or not path.is_file() or not self.ranges:
            super().do_GET()
            return
        first, last = (int(number) for number in asked.removeprefix("bytes=").split("-"))
        content = path.read_bytes()[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{first + len(content) - 1}/{path.stat().st_size}")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[Ranges]]]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    write_shards(tmp_path / "web", "train", shards=2)
    write_shards(tmp_path / "web", "validation", shards=1, first=9)

    class Handler(Ranges):
        pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(tmp_path / "web")))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", Handler
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("ranges", [True, False])
def test_http_gives_what_the_folder_gives(served: tuple[str, type[Ranges]], tmp_path: Path, ranges: bool) -> None:
    url, handler = served
    handler.ranges = ranges
    local = find_shard_images(ShardOptions(str(tmp_path / "web")))
    remote = find_shard_images(ShardOptions(url))
    pattern = ShardOptions(f"{url}/toy-train-{{0000..0001}}.tar::{url}/toy-validation-0000.tar")
    for ours, theirs, third in zip(remote, local, find_shard_images(pattern), strict=True):
        assert [ours.read(index) for index in range(len(ours))] == [theirs.read(index) for index in range(len(theirs))]
        assert ours.relative_path(3) == theirs.relative_path(3)
        assert ours.fingerprint() == theirs.fingerprint() == third.fingerprint()
    assert remote[0].path(0) == f"{url}/toy-train-0000.tar/n0000_0.jpg"


def test_a_request_that_fails_is_repeated_and_in_the_end_named(served: tuple[str, type[Ranges]]) -> None:
    url, handler = served
    index = open_shards(f"{url}/toy-train-0000.tar")
    handler.failures = storage.ATTEMPTS - 1
    assert index.read(0)
    handler.failures = storage.ATTEMPTS
    with pytest.raises(UserError, match=r"toy-train-0000\.tar: cannot be read, 4 times: 503"):
        index.read(1)
    with pytest.raises(UserError, match=r"toy-train-000\d\.tar: there is no such file or folder"):
        open_shards(f"{url}/toy-train-{{0000..0007}}.tar")


def test_a_remote_shard_that_was_replaced_is_not_read_by_the_positions_of_the_earlier_one(
    served: tuple[str, type[Ranges]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, shard = f"{served[0]}/toy-train-0000.tar", tmp_path / "web" / "toy-train-0000.tar"
    monkeypatch.setattr(shards_index, "_READER", Reader())
    index = open_shards(url)
    os.utime(shard, (1, 1))  # another one of the same size
    with pytest.raises(UserError, match=r"toy-train-0000\.tar was changed or replaced since its index was made"):
        index.read(0)
    index = open_shards(url)
    assert index.read(0)
    os.truncate(shard, 512)  # while this process reads it
    with pytest.raises(UserError, match=r"toy-train-0000\.tar was changed or replaced since its index was made"):
        index.read(5)


def test_a_remote_parquet_file_that_was_replaced_is_not_read_by_the_positions_of_the_earlier_one(
    served: tuple[str, type[Ranges]], tmp_path: Path
) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "web" / "toy.parquet"
    parquet.write_table(arrow.table({"image": [{"bytes": jpeg(1), "path": "1.jpg"}], "label": [0]}), path)
    index = open_shards(f"{served[0]}/{path.name}")
    os.utime(path, (1, 1))  # another one of the same size
    with pytest.raises(UserError, match=r"\.parquet was changed or replaced since its index was made"):
        index.read(0)


@pytest.mark.slow
def test_s3_gives_what_the_folder_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    server_module = pytest.importorskip("moto.server")
    import fsspec

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    write_shards(tmp_path / "local", "train", shards=2)
    write_shards(tmp_path / "local", "val", shards=1)
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        files = fsspec.filesystem("s3", skip_instance_cache=True)
        files.mkdir("bucket")
        files.put(f"{tmp_path}/local/", "bucket/set/", recursive=True)
        local, remote = (find_shard_images(ShardOptions(where)) for where in (str(tmp_path / "local"), "s3://bucket/set"))
        for ours, theirs in zip(remote, local, strict=True):
            assert [ours.read(index) for index in range(len(ours))] == [theirs.read(index) for index in range(len(theirs))]
            assert ours.fingerprint() == theirs.fingerprint()
        assert remote[0].path(0) == "s3://bucket/set/toy-train-0000.tar/n0000_0.jpg"
    finally:
        server.stop()
        fsspec.filesystem("s3").clear_instance_cache()
