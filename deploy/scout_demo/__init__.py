"""The whole of Scout on one machine, on real sales: ``python -m scout_demo`` (``make demo``).

    cli         reads the arguments
    demo        the order of things: start, replay, settle, account, stop
    journey     the Complete Journey data set: baskets, documents, files
    till        one store's point of sale: posts its baskets to its agent, remembers what got an OK
    programs    each program of Scout as a command with its settings file
    supervisor  keeps the programs running, restarts the dead, leaves nothing behind
    folder      the data directory: lock, tokens, ports
    hub         what the demo asks the hub, through its HTTP API
    account     whether everything that went in has come out
    view        what a person sees meanwhile

The demo uses public doors only: HTTP, settings files, exit codes. It knows no table.
"""
