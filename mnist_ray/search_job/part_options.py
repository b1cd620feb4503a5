"""The own options of a search space, a sampler or a scheduler, for help and docs."""

from mnist_ray import spaces
from mnist_ray.settings import help
from mnist_ray.study import pruners, samplers


def part_options(part: str, name: str) -> tuple[help.Option, ...]:
    """The options that --PART-args takes.

    Args:
        part: One of help.PARTS.
        name: As --space, --sampler and --scheduler take it.

    Raises:
        SettingsError: There is none of that name.
    """
    if part == "space":
        # One's own may be for --train, and take the trial alone.
        return help.part_options(spaces.find(name, of_images=name in spaces.SPACES), {})
    if part == "sampler":
        return help.part_options(*samplers.found(name))
    return help.part_options(pruners.factory(name), {})
