"""A small language model of the texts, where no pretrained one is given.

A large language model can repeat what stands in its prompt, and a recogniser is built on that: its adaptor says in
embeddings what was heard. A model trained on sentences alone cannot. So a share of the examples holds the sentence, as
a recogniser would hear it, at the place of the audio: each character one to three times, with gaps and mistakes. Some
of them are no sentences but characters at random, which can only be repeated; from sentences alone the model would
learn to guess.
"""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
from transformers.trainer_utils import EvalLoopOutput

from .arguments import NestTrainingArguments
from .asr_prompt import Request
from .callbacks import TrainLogCallback
from .chat_tokenizer import build_chat_tokenizer
from .data.audio_encoding import write_whole
from .data.batching import ExampleKey, TokenBudgetBatchSampler
from .data.seeding import generator_of
from .feature_extraction_nest import NestFeatureExtractor
from .hub import push_run
from .parsing import check_keys, resolved, save_resolved
from .planned_trainer import PlannedTrainer
from .processing_nest_asr import NestAsrProcessor
from .runs import changed_options, finish_run, start_run
from .text import LEVELS, normalize

logger = logging.getLogger(__name__)

RECORD = "language_model.json"
SMALL = {
    **{"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "head_dim": 64},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048},
    **{"tie_word_embeddings": True},
}


@dataclass
class LanguageModelArguments:
    """Which texts, and which model learns them."""

    text: list[str] | None = field(default=None, metadata={"help": "Text files, a sentence per line, UTF-8."})
    eval_text: list[str] | None = field(default=None, metadata={"help": "The same, for validation."})
    text_level: str = field(default="raw", metadata={"help": f"How texts are written: {', '.join(LEVELS)}."})
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Go on from this causal language model: a folder or Hub id."}
    )
    config_overrides: dict | None = field(
        default=None, metadata={"help": f"Fields of Qwen3Config that differ from {SMALL}, for a new model."}
    )
    heard_share: float = field(
        default=0.7, metadata={"help": "Share of the examples whose prompt holds the sentence as it would be heard."}
    )
    mistakes: float = field(default=0.05, metadata={"help": "Share of its characters that are heard wrong or not."})
    random_share: float = field(
        default=0.3,
        metadata={"help": "Share of those that are heard which are characters at random, without mistakes."},
    )

    def __post_init__(self):
        if not self.text:
            raise ValueError("`text` is missing: give files with a sentence per line, --text sentences.txt.")
        for name in ("heard_share", "mistakes", "random_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must lie between 0 and 1.")
        if self.model_name_or_path and self.config_overrides:
            raise ValueError("`config_overrides` has no effect with `model_name_or_path`; leave it out.")
        if self.text_level not in LEVELS:
            raise ValueError(f"`text_level` is {self.text_level!r}; choose one of {', '.join(LEVELS)}.")


