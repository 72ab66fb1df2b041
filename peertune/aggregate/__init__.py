"""From the LoRA adapters of K clients to the next global one. numpy only; no model, no federation.

Wanted is dW = sum_k p_k s_k B_k A_k, [m, n]: p_k by number of examples, s_k = alpha / r_k. The mean of the factors,
s B A with B = sum p_k B_k and A = sum p_k A_k, misses s sum p_k (B_k - B)(A_k - A), of rank up to (K - 1) r: nothing
if one factor is common to all clients. Elements that travel, and FLOPs of the server, for one matrix; R = sum r_k:

| rule     | up, a client | down, a client | FLOPs                     | ranks | exact                 |
|----------|--------------|----------------|---------------------------|-------|-----------------------|
| fedit    | r (m + n)    | r (m + n)      | 2 R (m + n)               | equal | no                    |
| ffa      | r m          | r m            | 2 R m                     | equal | yes                   |
| rolora   | r m or r n   | r m or r n     | 2 R m or 2 R n            | equal | yes                   |
| fedsa    | r n          | r n            | 2 R n                     | equal | there is no global dW |
| fedex    | r (m + n)    | K r (m + n)    | 4 R (m + n)               | equal | yes                   |
| flora    | r_k (m + n)  | R (m + n)      | R m                       | any   | yes                   |
| flexlora | r_k (m + n)  | r_k (m + n)    | 4 R^2 (m + n) + O(R^3)    | any   | best of the rank      |
| hetlora  | r_k (m + n)  | r_k (m + n)    | 2 (R + sum r_k^2) (m + n) | any   | no                    |
| fed_sb   | r^2          | r^2            | 2 R r                     | equal | yes                   |

Arrays are float64 inside and float32 outside: however many clients, an exact rule errs by the last rounding alone, and
its `relative_error` is some 1e-8. A new rule is one function in `rules.py` and one line in `AGGREGATORS`.
"""

from peertune.aggregate.base import Aggregate, Rule, Update
from peertune.aggregate.measure import relative_error
from peertune.aggregate.rules import fedex, flexlora, flora, hetlora, mean
from peertune.aggregate.start import common_start, with_core
from peertune.aggregate.tensors import Tensors, fold, for_rank, having, rank_sides

AGGREGATORS: dict[str, Rule] = {
    "fedit": Rule(mean, "arXiv:2305.05644", "A and B are averaged apart: a mean of factors, not of what they do"),
    "ffa": Rule(mean, "arXiv:2403.12313", "A is the same for all, drawn once; B is trained", ("B",), exact=True),
    "rolora": Rule(mean, "arXiv:2502.01755", "B is trained in odd rounds, A in even ones", ("B", "A"), exact=True),
    "fedsa": Rule(mean, "arXiv:2410.01463", "A is shared, each client keeps a B of its own", ("AB",), private="B"),
    "fedex": Rule(fedex, "arXiv:2410.09432", "the mean; what it misses goes into the base", exact=True),
    "flora": Rule(flora, "arXiv:2409.05976", "all adapters go into the base", exact=True, mixed_ranks=True),
    "flexlora": Rule(flexlora, "arXiv:2402.11505", "the sum, cut to each client's rank", mixed_ranks=True),
    "hetlora": Rule(hetlora, "arXiv:2401.06432", "zero-padded factors, weighted by their norm", mixed_ranks=True),
    "fed_sb": Rule(mean, "arXiv:2502.15436", "A and B are the same for all; R in B R A is trained", ("R",), exact=True),
}

__all__ = [
    "AGGREGATORS",
    "Aggregate",
    "Rule",
    "Tensors",
    "Update",
    "common_start",
    "fold",
    "for_rank",
    "having",
    "rank_sides",
    "relative_error",
    "with_core",
]
