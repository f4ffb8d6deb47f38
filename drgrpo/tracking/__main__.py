"""Deliver what runs left in a spool after an outage: `python -m drgrpo.tracking TRACKING_URI SPOOL_DIR`."""

import sys
from pathlib import Path

from drgrpo.tracking import TrackingError, check_tracking_uri, deliver_spools

if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        check_tracking_uri(sys.argv[1], field="TRACKING_URI")
        num_left = deliver_spools(sys.argv[1], Path(sys.argv[2]))
    except TrackingError as error:
        sys.exit(str(error))
    sys.exit(f"{num_left} events still wait in {sys.argv[2]}" if num_left else 0)
