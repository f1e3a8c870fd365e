"""Sentences on the checks for masking."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from holdfast.report.words.numbers import NOTHING, number, percent, small_percent, written
from holdfast.stats.masking import Checked, Masking, Reading, floor, masked, probed, reads


def sentences(models: Sequence[Checked]) -> list[str]:
    """The sentences of the checks: first on the probe, then on every model with a safeguard; empty where none was checked."""
    texts = [_instrument(models)]
    for masking in masked(models):
        texts += [_gradient(masking), _probed(masking, models)]
    return [text for text in texts if text]


def signs(masking: Masking, models: Sequence[Checked]) -> str:
    """All sentences on one model with a safeguard."""
    return " ".join(text for text in (_gradient(masking), _probed(masking, models)) if text)


def alarms(masking: Masking, models: Sequence[Checked]) -> str:
    """The sentences on what fires alone: gradients or modes that are suspect, and knowledge that the model does not show."""
    texts = (
        _gradient(masking) if masking.suspect else "",
        _probed(masking, models) if masking.readable == "hidden knowledge" else "",
    )
    return " ".join(text for text in texts if text)


def _gradient(masking: Masking) -> str:
    """The sentences on the gradients: whether they are true and lead downhill, how far, how long, and whatever the mode."""
    model, standing = masking.model, masking.gradient
    if standing is None and model.gradient_norm is None:
        mode = _mode(masking)
        return f"{model.model}: {mode[0][:1].lower()}{mode[0][1:]}" if mode else ""
    if standing is None:
        text = "whether gradients are true cannot be told at this precision; measure the model in float32."
    elif standing == "ordinary":
        error = small_percent(model.gradient_error or 0.0)
        text = f"gradients agree with finite differences (error {error}), so they are not broken."
    else:
        return " ".join([f"{model.model}: {_broken(masking)}", *_mode(masking)])
    return " ".join([f"{model.model}: {text}", *_slope(masking), *_cliff(masking), *_length(masking), *_mode(masking)])


def _broken(masking: Masking) -> str:
    text = f"gradients differ from finite differences by {small_percent(masking.model.gradient_error or 0.0)}"
    match masking.gradient:
        case "shared":
            others = _named(masking.controls, lambda m: m.gradient_error, small_percent)
            return f"{text}, but so do the controls' ({others}): the check says nothing here."
        case "alone":
            return f"{text}; there is no control to compare it with."
    return f"{text}: they are broken, and an attack that follows them proves nothing; attacks without gradients are the test."


def _slope(masking: Masking) -> list[str]:
    gain, random = masking.model.descent_gain, masking.model.random_gain
    if gain is None or random is None:
        return []
    chance = f"by at most {random:.2f}" if random >= 0.005 else "it does not"
    text = f"Along the gradient the held-out loss falls by {gain + 0.0:.2f} nats, along random directions {chance}"
    if gain < 0:
        text = f"Steps along the gradient raise the held-out loss, by {-gain:.2f} nats at the least"
    others = _named(masking.controls, lambda m: m.descent_gain, lambda value: written(value, ".2f"))
    match masking.slope:
        case "ordinary":
            return [f"{text}: there is a slope to follow" + (f" ({others})." if others else ".")]
        case "shared":
            return [f"{text}, but so it is in the controls ({others}): these rows tell nothing."]
        case "alone":
            return [f"{text}; there is no control to compare it with."]
    return [f"{text}: there is no slope to follow at usual lengths ({others})."]


def _cliff(masking: Masking) -> list[str]:
    ratio = masking.model.descent_ratio
    if ratio is None or masking.cliff in (None, "ordinary"):
        return []
    share = small_percent(ratio) if ratio >= 0.001 else "nothing"
    text = f"Of the fall that the gradient foretells for a short step, {share} comes true"
    others = _named(masking.controls, lambda m: m.descent_ratio, percent)
    match masking.cliff:
        case "shared":
            return [f"{text}, but so it is in the controls ({others}): the step is too long for this check."]
        case "alone":
            return [f"{text}; there is no control to compare it with."]
    return [f"{text} ({others}): the slope breaks off at once, and resisting a usual optimizer proves nothing."]


def _length(masking: Masking) -> list[str]:
    norm = masking.model.gradient_norm
    if norm is None or masking.length == "ordinary":
        return []
    lengths = [(other.gradient_norm, other.model) for other in masking.controls if other.gradient_norm]
    (least, small), (most, large) = min(lengths), max(lengths)
    if masking.length == "explodes":
        return [
            f"For the size of the weights its gradient is {number(norm / most)} times as long as that of {large}: it explodes; "
            "attacks that first change the basis of the weights are the test."
        ]
    shorter = f"{number(least / norm)} times shorter than" if norm else "nothing beside"
    return [
        f"For the size of the weights its gradient is {shorter} that of {small}: it vanishes; larger steps and other losses "
        "are the test."
    ]


def _mode(masking: Masking) -> list[str]:
    gap = masking.model.mode_gap
    if gap is None or masking.modes in (None, "ordinary"):
        return []
    text = f"In training mode its loss on hazardous rows is another by {gap:.2f} nats a token"
    others = _named(masking.controls, lambda m: m.mode_gap, lambda value: written(value, ".2f"))
    match masking.modes:
        case "shared":
            return [f"{text}, but so is the controls' ({others}): the attacks here train in evaluation mode."]
        case "alone":
            others = "there is no control to compare it with"
    return [
        f"{text} ({others}): something acts in training mode alone, such as dropout. The attacks here train without it, and so "
        "would a careful attacker."
    ]


def _instrument(models: Sequence[Checked]) -> str:
    """The sentences on whether the probe can be believed."""
    if not any(model.probe for model in models):
        return ""
    known, clean = probed(models, "undefended"), probed(models, "never-exposed")
    if known is None:
        first = "No undefended model was probed, so what the linear probe does not find says nothing."
    elif reads(models):
        first = f"The linear probe reads {_read(known.probe)} of the hazardous facts in {known.model}."
    else:
        first = (
            f"The linear probe reads only {_read(known.probe)} of the hazardous facts in {known.model}: it is too weak here, "
            "and what it does not find says nothing."
        )
    if clean is None or clean.probe is None:
        return f"{first} No never-exposed model was probed: chance stands in for it."
    guess = clean.probe.guess
    end = f", beyond chance ({_read(guess)}): so much is guessed." if clean.probe.above(guess) else ", which is chance."
    return f"{first} In {clean.model}, where there are none, it reads {_read(clean.probe)}{end}"


def _probed(masking: Masking, models: Sequence[Checked]) -> str:
    """The sentences on whether a probe reads more than the model says."""
    model, clean = masking.model, probed(models, "never-exposed")
    if model.probe is None:
        return ""
    text = (
        f"{model.model}: a linear probe of layer {model.probe_layer} reads {_read(model.probe)} of the hazardous facts"
    )
    answers = f", which the model itself answers to {_read(model.answered)}" if model.answered else ""
    beside = f"the {_read(floor(models, model.probe))} of {clean.model if clean else 'chance'}"
    match masking.readable:
        case "knowledge":
            return f"{text}, beyond {beside}: knowledge is there."
        case "hidden knowledge":
            return f"{text}{answers}: knowledge is there, hidden."
        case "no more than answered":
            return f"{text}{answers}: no more is readable, beyond noise, than it says."
    end = ": nothing can be said to be readable." if masking.readable == "nothing" else "; nothing follows from that."
    return f"{text}{answers}, no more, beyond noise, than {beside}{end}"


def _read(reading: Reading | None) -> str:
    return NOTHING if reading is None else percent(reading.value)


def _named(
    models: Sequence[Checked], figure: Callable[[Checked], float | None], written: Callable[[float], str]
) -> str:
    """Models with a figure each: "base: 0.37, never-exposed: 1.77"."""
    known = [(model.model, value) for model in models if (value := figure(model)) is not None]
    return ", ".join(f"{name}: {written(value)}" for name, value in known)
