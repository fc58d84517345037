"""`nanonet serve`."""

import os
import socket
from pathlib import Path
from typing import Any

import click

from nanonet.cli.common import task_of
from nanonet.core.archive import opened_bundle
from nanonet.core.errors import ConfigError, MissingExtraError

TOKEN_VARIABLE = "NANONET_TOKEN"
BACKLOG = 2048  # connections that wait to be taken


@click.command()
@click.argument("bundle", metavar="BUNDLE")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="0: one that is free.",
)
@click.option(
    "--threads",
    type=click.IntRange(0),
    default=0,
    help="CPU threads of the model.  [default: all but one]",
)
@click.option(
    "--max-latency-ms",
    type=click.IntRange(10, 600_000),
    default=1000,
    show_default=True,
    help="What would be answered later is refused (status 429).",
)
@click.option(
    "--max-texts",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Texts per request.",
)
@click.option(
    "--max-characters",
    type=click.IntRange(1),
    default=20_000,
    show_default=True,
    help="Characters per text.",
)
@click.option(
    "--max-body-bytes",
    type=click.IntRange(1),
    default=1_048_576,
    show_default=True,
    help="Bytes per request.",
)
@click.option(
    "--token-file",
    metavar="FILE",
    help=f"Demand the bearer token in FILE, or in the variable {TOKEN_VARIABLE}.",
)
def serve(
    bundle: str,
    host: str,
    port: int,
    threads: int,
    max_latency_ms: int,
    max_texts: int,
    max_characters: int,
    max_body_bytes: int,
    token_file: str | None,
) -> None:
    """Answer HTTP requests with a bundle, without torch.

    POST /predict takes {"text": "..."} or {"texts": [...]}, for a summarizer also {"sentences":
    [...]}; a page to try texts is at /, the reference of all routes at /docs. SIGTERM and Ctrl-C
    answer what was accepted, then stop.

    Requests are logged to stderr as lines of JSON, without their texts.
    """
    if not threads:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        threads = max(1, (cores or 1) - 1)
    # The tokenizer's threads; without it there are as many as cores, next to the model's.
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))
    try:
        from nanonet.runtime import server
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("nanonet"):
            raise
        raise MissingExtraError("nanonet serve", "serve") from None
    from nanonet.runtime.predictor import MultilabelPredictor, Predictor
    from nanonet.runtime.requests import Limits
    from nanonet.runtime.service import ServerSettings
    from nanonet.runtime.summarizer import Summarizer

    limits = Limits(max_body_bytes, max_texts, max_characters)
    settings = ServerSettings(max_latency_ms / 1000, limits, read_token(token_file))
    with bind(host, port) as listener:
        with opened_bundle(Path(bundle)) as folder:
            kinds: dict[str, Any] = {
                "summarization": Summarizer,
                "multilabel": MultilabelPredictor,
            }
            kind = kinds.get(task_of(folder), Predictor)
            model = kind.load(folder, threads=threads)
        listener.listen(BACKLOG)  # from the next line on, clients may come
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{listener.getsockname()[1]}"
        click.echo(f"{bundle} is served at {url}")
        server.serve(model, settings, listener)


def read_token(file: str | None) -> str | None:
    """Return the token of the file or, without one, of the environment; None: there is none.

    Raises:
        ConfigError: the file cannot be read, or the token is no single word.
    """
    if file is None:
        source, token = TOKEN_VARIABLE, os.environ.get(TOKEN_VARIABLE)
        if token is None:
            return None
    else:
        source = f"--token-file {file}"
        try:
            token = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ConfigError(f"{source} cannot be read: {reason}") from None
    token = token.strip()
    if not token.isprintable() or len(token.split()) != 1:
        raise ConfigError(f"{source} must hold one word: the token")
    return token


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address, which does not listen yet.

    Raises:
        ConfigError: the address is taken, or not this machine's.
    """
    listener = None
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        if os.name != "nt":  # there it would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise ConfigError(
            f"cannot listen at {host}, port {port}: {error.strerror}; choose another --port or"
            " --host"
        ) from None
    return listener
