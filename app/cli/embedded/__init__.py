"""The servers that `repliq up` and the tests bring along: PostgreSQL and Redis from wheels, on sockets of their own."""
