"""The terminal: Textual screens over ``views`` and ``sheets``, for 80 × 24 and a slow line.

    app      the application: refreshing, views, keys, status line
    grid     a sheet as a table: a window of lines, and only the changed cells drawn anew
    style.tcss

| layer | may not |
|---|---|
| app | word anything that the web shows too; ask the hub except through the feed |
| grid | change the order or the words of a sheet, except when a person sorts or filters |
"""
