"""Planted truth: pairs of models of which it is known what makes the difference, decoys beside it, and methods scored against that.

The floors, from the bottom; each imports only what stands before it:

    language        what the models speak: prompts that ask for a register, and whoever has not learnt to listen
    training        base, and changes of given sizes: decoys that do nothing that is scored, sources that make it obey
    families        where the sources are, and what else changes
    checks          what a pair must show before it is used
    pairs           a pair of a family and a seed, verified by what the models say, or not used
    scorers         how good a ranking is, where the truth is known
    contestants     who takes part: a number for every component, and what it cost
    promises        what the library promises beside a ranking: intervals, findings, the screen's error rate, traced routes
    door            pairs as files, predictions in, a row out; of jaxpatch it needs nothing
    shelf           planted pairs as such files
    records         what was measured of a pair, as a line
    page, board     the page and the command
"""
