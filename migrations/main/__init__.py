"""The main database: bots, users, requests, sessions, limits, dialogs. A file is `<four digits>_<what it does>.py`."""
