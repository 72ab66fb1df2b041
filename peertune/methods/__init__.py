"""The methods. Each is one file: the idea, the paper, the round. A new one is a file here and a line in `METHODS`."""

from peertune.methods.base import Budget, Method, Run
from peertune.methods.central_text import CentralText
from peertune.methods.centralised import Centralised
from peertune.methods.fedavg import FedAvg
from peertune.methods.fedmkt import FedMKT
from peertune.methods.kd import KD
from peertune.methods.knexa import Knexa
from peertune.methods.local import Local
from peertune.methods.split import Split

METHODS: dict[str, type[Method]] = {
    "local": Local,
    "fedavg": FedAvg,
    "knexa": Knexa,
    "kd": KD,
    "fedmkt": FedMKT,
    "split": Split,
    "central_text": CentralText,
    "centralised": Centralised,
}

__all__ = [
    "METHODS", "Budget", "CentralText", "Centralised", "FedAvg", "FedMKT", "KD", "Knexa", "Local", "Method", "Run",
    "Split",
]  # fmt: skip
