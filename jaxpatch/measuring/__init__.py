"""From a patch to a number: tasks and prompts, the anchor, the definition of an effect, and the engine that computes it fast."""
