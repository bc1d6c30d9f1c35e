"""Downloads of original checkpoints, against a small server on loopback."""

import http.server
import re
import threading

import pytest

from conversion.download import DownloadError, download
from stylenat_hub.errors import InputError

DATA = bytes(range(256)) * 2_000


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.data` with ranges; `server.stop_after` bytes end one answer early."""

    def do_GET(self):
        server = self.server
        server.ranges.append(self.headers.get("Range"))
        if self.path != "/weights.pt":
            return self.send_error(404)
        start = self.wanted()
        if start >= len(server.data):
            return self.answer(416, b"", {"Content-Range": f"bytes */{len(server.data)}"})
        if start:
            extent = f"bytes {start}-{len(server.data) - 1}/{len(server.data)}"
            return self.answer(206, server.data[start:], {"Content-Range": extent})
        return self.answer(200, server.data, {})

    def wanted(self):
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        same = self.headers.get("If-Range") in (None, self.server.etag)
        return int(match[1]) if match and same and self.server.resumes else 0

    def answer(self, status, body, headers):
        self.send_response(status)
        self.send_header("Content-Type", self.server.content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", self.server.etag)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        stop, self.server.stop_after = self.server.stop_after, None
        self.wfile.write(body[:stop])
        self.close_connection = True

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.data, server.etag, server.content_type = DATA, '"one"', "application/octet-stream"
        server.resumes, server.stop_after, server.ranges = True, None, []
        server.url = f"http://127.0.0.1:{server.server_address[1]}/weights.pt"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def fetch(server, folder):
    return download(server.url, folder, progress=False)


def interrupted(server, folder, after=100_000):
    server.stop_after = after
    with pytest.raises(
        DownloadError, match=r"ended after 100,000 of 512,000 bytes; run the same command again"
    ):
        fetch(server, folder)
    assert not (folder / "weights.pt").exists()


def test_a_file_arrives_whole_and_is_fetched_once(server, tmp_path):
    path = fetch(server, tmp_path / "new" / "folder")
    assert path.read_bytes() == DATA
    assert fetch(server, path.parent) == path
    assert len(server.ranges) == 1
    assert [file.name for file in path.parent.iterdir()] == ["weights.pt"]


def test_an_interrupted_transfer_goes_on_where_it_stopped(server, tmp_path):
    interrupted(server, tmp_path)
    assert fetch(server, tmp_path).read_bytes() == DATA
    assert server.ranges == [None, "bytes=100000-"]
    assert [file.name for file in tmp_path.iterdir()] == ["weights.pt"]


def test_a_file_that_changed_meanwhile_is_fetched_from_the_start(server, tmp_path):
    interrupted(server, tmp_path)
    server.data, server.etag = DATA[::-1], '"two"'
    assert fetch(server, tmp_path).read_bytes() == DATA[::-1]


def test_a_server_that_cannot_continue_sends_it_all_again(server, tmp_path):
    interrupted(server, tmp_path)
    server.resumes = False
    assert fetch(server, tmp_path).read_bytes() == DATA


def test_a_weak_tag_does_not_vouch_for_half_a_file(server, tmp_path):
    server.etag = 'W/"one"'
    interrupted(server, tmp_path)
    assert fetch(server, tmp_path).read_bytes() == DATA
    assert server.ranges == [None, None]


def test_a_part_that_is_whole_already_is_kept(server, tmp_path):
    interrupted(server, tmp_path)
    (tmp_path / "weights.pt.part").write_bytes(DATA)
    assert fetch(server, tmp_path).read_bytes() == DATA
    assert server.ranges == [None, "bytes=512000-"]


def test_a_part_that_is_too_long_is_dropped(server, tmp_path):
    interrupted(server, tmp_path)
    (tmp_path / "weights.pt.part").write_bytes(DATA + b"more")
    assert fetch(server, tmp_path).read_bytes() == DATA


def test_a_missing_file_is_one_sentence(server, tmp_path):
    with pytest.raises(DownloadError, match=r"does not exist any more \(HTTP 404\)") as caught:
        download(server.url + "x", tmp_path, progress=False)
    assert "\n" not in str(caught.value)


def test_a_web_page_is_not_taken_for_a_checkpoint(server, tmp_path):
    server.content_type = "text/html; charset=utf-8"
    with pytest.raises(DownloadError, match="a web page instead of the file"):
        fetch(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_network_is_one_sentence(server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(DownloadError, match=r"cannot reach 127\.0\.0\.1 .*check the network"):
        fetch(server, tmp_path)


def test_an_unwritable_folder_is_one_sentence(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        fetch(server, tmp_path / "file" / "folder")


@pytest.mark.parametrize("url", ["file:///etc/hostname", "weights.pt", "http://127.0.0.1/"])
def test_only_addresses_of_files_on_the_web_are_fetched(url, tmp_path):
    with pytest.raises(InputError, match="http or https address"):
        download(url, tmp_path)
