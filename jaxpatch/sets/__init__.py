"""Sets of components: whether their effects add up, what each is worth among the others, and sets chosen otherwise than one by one.

Beyond the paper. Everything here asks a `game` what sets do, and sees no model.
"""
