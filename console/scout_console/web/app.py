"""The script that Streamlit runs for each visitor: page set-up, navigation, the page."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from scout_console.web import frame, pages

_HERE = Path(__file__).parent

st.set_page_config(
    page_title="Scout", page_icon=str(_HERE / "icon.png"), layout="wide", menu_items=None
)
st.html(_HERE / "style.css")

PAGES = (
    st.Page(frame.page(pages.overview), title="Overview", url_path="overview", default=True),
    st.Page(frame.page(pages.fleet), title="Fleet", url_path="fleet"),
    st.Page(frame.page(pages.pipeline), title="Pipeline", url_path="pipeline"),
)
frame.offer(PAGES)
st.navigation(list(PAGES), position="hidden").run()
