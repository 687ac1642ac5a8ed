"""One test set under several conditions: as it was recorded, and as a telephone line makes it worse, step by step.

Each condition adds one step to the last one. A step draws the same parameters in all of them (they follow from seed,
id and step), so that the difference between two neighbours is what the added step costs.
"""

from .data.telephone import DOWN, PRESETS, UP, TelephoneChannel

_LINE = [{"codec": {}}, {"packet_loss": {}}, {"babble": {}}]
CONDITIONS: dict[str, list[dict] | None] = {
    "clean_16k": None,
    "clean_8k": [DOWN, UP],
    "g711": [DOWN, *_LINE[:1], UP],
    "loss": [DOWN, *_LINE[:2], UP],
    "babble": [DOWN, *_LINE[:3], UP],
}


def condition_channel(name: str, talkers, *, seed: int = 0) -> TelephoneChannel | None:
    """
    Args:
        name (`str`): One of `CONDITIONS`, or a telephone channel: a preset or the path of a YAML.
        talkers (`datasets.Dataset`): Utterances for babble, of which an utterance never hears itself.
        seed (`int`, *optional*, defaults to 0): Which of them are chosen.

    Returns:
        [`TelephoneChannel`]; None for the recordings as they are.
    """
    if name in CONDITIONS:
        if CONDITIONS[name] is None:
            return None
        channel = TelephoneChannel(CONDITIONS[name])
    elif name in PRESETS:
        channel = TelephoneChannel.from_preset(name)
    elif name.endswith((".yaml", ".yml")):
        channel = TelephoneChannel.from_yaml(name)
    else:
        raise ValueError(
            f"`domain` is {name!r}; choose from {', '.join(CONDITIONS)}, a preset ({', '.join(PRESETS)}) or a YAML."
        )
    if "talkers" in channel.missing():
        channel = channel.with_noise(talkers, seed=seed)
    if channel.missing() and channel.missing_noise == "error":
        raise ValueError(f"`domain` {name} mixes in {', '.join(channel.missing())}, of which there are none here.")
    return channel


__all__ = ["CONDITIONS", "condition_channel"]
