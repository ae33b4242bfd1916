"""Answers that need no model: fixed ones of the operator, kept ones of Redis, and those to a question that means the same."""
