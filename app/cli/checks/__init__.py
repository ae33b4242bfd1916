"""What `repliq doctor` looks at, a module a subject: each check says what it found and what to do about it."""
