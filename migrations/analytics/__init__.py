"""The analytics database: events and what is derived from them. A file is `<four digits>_<what it does>.py`."""
