"""
Draws the curves of pretraining runs: validation loss under the codes' entropy, accuracy over the constant guess.

    python evaluation/plot_pretraining.py --runs runs/hsk_small runs/hsk_small_clean --output curves.png

Prints the last validation of every run and set as a Markdown table. Needs matplotlib (the extra `plots`).
"""

import argparse
import json
import sys
from pathlib import Path


def read_run(folder: str) -> tuple[list[dict], dict[str, list[dict]]]:
    """Training lines, and validation lines by set, of a run's trainer_state.json."""
    path = Path(folder) / "trainer_state.json"
    if not path.is_file():
        sys.exit(f"error: {path} does not exist; pass the output folder of a finished pretraining run.")
    history = json.loads(path.read_text())["log_history"]
    train = [line for line in history if "loss" in line]
    sets: dict[str, list[dict]] = {}
    for line in history:
        for key in line:
            if key.startswith("eval_") and key.endswith("_unigram_entropy"):
                name = key[len("eval_") : -len("_unigram_entropy")]
                prefix = f"eval_{name}_"
                values = {k[len(prefix) :]: v for k, v in line.items() if k.startswith(prefix)}
                sets.setdefault(name, []).append({"step": line["step"], **values})
    return train, sets


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", required=True, help="output folders of training/pretrain.py")
    parser.add_argument("--output", required=True, help="PNG to write")
    args = parser.parse_args()

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (losses, accuracies) = pyplot.subplots(1, 2, figsize=(12, 4.5), constrained_layout=True)
    print(
        "| run | validated on | loss | entropy - loss, nats | accuracy | accuracy / constant guess | masked frames |"
    )
    print("|---|---|---|---|---|---|---|")
    for folder in args.runs:
        train, sets = read_run(folder)
        name = Path(folder).name
        (line,) = losses.plot([x["step"] for x in train], [x["loss"] for x in train], alpha=0.35, linewidth=1)
        for (label, lines), style in zip(sets.items(), ("-", "--", ":", "-."), strict=False):
            steps = [x["step"] for x in lines]
            options = {"color": line.get_color(), "linestyle": style, "label": f"{name}, {label}"}
            losses.plot(steps, [x["loss"] for x in lines], **options)
            accuracies.plot(steps, [x["accuracy"] for x in lines], **options)
            last = lines[-1]
            print(
                f"| {name} | {label} | {last['loss']:.4f} | {last['unigram_entropy'] - last['loss']:.4f} | "
                f"{last['accuracy']:.4f} | {last['accuracy'] / last['constant_accuracy']:.3f} | "
                f"{last['masked_frames']:.0f} |"
            )
        losses.axhline(last["unigram_entropy"], color="gray", linewidth=1)
        accuracies.axhline(last["constant_accuracy"], color="gray", linewidth=1)
    losses.set(xlabel="update", ylabel="nats per masked frame", title="loss (pale: training; gray: unigram entropy)")
    accuracies.set(xlabel="update", title="masked-token accuracy (gray: constant guess)")
    accuracies.legend(fontsize="small")
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output, dpi=110)
    print(f"written: {args.output}")


if __name__ == "__main__":
    main()
