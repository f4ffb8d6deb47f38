"""The engines' processes, through Ray.

Embedded, Ray binds to loopback only if it believes that there are no clusters on this system, a constant that it reads
when it is imported; so it is set here, before any module of this package imports it.
"""

import os

if not os.environ.get("DRGRPO_RAY_ADDRESS"):
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
