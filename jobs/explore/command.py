"""`latentlake explore STORE`: look at a store in a browser; nothing leaves this machine."""

from __future__ import annotations

import secrets
import socket
import webbrowser
from threading import Thread
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from jobs.command.options import DeviceOfPass, ModelPath, SaePath, TokenizerPath
from jobs.terminal.console import console, say
from pipeline.store import FeatureStore
from schemas.errors import InputError

if TYPE_CHECKING:
    from jobs.explore.lake import Explored

LOOPBACK = ("127.0.0.1", "localhost", "::1")
EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - known, so that they can be warned of
"""What stands for all addresses of a machine, and the one of them that a browser here opens."""


def command(
    store: FeatureStore,
    *,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Others than this machine's own can then reach it.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0: any free one.", min=0, max=65535)] = 0,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")
    ] = True,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Write nothing: stars, names and notes cannot be changed.")
    ] = False,
    model: ModelPath = None,
    sae: SaePath = None,
    tokenizer: TokenizerPath = None,
    device: DeviceOfPass = "auto",
) -> None:
    """Serve the application until Ctrl-C. InputError where no site has features, or the port is taken."""
    from jobs.explore.lake import Explored
    from pipeline.evaluation.typed_text import Places

    if not any(site.has_sae for site in store.sites.values()):
        raise InputError(f"{store.layout.root} has no site with an SAE: there are no features to look at")
    listening = _listen(host, port)
    with listening:
        _serve(Explored(store, Places(model, sae, tokenizer, device), read_only), listening, host, browser)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise InputError(
            f"--host {host} --port {port} cannot be listened on ({error}): give another"
        ) from None
    return listening


def _serve(lake: Explored, listening: socket.socket, host: str, browser: bool) -> None:
    """Serve until the process is interrupted."""
    import uvicorn

    from jobs.explore.guard import Guard
    from jobs.explore.server import create_app

    token, port = secrets.token_urlsafe(24), listening.getsockname()[1]
    names = frozenset({*LOOPBACK, host, socket.gethostname()})
    app = Guard(create_app(lake), token, names, port, every_address=host in EVERY_ADDRESS)
    # a browser cannot open the address that stands for all
    named = EVERY_ADDRESS.get(host, host)
    shown = f"[{named}]" if ":" in named else named
    url = f"http://{shown}:{port}/?token={token}"
    say(f"[bold]explore[/] {escape(str(lake.store.layout.root))}; Ctrl-C ends it. Open:")
    console.print(url, markup=False, highlight=False, soft_wrap=True)  # `say` would hide the token
    if host not in LOOPBACK:
        say("[yellow]note[/]: others can reach this address, and what it sends is not encrypted")
    Thread(target=lake.read_ahead, daemon=True).start()
    if browser:
        webbrowser.open(url)
    config = uvicorn.Config(
        app, log_level="warning", lifespan="off", ws="none", access_log=False, server_header=False
    )
    uvicorn.Server(config).run(sockets=[listening])
