"""`transformers.Trainer` for recognisers: two losses over global counts of tokens, validation by decoding."""

import json
import logging
import math
import statistics
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate.utils import gather_object
from transformers.modeling_outputs import CausalLMOutput
from transformers.trainer_utils import EvalLoopOutput

from .asr_losses import ctc_loss, per_token
from .asr_outputs import NestAsrOutput
from .best_models import BestModels
from .configuration_nest_asr import num_encoder_frames
from .ctc_decoding import ctc_greedy
from .error_rates import character_errors, word_errors
from .freezing import matches
from .guards import max_new_tokens
from .keyword_errors import keyword_errors
from .keywords import Keyword, read_keywords
from .planned_trainer import PlannedTrainer

logger = logging.getLogger(__name__)

FOR_PEOPLE = ("ids", "notes", "texts", "ctc_texts")  # what a batch holds beside the model's inputs
NUM_SAMPLES = 3
SPIKE = 10  # times the median loss, from which a batch is named


class FinetuneTrainer(PlannedTrainer):
    """
    Trains [`NestAsrForConditionalGeneration`] or [`NestForCTC`] on batches of a [`LabelledCollator`].

    Args:
        text_level (`str`, *optional*, defaults to `"zh"`): [`~text.normalize`] of both texts before they are compared.
        predict_with_generate (`bool`, *optional*, defaults to `True`): Validate the language model by its text too.
        keywords (`str`, *optional*): File of keywords whose error rate validation gives too.
        segmenter (`str`, *optional*): Of Chinese text, for word error rates: `"jieba"`.
        trainable (`Sequence[str]`, *optional*): Patterns of what trains ([`~freezing.matches`]); all by default.
        max_loss_ratio (`float`, *optional*):
            Training stops where the loss of a batch is this many times the median of those before.
        args, model, train_dataset, train_sampler, train_collator, eval_sets, processing_class, callbacks:
            As [`PlannedTrainer`].

    Each loss is a sum over target tokens / their number over all processes and accumulated batches. Validation decodes
    whole sets: `eval_<set>_ctc_cer` by CTC (greedy), `eval_<set>_cer` by the language model (greedy), the same with
    `wer` where the references have spaces or a segmenter is given, with `kwer` and `keyword_accuracy` where there are
    keywords, and the texts in `predictions/<set>.jsonl`.
    """

    def __init__(
        self,
        *args,
        text_level: str = "zh",
        predict_with_generate: bool = True,
        keywords: str | None = None,
        segmenter: str | None = None,
        trainable: Sequence[str] = ("*",),
        max_loss_ratio: float | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.text_options = {
            "level": text_level,
            "keywords": None if keywords is None else read_keywords(keywords),
            "segmenter": segmenter,
        }
        self.trainable = trainable
        self.max_loss_ratio = max_loss_ratio
        self.best_models: BestModels | None = None
        self._usual_losses: deque[float] = deque(maxlen=100)
        self.has_language_model = self.model.config.model_type == "nest_asr"
        self.predict_with_generate = predict_with_generate and self.has_language_model
        self.loss_is_scaled_for_ga = True

    # --- one step ---------------------------------------------------------------------------------------------------

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | None:
        """`(2,)`: target tokens of the language model and of CTC, over accumulated batches and processes."""
        if not batch_samples:
            return None
        counts = torch.zeros(2, dtype=torch.int64)
        for batch in batch_samples:
            if "labels" in batch:
                counts[0] += (batch["labels"][:, 1:] != -100).sum().cpu()
            if "ctc_labels" in batch:
                counts[1] += (batch["ctc_labels"] != -100).sum().cpu()
        return self.accelerator.reduce(counts.to(device), "sum")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        notes = {name: inputs.pop(name) for name in FOR_PEOPLE if name in inputs}
        self._note(notes["notes"])
        counts = (None, None) if num_items_in_batch is None else num_items_in_batch.unbind()
        outputs = self.forward(model, inputs, *counts)
        if model.training:
            self._after_step(notes["ids"], inputs, outputs, outputs.loss)
        # DDP averages the gradients of processes, each of which has divided by the counts of all
        scale = 1 if num_items_in_batch is None else self.accelerator.num_processes
        return (outputs.loss * scale, outputs) if return_outputs else outputs.loss * scale

    def _after_step(self, ids, inputs, outputs, loss) -> None:
        super()._after_step(ids, inputs, outputs, loss)
        parts = ((outputs.lm_loss_sum, outputs.num_lm_tokens), (outputs.ctc_loss_sum, outputs.num_ctc_tokens))
        losses = [(total / count.clamp_min(1)).float() for total, count in parts if total is not None]
        self._losses.append(torch.stack(losses).sum())

    def _reset_sums(self) -> None:
        super()._reset_sums()
        self._losses: list[torch.Tensor] = []  # per token, of each batch

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._losses:
            self._look_for_spikes(torch.stack(self._losses).tolist())
        super().log(logs, start_time)

    def _look_for_spikes(self, losses: list[float]) -> None:
        """Names the recordings of a batch whose loss leaps, or is not finite."""
        for loss, ids in zip(losses, self._ids_since_log, strict=True):
            usual = statistics.median(self._usual_losses) if len(self._usual_losses) >= 10 else math.inf
            self._usual_losses.append(loss)
            if loss <= min(SPIKE, self.max_loss_ratio or SPIKE) * usual and math.isfinite(loss):
                continue
            message = (
                f"the loss of a batch just before step {self.state.global_step} is {loss:.6g}, the median before it "
                f"{usual:.6g}; its recordings: {', '.join(ids[:16])}{', ...' if len(ids) > 16 else ''}"
            )
            if not math.isfinite(loss) or (self.max_loss_ratio and loss > self.max_loss_ratio * usual):
                raise ValueError(f"{message}; lower `learning_rate`, or look at them.")
            logger.warning("%s", message)

    def forward(self, model, inputs: dict, num_lm_tokens=None, num_ctc_tokens=None, **kwargs) -> NestAsrOutput:
        """
        Both models' losses in one form.

        Args:
            model: The wrapped model.
            inputs (`dict`): Of a [`LabelledCollator`], tensors only.
            num_lm_tokens, num_ctc_tokens (`torch.Tensor`, *optional*): Global counts; those of the batch by default.
        """
        if self.has_language_model:
            return model(**inputs, num_items_in_batch=num_lm_tokens, num_ctc_items_in_batch=num_ctc_tokens, **kwargs)
        config, mask = self.model.config, inputs["input_features_mask"]
        encoded: CausalLMOutput = model(inputs["input_features"], attention_mask=mask)
        num_frames = num_encoder_frames(mask.long().sum(-1), config.subsampling_factor)
        mask = torch.arange(encoded.logits.shape[1], device=mask.device) < num_frames[:, None]
        total, count, impossible = ctc_loss(encoded.logits, mask, inputs["ctc_labels"], config.pad_token_id)
        loss = per_token(total, count, num_ctc_tokens)
        return NestAsrOutput(
            loss=loss,
            ctc_loss=loss.detach(),
            ctc_loss_sum=total.detach(),
            num_ctc_tokens=count,
            num_ctc_impossible=impossible,
            ctc_logits=encoded.logits,
            encoder_mask=mask,
        )

    def _count(self, inputs, outputs) -> None:
        for name in ("lm_loss_sum", "num_lm_tokens", "ctc_loss_sum", "num_ctc_tokens", "num_ctc_impossible"):
            if outputs.get(name) is not None:
                self._sums[name] += outputs[name].double()
        self._sums["frames"] += inputs["input_features_mask"].sum()
        self._sums["padded_frames"] += inputs["input_features_mask"].numel()

    def _rates(self, total: dict[str, float], elapsed_s: float) -> dict[str, float]:
        rates = {
            f"{part}_loss": total[f"{part}_loss_sum"] / max(1.0, total[f"num_{part}_tokens"])
            for part in ("lm", "ctc")
            if f"{part}_loss_sum" in total
        }
        if total.get("num_ctc_impossible"):
            rates["ctc_impossible"] = total["num_ctc_impossible"]
        config = self.model.config
        frame_s = config.encoder_frame_ms / config.subsampling_factor / 1000 if self.has_language_model else 0.01
        return {**rates, "audio_s_per_s": total["frames"] * frame_s / elapsed_s}

    # --- what trains ------------------------------------------------------------------------------------------------

    def trained_state(self) -> dict[str, torch.Tensor]:
        """The tensors and buffers that training changes, by their names in the model's state dict."""
        whole = self.is_fsdp_enabled or self.is_deepspeed_enabled
        state = self.accelerator.get_state_dict(self.model_wrapped) if whole else self.model.state_dict()
        return {name: tensor for name, tensor in state.items() if matches(name, self.trainable)}

    def load_trained_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Puts tensors of [`~FinetuneTrainer.trained_state`] into the model; every process has to call it."""
        if self.is_deepspeed_enabled:
            self._load_into_deepspeed(tensors)
            return
        if self.is_fsdp_enabled:
            from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

            options = StateDictOptions(full_state_dict=True, strict=False)
            set_model_state_dict(self.model, tensors, options=options)
            return
        unknown = self.model.load_state_dict(tensors, strict=False).unexpected_keys
        if unknown:
            raise ValueError(f"kept weights do not fit the model: {', '.join(unknown[:4])}; train in a new folder.")

    def _load_into_deepspeed(self, tensors: dict[str, torch.Tensor]) -> None:
        import deepspeed

        for name, parameter in self.model.named_parameters():
            if name in tensors:
                with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                    parameter.data.copy_(tensors[name])
        for name, buffer in self.model.named_buffers():
            if name in tensors:
                buffer.copy_(tensors[name])

    def _is_done(self) -> bool:
        return super()._is_done() or (self.best_models is not None and self.best_models.is_over(self.state))

    # --- validation -------------------------------------------------------------------------------------------------

    def evaluation_loop(self, dataloader, description, prediction_loss_only=None, ignore_keys=None,
                        metric_key_prefix="eval"):  # fmt: skip
        """Decodes the whole set; sums over all processes."""
        started = time.perf_counter()
        model = self._evaluation_model()
        sums = torch.zeros(4, dtype=torch.float64, device=self.args.device)
        lines: list[dict] = []
        for batch in self._progress(dataloader, f"{description} {metric_key_prefix}"):
            notes = {name: batch.pop(name) for name in FOR_PEOPLE}
            self._note(notes["notes"])
            batch = self._prepare_inputs(batch)
            with torch.no_grad(), self.compute_loss_context_manager():
                outputs, decoded = self._decode(model, batch)
            parts = (outputs.lm_loss_sum, outputs.num_lm_tokens, outputs.ctc_loss_sum, outputs.num_ctc_tokens)
            sums += torch.stack([sums.new_zeros(()) if part is None else part.double() for part in parts])
            for row, recording in enumerate(notes["ids"]):
                texts = {kind: texts[row] for kind, texts in decoded.items()}
                lines.append({"id": recording, "text": notes["texts"][row], **texts})
        sums = self.accelerator.reduce(sums, "sum").tolist()
        lines = sorted({line["id"]: line for line in gather_object(lines)}.values(), key=lambda line: line["id"])
        lines = [line for line in lines if line["text"]]
        metrics = text_metrics(lines, **self.text_options)
        for name, total, count in (("lm_loss", *sums[:2]), ("ctc_loss", *sums[2:])):
            if count:
                metrics[name] = total / count
        self._show(lines, metric_key_prefix.removeprefix("eval_"))
        self._log_time += time.perf_counter() - started  # not part of the training speed
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(lines))

    def _decode(self, model, inputs: dict) -> tuple[NestAsrOutput, dict[str, list[str]]]:
        """The losses, and the texts by CTC and by the language model; the audio is encoded once."""
        decoded = {}
        if not self.has_language_model:
            outputs = self.forward(model, inputs)
            tokenizer, blank = self.processing_class.tokenizer, self.model.config.pad_token_id
        else:
            encoded = self.model.encode_audio(inputs.pop("input_features"), inputs.pop("input_features_mask"))
            outputs = self.forward(model, inputs, encoded_audio=encoded)
            tokenizer = self.processing_class.ctc_tokenizer
            blank = self.model.ctc_head.blank if self.model.ctc_head is not None else None
            if self.predict_with_generate:
                seconds = encoded.mask.sum(-1).max().item() * self.model.config.encoder_frame_ms / 1000
                sequences = self.model.generate(encoded_audio=encoded, max_new_tokens=max_new_tokens(seconds))
                decoded["lm"] = self.processing_class.decode_answers(sequences)
        if outputs.ctc_logits is not None:
            log_probs = outputs.ctc_logits.float().log_softmax(-1)
            ids = ctc_greedy(log_probs, outputs.encoder_mask.sum(-1), blank_id=blank)
            decoded["ctc"] = [ctc_text(tokenizer, row) for row in ids]
        return outputs, decoded

    def _show(self, lines: list[dict], name: str) -> None:
        if not self.is_world_process_zero():
            return
        path = Path(self.args.output_dir, "predictions", f"{name}.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
        for line in lines[:NUM_SAMPLES]:
            logger.info("%s", " | ".join(f"{key}: {value}" for key, value in line.items()))


def ctc_text(tokenizer, ids: list[int]) -> str:
    """Ids of a decoded path, collapsed already, as text."""
    options = {} if tokenizer.is_fast else {"group_tokens": False}  # which `Wav2Vec2CTCTokenizer` would do again
    return tokenizer.decode(ids, skip_special_tokens=True, **options)


def text_metrics(
    lines: list[dict],
    *,
    level: str = "zh",
    keywords: Sequence[Keyword] | None = None,
    segmenter: str | None = None,
) -> dict[str, float]:
    """
    Error rates of decoded texts over the whole set.

    Args:
        lines (`list[dict]`): `id`, the reference `text`, and decoded texts under `lm` or `ctc`.
        level (`str`, *optional*, defaults to `"zh"`): [`~text.normalize`] of both sides.
        keywords (`Sequence[Keyword]`, *optional*): Of which the error rate is asked.
        segmenter (`str`, *optional*): See [`~error_rates.word_errors`].

    Returns:
        `dict`: `cer` (language model) and `ctc_cer`; `wer` and `ctc_wer` with a segmenter, or where references have
        spaces, whose words stand between them; with keywords `kwer`, `keyword_accuracy` and the same by CTC.
    """
    metrics = {}
    references = {line["id"]: line["text"] for line in lines}
    if segmenter is None and any(" " in text.strip() for text in references.values()):
        segmenter = str.split
    for kind, prefix in (("lm", ""), ("ctc", "ctc_")):
        texts = {line["id"]: line[kind] for line in lines if kind in line}
        if not texts:
            continue
        metrics[f"{prefix}cer"] = _rate(character_errors(texts, references, level=level))
        if segmenter is not None:
            metrics[f"{prefix}wer"] = _rate(word_errors(texts, references, level=level, segmenter=segmenter))
        if keywords:
            found = keyword_errors(texts, references, keywords, level=level)
            if total := found.num_keywords.sum():
                metrics[f"{prefix}kwer"] = float(found.errors.sum() / total)
                metrics[f"{prefix}keyword_accuracy"] = float(1 - found.misses.sum() / total)
    return metrics


def _rate(counts) -> float:
    return float(counts.errors.sum() / max(1, counts.num_tokens.sum()))
