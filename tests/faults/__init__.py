"""Kills at random moments of every command: nothing lost, nothing doubled, the same result.

`python -m tests.faults.campaign --kills 50 --seed 0 --json FILE` is the whole; `commands` says what is killed, and
`outcome` what is compared.
"""
