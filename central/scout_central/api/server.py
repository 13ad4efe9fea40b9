"""How the API is served: one uvicorn for the hub and for the tests.

Who asks is told by the connection, or, where it comes from one of ``proxies``, by the last address
in ``X-Forwarded-For`` that is no proxy's: what a stranger puts in front of it is not believed.
"""

from __future__ import annotations

from collections.abc import Sequence

import uvicorn
from fastapi import FastAPI


def server_of(app: FastAPI, proxies: Sequence[str]) -> uvicorn.Server:
    """A server without a socket yet: ``run(sockets=[…])``."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            proxy_headers=True,
            forwarded_allow_ips=list(proxies),
            timeout_graceful_shutdown=3,
            lifespan="on",
        )
    )
