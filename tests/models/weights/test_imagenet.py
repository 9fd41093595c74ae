"""ImageNet's classes, read without timm, against timm."""

from timm.data.imagenet_info import ImageNetInfo

from stvit_cli.models.weights import imagenet


def test_the_names_are_timms() -> None:
    info = ImageNetInfo()
    assert list(imagenet.synsets()) == info.label_names()
    assert list(imagenet.descriptions()) == info.label_descriptions()
