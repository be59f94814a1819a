"""Requests relayed to model servers: whose turn it is, what is kept, and what is done when an attempt fails."""
