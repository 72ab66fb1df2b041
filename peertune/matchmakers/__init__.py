"""Who should learn from whom: pairing policies. numpy only; a policy sees profiles and rewards, never a model.

A new policy is one file here and one line in `MATCHMAKERS`. `oracle.py` and `synthetic.py` are for studies alone.
"""

from peertune.matchmakers.base import Matchmaker, Pair
from peertune.matchmakers.hetero_greedy import HeteroGreedy
from peertune.matchmakers.linucb import LinUCB
from peertune.matchmakers.pairwise import Pairwise
from peertune.matchmakers.round_robin import RoundRobin
from peertune.matchmakers.router import Router
from peertune.matchmakers.uniform import Uniform

MATCHMAKERS: dict[str, type[Matchmaker]] = {
    "linucb": LinUCB,
    "pairwise": Pairwise,
    "uniform": Uniform,
    "round_robin": RoundRobin,
    "hetero_greedy": HeteroGreedy,
}

ROUTERS: dict[str, type[Router]] = {"beta": Router}

__all__ = [
    "MATCHMAKERS",
    "ROUTERS",
    "HeteroGreedy",
    "LinUCB",
    "Matchmaker",
    "Pair",
    "Pairwise",
    "RoundRobin",
    "Router",
    "Uniform",
]