@dataclass
class LanguageModelTrainingArguments(NestTrainingArguments):
    """`transformers.TrainingArguments` with defaults for a small language model."""

    learning_rate: float | None = field(default=1e-3, metadata={"help": "Peak of the schedule."})
    schedule: str = field(default="trainer", metadata={"help": "Must stay `trainer`: see --lr_scheduler_type."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "linear, cosine, constant ..."})
    warmup_steps: float = field(default=50, metadata={"help": "Updates of linear warm-up, or a share below 1."})
    weight_decay: float = field(default=0.01, metadata={"help": "On weights, not on biases and norms."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Clipping of the gradient norm; 0 is none."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Sentences per batch and process."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Sentences per validation batch."})
    eval_steps: float | None = field(default=200, metadata={"help": "Updates between validations."})
    save_steps: float = field(default=200, metadata={"help": "Updates between checkpoints."})

    def __post_init__(self):
        if self.max_steps is None and self.num_train_epochs is None:
            self.num_train_epochs = 3.0
        super().__post_init__()


def read_sentences(paths: Sequence[str], level: str) -> list[str]:
    """
    Lines of text files, normalised; empty lines are left out.

    Raises:
        ValueError: for a file that is missing, not UTF-8, or has no text.
    """
    sentences = []
    for path in paths:
        if not Path(path).is_file():
            raise ValueError(f"{path} does not exist; give a text file with a sentence per line.")
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 (byte {error.start}); convert it first.") from error
        found = [normalize(line, level).strip() for line in lines]
        if not any(found):
            raise ValueError(f"{path} has no text; give a file with a sentence per line.")
        sentences += [sentence for sentence in found if sentence]
    return sentences


class SentenceDataset(Dataset):
    """
    Sentences as a recogniser's language model reads and writes them.

    Args:
        sentences (`Sequence[str]`): The texts.
        processor ([`NestAsrProcessor`]): Has the prompt and the tokenizer.
        heard_share (`float`): Share of the examples whose prompt holds the sentence, as it would be heard.
        mistakes (`float`): Share of its characters that are heard wrong or not at all.
        random_share (`float`): Share of what is heard that is characters at random, without mistakes.
        seed (`int`): Seeds all of it, with epoch and row.

    Gives, for an [`~data.batching.ExampleKey`], token ids of the prompt and of the answer.
    """

    def __init__(
        self,
        sentences: Sequence[str],
        processor: NestAsrProcessor,
        *,
        heard_share: float,
        mistakes: float,
        random_share: float,
        seed: int,
    ):
        ids = processor.tokenizer(list(sentences), add_special_tokens=False).input_ids
        self.answers = [np.array([*row, processor.end_token_id]) for row in ids]
        self.silence = processor.audio_token_id
        (prompt,) = processor.prompts([Request()])
        at = int(np.flatnonzero(prompt == self.silence)[0])
        self.head, self.tail = prompt[:at], prompt[at + 1 :]
        self.heard_share, self.mistakes, self.random_share, self.seed = heard_share, mistakes, random_share, seed
        self.tokens = np.unique(np.concatenate([answer[:-1] for answer in self.answers]))

    def __len__(self) -> int:
        return len(self.answers)

    def lengths(self) -> np.ndarray:
        """Tokens of each answer."""
        return np.array([len(answer) for answer in self.answers], dtype=np.float64)

    def __getitem__(self, key: ExampleKey) -> tuple[np.ndarray, np.ndarray]:
        (row,) = key.rows
        rng = generator_of(self.seed, key.epoch, str(row), "heard")
        answer = self.answers[row]
        heard = answer[:0]
        if rng.random() < self.heard_share:
            mistakes = self.mistakes
            if rng.random() < self.random_share:
                mistakes = 0.0
                answer = np.append(rng.choice(self.tokens, len(answer) - 1), answer[-1])
            heard = self.heard(answer[:-1], rng, mistakes)
        return np.concatenate([self.head, heard, self.tail]), answer

    def heard(self, tokens: np.ndarray, rng: np.random.Generator, mistakes: float) -> np.ndarray:
        """Tokens at the place of the audio: some wrong or missing, each one to three times, with gaps."""
        draws = rng.random(len(tokens))
        wrong, missing = draws < 0.7 * mistakes, (draws >= 0.7 * mistakes) & (draws < mistakes)
        tokens = np.where(wrong, rng.choice(self.tokens, len(tokens)), tokens)[~missing]
        counts, gaps = rng.integers(1, 4, len(tokens)), rng.integers(0, 3, len(tokens) + 1)
        repeats = np.stack([counts, gaps[1:]], axis=1).ravel()
        pairs = np.stack([tokens, np.full_like(tokens, self.silence)], axis=1).ravel()
        return np.concatenate([np.full(gaps[0], self.silence), np.repeat(pairs, repeats)])


class SentenceCollator:
    """Pads (prompt, answer) to `input_ids`, `attention_mask`, `labels` (B, L), the loss on the answer alone."""

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, examples) -> dict:
        rows = [torch.from_numpy(np.concatenate(example)) for example in examples]
        labels = [row.clone() for row in rows]
        for row, (prompt, _) in zip(labels, examples, strict=True):
            row[: len(prompt)] = -100
        return {
            "input_ids": pad_sequence(rows, batch_first=True, padding_value=self.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
        }


class LanguageModelTrainer(PlannedTrainer):
    """Trains a causal language model on a [`SentenceDataset`]; validation gives nats per token and the perplexity."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            self._after_step([], inputs, outputs, loss)
        return (loss, outputs) if return_outputs else loss

    def _count(self, inputs, outputs) -> None:
        self._sums["frames"] += inputs["attention_mask"].sum()
        self._sums["padded_frames"] += inputs["attention_mask"].numel()

    def _rates(self, total: dict[str, float], elapsed_s: float) -> dict[str, float]:
        return {"tokens_per_s": total["frames"] / elapsed_s}

    def evaluation_loop(self, dataloader, description, prediction_loss_only=None, ignore_keys=None,
                        metric_key_prefix="eval"):  # fmt: skip
        started = time.perf_counter()
        model = self._evaluation_model()
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        for batch in self._progress(dataloader, f"{description} {metric_key_prefix}"):
            batch = self._prepare_inputs(batch)
            count = (batch["labels"][:, 1:] != -100).sum()
            with torch.no_grad(), self.compute_loss_context_manager():
                sums += torch.stack([model(**batch, num_items_in_batch=1).loss.double(), count.double()])
        total, count = self.accelerator.reduce(sums, "sum").tolist()
        self._log_time += time.perf_counter() - started
        metrics = {"loss": total / count, "perplexity": float(np.exp(total / count)), "tokens": count}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(dataloader.dataset))


def train_language_model(arguments: LanguageModelArguments, args: LanguageModelTrainingArguments) -> None:
    """
    Trains a causal language model, new or given, and leaves it with its tokenizer in `output_dir`.

    Args:
        arguments ([`LanguageModelArguments`]): Texts and model.
        args ([`LanguageModelTrainingArguments`]): How.
    """
    # 1. texts, tokenizer, model
    config = resolved(arguments, args)
    record = Path(args.output_dir, RECORD)
    resume = start_run(args)
    if record.is_file() and not changed_options(json.loads(record.read_text())["config"], config):
        logger.info("%s is complete (%s); nothing to do", args.output_dir, RECORD)
        return
    sentences = read_sentences(arguments.text, arguments.text_level)
    held_out = read_sentences(arguments.eval_text, arguments.text_level) if arguments.eval_text else []
    if arguments.model_name_or_path:
        tokenizer = AutoTokenizer.from_pretrained(arguments.model_name_or_path)
        model = AutoModelForCausalLM.from_pretrained(arguments.model_name_or_path, dtype=torch.float32)
    else:
        tokenizer = build_chat_tokenizer(sentences)
        overrides = arguments.config_overrides or {}
        check_keys(overrides, list(Qwen3Config().to_dict()), "config_overrides")
        ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
        model = Qwen3ForCausalLM(Qwen3Config(**{**SMALL, "vocab_size": len(tokenizer), **ids, **overrides}))

    # 2. batches
    processor = NestAsrProcessor(NestFeatureExtractor(), tokenizer)
    options = {name: getattr(arguments, name) for name in ("heard_share", "mistakes", "random_share")}
    options["seed"] = args.seed
    train = SentenceDataset(sentences, processor, **options)
    collator = SentenceCollator(tokenizer.pad_token_id)
    batches = {"unit": "tokens", "num_replicas": args.world_size, "rank": args.process_index, "seed": args.seed}
    sampler = TokenBudgetBatchSampler(train.lengths(), batch_size=args.per_device_train_batch_size, **batches)
    eval_sets = {}
    for name, share in (("sentences", 0.0), ("heard", 1.0)) if held_out else ():
        dataset = SentenceDataset(held_out, processor, **{**options, "heard_share": share, "random_share": 0.0})
        batch_size = args.per_device_eval_batch_size
        plan = TokenBudgetBatchSampler(dataset.lengths(), batch_size=batch_size, shuffle=False, **batches)
        eval_sets[name] = (dataset, plan, collator)
    if not eval_sets:
        args.eval_strategy = "no"

    # 3. train, save
    trainer = LanguageModelTrainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset={name: dataset for name, (dataset, _, _) in eval_sets.items()},
        train_sampler=sampler,
        train_collator=collator,
        eval_sets=eval_sets,
        processing_class=tokenizer,
        callbacks=[TrainLogCallback(args.output_dir)],
    )
    if args.process_index == 0:
        save_resolved(args.output_dir, arguments, args)
        size = sum(parameter.numel() for parameter in model.parameters())
        tokens = int(train.lengths().sum())
        logger.info("language model: %s parameters, %s tokens in its vocabulary", f"{size:,}", f"{len(tokenizer):,}")
        logger.info(
            "text: %s sentences, %s tokens; held out %s", f"{len(train):,}", f"{tokens:,}", f"{len(held_out):,}"
        )
        logger.info("output: %s", args.output_dir)
    trainer.train(resume_from_checkpoint=resume)
    if finish_run(trainer, validated=bool(eval_sets)):
        made = {"sentences": len(train), "updates": trainer.state.global_step, "config": config}
        write_whole(record, json.dumps(made, indent=1, ensure_ascii=False).encode())
        logger.info('    AutoModelForCausalLM.from_pretrained("%s")   # of transformers', args.output_dir)
    trainer.accelerator.wait_for_everyone()
    if args.push_to_hub:
        push_run(args, commit_message="NEST language model")


__all__ = ["LanguageModelArguments", "LanguageModelTrainingArguments", "read_sentences", "train_language_model"]
