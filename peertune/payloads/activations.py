"""What passes between the halves of a split model: hidden states and their gradients, in the run's codec.

Codec, cut and width are known to both sides and do not travel; a receiver says how many tokens it expects.
"""

from typing import ClassVar, Self

import numpy as np

from peertune.codecs import Codec, decode_array, encode_array
from peertune.errors import PayloadError
from peertune.payloads.arrays import Arrays

NONE = np.zeros(0, np.int32)


class Coded(Arrays, frozen=True):
    """Numbers fp32 [N, width] as `peertune.codecs` writes them, and the optimiser step of the client that they are of.

    `what`: stands before the names of the codec's arrays. `beside`: names of other arrays, which may be absent.
    """

    dtypes: ClassVar[tuple[str, ...]] = ("F32", "F16", "I32", "U16", "I8")
    what: ClassVar[str]
    beside: ClassVar[tuple[str, ...]]
    step: int

    @classmethod
    def of(cls, step: int, numbers: np.ndarray, codec: Codec, **beside: np.ndarray) -> Self:
        """The wire form of `numbers`; empty arrays of `beside` are left out. Raises `PayloadError`: NaN, infinity."""
        coded = {f"{cls.what}/{name}": part for name, part in encode_array(numbers, codec).items()}
        return cls(coded | {name: array for name, array in beside.items() if array.size}, step)

    def numbers(self, codec: Codec, tokens: int, width: int) -> np.ndarray:
        """What was sent, fp32 [tokens, width]. Raises `PayloadError` if it is not of this codec and shape."""
        coded = {name.removeprefix(f"{self.what}/"): part for name, part in self.tensors.items() if "/" in name}
        return decode_array(coded, codec, tokens, width)

    def other(self, name: str) -> np.ndarray:
        """One of `beside`; empty where there is none."""
        return self.tensors.get(name, NONE)

    def check(self) -> None:
        super().check()
        if unknown := [name for name in self.tensors if name.split("/")[0] != self.what and name not in self.beside]:
            raise PayloadError(f"{self.kind}: {len(unknown)} arrays are none of theirs, the first {unknown[0][:80]!r}")


class Activations(Coded, frozen=True):
    """Hidden states where the model is cut, one row of tokens after the other, without padding.

    From a client also `lengths` int32 [rows], in tokens, and `reads` int32 [M]: the tokens whose hidden states must
    come back, by number; absent if all must.
    """

    kind: ClassVar[str] = "activations"
    what: ClassVar[str] = "hidden"
    beside: ClassVar[tuple[str, ...]] = ("lengths", "reads")


class Labelled(Coded, frozen=True):
    """Hidden states with their labels: `labels` int32 [M], one for each of `reads`. Of a text they are the text."""

    kind: ClassVar[str] = "labelled"
    what: ClassVar[str] = "hidden"
    beside: ClassVar[tuple[str, ...]] = ("lengths", "reads", "labels")


class Gradient(Coded, frozen=True):
    """The gradient of hidden states; with it, from whoever knows the labels to whom does not, the `loss` fp32 [1]."""

    kind: ClassVar[str] = "gradient"
    what: ClassVar[str] = "gradient"
    beside: ClassVar[tuple[str, ...]] = ("loss",)

    def check(self) -> None:
        super().check()
        loss = self.other("loss")
        if loss.size and (loss.dtype, loss.shape) != (np.float32, (1,)):
            raise PayloadError(f"gradient: expected one loss in float32, found {loss.dtype} {loss.shape}")
