"""The doctor's look at the second way to the hub, by HTTPS: reachable, certificate, password.

It asks with an empty request: the hub looks at the password first, then says that nothing came.
"""

from __future__ import annotations

from collections.abc import Generator

from scout_edge.config import EdgeSettings
from scout_edge.doctor.finding import Finding, fail, ok, warn
from scout_edge.link_https import CONNECT_SECONDS, Post
from scout_shared.errors import ConfigError, TransientError


def hub(settings: EdgeSettings) -> Generator[Finding, None, None]:
    """Whether HTTPS would serve where MQTT is blocked; nothing when ``[hub] url`` is not set."""
    if not settings.hub.fallback:
        return
    try:
        post = Post(settings.hub, settings.device.id, settings.mqtt.password, CONNECT_SECONDS)
    except ConfigError as error:
        yield fail("hub.ca", error.message, error.hint)
        return
    try:
        status, _, _ = post.ask(b"")
    except TransientError as error:
        # It is the second way: as long as the first one serves, nothing is lost.
        yield warn(
            "hub.https",
            error.message,
            error.hint or "check [hub] url, and that outgoing HTTPS is let through the firewall",
        )
        return
    finally:
        post.close()
    if status == 422:
        yield ok("hub.https", f"{post.place} takes this device over HTTPS, should MQTT be blocked")
    elif status == 401:
        yield warn(
            "hub.https",
            f"the hub at {post.place} does not take this device's id with its password",
            "enrol the device again: scout-edge enrol --again; only enrolled ones are taken here",
        )
    else:
        yield warn(
            "hub.https",
            f"{post.place} answers {status}, not as a hub that takes segments over HTTPS",
            f"check [hub] url; the hub's proxy must hand {post.path} on; is the hub new enough?",
        )
