"""The hub's HTTP API, version 1.

    app         puts it together; metrics
    auth        tokens, roles, stores
    reading     a transaction in the caller's name, under Row Level Security
    statements  the SQL of the screens
    answers     what goes out
    failures    every failure in one shape; nothing hangs
    paging      cursors
    status      the words that sum up
    overview, fleet, datasets, origins, pipeline, files    the endpoints

| layer | may not |
|---|---|
| endpoints | open a connection; put a value or a name of the request into SQL |
| reading | read as the owner, or write |
| files | read the body before the token is checked |
"""
