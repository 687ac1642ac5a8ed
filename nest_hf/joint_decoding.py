"""Which of several texts was said: the language model and the CTC head judge them together.

The language model knows what people say and guesses where it does not hear; the CTC head hears frame by frame and
guesses little. Texts that either of them proposes are scored by both (Watanabe et al. 2017, doi
10.1109/JSTSP.2017.2763455; over an n-best list in Zhang et al., arXiv 2012.05481), and a hotword that the CTC head
admits is tried in the place where it fits best.

Dimensions: T encoder frames, V outputs of the CTC head, N texts of one recording, U tokens of an answer.
"""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from .ctc_decoding import best_path
from .hotwords import FoundHotword
from .timestamps import WILDCARD, WILDCARD_ON_BLANK, align_tokens, spoken_pieces, tokens_with_offsets

MOST_LOGITS = 2**26  # 256 MiB of float32 at once
FEW_ROWS = 16  # of answers at once, also for a single prompt
NEAR_TOKENS = 2  # by which the place of a hotword may differ in two alignments


class CtcScorer:
    """
    How likely texts are under the CTC posteriors of one recording.

    Args:
        log_probs (`torch.FloatTensor` of shape `(T, V)`): Of the valid frames.
        tokenizer: The CTC head's tokenizer, see [`~timestamps.tokens_with_offsets`].
        blank_id (`int`): Class of the CTC blank.
    """

    def __init__(self, log_probs: torch.Tensor, tokenizer, *, blank_id: int):
        self.log_probs, self.tokenizer, self.blank_id = log_probs.float(), tokenizer, blank_id
        path = best_path(log_probs[None], blank_id=blank_id)
        self.wildcard = (path.log_probs + WILDCARD_ON_BLANK * (path.ids == blank_id))[0].float()

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """
        `log p(text | audio)` of each, in nats, over all alignments; -inf where a text has more tokens than there are
        frames. Punctuation is not heard, and a run of characters that the CTC head does not know is whatever it hears
        there, so that digits and letters of a language model are judged by what is around them.
        """
        return self.of_tokens([[token for token, _, _ in row] for row in self._pieces(texts)]).tolist()

    def of_tokens(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """The same of token ids, among them `WILDCARD`; float32 `(N,)`."""
        classes = sorted({self.blank_id}.union(*rows) - {WILDCARD})
        classes.remove(self.blank_id)
        column = {token: number for number, token in enumerate([self.blank_id, *classes, WILDCARD])}
        device = self.log_probs.device
        emissions = self.log_probs[:, torch.tensor([self.blank_id, *classes], device=device)]
        emissions = torch.cat([emissions, self.wildcard[:, None]], dim=1)
        targets = [torch.tensor([column[token] for token in row], dtype=torch.long) for row in rows]
        losses = F.ctc_loss(
            emissions[:, None].expand(-1, len(rows), -1).contiguous(),
            pad_sequence(targets, batch_first=True).to(device),
            torch.full((len(rows),), len(emissions), device=device),
            torch.tensor([len(row) for row in rows], device=device),
            reduction="none",
        )
        return -losses.cpu()

    def with_hotword(self, text: str, word: FoundHotword) -> tuple[str, float]:
        """
        `text` with `word` in place of as many tokens, one more or one less, where that is most likely (near its end,
        where that is known), and how likely it is.
        """
        pieces, own = self._pieces([text, word.text])
        own, tokens = [token for token, _, _ in own], [token for token, _, _ in pieces]
        lasts = range(len(tokens) + 1)
        if word.end is not None:
            (span,) = align_tokens(self.log_probs[None], None, [tokens], blank_id=self.blank_id)
            if span is not None:  # there are frames enough
                at = int(np.searchsorted(span[1], word.end, side="right"))
                lasts = lasts[max(0, at - NEAR_TOKENS) : at + NEAR_TOKENS + 1]
        numbers = range(max(0, len(own) - 1), len(own) + 2)
        places = [(last - number, last) for last in lasts for number in numbers if number <= last]
        if not places:  # the text is shorter
            return word.text, float(self.of_tokens([own])[0])
        scores = self.of_tokens([tokens[:first] + own + tokens[last:] for first, last in places])
        best = int(scores.argmax())
        first, last = places[best]
        start = pieces[first][1] if first < len(pieces) else len(text)
        end = pieces[last - 1][2] if last > first else start
        return text[:start] + word.text + text[end:], float(scores[best])

    def with_hotwords(self, text: str, words: Sequence[FoundHotword], *, bonus: float) -> list[str]:
        """
        `text` with each of `words` where it fits; what is worth its `bonus` (nats per character) stays for the next.
        """
        found, (score,) = [], self([text])
        for word in words:
            if word.text in text:
                continue
            other, other_score = self.with_hotword(text, word)
            found.append(other)
            if other_score + bonus * len(word.text) > score:
                text, score = other, other_score
        return found

    def _pieces(self, texts: Sequence[str]):
        rows = tokens_with_offsets(texts, self.tokenizer)
        return [spoken_pieces(text, row) for text, row in zip(texts, rows, strict=True)]


class AnswerScorer:
    """
    How likely answers are under the language model, which has read the prompts already.

    Args:
        model ([`NestAsrForConditionalGeneration`]): In eval mode.
        processor ([`NestAsrProcessor`]): Of the model.
        cache (`transformers.DynamicCache`): As `generate` left it: of each prompt `num_beams` rows.
        input_ids, attention_mask (`torch.LongTensor` of shape `(B, L)`): The prompts, left-padded.
        num_beams (`int`): Rows of the cache for each prompt.
    """

    def __init__(self, model, processor, cache, input_ids, attention_mask, *, num_beams: int):
        self.model, self.processor, self.cache = model, processor, cache
        self.input_ids, self.attention_mask, self.num_beams = input_ids, attention_mask, num_beams

    @torch.inference_mode()
    def __call__(self, texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """`log p(answer | prompt)` of the texts of each prompt, in nats, end token included."""
        # up to the prompt's last token, after which the answers part
        self.cache.crop(self.input_ids.shape[1] - 1 - self.cache.get_seq_length())
        counts = torch.tensor([len(row) for row in texts])
        rows = torch.arange(len(texts)).repeat_interleave(counts)
        answers = [torch.from_numpy(ids) for ids in self.processor.answers([text for row in texts for text in row])]
        targets = pad_sequence(answers, batch_first=True, padding_value=-100)  # (sum of N, U)
        # no more rows at once than the prompts had, so that there is memory for them
        size = max(FEW_ROWS, len(texts) * self.num_beams)
        device = self.input_ids.device
        parts = zip(rows.to(device).split(size), targets.to(device).split(size), strict=True)
        return [part.tolist() for part in torch.cat([self._score(*part) for part in parts]).split(counts.tolist())]

    def _score(self, rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The numbers of R prompts, and the tokens of an answer to each, -100 at padding -> `(R,)`."""
        model, cache = self.model, copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        cache.batch_select_indices(rows * self.num_beams)
        inputs = torch.cat([self.input_ids[rows, -1:], targets[:, :-1].clamp_min(0)], dim=1)
        mask = self.attention_mask[rows]
        positions = mask.sum(-1, keepdim=True) - 1 + torch.arange(inputs.shape[1], device=rows.device)
        hidden = model.model.run_language_model(
            model.get_input_embeddings()(inputs),
            torch.cat([mask, torch.ones_like(inputs[:, 1:])], dim=1),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        is_answer = targets != -100
        hidden, targets = hidden[is_answer], targets[is_answer]
        size = max(1, MOST_LOGITS // model.config.text_config.vocab_size)
        parts = zip(hidden.split(size), targets.split(size), strict=True)
        losses = torch.cat([F.cross_entropy(model.lm_head(h).float(), t, reduction="none") for h, t in parts])
        return -losses.new_zeros(len(rows)).index_add_(0, is_answer.nonzero()[:, 0], losses)


def choose_texts(
    bests: Sequence[Sequence[Sequence[str]]],
    ctc_scorers: Sequence[CtcScorer],
    answer_scorer: AnswerScorer | None = None,
    *,
    ctc_weight: float,
    hotwords: Sequence[Sequence[FoundHotword]],
    hotword_bonus: float,
) -> list[str]:
    """
    The texts with the highest `(1 - ctc_weight) log p_LM + ctc_weight log p_CTC + hotword_bonus x hotword characters`.

    Args:
        bests (`Sequence[Sequence[Sequence[str]]]`): Of each of B recordings the texts of each head, the best first.
        ctc_scorers (`Sequence[CtcScorer]`): Of each recording.
        answer_scorer ([`AnswerScorer`], *optional*): Of all of them; without it CTC chooses alone.
        ctc_weight (`float`): Above 0, at most 1.
        hotwords (`Sequence[Sequence[FoundHotword]]`): Of each recording those that the CTC head admits.
        hotword_bonus (`float`): Nats for each character of a hotword that occurs.

    Returns:
        `list[str]`: One text of each recording; of equal scores the first of the first head.
    """
    proposed = []
    for heads, scorer, words in zip(bests, ctc_scorers, hotwords, strict=True):
        texts = [text for head in heads for text in head]
        if words:
            for head in heads:
                texts += scorer.with_hotwords(head[0], words, bonus=hotword_bonus)
        proposed.append(list(dict.fromkeys(texts)))
    lm_scores = answer_scorer(proposed) if answer_scorer is not None else [np.zeros(len(texts)) for texts in proposed]
    chosen = []
    for texts, scorer, words, answers in zip(proposed, ctc_scorers, hotwords, lm_scores, strict=True):
        num_hot = np.array([sum(len(word.text) for word in words if word.text in text) for text in texts])
        scores = (1 - ctc_weight) * np.array(answers) + ctc_weight * np.array(scorer(texts)) + hotword_bonus * num_hot
        chosen.append(texts[int(scores.argmax())])
    return chosen


__all__ = ["AnswerScorer", "CtcScorer", "choose_texts"]
