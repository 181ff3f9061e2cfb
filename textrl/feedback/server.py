"""The server of `textrl collect`: checks its address, fills the store, prints links, and serves.

No acknowledged answer is lost if the server is killed, since each answer is committed before it is
acknowledged. A new start with the same database continues where the server stopped.
"""

import ipaddress
import json
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack, suppress
from pathlib import Path

import uvicorn

from textrl.errors import UserError, hide_password
from textrl.feedback.app import create_app
from textrl.feedback.config import CollectConfig
from textrl.feedback.reward_check import RewardChecker
from textrl.feedback.task_files import read_tasks
from textrl.labels import lead
from textrl.labels.one_server import served_alone
from textrl.labels.store import RefusedError, Store

LEAD = "lead"
"""The name of the lead, for whom each start of the server makes a link."""


def check_address(config: CollectConfig) -> None:
    """Refuse an address that others can reach, unless TLS or a proxy with TLS keeps tokens secret.

    Raises:
        UserError: others can reach the address; the message names the remedy.
    """
    try:
        loopback = ipaddress.ip_address(config.host).is_loopback
    except ValueError:
        loopback = config.host == "localhost"
    secured = config.tls_cert is not None or config.behind_proxy
    if not loopback and not secured:
        raise UserError(
            f"--host {config.host} is open to others, and tokens would travel unprotected; give "
            f"--tls_cert and --tls_key, or --behind_proxy where a proxy in front does TLS"
        )


def serve(config: CollectConfig) -> None:
    """Serve the pages until stopped."""
    check_address(config)
    check_certificate(config)
    tasks = read_tasks(config.prompts) if config.prompts and config.model is None else []
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))  # so that the stack unwinds
    with ExitStack() as stack:
        store = Store(config.database, create=True)
        stack.callback(store.close)
        stack.enter_context(served_alone(store.engine))
        listener = _listen(config)
        stack.callback(listener.close)
        overlap = int(lead.setting(store, "overlap", config.overlap))
        added = store.add_tasks(tasks, overlap)
        sampler, models = None, None
        if config.choose == "informative":
            models = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "models"
            models.mkdir()
        if config.model is not None:
            sampler = _start_sampler(config, overlap, models)
            stack.callback(_end, sampler)
        if config.reward_model is not None:
            checker = RewardChecker(store, config.reward_model, models)
            checker.start()
            stack.callback(checker.stop)
        _print_welcome(store, config, added, listener.getsockname()[1])
        app = create_app(store, lambda: _trouble(sampler))
        # The first report reads all answers; the lead need not wait for that.
        threading.Thread(target=app.state.reports.overview, daemon=True).start()
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=config.behind_proxy,
                ssl_certfile=config.tls_cert,
                ssl_keyfile=config.tls_key,
            )
        )
        with suppress(KeyboardInterrupt):  # uvicorn raises it again after its shutdown
            server.run(sockets=[listener])
    print("stopped; the same command goes on")


def check_certificate(config: CollectConfig) -> None:
    """Raise UserError unless the certificate and the key can be used."""
    if config.tls_cert is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(config.tls_cert, config.tls_key)
        except (OSError, ssl.SSLError) as error:
            files = f"{config.tls_cert}, {config.tls_key}"
            raise UserError(f"--tls_cert, --tls_key {files}: {error}") from error


def _trouble(sampler: subprocess.Popen[str] | None) -> str:
    if sampler is None or sampler.poll() in (None, 0):
        return ""
    return "Sampling has stopped, see the server's terminal; start the server again."


def _listen(config: CollectConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
        listener.listen()  # before the links are printed, so that early requests wait
    except OSError as error:
        listener.close()
        raise UserError(
            f"cannot listen at {config.host} port {config.port} ({error.strerror}); give another "
            f"--port, or 0 for any that is free"
        ) from error
    return listener


def _links(store: Store, config: CollectConfig) -> dict[str, str]:
    """Return the tokens, by name, of new labelers and of the lead, whose old token is revoked."""
    known = {person.name for person in lead.labelers(store) if not person.is_lead}
    names = [name.strip() for name in (config.labelers or "").split(",") if name.strip()]
    if not known and not names:
        names = ["me"]
    try:
        lead_token = lead.new_lead(store, LEAD)
        fresh = {n: lead.add_labeler(store, n) for n in dict.fromkeys(names) if n not in known}
    except RefusedError as error:
        raise UserError(f"--labelers: {error}") from error
    return fresh | {LEAD: lead_token}


def _start_sampler(
    config: CollectConfig, overlap: int, models: Path | None
) -> subprocess.Popen[str]:
    """Start the sampling process and return it once its model is loaded."""
    settings = {
        "database": config.database,
        "prompts": config.prompts,
        "model": config.model,
        "samples": config.samples,
        "max_completion_tokens": config.max_completion_tokens,
        "temperature": config.temperature,
        "seed": config.seed,
        "overlap": overlap,
        "chooser": None if models is None else str(models),
    }
    print(f"loading {config.model} to sample from", flush=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "textrl.feedback.sampler"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(settings) + "\n")
    process.stdin.flush()
    first = process.stdout.readline().strip()
    if first != "ready":
        process.communicate()
        raise UserError(first or f"the model {config.model} could not be loaded, see above")
    return process


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.communicate()


def _print_welcome(store: Store, config: CollectConfig, added: int, port: int) -> None:
    host = f"[{config.host}]" if ":" in config.host else config.host
    address = f"{'https' if config.tls_cert else 'http'}://{host}:{port}"
    if config.public_url is not None:
        address = config.public_url.rstrip("/")
    print(f"{store.open_tasks()} open tasks in {hide_password(config.database)}, {added} new")
    for name, token in _links(store, config).items():
        print(f"{name:>12}: {address}/{'lead' if name == LEAD else ''}#token={token}")
    print(
        "Links are shown this once; the lead's page makes new ones. Ctrl+C stops; nothing is lost."
    )
    sys.stdout.flush()
