"""What the model card of weights that come with the package says, beside that of any run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stvit_cli.models.timm_models import NAMES_IN_TIMM
from stvit_cli.models.weights.info import WeightsInfo
from stvit_cli.recipe import Recipe
from stvit_cli.utils.views import Views


@dataclass(frozen=True)
class PackagedAs:
    """What the card of weights that come with the package says beside its run.

    Attributes:
        name: their name, such as ``stvit-nano.digits``.
        data: what they were trained on.
        data_licence: the licence of those images.
        data_source: whose the images are, for the reader.
        main_metric: the metric of `stvit weights list`.
        precision: what the weights are stored in, see `export.export_weights`.
    """

    name: str
    data: str
    data_licence: str
    data_source: str
    main_metric: str
    precision: str = "fp32"


def listed(
    packaged: PackagedAs, recipe: Recipe, metrics: Mapping[str, float], num_images: int, test: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what `stvit weights list` reads at the head of a card.

    Args:
        packaged: see there.
        recipe: of the run.
        metrics: on the validation images.
        num_images: number of those.
        test: the row of the evaluation on the test set, empty without one; its metrics come first.
    """
    row: Mapping[str, Any] = test or {**metrics, "num_images": num_images}
    return {
        "data": packaged.data,
        "data_licence": packaged.data_licence,
        "metric": packaged.main_metric,
        "value": round(row[packaged.main_metric], 4),
        "images": "test" if test else "validation",
        "num_images": int(row["num_images"]),
        **(Views.of(test) if test else recipe.eval.views)._asdict(),
        "recipe": recipe.name,
    }


def loading_lines(info: WeightsInfo, packaged: PackagedAs) -> Iterator[str]:
    """Yield how the weights are loaded by name."""
    name = packaged.name
    yield "\n## Load it\n"
    yield from ("```bash", f"stvit predict image.png --weights {name}", f"stvit finetune --weights {name} --data FOLDER", "```")
    yield from ("\nIn Python:\n", "```python", "import stvit_cli\n", f'model = stvit_cli.load("{name}")')
    yield from ('print(model.predict("image.png").summary())', "```")
    if info.task == "classification" and info.model in NAMES_IN_TIMM:
        own = f"{NAMES_IN_TIMM[info.model]}.{name.removeprefix(f'{info.model}.').replace('-', '_')}"
        yield from ("\nWith timm:\n", "```python", "import timm", "import stvit_cli  # registers the models in timm\n")
        yield from (f'model = timm.create_model("{own}", pretrained=True).eval()', "```")
    if packaged.precision != "fp32":
        yield f"\nThe weights are stored in {packaged.precision}; the metrics are those of float32."


def licence_lines(packaged: PackagedAs, licence: str) -> Iterator[str]:
    """Yield the licences of the weights and of the images that they were trained on."""
    yield f"The weights: {licence.upper()}, as the package.\n{packaged.data}: {packaged.data_licence}. {packaged.data_source}"
