"""Measuring models: the same prompts to each of them, how long they took, what went wrong, and how sure one can be.

    prompts ─> run ─> asking ─> a dispatcher, or a model server
                 └─> samples ─> summary ─> report, chart
                                   └─> compare, with an earlier one
    survey ─> choosing, by the policy's own scores ─> writing a dispatcher.yaml

asking is the only one that opens a socket. No option and no table of the terminal belongs here: they are the command
line's.
"""
