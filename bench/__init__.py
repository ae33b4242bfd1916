"""The benchmark: `python -m bench` starts the whole product on this machine, puts load on it and on its rival, and prints what it saw."""
