"""Whether a ranking means anything: restoration and knockout of its top part, against controls of equal size."""
