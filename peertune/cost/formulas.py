"""The formulas on plain numbers: how many bytes an adapter and logits have, and where methods cost the same.

d_in and d_out: sides of an adapted matrix; r: rank; P: public problems of a round; S: tokens of an answer; C: classes;
V: vocabulary; k: listed tokens; q: bytes of a number. Framing is not in them. Activations: `codecs.bytes_of`.
"""

from collections.abc import Iterable

FP32 = 4


def lora_numbers(matrices: Iterable[tuple[int, int]], rank: int, factors: str = "AB", head: int = 0) -> int:
    """|theta| = sum over adapted matrices of r d_in (A) + r d_out (B) + r^2 (R), + the numbers of a trained head.

    `matrices`: (d_in, d_out). `factors`: which of A, B and R.
    """
    sides = {"A": lambda d_in, d_out: d_in, "B": lambda d_in, d_out: d_out, "R": lambda d_in, d_out: rank}
    return head + sum(rank * sides[letter](*matrix) for matrix in matrices for letter in factors)


def adapter_bytes(numbers: int, q: int = FP32) -> int:
    """FedLLM: q |theta|, each way and round; whatever data there are."""
    return q * numbers


def logit_bytes(positions: int, width: int, q: int = FP32) -> int:
    """KD-FedLLM, dense: P C q for classes, P S V q for text, each way and round; `positions`: P or P S."""
    return positions * width * q


def sparse_logit_bytes(positions: int, k: int, q: int = FP32, q_id: int = 2, q_tail: int = 0) -> int:
    """KD-FedLLM, the k most probable: P S (k (q + q_id) + q_tail). Ids take 2 bytes if V <= 65,536, else 4."""
    return positions * (k * (q + q_id) + q_tail)


def break_even(fixed: float, each: float) -> float:
    """Of how many units, `each` of so many bytes, the bytes are `fixed`: below, they are fewer."""
    return fixed / each
