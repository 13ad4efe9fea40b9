"""What all pages share: the feed of this process, refreshing, the top bar, hub away.

One feed per process, whoever looks; a page is one fragment that Streamlit runs again every
``refresh_seconds``, so nothing but its changed parts is drawn anew.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import streamlit as st
from streamlit.navigation.page import StreamlitPage

from scout_console import config, views
from scout_console.client import HubClient
from scout_console.feed import Feed, Seen
from scout_console.values import Clock, age
from scout_console.views import Headline
from scout_console.web import markup
from scout_shared import answers

_OFFERED = "scout_pages"
_TURN = "scout_turn"


@functools.cache
def settings() -> config.ConsoleSettings:
    """The settings of this process."""
    return config.from_environment()


@functools.cache
def feed() -> Feed:
    """The feed that all visitors share, with one pool of connections."""
    hub = settings().hub
    client = HubClient(hub.url, hub.token, timeout=hub.timeout_seconds)
    return Feed(client, hold_seconds=min(2.0, settings().screen.refresh_seconds / 2))


@functools.cache
def clock() -> Clock:
    """The one zone of all screens."""
    return Clock(settings().screen.zone)


def offer(found: Sequence[StreamlitPage]) -> None:
    """The pages that the top bar leads to."""
    st.session_state[_OFFERED] = found


def page(draw: Callable[[Headline], None]) -> Callable[[], None]:
    """``draw`` as a page that refreshes itself, below the headline; grey when the hub is away."""

    def run() -> None:
        every = settings().screen.refresh_seconds
        st.fragment(body, run_every=every)()

    def body() -> None:
        head, overview = top()
        if overview.value is not None:
            with st.container(key="kept" if overview.stale else "live"):
                draw(head)

    run.__name__ = draw.__name__
    body.__qualname__ = f"page.{draw.__name__}"
    return run


def top() -> tuple[Headline, Seen[answers.Overview]]:
    """Draw the top bar and the headline."""
    turn = st.session_state.get(_TURN, 0) + 1
    st.session_state[_TURN] = turn
    asked = feed()
    overview, fleet, tables = asked.overview(), asked.fleet(), asked.tables()
    bar = views.top_bar(settings().screen.environment, clock(), asked.me(), overview)
    with st.container(key="top", horizontal=True, vertical_alignment="center", gap="small"):
        st.html('<p class="brand">Scout</p>', width="content")
        for target in st.session_state[_OFFERED]:
            st.page_link(target)
        st.html(markup.bar(bar))
    head = views.headline(overview, fleet, tables, clock())
    st.html(
        markup.gone(turn, settings().screen.refresh_seconds)
        + markup.headline(head, since(head, overview))
    )
    return head, overview


def since(head: Headline, overview: Seen[answers.Overview]) -> str:
    """``since 14:03, 12 min``; for an answer that was kept, when it was given."""
    if head.since is None or overview.value is None:
        return ""
    if overview.failure is not None:
        return f"last answer {clock().moment(head.since, overview.now)}"
    lasting = age((overview.now - head.since).total_seconds())
    return f"since {clock().moment(head.since, overview.now)}, {lasting}"
