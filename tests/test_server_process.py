"""`nanonet serve` as a process: logs, signals, options, and what it refuses to start with."""

import json
import signal
import socket

import pytest

from runs import refuse
from servers import process

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_with_status_0(bundle, number):
    with process(bundle, "--threads", 1) as (server, client):
        client.wait_until_ready()
        assert client.predict(text="a private thing").status == 200
        assert client.get("/nothing?q=private").status == 404
        server.send_signal(number)
        out, err = server.communicate(timeout=60)
    assert server.returncode == 0
    assert out == ""
    lines = [json.loads(line) for line in err.splitlines()]
    assert lines[0]["event"] == "start"
    assert lines[-1]["event"] == "stop"
    (predicted,) = (line for line in lines if line.get("path") == "/predict")
    assert predicted.items() >= {"method": "POST", "status": 200, "texts": 1, "batch": 1}.items()
    assert predicted["ms"] > 0
    assert "private" not in err


def test_the_token_comes_from_a_file_or_the_environment(bundle, tmp_path):
    file = tmp_path / "token"
    file.write_text("of-the-file\n")
    for arguments, token in (((), "of-the-environment"), (("--token-file", file), "of-the-file")):
        environment = {"NANONET_TOKEN": "of-the-environment"}
        with process(bundle, *arguments, **environment) as (_, client):
            assert client.get("/info").status == 401
            assert client.get("/info", Authorization=f"Bearer {token}").status == 200


def test_a_port_that_is_taken(bundle):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        parts = [f"cannot listen at 127.0.0.1, port {port}: Address already in use", "--port"]
        refuse("serve", bundle, "--port", port, parts=parts, status=2)


def test_what_cannot_be_served(bundle, tmp_path):
    refuse("serve", tmp_path / "no", "--port", 0, parts=["no does not exist"])
    refuse("serve", tmp_path, "--port", 0, parts=["is not a bundle"])
    refuse("serve", bundle, "--host", "192.0.2.1", parts=["cannot listen at 192.0.2.1"], status=2)
    refuse("serve", bundle, "--max-texts", 0, parts=["--max-texts"], status=2)


@pytest.mark.parametrize("content", [b"", b" \n", b"two words", b"a\x07", b"\xff"])
def test_bad_tokens(bundle, tmp_path, content):
    file = tmp_path / "token"
    file.write_bytes(content)
    refuse("serve", bundle, "--token-file", file, parts=[f"--token-file {file}"], status=2)


def test_an_empty_token_in_the_environment_is_no_open_door(bundle, monkeypatch, tmp_path):
    monkeypatch.setenv("NANONET_TOKEN", "")
    refuse("serve", bundle, parts=["NANONET_TOKEN must hold one word"], status=2)
    missing = tmp_path / "none"
    refuse("serve", bundle, "--token-file", missing, parts=["cannot be read: No such"], status=2)
