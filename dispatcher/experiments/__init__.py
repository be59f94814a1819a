"""Two policies and a hash; then the statistics. Pure: every clock, disk and emit is the caller's.

    POST /experiments ─> specification.parsed, .conflicts ─> lifetime.started ─> ExperimentState ─> the store
    Request ─> assign.assigned(prepared, request, now) ─> Settings ─> policy.decide ─> Decision ─> switches.decided
                  └─ a Share per experiment, kept under the decision's id until its outcome
    Completed ─> Observation(of the share) ─> observe.observe(state, observation, now) ─> state, events
    shadow: a second decide under assigned.shadows ─> shadow.shadowed(state, decision, other, now) ─> state, events
    page, API, CLI ─> verdict.verdict(state) ─> what is known, in numbers and in one sentence

assign: who gets which arm. sums, evidence: the arithmetic. measure: what an outcome counts as. observe: one outcome
further. lifetime: begin, stop, lapse. partaking: what the desk asks of whoever keeps the states. verdict: reading a
state. self_test: would the rules cry wolf on this traffic?

What must never come in: a second way to choose a model (an arm is a patch of the settings, decided upon by the same
`decide`), a clock, chance (it is a hash), memory between calls.
"""
