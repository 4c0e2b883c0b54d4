"""Widths of draft passes and what they are padded to where they are recorded, and rows of masks; imports no torch."""

MASK_ALIGNMENT = 16
"""Elements. torch pads (copies) a mask in every layer unless the strides of its rows are multiples of this."""
RECORDED_WIDTH = 128
"""Tokens beyond which a pass computes longer than its launches take; static trees of 1,024 nodes have levels of 103."""
LEAST_KEYS = 256
"""Smallest bucket of keys."""
KEY_STEP = 1024
"""Between buckets of 2,048 keys and more: a recorded pass attends to its whole bucket."""

WALK_ROWS = 64
"""Rows of the target's logits that a walk computes at once; those of 152,000 tokens take 39 MB."""
LEAST_RANKED, MOST_RANKED, RANKED_SHARE = 8, 64, 4
"""Nodes whose children are chosen at once, from so many to so many, or one of so many of the tree's.

Logits are what a step holds most of: 64 rows of 152,000 tokens take 120 MB with what ranks them."""

MOST_DELTA_PAIRS = 2**22
"""Pairs of a tree's tokens and a block's, times heads, that the gated delta rule holds at once: 17 MB in float32."""
DELTA_BLOCK_TOKENS = 64
"""Of a text or a tree, which the gated delta rule solves together."""
MOST_MARKS = 8
"""Earlier states of recurrent layers that texts can be cut back to, of all texts together."""
MARK_TOKENS = 512
"""At most between two of them, while there are few and passes short."""
MARKS_OF_PASS = 3
"""That a pass makes of a text at most, beside the one at its border: those that they replace are held until it ends."""


def most_ranked(num_nodes: int) -> int:
    """Return how many nodes of a tree have their children chosen at once; wider levels take their turn in parts."""
    return min(MOST_RANKED, max(LEAST_RANKED, num_nodes // RANKED_SHARE))


def widest_level(num_nodes: int) -> int:
    """Return the most nodes that one draft pass runs for a tree: each has a child, and the root stands above them."""
    return max(1, (num_nodes - 1) // 2)


def mask_row_elements(num_keys: int) -> int:
    """Return how many elements apart the rows of a mask lie."""
    return -(-num_keys // MASK_ALIGNMENT) * MASK_ALIGNMENT


def bucket_of(count: int, least: int) -> int:
    """Return the smallest power of two that is at least `count` and `least`; both 1 or more."""
    return 1 << (max(count, least) - 1).bit_length()


def key_bucket(num_keys: int, capacity: int) -> int:
    """Return how many keys a recording for `num_keys` attends to, at most `capacity`: few sizes, but no waste."""
    fine = -(-num_keys // KEY_STEP) * KEY_STEP
    return min(fine if num_keys > 2 * KEY_STEP else bucket_of(num_keys, LEAST_KEYS), capacity)


def num_key_buckets(capacity: int) -> int:
    """Return how many buckets of keys the recordings of a cache with so many tokens may have."""
    return len({key_bucket(num_keys, capacity) for num_keys in range(1, capacity + LEAST_KEYS, LEAST_KEYS)})
