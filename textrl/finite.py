"""NaN and infinity, found and named before anything is trained on them, sampled or saved."""

from torch import nn

from textrl.errors import UserError


def check_finite(model: nn.Module, consequence: str) -> None:
    """Raise UserError if a parameter holds NaN or infinity; the first one is named.

    Args:
        model: looked through whole: a frozen weight spoils what the others learn too.
        consequence: what follows for the model, the end of "so it ...".
    """
    for name, parameter in model.named_parameters():
        finite = parameter.isfinite()
        if not finite.all():
            count = int((~finite).sum())
            raise UserError(
                f"the weights of this {type(model).__name__} are not finite, so it {consequence}: "
                f"{name} holds {count} NaN or infinite values of {parameter.numel()}; use a "
                f"checkpoint that is whole"
            )
