"""What a configuration must have for models to teach each other."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peertune.config.schema import Config, MethodConfig


def check_aligned(config: "Config", name: str, method: "MethodConfig") -> dict[str, str]:
    """As `check_mutual`, of `kd` with `vocabularies: aligned`."""
    if config.task.type == "intent" and config.task.output == "classes":
        raise ValueError(f"{name}: `vocabularies: aligned` is of texts, and here models choose a class; remove it")
    if not method.server_model:
        raise ValueError(
            f"{name}: `vocabularies: aligned` goes through a server's model; set `server_model: true`, and a `server`"
        )
    fields = type(method).model_fields
    for key in ("weighting", "least_confidence", "greatest_entropy", "sharpening", "rollback"):
        if getattr(method, key) != fields[key].default:
            raise ValueError(
                f"{name}: `{key}` is of a consensus in one vocabulary; remove it, or `vocabularies: aligned`"
            )
    if method.precision == "fp32" or method.top_k < 1:
        raise ValueError(f"{name}: `vocabularies: aligned` sends the `top_k` most probable tokens in fp16 or int8")
    return {"assessed": "agents", "lexicon": "agents", "tally": "coordinator"}


def check_mutual(config: "Config", name: str, method: "MethodConfig") -> dict[str, str]:
    """Raise `ValueError` naming what `fedmkt` lacks or would ignore. Returns what agents must release, and to whom."""
    if not config.task.transfer:
        raise ValueError(f"{name}: fedmkt needs public problems that all hold, with answers; set `task.transfer`")
    if config.server is None:
        raise ValueError(f"{name}: fedmkt needs a server; add a section `server: {{model: ...}}`")
    if config.task.type == "intent" and config.task.output == "classes":
        raise ValueError(
            f"{name}: fedmkt is for models that write text, and here they choose a class; set `task.output: text`, or "
            "use `method: kd`"
        )
    if method.setting == "one_to_one" and len(config.agents) != 1:
        raise ValueError(f"{name}: `setting: one_to_one` has one client, not {len(config.agents)}; remove `setting`")
    if method.loss != "gjsd" and method.beta != type(method).model_fields["beta"].default:
        raise ValueError(f"{name}: `beta` is of the generalised JSD, and the loss is {method.loss}; set `loss: gjsd`")
    released = {"assessed": "agents"} if method.setting != "llm2slm" else {}
    models = {party.model for party in config.parties().values()}
    if method.setting != "llm2slm" and len(models) > 1:
        released["lexicon"] = "agents"
    return released | {"tally": "coordinator"}
