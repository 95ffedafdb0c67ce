"""One delivery, to a real HTTP server: how it is signed, what counts as delivered, and where it may not go."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from email.utils import formatdate
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest
from fix_receiver import SECRET, Receiver, handler

from bridge.errors import DeliveryError, PermanentError
from bridge.results.failure import error_of
from bridge.worker import notifiers, webhooks

if TYPE_CHECKING:
    from collections.abc import Callable

    from fix_tls import Certificates

HERE = ["127.0.0.1"]
PAYLOAD = {"type": "job.failed", "data": {"id": "7", "error": {"type": "ValueError", "message": "Grüße"}}}


@pytest.fixture(autouse=True)
def _secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_WEBHOOK_SECRET", SECRET)
    monkeypatch.setenv("BRIDGE_WEBHOOK_SECRET_SHOP", f"{SECRET} whsec_bmV3")


def test_a_message_is_signed_over_id_time_and_body(make_receiver: Callable[..., Receiver]) -> None:
    receiver = make_receiver()
    assert webhooks.deliver("msg-1", receiver.url("/hooks?shop=1"), PAYLOAD, "default", HERE) == 204
    (message,) = receiver.messages
    assert (message.path, message.data, message.headers["webhook-id"]) == ("/hooks?shop=1", PAYLOAD, "msg-1")
    assert message.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert message.is_signed_with(SECRET)
    assert not message.is_signed_with("whsec_d3Jvbmc=")


def test_while_a_secret_is_exchanged_both_sign(make_receiver: Callable[..., Receiver]) -> None:
    receiver = make_receiver()
    webhooks.deliver("msg-1", receiver.url(), PAYLOAD, "shop", HERE)
    assert receiver.messages[0].is_signed_with(SECRET)
    assert receiver.messages[0].is_signed_with("whsec_bmV3")


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [(503, DeliveryError, "answered 503"), (404, DeliveryError, "answered 404"), (410, PermanentError, "answered 410, it is gone")],
)
def test_an_answer_that_is_no_success_is_an_error_without_the_query(
    make_receiver: Callable[..., Receiver], status: int, error: type[Exception], words: str
) -> None:
    receiver = make_receiver(status)
    with pytest.raises(error, match=words) as raised:
        webhooks.deliver("msg-1", receiver.url("/hooks?token=hidden"), PAYLOAD, "default", HERE)
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize(
    ("status", "asked", "expected"),
    [
        (429, "120", 120), (503, "0", 5), (503, "9" * 400, 86400),
        (503, "at a moment", 6000),
        (503, formatdate(0, usegmt=True), 5), (503, "tomorrow", None), (503, "-5", None), (503, None, None), (500, "120", None),
    ],
)  # fmt: skip
def test_a_receiver_that_is_busy_says_when_it_wants_to_be_asked_again(
    make_receiver: Callable[..., Receiver], status: int, asked: str | None, expected: float | None
) -> None:
    receiver = make_receiver(status)
    receiver.retry_after = formatdate(time.time() + 6000, usegmt=True) if asked == "at a moment" else asked
    with pytest.raises(DeliveryError) as raised:
        webhooks.deliver("msg-1", receiver.url(), PAYLOAD, "default", HERE)
    assert raised.value.retry_after == (expected if expected is None else pytest.approx(expected, rel=0.1))
    assert error_of(raised.value, None).get("retry_after") == raised.value.retry_after


def test_a_redirect_is_not_followed(make_receiver: Callable[..., Receiver]) -> None:
    receiver = make_receiver(302)
    with pytest.raises(DeliveryError, match="answered 302"):
        webhooks.deliver("msg-1", receiver.url(), PAYLOAD, "default", HERE)
    assert [message.path for message in receiver.messages] == ["/hooks"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}/x", "http://localhost:{port}/x", "http://[::ffff:127.0.0.1]:{port}/x"])
def test_an_address_of_ones_own_network_is_refused_unless_its_host_is_named(make_receiver: Callable[..., Receiver], url: str) -> None:
    receiver = make_receiver()
    with pytest.raises(PermanentError, match=r"has no public address .* has to be named in the setting webhook_hosts"):
        webhooks.deliver("msg-1", url.format(port=receiver.port), PAYLOAD, "default", [])
    assert receiver.messages == []


def test_a_host_that_is_not_named_is_refused_where_some_are(make_receiver: Callable[..., Receiver]) -> None:
    with pytest.raises(PermanentError, match=r"webhook host 127\.0\.0\.1 is not allowed"):
        webhooks.deliver("msg-1", make_receiver().url(), PAYLOAD, "default", ["*.example.org"])


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999/", "gopher://127.0.0.1/", "http:///x", "http://me:pass@127.0.0.1/"])
def test_what_is_no_address_is_refused_for_good(url: str) -> None:
    with pytest.raises(PermanentError, match="is no http or https address"):
        webhooks.deliver("msg-1", url, PAYLOAD, "default", HERE)


def test_nobody_there_is_an_error_that_may_pass() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(DeliveryError, match="gave no answer"):
            webhooks.deliver("msg-1", f"http://127.0.0.1:{closed.getsockname()[1]}/", PAYLOAD, "default", HERE)


def test_a_secret_that_this_worker_lacks_is_named_by_its_variable() -> None:
    with pytest.raises(DeliveryError, match="BRIDGE_WEBHOOK_SECRET_BILLING is not set in this worker's environment"):
        webhooks.deliver("msg-1", "http://127.0.0.1:1/", PAYLOAD, "billing", HERE)


def test_https_is_spoken_with_servers_whose_certificate_is_good(certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    receiver = Receiver()
    receiver.gate.set()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(receiver))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate, certificates.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    url = f"https://127.0.0.1:{server.server_address[1]}/hooks"
    with pytest.raises(DeliveryError, match="certificate verify failed"):
        webhooks.deliver("msg-1", url, PAYLOAD, "default", HERE)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))
    assert webhooks.deliver("msg-1", url, PAYLOAD, "default", HERE) == 204
    server.shutdown()
    server.server_close()


def note(status: str = "failed") -> dict[str, object]:
    error = {"type": "ValueError", "message": "torn page"}
    job = {"task": "mail.send", "status": status, "queue": "mail", "attempts": 3, "task_id": "job-7", "error": error}
    return {"type": f"job.{status}", "data": job}


def test_a_notification_goes_through_apprise_to_every_address(
    make_receiver: Callable[..., Receiver], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make_receiver(), make_receiver()
    monkeypatch.setenv("BRIDGE_NOTIFIER_OPS", f"json://127.0.0.1:{first.port}/one json://127.0.0.1:{second.port}/two")
    notifiers.deliver("ops", note())
    for receiver, path in ((first, "/one"), (second, "/two")):
        (message,) = receiver.messages
        told = (message.path.rstrip("/"), message.data["title"], message.data["type"])
        assert told == (path, "mail.send failed", "failure")
        assert message.data["message"] == "mail.send failed, queue mail, attempt 3\nValueError: torn page\njob job-7"


def test_a_notification_that_is_not_taken_is_an_error_that_hides_the_address(
    make_receiver: Callable[..., Receiver], monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = make_receiver(500, 500, 500, 500)
    monkeypatch.setenv("BRIDGE_NOTIFIER_OPS", f"json://me:hidden@127.0.0.1:{receiver.port}/one")
    with pytest.raises(DeliveryError, match="an address of BRIDGE_NOTIFIER_OPS did not take the message") as raised:
        notifiers.deliver("ops", note())
    assert "hidden" not in str(raised.value)
    monkeypatch.setenv("BRIDGE_NOTIFIER_OPS", "hidden-nonsense")
    with pytest.raises(PermanentError, match="address 1 of BRIDGE_NOTIFIER_OPS is none that Apprise knows") as odd:
        notifiers.deliver("ops", note())
    assert "hidden" not in str(odd.value)
    with pytest.raises(DeliveryError, match="BRIDGE_NOTIFIER_PAGER is not set"):
        notifiers.deliver("pager", note())
