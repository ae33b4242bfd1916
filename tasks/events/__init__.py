"""How events travel over the message broker: sent, consumed, put aside, sent back. The rest of Repliq does not need it."""
