"""Find which parameters carry a behaviour.

The floors, from the bottom; each imports only what stands before it:

    shapes, trees      nested dicts of arrays: paths, comparison
    models             one decoder, its families, checkpoints, generation
    patching           components and THE definition of a patch
    measuring          tasks, anchors, effects: the definition, and the engine that computes it fast
    scoring            one number per component, five ways
    planning           what a run will cost, from two configs
    tracing            sources and relays, and who supplies whom
    validating         restoration and knockout against controls
    sets               what components do together: interactions, Shapley values, sets chosen otherwise than one by one
    merging            several experts made one model: one published method a file
    reporting          tables, figures, one HTML page, the manifest
    pipeline, hierarchy, joint, experts, merger, learned_merge, learned_mask, validation, run, plan, cli    the conductors, and the
                       command line
"""

from jaxpatch.experts import conflicts, score_experts
from jaxpatch.hierarchy import executors, trace
from jaxpatch.joint import compare_sets, greedy, interactions, learned_gates, shapley
from jaxpatch.learned_mask import learn_mask
from jaxpatch.learned_merge import LearnedMerge, learn_merge
from jaxpatch.measuring.anchor_file import load_anchor, save_anchor
from jaxpatch.measuring.anchors import AnchorInfo, fit_anchor
from jaxpatch.measuring.continuations import Continuation, Divergence, continuation, divergence
from jaxpatch.measuring.inputs import Inputs, encode
from jaxpatch.measuring.read_outs import Anchor, Contribution, NextToken
from jaxpatch.measuring.statistics import fisher, moments
from jaxpatch.measuring.targets import contribution
from jaxpatch.measuring.tree_pairs import TreePair
from jaxpatch.merger import apportion, merge
from jaxpatch.models.checkpoints import CheckpointError, Pair, load_pair
from jaxpatch.models.saving import save_adapter, save_checkpoint, save_orbax
from jaxpatch.patching.blend import patch
from jaxpatch.patching.patterns import partition
from jaxpatch.pipeline import gates, generate, score, score_each, smallest_sets, validate
from jaxpatch.resume import DifferentRunError, Journal
from jaxpatch.scoring.archive import load_scores, save_scores
from jaxpatch.scoring.scores import Scores
from jaxpatch.scoring.stability import Overlap, halves, overlap
from jaxpatch.tracing.flow import Flow, Rules
from jaxpatch.tracing.roles import Criteria, Roles, place

__version__ = "0.1.0"

__all__ = [
    "Anchor",
    "AnchorInfo",
    "CheckpointError",
    "Continuation",
    "Contribution",
    "Criteria",
    "DifferentRunError",
    "Divergence",
    "Flow",
    "Inputs",
    "Journal",
    "LearnedMerge",
    "NextToken",
    "Overlap",
    "Pair",
    "Roles",
    "Rules",
    "Scores",
    "TreePair",
    "apportion",
    "compare_sets",
    "conflicts",
    "continuation",
    "contribution",
    "divergence",
    "encode",
    "executors",
    "fisher",
    "fit_anchor",
    "gates",
    "generate",
    "greedy",
    "halves",
    "interactions",
    "learn_mask",
    "learn_merge",
    "learned_gates",
    "load_anchor",
    "load_pair",
    "load_scores",
    "merge",
    "moments",
    "overlap",
    "partition",
    "patch",
    "place",
    "save_adapter",
    "save_anchor",
    "save_checkpoint",
    "save_orbax",
    "save_scores",
    "score",
    "score_each",
    "score_experts",
    "shapley",
    "smallest_sets",
    "trace",
    "validate",
]
