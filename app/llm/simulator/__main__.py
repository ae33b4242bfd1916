"""`python -m app.llm.simulator`: the command line of the simulator."""

import sys

from app.llm.simulator import server

if __name__ == "__main__":
    sys.exit(server.main())
