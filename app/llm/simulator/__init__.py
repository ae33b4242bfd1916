"""An OpenAI-compatible server of our own: deterministic answers, faults on demand, no other part of the app."""
