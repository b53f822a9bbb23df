"""A site that joins a trained federation: it brings its key and switch matrices, and nothing is trained again."""

from __future__ import annotations

from torch import Tensor

from ppcmi_fast.data.arrays import Arrays
from ppcmi_fast.errors import ConfigError, DataError
from ppcmi_fast.federation.build import Federation, make_site
from ppcmi_fast.federation.calibration import calibrated_maps, save_threshold
from ppcmi_fast.federation.codecs import Participant, exchange_codecs, make_learner
from ppcmi_fast.federation.config import RunConfig
from ppcmi_fast.federation.runfolder import RunFolder, save_module


def check_late_sites(config: RunConfig, sites: set[str]) -> None:
    """Refuse late sites that are not in the data, or that no federation would be left without.

    Raises:
        DataError: an unknown site, or fewer than two others.
        ConfigError: a mode in which a site cannot join later.
    """
    unknown = sorted(set(config.late_sites) - sites)
    if unknown:
        raise DataError(
            f"late_sites: expected sites of the data ({', '.join(sorted(sites))}), got {unknown[0]!r}; correct it"
        )
    if config.late_sites and len(sites - set(config.late_sites)) < 2:
        raise DataError(
            f"late_sites: expected at least 2 other sites to train, got {sorted(sites - set(config.late_sites))};"
            " name fewer"
        )
    if config.late_sites and (config.trust == "sites" or config.codec.sharing == "local"):
        raise ConfigError(
            'late_sites: expected trust "server" or "federation" and a shared codec, got'
            f' trust="{config.trust}", codec.sharing="{config.codec.sharing}"; adapters and local codecs need training'
        )


def join(
    config: RunConfig,
    folder: RunFolder,
    federation: Federation,
    name: str,
    data: dict[str, Arrays],
    classes: int,
) -> Participant:
    """Let a site join: a member sends it the codec, sealed, and it registers its switch matrices.

    Raises:
        RunError: its key is missing.
    """
    # From another seed, so that only what it receives can make it fit.
    learner = make_learner(config, classes, config.seed + 7919)
    site = make_site(config, folder, name, learner)
    newcomer = Participant(site, learner, data["train"], data["val"])
    number = config.codec.rounds + config.tuning.rounds
    exchange_codecs(federation.participants[:1], federation.channel, number, receivers=[newcomer])
    learner.eval()
    save_module(folder.site(name) / "codec.safetensors", learner)
    federation.channel.send(site.register(config.size, config.size))
    return newcomer


def late_answers(
    config: RunConfig,
    folder: RunFolder,
    federation: Federation,
    late: dict[str, dict[str, Arrays]],
    classes: int,
) -> dict[str, Tensor]:
    """Class maps of every late site's test images, through a federation that was trained without it."""
    maps = {}
    for name, data in late.items():
        newcomer = join(config, folder, federation, name, data, classes)
        maps[name] = calibrated_maps(newcomer, federation.channel, data["test"].images, classes, config)
        save_threshold(folder, newcomer.site)
    return maps
