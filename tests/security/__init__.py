"""The API under attack: each test is named for what it tries, and `SECURITY.md` lists what came of it."""
