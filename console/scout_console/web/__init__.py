"""The web console: Streamlit pages over ``views`` and ``sheets``.

    server   the command line and the theme with which Streamlit is started
    app      the script that Streamlit runs: page set-up, navigation
    frame    what all pages share: the feed, refreshing, the top bar, hub away
    pages    overview, fleet, pipeline
    markup   words and tones to HTML, everything escaped
    style.css

| layer | may not |
|---|---|
| pages | word anything that the terminal shows too; ask the hub except through the feed |
| markup | decide what is said |
"""
